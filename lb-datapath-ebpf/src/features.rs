//! What the running kernel offers, found out by asking it: a distribution may have backported what its version lacks.

use std::{fmt, io, os::fd::AsFd};

use crate::{
    error::EbpfError,
    sys::{self, Insn},
};

/// How the program of packets is attached to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceHook {
    /// By a link to the TCX ingress hook: Linux 6.6 and later.
    #[doc(alias = "BPF_TCX_INGRESS")]
    Tcx,
    /// By a filter of the ingress of a `clsact` qdisc: every kernel that the programs load on.
    #[doc(alias = "cls_bpf")]
    Clsact,
}

/// What the kernel was found to offer when the datapath was opened, and what the datapath does without the rest.
///
/// `Display` writes one fact for each line.
///
/// ```
/// use lb_datapath_ebpf::{DeviceHook, KernelFeatures};
///
/// let all = KernelFeatures::ALL;
/// assert_eq!((all.hook, all.socket_errors, all.fetch_add), (DeviceHook::Tcx, true, true));
/// assert!(all.to_string().starts_with("packets: tcx\nrefused sockets: ECONNREFUSED or EHOSTUNREACH\nround robin: yes"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelFeatures {
    /// How devices are attached to. [`DeviceHook::Clsact`] where the kernel has no TCX, or where
    /// [`force_clsact`](crate::EbpfConfig::force_clsact) asks for it.
    pub hook: DeviceHook,
    /// Whether the kernel has TCX, used or not.
    pub tcx: bool,
    /// Whether a refused call of a socket fails with the error that fits, `ECONNREFUSED` or `EHOSTUNREACH`. Without
    /// the helper for it (Linux 5.18) it fails with `EPERM`.
    #[doc(alias = "bpf_set_retval")]
    pub socket_errors: bool,
    /// Whether programs can count turns: an atomic addition that returns the old value (Linux 5.12). Without it,
    /// [`capabilities`](lb_core::datapath::Datapath::capabilities) has no round robin, and connecting a TCP socket takes
    /// longer: the atomic exchange is of the same version.
    #[doc(alias = "BPF_FETCH")]
    pub fetch_add: bool,
    /// Whether programs can tell the sockets of the node from others, by the cookie of its network namespace (Linux
    /// 5.14). Without it, [ports](crate::EbpfConfig::guard_ports) are not guarded, loopback addresses have [no node
    /// ports](crate::EbpfConfig::loopback_node_ports), and [balancing](crate::EbpfConfig::socket_balancing) cannot be
    /// limited to the host.
    #[doc(alias = "SO_NETNS_COOKIE")]
    pub own_sockets: bool,
    /// Whether a route tells programs which source it prefers (Linux 6.7). Without it, the source of a translated flow is
    /// the node's [first address](lb_core::node::NodeFacts::primary_ip) of the family, and
    /// [`capabilities`](lb_core::datapath::Datapath::capabilities) has no routed sources.
    #[doc(alias = "BPF_FIB_LOOKUP_SRC")]
    pub routed_sources: bool,
}

impl KernelFeatures {
    /// Those of a kernel that lacks nothing.
    pub const ALL: Self = Self {
        hook: DeviceHook::Tcx,
        tcx: true,
        socket_errors: true,
        fetch_add: true,
        own_sockets: true,
        routed_sources: true,
    };

    /// Asks the kernel.
    pub(crate) fn detect(force_clsact: bool) -> Result<Self, EbpfError> {
        let asked = |what| move |source| EbpfError::Probe { what, source };
        let tcx = sys::has_tcx().map_err(asked("TCX"))?;
        let hook = if tcx && !force_clsact { DeviceHook::Tcx } else { DeviceHook::Clsact };
        let socket_errors = loads(&SET_RETVAL).map_err(asked("bpf_set_retval"))?;
        let fetch_add = loads(&FETCH_ADD).map_err(asked("atomic additions"))?;
        let own_sockets = sys::netns_cookie().map_err(asked("SO_NETNS_COOKIE"))?.is_some();
        let routed_sources = knows_flag(BPF_FIB_LOOKUP_SRC).map_err(asked("BPF_FIB_LOOKUP_SRC"))?;
        Ok(Self { hook, tcx, socket_errors, fetch_add, own_sockets, routed_sources })
    }
}

