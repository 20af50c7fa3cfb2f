//! Pins that are not ours are never taken over.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    sync::Barrier,
    thread,
};

use lb_core::{
    addr::Protocol,
    datapath::{Datapath, ErrorKind},
    plan::{Labels, diff},
    state::{Lookup, State},
};
use lb_datapath_ebpf::EbpfDatapath;
use lb_datapath_ebpf_abi as abi;

use crate::{
    bpf,
    common::{Cgroup, Namespace, PinDir, config, state, turn},
};

/// A pin directory in which a datapath has left a state, and where to plant something.
struct Ground {
    pins: PinDir,
    cgroup: Cgroup,
    space: Namespace,
}

impl Ground {
    fn path(&self, below: &str) -> PathBuf {
        self.pins.0.join("v1").join(below)
    }

    /// Puts a map in the place of `FRONTENDS`, or somewhere else.
    fn map(&self, at: &str, kind: u32, sizes: (u32, u32), flags: u32, name: &str) {
        let path = self.path(at);
        let _ = fs::remove_file(&path);
        bpf::pin(&bpf::map(kind, sizes, if kind == bpf::ARRAY { 2 } else { 100 }, flags, name), &path);
    }

    /// Puts a link of another program in the place of `lb_connect4`.
    fn link(&self, kind: u32, attach_type: u32, name: &str) {
        let (path, cgroup) = (self.path("links/lb_connect4"), fs::File::open(&self.cgroup.path).unwrap());
        fs::remove_file(&path).unwrap();
        bpf::pin(&bpf::attach_to(&bpf::program(kind, attach_type, name), &cgroup, attach_type), &path);
    }

    /// Pins a link of a device as that of the device with this number.
    fn device_link(&self, name: &str, number: impl Fn(u32) -> u32) {
        let index = self.space.run(|| {
            // SAFETY: the name is a string.
            unsafe { libc::if_nametoindex(c"lo".as_ptr()) }
        });
        let program = bpf::program(bpf::SCHED_CLS, 0, name);
        let link = self.space.run(|| bpf::attach(&program, index, bpf::TCX_INGRESS));
        bpf::pin(&link, &self.path(&format!("links/lb_ingress_{}", number(index))));
    }

    fn mode(&self, at: &str, mode: u32) {
        fs::set_permissions(self.path(at), Permissions::from_mode(mode)).unwrap();
    }
}

const KEY: u32 = size_of::<abi::FrontendKey>() as u32;
const VALUE: u32 = size_of::<abi::FrontendValue>() as u32;
const LAZY: u32 = 1;

type Plant = (&'static str, fn(&Ground), &'static str);

