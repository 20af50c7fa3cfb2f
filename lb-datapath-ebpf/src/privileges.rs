//! The capabilities that the kernel asks for.

use std::{fs, io};

use crate::error::EbpfError;

/// Numbers of <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/capability.h>.
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// Refuses a thread that lacks capabilities, by name: what the kernel says of them depends on which call is the first
/// to fail.
///
/// A process in a user namespace has them there, and not where the kernel asks for them. The kernel refuses that one.
pub(crate) fn check() -> Result<(), EbpfError> {
    let asked = |source| EbpfError::Probe { what: "the capabilities of this thread", source };
    let missing = missing(effective().map_err(asked)?);
    if missing.is_empty() { Ok(()) } else { Err(EbpfError::Capabilities(missing)) }
}

/// Those that are needed and not in `held`.
fn missing(held: u64) -> Vec<&'static str> {
    let has = |number: u32| held >> number & 1 == 1;
    let needed = [
        ("CAP_NET_ADMIN", has(NET_ADMIN)),
        ("CAP_BPF", has(BPF) || has(SYS_ADMIN)),
        ("CAP_PERFMON", has(PERFMON) || has(SYS_ADMIN)),
    ];
    needed.into_iter().filter(|(_, held)| !held).map(|(name, _)| name).collect()
}

/// The effective capabilities of this thread.
fn effective() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let set = |numbers: &[u32]| numbers.iter().fold(0, |set, number| set | 1 << number);
        assert_eq!(missing(set(&[NET_ADMIN, BPF, PERFMON])), <[&str; 0]>::default());
        assert_eq!(missing(set(&[NET_ADMIN, SYS_ADMIN])), <[&str; 0]>::default());
        assert_eq!(missing(set(&[NET_ADMIN, BPF])), ["CAP_PERFMON"]);
        assert_eq!(missing(set(&[SYS_ADMIN])), ["CAP_NET_ADMIN"]);
        assert_eq!(missing(0), ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"]);
    }
}