impl fmt::Display for KernelFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = match (self.hook, self.tcx) {
            (DeviceHook::Tcx, _) => "tcx",
            (DeviceHook::Clsact, true) => "clsact, as the configuration asks",
            (DeviceHook::Clsact, false) => "clsact, since this kernel has no TCX",
        };
        let errors = if self.socket_errors {
            "ECONNREFUSED or EHOSTUNREACH"
        } else {
            "EPERM, since this kernel has no bpf_set_retval"
        };
        let turns = if self.fetch_add { "yes" } else { "no, since this kernel's atomic additions return nothing" };
        let own = if self.own_sockets {
            "known"
        } else {
            "not known, since this kernel has no SO_NETNS_COOKIE: ports are not guarded, and loopback addresses have no \
             node ports"
        };
        let sources = if self.routed_sources {
            "as the route to the backend prefers"
        } else {
            "the first address of the node, since this kernel has no BPF_FIB_LOOKUP_SRC"
        };
        write!(
            f,
            "packets: {hook}\nrefused sockets: {errors}\nround robin: {turns}\nsockets of the node: {own}\n\
             translated sources: {sources}"
        )
    }
}

/// The call of `bpf_set_retval`, as compilers write it.
pub(crate) const CALL_SET_RETVAL: Insn = Insn::call(187);
/// What stands in its place on a kernel without it: the call returns 0 and does nothing.
pub(crate) const NO_CALL: Insn = Insn::mov(0, 0);
/// What stands in the place of an atomic exchange on a kernel without it: nothing is written, and what was there is
/// `u64::MAX`, which no program expects.
pub(crate) const NO_EXCHANGE: Insn = Insn::mov(0, -1);

/// Sets the error of a call and allows it.
const SET_RETVAL: [Insn; 4] = [Insn::mov(1, -libc::ECONNREFUSED), CALL_SET_RETVAL, Insn::mov(0, 1), Insn::EXIT];
/// Adds to a word of the stack and reads what it was.
const FETCH_ADD: [Insn; 5] =
    [Insn::store(10, -8, 0), Insn::mov(1, 1), Insn::fetch_add(10, -8, 1), Insn::mov(0, 1), Insn::EXIT];

/// Whether the kernel takes a program of sockets that does this.
fn loads(program: &[Insn]) -> io::Result<bool> {
    match sys::load_connect4(program) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Flag of a look-up of a route: the source that it prefers is written, too.
const BPF_FIB_LOOKUP_SRC: i32 = 1 << 4;
/// Size of the parameters of a look-up, `struct bpf_fib_lookup`.
const FIB_PARAMETERS: i32 = 64;

/// Whether the kernel's look-up of a route takes this flag. A flag that it does not know is `EINVAL`, which is looked at
/// before the family; family 0 does not exist, which is `EAFNOSUPPORT`. So no route is needed.
///
/// <https://github.com/torvalds/linux/blob/v6.18/net/core/filter.c> (`bpf_skb_fib_lookup`)
fn knows_flag(flag: i32) -> io::Result<bool> {
    let zeroes = (1..=FIB_PARAMETERS / 8).map(|word| Insn::store(10, word as i16 * -8, 0));
    let call = [
        Insn::copy(2, 10),
        Insn::add(2, -FIB_PARAMETERS),
        Insn::mov(3, FIB_PARAMETERS),
        Insn::mov(4, flag),
        Insn::call(69),
        Insn::EXIT,
    ];
    let program = sys::load_classifier(&zeroes.chain(call).collect::<Vec<_>>())?;
    let device = sys::device("lo")?;
    let run = sys::test_run(program.as_fd(), &[0; 64], device)?;
    Ok(run.verdict != -libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_its_consequence() {
        let hook = DeviceHook::Clsact;
        let old = KernelFeatures {
            hook,
            tcx: false,
            socket_errors: false,
            fetch_add: false,
            own_sockets: false,
            routed_sources: false,
        };
        assert_eq!(
            old.to_string(),
            "packets: clsact, since this kernel has no TCX\n\
             refused sockets: EPERM, since this kernel has no bpf_set_retval\n\
             round robin: no, since this kernel's atomic additions return nothing\n\
             sockets of the node: not known, since this kernel has no SO_NETNS_COOKIE: ports are not guarded, and \
             loopback addresses have no node ports\n\
             translated sources: the first address of the node, since this kernel has no BPF_FIB_LOOKUP_SRC"
        );
        let forced = KernelFeatures { hook: DeviceHook::Clsact, ..KernelFeatures::ALL };
        assert!(forced.to_string().starts_with("packets: clsact, as the configuration asks\n"));
    }

    #[test]
    #[ignore = "needs root: loads programs"]
    fn a_program_that_no_kernel_takes_is_told_from_one_that_this_kernel_takes() {
        assert!(loads(&[Insn::mov(0, 1), Insn::EXIT]).unwrap());
        // A helper that does not exist.
        assert!(!loads(&[Insn::call(0x7fff), Insn::mov(0, 1), Insn::EXIT]).unwrap());
        // The result is not set.
        assert!(!knows_flag(1 << 30).unwrap(), "a flag that does not exist");
        assert!(knows_flag(1).unwrap(), "one that each kernel has");
        assert!(loads(&[Insn::EXIT]).is_err_and(|error| error.raw_os_error() == Some(libc::EACCES)));
    }
}
