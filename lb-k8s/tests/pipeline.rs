//! Manifests, allocator and model in a row, as an agent has them: whatever is edited, every service has the addresses that
//! it was given, and nobody else claims them.

use std::collections::{BTreeMap, BTreeSet};

use lb_core::{Capabilities, FrontendAddr, Model, ServiceName, SourceName};
use lb_ipam::{Allocator, Edit, MemoryLedger, Settings, Timestamp};
use lb_k8s::{Manifests, Snapshot};
use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    sample::select,
};

/// A service in its manifest.
#[derive(Clone, Debug)]
struct Wish {
    port: u16,
    is_load_balancer: bool,
    annotation: &'static str,
}

#[derive(Clone, Debug)]
enum Step {
    /// The services that there are, and the last addresses of the pool's blocks.
    Edit(BTreeMap<u8, Wish>, Vec<u8>),
    /// Only the ledger is left.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let annotation = select(vec!["", "", "lb/sharing-key: k", "lb/sharing-key: k", "lb/ips: 192.0.2.1", "lb/pool: p"]);
    let wish = (80..82u16, prop::bool::weighted(0.9), annotation)
        .prop_map(|(port, is_load_balancer, annotation)| Wish { port, is_load_balancer, annotation });
    let edit = (btree_map(0..5u8, wish, 0..6), vec(0..4u8, 0..4)).prop_map(|(wishes, pool)| Step::Edit(wishes, pool));
    vec(prop_oneof![4 => edit, 1 => Just(Step::Restart)], 1..10)
}

fn text(wishes: &BTreeMap<u8, Wish>, pool: &[u8]) -> String {
    let blocks: BTreeSet<_> = pool.iter().map(|last| format!("192.0.2.{last}")).collect();
    let blocks: Vec<_> = blocks.into_iter().collect();
    let pool = format!(
        "---\napiVersion: lb/v1\nkind: IPPool\nmetadata: {{name: p}}\nspec: {{blocks: [{}]}}\n",
        blocks.join(", ")
    );
    let service = |(name, wish): (&u8, &Wish)| {
        let kind = if wish.is_load_balancer { "LoadBalancer" } else { "ClusterIP" };
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{name}, annotations: {{{}}}}}\nspec: {{type: {kind}, \
             clusterIP: 10.96.0.{name}, ports: [{{port: {}}}]}}\n",
            wish.annotation, wish.port
        )
    };
    pool + &wishes.iter().map(service).collect::<String>()
}

struct Agent {
    manifests: Manifests,
    allocator: Allocator,
    model: Model,
}

impl Agent {
    fn start(ledger: MemoryLedger) -> Self {
        Self {
            manifests: Manifests::new(SourceName("manifests".into())).allocating(),
            allocator: Allocator::new(Settings::default(), ledger),
            model: Model::new(lb_core::Settings::default(), Capabilities::all("memory")),
        }
    }

    fn update(&mut self, text: &str, now: Timestamp) {
        let batch = self.manifests.update(Snapshot::parse("x.yaml", text));
        let mut answers: BTreeMap<ServiceName, _> = BTreeMap::new();
        for edit in batch.edits {
            if let Edit::RemoveService(name) = &edit {
                answers.insert(name.clone(), None);
            }
            self.allocator.handle_edit(edit);
        }
        let writes = self.allocator.reconcile(now).writes;
        answers.extend(writes.into_iter().map(|(name, status)| (name, Some(status.addresses))));
        // A status is written where it changes; what an allocator found in its ledger may be as it was.
        for request in self.manifests.requests() {
            let answer = self.allocator.answer(&request.service);
            answers.insert(request.service.clone(), answer.map(|answer| answer.addresses().collect()));
        }
        let granted = self.manifests.grant(answers);
        for change in batch.changes.into_iter().chain(granted) {
            // Who broke the rules of sharing claims another one's port until the allocator has had its say.
            let _ = self.model.apply(change);
        }
    }

    /// What each service has from outside, as every part says it.
    fn addresses(&self) -> BTreeMap<ServiceName, Vec<std::net::IpAddr>> {
        let services =
            self.manifests.services().map(|service| (service.name.clone(), service.load_balancer_ips.clone()));
        services.filter(|(_, ips)| !ips.is_empty()).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn everybody_has_what_was_given_and_nobody_else_claims_it(steps in steps()) {
        let mut agent = Agent::start(MemoryLedger::default());
        let mut written = text(&BTreeMap::new(), &[]);
        for (step, second) in steps.into_iter().zip(1..) {
            let now = Timestamp::from_secs(second);
            let before = agent.addresses();
            match step {
                Step::Edit(wishes, pool) => {
                    written = text(&wishes, &pool);
                    agent.update(&written, now);
                }
                Step::Restart => {
                    agent = Agent::start(agent.allocator.into_ledger());
                    agent.update(&written, now);
                    prop_assert_eq!(agent.addresses(), before, "after a restart");
                }
            }
            let refused: Vec<_> = agent.model.refused().collect();
            prop_assert!(refused.is_empty(), "{:?} for {}", refused, written);
            for service in agent.manifests.services() {
                let answer = agent.allocator.answer(&service.name);
                let given: Vec<_> = answer.into_iter().flat_map(|answer| answer.addresses()).collect();
                prop_assert_eq!(&service.load_balancer_ips, &given, "{}", service.name);
                for ip in given {
                    let port = &service.ports[0];
                    let frontend = FrontendAddr { ip, port: port.port, protocol: port.protocol, scope: lb_core::Scope::External };
                    let owner = agent.model.owner(&frontend).map(|owner| &owner.port.service);
                    prop_assert_eq!(owner, Some(&service.name), "{}", frontend);
                }
            }
        }
    }
}
