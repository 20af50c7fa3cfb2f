//! Flows whose packets are translated.

use lb_datapath_ebpf_abi::{CT_REPLY, CtKey, CtValue, Pod};

use super::Wanted;
use crate::{error::EbpfError, state::maps::Maps};

/// Removes both entries of each flow that ends, and says how many flows there were.
///
/// The entry of the client's packets goes first. Without it no packet brings the other one back, and a packet of the
/// client is one that starts a flow: a backend that knows nothing of it answers with a reset, and a frontend without
/// backends does so itself.
pub(super) fn end(maps: &Maps, wanted: &Wanted) -> Result<u64, EbpfError> {
    let failed = |what| move |source| EbpfError::Map { name: "CT", what, source };
    let mut ended = 0;
    let mut read = |key: &[u8], value: &[u8]| {
        let Some((key, value)) = CtKey::from_bytes(key).zip(CtValue::from_bytes(value)) else { return Ok(()) };
        if !is_ended(wanted, &key, &value) {
            return Ok(());
        }
        ended += u64::from(maps.flows().remove(key.bytes())?);
        maps.flows().remove(value.mirror(key.protocol).bytes())?;
        Ok(())
    };
    maps.flows().each(&mut read).map_err(failed("reading"))?;
    Ok(ended)
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
