//! Types of conditions in the status of services and pools.

/// Of a `Service`: whether it got every address that it asked for. The reason is a code of [`lb_ipam::Reason`].
pub const REQUEST_SATISFIED: &str = "cilium.io/IPAMRequestSatisfied";
/// The older name of [`REQUEST_SATISFIED`]: read, never written.
pub const REQUEST_SATISFIED_OLD: &str = "io.cilium/lb-ipam-request-satisfied";
/// Of a pool: whether it is out of service because it overlaps an older one, or itself.
pub const POOL_CONFLICT: &str = "cilium.io/PoolConflict";
/// Of a pool: how many addresses services can have; the number is the message.
pub const IPS_TOTAL: &str = "cilium.io/IPsTotal";
/// Of a pool: how many addresses services hold; the number is the message.
pub const IPS_USED: &str = "cilium.io/IPsUsed";
/// Of a pool: how many addresses are to be had, those included that rest; the number is the message.
pub const IPS_AVAILABLE: &str = "cilium.io/IPsAvailable";
/// Of a pool: it is out of service because something is wrong with it. Only there as long as that is so.
pub const POOL_INVALID: &str = "lb/PoolInvalid";
/// Of a pool: something may be other than meant. Only there as long as that is so.
pub const POOL_WARNING: &str = "lb/PoolWarning";
