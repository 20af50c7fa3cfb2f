//! Packets with VLAN tags: they are for the device of the VLAN. Not every kernel has such devices, so frames are injected.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Instant,
};

use lb_core::{addr::Protocol, state::Lookup};
use lb_datapath_ebpf::Reason;
use lb_testkit::packets::{Addresses, Frame, Ip, Payload, Ports, Segment};

use crate::{
    common::{PATIENCE, UPLINK, World, ip, state, turn},
    packets::{Cluster, VIPS, addr},
};

const CLIENT: [&str; 2] = ["192.0.2.2", "2001:db8::2"];
const NODE: [u8; 6] = [2, 0, 0, 0, 0, 7];

/// Sends a frame through the device `eth0` of this thread's namespace.
fn inject(frame: &[u8]) -> io::Result<()> {
    let checked = |result: i64| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: the calls take numbers, a text that ends with a zero, and bytes and an address that outlive them.
    unsafe {
        let fd = checked(libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0).into())?;
        let socket = OwnedFd::from_raw_fd(fd as i32);
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = libc::if_nametoindex(c"eth0".as_ptr()) as i32;
        let (bytes, to_len) = (frame.as_ptr().cast(), size_of_val(&to) as u32);
        let sent = libc::sendto(socket.as_raw_fd(), bytes, frame.len(), 0, (&raw const to).cast(), to_len);
        checked(sent as i64).map(|_| ())
    }
}

fn frame(family: usize, tags: &[u16]) -> Vec<u8> {
    let vip = addr(VIPS[family]);
    let ports = Ports { source: 40_000, destination: vip.port() };
    let syn = Payload::Tcp(Segment {
        ports,
        sequence: 1,
        acknowledgement: 0,
        flags: Segment::SYN,
        window: 1000,
        options: Vec::new(),
        data: Vec::new(),
    });
    let packet = Ip::new(Addresses::new(ip(CLIENT[family]), vip.ip()).unwrap(), syn);
    Frame { tags: tags.to_vec(), ..Frame::new(NODE, [2, 0, 0, 0, 0, 9], packet) }.bytes()
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes namespaces and a cgroup"]
fn a_packet_with_a_tag_is_left_to_the_device_of_the_vlan() {
    let _turn = turn();
    let world = World::new();
    world.node.ip(&format!("link set {UPLINK} address 02:00:00:00:00:07"));
    let mut cluster = Cluster::in_world(world, &[UPLINK]);
    cluster.apply(state(&VIPS.map(|vip| (addr(vip), Protocol::Tcp, &[][..])), Lookup::Random, None));
    for (family, refused) in [(0, 1), (1, 2)] {
        cluster.world.client.run(|| {
            // One tag is in the packet's metadata when the program sees it, and of two the inner one is in the packet.
            for tags in [&[7][..], &[7, 8], &[0, 7]] {
                inject(&frame(family, tags)).unwrap();
            }
            // Frames keep their order: once this one is refused, the others have been seen.
            inject(&frame(family, &[])).unwrap();
        });
        let start = Instant::now();
        while cluster.stopped().get(&Reason::PacketNoBackends).is_none_or(|count| *count < refused) {
            assert!(start.elapsed() < PATIENCE, "the frame without a tag was not refused");
            std::thread::yield_now();
        }
        assert_eq!(cluster.stopped(), [(Reason::PacketNoBackends, refused)].into());
    }
}
