//! Numbers of netfilter's netlink, by the names in the kernel's headers.
//!
//! `libc` has the numbers of messages and most values, but no attribute types: those are here, in the order of
//! [`linux/netfilter/nf_tables.h`][nf_tables] and [`nfnetlink_conntrack.h`][conntrack].
//!
//! [nf_tables]: https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/netfilter/nf_tables.h
//! [conntrack]: https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/netfilter/nfnetlink_conntrack.h

use lb_core::addr::Family;
use nix::libc;

/// `struct nfgenmsg`, which every message begins with: family, version 0, resource id.
pub(crate) const fn nfgenmsg(family: u8, resource: u16) -> [u8; NFGENMSG] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// Length of `struct nfgenmsg`.
pub(crate) const NFGENMSG: usize = 4;

/// The attributes of a message, which follow its `struct nfgenmsg`.
pub(crate) fn body(payload: &[u8]) -> lb_netlink::Attributes<'_> {
    lb_netlink::attributes(payload.get(NFGENMSG..).unwrap_or_default())
}

pub(crate) const NFPROTO_UNSPEC: u8 = libc::NFPROTO_UNSPEC as u8;
pub(crate) const NFPROTO_INET: u8 = libc::NFPROTO_INET as u8;
pub(crate) const NFPROTO_IPV4: u8 = libc::NFPROTO_IPV4 as u8;
pub(crate) const NFPROTO_IPV6: u8 = libc::NFPROTO_IPV6 as u8;

/// `NFPROTO_*` of an address family.
pub(crate) const fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

pub(crate) const NFNL_SUBSYS_NFTABLES: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
pub(crate) const NFNL_MSG_BATCH_BEGIN: u16 = libc::NFNL_MSG_BATCH_BEGIN as u16;
pub(crate) const NFNL_MSG_BATCH_END: u16 = libc::NFNL_MSG_BATCH_END as u16;
pub(crate) const NFNLGRP_NFTABLES: u32 = libc::NFNLGRP_NFTABLES as u32;

/// Type of a message of nf_tables in the netlink header.
const fn nf_tables(message: i32) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message as u16
}

pub(crate) const NFT_MSG_NEWTABLE: u16 = nf_tables(libc::NFT_MSG_NEWTABLE);
pub(crate) const NFT_MSG_GETTABLE: u16 = nf_tables(libc::NFT_MSG_GETTABLE);
pub(crate) const NFT_MSG_DELTABLE: u16 = nf_tables(libc::NFT_MSG_DELTABLE);
pub(crate) const NFT_MSG_NEWCHAIN: u16 = nf_tables(libc::NFT_MSG_NEWCHAIN);
pub(crate) const NFT_MSG_GETCHAIN: u16 = nf_tables(libc::NFT_MSG_GETCHAIN);
pub(crate) const NFT_MSG_DELCHAIN: u16 = nf_tables(libc::NFT_MSG_DELCHAIN);
pub(crate) const NFT_MSG_NEWRULE: u16 = nf_tables(libc::NFT_MSG_NEWRULE);
pub(crate) const NFT_MSG_GETRULE: u16 = nf_tables(libc::NFT_MSG_GETRULE);
pub(crate) const NFT_MSG_DELRULE: u16 = nf_tables(libc::NFT_MSG_DELRULE);
pub(crate) const NFT_MSG_NEWSET: u16 = nf_tables(libc::NFT_MSG_NEWSET);
pub(crate) const NFT_MSG_GETSET: u16 = nf_tables(libc::NFT_MSG_GETSET);
pub(crate) const NFT_MSG_DELSET: u16 = nf_tables(libc::NFT_MSG_DELSET);
pub(crate) const NFT_MSG_NEWSETELEM: u16 = nf_tables(libc::NFT_MSG_NEWSETELEM);
pub(crate) const NFT_MSG_GETSETELEM: u16 = nf_tables(libc::NFT_MSG_GETSETELEM);
pub(crate) const NFT_MSG_DELSETELEM: u16 = nf_tables(libc::NFT_MSG_DELSETELEM);
pub(crate) const NFT_MSG_NEWOBJ: u16 = nf_tables(libc::NFT_MSG_NEWOBJ);
/// Ends the notifications of a transaction.
pub(crate) const NFT_MSG_NEWGEN: u16 = nf_tables(libc::NFT_MSG_NEWGEN);
pub(crate) const NFT_MSG_GETGEN: u16 = nf_tables(libc::NFT_MSG_GETGEN);
/// Linux 6.3. No older message removes an affinity record that may run out before the transaction is committed:
/// `NFT_MSG_DELSETELEM` is refused for an element that is gone, and so is adding the element first where a packet has
/// put another backend there.
pub(crate) const NFT_MSG_DESTROYSETELEM: u16 = nf_tables(30);

