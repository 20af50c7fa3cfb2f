//! What every program reads and writes besides its packet or its socket.

use lb_datapath_ebpf_abi::{
    Addr, AffinityKey, AffinityValue, BackendValue, FrontendKey, FrontendValue, Reason, SlotChunk,
};

/// What becomes of a connection that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It begins.
    Begins,
    /// It ends.
    Ends,
}

/// The maps of services, the clock and the dice.
///
/// In the kernel this is a type without fields, so that passing it costs nothing. Values are copied out: user space may
/// replace an element at any time.
pub trait Maps: Copy {
    /// The role of the datapath: one of `ROLE_…`.
    fn role(self) -> u32;
    /// The frontend at `key`.
    fn frontend(self, key: &FrontendKey) -> Option<FrontendValue>;
    /// Whether the bit of `addr` is set in `FILTER`; if it is not, no frontend, backend or flow has the address.
    fn knows(self, addr: Addr) -> bool;
    /// `ADDRESS_…` of an address that has frontends.
    fn address(self, addr: Addr) -> Option<u8>;
    /// Whether `SOURCES` has a prefix that `source` is in, under this number of a frontend.
    fn has_source(self, frontend: u32, source: Addr) -> bool;
    /// The backend with this id. A backend never changes under its id.
    fn backend(self, id: u32) -> Option<BackendValue>;
    /// Element `index` of `SLOTS`.
    fn slots(self, index: u32) -> Option<SlotChunk>;
    /// Whether `backend` takes new flows of `set`. `MEMBERS` knows that for sets of UDP backends and for sets under
    /// affinity.
    fn takes_flows(self, set: u32, backend: u32) -> bool;
    /// Whether `backend` keeps the UDP flows of `set` that it has: it takes new ones, or is draining.
    fn keeps_flows(self, set: u32, backend: u32) -> bool;
    /// The number of flows that took a turn in this set so far; adds one.
    fn next_turn(self, set: u32) -> Option<u64>;
    /// How many connections `backend` has by `LOADS`.
    fn load(self, backend: u32) -> u64;
    /// Counts a connection that begins or ends. A full map counts nothing, until user space has made room.
    fn change_load(self, backend: u32, change: Change);
    /// The affinity record of a client.
    fn affinity(self, key: &AffinityKey) -> Option<AffinityValue>;
    /// Writes the affinity record of a client. A full map evicts its least recently used record instead of failing;
    /// that client may then get another backend.
    fn remember(self, key: &AffinityKey, record: &AffinityValue);
    /// Whether `addr` is one of the node's own.
    fn is_node(self, addr: Addr) -> bool;
    /// Adds one to the counter of `reason` on this processor.
    fn count(self, reason: Reason);
    /// Now in nanoseconds, on the monotonic clock.
    fn now(self) -> u64;
    /// 32 random bits.
    fn random(self) -> u32;
}
