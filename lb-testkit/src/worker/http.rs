//! As much of HTTP/1.1 as an echo server and its client need.

use std::{fmt::Write, net::SocketAddr};

use super::protocol::Who;

/// Longest head of a request or answer.
const MOST: usize = 64 * 1024;
const MOST_HEADERS: usize = 64;

/// A request out of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether the connection stays open after the answer.
    pub(crate) keep_alive: bool,
    /// Length of it all in the buffer.
    pub(crate) length: usize,
}

/// Why a request cannot be answered; the status line to say so.
pub(crate) type Refusal = &'static str;

/// Takes the first request out of `buffer`; `None` while it is incomplete.
pub(crate) fn parse(buffer: &[u8]) -> Result<Option<Ask>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(buffer) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) if buffer.len() > MOST => return Err("431 Request Header Fields Too Large"),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("400 Bad Request"),
    };
    if header(request.headers, "transfer-encoding").is_some() {
        return Err("411 Length Required");
    }
    let body = match header(request.headers, "content-length") {
        Some(length) => length.parse::<usize>().map_err(|_| "400 Bad Request")?,
        None => 0,
    };
    if body > MOST {
        return Err("413 Content Too Large");
    }
    let Some(content) = buffer.get(head..head + body) else {
        return Ok(None);
    };
    Ok(Some(Ask {
        method: request.method.unwrap_or_default().into(),
        path: request.path.unwrap_or_default().into(),
        headers: request.headers.iter().map(|h| (h.name.to_ascii_lowercase(), text(h.value))).collect(),
        body: content.into(),
        keep_alive: keeps_alive(request.version, header(request.headers, "connection")),
        length: head + body,
    }))
}

/// HTTP/1.1 stays open unless told otherwise, HTTP/1.0 only if told so.
fn keeps_alive(version: Option<u8>, connection: Option<String>) -> bool {
    let connection = connection.unwrap_or_default().to_ascii_lowercase();
    if version == Some(1) { connection != "close" } else { connection == "keep-alive" }
}

/// The answer in the form of Kubernetes' echo server.
pub(crate) fn echo(who: &Who, ask: &Ask, client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let mut body = String::new();
    // Writing to a string cannot fail.
    let _ = write_echo(&mut body, who, ask, client, server);
    let connection = if ask.keep_alive { "keep-alive" } else { "close" };
    let mut answer = head("200 OK", body.len(), connection);
    if ask.method != "HEAD" {
        answer.extend_from_slice(body.as_bytes());
    }
    answer
}

fn write_echo(
    body: &mut String,
    who: &Who,
    ask: &Ask,
    client: SocketAddr,
    server: SocketAddr,
) -> Result<(), std::fmt::Error> {
    let (path, query) = ask.path.split_once('?').unwrap_or((&ask.path, ""));
    let host = ask.headers.iter().find(|(name, _)| name == "host").map_or("", |(_, value)| value.as_str());
    let ips: Vec<String> = who.ips.iter().map(ToString::to_string).collect();
    write!(body, "\n\nHostname: {}\n\nPod Information:\n", who.pod)?;
    write!(body, "\tnode name:\t{}\n\tpod name:\t{}\n", who.node, who.pod)?;
    write!(body, "\tpod namespace:\t{}\n\tpod IP:\t{}\n\n", who.namespace, ips.join(","))?;
    write!(body, "Server values:\n\tserver_version=lb-testkit\n\tserver_address={server}\n\n")?;
    write!(body, "Request Information:\n\tclient_address={}\n\tclient_port={}\n", client.ip(), client.port())?;
    write!(body, "\tmethod={}\n\treal path={path}\n\tquery={query}\n", ask.method)?;
    write!(body, "\trequest_version=1.1\n\trequest_scheme=http\n\trequest_uri=http://{host}{path}\n\n")?;
    body.push_str("Request Headers:\n");
    for (name, value) in &ask.headers {
        writeln!(body, "\t{name}={value}")?;
    }
    let sent = String::from_utf8_lossy(&ask.body);
    let sent = if sent.is_empty() { "-no body in request-" } else { &sent };
    write!(body, "\nRequest Body:\n\t{sent}\n")
}

/// An answer without a body, after which the connection closes.
pub(crate) fn refuse(status: Refusal) -> Vec<u8> {
    head(status, 0, "close")
}

fn head(status: &str, length: usize, connection: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\nconnection: {connection}\r\n\r\n"
    )
    .into_bytes()
}

/// The body of a complete answer; `None` while it is incomplete.
pub(crate) fn body(buffer: &[u8]) -> Result<Option<String>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(buffer) {
        Ok(httparse::Status::Complete(head)) => head,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("not an answer of HTTP: {error}")),
    };
    let length = header(response.headers, "content-length").and_then(|length| length.parse::<usize>().ok());
    let Some(length) = length else {
        return Err("the answer has no content-length".into());
    };
    Ok(buffer.get(head..head + length).map(text))
}

fn header(headers: &[httparse::Header<'_>], name: &str) -> Option<String> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| text(header.value))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_one_by_one() {
        let two = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\nPOST /d HTTP/1.1\r\ncontent-length: 2\r\n\r\nhiGET";
        let first = parse(two).unwrap().unwrap();
        assert_eq!((first.method.as_str(), first.path.as_str(), first.keep_alive), ("GET", "/a?b=c", true));
        let second = parse(&two[first.length..]).unwrap().unwrap();
        assert_eq!((second.path.as_str(), second.body.as_slice()), ("/d", b"hi".as_slice()));
        assert_eq!(parse(&two[first.length + second.length..]), Ok(None));
    }

    #[test]
    fn bad_requests_are_refused() {
        assert_eq!(parse(b"\x00\x01\r\n\r\n"), Err("400 Bad Request"));
        assert_eq!(parse(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"), Err("411 Length Required"));
        assert_eq!(parse(b"POST / HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n"), Err("413 Content Too Large"));
    }

    #[test]
    fn connections_close_when_either_side_says_so() {
        for (version, connection, stays) in
            [(1, None, true), (1, Some("Close"), false), (0, None, false), (0, Some("keep-alive"), true)]
        {
            assert_eq!(keeps_alive(Some(version), connection.map(Into::into)), stays, "1.{version} {connection:?}");
        }
    }

    #[test]
    fn the_echo_has_the_shape_of_kubernetes() {
        let who = Who {
            node: "worker".into(),
            pod: "echo-1".into(),
            namespace: "default".into(),
            ips: vec!["10.0.0.136".parse().unwrap()],
        };
        let ask = parse(b"GET /x HTTP/1.1\r\nhost: 20.0.20.100:8080\r\n\r\n").unwrap().unwrap();
        let client = "10.0.1.97:4000".parse().unwrap();
        let body = body(&echo(&who, &ask, client, "10.0.0.136:8080".parse().unwrap())).unwrap().unwrap();
        for line in [
            "Hostname: echo-1",
            "\tpod IP:\t10.0.0.136",
            "\tclient_address=10.0.1.97",
            "\treal path=/x",
            "\trequest_uri=http://20.0.20.100:8080/x",
            "\t-no body in request-",
        ] {
            assert!(body.lines().any(|found| found == line), "{line:?} is not in {body}");
        }
    }
}
