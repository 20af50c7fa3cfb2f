//! Limits of the lab for a user who is not root.

use std::{fs, path::Path};

use lb_agent::driver::{self, DatapathKind, lab::WithoutRoot};
use lb_testkit::lab::{Privilege, enter_user_namespace};

use super::use_case::UseCase;
use crate::{exit::Failure, output};

/// What the lab may do on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rights {
    /// Everything.
    Root,
    /// What root of a user namespace may.
    Guest(Room),
}

/// How much one update of a datapath can hold: it is one message, and that has to fit into the buffer of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// `net.core.wmem_max`, in bytes.
    wmem_max: u64,
    /// `net.core.wmem_default`, in bytes.
    wmem_default: u64,
}

/// Makes sure that a lab can be built. Somebody who is not root is root of a user namespace afterwards: the program
/// starts again.
pub(super) fn obtain() -> Result<Rights, Failure> {
    match Privilege::current() {
        Privilege::Root => Ok(Rights::Root),
        Privilege::UserNamespace => Ok(Rights::Guest(Room::here())),
        Privilege::None => match enter_user_namespace() {
            Ok(never) => match never {},
            Err(error) => Err(Failure::chain(&error)),
        },
    }
}

impl Rights {
    /// Datapaths that this machine can run, of those that carry packets.
    pub(super) fn datapaths(self) -> Vec<DatapathKind> {
        driver::carrying().into_iter().filter(|&kind| self.allows(kind)).collect()
    }

    fn allows(self, kind: DatapathKind) -> bool {
        self == Self::Root || kind.lab().without_root != WithoutRoot::Never
    }

    /// The datapath for a use case: the one that was asked for, or its own, or the first that this machine can run.
    pub(super) fn datapath(self, asked: Option<DatapathKind>, use_case: UseCase) -> DatapathKind {
        let own = use_case.datapath();
        let instead = || self.datapaths().into_iter().next().filter(|_| !self.allows(own));
        asked.or_else(instead).unwrap_or(own)
    }

    /// Refuses a datapath that this machine cannot run.
    pub(super) fn check(self, asked: Option<DatapathKind>) -> Result<(), Failure> {
        match asked.filter(|&kind| !self.allows(kind)) {
            Some(kind) => {
                let other = self.datapaths().first().map(|other| format!(", or choose {other}")).unwrap_or_default();
                Err(Failure::Error(format!("datapath {kind} needs root: run it with sudo{other}")))
            }
            None => Ok(()),
        }
    }

    /// The datapaths that were asked for, all of which have to run here; or, if none was named, those of `usual` that
    /// do.
    pub(super) fn choose(self, asked: &[DatapathKind], usual: &[DatapathKind]) -> Result<Vec<DatapathKind>, Failure> {
        asked.iter().try_for_each(|&kind| self.check(Some(kind)))?;
        let wanted = if asked.is_empty() { usual } else { asked };
        Ok(wanted.iter().copied().filter(|&kind| self.allows(kind)).collect())
    }

    /// Refuses to write where nobody would find it: a user namespace has a `/run` of its own.
    pub(super) fn check_report(self, directory: Option<&Path>) -> Result<(), Failure> {
        let hidden = |path: &&Path| path.starts_with("/run") || path.starts_with("/var/run");
        match directory.filter(|_| self != Self::Root).filter(hidden) {
            Some(path) => {
                let path = path.display();
                Err(Failure::Usage(format!(
                    "without root, files below /run vanish with the run: choose another directory than {path}"
                )))
            }
            None => Ok(()),
        }
    }

    /// What is missing without root, in one line.
    pub(super) fn say(self) {
        if let Self::Guest(room) = self {
            output::say(format_args!("lb: {}", room.sentence()));
        }
    }

    /// Keeps the datapaths and the numbers of services that fit here. Returns the reason for each of the others.
    pub(super) fn fit(self, datapaths: &mut Vec<DatapathKind>, services: &mut Vec<u32>) -> Vec<String> {
        let Self::Guest(room) = self else { return Vec::new() };
        let mut left_out = Vec::new();
        // Of the datapaths with a limit, the one with the most room decides about the sizes; the others are left out.
        let limited = datapaths.iter().copied().filter(|&kind| room.limit(kind).is_some());
        let most = limited.map(|kind| (kind, room.services(kind))).max_by_key(|(_, most)| *most);
        services.retain(|&size| match most {
            Some((kind, most)) if u64::from(size) > most => {
                left_out.push(format!("{size} services: left out, {}", room.reason(kind)));
                false
            }
            _ => true,
        });
        let largest = u64::from(services.iter().copied().max().unwrap_or(0));
        datapaths.retain(|&kind| {
            let reason = match kind.lab().without_root {
                WithoutRoot::Never => "it needs root".into(),
                _ if largest > room.services(kind) => room.reason(kind),
                _ => return true,
            };
            left_out.push(format!("{kind}: left out, {reason}"));
            false
        });
        left_out
    }
}

impl Room {
    fn here() -> Self {
        let read = |name| {
            let text = fs::read_to_string(format!("/proc/sys/net/core/{name}")).unwrap_or_default();
            text.trim().parse().unwrap_or(USUAL_BUFFER)
        };
        Self { wmem_max: read("wmem_max"), wmem_default: read("wmem_default") }
    }

    /// How many bytes fit into one update, what bounds them, and how many a service takes; `None` if nothing does.
    fn limit(self, kind: DatapathKind) -> Option<(u64, &'static str, u64)> {
        match kind.lab().without_root {
            WithoutRoot::Buffer { sysctl, factor, per_service } => {
                let bytes = if sysctl.ends_with("wmem_default") { self.wmem_default } else { self.wmem_max };
                Some((bytes.saturating_mul(factor), sysctl, per_service))
            }
            _ => None,
        }
    }

