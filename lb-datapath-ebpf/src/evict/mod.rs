//! The end of established flows: of sockets that were sent to a backend, and of packets that are translated.
//!
//! A map does not say which of its entries belong to one frontend, so each eviction reads `SOCK_PEERS` and `CT` once,
//! for all of its frontends together.

pub(crate) mod namespaces;
mod packets;
mod sockets;

use std::collections::{BTreeMap, BTreeSet};

use lb_core::{
    addr::FrontendAddr,
    datapath::{Evicted, Eviction},
};
use lb_datapath_ebpf_abi::{Addr, Port};

pub(crate) use self::sockets::hindrance;
use crate::{
    config::EbpfConfig,
    error::EbpfError,
    state::{convert, maps::Maps},
};

/// An address and a port.
type Endpoint = (Addr, Port);

/// Which flows end, in the terms of the maps.
#[derive(Debug, Default)]
struct Wanted {
    by_frontend: BTreeMap<(Addr, Port, u8), Keeps>,
}

/// A frontend, and the backends that keep their flows.
#[derive(Debug)]
struct Keeps {
    frontend: FrontendAddr,
    backends: BTreeSet<Endpoint>,
}

impl Wanted {
    /// A frontend or a backend that the maps cannot hold has no flows in them.
    fn new(evictions: &[Eviction]) -> Self {
        let mut by_frontend = BTreeMap::new();
        for Eviction { frontend, keeps } in evictions {
            let Ok(addr) = convert::addr(frontend.ip) else { continue };
            let kept =
                keeps.iter().filter_map(|backend| Some((convert::addr(backend.ip).ok()?, Port::new(backend.port))));
            let keeps = Keeps { frontend: *frontend, backends: kept.collect() };
            by_frontend.insert((addr, Port::new(frontend.port), frontend.protocol.number()), keeps);
        }
        Self { by_frontend }
    }

    /// The frontend, if a flow through it to `backend` ends.
    fn ends(&self, (addr, port): Endpoint, protocol: u8, backend: Endpoint) -> Option<FrontendAddr> {
        let keeps = self.by_frontend.get(&(addr, port, protocol))?;
        (!keeps.backends.contains(&backend)).then_some(keeps.frontend)
    }
}

/// Ends flows. Those of packets come first: a socket that connects again must not meet an old one.
pub(crate) fn evict(maps: &Maps, config: &EbpfConfig, evictions: &[Eviction]) -> Result<Evicted, EbpfError> {
    let wanted = Wanted::new(evictions);
    let flows = packets::end(maps, &wanted)?;
    let (sockets, remaining) = sockets::end(maps, &wanted, config)?;
    Ok(Evicted { sockets, flows, remaining })
}

#[cfg(test)]
mod tests {
    use lb_core::addr::{BackendAddr, Protocol};
    use lb_datapath_ebpf_abi::map_v4;

    use super::*;

    #[test]
    fn a_flow_ends_unless_its_backend_is_named_or_its_frontend_is_not() {
        let frontend = FrontendAddr::new([10, 96, 0, 1].into(), 53, Protocol::Udp);
        let kept = BackendAddr::new([10, 244, 0, 2].into(), 5353, Protocol::Udp);
        let wanted = Wanted::new(&[Eviction { frontend, keeps: [kept].into() }]);
        let vip = (map_v4([10, 96, 0, 1]), Port::new(53));
        let backend = |last, port| (map_v4([10, 244, 0, last]), Port::new(port));
        assert_eq!(wanted.ends(vip, 17, backend(1, 5353)), Some(frontend));
        assert_eq!(wanted.ends(vip, 17, backend(2, 5353)), None, "it is kept");
        assert_eq!(wanted.ends(vip, 17, backend(2, 5354)), Some(frontend), "another port is another backend");
        assert_eq!(wanted.ends(vip, 6, backend(1, 5353)), None, "another protocol");
        assert_eq!(wanted.ends((map_v4([10, 96, 0, 2]), Port::new(53)), 17, backend(1, 5353)), None);
    }
}
