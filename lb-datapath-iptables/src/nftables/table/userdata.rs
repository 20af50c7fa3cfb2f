//! Data that libnftables stores beside sets and elements and reads back when it lists them ([`src/netlink.c`] and
//! [`include/expression.h`] of nftables): type, length, value, with one byte each for type and length.
//!
//! Without this data `nft list` aborts on a key that contains a plain number.
//!
//! [`src/netlink.c`]: https://git.netfilter.org/nftables/tree/src/netlink.c
//! [`include/expression.h`]: https://git.netfilter.org/nftables/tree/include/expression.h

use lb_core::addr::Family;

use crate::nftables::table::layout::{Set, VERSION};

const KEY_BYTE_ORDER: u8 = 0;
const DATA_BYTE_ORDER: u8 = 1;
const KEY_TYPEOF: u8 = 3;
const DATA_TYPEOF: u8 = 4;
const DATA_INTERVAL: u8 = 6;

const HOST_ENDIAN: u32 = 1;
const BIG_ENDIAN: u32 = 2;
const MIXED: u32 = 0;

const EXPR_PAYLOAD: u32 = 7;
const EXPR_META: u32 = 9;
const EXPR_CONCAT: u32 = 13;
const EXPR_NUMGEN: u32 = 23;

/// `PROTO_DESC_*`: the header that a payload expression is about.
const TRANSPORT: u32 = 11;
const IP: u32 = 12;
const IP6: u32 = 13;

const META_L4PROTO: u32 = 16;
/// The expression needs a modulus: this is the one of the largest table.
const NUMGEN_MODULUS: u32 = 131_071;

/// Userdata of a set.
pub(crate) fn of_set(set: Set) -> Vec<u8> {
    let mut bytes = Vec::new();
    match set {
        Set::Frontends(..) | Set::Picks(_) => {
            number(&mut bytes, KEY_BYTE_ORDER, MIXED);
            number(&mut bytes, DATA_BYTE_ORDER, MIXED);
        }
        Set::Addresses(_) => {
            number(&mut bytes, KEY_BYTE_ORDER, BIG_ENDIAN);
            number(&mut bytes, DATA_BYTE_ORDER, MIXED);
        }
        Set::Tables(_) => {
            number(&mut bytes, KEY_BYTE_ORDER, MIXED);
            number(&mut bytes, DATA_BYTE_ORDER, BIG_ENDIAN);
        }
        Set::Cluster(_) => number(&mut bytes, KEY_BYTE_ORDER, BIG_ENDIAN),
        Set::Uplinks => number(&mut bytes, KEY_BYTE_ORDER, HOST_ENDIAN),
        Set::KeptSources(_) | Set::TranslatedPods(_) | Set::Hairpin(_) | Set::Backends(_) | Set::Notes => {
            number(&mut bytes, KEY_BYTE_ORDER, MIXED)
        }
        Set::Slots(family) => {
            let key = [destination(family), l4proto(), destination_port(), numgen()];
            typed(&mut bytes, &key, family);
        }
        Set::Affinity(_, family) => {
            let key = [source(family), destination(family), l4proto(), destination_port()];
            typed(&mut bytes, &key, family);
        }
    }
    number(&mut bytes, DATA_INTERVAL, 0);
    bytes
}

/// Userdata of an element or a rule with a comment.
pub(crate) fn comment_of(comment: &str) -> Vec<u8> {
    let text = cut(comment).as_bytes();
    let mut bytes = Vec::with_capacity(text.len() + 3);
    bytes.extend([0, u8::try_from(text.len() + 1).unwrap_or(u8::MAX)]);
    bytes.extend_from_slice(text);
    bytes.push(0);
    bytes
}

/// The comment in an element's userdata.
pub(crate) fn comment(userdata: &[u8]) -> Option<&str> {
    let [0, length, rest @ ..] = userdata else { return None };
    let text = rest.get(..usize::from(*length))?;
    std::str::from_utf8(text.strip_suffix(&[0])?).ok()
}

/// Userdata of the datapath's table: a comment that says whose table it is.
pub(crate) fn marker() -> Vec<u8> {
    comment_of(&format!("{MARKER}{VERSION}"))
}

