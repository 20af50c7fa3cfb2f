//! `lb backend`.

use lb_agent::api::{Backend, Client};

use crate::{
    cli::BackendListArgs,
    exit::{Failure, Outcome, Verdict},
    output::{self, Table},
};

pub(super) fn list(args: &BackendListArgs) -> Outcome {
    let client = Client::new(&args.ask.socket);
    let mut backends = client.backends()?;
    if let Some(name) = &args.service {
        let name = super::full_name(name);
        backends.retain(|backend| backend.service == name);
        if backends.is_empty() && !client.services()?.iter().any(|service| service.name == name) {
            return Err(Failure::NotFound(format!("the agent knows no service {name}")));
        }
    }
    output::write(args.ask.output, &backends, || table(&backends))?;
    Ok(Verdict::Fine)
}

fn table(backends: &[Backend]) -> String {
    let mut table = Table::new(["SERVICE", "BACKEND", "NODE", "WEIGHT", "STATE", "NEW FLOWS"]);
    for backend in backends {
        let address = std::net::SocketAddr::new(backend.ip, backend.port);
        let port = if backend.port_name.is_empty() { String::new() } else { format!(":{}", backend.port_name) };
        table.row([
            format!("{}{port}", backend.service),
            format!("{address}/{}", backend.protocol),
            backend.node.clone().unwrap_or_default(),
            backend.weight.to_string(),
            backend.state.to_string(),
            backend.reason.as_ref().map_or_else(|| "yes".into(), |reason| format!("no: {reason}")),
        ]);
    }
    if table.is_empty() { "no backends\n".into() } else { table.to_string() }
}

#[cfg(test)]
mod tests {
    use lb_agent::api::{BackendState, Protocol};

    use super::*;

    #[test]
    fn a_backend_that_takes_nothing_says_why() {
        let backend = Backend {
            service: "default/web".into(),
            port_name: String::new(),
            ip: "fd00::1".parse().unwrap(),
            port: 8080,
            protocol: Protocol::Tcp,
            node: None,
            local: true,
            weight: 0,
            state: BackendState::Active,
            takes_new_flows: false,
            reason: Some("weight is 0".into()),
        };
        let text = table(&[backend]);
        assert!(text.contains("[fd00::1]:8080/tcp   -      0        active   no: weight is 0\n"), "{text}");
    }
}
