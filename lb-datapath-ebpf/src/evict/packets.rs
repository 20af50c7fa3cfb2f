//! Flows whose packets are translated.

use std::io;

use lb_datapath_ebpf_abi::{CT_CUT, CT_REPLY, CtKey, CtValue, Pod};

use super::Wanted;
use crate::{error::EbpfError, state::maps::Maps, sys::RawMap};

/// Cuts each flow that ends, in both entries, and says how many flows there were: the programs answer the next segment of
/// either end with a reset, and let the client's next datagram start another flow. A flow that is over already is left.
///
/// A flow that is established meanwhile moves from `CT` to the other table, which is read last.
pub(super) fn end(maps: &Maps, wanted: &Wanted) -> Result<u64, EbpfError> {
    let mut ended = 0;
    for (name, table) in maps.flows().into_iter().rev() {
        let failed = |what| move |source| EbpfError::Map { name, what, source };
        let mut read = |key: &[u8], value: &[u8]| {
            let Some((key, value)) = CtKey::from_bytes(key).zip(CtValue::from_bytes(value)) else { return Ok(()) };
            if is_ended(wanted, &key, &value) {
                ended += u64::from(cut(table, &key, value)?);
            }
            Ok(())
        };
        table.each(&mut read).map_err(failed("cutting flows of"))?;
    }
    Ok(ended)
}

/// Cuts the flow with this entry of its client; `false` if it is over already.
fn cut(table: &RawMap, key: &CtKey, value: CtValue) -> io::Result<bool> {
    let other = value.mirror(key.protocol);
    let back = table.lookup(other.bytes())?.as_deref().and_then(CtValue::from_bytes);
    // Another flow may have the tuple by now.
    let back = back.filter(|back| back.mirror(key.protocol) == *key);
    if value.is_closed() || back.is_some_and(|back| back.is_closed()) {
        return Ok(false);
    }
    for (key, value) in back.map(|back| (other, back)).into_iter().chain([(*key, value)]) {
        let value = CtValue { flags: value.flags | CT_CUT, ..value };
        table.update(key.bytes(), value.bytes()).map_err(|stopped| stopped.cause)?;
    }
    Ok(true)
}

/// Whether an entry is one of a client's packets, and its flow ends.
fn is_ended(wanted: &Wanted, key: &CtKey, value: &CtValue) -> bool {
    let backend = (value.dst, value.dport);
    value.flags & CT_REPLY == 0 && wanted.ends((key.dst, key.dport), key.protocol, backend).is_some()
}

#[cfg(test)]
mod tests {
    use lb_core::{
        addr::{FrontendAddr, Protocol},
        datapath::Eviction,
    };
    use lb_datapath_ebpf_abi::{Port, map_v4};

    use super::*;

    #[test]
    fn a_flow_is_known_by_the_entry_of_its_client() {
        let (client, vip, backend) = (map_v4([192, 0, 2, 9]), map_v4([10, 96, 0, 1]), map_v4([10, 244, 0, 1]));
        let frontend = FrontendAddr::new([10, 96, 0, 1].into(), 80, Protocol::Tcp);
        let wanted = Wanted::new(&[Eviction { frontend, keeps: [].into() }]);
        let key = |src, dst, dport| CtKey {
            src,
            dst,
            sport: Port::new(4000),
            dport: Port::new(dport),
            protocol: 6,
            pad: [0; 3],
        };
        let there = CtValue { src: client, dst: backend, dport: Port::new(8080), ..CtValue::EMPTY };
        assert!(is_ended(&wanted, &key(client, vip, 80), &there));
        assert!(!is_ended(&wanted, &key(client, vip, 81), &there));
        let back = CtValue { src: vip, dst: client, flags: CT_REPLY, ..CtValue::EMPTY };
        assert!(!is_ended(&wanted, &key(backend, client, 4000), &back));
        // A client that has the address of the frontend is another one.
        assert!(!is_ended(&wanted, &key(backend, vip, 80), &back));
    }
}
