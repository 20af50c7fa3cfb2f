//! `lb version`.

use lb_agent::api::ClientError;
use serde::Serialize;

use crate::{
    cli::VersionArgs,
    exit::{Failure, Outcome, Verdict},
    output,
};

#[derive(Debug, Serialize)]
struct Versions {
    /// Of this program.
    client: String,
    /// Of the agent; `None` if it was not asked or does not answer.
    agent: Option<String>,
}

pub(super) fn run(args: &VersionArgs) -> Outcome {
    let client = env!("CARGO_PKG_VERSION").to_owned();
    let asked = (!args.client).then(|| args.ask.reach.client()).transpose()?.map(|agent| agent.status());
    let (agent, failure): (_, Option<ClientError>) = match asked {
        Some(Ok(status)) => (Some(status.version), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    let versions = Versions { client, agent };
    output::write(args.ask.output, &versions, || text(&versions))?;
    failure.map_or(Ok(Verdict::Fine), |error| Err(Failure::from(error)))
}

fn text(Versions { client, agent }: &Versions) -> String {
    let mut text = format!("client  {client}\n");
    if let Some(agent) = agent {
        text.push_str(&format!("agent   {agent}\n"));
        if agent != client {
            text.push_str("The versions differ: restart the agent to bring it to that of this program.\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_differ_are_pointed_out() {
        let of = |agent: Option<&str>| text(&Versions { client: "0.2.0".into(), agent: agent.map(Into::into) });
        assert_eq!(of(None), "client  0.2.0\n");
        assert_eq!(of(Some("0.2.0")), "client  0.2.0\nagent   0.2.0\n");
        assert!(of(Some("0.1.0")).contains("agent   0.1.0\nThe versions differ"));
    }
}
