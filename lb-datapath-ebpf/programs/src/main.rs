//! The programs that the kernel calls.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(not(target_arch = "bpf"), expect(dead_code, reason = "the host only checks types"))]

mod kernel;

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr, classifier},
    programs::{SockAddrContext, SockContext, TcContext},
};

use lb_datapath_ebpf_programs::{
    sock::{self, Hook},
    tc::ingress,
};

use crate::kernel::{
    Kernel,
    skb::KernelSkb,
    sock::{BoundSock, KernelSock, PlainSock},
};

/// IPv4 and IPv4-mapped `connect`.
#[cgroup_sock_addr(connect4)]
fn lb_connect4(ctx: SockAddrContext) -> i32 {
    sock::connect(Kernel, KernelSock { ctx: ctx.sock_addr, hook: Hook::V4 })
}

/// IPv6 `connect`.
#[cgroup_sock_addr(connect6)]
fn lb_connect6(ctx: SockAddrContext) -> i32 {
    sock::connect(Kernel, KernelSock { ctx: ctx.sock_addr, hook: Hook::V6 })
}

/// IPv4 `sendmsg` with an address.
#[cgroup_sock_addr(sendmsg4)]
fn lb_sendmsg4(ctx: SockAddrContext) -> i32 {
    sock::sendmsg(Kernel, KernelSock { ctx: ctx.sock_addr, hook: Hook::V4 })
}

/// IPv6 `sendmsg` with an address.
#[cgroup_sock_addr(sendmsg6)]
fn lb_sendmsg6(ctx: SockAddrContext) -> i32 {
    sock::sendmsg(Kernel, KernelSock { ctx: ctx.sock_addr, hook: Hook::V6 })
}

/// IPv4 `recvmsg`.
#[cgroup_sock_addr(recvmsg4)]
fn lb_recvmsg4(ctx: SockAddrContext) -> i32 {
    sock::restore(Kernel, KernelSock { ctx: ctx.sock_addr, hook: Hook::V4 })
}

/// IPv6 `recvmsg`.
#[cgroup_sock_addr(recvmsg6)]
fn lb_recvmsg6(ctx: SockAddrContext) -> i32 {
    sock::restore(Kernel, KernelSock { ctx: ctx.sock_addr, hook: Hook::V6 })
}

/// IPv4 `getpeername`.
#[cgroup_sock_addr(getpeername4)]
fn lb_getpeername4(ctx: SockAddrContext) -> i32 {
    sock::restore(Kernel, KernelSock { ctx: ctx.sock_addr, hook: Hook::V4 })
}

/// IPv6 `getpeername`.
#[cgroup_sock_addr(getpeername6)]
fn lb_getpeername6(ctx: SockAddrContext) -> i32 {
    sock::restore(Kernel, KernelSock { ctx: ctx.sock_addr, hook: Hook::V6 })
}

/// IPv4 `bind`, once the port is chosen.
#[cgroup_sock(post_bind4)]
fn lb_post_bind4(ctx: SockContext) -> i32 {
    sock::bind(Kernel, BoundSock { ctx: ctx.sock, hook: Hook::V4 })
}

/// IPv6 `bind`, once the port is chosen.
#[cgroup_sock(post_bind6)]
fn lb_post_bind6(ctx: SockContext) -> i32 {
    sock::bind(Kernel, BoundSock { ctx: ctx.sock, hook: Hook::V6 })
}

/// The end of a socket.
#[cgroup_sock(sock_release)]
fn lb_sock_release(ctx: SockContext) -> i32 {
    sock::release(Kernel, PlainSock(ctx.sock))
}

/// Packets that come in through a device.
#[classifier]
fn lb_ingress(ctx: TcContext) -> i32 {
    ingress::ingress(Kernel, KernelSkb(ctx.skb.skb))
}

/// Packets that leave through a device.
#[classifier]
fn lb_egress(ctx: TcContext) -> i32 {
    ingress::egress(Kernel, KernelSkb(ctx.skb.skb))
}

/// What the kernel lets these programs use depends on it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
