//! Maglev tables, from manifests and settings to what the datapath holds.

use std::{collections::BTreeMap, fmt::Write};

use lb_core::{
    addr::BackendAddr,
    state::{Lookup, State},
};

use crate::{
    config::{Config, maglev::MaglevHash},
    testing::{Kernel, agent_of, config},
};

/// `TestReproducible` of Cilium's `pkg/maglev`: backends by their number, which is their address and port, and weight.
const PUBLISHED_BACKENDS: [(u16, u16); 4] = [(1, 2), (3, 13), (4, 111), (5, 10)];

/// Its table, as runs of `index of the backend(slots)`.
const PUBLISHED: &str = "\
    2(5),3(1),2(3),1(1),2(2),0(1),2(1),3(1),2(1),3(1),2(1),1(1),2(7),1(1),2(14),3(1),2(1),\
    1(2),2(12),3(1),2(3),1(1),2(4),3(1),2(8),3(1),2(2),1(1),2(16),1(2),2(3),3(1),2(11),1(2),2(4),3(1),2(3),\
    1(1),2(4),3(1),2(1),0(1),1(1),2(8),1(1),2(7),1(1),2(4),3(1),2(1),3(1),2(9),1(2),2(5),1(1),2(7),3(1),2(1),\
    3(1),1(1),2(8),1(1),2(4),0(1),2(1),1(1),2(5),3(1),2(3),1(1),2(4),3(1),2(3),1(1),2(12),0(1),3(1),2(3),3(1),\
    2(4),3(1),2(2),1(1),2(7)";

/// A service on Maglev with 251 slots, and a slice for each backend, since each has a port of its own.
fn manifests() -> String {
    let mut text = "{apiVersion: v1, kind: Service, metadata: {name: web, annotations: {lb/algorithm: maglev, \
                    lb/maglev-table-size: \"251\"}}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}\n"
        .to_owned();
    for (n, weight) in PUBLISHED_BACKENDS {
        writeln!(
            text,
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: web-{n}, \
             labels: {{kubernetes.io/service-name: web}}, annotations: {{lb/weight: \"{weight}\"}}}}, addressType: IPv4, \
             ports: [{{port: {n}, protocol: TCP}}], endpoints: [{{addresses: [0.0.0.{n}]}}]}}"
        )
        .unwrap();
    }
    text
}

fn with(hash: MaglevHash, seed: Option<&str>) -> Config {
    Config { maglev: hash.family(seed).unwrap(), ..config() }
}

/// What the datapath holds once an agent with these settings is done.
fn carried_out(kernel: &Kernel, config: &Config) -> State {
    agent_of(&manifests(), config, kernel.clone()).settle().unwrap();
    kernel.state()
}

/// The only table, as backends.
fn table(state: &State) -> Vec<BackendAddr> {
    let set = state.sets.values().next().unwrap();
    assert_eq!((state.sets.len(), set.lookup, set.slots.len()), (1, Lookup::Hash, 251));
    set.slots.iter().map(|id| state.backends[id].addr).collect()
}

fn runs(table: &[BackendAddr]) -> String {
    let index: BTreeMap<u16, usize> = PUBLISHED_BACKENDS.iter().enumerate().map(|(i, &(n, _))| (n, i)).collect();
    let runs = table.chunk_by(|a, b| a == b).map(|run| format!("{}({})", index[&run[0].port], run.len()));
    runs.collect::<Vec<_>>().join(",")
}

#[test]
fn the_published_table_of_cilium_is_what_the_datapath_gets() {
    for seed in [None, Some("JLfvgnHc2kaSUFaI")] {
        let state = carried_out(&Kernel::default(), &with(MaglevHash::Cilium, seed));
        assert_eq!(runs(&table(&state)), PUBLISHED);
    }
    let other = carried_out(&Kernel::default(), &with(MaglevHash::Cilium, Some("AAAAAAAAAAAAAAAA")));
    assert_ne!(runs(&table(&other)), PUBLISHED);
}

#[test]
fn the_next_agent_with_other_settings_writes_their_table() {
    let kernel = Kernel::default();
    let own = carried_out(&kernel, &with(MaglevHash::Lb, None));
    assert_ne!(runs(&table(&own)), PUBLISHED);
    let state = carried_out(&kernel, &with(MaglevHash::Cilium, None));
    assert_eq!(runs(&table(&state)), PUBLISHED);
    let keyed = carried_out(&kernel, &with(MaglevHash::Lb, Some("AAAAAAAAAAAAAAAAAAAAAA==")));
    assert_ne!(table(&keyed), table(&own), "the seed is the key");
    assert_eq!(table(&carried_out(&kernel, &with(MaglevHash::Lb, None))), table(&own));
}
