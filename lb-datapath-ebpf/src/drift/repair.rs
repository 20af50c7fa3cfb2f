//! Repairs the entries of the maps.

use lb_core::{
    addr::FrontendAddr,
    datapath::{ApplyError, DatapathError},
    drift::{Difference, Drift, DriftClass, Expected, compare},
    plan::diff,
};
use lb_datapath_ebpf_abi as abi;

use crate::{
    datapath::Kernel,
    state::{
        convert,
        write::{Cause, Store, Write},
    },
};

/// Writes every entry that differs from the mirror. Entries that are right are not touched.
pub(crate) fn entries(kernel: &mut Kernel) -> Result<(), ApplyError> {
    let Kernel { maps, mirror, scanner, role, sockets, .. } = kernel;
    let unknown = |error: crate::error::EbpfError| ApplyError::unknown(error.into());
    maps.set_role(*role).map_err(unknown)?;
    sockets.repair().map_err(unknown)?;
    let findings = scanner.scan(maps, mirror).map_err(unknown)?;
    let (puts, removals) = phases(findings.into_iter().filter_map(|finding| finding.fix));
    let count = puts.len() + removals.len();
    // Entries of others may fill the map, so those that did not fit are tried again after the removals.
    let failed: Vec<_> = maps.write(&puts).into_iter().map(|(at, _)| puts[at].clone()).collect();
    let left = maps.write(&removals).into_iter().map(|(at, cause)| (removals[at].clone(), cause));
    let left: Vec<_> = left.collect();
    let again = maps.write(&failed).into_iter().map(|(at, cause)| (failed[at].clone(), cause));
    outcome(count, again.chain(left).collect())
}

fn outcome(count: usize, failed: Vec<(Write, Cause)>) -> Result<(), ApplyError> {
    if failed.is_empty() {
        return Ok(());
    }
    let mut error = ApplyError { applied: count - failed.len(), failed: Vec::new(), unknown: None };
    for (write, cause) in failed {
        match owner(&write) {
            Some(addr) => error.failed.push((addr, cause.into())),
            None => drop(error.unknown.get_or_insert_with(|| DatapathError::from(cause))),
        }
    }
    Err(error)
}

/// The frontend that a write belongs to alone.
fn owner(write: &Write) -> Option<FrontendAddr> {
    match write {
        Write::Frontend(key, _) => convert::frontend_addr(key).ok(),
        _ => None,
    }
}

/// Applies the difference to the expected state. There is one only if the state was observed with the drift in it.
pub(crate) fn state(kernel: &mut Kernel, expected: Expected<'_>) -> Result<(), ApplyError> {
    let state = &kernel.mirror.state;
    if *state == *expected.state || compare(expected.state, state).is_empty() {
        return Ok(());
    }
    let plan = diff(state, expected.state, expected.labels);
    kernel.apply(&plan)
}

/// Reports that `ROLE` is not the role that was set.
pub(crate) fn role_drift(expected: u32, found: u32) -> Option<Drift> {
    let text = |role: &u32| match *role {
        abi::ROLE_ACTIVE => "active".into(),
        abi::ROLE_STANDBY => "standby".into(),
        abi::ROLE_DRAINING => "draining".into(),
        other => format!("{other}"),
    };
    Difference::between(&expected, &found, text).map(|difference| Drift::new(DriftClass::MapEntry, "ROLE", difference))
}

/// The two phases of `fixes`, in order: writes, those first that other entries need; then removals, those last.
fn phases(fixes: impl Iterator<Item = Write>) -> (Vec<Write>, Vec<Write>) {
    let (mut puts, mut removals): (Vec<_>, Vec<_>) = fixes.partition(|write| rank(write) < FIRST_REMOVAL);
    puts.sort_by_key(rank);
    removals.sort_by_key(rank);
    (puts, removals)
}

const FIRST_REMOVAL: u8 = 10;

const fn rank(write: &Write) -> u8 {
    match write {
        Write::Backend(..) => 0,
        Write::Slots(..) => 1,
        Write::Member(..) => 2,
        Write::Turns(_) => 3,
        Write::Set(..) => 4,
        Write::Cidr(..) => 5,
        Write::Node(_) | Write::Known(_) | Write::Source(_) | Write::Device(..) => 6,
        Write::Frontend(..) => 7,
        Write::Address(..) => 8,
        Write::NoFrontend(_) => FIRST_REMOVAL,
        Write::NoSet(_) => FIRST_REMOVAL + 1,
        Write::NoTurns(_) => FIRST_REMOVAL + 2,
        Write::NoMember(_) => FIRST_REMOVAL + 3,
        Write::NoBackend(_) => FIRST_REMOVAL + 4,
        Write::NoCidr(_) => FIRST_REMOVAL + 5,
        Write::NoSource(_) => FIRST_REMOVAL + 6,
        Write::NoAddress(_) => FIRST_REMOVAL + 7,
        Write::NoDevice(_) => FIRST_REMOVAL + 8,
    }
}