pub(crate) const NFTA_LIST_ELEM: u16 = 1;

pub(crate) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(crate) const NFTA_HOOK_PRIORITY: u16 = 2;

pub(crate) const NFTA_TABLE_NAME: u16 = 1;
pub(crate) const NFTA_TABLE_FLAGS: u16 = 2;
pub(crate) const NFTA_TABLE_HANDLE: u16 = 4;
pub(crate) const NFTA_TABLE_USERDATA: u16 = 6;
pub(crate) const NFT_TABLE_F_DORMANT: u32 = 1;

pub(crate) const NFTA_CHAIN_TABLE: u16 = 1;
pub(crate) const NFTA_CHAIN_NAME: u16 = 3;
pub(crate) const NFTA_CHAIN_HOOK: u16 = 4;
pub(crate) const NFTA_CHAIN_POLICY: u16 = 5;
pub(crate) const NFTA_CHAIN_TYPE: u16 = 7;

pub(crate) const NFTA_RULE_TABLE: u16 = 1;
pub(crate) const NFTA_RULE_CHAIN: u16 = 2;
pub(crate) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(crate) const NFTA_RULE_POSITION: u16 = 6;
pub(crate) const NFTA_RULE_USERDATA: u16 = 7;

pub(crate) const NFTA_SET_TABLE: u16 = 1;
pub(crate) const NFTA_SET_NAME: u16 = 2;
pub(crate) const NFTA_SET_FLAGS: u16 = 3;
pub(crate) const NFTA_SET_KEY_TYPE: u16 = 4;
pub(crate) const NFTA_SET_KEY_LEN: u16 = 5;
pub(crate) const NFTA_SET_DATA_TYPE: u16 = 6;
pub(crate) const NFTA_SET_DATA_LEN: u16 = 7;
pub(crate) const NFTA_SET_DESC: u16 = 9;
pub(crate) const NFTA_SET_ID: u16 = 10;
pub(crate) const NFTA_SET_USERDATA: u16 = 13;
pub(crate) const NFTA_SET_DESC_SIZE: u16 = 1;
pub(crate) const NFT_SET_INTERVAL: u32 = libc::NFT_SET_INTERVAL as u32;
pub(crate) const NFT_SET_MAP: u32 = libc::NFT_SET_MAP as u32;
pub(crate) const NFT_SET_TIMEOUT: u32 = libc::NFT_SET_TIMEOUT as u32;
/// Packets add elements.
pub(crate) const NFT_SET_EVAL: u32 = libc::NFT_SET_EVAL as u32;
/// Data type of the values of a verdict map.
pub(crate) const NFT_DATA_VERDICT: u32 = libc::NFT_DATA_VERDICT;

pub(crate) const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub(crate) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(crate) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;

pub(crate) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(crate) const NFTA_SET_ELEM_DATA: u16 = 2;
pub(crate) const NFTA_SET_ELEM_FLAGS: u16 = 3;
pub(crate) const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
pub(crate) const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
pub(crate) const NFTA_SET_ELEM_USERDATA: u16 = 6;
pub(crate) const NFT_SET_ELEM_INTERVAL_END: u32 = libc::NFT_SET_ELEM_INTERVAL_END as u32;

pub(crate) const NFTA_DATA_VALUE: u16 = 1;
pub(crate) const NFTA_DATA_VERDICT: u16 = 2;
pub(crate) const NFTA_VERDICT_CODE: u16 = 1;
pub(crate) const NFTA_VERDICT_CHAIN: u16 = 2;
pub(crate) const NF_DROP: u32 = libc::NF_DROP as u32;
pub(crate) const NF_ACCEPT: u32 = libc::NF_ACCEPT as u32;
pub(crate) const NFT_GOTO: u32 = libc::NFT_GOTO.cast_unsigned();

pub(crate) const NFTA_GEN_ID: u16 = 1;
pub(crate) const NFTA_GEN_PROC_PID: u16 = 2;

pub(crate) const NFTA_EXPR_NAME: u16 = 1;
pub(crate) const NFTA_EXPR_DATA: u16 = 2;

pub(crate) const NFT_REG_VERDICT: u8 = libc::NFT_REG_VERDICT as u8;
/// The first register of four bytes.
pub(crate) const NFT_REG32_00: u8 = libc::NFT_REG32_00 as u8;

pub(crate) const NFTA_META_DREG: u16 = 1;
pub(crate) const NFTA_META_KEY: u16 = 2;
pub(crate) const NFT_META_MARK: u32 = libc::NFT_META_MARK as u32;
pub(crate) const NFT_META_IIFNAME: u32 = libc::NFT_META_IIFNAME as u32;
pub(crate) const NFT_META_OIF: u32 = libc::NFT_META_OIF as u32;
pub(crate) const NFT_META_NFPROTO: u32 = libc::NFT_META_NFPROTO as u32;
pub(crate) const NFT_META_L4PROTO: u32 = libc::NFT_META_L4PROTO as u32;

