//! Expressions of rules as attributes, each by the name of its module in the kernel.

use lb_core::addr::Family;
use lb_netlink::Writer;

use crate::{
    netfilter::*,
    nftables::table::{
        expr::{Conntrack, Expr, Register},
        layout::Set,
        messages::go_to,
        rules::{Rule, TIMEOUTS},
    },
};

/// The expressions of a rule.
pub(crate) fn expressions(w: &mut Writer, rule: &Rule) {
    rule.expressions.iter().for_each(|expr| expression(w, expr));
}

fn expression(w: &mut Writer, expr: &Expr) {
    let (name, body): (&str, &dyn Fn(&mut Writer)) = match expr {
        Expr::NetworkProtocol { to } => ("meta", &|w| meta(w, NFT_META_NFPROTO, *to)),
        Expr::TransportProtocol { to } => ("meta", &|w| meta(w, NFT_META_L4PROTO, *to)),
        Expr::Mark { to } => ("meta", &|w| meta(w, NFT_META_MARK, *to)),
        Expr::InputDevice { to } => ("meta", &|w| meta(w, NFT_META_IIFNAME, *to)),
        Expr::OutputDevice { to } => ("meta", &|w| meta(w, NFT_META_OIF, *to)),
        Expr::Payload { layer, offset, bytes, to } => ("payload", &|w| {
            register(w, NFTA_PAYLOAD_DREG, *to);
            w.put_u32(NFTA_PAYLOAD_BASE, *layer as u32);
            w.put_u32(NFTA_PAYLOAD_OFFSET, *offset);
            w.put_u32(NFTA_PAYLOAD_LEN, *bytes);
        }),
        Expr::Conntrack { what, to } => ("ct", &|w| conntrack(w, *what, *to)),
        Expr::Compare { not, register: from, with } => ("cmp", &|w| {
            register(w, NFTA_CMP_SREG, *from);
            w.put_u32(NFTA_CMP_OP, if *not { NFT_CMP_NEQ } else { NFT_CMP_EQ });
            w.nest(NFTA_CMP_DATA, |w| w.put(NFTA_DATA_VALUE, with));
        }),
        Expr::Mask { register: at, mask } => ("bitwise", &|w| bitwise(w, *at, *at, mask)),
        Expr::Part { from, mask, to } => ("bitwise", &|w| bitwise(w, *from, *to, &mask.to_ne_bytes())),
        Expr::Copy { from, bytes, to } => ("bitwise", &|w| bitwise(w, *from, *to, &vec![0xff; *bytes])),
        Expr::Load { bytes, to } => ("immediate", &|w| {
            register(w, NFTA_IMMEDIATE_DREG, *to);
            w.nest(NFTA_IMMEDIATE_DATA, |w| w.put(NFTA_DATA_VALUE, &bytes[..2]));
        }),
        Expr::Goto(chain) => ("immediate", &|w| {
            register(w, NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            w.nest(NFTA_IMMEDIATE_DATA, |w| go_to(w, chain));
        }),
        Expr::Accept => ("immediate", &|w| verdict(w, NF_ACCEPT)),
        Expr::Drop => ("immediate", &|w| verdict(w, NF_DROP)),
        Expr::Timeouts => ("objref", &|w| {
            w.put_u32(NFTA_OBJREF_IMM_TYPE, NFT_OBJECT_CT_TIMEOUT);
            w.put_str(NFTA_OBJREF_IMM_NAME, TIMEOUTS);
        }),
        Expr::Number { random, modulus, first, to } => ("numgen", &|w| {
            register(w, NFTA_NG_DREG, *to);
            w.put_u32(NFTA_NG_MODULUS, *modulus);
            w.put_u32(NFTA_NG_TYPE, if *random { NFT_NG_RANDOM } else { NFT_NG_INCREMENTAL });
            w.put_u32(NFTA_NG_OFFSET, *first);
        }),
        Expr::Hash { from, bytes, modulus, seed, first, to } => ("hash", &|w| {
            register(w, NFTA_HASH_SREG, *from);
            register(w, NFTA_HASH_DREG, *to);
            w.put_u32(NFTA_HASH_LEN, *bytes);
            w.put_u32(NFTA_HASH_MODULUS, *modulus);
            w.put_u32(NFTA_HASH_SEED, *seed);
            w.put_u32(NFTA_HASH_OFFSET, *first);
            w.put_u32(NFTA_HASH_TYPE, NFT_HASH_JENKINS);
        }),
        Expr::Member { set, key, not } => ("lookup", &|w| {
            w.put_str(NFTA_LOOKUP_SET, set.name());
            register(w, NFTA_LOOKUP_SREG, *key);
            if *not {
                w.put_u32(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
            }
        }),
        Expr::Map { map, key, to } => ("lookup", &|w| lookup(w, *map, *key, *to)),
        Expr::VerdictMap { map, key } => ("lookup", &|w| lookup(w, *map, *key, NFT_REG_VERDICT)),
        Expr::Update { map, key, value, timeout_ms } => ("dynset", &|w| {
            w.put_str(NFTA_DYNSET_SET_NAME, map.name());
            w.put_u32(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE);
            register(w, NFTA_DYNSET_SREG_KEY, *key);
            register(w, NFTA_DYNSET_SREG_DATA, *value);
            w.put_u64(NFTA_DYNSET_TIMEOUT, *timeout_ms);
        }),
        Expr::Dnat { family, address, port } => ("nat", &|w| {
            w.put_u32(NFTA_NAT_TYPE, NFT_NAT_DNAT);
            w.put_u32(NFTA_NAT_FAMILY, nfproto(*family).into());
            register(w, NFTA_NAT_REG_ADDR_MIN, *address);
            register(w, NFTA_NAT_REG_PROTO_MIN, *port);
        }),
        Expr::Redirect { port } => ("redir", &|w| register(w, NFTA_REDIR_REG_PROTO_MIN, *port)),
        Expr::Masquerade => ("masq", &|w| w.put_u32(NFTA_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY)),
        Expr::Reset => ("reject", &|w| reject(w, NFT_REJECT_TCP_RST, 0)),
        Expr::Unreachable => ("reject", &|w| reject(w, NFT_REJECT_ICMPX_UNREACH, NFT_REJECT_ICMPX_PORT_UNREACH)),
    };
    w.nest(NFTA_LIST_ELEM, |w| {
        w.put_str(NFTA_EXPR_NAME, name);
        w.nest(NFTA_EXPR_DATA, body);
    });
}

fn verdict(w: &mut Writer, code: u32) {
    register(w, NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
    w.nest(NFTA_IMMEDIATE_DATA, |w| {
        w.nest(NFTA_DATA_VERDICT, |w| w.put_u32(NFTA_VERDICT_CODE, code));
    });
}

fn meta(w: &mut Writer, key: u32, to: Register) {
    w.put_u32(NFTA_META_KEY, key);
    register(w, NFTA_META_DREG, to);
}

fn conntrack(w: &mut Writer, what: Conntrack, to: Register) {
    let key = match what {
        Conntrack::Status => NFT_CT_STATUS,
        Conntrack::State => NFT_CT_STATE,
        Conntrack::OriginalPort => NFT_CT_PROTO_DST,
        Conntrack::OriginalDestination(Family::V4) => NFT_CT_DST_IP,
        Conntrack::OriginalDestination(Family::V6) => NFT_CT_DST_IP6,
    };
    register(w, NFTA_CT_DREG, to);
    w.put_u32(NFTA_CT_KEY, key);
    if !matches!(what, Conntrack::Status | Conntrack::State) {
        w.put(NFTA_CT_DIRECTION, &[IP_CT_DIR_ORIGINAL]);
    }
}

/// `to = from & mask ^ 0`: the kernel has no other expression that copies registers.
fn bitwise(w: &mut Writer, from: Register, to: Register, mask: &[u8]) {
    register(w, NFTA_BITWISE_SREG, from);
    register(w, NFTA_BITWISE_DREG, to);
    w.put_u32(NFTA_BITWISE_LEN, u32::try_from(mask.len()).unwrap_or(u32::MAX));
    w.nest(NFTA_BITWISE_MASK, |w| w.put(NFTA_DATA_VALUE, mask));
    w.nest(NFTA_BITWISE_XOR, |w| w.put(NFTA_DATA_VALUE, &vec![0; mask.len()]));
}

fn lookup(w: &mut Writer, map: Set, key: Register, to: Register) {
    w.put_str(NFTA_LOOKUP_SET, map.name());
    register(w, NFTA_LOOKUP_SREG, key);
    register(w, NFTA_LOOKUP_DREG, to);
}

fn reject(w: &mut Writer, kind: u32, code: u8) {
    w.put_u32(NFTA_REJECT_TYPE, kind);
    w.put(NFTA_REJECT_ICMP_CODE, &[code]);
}

fn register(w: &mut Writer, attribute: u16, register: Register) {
    w.put_u32(attribute, register.into());
}
