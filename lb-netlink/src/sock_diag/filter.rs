//! Filters that the kernel runs on each socket of a dump.

use std::net::{IpAddr, SocketAddr};

use nix::libc;

/// Most peers of one filter: the distance of a jump is a 16-bit number, and a peer takes at most 32 bytes.
pub(super) const MAX_PEERS: usize = 1024;

/// Operations of `struct inet_diag_bc_op`.
///
/// <https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/inet_diag.h>
const JUMP: u8 = 1;
const PEER: u8 = 8;
/// Size of an operation, and of a jump, which has no operand.
const OP: usize = 4;
/// Size of `struct inet_diag_hostcond` without the address.
const CONDITION: usize = 8;

/// A filter that accepts a socket with one of `peers`, of which there are at most [`MAX_PEERS`].
///
/// A program accepts a socket if it ends exactly behind its last operation, and refuses it if it jumps beyond
/// ([`inet_diag_bc_run`]). Each peer is a condition with a jump to the end behind it; if the condition does not hold,
/// the next one follows.
///
/// [`inet_diag_bc_run`]: https://elixir.bootlin.com/linux/v6.18/source/net/ipv4/inet_diag.c
pub(super) fn bytecode(peers: &[SocketAddr]) -> Vec<u8> {
    let mut program = Vec::new();
    // From the end, where each jump leads to.
    for (position, peer) in peers.iter().rev().enumerate() {
        let address = match peer.ip() {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let block = OP + CONDITION + address.len();
        let is_last = position == 0;
        let otherwise = block + OP;
        let mut piece = operation(PEER, block, otherwise);
        let family = if peer.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        piece.extend([family as u8, address.len() as u8 * 8, 0, 0]);
        piece.extend(i32::from(peer.port()).to_ne_bytes());
        piece.extend(address);
        if !is_last {
            piece.extend(operation(JUMP, OP, program.len() + OP));
        }
        program.splice(0..0, piece);
    }
    program
}

/// An operation, and how many bytes further the next one is if it holds, and if it does not.
fn operation(code: u8, yes: usize, no: usize) -> Vec<u8> {
    let [low, high] = (no as u16).to_ne_bytes();
    vec![code, yes as u8, low, high]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel makes of a filter for a socket with this peer.
    fn accepts(program: &[u8], peer: SocketAddr) -> bool {
        let mut rest = program.len() as i64;
        while rest > 0 {
            let op = &program[program.len() - rest as usize..];
            let no = u16::from_ne_bytes([op[2], op[3]]);
            let (family, bits) = (i32::from(op[4]), usize::from(op[5]));
            let holds = op[0] == PEER && {
                let mapped = match peer.ip() {
                    IpAddr::V6(ip) if family == libc::AF_INET => ip.to_ipv4_mapped().map(IpAddr::V4),
                    ip => Some(ip),
                };
                let octets = mapped.map(|ip| match ip {
                    IpAddr::V4(ip) => ip.octets().to_vec(),
                    IpAddr::V6(ip) => ip.octets().to_vec(),
                });
                let port = i32::from_ne_bytes([op[8], op[9], op[10], op[11]]);
                octets.is_some_and(|octets| octets == op[12..12 + bits / 8]) && port == i32::from(peer.port())
            };
            rest -= if holds { i64::from(op[1]) } else { i64::from(no) };
        }
        rest == 0
    }

    fn peers(count: u16) -> Vec<SocketAddr> {
        let address = |n: u16| match n % 3 {
            0 => format!("[fd00::{n:x}]:53"),
            1 => format!("10.0.{}.{}:53", n >> 8, n & 0xff),
            _ => format!("10.0.{}.{}:{n}", n >> 8, n & 0xff),
        };
        (0..count).map(|n| address(n).parse().unwrap()).collect()
    }

    #[test]
    fn a_filter_accepts_each_of_its_peers_and_nobody_else() {
        for count in [1, 2, 3, 50, MAX_PEERS as u16] {
            let peers = peers(count);
            let program = bytecode(&peers);
            assert!(program.len() <= usize::from(u16::MAX), "a jump leads to the end");
            assert!(peers.iter().all(|&peer| accepts(&program, peer)), "{count}");
            for other in ["10.0.0.1:54", "10.1.0.1:53", "[fd00::1]:53", "[fd00::]:54"] {
                assert!(!accepts(&program, other.parse().unwrap()), "{count} {other}");
            }
        }
    }

    #[test]
    fn an_ipv4_peer_stands_for_the_mapped_one() {
        let program = bytecode(&["10.0.0.1:53".parse().unwrap()]);
        assert!(accepts(&program, "[::ffff:10.0.0.1]:53".parse().unwrap()));
        assert!(!accepts(&program, "[::fffe:10.0.0.1]:53".parse().unwrap()));
    }
}