pub(crate) const NFTA_PAYLOAD_DREG: u16 = 1;
pub(crate) const NFTA_PAYLOAD_BASE: u16 = 2;
pub(crate) const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub(crate) const NFTA_PAYLOAD_LEN: u16 = 4;
pub(crate) const NFT_PAYLOAD_NETWORK_HEADER: u32 = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
pub(crate) const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32;

pub(crate) const NFTA_CT_DREG: u16 = 1;
pub(crate) const NFTA_CT_KEY: u16 = 2;
pub(crate) const NFTA_CT_DIRECTION: u16 = 3;
pub(crate) const NFT_CT_STATE: u32 = libc::NFT_CT_STATE as u32;
/// Conntrack can make nothing of the packet, so that it belongs to no connection.
pub(crate) const NF_CT_STATE_INVALID: u32 = 1;
pub(crate) const NFT_CT_STATUS: u32 = libc::NFT_CT_STATUS as u32;
pub(crate) const NFT_CT_PROTO_DST: u32 = libc::NFT_CT_PROTO_DST as u32;
pub(crate) const NFT_CT_DST_IP: u32 = libc::NFT_CT_DST_IP as u32;
pub(crate) const NFT_CT_DST_IP6: u32 = libc::NFT_CT_DST_IP6 as u32;
pub(crate) const IP_CT_DIR_ORIGINAL: u8 = 0;

pub(crate) const NFTA_OBJ_TABLE: u16 = 1;
pub(crate) const NFTA_OBJ_NAME: u16 = 2;
pub(crate) const NFTA_OBJ_TYPE: u16 = 3;
pub(crate) const NFTA_OBJ_DATA: u16 = 4;
pub(crate) const NFT_OBJECT_CT_TIMEOUT: u32 = 7;
pub(crate) const NFTA_CT_TIMEOUT_L4PROTO: u16 = 2;
pub(crate) const NFTA_CT_TIMEOUT_DATA: u16 = 3;
/// In seconds; from [`nfnetlink_cttimeout.h`].
///
/// [`nfnetlink_cttimeout.h`]: https://elixir.bootlin.com/linux/v6.18/source/include/uapi/linux/netfilter/nfnetlink_cttimeout.h
pub(crate) const CTA_TIMEOUT_TCP_CLOSE_WAIT: u16 = 5;

pub(crate) const NFTA_OBJREF_IMM_TYPE: u16 = 1;
pub(crate) const NFTA_OBJREF_IMM_NAME: u16 = 2;

pub(crate) const NFTA_CMP_SREG: u16 = 1;
pub(crate) const NFTA_CMP_OP: u16 = 2;
pub(crate) const NFTA_CMP_DATA: u16 = 3;
pub(crate) const NFT_CMP_EQ: u32 = libc::NFT_CMP_EQ as u32;
pub(crate) const NFT_CMP_NEQ: u32 = libc::NFT_CMP_NEQ as u32;

pub(crate) const NFTA_BITWISE_SREG: u16 = 1;
pub(crate) const NFTA_BITWISE_DREG: u16 = 2;
pub(crate) const NFTA_BITWISE_LEN: u16 = 3;
pub(crate) const NFTA_BITWISE_MASK: u16 = 4;
pub(crate) const NFTA_BITWISE_XOR: u16 = 5;

pub(crate) const NFTA_IMMEDIATE_DREG: u16 = 1;
pub(crate) const NFTA_IMMEDIATE_DATA: u16 = 2;

pub(crate) const NFTA_NG_DREG: u16 = 1;
pub(crate) const NFTA_NG_MODULUS: u16 = 2;
pub(crate) const NFTA_NG_TYPE: u16 = 3;
pub(crate) const NFTA_NG_OFFSET: u16 = 4;
pub(crate) const NFT_NG_INCREMENTAL: u32 = libc::NFT_NG_INCREMENTAL as u32;
pub(crate) const NFT_NG_RANDOM: u32 = libc::NFT_NG_RANDOM as u32;

pub(crate) const NFTA_HASH_SREG: u16 = 1;
pub(crate) const NFTA_HASH_DREG: u16 = 2;
pub(crate) const NFTA_HASH_LEN: u16 = 3;
pub(crate) const NFTA_HASH_MODULUS: u16 = 4;
pub(crate) const NFTA_HASH_SEED: u16 = 5;
pub(crate) const NFTA_HASH_OFFSET: u16 = 6;
pub(crate) const NFTA_HASH_TYPE: u16 = 7;
pub(crate) const NFT_HASH_JENKINS: u32 = 0;