/// Whether a table has the marker of this datapath, of any layout.
pub(crate) fn is_marker(userdata: &[u8]) -> bool {
    let layout = comment(userdata).and_then(|text| text.strip_prefix(MARKER));
    layout.is_some_and(|layout| layout.parse::<u32>().is_ok())
}

/// The marker, up to the version of the layout.
pub(crate) const MARKER: &str = "lb layout ";

/// Bytes of a comment; a longer one is cut.
const MAX_COMMENT: usize = 253;

/// A comment, cut to the room that there is.
pub(crate) fn cut(comment: &str) -> &str {
    prefix(comment, MAX_COMMENT)
}

fn prefix(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn typed(bytes: &mut Vec<u8>, key: &[Vec<u8>], family: Family) {
    number(bytes, KEY_BYTE_ORDER, MIXED);
    number(bytes, DATA_BYTE_ORDER, MIXED);
    put(bytes, KEY_TYPEOF, &concat(key));
    put(bytes, DATA_TYPEOF, &concat(&[destination(family), destination_port()]));
}

fn concat(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut inner = Vec::new();
    for (index, part) in (0..).zip(parts) {
        put(&mut inner, index, part);
    }
    expression(EXPR_CONCAT, &inner)
}

fn expression(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    number(&mut bytes, 0, kind);
    put(&mut bytes, 1, data);
    bytes
}

fn payload(header: u32, field: u32) -> Vec<u8> {
    let mut inner = Vec::new();
    number(&mut inner, 0, header);
    number(&mut inner, 1, field);
    expression(EXPR_PAYLOAD, &inner)
}

fn source(family: Family) -> Vec<u8> {
    match family {
        Family::V4 => payload(IP, 11),
        Family::V6 => payload(IP6, 8),
    }
}

fn destination(family: Family) -> Vec<u8> {
    match family {
        Family::V4 => payload(IP, 12),
        Family::V6 => payload(IP6, 9),
    }
}

fn destination_port() -> Vec<u8> {
    payload(TRANSPORT, 2)
}

fn l4proto() -> Vec<u8> {
    let mut inner = Vec::new();
    number(&mut inner, 0, META_L4PROTO);
    expression(EXPR_META, &inner)
}

fn numgen() -> Vec<u8> {
    const RANDOM: u32 = 1;
    let mut inner = Vec::new();
    number(&mut inner, 0, RANDOM);
    number(&mut inner, 1, NUMGEN_MODULUS);
    number(&mut inner, 2, 0);
    expression(EXPR_NUMGEN, &inner)
}

fn number(bytes: &mut Vec<u8>, kind: u8, value: u32) {
    put(bytes, kind, &value.to_ne_bytes());
}

fn put(bytes: &mut Vec<u8>, kind: u8, value: &[u8]) {
    bytes.extend([kind, u8::try_from(value.len()).unwrap_or(u8::MAX)]);
    bytes.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Taken from what nft 1.0.6 sends for the same `typeof`.
    #[test]
    fn slots_are_described_as_nft_describes_them() {
        let expected = "000400000000010400000000036000040d00000001580014000407000000010c00040c00000001040c000000010e000409000000\
            01060004100000000214000407000000010c00040b000000010402000000031a000417000000011200040100000001 04ffff0100 020400000000\
            043400040d000000012c0014000407000000010c00040c00000001040c0000000114000407000000010c00040b000000010402000000\
            060400000000"
            .replace(' ', "");
        let found: String = of_set(Set::Slots(Family::V4)).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_table_is_ours_by_its_marker_whatever_its_layout() {
        assert!(is_marker(&marker()));
        assert!(is_marker(&comment_of("lb layout 77")));
        for foreign in ["", "lb", "lb layout ", "lb layout x", "my lb layout 1"] {
            assert!(!is_marker(&comment_of(foreign)), "{foreign}");
        }
        assert!(!is_marker(&[]));
    }

    #[test]
    fn comments_survive_and_long_ones_are_cut_between_characters() {
        assert_eq!(comment(&comment_of("web")), Some("web"));
        assert_eq!(comment(&comment_of("")), Some(""));
        let long = "ä".repeat(200);
        let bytes = comment_of(&long);
        assert!(bytes.len() <= 256);
        assert_eq!(comment(&bytes), Some("ä".repeat(126).as_str()));
        assert_eq!(comment(&[1, 0]), None);
        assert_eq!(comment(&[0, 9, 1]), None);
    }
}
