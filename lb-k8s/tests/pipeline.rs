//! Manifests, allocator and model in a row, as an agent has them: whatever is edited, every service has the addresses
//! that it was given, and nobody else claims them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_core::{
    addr::FrontendAddr,
    datapath::Capabilities,
    model::Model,
    name::{ServiceName, SourceName},
};
use lb_ipam::{Allocator, Edit, MemoryLedger, Request, Settings, Timestamp};
use lb_k8s::{Manifests, Snapshot};
use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    sample::select,
};

/// A service in its manifest.
#[derive(Clone, Debug)]
struct Wish {
    /// One that is none has the service refused.
    port: &'static str,
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
    let port = prop_oneof![8 => select(vec!["80", "81"]), 1 => select(vec!["0", "http"])];
    let wish = (port, prop::bool::weighted(0.9), annotation).prop_map(|(port, is_load_balancer, annotation)| Wish {
        port,
        is_load_balancer,
        annotation,
    });
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
            model: Model::new(lb_core::model::Settings::default(), Capabilities::all("memory")),
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

    fn request(&self, name: &ServiceName) -> Option<&Request> {
        self.manifests.requests().find(|request| request.service == *name)
    }

    /// Who has which addresses, whether it can be read or not.
    fn held(&self) -> BTreeMap<ServiceName, Vec<IpAddr>> {
        let names = (0..5).map(|name| ServiceName::new("default", &format!("s{name}")));
        let held = names.filter_map(|name| Some((name.clone(), self.allocator.answer(&name)?.addresses().collect())));
        held.filter(|(_, ips): &(_, Vec<_>)| !ips.is_empty()).collect()
    }

    /// What each service has from outside, as every part says it.
    fn addresses(&self) -> BTreeMap<ServiceName, Vec<IpAddr>> {
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
            let (mut served, held) = (agent.addresses(), agent.held());
            let kept: BTreeSet<_> = held.keys().filter(|name| agent.request(name).is_none()).cloned().collect();
            match step {
                Step::Edit(wishes, pool) => {
                    written = text(&wishes, &pool);
                    agent.update(&written, now);
                    let after = agent.held();
                    for (name, ips) in held.iter().filter(|(name, _)| kept.contains(name) && after.contains_key(name)) {
                        let joined = |other: &&ServiceName| !ips.iter().any(|ip| held.get(*other).is_some_and(|had| had.contains(ip)));
                        let has_one = |other: &&ServiceName| ips.iter().any(|ip| after[*other].contains(ip));
                        let new: Vec<_> = after.keys().filter(has_one).filter(joined).collect();
                        prop_assert!(agent.request(name).is_some() || new.is_empty(), "{new:?} got what {name} has");
                        prop_assert!(agent.request(name).is_some() || after[name] == *ips, "{name} moved");
                    }
                }
                Step::Restart => {
                    agent = Agent::start(agent.allocator.into_ledger());
                    agent.update(&written, now);
                    prop_assert_eq!(agent.held(), held, "after a restart");
                    served.retain(|name, _| agent.request(name).is_some());
                    prop_assert_eq!(agent.addresses(), served, "after a restart");
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
                    let frontend = FrontendAddr { ip, port: port.port, protocol: port.protocol, scope: lb_core::addr::Scope::External };
                    let owner = agent.model.owner(&frontend).map(|owner| &owner.port.service);
                    prop_assert_eq!(owner, Some(&service.name), "{}", frontend);
                }
            }
        }
    }
}

/// The restart of an agent while a manifest is wrong that was right before.
#[test]
fn a_refused_service_keeps_its_address_over_a_restart_and_nobody_gets_it() {
    let right = |port| Wish { port, is_load_balancer: true, annotation: "" };
    let one = BTreeMap::from([(1, right("80"))]);
    let addresses = |agent: &Agent| agent.held().into_values().flatten().map(|ip| ip.to_string()).collect::<Vec<_>>();
    for port in ["0", "http"] {
        let mut agent = Agent::start(MemoryLedger::default());
        agent.update(&text(&one, &[7]), Timestamp::from_secs(1));
        assert_eq!(addresses(&agent), ["192.0.2.7"]);

        let mut agent = Agent::start(agent.allocator.into_ledger());
        let wrong = BTreeMap::from([(0, right("80")), (1, right(port))]);
        agent.update(&text(&wrong, &[7]), Timestamp::from_secs(2));
        assert_eq!(addresses(&agent), ["192.0.2.7"]);
        assert!(agent.addresses().is_empty(), "who is refused is not served, and the other one waits");

        agent.update(&text(&one, &[7]), Timestamp::from_secs(3));
        assert_eq!(
            agent.addresses()[&ServiceName::new("default", "s1")][0].to_string(),
            "192.0.2.7",
            "it is right again"
        );

        let mut agent = Agent::start(agent.allocator.into_ledger());
        agent.update(&text(&wrong, &[7]), Timestamp::from_secs(4));
        agent.update(&text(&BTreeMap::from([(0, right("80"))]), &[7]), Timestamp::from_secs(5));
        assert_eq!(agent.addresses()[&ServiceName::new("default", "s0")][0].to_string(), "192.0.2.7", "it is gone");
    }
}