/// What is planted, and what the refusal says.
const PLANTS: [Plant; 28] = [
    ("another type of map", |g| g.map("maps/FRONTENDS", bpf::ARRAY, (4, VALUE), 0, "FRONTENDS"), "maps/FRONTENDS"),
    ("another size of keys", |g| g.map("maps/FRONTENDS", bpf::HASH, (8, VALUE), LAZY, "FRONTENDS"), "maps/FRONTENDS"),
    ("another size of values", |g| g.map("maps/FRONTENDS", bpf::HASH, (KEY, 8), LAZY, "FRONTENDS"), "maps/FRONTENDS"),
    ("other flags", |g| g.map("maps/FRONTENDS", bpf::HASH, (KEY, VALUE), 0, "FRONTENDS"), "maps/FRONTENDS"),
    ("another name", |g| g.map("maps/FRONTENDS", bpf::HASH, (KEY, VALUE), LAZY, "frontends"), "a map called frontends"),
    ("no name", |g| g.map("maps/FRONTENDS", bpf::HASH, (KEY, VALUE), LAZY, ""), "a map called "),
    ("another number of entries", |g| g.map("maps/ROLE", bpf::ARRAY, (4, 4), 0, "ROLE"), "maps/ROLE"),
    (
        "a twin of a map",
        |g| g.map("maps/FRONTENDS", bpf::HASH, (KEY, VALUE), LAZY, "FRONTENDS"),
        ", FRONTENDS, and that is not what is pinned",
    ),
    (
        "another map of ours",
        |g| {
            let other = bpf::open(&g.path("maps/TURNS"));
            fs::remove_file(g.path("maps/FRONTENDS")).unwrap();
            bpf::pin(&other, &g.path("maps/FRONTENDS"));
        },
        "a map called TURNS",
    ),
    (
        "a program as a map",
        |g| {
            fs::remove_file(g.path("maps/CT")).unwrap();
            bpf::pin(&bpf::program(bpf::SCHED_CLS, 0, "CT"), &g.path("maps/CT"));
        },
        "expected a map, found a program",
    ),
    (
        "a link as a map",
        |g| {
            fs::remove_file(g.path("maps/CT")).unwrap();
            bpf::pin(&bpf::open(&g.path("links/lb_connect6")), &g.path("maps/CT"));
        },
        "expected a map, found a link",
    ),
    (
        "a directory as a map",
        |g| {
            fs::remove_file(g.path("maps/CT")).unwrap();
            fs::create_dir(g.path("maps/CT")).unwrap();
        },
        "maps/CT was not pinned by this datapath: it is not a pin",
    ),
    (
        "a symbolic link as a map",
        |g| {
            fs::rename(g.path("maps/CT"), g.pins.0.join("elsewhere")).unwrap();
            symlink(g.pins.0.join("elsewhere"), g.path("maps/CT")).unwrap();
        },
        "maps/CT was not pinned by this datapath: it is not a pin",
    ),
    ("a map under an unknown name", |g| g.map("maps/OTHER", bpf::HASH, (4, 4), 0, "OTHER"), "maps/OTHER"),
    ("a map that others may write", |g| g.mode("maps/CT", 0o666), "mode 666"),
    ("a map of another user", |g| chown(g.path("maps/CT"), Some(1234), None).unwrap(), "owner 1234"),
    ("a link of another program", |g| g.link(bpf::SOCK_ADDR, bpf::CONNECT4, "stranger"), "its program is stranger"),
    ("a link to another hook", |g| g.link(bpf::SOCK_ADDR, bpf::CONNECT6, "lb_connect4"), "attach type 11"),
    (
        "a program like ours with other maps",
        |g| {
            let (map, path) = (g.path("maps/FRONTENDS"), g.path("maps/BACKENDS"));
            // The twin has been filled: the state that it holds is no reason to take it over.
            let _ = (fs::remove_file(&map), fs::remove_file(&path));
            bpf::pin(&bpf::map(bpf::HASH, (KEY, VALUE), 100, LAZY, "FRONTENDS"), &map);
            bpf::pin(&bpf::map(bpf::HASH, (4, size_of::<abi::BackendValue>() as u32), 100, LAZY, "BACKENDS"), &path);
        },
        "that is not what is pinned",
    ),
    (
        "a program as a link",
        |g| {
            fs::remove_file(g.path("links/lb_connect4")).unwrap();
            bpf::pin(&bpf::program(bpf::SOCK_ADDR, bpf::CONNECT4, "lb_connect4"), &g.path("links/lb_connect4"));
        },
        "expected a link, found a program",
    ),
    (
        "a map as a link",
        |g| {
            fs::remove_file(g.path("links/lb_connect4")).unwrap();
            bpf::pin(&bpf::open(&g.path("maps/CT")), &g.path("links/lb_connect4"));
        },
        "expected a link, found a map",
    ),
    (
        "the link of another hook of ours",
        |g| {
            let other = bpf::open(&g.path("links/lb_connect6"));
            fs::remove_file(g.path("links/lb_connect4")).unwrap();
            bpf::pin(&other, &g.path("links/lb_connect4"));
        },
        "attach type 11",
    ),
    ("a link of a device, of another program", |g| g.device_link("stranger", |index| index), "its program is stranger"),
    ("a link of another device", |g| g.device_link("lb_ingress", |index| index + 1000), "it leads to device"),
    (
        "a link under an unknown name",
        |g| bpf::pin(&bpf::open(&g.path("links/lb_connect6")), &g.path("links/other")),
        "links/other",
    ),
    ("a link that others may write", |g| g.mode("links/lb_connect4", 0o660), "mode 660"),
    ("a directory between ours", |g| fs::create_dir(g.path("more")).unwrap(), "v1/more"),
    ("a directory that others may write", |g| g.mode("links", 0o777), "mode 777"),
];