pub(crate) const NFTA_LOOKUP_SET: u16 = 1;
pub(crate) const NFTA_LOOKUP_SREG: u16 = 2;
pub(crate) const NFTA_LOOKUP_DREG: u16 = 3;
pub(crate) const NFTA_LOOKUP_FLAGS: u16 = 5;
pub(crate) const NFT_LOOKUP_F_INV: u32 = libc::NFT_LOOKUP_F_INV as u32;

pub(crate) const NFTA_DYNSET_SET_NAME: u16 = 1;
pub(crate) const NFTA_DYNSET_OP: u16 = 3;
pub(crate) const NFTA_DYNSET_SREG_KEY: u16 = 4;
pub(crate) const NFTA_DYNSET_SREG_DATA: u16 = 5;
pub(crate) const NFTA_DYNSET_TIMEOUT: u16 = 6;
pub(crate) const NFT_DYNSET_OP_UPDATE: u32 = libc::NFT_DYNSET_OP_UPDATE as u32;

pub(crate) const NFTA_NAT_TYPE: u16 = 1;
pub(crate) const NFTA_NAT_FAMILY: u16 = 2;
pub(crate) const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
pub(crate) const NFTA_NAT_REG_ADDR_MAX: u16 = 4;
pub(crate) const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
pub(crate) const NFTA_NAT_REG_PROTO_MAX: u16 = 6;
pub(crate) const NFTA_NAT_FLAGS: u16 = 7;
pub(crate) const NFT_NAT_DNAT: u32 = libc::NFT_NAT_DNAT as u32;
pub(crate) const NF_NAT_RANGE_MAP_IPS: u32 = 1;
pub(crate) const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
pub(crate) const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 0x10;

pub(crate) const NFTA_MASQ_FLAGS: u16 = 1;

pub(crate) const NFTA_REDIR_REG_PROTO_MIN: u16 = 1;
pub(crate) const NFTA_REDIR_REG_PROTO_MAX: u16 = 2;
pub(crate) const NFTA_REDIR_FLAGS: u16 = 3;

pub(crate) const NFTA_REJECT_TYPE: u16 = 1;
pub(crate) const NFTA_REJECT_ICMP_CODE: u16 = 2;
pub(crate) const NFT_REJECT_TCP_RST: u32 = libc::NFT_REJECT_TCP_RST as u32;
pub(crate) const NFT_REJECT_ICMPX_UNREACH: u32 = libc::NFT_REJECT_ICMPX_UNREACH as u32;
pub(crate) const NFT_REJECT_ICMPX_PORT_UNREACH: u8 = libc::NFT_REJECT_ICMPX_PORT_UNREACH as u8;

/// Type of a message of conntrack in the netlink header.
const fn ctnetlink(message: u16) -> u16 {
    (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | message
}

pub(crate) const IPCTNL_MSG_CT_GET: u16 = ctnetlink(1);
pub(crate) const IPCTNL_MSG_CT_DELETE: u16 = ctnetlink(2);

pub(crate) const CTA_TUPLE_ORIG: u16 = 1;
pub(crate) const CTA_TUPLE_REPLY: u16 = 2;
pub(crate) const CTA_STATUS: u16 = 3;
pub(crate) const CTA_ID: u16 = 12;
pub(crate) const CTA_ZONE: u16 = 18;
pub(crate) const CTA_FILTER: u16 = 25;
pub(crate) const CTA_STATUS_MASK: u16 = 26;

pub(crate) const CTA_TUPLE_IP: u16 = 1;
pub(crate) const CTA_TUPLE_PROTO: u16 = 2;
pub(crate) const CTA_TUPLE_ZONE: u16 = 3;

pub(crate) const CTA_IP_V4_SRC: u16 = 1;
pub(crate) const CTA_IP_V4_DST: u16 = 2;
pub(crate) const CTA_IP_V6_SRC: u16 = 3;
pub(crate) const CTA_IP_V6_DST: u16 = 4;

pub(crate) const CTA_PROTO_NUM: u16 = 1;
pub(crate) const CTA_PROTO_SRC_PORT: u16 = 2;
pub(crate) const CTA_PROTO_DST_PORT: u16 = 3;

pub(crate) const CTA_FILTER_ORIG_FLAGS: u16 = 1;
pub(crate) const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// The filter compares `CTA_PROTO_NUM` ([`nf_conntrack_netlink.c`][ctnetlink]: no header has these bits).
///
/// [ctnetlink]: https://elixir.bootlin.com/linux/v6.18/source/net/netfilter/nf_conntrack_netlink.c
pub(crate) const CTA_FILTER_F_CTA_PROTO_NUM: u32 = 1 << 3;

/// The flow was answered.
pub(crate) const IPS_SEEN_REPLY: u32 = 1 << 1;
#[cfg(test)]
pub(crate) const IPS_CONFIRMED: u32 = 1 << 3;
/// The flow's destination is translated.
pub(crate) const IPS_DST_NAT: u32 = 1 << 5;
