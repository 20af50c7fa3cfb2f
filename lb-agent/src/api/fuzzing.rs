//! Requests, from the bytes on the socket to those of the answer.

use std::{
    cell::OnceCell,
    sync::{Arc, mpsc::channel},
};

pub(crate) use crate::allocation::read_any as ledger;
use crate::{
    api::{Problem, Reply, answers::Answers, converse_once},
    engine::state::Shared,
    source::Sources,
    testing::{Kernel, agent, config, sources},
};

/// See [`crate::fuzzing::requests`].
pub(crate) fn requests(data: &[u8]) {
    thread_local! {
        static READY: OnceCell<(Arc<Shared>, Arc<Sources>)> = const { OnceCell::new() };
    }
    let (shared, sources) = READY.with(|it| it.get_or_init(ready).clone());
    // Nobody owns the datapath: what only it knows is answered with an error.
    let answers = Answers::new(shared, sources, channel().0);
    let answered = converse_once(data, |request| match request.path.as_str() {
        // Its lines come for as long as the client stays.
        path @ "/v1/drift/watch" => Reply::ok(&path),
        _ => answers.answer(request),
    });
    let Some((status, body)) = answered else {
        return assert!(data.is_empty(), "no answer to {}", data.escape_ascii());
    };
    assert!(matches!(status, 200 | 400 | 404 | 405 | 503), "status {status}");
    assert!(body.iter().all(|byte| *byte >= b' '), "{}", body.escape_ascii());
    if status == 200 {
        let value = serde_json::from_slice::<serde_json::Value>(&body);
        return assert!(value.is_ok(), "{}", body.escape_ascii());
    }
    let problem = serde_json::from_slice::<Problem>(&body);
    let told = problem.unwrap_or_else(|error| panic!("{error}: {}", body.escape_ascii())).error;
    // What is not UTF-8 becomes three bytes for each.
    assert!(!told.is_empty() && told.len() <= 300 + 3 * data.len(), "{told}");
}

fn ready() -> (Arc<Shared>, Arc<Sources>) {
    let mut agent = agent(&config(), Kernel::default());
    assert!(agent.settle().is_ok(), "the agent is ready");
    (agent.shared(), sources(&config()))
}
