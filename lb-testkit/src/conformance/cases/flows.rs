//! Connections that the host knows better than a datapath: conntrack remembers them, or makes nothing of a packet.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use ipnet::IpNet;
use lb_core::{
    addr::{Family, FrontendKind},
    model::Change,
};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Case, cases, reach::requires};
use crate::{
    conformance::{
        Fault, Stage, Verdict, ensure,
        probe::PACKET_ORIGINS,
        service::{BACK_PORT, FRONT_PORT, Vip, WEB, With, endpoints, pod_ip, web, weighted},
    },
    lab::{Lab, Netns, topology},
    traffic::{DEFAULT_TIMEOUT, Transport},
};

pub(super) const CASES: [Case; 3] = cases![
    an_answer_outside_of_the_window_is_not_seen_untranslated,
    a_half_closed_connection_waits_for_a_slow_answer,
    a_connection_that_began_before_its_service_reaches_it,
];

/// Conntrack takes such a segment for invalid and does not translate it.
fn an_answer_outside_of_the_window_is_not_seen_untranslated(stage: &mut Stage) -> Verdict {
    stage.lab()?;
    let pods = endpoints("web", &["a", "c"]);
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(pods)])?;
    for origin in PACKET_ORIGINS {
        let lab = stage.lab()?;
        let held = lab.client(origin).hold(Transport::Tcp, (WEB.ip(Family::V4), FRONT_PORT).into(), 4)?;
        for opened in held.opened() {
            let answer = opened.as_ref().map_err(|failure| Fault::Failed(format!("{origin:?}: {failure}")))?;
            let backend = SocketAddr::new(pod_ip(&answer.pod, Family::V4), BACK_PORT);
            let tap = tap(addressee(lab, answer.client.ip()))?;
            let server = lab.pod(&answer.pod).ok_or_else(|| Fault::Failed(format!("no pod `{}`", answer.pod)))?;
            server.netns().run(|| send_out_of_window(backend, answer.client))?.map_err(failed("sending segments"))?;
            // Whatever was sent before the next answer has arrived by then.
            let broken = held.exchange()?.into_iter().find_map(Result::err);
            ensure!(broken.is_none(), "{origin:?} through {backend}: {broken:?}");
            let strays = sources(&tap)?.into_iter().filter(|&from| from == backend).count();
            ensure!(strays == 0, "{origin:?}: {strays} segments came from {backend} itself");
        }
    }
    Ok(())
}

/// Who has the source that a backend sees: a pod, or node 0 where it is translated.
fn addressee(lab: &Lab, ip: IpAddr) -> &Netns {
    lab.pod_of(ip).map_or_else(|| lab.node(0).netns(), |pod| pod.netns())
}

fn tap(netns: &Netns) -> Result<Socket, Fault> {
    let socket = netns.run(raw)?.map_err(failed("opening a raw socket"))?;
    socket.set_nonblocking(true).map_err(failed("opening a raw socket"))?;
    Ok(socket)
}

fn raw() -> std::io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))
}