    /// How many services with four endpoints fit, about.
    fn services(self, kind: DatapathKind) -> u64 {
        let fit = |(bytes, _, per_service): (u64, _, u64)| bytes.saturating_sub(RULESET) / per_service.max(1);
        self.limit(kind).map_or(u64::MAX, fit)
    }

    fn reason(self, kind: DatapathKind) -> String {
        let Some((bytes, setting, _)) = self.limit(kind) else { return format!("{kind} has no limit") };
        format!(
            "an update of {kind} without root is at most {} KiB ({setting}), about {} services",
            bytes >> 10,
            self.services(kind)
        )
    }

    fn sentence(self) -> String {
        let limited = driver::carrying().into_iter().filter(|&kind| self.limit(kind).is_some());
        let limits = limited.enumerate().map(|(n, kind)| match n {
            0 => self.reason(kind),
            _ => format!("{} on {kind}", self.services(kind)),
        });
        let limits: Vec<String> = limits.collect();
        format!(
            "running in a user namespace, since this is not root: {}; root adds eBPF, cgroups and any size",
            limits.join(", ")
        )
    }
}

/// The default of kernels.
const USUAL_BUFFER: u64 = 212_992;
/// Bytes of an update that does not grow with the number of services, rounded up.
const RULESET: u64 = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Rights = Rights::Guest(Room { wmem_max: USUAL_BUFFER, wmem_default: USUAL_BUFFER });

    #[test]
    fn what_does_not_fit_is_left_out_and_named() {
        let (mut datapaths, mut services) = (driver::carrying(), vec![10, 100, 1000, 5000]);
        let left_out = GUEST.fit(&mut datapaths, &mut services);
        assert_eq!(services, [10, 100]);
        assert_eq!(datapaths, [driver::NFTABLES, driver::IPTABLES_LEGACY]);
        assert_eq!(left_out.len(), 4);
        assert!(left_out[0].starts_with("1000 services: left out, ") && left_out[0].contains("net.core.wmem_max"));
        assert!(left_out[2].starts_with("ebpf: ") && left_out[3].contains("net.core.wmem_default"), "{left_out:?}");
    }

    #[test]
    fn few_services_fit_on_everything_but_ebpf() {
        let (mut datapaths, mut services) = (driver::carrying(), vec![10]);
        assert_eq!(GUEST.fit(&mut datapaths, &mut services).len(), 1);
        assert_eq!((datapaths, services), (GUEST.datapaths(), vec![10]));
    }

    #[test]
    fn legacy_tables_are_not_bound_by_a_socket() {
        let (mut datapaths, mut services) = (vec![driver::IPTABLES_LEGACY], vec![10_000]);
        assert!(GUEST.fit(&mut datapaths, &mut services).is_empty());
    }

    #[test]
    fn sizes_are_cut_to_the_room_of_the_only_datapath() {
        let (mut datapaths, mut services) = (vec![driver::IPTABLES_NFT], vec![10, 5000]);
        assert_eq!(GUEST.fit(&mut datapaths, &mut services).len(), 1);
        assert_eq!((datapaths, services), (vec![driver::IPTABLES_NFT], vec![10]));
    }

    #[test]
    fn the_notice_has_the_limit_of_each_datapath_that_has_one() {
        let notice = Room { wmem_max: USUAL_BUFFER, wmem_default: USUAL_BUFFER }.sentence();
        assert!(notice.contains("an update of nftables") && notice.contains(" on iptables-nft; "), "{notice}");
        assert!(!notice.contains("iptables-legacy"), "{notice}");
    }

    #[test]
    fn root_is_not_limited() {
        let (mut datapaths, mut services) = (driver::carrying(), vec![100_000]);
        assert!(Rights::Root.fit(&mut datapaths, &mut services).is_empty());
        assert_eq!((Rights::Root.datapaths(), services), (datapaths, vec![100_000]));
    }

    #[test]
    fn a_use_case_takes_the_nearest_datapath() {
        let case = UseCase::KubeProxyReplacement;
        assert_eq!(Rights::Root.datapath(None, case), driver::EBPF);
        assert_eq!(GUEST.datapath(None, case), driver::NFTABLES);
        assert_eq!(GUEST.datapath(Some(driver::IPTABLES_LEGACY), case), driver::IPTABLES_LEGACY);
        assert!(GUEST.check(Some(driver::EBPF)).is_err() && Rights::Root.check(Some(driver::EBPF)).is_ok());
    }

    #[test]
    fn what_is_named_must_be_had_and_what_is_usual_is_cut() {
        let usual = [driver::EBPF, driver::NFTABLES];
        assert_eq!(GUEST.choose(&[], &usual).unwrap(), [driver::NFTABLES]);
        assert_eq!(Rights::Root.choose(&[], &usual).unwrap(), usual);
        assert!(GUEST.choose(&usual, &usual).is_err());
        assert_eq!(GUEST.choose(&[driver::IPTABLES_NFT], &usual).unwrap(), [driver::IPTABLES_NFT]);
    }

    #[test]
    fn a_report_is_not_written_where_it_would_vanish() {
        let hidden = Some(Path::new("/run/user/1000/report"));
        assert!(matches!(GUEST.check_report(hidden), Err(Failure::Usage(_))));
        assert!(Rights::Root.check_report(hidden).is_ok() && GUEST.check_report(Some("/tmp/report".as_ref())).is_ok());
    }
}
