//! What the tests of the program share.

use std::process::{Command, Output};

/// The program.
pub(crate) fn lb() -> Command {
    Command::new(env!("CARGO_BIN_EXE_lb"))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A service at `ip`, port 80, in front of port 8080 of `backends`.
pub(crate) fn service(name: &str, ip: &str, extra: &str, backends: &[&str]) -> String {
    let endpoints: Vec<String> = backends.iter().map(|ip| format!("- addresses: [{ip}]\n")).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n{extra}spec:\n  clusterIP: {ip}\n  \
         ports: [{{name: http, port: 80, targetPort: 8080}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  \
         labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\n\
         ports: [{{name: http, port: 8080, protocol: TCP}}]\nendpoints:\n{}",
        endpoints.concat()
    )
}

/// Exit code and standard error of a program that ended.
pub(crate) fn end(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), text(&output.stderr))
}