/// The sources of the segments that a tap has received.
fn sources(mut tap: &Socket) -> Result<Vec<SocketAddr>, Fault> {
    let mut seen = Vec::new();
    let mut packet = [0; 2048];
    loop {
        match tap.read(&mut packet) {
            Ok(_) => {
                let [a, b, c, d] = [packet[12], packet[13], packet[14], packet[15]];
                let header = usize::from(packet[0] & 0xf) * 4;
                let port = u16::from_be_bytes([packet[header], packet[header + 1]]);
                seen.push(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(seen),
            Err(error) => return Err(failed("reading a raw socket")(error)),
        }
    }
}

/// Two acknowledgements half of all sequence numbers apart: one at least is outside of whatever window there is.
fn send_out_of_window(from: SocketAddr, to: SocketAddr) -> std::io::Result<()> {
    let socket = raw()?;
    // A raw socket takes no port.
    let host = SocketAddr::new(to.ip(), 0).into();
    [0, 1 << 31]
        .into_iter()
        .try_for_each(|sequence| socket.send_to(&acknowledgement(from, to, sequence), &host).map(drop))
}

fn acknowledgement(from: SocketAddr, to: SocketAddr, sequence: u32) -> Vec<u8> {
    const ACK: u8 = 0x10;
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let numbers = [sequence.to_be_bytes(), (!sequence).to_be_bytes()].concat();
    let mut segment = [ports, numbers, vec![5 << 4, ACK, 0xff, 0xff, 0, 0, 0, 0]].concat();
    let sum = checksum(from.ip(), to.ip(), &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

fn checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let octets = |ip| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let pseudo = [octets(from), octets(to), vec![0, 6, 0, segment.len() as u8]].concat();
    let words = pseudo.chunks(2).chain(segment.chunks(2)).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The client says that it is done and waits. Where conntrack is asked, it would forget the connection after a second.
fn a_half_closed_connection_waits_for_a_slow_answer(stage: &mut Stage) -> Verdict {
    const SLOW_PORT: u16 = 9191;
    const SLOW: Duration = Duration::from_millis(2500);
    stage.with_lab(|stage, lab| {
        lab.node(0).run(|| {
            // A kernel without conntrack has nothing to forget.
            fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", "1")
                .or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
                .map_err(failed("shortening the memory of conntrack"))
        })??;
        let server = lab.pod("a").ok_or_else(|| Fault::Failed("no pod `a`".into()))?.netns();
        let listener = server.run(|| TcpListener::bind(("0.0.0.0", SLOW_PORT)))?.map_err(failed("listening"))?;
        let slow = weighted("web", &[("a", 1)], SLOW_PORT);
        stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(slow)])?;
        let mut open = Vec::new();
        for (name, netns) in outside_of_the_cgroup(lab) {
            let to = (WEB.ip(Family::V4), FRONT_PORT).into();
            let connect = netns.run(|| TcpStream::connect_timeout(&to, DEFAULT_TIMEOUT))?;
            let near = connect.map_err(failed(&format!("connecting from {name}")))?;
            let (mut far, _) = listener.accept().map_err(failed("accepting"))?;
            near.shutdown(Shutdown::Write).map_err(failed("closing one half"))?;
            far.set_read_timeout(Some(DEFAULT_TIMEOUT)).map_err(failed("setting a time-out"))?;
            far.read_to_end(&mut Vec::new()).map_err(failed(&format!("waiting for the end of {name}")))?;
            open.push((name, near, far));
        }
        // What is tested is what the passing of time does.
        thread::sleep(SLOW);
        for (name, mut near, mut far) in open {
            far.write_all(b"answer").map_err(failed(&format!("answering {name}")))?;
            drop(far);
            near.set_read_timeout(Some(DEFAULT_TIMEOUT)).map_err(failed("setting a time-out"))?;
            let mut heard = String::new();
            near.read_to_string(&mut heard).map_err(failed(&format!("waiting for the answer in {name}")))?;
            ensure!(heard == "answer", "{name} heard `{heard}`");
        }
        Ok(())
    })
}

/// The first packet of the connection went to a host that is not there. The client repeats it after a second, and
/// whoever remembers the first one must not send the second one after it.
fn a_connection_that_began_before_its_service_reaches_it(stage: &mut Stage) -> Verdict {
    /// Of the segment, where nobody answers for them.
    const LATE: Vip = Vip { v4: [172, 18, 0, 200], v6: [0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0x200] };
    requires(stage, FrontendKind::LoadBalancer)?;
    // Without any service, conntrack may not even look.
    stage.change([Change::UpsertService(web()), Change::ReplaceEndpoints(endpoints("web", &["a", "c"]))])?;
    stage.with_lab(|stage, lab| {
        let mut began = Vec::new();
        for family in topology::FAMILIES {
            lab.route_via(IpNet::from(LATE.ip(family)), 0)?;
            for (name, netns) in outside_of_the_cgroup(lab) {
                let to = SocketAddr::new(LATE.ip(family), FRONT_PORT);
                let socket = netns.run(|| begin(to))?.map_err(failed(&format!("connecting from {name} to {to}")))?;
                began.push((format!("{name} to {to}"), socket));
            }
        }
        stage.change([Change::UpsertService(web().load_balancer_ips(LATE))])?;
        for (what, mut stream) in began {
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(failed(&what))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map_err(failed(&what))?;
            ensure!(answer.starts_with("HTTP/1.1 200"), "{what}: `{answer}`");
        }
        Ok(())
    })
}

/// A connection whose first packet is sent.
fn begin(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        result => result?,
    }
    socket.set_nonblocking(false)?;
    socket.set_write_timeout(Some(DEFAULT_TIMEOUT))?;
    socket.set_read_timeout(Some(DEFAULT_TIMEOUT))?;
    Ok(socket.into())
}

/// Where packets of this process are seen by every datapath: in a pod of node 0, and outside.
fn outside_of_the_cgroup(lab: &Lab) -> Vec<(&'static str, &Netns)> {
    let pod = lab.pod("client").map(|pod| ("the pod", pod.netns()));
    pod.into_iter().chain([("the router", lab.router())]).collect()
}

fn failed(doing: &str) -> impl Fn(std::io::Error) -> Fault + use<> {
    let doing = doing.to_owned();
    move |error| Fault::Failed(format!("{doing} failed: {error}"))
}
