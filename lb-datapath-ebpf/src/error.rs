//! Why the datapath cannot be opened or changed.

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
};

use lb_core::datapath::{DatapathError, ErrorKind};

use crate::{state::ports, sys::Shape};

/// Why the datapath cannot be opened, or a device attached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EbpfError {
    #[error(
        "{path} is not in a BPF file system; mount one with `mount -t bpf bpf /sys/fs/bpf`, or name another pin directory"
    )]
    NotBpffs { path: PathBuf },
    #[error("{path} belongs to user {owner} and has mode {mode:o}, expected user {user} and mode 700; {}", way_out(path, *owner == *user))]
    Directory { path: PathBuf, owner: u32, user: u32, mode: u32 },
    #[error("{path} is in use by another process; stop that, or name another pin directory")]
    Locked { path: PathBuf },
    #[error("{what} {path} failed")]
    Pin { path: PathBuf, what: &'static str, source: io::Error },
    #[error(
        "map {path} was not pinned by this datapath: expected {expected}, found {found}; remove the file by hand, or name another pin directory"
    )]
    ForeignMap { path: PathBuf, expected: Shape, found: Shape },
    #[error("{path} was not pinned by this datapath: {what}; remove it, or name another pin directory")]
    Foreign { path: PathBuf, what: String },
    #[error(
        "{link} and the maps beside it do not belong together: its program uses {map}, and that is not what is pinned under \
         this name; remove the pin that another tool put there (the link or the map), or name another pin directory"
    )]
    Mixed { link: PathBuf, map: String },
    #[error("{what} map {name} failed")]
    Map { name: &'static str, what: &'static str, source: io::Error },
    #[error(
        "the process lacks {}; the datapath needs CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON, and CAP_SYS_ADMIN stands for \
         the last two",
        .0.join(" and ")
    )]
    Capabilities(Vec<&'static str>),
    #[error("asking the kernel whether it has {what} failed; {}", needed(source.raw_os_error()))]
    Probe { what: &'static str, source: io::Error },
    #[error("loading the eBPF object failed; {}", .0.needed())]
    Load(#[source] Refusal),
    #[error("loading program {name} failed; {}", .source.needed())]
    Program { name: &'static str, source: Refusal },
    #[error("the eBPF object has no program {name}")]
    NoProgram { name: &'static str },
    #[error("examining program {name} failed")]
    Examine { name: &'static str, source: io::Error },
    #[error("the pin {path} was removed or replaced; repair it first")]
    Unpinned { path: PathBuf },
    #[error("running {name} on a packet failed")]
    TestRun { name: &'static str, source: io::Error },
    #[error("opening cgroup {path} failed; expected a directory of the cgroup2 hierarchy")]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("attaching {program} to {target} failed")]
    Attach { program: &'static str, target: String, source: io::Error },
    #[error("opening a netlink socket for filters failed")]
    Filters(#[source] io::Error),
    #[error("repairing the maps failed: {0}")]
    Repair(String),
    #[error("device {name} not found in this network namespace")]
    NoDevice { name: String, source: io::Error },
    #[error(
        "device {name} is of type {kind} ({}), whose packets begin neither with an Ethernet header nor with that of IP; leave \
         the device out, or choose another datapath (nftables knows no devices)",
        type_name(*kind)
    )]
    DeviceType { name: String, kind: u16 },
    #[error("reading {path} failed; it says which ports the node's own sockets get")]
    Setting { path: &'static Path, source: io::Error },
    #[error(
        "net.ipv4.ip_local_port_range is {local} and net.ipv4.ip_local_reserved_ports is `{reserved}`, expected {least} \
         ports in a row of 1024-29999 that sockets of the node do not get, for translated sources; let the range begin \
         higher (`sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"`) or reserve some \
         (`sysctl -w net.ipv4.ip_local_reserved_ports=20000-29999`)",
        least = ports::LEAST
    )]
    NoPorts { local: String, reserved: String },
    #[error("this kernel does not tell network namespaces apart (SO_NETNS_COOKIE), which needs Linux 5.14 or later")]
    NoNamespace,
    #[error("no pod device is attached; name one that exists in `EbpfConfig::pod_devices`")]
    NoPodDevice,
}

/// Name of a type of device, `ARPHRD_…`.
const fn type_name(kind: u16) -> &'static str {
    match kind {
        libc::ARPHRD_INFINIBAND => "InfiniBand",
        libc::ARPHRD_PPP => "PPP",
        libc::ARPHRD_CAN => "CAN",
        libc::ARPHRD_IEEE80211 | libc::ARPHRD_IEEE80211_PRISM | libc::ARPHRD_IEEE80211_RADIOTAP => "IEEE 802.11",
        libc::ARPHRD_IEEE802154 => "IEEE 802.15.4",
        _ => "of no name here",
    }
}

fn way_out(path: &Path, own: bool) -> String {
    let another = "name another pin directory";
    if own { format!("run `chmod 700 {}`, or {another}", path.display()) } else { another.into() }
}

/// Why the kernel refused an object or a program. The text says each cause once: those of the loader repeat their
/// causes.
#[derive(Debug)]
pub(crate) struct Refusal {
    text: String,
    code: Option<i32>,
}

impl Refusal {
    /// Walks the causes here, and not where errors are printed: an error number is needed, too, and it belongs to one
    /// of the causes, whose type is lost once they are text.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        let (mut text, mut code) = (String::new(), None);
        let mut next = Some(error);
        while let Some(error) = next {
            let more = error.to_string();
            let more = more.trim_end_matches(". Verifier output: ");
            if !text.contains(more) {
                text = if text.is_empty() { more.into() } else { format!("{text}: {more}") };
            }
            code = code.or_else(|| error.downcast_ref().and_then(io::Error::raw_os_error));
            next = error.source();
        }
        Self { text, code }
    }

    const fn needed(&self) -> &'static str {
        needed(self.code)
    }

    const fn kind(&self) -> ErrorKind {
        match self.code {
            Some(libc::EPERM | libc::EACCES) => ErrorKind::Permission,
            _ => ErrorKind::Unsupported,
        }
    }
}

/// What is needed where a call of `bpf(2)` failed with this number.
const fn needed(code: Option<i32>) -> &'static str {
    match code {
        Some(libc::EPERM) => "the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed",
        // The verifier refuses programs that are too new for it with this number, and all that need CAP_PERFMON.
        Some(libc::EACCES) => {
            "the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed, and Linux 5.15 or later"
        }
        _ => "Linux 5.15 or later is needed",
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Refusal {}

impl EbpfError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotBpffs { .. } | Self::Directory { .. } | Self::NoDevice { .. } | Self::Cgroup { .. } => {
                ErrorKind::Invalid
            }
            Self::Locked { .. } | Self::Unpinned { .. } => ErrorKind::Busy,
            Self::Repair(_) => ErrorKind::System,
            Self::Load(source) | Self::Program { source, .. } => source.kind(),
            Self::Capabilities(_) => ErrorKind::Permission,
            Self::NoProgram { .. } => ErrorKind::Unsupported,
            Self::ForeignMap { .. }
            | Self::Foreign { .. }
            | Self::Mixed { .. }
            | Self::NoPodDevice
            | Self::NoPorts { .. } => ErrorKind::Invalid,
            Self::Pin { source, .. }
            | Self::Examine { source, .. }
            | Self::Probe { source, .. }
            | Self::Filters(source)
            | Self::TestRun { source, .. }
            | Self::Setting { source, .. }
            | Self::Map { source, .. }
            | Self::Attach { source, .. } => of(source),
            Self::NoNamespace | Self::DeviceType { .. } => ErrorKind::Unsupported,
        }
    }
}

fn of(error: &io::Error) -> ErrorKind {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => ErrorKind::Permission,
        Some(libc::EOPNOTSUPP) => ErrorKind::Unsupported,
        _ => ErrorKind::System,
    }
}

impl From<EbpfError> for DatapathError {
    fn from(error: EbpfError) -> Self {
        let plain = Self::new(error.kind(), error.to_string());
        if Error::source(&error).is_some() { plain.with_source(Below(error)) } else { plain }
    }
}

/// The causes of an error whose own message is in the outer error already.
#[derive(Debug)]
struct Below(EbpfError);

impl fmt::Display for Below {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Error::source(&self.0).map_or(Ok(()), |source| write!(f, "{source}"))
    }
}

impl Error for Below {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Error::source(&self.0)?.source()
    }
}

#[cfg(test)]
mod tests {
    use aya::{EbpfError as LoaderError, maps::MapError};

    use super::*;

    fn report(errno: i32) -> (ErrorKind, String) {
        let io_error = io::Error::from_raw_os_error(errno);
        let error = LoaderError::MapError(MapError::CreateError { name: "CT".into(), io_error });
        let error = DatapathError::from(EbpfError::Load(Refusal::of(&error)));
        (error.kind(), error.report())
    }

    #[test]
    fn what_is_not_permitted_names_the_capabilities_and_is_told_once() {
        let (kind, text) = report(libc::EPERM);
        assert_eq!(kind, ErrorKind::Permission);
        assert_eq!(
            text,
            "loading the eBPF object failed; the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed: \
             map error: failed to create map `CT`: Operation not permitted (os error 1)"
        );
        let (kind, text) = report(libc::EACCES);
        assert_eq!(kind, ErrorKind::Permission);
        assert!(text.contains("CAP_PERFMON are needed, and Linux 5.15 or later: map error"), "{text}");
        let (kind, text) = report(libc::EINVAL);
        assert_eq!(kind, ErrorKind::Unsupported);
        assert!(text.contains("Linux 5.15 or later is needed"), "{text}");
    }

    #[test]
    fn a_directory_of_ours_with_another_mode_can_be_put_right() {
        let error = |owner| EbpfError::Directory { path: "/sys/fs/bpf/lb".into(), owner, user: 0, mode: 0o755 };
        assert!(error(0).to_string().ends_with("; run `chmod 700 /sys/fs/bpf/lb`, or name another pin directory"));
        assert!(error(1000).to_string().ends_with("mode 700; name another pin directory"));
    }
}
