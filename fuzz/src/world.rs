//! Bytes to small worlds, by way of manifests, so that everything in between takes part.

use std::fmt::Write;

use lb_core::{
    datapath::Capabilities,
    model::{Change, Model, Settings},
    name::{NodeName, SourceName},
    node::NodeFacts,
    plan::Plan,
    reconciler::Reconciler,
    state::State,
    time::Instant,
};
use lb_k8s::{Manifests, Snapshot};

/// Manifests of up to four services, four bytes for each of which the last one counts: which service, its address and
/// kind, its endpoints, and their state.
pub(crate) fn manifests(data: &[u8]) -> String {
    let mut text = String::new();
    let mut seen = [false; 4];
    for bytes in data.chunks_exact(4).rev().take(16) {
        let &[which, kind, endpoints, state] = bytes else { continue };
        let which = usize::from(which % 4);
        if !std::mem::replace(&mut seen[which], true) {
            service(&mut text, which, kind);
            slice(&mut text, which, endpoints, state);
        }
    }
    text
}

fn service(text: &mut String, which: usize, kind: u8) {
    let algorithm = ["random", "round-robin", "maglev", "least-connections"][usize::from(kind % 4)];
    let (address, port) = (u8::from(kind & 4 != 0) + which as u8 * 2, 80 + u16::from(kind & 8 != 0));
    let protocol = if kind & 16 == 0 { "TCP" } else { "UDP" };
    let policy = if kind & 32 == 0 { "Cluster" } else { "Local" };
    let affinity = if kind & 64 == 0 { "None" } else { "ClientIP" };
    // Two services may want the same address.
    let address = if kind & 128 == 0 { address } else { 100 };
    // Writing into a text cannot fail.
    let _ = writeln!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{which}, annotations: {{lb/algorithm: {algorithm}}}}}\n\
         spec: {{clusterIP: 10.96.0.{}, ports: [{{name: p, port: {port}, protocol: {protocol}}}], \
         internalTrafficPolicy: {policy}, sessionAffinity: {affinity}}}",
        address + 1
    );
}

fn slice(text: &mut String, which: usize, endpoints: u8, state: u8) {
    let _ = writeln!(
        text,
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: s{which}-1, labels: {{kubernetes.io/service-name: s{which}}}}}\naddressType: IPv4\n\
         ports: [{{name: p, port: 8080, protocol: TCP}}]\nendpoints:"
    );
    for bit in (0..8).filter(|bit| endpoints & (1 << bit) != 0) {
        let (ready, node) = (state & (1 << bit) == 0, if bit % 2 == 0 { "here" } else { "there" });
        let terminating = !ready && bit < 4;
        let _ = writeln!(
            text,
            "- {{addresses: [10.244.0.{}], nodeName: {node}, conditions: {{ready: {ready}, serving: true, terminating: \
             {terminating}}}}}",
            bit + 1
        );
    }
}

/// A node that follows manifests.
pub(crate) struct Node {
    manifests: Manifests,
    reconciler: Reconciler,
    pub(crate) state: State,
}

impl Node {
    pub(crate) fn new() -> Self {
        let mut reconciler = Reconciler::new(Model::new(Settings::default(), Capabilities::all("fuzz")));
        let node = NodeFacts { name: Some(NodeName::new("here")), ..NodeFacts::default() };
        assert!(reconciler.handle_change(Change::SetNode(node)).is_ok(), "facts are never refused");
        reconciler.handle_observed(State::default());
        Self { manifests: Manifests::new(SourceName("manifests".into())), reconciler, state: State::default() }
    }

    /// Reads manifests: the plan that follows, not yet carried out.
    pub(crate) fn read(&mut self, text: &str) -> Option<Plan> {
        let snapshot = Snapshot::parse("x.yaml", text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        for change in self.manifests.update(Ok(snapshot)).changes {
            // A service may claim what another one has.
            let _ = self.reconciler.handle_change(change);
        }
        self.reconciler.poll_plan(Instant::default()).expect("the node is set, and every plan was carried out")
    }

    pub(crate) fn carry_out(&mut self, plan: &Plan) {
        self.state.apply_guarded(&plan.ops);
        self.reconciler.handle_applied(plan.id, Ok(()), Instant::default());
    }
}
