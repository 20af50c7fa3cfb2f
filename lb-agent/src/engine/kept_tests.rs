//! Frontends over a restart with a manifest file that cannot be read.

use std::{fs, path::Path};

use lb_core::{
    addr::{FrontendAddr, Protocol},
    decision::{Entry, Packet},
    name::SourceName,
    state::{Answer, State},
};

use crate::{
    allocation::Allocation,
    config::Config,
    engine::Engine,
    source::{ManifestDirectory, Source, Sources},
    testing::{Kernel, WEB, conditions, config},
};

/// An agent of this directory that has read it.
fn started(directory: &Path, config: &Config, kernel: &Kernel) -> (Engine, Sources) {
    let source = ManifestDirectory::new(directory);
    let names = [(SourceName(source.name().0), source.place())];
    let sources = Sources::new(vec![Box::new(source)], Allocation::open(config).unwrap());
    let mut agent = Engine::new(config, &names, Box::new(kernel.clone()), Box::new(|| {}));
    follow(&mut agent, &sources);
    (agent, sources)
}

fn follow(agent: &mut Engine, sources: &Sources) {
    sources.reload();
    agent.shared.take_news(sources.poll(0).unwrap());
    agent.settle().unwrap();
}

fn backends(state: &State, address: &str) -> usize {
    let addr = FrontendAddr::new(address.parse().unwrap(), 80, Protocol::Tcp);
    match state.answer(&addr, 0) {
        Answer::Backends(backends) => backends.len(),
        _ => 0,
    }
}

#[test]
fn a_file_that_cannot_be_read_at_a_start_takes_no_frontend_away() {
    let directory = tempfile::tempdir().unwrap();
    let manifests = directory.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let put = |name: &str, text: &str| fs::write(manifests.join(name), text).unwrap();
    let api = WEB.replace("web", "api").replace("10.96.0.1", "10.96.0.2");
    let config = Config { state_dir: directory.path().join("state"), ..config() };
    let kernel = Kernel::default();
    put("web.yaml", WEB);
    put("api.yaml", &api);
    drop(started(&manifests, &config, &kernel));
    let before = kernel.state();
    assert_eq!(before.frontends.len(), 2);

    put("web.yaml", "{{ bad }}: {{");
    put("api.yaml", &api.replace(", {addresses: [10.0.0.2]}", ""));
    let (mut agent, sources) = started(&manifests, &config, &kernel);
    assert!(agent.shared.is_ready());
    assert_eq!((backends(&kernel.state(), "10.96.0.1"), backends(&kernel.state(), "10.96.0.2")), (2, 1));
    assert_eq!(conditions(&agent), ["Kept", "ManifestsRejected"]);
    let said = agent.shared.status().conditions.remove(0).message;
    assert!(said.starts_with("1 frontend is kept as it was found at the start, "), "{said}");
    assert!(said.contains(": 10.96.0.1:80/tcp; correct or remove the files"), "{said}");
    let packet = Packet {
        protocol: Protocol::Tcp,
        source: "10.0.0.9".parse().unwrap(),
        source_port: 4000,
        destination: "10.96.0.1".parse().unwrap(),
        destination_port: 80,
        entry: Entry::PodDevice,
    };
    let steps = agent.shared.explain(&packet, None, None).steps;
    assert!(steps.iter().any(|step| step.says.starts_with("it is kept as it was found at the start")), "{steps:?}");

    // The other file changes; then this one is corrected.
    put("api.yaml", &api);
    follow(&mut agent, &sources);
    assert_eq!((backends(&kernel.state(), "10.96.0.1"), backends(&kernel.state(), "10.96.0.2")), (2, 2));
    put("web.yaml", WEB);
    follow(&mut agent, &sources);
    assert_eq!((kernel.state(), conditions(&agent)), (before, Vec::new()));
}

#[test]
fn what_was_kept_goes_with_the_file_that_could_not_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let manifests = directory.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    let config = Config { state_dir: directory.path().join("state"), ..config() };
    let kernel = Kernel::default();
    fs::write(manifests.join("web.yaml"), WEB).unwrap();
    drop(started(&manifests, &config, &kernel));
    fs::write(manifests.join("web.yaml"), "kind: [Service").unwrap();
    let (mut agent, sources) = started(&manifests, &config, &kernel);
    assert_eq!(backends(&kernel.state(), "10.96.0.1"), 2);
    fs::remove_file(manifests.join("web.yaml")).unwrap();
    follow(&mut agent, &sources);
    assert_eq!((kernel.state().frontends.len(), kernel.state().backends.len()), (0, 0));
    assert_eq!(conditions(&agent), Vec::<String>::new());
}
