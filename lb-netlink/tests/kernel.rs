//! Conversations with the kernel in the current network namespace; none needs a privilege.

use lb_netlink::{Error, Message, Protocol, Socket, Writer};
use netlink_packet_core::{NLM_F_REQUEST, Parseable as _};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
};
use nix::libc;

const LOOPBACK: u32 = 1;
/// No device has that index.
const ABSENT: u32 = i32::MAX as u32;

fn link(index: u32) -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    RouteNetlinkMessage::GetLink(link)
}

fn index_of(message: &Message<'_>) -> u32 {
    LinkMessage::parse(message.payload).expect("the kernel sends whole messages").header.index
}

#[test]
fn a_dump_has_every_message_decoded() {
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let links = socket.dump_all(&RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
    let loopback = links.iter().find_map(|link| match link {
        RouteNetlinkMessage::NewLink(link) if link.header.index == LOOPBACK => Some(link),
        _ => None,
    });
    assert!(loopback.unwrap().attributes.contains(&LinkAttribute::IfName("lo".into())));
}

#[test]
fn look_ups_are_answered_by_position() {
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let mut requests = Writer::default();
    for index in [ABSENT, LOOPBACK] {
        requests.push(NLM_F_REQUEST, &link(index));
    }
    let mut answers = Vec::new();
    let each = |position, answer: Result<Message<'_>, _>| answers.push((position, answer.map(|m| index_of(&m))));
    socket.look_up(requests, each).unwrap();
    let [(0, Err(absent)), (1, Ok(LOOPBACK))] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(absent.errno(), libc::ENODEV);
}

#[test]
fn a_refused_request_is_named_and_does_not_stop_the_others() {
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let mut requests = Writer::default();
    for index in [LOOPBACK, ABSENT, LOOPBACK] {
        requests.push(NLM_F_REQUEST, &link(index));
    }
    let refused = socket.request(requests).unwrap();
    let refused: Vec<(u32, i32)> = refused.iter().map(|refusal| (refusal.index, refusal.error.errno())).collect();
    assert_eq!(refused, [(1, libc::ENODEV)]);
}

#[test]
fn a_conversation_is_not_disturbed_by_what_one_before_it_left() {
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let unknown = socket.dump(libc::RTM_NEWLINK + 0x300, &[], |_| {}, |(), _| {});
    assert_eq!(unknown.unwrap_err().errno(), Some(libc::EOPNOTSUPP));
    let mut answers = Vec::new();
    let mut request = Writer::default();
    request.push(NLM_F_REQUEST, &link(LOOPBACK));
    socket.look_up(request, |_, answer| answers.push(answer.map(|message| index_of(&message)).unwrap())).unwrap();
    assert_eq!(answers, [LOOPBACK]);
}

#[test]
fn requests_that_nobody_acknowledges_are_an_error() {
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let mut request = Writer::default();
    request.push(NLM_F_REQUEST, &link(LOOPBACK));
    // Nothing asked for an acknowledgement.
    let answer = socket.transaction(request, 0);
    assert!(matches!(answer, Err(Error::NotAcknowledged)), "{answer:?}");
}

#[test]
fn the_address_of_a_socket_is_its_own() {
    let (first, second) = (Socket::open(Protocol::Route).unwrap(), Socket::open(Protocol::Route).unwrap());
    assert_ne!(first.port().unwrap(), second.port().unwrap());
}
