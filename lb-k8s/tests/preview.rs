//! What a file would bring is what a reload with it brings.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use lb_core::name::SourceName;
use lb_ipam::{Allocator, Edit, MemoryLedger, Settings, Timestamp};
use lb_k8s::{Batch, Instead, Manifests, Preview, Refusal, Snapshot, limits};
use proptest::{collection::vec, prelude::*, sample::select};

/// Previews `added` over `there`, and reloads with it in the first place: both as an allocator gets them.
fn both(there: &str, added: &str) -> (Preview, Batch) {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("there.yaml"), there).unwrap();
    let mut manifests = Manifests::new(SourceName("manifests".into())).allocating();
    manifests.reload(&[directory.path()]);
    let pools = manifests.pools().cloned().collect::<Vec<_>>();
    let preview = manifests.preview(&Snapshot::parse(file("added.yaml").to_str().unwrap(), added).unwrap());
    assert!(manifests.pools().eq(&pools), "a preview changes nothing");
    fs::write(file("added.yaml"), added).unwrap();
    let batch = manifests.reload(&[directory.path()]);
    assert!(batch.report.rejected.is_none(), "{:?}", batch.report.rejected);
    (preview, batch)
}

fn told(edits: &[Edit]) -> Vec<String> {
    let told = |edit: &Edit| match edit {
        Edit::UpsertPool(pool) => format!("+pool {}", pool.name),
        Edit::RemovePool(name) => format!("-pool {name}"),
        Edit::UpsertService(request) => format!("+{}", request.service),
        Edit::RemoveService(name) => format!("-{name}"),
        Edit::KeepService(name) => format!("={name}"),
        Edit::SetSettings(_) => unreachable!("manifests have no settings"),
    };
    edits.iter().map(told).collect()
}

fn pool(name: &str, block: &str) -> String {
    format!("---\napiVersion: lb/v1\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{blocks: ['{block}']}}\n")
}

/// A pool for namespaces with a label.
fn selecting_pool(name: &str, block: &str, label: &str) -> String {
    format!(
        "---\napiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {{name: {name}}}\nspec: {{addresses: [{block}], \
         serviceAllocation: {{namespaceSelectors: [{{matchLabels: {{{label}}}}}]}}}}\n"
    )
}

fn namespace(name: &str, labels: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

fn service(name: &str, kind: &str, port: u16, annotations: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec: {{type: {kind}, \
         clusterIP: 10.96.0.1, ports: [{{port: {port}}}]}}\n"
    )
}

#[test]
fn objects_are_replaced_and_joined_and_none_goes() {
    let there = pool("a", "10.0.0.0/24") + &pool("b", "10.1.0.0/24") + &service("x", "LoadBalancer", 80, "");
    let (preview, _) = both(&there, &(pool("a", "10.2.0.0/24") + &pool("c", "10.3.0.0/24")));
    assert_eq!(told(&preview.edits), ["+pool a", "+pool c"]);
    let (preview, _) = both(&there, &(service("z", "LoadBalancer", 80, "") + &service("x", "ClusterIP", 80, "")));
    assert_eq!(told(&preview.edits), ["-default/x", "+default/z"]);
    assert!(both(&there, &there).0.edits.is_empty(), "the same once more");
}

#[test]
fn namespaces_are_those_of_both() {
    let (red, pool) = (namespace("red", "team: a"), selecting_pool("a", "10.0.0.0/24", "team: a"));
    for (there, added, expected) in [
        (&red, &pool, vec!["+pool a"]),
        (&pool, &red, vec!["+pool a"]),
        (&format!("{red}{pool}"), &namespace("red", "team: b"), vec!["+pool a"]),
        (&format!("{red}{pool}"), &namespace("blue", "team: b"), vec![]),
        (&format!("{red}{pool}"), &pool, vec![]),
    ] {
        let (preview, batch) = both(there, added);
        assert_eq!(told(&preview.edits), expected, "{there} + {added}");
        assert_eq!(preview.edits, batch.edits, "{there} + {added}");
    }
}

#[test]
fn what_would_be_refused_is_said_with_what_stays() {
    let (preview, batch) = both(
        &pool("a", "10.0.0.0/24"),
        &(pool("a", "10.0.0.9-10.0.0.1") + &pool("b", "garbage") + &service("x", "LoadBalancer", 0, "")),
    );
    let instead: Vec<_> = preview.report.refused.iter().map(|refusal| refusal.instead).collect();
    assert_eq!(instead, [Instead::LastGood, Instead::Disabled, Instead::Nothing], "{:?}", preview.report);
    assert_eq!(told(&preview.edits), ["+pool b", "=default/x"]);
    assert_eq!(preview.edits, batch.edits);
    let Edit::UpsertPool(pool) = &preview.edits[0] else { unreachable!() };
    assert!(pool.disabled);
}

