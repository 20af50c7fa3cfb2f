//! Kernels that a datapath needs.

use lb_agent::driver::DatapathKind;

use super::error::RunError;

/// Why a datapath cannot run: the kernel, if it is too old, before what failed.
pub(super) fn because(datapath: DatapathKind, error: &RunError) -> String {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    match lack(datapath, &release.unwrap_or_default()) {
        Some(lack) => format!("{lack}: {}", lb_core::error::report(error)),
        None => lb_core::error::report(error),
    }
}

/// What a kernel of this release lacks. A distribution may have added it to an older one, so that this explains a
/// failure and does not predict it.
fn lack(datapath: DatapathKind, release: &str) -> Option<String> {
    let (major, minor) = datapath.minimum_kernel()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(is_major)), Some(Ok(is_minor))) = (numbers.next(), numbers.next()) else { return None };
    ((is_major, is_minor) < (major, minor)).then(|| format!("needs Linux {major}.{minor}, this is {release}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_agent::driver;

    #[test]
    fn an_old_kernel_is_named() {
        let lacks = |kind, release| lack(kind, release);
        assert_eq!(lacks(driver::EBPF, "5.15.0-rc1"), None);
        let expected = Some("needs Linux 5.15, this is 5.10.0-18-amd64".to_owned());
        assert_eq!(lacks(driver::EBPF, "5.10.0-18-amd64"), expected);
        assert_eq!(lacks(driver::NFTABLES, "6.10.3"), None);
        assert!(lacks(driver::NFTABLES, "5.15.0").is_some());
        assert_eq!(lacks(driver::IPTABLES_NFT, "5.15.0"), None);
        assert_eq!(lacks(driver::EBPF, "unknown"), None);
    }
}
