//! Three nodes, each with the datapath: what one of them does depends on what the others do.

use std::sync::Arc;

use lb_core::model::Change;

use super::{
    Fault, Stage, Verdict,
    probe::Probe,
    service::{CLIENTS, Vip},
};
use crate::lab::{Lab, Origin, topology};

/// Several flows of each kind, so that near and far backends get their share.
const FLOWS: usize = 3;

/// A stage on every node of one lab.
pub(super) struct Cluster<'a> {
    /// On node 0.
    first: &'a mut Stage,
    others: Vec<Stage>,
}

impl<'a> Cluster<'a> {
    /// Plays with the datapath of `stage` on the other nodes of its lab as well, and closes it there.
    pub(super) fn play(first: &'a mut Stage, play: impl FnOnce(&mut Self) -> Verdict) -> Verdict {
        let others = first.others()?;
        let mut cluster = Self { first, others };
        play(&mut cluster)?;
        cluster.others.into_iter().try_for_each(Stage::close)
    }

    /// Nodes of the cluster.
    pub(super) fn nodes(&self) -> std::ops::Range<usize> {
        0..1 + self.others.len()
    }

    pub(super) fn stage(&mut self, node: usize) -> &mut Stage {
        match node.checked_sub(1) {
            None => self.first,
            Some(other) => &mut self.others[other],
        }
    }

    /// The lab, for sockets that are held while things change.
    pub(super) fn lab(&self) -> Result<Arc<Lab>, Fault> {
        self.first.shared_lab()
    }

    /// Takes changes in on every node.
    pub(super) fn change(&mut self, changes: impl IntoIterator<Item = Change>) -> Verdict {
        let changes: Vec<Change> = changes.into_iter().collect();
        self.nodes().try_for_each(|node| self.stage(node).change(changes.clone()))
    }

    /// New flows to an address of a service, from each node, from its pods, and from outside through it.
    pub(super) fn reach(&mut self, vip: Vip) -> Verdict {
        for node in self.nodes() {
            self.route_via(node)?;
            self.repeat(node, &probes(node, vip))?;
        }
        self.route_via(0)
    }

    /// New flows to a port of each node, from everywhere.
    pub(super) fn reach_node_port(&mut self, port: u16) -> Verdict {
        for node in self.nodes() {
            let others = self.nodes().filter(|&other| other != node);
            let elsewhere = others.flat_map(|other| [Origin::PodPackets(CLIENTS[other]), Origin::Node(other)]);
            let origins: Vec<Origin> = origins(node).into_iter().chain(elsewhere).collect();
            let to = |probe: Probe| Probe { to: (topology::node_ip(node, probe.family()), port).into(), ..probe };
            let probes: Vec<Probe> =
                Probe::from_origins(&origins, Vip::cluster(1)).map(|probe| to(probe).at(node)).collect();
            self.repeat(node, &probes)?;
        }
        Ok(())
    }

    /// One new flow of each protocol from each vantage point of one node, in both families.
    pub(super) fn reach_from(&mut self, node: usize, vip: Vip) -> Verdict {
        self.route_via(node)?;
        self.stage(node).probe_all(probes(node, vip))?;
        self.route_via(0)
    }

    /// Leads clients outside to this node.
    pub(super) fn route_via(&self, node: usize) -> Verdict {
        Ok(self.first.lab()?.route_services_via(node)?)
    }

    /// Flows that can differ from each other are sent several times, and those that end at once only once.
    fn repeat(&mut self, node: usize, probes: &[Probe]) -> Verdict {
        let stage = self.stage(node);
        stage.probe_all(probes.iter().copied())?;
        for _ in 1..FLOWS {
            let forwarded: Vec<Probe> = probes.iter().copied().filter(|probe| stage.forwards(*probe)).collect();
            stage.probe_all(forwarded)?;
        }
        Ok(())
    }
}

fn probes(node: usize, vip: Vip) -> Vec<Probe> {
    Probe::from_origins(&origins(node), vip).map(|probe| probe.at(node)).collect()
}

/// Who sends on a node, or through it.
fn origins(node: usize) -> [Origin; 4] {
    [Origin::Pod(CLIENTS[node]), Origin::PodPackets(CLIENTS[node]), Origin::Node(node), Origin::Beyond]
}
