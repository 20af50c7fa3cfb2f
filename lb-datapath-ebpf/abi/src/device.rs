//! Devices that programs are attached to, and addresses that have frontends.

/// Value of `DEVICES`, whose key is the number of a device: pods of this node are behind it. Their traffic, like that of
/// the node itself, is traffic from inside.
pub const DEVICE_INSIDE: u8 = 1;
/// Value of `DEVICES`: the device is a port of a bridge, which takes packets to its own hardware address and to that of
/// other ports.
pub const DEVICE_PORT: u8 = 2;

/// Value of `ADDRESSES`: a packet to another port is refused.
pub const ADDRESS_REJECTS: u8 = 1;
/// Value of `ADDRESSES`: a packet to another port is dropped.
pub const ADDRESS_DROPS: u8 = 2;
/// Value of `ADDRESSES`: the node answers ICMP echo requests.
pub const ADDRESS_ANSWERS_PING: u8 = 4;
