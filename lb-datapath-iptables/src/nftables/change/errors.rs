//! Errors of the kernel as errors of a datapath.

use std::collections::BTreeMap;

use lb_core::{
    addr::FrontendAddr,
    datapath::{ApplyError, DatapathError, ErrorKind},
    plan::{Op, Plan},
};
use nix::libc;

/// The result of a plan without the frontends that were refused.
pub(crate) fn report(plan: &Plan, refused: BTreeMap<FrontendAddr, DatapathError>) -> Result<(), ApplyError> {
    if refused.is_empty() {
        return Ok(());
    }
    let applied = plan.ops.iter().filter(|op| op.frontend().is_none_or(|addr| !refused.contains_key(&addr))).count();
    Err(ApplyError { applied, failed: refused.into_iter().collect(), unknown: None })
}

/// The same where every frontend of the plan is as before.
pub(crate) fn nothing_took(plan: &Plan, mut refused: BTreeMap<FrontendAddr, DatapathError>) -> ApplyError {
    for addr in plan.ops.iter().filter_map(Op::frontend) {
        refused.entry(addr).or_insert_with(|| {
            DatapathError::new(
                ErrorKind::System,
                format!("frontend {addr}: the kernel refused the transaction that it was in"),
            )
        });
    }
    ApplyError { applied: 0, failed: refused.into_iter().collect(), unknown: None }
}

/// Whether a message that guards the table against other writers was refused because of one.
pub(crate) fn is_conflict(error: &lb_netlink::Error) -> bool {
    matches!(error.errno(), Some(libc::EEXIST | libc::ENOENT))
}

pub(crate) fn outdated() -> DatapathError {
    let message = "the kernel lacks NFT_MSG_DESTROYSETELEM: nftables datapath needs Linux 6.3 or later";
    DatapathError::new(ErrorKind::Unsupported, message)
}

pub(crate) fn foreign(error: lb_netlink::Error) -> DatapathError {
    let message = "the table was changed by another program; it is read again before the next change";
    DatapathError::new(ErrorKind::Busy, message).with_source(error)
}

/// An error of the kernel in `what`.
pub(crate) fn failure(what: &str, error: lb_netlink::Error) -> DatapathError {
    let kind = kind(&error);
    let help = if kind == ErrorKind::Permission { " (needs CAP_NET_ADMIN)" } else { "" };
    DatapathError::new(kind, format!("{what} failed{help}")).with_source(error)
}

pub(crate) fn kind(error: &lb_netlink::Error) -> ErrorKind {
    match error.errno() {
        _ if matches!(error, lb_netlink::Error::TooLarge { .. }) => ErrorKind::Capacity,
        Some(libc::EPERM | libc::EACCES) => ErrorKind::Permission,
        Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => ErrorKind::Unsupported,
        Some(libc::ENOMEM | libc::ENOBUFS | libc::ENFILE | libc::ENOSPC | libc::EMSGSIZE) => ErrorKind::Capacity,
        Some(libc::EBUSY | libc::EEXIST | libc::ENOENT | libc::EAGAIN) => ErrorKind::Busy,
        Some(libc::EINVAL | libc::ERANGE) => ErrorKind::Invalid,
        _ => ErrorKind::System,
    }
}