#[test]
fn what_asks_for_addresses_asks_the_pools_of_both() {
    let asks = service("x", "LoadBalancer", 80, "lb/ips: 10.0.0.1");
    assert_eq!(both(&pool("a", "10.0.0.0/24"), &asks).0.report.unsupported, []);
    assert_eq!(both("", &asks).0.report.unsupported.len(), 1, "there is no pool");
    let snapshot = Snapshot::parse("x.yaml", &(pool("a", "10.0.0.0/24") + &asks)).unwrap();
    let nobody = Manifests::new(SourceName("manifests".into()));
    assert_eq!(nobody.preview(&snapshot).report.unsupported.len(), 2, "nobody allocates");
}

#[test]
fn a_pool_that_namespaces_make_too_dear_stays_as_it_was() {
    let values: Vec<_> = (0..999).map(|number| format!("v{number}")).collect();
    let pool = selecting_pool("a", "10.0.0.0/24", "").replace(
        "{matchLabels: {}}",
        &format!("{{matchExpressions: [{{key: team, operator: In, values: [{}]}}]}}", values.join(", ")),
    );
    let namespaces =
        |prefix: &str| (0..600).map(|n| namespace(&format!("{prefix}{n}"), "team: v1")).collect::<String>();
    let (preview, batch) = both(&(pool + &namespaces("a")), &namespaces("b"));
    assert_eq!((preview.edits, batch.edits), (vec![], vec![]));
    let texts = |refused: &[Refusal]| refused.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&preview.report.refused), texts(&batch.report.refused));
    assert!(preview.report.refused[0].to_string().ends_with("name these instead; its last good state stays"));
}

#[test]
fn what_all_files_together_may_not_have_is_rejected_as_a_reload_would() {
    let pools = |prefix: &str, count| {
        let pool = |n| {
            format!(
                r#"{{"apiVersion":"lb/v1","kind":"IPPool","metadata":{{"name":"{prefix}{n}"}},"spec":{{"blocks":[]}}}}"#
            )
        };
        (0..count).map(pool).collect::<String>()
    };
    let mut manifests = Manifests::new(SourceName("manifests".into())).allocating();
    manifests.update(Snapshot::parse("there.json", &pools("a", limits::MAX_POOLS - 1)));
    let preview = |added: &str| manifests.preview(&Snapshot::parse("added.json", added).unwrap());
    let fits = preview(&pools("b", 1));
    assert!(fits.edits.len() == 1 && fits.report.rejected.is_none());
    let too_many = preview(&pools("b", 2));
    let why = too_many.report.rejected.unwrap().to_string();
    assert!(too_many.edits.is_empty() && why.starts_with("added.json: there are more than 10000 pools"), "{why}");
}

/// It is made for `Allocator::plan`.
#[test]
fn a_plan_of_it_says_who_would_move() {
    let mut manifests = Manifests::new(SourceName("manifests".into())).allocating();
    let there = pool("a", "10.0.0.0/24") + &service("x", "LoadBalancer", 80, "");
    let batch = manifests.update(Snapshot::parse("there.yaml", &there));
    let mut allocator = Allocator::new(Settings::default(), MemoryLedger::default());
    batch.edits.into_iter().for_each(|edit| allocator.handle_edit(edit));
    let _ = allocator.reconcile(Timestamp::from_secs(1));
    let preview = manifests.preview(&Snapshot::parse("added.yaml", &pool("a", "10.9.0.0/24")).unwrap());
    let plan = allocator.plan(preview.edits, Timestamp::from_secs(2));
    assert_eq!(plan.moves[0].to_string(), "default/x: 10.0.0.0 -> 10.9.0.0");
}

fn object() -> impl Strategy<Value = String> {
    let name = || select(vec!["a", "b", "c"]);
    let block = select(vec!["10.0.0.0/24", "10.0.0.0/25", "10.1.0.0/24", "10.0.0.9-10.0.0.1"]);
    let label = || select(vec!["team: a", "team: b", "", "team: true"]);
    prop_oneof![
        (name(), block.clone()).prop_map(|(name, block)| pool(name, block)),
        (name(), block, label()).prop_map(|(name, block, label)| selecting_pool(name, block, label)),
        (name(), label()).prop_map(|(name, label)| namespace(name, label)),
        (name(), select(vec!["LoadBalancer", "ClusterIP"]), 0..3u16, select(vec!["", "lb/ips: 10.0.0.5", "lb/ips: x"]))
            .prop_map(|(name, kind, port, annotations)| service(name, kind, port, annotations)),
    ]
}

proptest! {
    #[test]
    fn a_preview_agrees_with_a_reload(there in vec(object(), 0..8), added in vec(object(), 0..5)) {
        let (preview, batch) = both(&there.concat(), &added.concat());
        prop_assert_eq!(&preview.edits, &batch.edits);
        // Whether pools that are there can be compared with all namespaces is up to those that are added too.
        let of_added = |refusal: &&Refusal| {
            let finding = &refusal.finding;
            finding.object.origin.file.ends_with("added.yaml") || finding.field.ends_with("namespaceSelectors")
        };
        let refused: Vec<_> = batch.report.refused.iter().filter(of_added).cloned().collect();
        prop_assert_eq!(&preview.report.refused, &refused);
        let unsupported = batch.report.unsupported.iter();
        let of_added = unsupported.filter(|finding| finding.object.origin.file.ends_with("added.yaml"));
        prop_assert!(preview.report.unsupported.iter().eq(of_added));
    }
}