fn desired() -> State {
    let backends = ["127.0.0.1:8001".parse().unwrap()];
    state(&[("10.96.0.1:80".parse().unwrap(), Protocol::Tcp, &backends)], Lookup::Random, None)
}

/// What is pinned below `dir`, by path and number.
fn objects(dir: &Path) -> Vec<(PathBuf, Option<u64>)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        found.push((path.clone(), fs::symlink_metadata(&path).ok().map(|meta| meta.ino())));
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            found.extend(objects(&path));
        }
    }
    found.sort();
    found
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a cgroup"]
fn nothing_that_was_planted_is_taken_over() {
    let _turn = turn();
    let mut adopted = Vec::new();
    for (name, plant, refusal) in PLANTS {
        let ground = Ground { pins: PinDir::new(), cgroup: Cgroup::empty(), space: Namespace::new("f") };
        let config = config(&ground.pins, &ground.cgroup);
        let mut datapath = EbpfDatapath::open(config.clone()).unwrap();
        datapath.apply(&diff(&State::default(), &desired(), &Labels::default())).unwrap();
        drop(datapath);
        plant(&ground);
        let before = objects(&ground.pins.0);
        match EbpfDatapath::open(config) {
            Ok(_) => adopted.push(name),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Invalid, "{name}: {}", error.report());
                assert!(error.to_string().contains(refusal), "{name}: {}", error.report());
                assert!(error.to_string().contains(ground.pins.0.to_str().unwrap()), "{name}: {}", error.report());
            }
        }
        assert_eq!(objects(&ground.pins.0), before, "{name}: what was found stays as it is");
        // The cleanup leaves what is not ours.
        let _ = EbpfDatapath::remove(&ground.pins.0);
        if ground.pins.0.exists() {
            fs::remove_dir_all(&ground.pins.0).unwrap();
        }
    }
    println!("adopted {} of {}", adopted.len(), PLANTS.len());
    assert_eq!(adopted, [""; 0]);
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a cgroup"]
fn cleanup_leaves_what_is_not_ours_and_says_so() {
    let _turn = turn();
    let ground = Ground { pins: PinDir::new(), cgroup: Cgroup::empty(), space: Namespace::new("f") };
    drop(EbpfDatapath::open(config(&ground.pins, &ground.cgroup)).unwrap());
    ground.device_link("stranger", |index| index);
    let error = EbpfDatapath::remove(&ground.pins.0).unwrap_err();
    assert!(error.to_string().contains("its program is stranger"), "{}", error.report());
    assert_eq!(objects(&ground.pins.0).len(), 3, "two directories and the stranger");
    fs::remove_dir_all(&ground.pins.0).unwrap();
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a cgroup"]
fn cleanup_leaves_a_foreign_map_under_a_name_of_ours() {
    let _turn = turn();
    let ground = Ground { pins: PinDir::new(), cgroup: Cgroup::empty(), space: Namespace::new("f") };
    drop(EbpfDatapath::open(config(&ground.pins, &ground.cgroup)).unwrap());
    ground.map("maps/FRONTENDS", bpf::ARRAY, (4, VALUE), 0, "FRONTENDS");
    let path = ground.path("maps/FRONTENDS");
    let number = bpf::id(&path);
    let error = EbpfDatapath::remove(&ground.pins.0).unwrap_err();
    let expected = "expected hash map, key 24 bytes, value 32 bytes, 2 entries, flags 0x1, \
                    found array, key 4 bytes, value 32 bytes, 2 entries, flags 0x0; \
                    remove the file by hand, or name another pin directory";
    assert!(error.to_string().ends_with(expected), "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert_eq!(bpf::id(&path), number);
    assert_eq!(objects(&ground.pins.0).len(), 3, "two directories and the map");
    fs::remove_dir_all(&ground.pins.0).unwrap();
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a cgroup"]
fn maps_of_a_start_that_was_not_finished_are_made_anew() {
    let _turn = turn();
    let (pins, cgroup) = (PinDir::new(), Cgroup::empty());
    let config = config(&pins, &cgroup);
    drop(EbpfDatapath::open(config.clone()).unwrap());
    // A version before had not all of the maps, but it had `CT`, which is always among those that are missing.
    let maps = || {
        let mut maps: Vec<_> = fs::read_dir(pins.0.join("v1/maps")).unwrap().map(|map| map.unwrap().path()).collect();
        maps.sort_by_key(|map| (map.ends_with("CT"), map.clone()));
        maps
    };
    // One start takes two seconds: none of the maps, one of them, half of them, and all but few.
    let all = maps().len();
    for left in [0, 1, all / 2, all / 2 + 1, all - 2, all - 1] {
        for map in maps().into_iter().skip(left) {
            fs::remove_file(map).unwrap();
        }
        if left % 2 == 0 {
            bpf::remove_all(&pins.0.join("v1/links"));
        }
        let mut datapath = EbpfDatapath::open(config.clone()).unwrap();
        // Without links the earlier process served nothing, so that nothing is lost.
        assert_eq!(datapath.missing_pins().is_some(), left % 2 == 1, "{left} maps were there");
        datapath.apply(&diff(&State::default(), &desired(), &Labels::default())).unwrap();
        assert_eq!(datapath.observe().unwrap(), desired(), "{left} maps were there");
    }
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a cgroup"]
fn a_start_names_the_pins_that_are_missing_and_what_is_lost() {
    let _turn = turn();
    let (pins, cgroup) = (PinDir::new(), Cgroup::empty());
    let config = config(&pins, &cgroup);
    let open = || EbpfDatapath::open(config.clone()).unwrap();
    let said = |datapath: &EbpfDatapath| datapath.missing_pins().map(ToString::to_string);
    assert_eq!(said(&open()), None, "a first start");
    assert_eq!(said(&open()), None, "all are there");
    let path = |name: &str| pins.0.join("v1").join(name);
    fs::remove_file(path("links/lb_connect4")).unwrap();
    let again = open();
    let text = said(&again).unwrap();
    assert!(
        text.starts_with(&format!("{} was missing: its program is attached", path("links/lb_connect4").display())),
        "{text}"
    );
    assert!(!again.missing_pins().unwrap().made_anew());
    drop(again);
    for name in ["maps/CT", "maps/SLOTS"] {
        fs::remove_file(path(name)).unwrap();
    }
    let anew = open();
    let missing = anew.missing_pins().unwrap();
    assert_eq!(
        missing.paths().iter().collect::<std::collections::BTreeSet<_>>(),
        [&path("maps/CT"), &path("maps/SLOTS")].into()
    );
    assert!(missing.made_anew() && missing.to_string().contains("are reset"), "{missing}");
    drop(anew);
    assert_eq!(said(&open()), None, "they are there again");
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a cgroup"]
fn maps_of_a_version_without_a_filter_are_taken_over_with_their_flows() {
    let _turn = turn();
    let (pins, cgroup) = (PinDir::new(), Cgroup::empty());
    let config = config(&pins, &cgroup);
    let mut datapath = EbpfDatapath::open(config.clone()).unwrap();
    datapath.apply(&diff(&State::default(), &desired(), &Labels::default())).unwrap();
    drop(datapath);
    // The backend of this flow is in no set any more.
    let (client, gone) = (abi::map_v4([192, 0, 2, 7]), abi::map_v4([10, 244, 9, 9]));
    let (sport, dport) = (abi::Port::new(40_000), abi::Port::new(80));
    let flow = abi::CtKey { src: gone, dst: client, sport: dport, dport: sport, protocol: 6, pad: [0; 3] };
    bpf::Map::open(&pins.0.join("v1/maps/CT")).put(&flow, &abi::CtValue::EMPTY);
    fs::remove_file(pins.0.join("v1/maps/FILTER")).unwrap();
    bpf::remove_all(&pins.0.join("v1/links"));
    drop(EbpfDatapath::open(config).unwrap());
    let filter = bpf::Map::open(&pins.0.join("v1/maps/FILTER"));
    let is_known = |addr| {
        let (word, bit) = abi::filter_bit(addr);
        filter.get::<abi::FilterPair>(&(word / 2)).unwrap()[word as usize & 1] & bit != 0
    };
    let known = ["10.96.0.1", "127.0.0.1"].map(|ip| abi::map_v4(ip.parse::<std::net::Ipv4Addr>().unwrap().octets()));
    assert!(known.into_iter().chain([client, gone]).all(is_known));
    assert!(!is_known(abi::map_v4([203, 0, 113, 9])));
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes a cgroup"]
fn maps_of_a_version_without_counters_are_taken_over() {
    let _turn = turn();
    let (pins, cgroup) = (PinDir::new(), Cgroup::empty());
    let config = config(&pins, &cgroup);
    let mut datapath = EbpfDatapath::open(config.clone()).unwrap();
    datapath.apply(&diff(&State::default(), &desired(), &Labels::default())).unwrap();
    drop(datapath);
    let (flows, counters) = (pins.0.join("v1/maps/CT"), pins.0.join("v1/maps/REASONS"));
    let number = bpf::id(&flows);
    // Its programs count nothing, so that they use no other map than those that it pinned.
    fs::remove_file(&counters).unwrap();
    bpf::remove_all(&pins.0.join("v1/links"));
    let mut datapath = EbpfDatapath::open(config.clone()).unwrap();
    assert_eq!(datapath.observe().unwrap(), desired());
    assert_eq!(bpf::id(&flows), number);
    assert!(datapath.reason_counters().unwrap().unwrap().read().unwrap().values().all(|count| *count == 0));
    drop(datapath);
    // Programs that count in a map without a pin cannot be taken over with the others.
    fs::remove_file(&counters).unwrap();
    let mut datapath = EbpfDatapath::open(config).unwrap();
    assert_eq!(datapath.observe().unwrap(), State::default());
    assert_ne!(bpf::id(&flows), number);
    assert!(counters.exists());
}

#[test]
#[ignore = "needs root: loads eBPF programs and makes cgroups"]
fn of_two_that_start_at_once_one_is_refused() {
    let _turn = turn();
    let cgroup = Cgroup::empty();
    for round in 0..3 {
        let pins = PinDir::new();
        let config = config(&pins, &cgroup);
        let (start, end) = (Barrier::new(2), Barrier::new(2));
        let open = || {
            start.wait();
            let opened = EbpfDatapath::open(config.clone());
            end.wait();
            opened.map(drop)
        };
        let outcomes =
            thread::scope(|scope| [scope.spawn(open), scope.spawn(open)].map(|thread| thread.join().unwrap()));
        let refused: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
        let [error] = &refused[..] else { panic!("round {round}: {refused:?}") };
        assert_eq!(error.kind(), ErrorKind::Busy, "round {round}: {}", error.report());
    }
}
