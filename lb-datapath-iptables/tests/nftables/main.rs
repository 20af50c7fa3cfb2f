//! The nftables backend with real packets. Run as root:
//! `cargo test -p lb-datapath-iptables --test nftables -- --ignored`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod ask;
mod drift;
#[path = "../net/mod.rs"]
mod net;
mod services;

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use lb_core::{
    addr::{FrontendAddr, Protocol},
    affinity::Affinity,
    datapath::{Datapath, ErrorKind as ErrorClass},
    flow_hash::{self, FLOW_SEED},
    id::{FrontendId, SetId},
    plan::{Labels, diff},
    state::{Lookup, State, Target},
};
use lb_datapath_iptables::nftables::{NftablesConfig, NftablesDatapath};
use net::{Net, PATIENCE, SILENCE, ask, say, tcp, udp, udp_socket, udp_socket_from};
use nftables::schema::Chain;
use serde::Deserialize;
use services::{Node, Services, VIP4, VIP6, at, at_port, both_backends, facts, name, only, varied};

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn forwarded_and_local_clients_reach_every_backend() {
    let net = Net::new();
    let mut node = Node::open(&net);
    node.become_state(both_backends());
    for from in [&net.client, &net.node] {
        for vip in [VIP4, VIP6] {
            for ask in [tcp, udp] {
                let heard: BTreeSet<String> = (0..40).map(|_| name(&from.run(|| ask(at(vip))).unwrap())).collect();
                assert_eq!(heard, names(["b1", "b2"]), "{vip}");
            }
        }
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn without_backends_clients_are_refused_at_once() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let mut services = Services::default();
    for vip in [VIP4, VIP6] {
        services.add(vip, Protocol::Tcp, None, None);
        services.add(vip, Protocol::Udp, None, None);
    }
    node.become_state(services.state);
    for from in [&net.client, &net.node] {
        for vip in [VIP4, VIP6] {
            for ask in [tcp, udp] {
                let answer = from.run(|| ask(at(vip)));
                assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{vip}");
            }
        }
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_frontend_that_drops_is_silent() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let mut services = Services::default();
    for vip in [VIP4, VIP6] {
        services.add(vip, Protocol::Udp, None, None);
    }
    services.state.frontends.values_mut().for_each(|frontend| frontend.target = Target::Drop);
    node.become_state(services.state);
    for vip in [VIP4, VIP6] {
        let answer = net.client.run(|| ask(&udp_socket(at(vip)).unwrap(), SILENCE));
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::WouldBlock, "{vip}");
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn sources_outside_of_the_cluster_are_translated_and_pods_are_not() {
    let net = Net::new();
    let mut node = Node::open(&net);
    node.become_state(State { node: facts(&["10.2.0.0/16", "fd02::/16"]), ..both_backends() });
    let [pod, _] = &net.backends;
    for ask in [tcp, udp] {
        for vip in [VIP4, VIP6] {
            let family = usize::from(vip == VIP6);
            let seen: BTreeSet<String> = (0..20).map(|_| net.client.run(|| ask(at(vip))).unwrap()).collect();
            assert_eq!(
                seen,
                [["b1 10.2.1.1", "b1 fd02:1::1"], ["b2 10.2.2.1", "b2 fd02:2::1"]].map(|s| s[family].into()).into()
            );
            let seen: BTreeSet<String> = (0..20).map(|_| pod.run(|| ask(at(vip))).unwrap()).collect();
            let hairpin = [["b1 10.2.1.1", "b1 fd02:1::1"], ["b2 10.2.1.2", "b2 fd02:1::2"]].map(|s| s[family].into());
            assert_eq!(seen, hairpin.into(), "a pod keeps its address unless it reaches itself");
        }
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn pods_inside_of_the_cluster_follow_its_prefixes() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let state = only(1, Protocol::Tcp, Lookup::Random);
    let seen = |node: &mut Node, cidrs: &[&str]| {
        node.become_state(State { node: facts(cidrs), ..state.clone() });
        net.client.run(|| tcp(at(VIP4))).unwrap()
    };
    assert_eq!(seen(&mut node, &[]), "b1 10.2.1.1");
    assert_eq!(seen(&mut node, &["10.1.0.0/16"]), "b1 10.1.0.2");
    assert_eq!(seen(&mut node, &["10.3.0.0/16", "10.2.0.0/16"]), "b1 10.2.1.1");
    assert_eq!(seen(&mut node, &["0.0.0.0/1", "128.0.0.0/1"]), "b1 10.1.0.2");
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn maglev_takes_the_slot_of_the_flow_hash() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let slots: Vec<u8> = (0..251).map(|n| 1 + u8::from(n * n % 7 < 3)).collect();
    let mut services = Services::default();
    for vip in [VIP4, VIP6] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            services.add(vip, protocol, Some((Lookup::Hash, &slots)), None);
        }
    }
    node.become_state(services.state);
    for (vip, source) in [(VIP4, "10.1.0.2"), (VIP6, "fd01::2")] {
        for source_port in 40_000..40_040 {
            let slot = flow_hash::slot(hash(at(source), source_port, at(vip)), 251);
            let expected = format!("b{}", slots[slot as usize]);
            let answer = net.client.run(|| ask_from(source_port, at(vip)));
            assert_eq!(name(&answer.unwrap()), expected, "{vip} from port {source_port}, slot {slot}");
        }
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn maglev_with_affinity_hashes_the_client_alone() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let slots: Vec<u8> = (0..251).map(|n| 1 + u8::from(n % 2 == 0)).collect();
    let affinity = Affinity { prefix_v4: 24, prefix_v6: 64, ..Affinity::default() };
    let mut services = Services::default();
    for vip in [VIP4, VIP6] {
        services.add(vip, Protocol::Tcp, Some((Lookup::Hash, &slots)), Some(affinity));
    }
    node.become_state(services.state);
    let v4 = flow_hash::jhash(&[u32::from_le_bytes([10, 1, 0, 0])], FLOW_SEED);
    let v6 = flow_hash::jhash(&flow_hash::address_words("fd01::".parse::<Ipv6Addr>().unwrap().octets()), FLOW_SEED);
    for (vip, hash) in [(VIP4, v4), (VIP6, v6)] {
        let expected = format!("b{}", slots[flow_hash::slot(hash, 251) as usize]);
        let heard: BTreeSet<String> = (0..10).map(|_| name(&net.client.run(|| tcp(at(vip))).unwrap())).collect();
        assert_eq!(heard, [expected].into(), "{vip}");
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn round_robin_takes_turns_per_frontend() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let mut services = Services::default();
    for vip in [VIP4, "10.96.0.2"] {
        services.add(vip, Protocol::Tcp, Some((Lookup::RoundRobin, &[1, 2])), None);
    }
    node.become_state(services.state);
    let mut heard = Vec::new();
    for _ in 0..10 {
        heard.push(name(&net.client.run(|| tcp(at(VIP4))).unwrap()));
        net.client.run(|| tcp(at("10.96.0.2"))).unwrap();
    }
    let first = heard.iter().filter(|name| *name == "b1").count();
    assert_eq!(first, 5, "two frontends that alternate: {heard:?}");
    assert!(heard.windows(2).all(|pair| pair[0] != pair[1]), "{heard:?}");
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_client_with_affinity_stays_until_its_time_is_up() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let timeout = Duration::from_secs(1);
    let mut services = Services::default();
    services.add(
        VIP4,
        Protocol::Tcp,
        Some((Lookup::RoundRobin, &[1, 2])),
        Some(Affinity { timeout, ..Affinity::default() }),
    );
    services.add(VIP6, Protocol::Udp, Some((Lookup::Random, &[1, 2])), Some(Affinity::default()));
    node.become_state(services.state);
    let mut visits = 0;
    let mut visit = || {
        visits += 1;
        (name(&net.client.run(|| tcp(at(VIP4))).unwrap()), visits)
    };
    let ((first, _), start) = (visit(), Instant::now());
    let mut last = start;
    loop {
        let before = Instant::now();
        let (now, visits) = visit();
        assert!(last.elapsed() < timeout, "the machine was too slow for this test");
        assert_eq!(now, first, "every new flow renews the record");
        last = before;
        if start.elapsed() > 2 * timeout && visits % 2 == 1 {
            break;
        }
    }
    let idle = Instant::now();
    while idle.elapsed() < timeout {
        std::thread::park_timeout(timeout - idle.elapsed());
    }
    assert_ne!(
        visit().0,
        first,
        "after an odd number of turns it is the other backend's, and no record says otherwise"
    );
    let heard: BTreeSet<String> = (0..20).map(|_| name(&net.client.run(|| udp(at(VIP6))).unwrap())).collect();
    assert_eq!(heard.len(), 1, "{heard:?}");
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn affinity_follows_the_prefix_and_the_frontend() {
    let net = Net::new();
    net.client.sh("ip addr add 10.1.0.3/24 dev eth0; ip addr add 10.1.0.130/24 dev eth0");
    let mut node = Node::open(&net);
    let affinity = Affinity { prefix_v4: 25, ..Affinity::default() };
    let mut services = Services::default();
    services.add(VIP4, Protocol::Udp, Some((Lookup::RoundRobin, &[1, 2])), Some(affinity));
    services.add("10.96.0.2", Protocol::Udp, Some((Lookup::RoundRobin, &[1, 2])), Some(affinity));
    node.become_state(services.state);
    let visit = |source: &str, vip| {
        name(&net.client.run(|| ask(&udp_socket_from(at_port(source, 0), at(vip)).unwrap(), PATIENCE)).unwrap())
    };
    let first = visit("10.1.0.2", VIP4);
    let other = visit("10.1.0.130", VIP4);
    assert_ne!(first, other, "another prefix is another client");
    assert_eq!(visit("10.1.0.3", VIP4), first, "the same prefix is the same client");
    assert_eq!(visit("10.1.0.2", VIP4), first);
    let elsewhere: Vec<String> = ["10.1.0.130", "10.1.0.2"].map(|source| visit(source, "10.96.0.2")).into();
    assert_ne!(elsewhere[0], elsewhere[1], "another frontend has records of its own");
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_record_ends_with_its_backend_and_no_other_does() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let affinity = Some(Affinity::default());
    let mut services = Services::default();
    services.add(VIP4, Protocol::Tcp, Some((Lookup::RoundRobin, &[1, 2])), affinity);
    node.become_state(services.state.clone());
    let visit = || name(&net.client.run(|| tcp(at(VIP4))).unwrap());
    let first = visit();
    let (kept, other) = if first == "b1" { (1, 2) } else { (2, 1) };
    services.retarget(VIP4, Protocol::Tcp, &[kept]);
    node.become_state(services.state.clone());
    assert_eq!(visit(), first);
    services.retarget(VIP4, Protocol::Tcp, &[other]);
    node.become_state(services.state.clone());
    assert_eq!(visit(), format!("b{other}"), "a record without its backend is ignored");
    services.retarget(VIP4, Protocol::Tcp, &[kept, other]);
    node.become_state(services.state.clone());
    let heard: BTreeSet<String> = (0..6).map(|_| visit()).collect();
    assert_eq!(heard, [format!("b{other}")].into(), "and replaced");
    let addr = FrontendAddr::new(VIP4.parse().unwrap(), 80, Protocol::Tcp);
    services.state.frontends.get_mut(&addr).unwrap().id = FrontendId::new(4_000).unwrap();
    node.become_state(services.state);
    assert_eq!(net.node.sh("nft list map inet lb affinity4").matches("expires").count(), 0, "another id, no records");
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn clients_beyond_the_size_of_the_affinity_table_are_served_without_records() {
    let net = Net::new();
    net.client.sh("for n in 3 4 5; do ip addr add 10.1.0.$n/24 dev eth0; done");
    let config = NftablesConfig::default().with_affinity_records(2);
    let mut node = Node::open_with(&net, &config);
    let mut services = Services::default();
    services.add(VIP4, Protocol::Udp, Some((Lookup::Random, &[1, 2])), Some(Affinity::default()));
    node.become_state(services.state);
    for source in ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5"] {
        let answer = net.client.run(|| ask(&udp_socket_from(at_port(source, 0), at(VIP4)).unwrap(), PATIENCE));
        assert!(answer.is_ok(), "{source}: {answer:?}");
    }
    assert_eq!(net.node.sh("nft list map inet lb affinity4").matches("expires").count(), 2);
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn established_connections_keep_their_backend_and_new_ones_follow_the_change() {
    let net = Net::new();
    let mut node = Node::open(&net);
    node.become_state(only(1, Protocol::Tcp, Lookup::Random));
    let mut old = net.client.run(|| TcpStream::connect(at(VIP4))).unwrap();
    assert_eq!(name(&say(&mut old).unwrap()), "b1");
    node.become_state(only(2, Protocol::Tcp, Lookup::Random));
    assert_eq!(name(&net.client.run(|| tcp(at(VIP4))).unwrap()), "b2");
    old.write_all(b"still there").unwrap();
    assert_eq!(say(&mut old).unwrap(), "still there");
    node.become_state(State::default());
    old.write_all(b"and now").unwrap();
    assert_eq!(say(&mut old).unwrap(), "and now", "a removed frontend does not cut either");
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn udp_flows_leave_a_backend_that_left_the_set() {
    let net = Net::new();
    let mut node = Node::open(&net);
    for vip in [VIP4, VIP6] {
        let mut services = Services::default();
        services.add(vip, Protocol::Udp, Some((Lookup::Random, &[1])), None);
        node.become_state(services.state.clone());
        let socket = net.client.run(|| udp_socket(at(vip))).unwrap();
        assert_eq!(name(&ask(&socket, PATIENCE).unwrap()), "b1");
        services.retarget(vip, Protocol::Udp, &[1, 2]);
        node.become_state(services.state.clone());
        assert_eq!(name(&ask(&socket, PATIENCE).unwrap()), "b1", "its backend is still there");
        services.retarget(vip, Protocol::Udp, &[2]);
        node.become_state(services.state.clone());
        assert_eq!(name(&ask(&socket, PATIENCE).unwrap()), "b2");
        node.become_state(State::default());
        assert_eq!(ask(&socket, SILENCE).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn udp_flows_that_were_there_first_find_a_new_frontend() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let mut services = Services::default();
    services.add(VIP4, Protocol::Tcp, None, None);
    node.become_state(services.state.clone());
    net.node.sh("ip route add 10.96.0.1/32 via 10.2.1.2");
    let socket = net.client.run(|| udp_socket(at(VIP4))).unwrap();
    assert_eq!(ask(&socket, SILENCE).unwrap_err().kind(), ErrorKind::WouldBlock, "nobody has the address");
    services.add(VIP4, Protocol::Udp, Some((Lookup::Random, &[2])), None);
    node.become_state(services.state);
    assert_eq!(name(&ask(&socket, PATIENCE).unwrap()), "b2");
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_new_process_finds_what_the_old_one_left() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let state = varied();
    node.become_state(state.clone());
    drop(node);
    let mut node = Node::open(&net);
    assert_eq!(node.datapath.observe().unwrap(), state);
    node.state = state;
    node.become_state(both_backends());
    assert_eq!(Node::open(&net).datapath.observe().unwrap(), both_backends());
    assert!(net.client.run(|| tcp(at(VIP4))).is_ok());
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn cleanup_leaves_nothing() {
    let net = Net::new();
    let everything = "nft list ruleset; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all";
    net.node.sh("nft add table inet other");
    let before = net.node.sh(everything);
    let mut node = Node::open(&net);
    node.become_state(varied());
    assert_ne!(net.node.sh(everything), before);
    let mut other = Node::open(&net);
    other.datapath.cleanup().unwrap();
    assert_eq!(net.node.sh(everything), before);
    other.datapath.cleanup().unwrap();
    assert_eq!(other.datapath.observe().unwrap(), State::default());
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn routes_are_the_vips_and_nobody_elses() {
    let net = Net::new();
    let mut node = Node::open(&net);
    net.node.sh("ip route add 10.96.0.1/32 via 10.2.1.2; ip route add blackhole 10.97.0.0/16");
    let foreign = net.node.sh("ip route");
    let mut services = Services::default();
    services.add(VIP4, Protocol::Tcp, None, None);
    services.add(VIP4, Protocol::Udp, None, None);
    services.add(VIP6, Protocol::Udp, None, None);
    let both = services.state.clone();
    node.become_state(both.clone());
    let routes = || {
        net.node.sh("ip route show proto 108; ip route show table 27746; ip -6 route show proto 108; ip -6 route show table 27746")
    };
    assert_eq!(routes().lines().count(), 4, "two for each of two addresses: {}", routes());
    services.state.frontends.retain(|addr, _| addr.protocol == Protocol::Udp && addr.ip.is_ipv4());
    node.become_state(services.state);
    assert_eq!(routes().lines().count(), 2, "one frontend is left: {}", routes());
    node.become_state(State::default());
    assert_eq!(routes(), "");
    assert_eq!(net.node.sh("ip route"), foreign);
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn nft_lists_everything() {
    let net = Net::new();
    let mut node = Node::open_with(&net, &NftablesConfig::default().with_uplink_devices(["up0", "vc"]));
    node.become_state(varied());
    net.client.run(|| tcp(at("10.96.0.3"))).unwrap();
    let listing = net.node.sh("nft list table inet lb");
    for line in [
        r#"comment "lb layout 5""#,
        r#"10.96.0.1 . tcp . 80 comment "frontend 4 set 3 for team/web:http" : 0x00000000 . 0x60000000 . 0x00000002 . 0x00000000 . 0x00000000"#,
        r#"0x60000000 . 0x00000002 . 0x00000000 . 0x00000000 : goto pick4-random-2"#,
        r#"10.96.0.1 . tcp . 80 . 0 comment "backend 1 local" : 10.2.1.2 . 8080"#,
        r#"10.1.0.2 . 10.96.0.3 . tcp . 80 timeout 3h expires"#,
        r#"vmap @picks4 comment "the key is not what is listed, it is ip daddr . meta l4proto . th dport map @frontends4""#,
        r#"fd96::3 . udp . 80 . 0x00000000 comment "0: backend 14" : "#,
        "jhash ip6 saddr . th sport . ip6 daddr . th dport mod 251 seed 0x6c620001 & 1 == 1 dnat ip6 to",
        r#"comment "the backend is not what is listed, it is a part of what is in @tables6""#,
        r#"update @affinity4 { ip saddr . ip daddr . meta l4proto . th dport timeout 3h : ip daddr . th dport } comment "the value is not what is listed, it is a pick from @slots4""#,
        "ct original ip daddr . meta l4proto . ct original proto-dst map @frontends4 != 0x0 [invalid type] goto masquerade4",
        "ct state invalid goto invalid-forward",
        "ip saddr . tcp sport @backends4 ip daddr @cluster4 drop",
        "close_wait : 3600",
        "ip daddr map @addresses4 != 0x0 [invalid type] goto other-ports4",
        "10.96.0.5 : 0x00000000 . 0x40000000 . 0x00000000 . 0x00000000 . 0x00000000",
        "fd96::1 : 0x00000000 . 0x40000000 . 0x00000000 . 0x00000000 . 0x00000000",
        "10.96.0.6 : 0x00000000 . 0x20000000 . 0x00000000 . 0x00000000 . 0x00000000",
        r#"comment "the key is not what is listed, it is ip6 daddr map @addresses6""#,
        r#""up0""#,
        r#"10.96.0.3 . tcp . 80 comment "frontend 901 set "#,
        "chain pick4-internal-turn-3-f901-affinity-10800000ms-32-128 {",
        "numgen inc mod 3 offset 1073741824",
        r#"meta nfproto ipv4 iifname != @uplinks ct timeout set "connections" meta mark . meta mark . meta mark . meta mark vmap @picks4 comment "the key is not what is listed, it is ip daddr . meta l4proto . th dport map @internal4""#,
        "iifname @uplinks ct original ip daddr . meta l4proto . ct original proto-dst @kept-sources4 accept",
        "iifname @uplinks ct original ip6 daddr . meta l4proto . ct original proto-dst @translated-pods6 masquerade",
    ] {
        let short: String = listing.lines().filter(|line| !line.contains("fd96::")).collect::<Vec<_>>().join("\n");
        assert!(listing.contains(line), "`{line}` is not in\n{short}");
    }
    let json: serde_json::Value = serde_json::from_str(&net.node.sh("nft -j list table inet lb")).unwrap();
    let objects = json["nftables"].as_array().unwrap();
    let chains = objects.iter().filter_map(|object| object.get("chain"));
    let bases = chains.map(|chain| Chain::deserialize(chain).unwrap()).filter(|chain| chain.hook.is_some()).count();
    assert_eq!(bases, 6);
    let usage = node.datapath.counters().unwrap().usage().unwrap();
    assert_eq!(objects.iter().filter(|object| object.get("rule").is_some()).count() as u64, usage.rules);
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn other_uplinks_are_written_with_the_next_plan_and_seen_as_drift_before() {
    let net = Net::new();
    let with = |devices: &[&str]| NftablesConfig::default().with_uplink_devices(devices.iter().copied());
    let uplinks = || net.node.sh("nft list set inet lb uplinks");
    let mut node = Node::open_with(&net, &with(&["up0", "up1"]));
    node.become_state(varied());
    assert!(uplinks().contains(r#""up0""#) && uplinks().contains(r#""up1""#), "{}", uplinks());
    let mut other = Node::open_with(&net, &with(&["up1", "up2"]));
    other.state = other.datapath.observe().unwrap();
    assert_eq!(other.state, varied());
    let found = other.drift();
    let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
    let why = "(an earlier process had another configuration)";
    assert_eq!(texts, [format!("element uplinks up0 extra {why}"), format!("element uplinks up2 missing {why}")]);
    other.repair(&found);
    assert_eq!(other.drift(), []);
    assert!(!uplinks().contains(r#""up0""#) && uplinks().contains(r#""up2""#), "{}", uplinks());
    let mut third = Node::open_with(&net, &with(&["up3"]));
    third.state = third.datapath.observe().unwrap();
    third.become_state(both_backends());
    assert_eq!(third.drift(), []);
    assert!(uplinks().contains(r#""up3""#) && !uplinks().contains(r#""up1""#), "{}", uplinks());
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_table_that_somebody_removed_or_changed_is_made_anew() {
    let net = Net::new();
    for damage in [
        "nft delete table inet lb",
        "nft flush ruleset",
        "nft flush map inet lb slots4",
        "nft delete set inet lb notes",
        "nft flush set inet lb notes",
        "nft flush chain inet lb prerouting",
        "nft delete element inet lb frontends4 '{ 10.96.0.1 . tcp . 80 }'",
    ] {
        let mut node = Node::open(&net);
        node.state = node.datapath.observe().unwrap();
        node.become_state(both_backends());
        net.node.sh(damage);
        let found = node.datapath.observe().unwrap();
        node.datapath.apply(&diff(&found, &both_backends(), &Labels::new())).unwrap();
        assert_eq!(Node::open(&net).datapath.observe().unwrap(), both_backends(), "{damage}");
        assert!(net.client.run(|| tcp(at(VIP4))).is_ok(), "{damage}");
    }
}

/// Written as layout 2 was, where frontends had verdicts.
#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_table_of_an_older_layout_is_replaced_as_a_whole() {
    let net = Net::new();
    net.node.sh(
        "nft 'table inet lb {
            comment \"lb layout 2\"
            set notes {
                type mark . mark
                elements = { 0x1 . 0x2 comment \"layout\", 0x2 . 0x7 comment \"generation\", 0x3 . 0x0 comment \"node-1\" }
            }
            map backends4 {
                type mark . inet_proto : ipv4_addr . inet_service
                elements = { 0x1 . tcp : 10.2.1.2 . 8080 }
            }
            map frontends4 {
                type ipv4_addr . inet_proto . inet_service : verdict
                elements = { 10.96.0.1 . tcp . 80 : goto pick4-random-1 }
            }
            set services4 {
                type ipv4_addr . inet_proto . inet_service
                elements = { 10.96.0.1 . tcp . 80 comment \"frontend 1 set 1\" }
            }
            chain pick4-random-1 { meta l4proto tcp dnat ip to 10.2.1.2:8080; }
            chain prerouting {
                type nat hook prerouting priority dstnat
                ip daddr . meta l4proto . th dport vmap @frontends4
            }
        }'",
    );
    let mut node = Node::open(&net);
    let found = node.datapath.observe().unwrap();
    assert_eq!((found.frontends.len(), found.node.name), (0, Some(lb_core::name::NodeName::new("node-1"))));
    let other = Node::open(&net).datapath.observe().unwrap();
    node.datapath.apply(&diff(&other, &both_backends(), &Labels::new())).unwrap();
    node.state = both_backends();
    assert_eq!(node.drift(), []);
    assert!(net.client.run(|| tcp(at(VIP4))).is_ok());
    let listing = net.node.sh("nft list table inet lb");
    assert!(listing.contains("lb layout 5") && !listing.contains("services4"), "{listing}");
    assert_eq!(Node::open(&net).datapath.observe().unwrap(), both_backends());
}

/// The maps of layout 4 are those of today, and it had fewer of them.
#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn records_of_clients_survive_the_replacement_of_layout_4() {
    let net = Net::new();
    let config = NftablesConfig::default().with_uplink_devices(["vc"]);
    let mut node = Node::open_with(&net, &config);
    node.become_state(varied());
    net.client.run(|| tcp(at("10.96.0.3"))).unwrap();
    let record = "10.1.0.2 . 10.96.0.3 . tcp . 80 timeout 3h expires";
    let records = || net.node.sh("nft list map inet lb affinity4");
    assert!(records().contains(record), "{}", records());
    net.node.sh("nft 'delete element inet lb notes { 0x1 . 0x5 }
            add element inet lb notes { 0x1 . 0x4 comment \"layout\" }'");
    let mut later = Node::open_with(&net, &config);
    let found = later.datapath.observe().unwrap();
    assert_eq!(found, varied());
    later.datapath.apply(&diff(&State::default(), &varied(), &Labels::new())).unwrap();
    later.state = varied();
    assert_eq!(later.drift(), []);
    let notes = net.node.sh("nft list set inet lb notes");
    assert!(notes.contains("0x00000001 . 0x00000005"), "{notes}");
    assert!(records().contains(record), "{}", records());
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_table_of_somebody_elses_is_refused_and_stays() {
    let net = Net::new();
    for marker in ["", "comment \"mine\""] {
        net.node.sh(&format!(
            "nft 'table inet lb {{
                {marker}
                set notes {{ type mark . mark; }}
                chain mine {{ type filter hook input priority 0; accept; }}
            }}'"
        ));
        let before = net.node.sh("nft -a list ruleset");
        let mut node = Node::open(&net);
        let refused = |error: lb_core::datapath::DatapathError| {
            assert_eq!(error.kind(), lb_core::datapath::ErrorKind::Busy);
            assert!(error.report().starts_with("table inet lb exists and is not owned by lb"), "{}", error.report());
        };
        refused(node.datapath.observe().unwrap_err());
        let plan = diff(&State::default(), &both_backends(), &Labels::new());
        refused(node.datapath.apply(&plan).unwrap_err().unknown.unwrap());
        refused(node.datapath.cleanup().unwrap_err());
        assert_eq!(net.node.sh("nft -a list ruleset"), before);
        assert_eq!(net.node.sh("ip route show proto 108"), "");
        assert_eq!(node.datapath.counters().unwrap().usage().unwrap(), lb_core::datapath::KernelUsage::default());
        net.node.sh("nft delete table inet lb");
        node.become_state(both_backends());
        assert!(net.client.run(|| tcp(at(VIP4))).is_ok());
        node.datapath.cleanup().unwrap();
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_table_of_somebody_elses_in_place_of_ours_is_refused_and_stays() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let plan = diff(&State::default(), &both_backends(), &Labels::new());
    let swap = |node: &mut Node, before: &str| {
        net.node.sh(&format!("{before}; nft add table inet lb; nft add chain inet lb mine"));
        for _ in 0..2 {
            let error = node.datapath.apply(&plan).unwrap_err().unknown.unwrap();
            assert_eq!(error.kind(), lb_core::datapath::ErrorKind::Busy, "{}", error.report());
        }
        assert!(net.node.sh("nft list table inet lb").contains("chain mine"));
        net.node.sh("nft delete table inet lb");
    };
    node.datapath.observe().unwrap();
    swap(&mut node, "true");
    node.datapath.observe().unwrap();
    node.become_state(only(1, Protocol::Tcp, Lookup::Random));
    swap(&mut node, "nft delete table inet lb");
    node.datapath.observe().unwrap();
    node.datapath.apply(&plan).unwrap();
    net.node.sh("nft delete set inet lb notes");
    node.datapath.observe().unwrap();
    swap(&mut node, "nft delete table inet lb");
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_process_notices_that_another_one_wrote() {
    let net = Net::new();
    let mut one = Node::open(&net);
    one.become_state(both_backends());
    let mut two = Node::open(&net);
    two.state = two.datapath.observe().unwrap();
    two.become_state(only(1, Protocol::Tcp, Lookup::Random));
    let plan = diff(&one.state, &only(2, Protocol::Tcp, Lookup::Random), &Labels::new());
    let error = one.datapath.apply(&plan).unwrap_err();
    assert_eq!(error.unknown.unwrap().kind(), lb_core::datapath::ErrorKind::Busy);
    assert_eq!(name(&net.client.run(|| tcp(at(VIP4))).unwrap()), "b1", "nothing of it took");
    one.state = one.datapath.observe().unwrap();
    one.become_state(only(2, Protocol::Tcp, Lookup::Random));
    assert_eq!(name(&net.client.run(|| tcp(at(VIP4))).unwrap()), "b2");
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn established_connections_survive_a_foreign_flush() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let mut services = Services::default();
    for vip in [VIP4, VIP6] {
        services.add(vip, Protocol::Tcp, Some((Lookup::Random, &[1])), None);
    }
    node.become_state(services.state);
    for (from, vip) in [(&net.client, VIP4), (&net.node, VIP4), (&net.client, VIP6), (&net.node, VIP6)] {
        let mut stream = from.run(|| TcpStream::connect(at(vip))).unwrap();
        assert_eq!(name(&say(&mut stream).unwrap()), "b1");
        net.node.sh("nft flush ruleset");
        stream.write_all(b"through it").unwrap();
        let found = node.datapath.observe().unwrap();
        assert_eq!(found, State::default());
        node.datapath.apply(&diff(&found, &node.state, &Labels::new())).unwrap();
        assert_eq!(say(&mut stream).unwrap(), "through it");
    }
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_frontend_that_cannot_be_carried_holds_nobody_back() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let mut services = Services { state: only(1, Protocol::Tcp, Lookup::Random), next: 100 };
    services.add("10.96.0.2", Protocol::Sctp, None, None);
    services.add("10.96.0.3", Protocol::Tcp, Some((Lookup::Random, &[2])), None);
    let dangling = FrontendAddr::new("10.96.0.3".parse().unwrap(), 80, Protocol::Tcp);
    services.state.frontends.get_mut(&dangling).unwrap().target = Target::Set(SetId::new(9_999).unwrap());
    let error = node.datapath.apply(&diff(&State::default(), &services.state, &Labels::new())).unwrap_err();
    let failed: Vec<String> = error.failed.iter().map(|(addr, _)| addr.to_string()).collect();
    assert_eq!(failed, ["10.96.0.2:80/sctp", "10.96.0.3:80/tcp"]);
    assert!(error.unknown.is_none());
    assert_eq!(name(&net.client.run(|| tcp(at(VIP4))).unwrap()), "b1");
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_frontend_that_the_kernel_refuses_holds_nobody_back() {
    let net = Net::new();
    let mut node = Node::open(&net);
    node.become_state(only(1, Protocol::Udp, Lookup::Random));
    net.node.sh("nft add element inet lb slots4 '{ 10.96.0.9 . tcp . 80 . 0 : 192.0.2.1 . 80 }'");
    let mut services = Services { state: node.state.clone(), next: 100 };
    services.add(VIP4, Protocol::Tcp, Some((Lookup::Random, &[2])), None);
    services.add("10.96.0.9", Protocol::Tcp, Some((Lookup::Random, &[1])), None);
    let error = node.datapath.apply(&diff(&node.state, &services.state, &Labels::new())).unwrap_err();
    let failed: Vec<String> = error.failed.iter().map(|(addr, _)| addr.to_string()).collect();
    assert_eq!(failed, ["10.96.0.9:80/tcp"], "{error}");
    assert_eq!(name(&net.client.run(|| tcp(at(VIP4))).unwrap()), "b2");
    assert!(!net.node.sh("ip route show proto 108").contains("10.96.0.9"), "its route is gone again");
}

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn two_tables_in_one_namespace_do_not_meet() {
    let net = Net::new();
    let mut one = Node::open(&net);
    let other = NftablesConfig::default().with_table("lb-2").with_route_table(300).with_rule_priority(300);
    let mut two = Node::open_with(&net, &other);
    one.become_state(only(1, Protocol::Tcp, Lookup::Random));
    let mut services = Services::default();
    services.add("10.97.0.1", Protocol::Tcp, Some((Lookup::Random, &[2])), None);
    two.become_state(services.state.clone());
    for from in [&net.client, &net.node] {
        assert_eq!(name(&from.run(|| tcp(at(VIP4))).unwrap()), "b1");
        assert_eq!(name(&from.run(|| tcp(at("10.97.0.1"))).unwrap()), "b2");
    }
    one.datapath.cleanup().unwrap();
    for from in [&net.client, &net.node] {
        assert_eq!(name(&from.run(|| tcp(at("10.97.0.1"))).unwrap()), "b2");
    }
    assert_eq!(two.datapath.observe().unwrap(), services.state);
}

/// A socket buffer has a limit in a user namespace, and a plan that is larger is refused as a whole.
#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn a_plan_that_fits_no_socket_buffer_is_refused_whole() {
    let child = Command::new("unshare")
        .args(["--map-root-user", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "inside_a_user_namespace", "--ignored", "--nocapture"])
        .env(INSIDE, "yes")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && output.contains("1 passed"), "{output}");
}

/// Not a test of its own: what the one above starts.
#[test]
#[ignore = "needs root: it is started by another test"]
fn inside_a_user_namespace() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let mut datapath = NftablesDatapath::open(&NftablesConfig::default()).unwrap();
    let limit: usize = std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap().trim().parse().unwrap();
    // A table of this size takes more than a MB; the kernel doubles the limit.
    let (slots, count) = (vec![1; 131_071], 1 + 2 * limit / 1_000_000);
    let mut services = Services::default();
    for n in 0..count {
        services.add(&format!("10.96.1.{n}"), Protocol::Tcp, Some((Lookup::Hash, &slots)), None);
    }
    let error = datapath.apply(&diff(&State::default(), &services.state, &Labels::new())).unwrap_err();
    assert_eq!((error.applied, error.failed.len()), (0, count));
    assert_eq!(error.failed[0].1.kind(), ErrorClass::Capacity, "{error}");
    let report = error.failed[0].1.report();
    assert!(report.contains("net.core.wmem_max") && report.contains(" bytes"), "{report}");
    assert_eq!(datapath.observe().unwrap(), State::default(), "nothing of it took");
    let few = only(1, Protocol::Tcp, Lookup::Random);
    datapath.apply(&diff(&State::default(), &few, &Labels::new())).unwrap();
    assert_eq!(datapath.observe().unwrap(), few);
}

const INSIDE: &str = "LB_INSIDE_A_USER_NAMESPACE";

#[test]
#[ignore = "needs root: network namespaces and nftables"]
fn ten_thousand_services_and_one_change() {
    let net = Net::new();
    let mut node = Node::open(&net);
    let mut services = Services::default();
    for n in 0..10_000_u32 {
        let vip = IpAddr::from((0x0a60_0000_u32 + n).to_be_bytes()).to_string();
        services.add_remote(&vip, 4 * n);
    }
    let plan = diff(&State::default(), &services.state, &Labels::new());
    let start = Instant::now();
    node.datapath.apply(&plan).unwrap();
    let sync = start.elapsed();
    let usage = node.datapath.counters().unwrap().usage().unwrap();
    assert_eq!(usage.elements, 10_000 * (1 + 4 + 4) + 1 + 4 + 2);
    assert!(usage.rules < 60, "{usage:?}");
    let mut changes = Vec::new();
    for n in 0..20 {
        let before = services.state.clone();
        services.add_endpoint(&IpAddr::from((0x0a60_0000_u32 + n).to_be_bytes()).to_string(), 1_000_000 + n);
        let plan = diff(&before, &services.state, &Labels::new());
        let start = Instant::now();
        node.datapath.apply(&plan).unwrap();
        changes.push(start.elapsed());
    }
    changes.sort_unstable();
    let start = Instant::now();
    let found = Node::open(&net).datapath.observe().unwrap();
    println!(
        "sync {sync:?}, one change {:?} (median), {:?} (worst), observe {:?}",
        changes[10],
        changes[19],
        start.elapsed()
    );
    assert_eq!(found, services.state);
    assert!(sync < Duration::from_secs(5) && changes[10] < Duration::from_millis(100), "{sync:?} {changes:?}");
}

/// The flow hash of a flow from `source_port`.
fn hash(source: SocketAddr, source_port: u16, to: SocketAddr) -> u32 {
    match (source.ip(), to.ip()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            flow_hash::jhash(&flow_hash::words_v4(s.octets(), source_port, d.octets(), to.port()), FLOW_SEED)
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            flow_hash::jhash(&flow_hash::words_v6(s.octets(), source_port, d.octets(), to.port()), FLOW_SEED)
        }
        _ => panic!("one family"),
    }
}

/// One UDP question from a certain port.
fn ask_from(source_port: u16, to: SocketAddr) -> std::io::Result<String> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u8; 16].into() };
    ask(&udp_socket_from(SocketAddr::new(any, source_port), to)?, PATIENCE)
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}
