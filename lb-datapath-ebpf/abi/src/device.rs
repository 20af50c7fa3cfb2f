//! Devices that programs are attached to, and addresses that have frontends.

use crate::Pod;

/// Value of `DEVICES`, whose key is the number of a device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceValue {
    /// `DEVICE_…`.
    pub kind: u8,
    /// Zero.
    pub pad: u8,
    /// Its hardware address; zero if it has none.
    pub hardware: [u8; 6],
}

/// [`DeviceValue::kind`]: pods of this node are behind the device. Their traffic, like that of the node itself, is traffic
/// from inside.
pub const DEVICE_INSIDE: u8 = 1;
/// [`DeviceValue::kind`]: the device is a port of a bridge, which takes packets to its own hardware address and to that of
/// other ports.
pub const DEVICE_PORT: u8 = 2;
/// [`DeviceValue::kind`]: packets of the device have no Ethernet header.
pub const DEVICE_BARE: u8 = 4;

/// Value of `ADDRESSES`: a packet to another port is refused.
pub const ADDRESS_REJECTS: u8 = 1;
/// Value of `ADDRESSES`: a packet to another port is dropped.
pub const ADDRESS_DROPS: u8 = 2;
/// Value of `ADDRESSES`: the node answers ICMP echo requests.
pub const ADDRESS_ANSWERS_PING: u8 = 4;

const _: () = assert!(size_of::<DeviceValue>() == 8);

// SAFETY: bytes, the sum of whose sizes is the asserted size.
unsafe impl Pod for DeviceValue {}
