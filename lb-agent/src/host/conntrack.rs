//! How long the kernel remembers half-closed connections, where a datapath depends on the sysctl.

use std::{
    fs::{self, OpenOptions},
    path::Path,
    time::Duration,
};

/// Condition: half-closed connections are forgotten early.
const HALF_CLOSED: &str = "HalfClosedForgotten";
const SYSCTL: &str = "net.netfilter.nf_conntrack_tcp_timeout_close_wait";

/// What keeps the datapath from raising the time-out of half-closed connections to `wanted`.
pub(crate) fn hindrances(wanted: Option<Duration>) -> Vec<(&'static str, String)> {
    let file = format!("/proc/sys/{}", SYSCTL.replace('.', "/"));
    wanted.and_then(|wanted| hindrance(Path::new(&file), wanted)).map(|it| (HALF_CLOSED, it)).into_iter().collect()
}

fn hindrance(file: &Path, wanted: Duration) -> Option<String> {
    let wanted = wanted.as_secs();
    let is = fs::read_to_string(file).ok()?.trim().parse::<u64>().ok().filter(|&is| is < wanted)?;
    let error = OpenOptions::new().write(true).open(file).err()?;
    Some(format!(
        "a connection whose client has closed its half is lost if the server answers after more than {is} s, because \
         the agent may not raise that time ({error}): run `sysctl -w {SYSCTL}={wanted}` on the host, in the network \
         namespace of the agent"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_that_is_too_short_and_cannot_be_raised_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("close_wait");
        let wanted = Duration::from_secs(3600);
        assert_eq!(hindrance(&path, wanted), None, "a kernel without conntrack");
        fs::write(&path, "60\n").unwrap();
        assert_eq!(hindrance(&path, wanted), None, "the datapath raises it");
        // Not even root may write this one, whose value is constant.
        let constant = Path::new("/proc/sys/kernel/ngroups_max");
        let told = hindrance(constant, Duration::from_secs(u64::MAX)).unwrap();
        assert!(told.contains("after more than 65536 s") && told.contains("close_wait=18446744073709551615"), "{told}");
        assert_eq!(hindrance(constant, Duration::from_secs(1)), None, "long enough");
    }
}
