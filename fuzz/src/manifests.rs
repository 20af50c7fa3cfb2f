//! One file.

use lb_k8s::{Snapshot, SnapshotError, write};

/// Reads the bytes as YAML and as JSON.
///
/// What comes of it is fit for everybody behind it: names are DNS names, messages have nothing in them that steers a
/// terminal, and what was read is read again from what is written of it.
///
/// # Panics
/// When one of this does not hold.
pub fn manifests(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for file in ["x.yaml", "x.json"] {
        match Snapshot::parse(file, text) {
            Ok(snapshot) => check(&snapshot),
            Err(error) => check_error(file, &error),
        }
    }
}

fn check_error(file: &str, error: &SnapshotError) {
    let message = error.to_string();
    assert!(message.starts_with(file), "{message}");
    check_message(&message);
}

fn check_message(message: &str) {
    assert!(message.chars().all(is_harmless), "{message:?} steers terminals");
    assert!(message.len() < 4096, "a message of {} bytes", message.len());
}

/// Neither a control character nor one that turns the direction of text around or breaks a line.
fn is_harmless(c: char) -> bool {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}');
    !c.is_control() && !turns && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

fn check(snapshot: &Snapshot) {
    let report = snapshot.report();
    let findings = report.skipped.iter().chain(&report.unsupported).map(ToString::to_string);
    findings.chain(report.refused.iter().map(ToString::to_string)).for_each(|message| check_message(&message));
    for service in snapshot.services() {
        check_name(service.name.namespace());
        check_name(service.name.name());
        service.ports.iter().filter(|port| !port.name.is_empty()).for_each(|port| check_name(&port.name));
        if let Ok(text) = write::service(service) {
            let again = Snapshot::parse("again.yaml", &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
            assert!(again.services().eq([service]), "{text}");
        }
    }
    for slice in snapshot.endpoint_slices() {
        check_name(&slice.name.namespace);
        slice.name.name.split('.').for_each(check_name);
        check_name(slice.service.name());
    }
}

/// Nothing that a ruleset, a path or a shell would take for more than a name.
fn check_name(name: &str) {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    assert!(!name.is_empty() && name.len() <= 253 && name.bytes().all(is_plain), "{name:?} is no name");
}
