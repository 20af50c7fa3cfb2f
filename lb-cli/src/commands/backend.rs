//! `lb backend`.

use lb_agent::api::{Backend, Client, ClientError};

use crate::{
    cli::BackendListArgs,
    commands::{
        service,
        watch::{self, Watched},
    },
    exit::{Outcome, Verdict},
    names::Selection,
    output::{self, Table},
};

pub(super) fn list(args: &BackendListArgs) -> Outcome {
    let selection = Selection::new(args.service.as_deref(), &args.namespace, args.all_namespaces)?;
    let client = args.ask.reach.client()?;
    let backends = selected(&client, &selection)?;
    if backends.is_empty() {
        // The service that is named may have none.
        service::selected(&client, &selection)?;
    }
    if args.watch {
        return watch::follow(&client, args.ask.output, backends, |client| selected(client, &selection));
    }
    output::write_list(args.ask.output, &backends, Watched::name, |wide| {
        if backends.is_empty() { selection.none("backends") } else { table(&backends, wide) }
    })?;
    Ok(Verdict::Fine)
}

fn selected(client: &Client, selection: &Selection) -> Result<Vec<Backend>, ClientError> {
    let mut backends = client.backends()?;
    backends.retain(|backend| selection.has(&backend.service));
    Ok(backends)
}

impl Watched for Backend {
    fn key(&self) -> String {
        format!("{} {} {}", self.service, self.port_name, self.name())
    }

    fn name(&self) -> String {
        format!("{}/{}", std::net::SocketAddr::new(self.ip, self.port), self.protocol)
    }

    fn table(rows: &[(&Self, bool)], wide: bool) -> Table {
        let mut table = if wide {
            Table::new(["SERVICE", "BACKEND", "NODE", "LOCAL", "WEIGHT", "STATE", "NEW FLOWS"])
        } else {
            Table::new(["SERVICE", "BACKEND", "NODE", "WEIGHT", "STATE", "NEW FLOWS"])
                .give_way(&[], &["WEIGHT", "NODE"])
        };
        rows.iter().for_each(|&(backend, is_gone)| add(&mut table, backend, is_gone, wide));
        table
    }
}

pub(super) fn table(backends: &[Backend], wide: bool) -> String {
    let rows: Vec<(&Backend, bool)> = backends.iter().map(|backend| (backend, false)).collect();
    Backend::table(&rows, wide).fit(output::terminal_width().filter(|_| !wide)).to_string()
}

fn add(table: &mut Table, backend: &Backend, is_gone: bool, wide: bool) {
    let port = if backend.port_name.is_empty() { String::new() } else { format!(":{}", backend.port_name) };
    let service = format!("{}{port}", backend.service);
    let node = backend.node.clone().unwrap_or_default();
    let weight = backend.weight.to_string();
    let state = if is_gone { "removed".into() } else { backend.state.to_string() };
    let new_flows = backend.reason.as_ref().map_or_else(|| "yes".into(), |reason| format!("no: {reason}"));
    if wide {
        let local = if backend.local { "yes" } else { "no" }.into();
        table.row([service, backend.name(), node, local, weight, state, new_flows]);
    } else {
        table.row([service, backend.name(), node, weight, state, new_flows]);
    }
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
        let text = table(&[backend], false);
        assert!(text.contains("[fd00::1]:8080/tcp   -      0        active   no: weight is 0\n"), "{text}");
    }
}
