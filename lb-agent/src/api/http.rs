//! As much of HTTP/1.1 as a local socket needs: one request per connection.

use std::io::{self, BufRead, Read, Write};

/// Most bytes of a head.
const MAX_HEAD: u64 = 16 * 1024;
/// Most bytes of the body of a request: manifests of pools, of which each takes a few hundred.
const MAX_BODY: u64 = 8 * 1024 * 1024;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) body: Vec<u8>,
}

/// Reads a request. `None`: the other side closed without one.
pub(crate) fn read_request(from: impl Read) -> io::Result<Option<Request>> {
    let mut from = io::BufReader::new(from);
    let head = read_head(&mut from)?;
    if head.is_empty() {
        return Ok(None);
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    let status = parsed.parse(&head).map_err(invalid)?;
    let (httparse::Status::Complete(_), Some(method), Some(target)) = (status, parsed.method, parsed.path) else {
        return Err(invalid("the request ends before its head does"));
    };
    let body = read_body(from, parsed.headers)?;
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query.into())));
    Ok(Some(Request { method: method.into(), path: path.into(), query, body }))
}

fn read_body(from: impl Read, headers: &[httparse::Header<'_>]) -> io::Result<Vec<u8>> {
    if headers.iter().any(|header| header.name.eq_ignore_ascii_case("transfer-encoding")) {
        return Err(invalid(
            "the request's body comes in chunks, which are not read here: send it with a content-length",
        ));
    }
    let Some(length) = headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length")) else {
        return Ok(Vec::new());
    };
    let length = std::str::from_utf8(length.value).ok().and_then(|length| length.trim().parse::<u64>().ok());
    let length = length.ok_or_else(|| invalid("the request's content-length is no number"))?;
    if length > MAX_BODY {
        return Err(invalid(format!("the request has {length} bytes, and at most {MAX_BODY} are read")));
    }
    let mut body = Vec::new();
    from.take(length).read_to_end(&mut body)?;
    if body.len() as u64 != length {
        return Err(invalid("the request ends before its body does"));
    }
    Ok(body)
}

/// Writes an answer, after which the connection ends.
pub(crate) fn write_response(mut to: impl Write, status: u16, body: &[u8]) -> io::Result<()> {
    let reason = match status {
        200 => "OK",
        501 => "Not Implemented",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    let length = body.len();
    write!(
        to,
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    to.write_all(body)?;
    to.flush()
}

/// Begins an answer of JSON lines that goes on until the connection ends.
pub(crate) fn write_stream_head(mut to: impl Write) -> io::Result<()> {
    write!(to, "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n")?;
    to.flush()
}

/// Asks for `target`, with a body or without one.
pub(crate) fn write_request(mut to: impl Write, target: &str, body: Option<&[u8]>) -> io::Result<()> {
    let method = if body.is_some() { "POST" } else { "GET" };
    write!(to, "{method} {target} HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n")?;
    if let Some(body) = body {
        write!(to, "Content-Length: {}\r\n", body.len())?;
    }
    to.write_all(b"\r\n")?;
    to.write_all(body.unwrap_or_default())?;
    to.flush()
}

/// Reads an answer up to the end of the connection: status and body.
pub(crate) fn read_response(mut from: impl Read) -> io::Result<(u16, Vec<u8>)> {
    let mut answer = Vec::new();
    from.read_to_end(&mut answer)?;
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut headers);
    let status = parsed.parse(&answer).map_err(invalid)?;
    let (httparse::Status::Complete(body), Some(code)) = (status, parsed.code) else {
        return Err(invalid("the answer ends before its head does"));
    };
    let length = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
    let body = answer.split_off(body);
    if length.is_some_and(|length: usize| length != body.len()) {
        return Err(invalid("the answer ends before its body does"));
    }
    Ok((code, body))
}

/// Reads the head of an answer and nothing beyond: its status.
pub(crate) fn read_response_head(mut from: impl BufRead) -> io::Result<u16> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if from.by_ref().take(MAX_HEAD).read_until(b'\n', &mut head)? == 0 || head.len() as u64 > MAX_HEAD {
            return Err(invalid("the answer's head is cut short or too long"));
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut headers);
    parsed.parse(&head).map_err(invalid)?;
    parsed.code.ok_or_else(|| invalid("the answer has no status"))
}

fn read_head(from: impl BufRead) -> io::Result<Vec<u8>> {
    let mut from = from.take(MAX_HEAD);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if from.read_until(b'\n', &mut head)? == 0 {
            return if head.is_empty() {
                Ok(head)
            } else {
                Err(invalid("the request's head is cut short or too long"))
            };
        }
    }
    Ok(head)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_apart() {
        let head = b"GET /v1/explain?source=%5B%3A%3A1%5D%3A1&entry=pod HTTP/1.1\r\nHost: lb\r\n\r\n";
        let request = read_request(&head[..]).unwrap().unwrap();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("GET", "/v1/explain"));
        assert_eq!(request.query.as_deref(), Some("source=%5B%3A%3A1%5D%3A1&entry=pod"));
    }

    #[test]
    fn hostile_requests_are_errors() {
        let endless = vec![b'a'; 2 * MAX_HEAD as usize];
        let cut: &[u8] = b"GET / HTTP/1.1\r\n";
        let noise: &[u8] = b"\0\0\0\r\n\r\n";
        for head in [&endless, cut, noise] {
            assert_eq!(read_request(head).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        assert_eq!(read_request(&b""[..]).unwrap(), None);
    }

    #[test]
    fn a_body_is_as_long_as_its_head_says() {
        let mut wire = Vec::new();
        write_request(&mut wire, "/v1/x", Some(b"kind: Pool\r\n\r\n")).unwrap();
        let request = read_request(&wire[..]).unwrap().unwrap();
        assert_eq!((request.method.as_str(), &request.body[..]), ("POST", &b"kind: Pool\r\n\r\n"[..]));
        wire.extend(b"more");
        assert_eq!(read_request(&wire[..]).unwrap().unwrap(), request);
        let cut = &wire[..wire.len() - 5];
        let said = |length: &str| format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        for (request, problem) in [
            (cut.to_vec(), "ends before its body"),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(), "in chunks"),
            (said("-1"), "no number"),
            (said("99999999999999999999"), "no number"),
            (said("8388609"), "at most 8388608"),
        ] {
            let error = read_request(&request[..]).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn an_answer_survives_and_a_cut_one_is_an_error() {
        let mut wire = Vec::new();
        write_response(&mut wire, 404, b"{}").unwrap();
        assert_eq!(read_response(&wire[..]).unwrap(), (404, b"{}".to_vec()));
        assert!(read_response(&wire[..wire.len() - 1]).is_err());
    }

    #[test]
    fn the_head_of_a_stream_is_read_and_no_more() {
        let mut wire = Vec::new();
        write_stream_head(&mut wire).unwrap();
        let head = wire.len();
        wire.extend(b"{}\n");
        let mut rest = &wire[..];
        assert_eq!((read_response_head(&mut rest).unwrap(), rest), (200, &b"{}\n"[..]));
        assert!(read_response_head(&wire[..head - 1]).is_err());
        assert!(read_response_head(&vec![b'a'; 3 * MAX_HEAD as usize][..]).is_err());
    }
}
