//! Keys and values of elements as bytes, and back. Each part is padded to whole registers of four bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_core::addr::{Family, FrontendAddr, Protocol, Scope};

use crate::{
    netfilter::NFT_SET_ELEM_INTERVAL_END,
    nftables::table::{
        choice::{CHOICE, Choice},
        layout::{Bound, Device, Endpoint, INTERNAL, Key, Note, Set, first_slot},
    },
};

/// The bytes of a key, each part padded to whole registers.
pub(crate) fn key_bytes(key: &Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    match *key {
        Key::Frontend(addr) | Key::KeptSource(addr) | Key::TranslatedPods(addr) => frontend(&mut bytes, &addr),
        Key::Uplink(Device(name)) => bytes.extend(name),
        Key::Verdict(_, choice) => bytes.extend(choice_bytes(choice)),
        Key::Address(ip) => address(&mut bytes, ip),
        Key::Slot(addr, slot) | Key::Block(addr, slot) => {
            frontend(&mut bytes, &addr);
            bytes.extend((slot | first_slot(addr.scope)).to_ne_bytes());
        }
        Key::Record(client, addr) => {
            address(&mut bytes, client);
            frontend(&mut bytes, &addr);
        }
        Key::Bound(ip, _) => address(&mut bytes, ip),
        Key::Hairpin(ip) => {
            address(&mut bytes, ip);
            address(&mut bytes, ip);
        }
        Key::Backend(ip, number) => {
            address(&mut bytes, ip);
            port(&mut bytes, number);
        }
        Key::Note(note, number) => {
            bytes.extend((note as u32).to_ne_bytes());
            bytes.extend(number.to_ne_bytes());
        }
    }
    bytes
}

/// The bytes of a choice that is a number.
pub(crate) fn choice_bytes(choice: Choice) -> [u8; CHOICE] {
    let mut bytes = [0; CHOICE];
    for (part, word) in bytes.chunks_exact_mut(4).zip(choice.words()) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// The bytes of backends, one behind the other.
pub(crate) fn endpoint_bytes(endpoints: &[Endpoint]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    for &(ip, number) in endpoints {
        address(&mut bytes, ip);
        port(&mut bytes, number);
    }
    bytes
}

fn address(bytes: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => bytes.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
    }
}

fn frontend(bytes: &mut Vec<u8>, addr: &FrontendAddr) {
    address(bytes, addr.ip);
    bytes.extend([addr.protocol.number(), 0, 0, 0]);
    port(bytes, addr.port);
}

fn port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
}

/// The key in the bytes of one of `set`; that of the start of a range in a set of ranges.
pub(crate) fn key_of(set: Set, bytes: &[u8]) -> Option<Key> {
    key(set, &mut Cursor(bytes), 0)
}

/// The key that `bytes` stand for in an element of `set` with these flags (`NFT_SET_ELEM_*`).
pub(crate) fn key(set: Set, bytes: &mut Cursor<'_>, flags: u32) -> Option<Key> {
    Some(match set {
        Set::Frontends(scope, family) => Key::Frontend(FrontendAddr { scope, ..bytes.frontend(family)? }),
        Set::Picks(family) => Key::Verdict(family, bytes.choice(family)?),
        Set::Addresses(family) => Key::Address(bytes.ip(family)?),
        Set::Slots(family) => {
            let (addr, slot) = bytes.slot(family)?;
            Key::Slot(addr, slot)
        }
        Set::Tables(family) => {
            let (addr, slot) = bytes.slot(family)?;
            Key::Block(addr, slot)
        }
        Set::Affinity(scope, family) => {
            Key::Record(bytes.ip(family)?, FrontendAddr { scope, ..bytes.frontend(family)? })
        }
        Set::Cluster(family) => {
            let end = flags & NFT_SET_ELEM_INTERVAL_END != 0;
            Key::Bound(bytes.ip(family)?, if end { Bound::End } else { Bound::Start })
        }
        Set::Uplinks => Key::Uplink(Device(bytes.take()?)),
        Set::KeptSources(family) => Key::KeptSource(bytes.frontend(family)?),
        Set::TranslatedPods(family) => Key::TranslatedPods(bytes.frontend(family)?),
        Set::Hairpin(family) => Key::Hairpin(bytes.ip(family)?),
        Set::Backends(family) => {
            let (ip, port) = bytes.endpoint(family)?;
            Key::Backend(ip, port)
        }
        Set::Notes => Key::Note(Note::from_number(bytes.host()?)?, bytes.host()?),
    })
}

/// Reads a key or a value register by register.
pub(crate) struct Cursor<'a>(pub(crate) &'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn host(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn ip(&mut self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.take::<4>().map(|bytes| Ipv4Addr::from(bytes).into()),
            Family::V6 => self.take::<16>().map(|bytes| Ipv6Addr::from(bytes).into()),
        }
    }

    fn port(&mut self) -> Option<u16> {
        let [high, low, ..] = self.take::<4>()?;
        Some(u16::from_be_bytes([high, low]))
    }

    pub(crate) fn endpoint(&mut self, family: Family) -> Option<Endpoint> {
        Some((self.ip(family)?, self.port()?))
    }

    pub(crate) fn choice(&mut self, family: Family) -> Option<Choice> {
        let words = [self.host()?, self.host()?, self.host()?, self.host()?];
        Choice::from_words(family, words)
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let [number, ..] = self.take::<4>()?;
        Protocol::from_number(number)
    }

    /// A frontend of either scope and the number of one of its slots.
    fn slot(&mut self, family: Family) -> Option<(FrontendAddr, u32)> {
        let (addr, number) = (self.frontend(family)?, self.host()?);
        let scope = if number & INTERNAL == 0 { Scope::External } else { Scope::Internal };
        Some((FrontendAddr { scope, ..addr }, number & !INTERNAL))
    }

    fn frontend(&mut self, family: Family) -> Option<FrontendAddr> {
        let ip = self.ip(family)?;
        let protocol = self.protocol()?;
        Some(FrontendAddr::new(ip, self.port()?, protocol))
    }
}
