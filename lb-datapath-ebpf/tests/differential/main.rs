//! Random packets, at the program of packets in the kernel and at a reference that shares no code with it.
//!
//! `LB_DIFFERENTIAL_PACKETS` is how many packets are run, 100,000 unless told. `LB_DIFFERENTIAL_SEED` chooses them; the
//! program in the kernel throws dice of its own, so that a flow may get another backend or port the next time.
//! `LB_DIFFERENTIAL_FIRST` is the number of the first packet, to see the round of a mismatch again: rounds have 2,000
//! packets each, and know nothing of each other.
//! `LB_DIFFERENTIAL_OBJECT` names an eBPF object whose program is tested in place of the one that is attached.
#![expect(clippy::unwrap_used, reason = "tests")]

mod answer;
mod bpf;
mod delivery;
mod dice;
mod echo;
mod errors;
mod reference;
mod routes;
mod services;
mod traffic;
mod world;

use std::{collections::BTreeMap, env, io::ErrorKind, net::SocketAddr, process::ExitCode, time::Instant};

use lb_core::{datapath::Role, decision::Entry, model::Change};
use lb_testkit::packets::{Reading, Transport};
use libtest_mimic::{Arguments, Trial};

use crate::{
    dice::Dice,
    reference::{Fate, Reference, View},
    traffic::{Sent, Traffic},
    world::World,
};

const PACKETS: u64 = 100_000;
/// Packets between two sets of services.
const ROUND: u64 = 2_000;

fn main() -> ExitCode {
    lb_testkit::run_if_worker();
    let trial = Trial::test("random_packets_end_as_the_reference_says", || {
        random_packets();
        Ok(())
    });
    let trials = vec![trial.with_kind("needs root").with_ignored_flag(true)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn random_packets() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let packets = number("LB_DIFFERENTIAL_PACKETS").unwrap_or(PACKETS);
    let seed = number("LB_DIFFERENTIAL_SEED").unwrap_or(1);
    let first = number("LB_DIFFERENTIAL_FIRST").unwrap_or(0) / ROUND * ROUND;
    let mut world = World::new(env::var_os("LB_DIFFERENTIAL_OBJECT").map(Into::into));
    let start = Instant::now();
    let mut tally = BTreeMap::new();
    let mut done = 0;
    while done < packets {
        let mut dice = Dice((seed << 32).wrapping_add(first + done));
        let mut round = Round::new(&mut world, &mut dice, first + done);
        round.run(&mut dice, ROUND.min(packets - done), &mut tally).unwrap_or_else(|why| panic!("seed {seed}, {why}"));
        done += ROUND;
        if done % 100_000 == 0 || done >= packets {
            let counts: Vec<String> = tally.iter().map(|(fate, count)| format!("{count} {fate:?}")).collect();
            let seconds = start.elapsed().as_secs_f64();
            println!("seed {seed}, {seconds:.1} s: {done} packets, 0 mismatches: {}", counts.join(", "));
        }
    }
    if packets >= PACKETS {
        use Fate::{Answered, Dropped, Forwarded, Opened, Returned, Told, Untouched};
        for fate in [Untouched, Opened, Forwarded, Returned, Answered, Told, Dropped] {
            assert!(tally.get(&fate).is_some_and(|count| count * 200 > packets), "{fate:?}: {tally:?}");
        }
    }
}

/// One set of services, and the packets that see it.
struct Round<'a> {
    world: &'a mut World,
    reference: Reference,
    traffic: Traffic,
    /// The number of its first packet.
    first: u64,
    past: Vec<Past>,
}

/// A packet, and what became of it.
struct Past {
    number: u64,
    role: Role,
    entry: Entry,
    before: Vec<u8>,
    after: Vec<u8>,
    fate: Fate,
}

impl<'a> Round<'a> {
    fn new(world: &'a mut World, dice: &mut Dice, first: u64) -> Self {
        world.clear();
        world.set_role(Role::Active);
        let services = services::all(dice, world.facts());
        world.change(services);
        let traffic = Traffic::new(dice, &world.devices, &world.facts().ips);
        let reference = Reference::new(world.routes());
        Self { world, reference, traffic, first, past: Vec::new() }
    }

    fn run(&mut self, dice: &mut Dice, packets: u64, tally: &mut BTreeMap<Fate, u64>) -> Result<(), String> {
        for number in 0..packets {
            if dice.below(250) == 0 {
                let change = services::change(dice, self.world.facts(), self.world.reconciler.model());
                if matches!(change, Change::UpsertService(_)) {
                    self.reference.forget_clients();
                }
                self.world.change([change]);
            }
            if dice.below(300) == 0 {
                let role = dice.pick(&[Role::Active, Role::Active, Role::Draining, Role::Standby]);
                self.world.set_role(role);
            } else if self.world.role != Role::Active && dice.below(40) == 0 {
                self.world.set_role(Role::Active);
            }
            let sent = self.traffic.next(dice, &self.reference, &self.world.devices);
            let number = self.first + number;
            let fate = self
                .run_one(number, &sent)
                .map_err(|why| format!("packet {number}: {why}\nbefore:\n{}", self.past_of(&sent.bytes)))?;
            *tally.entry(fate).or_insert(0) += 1;
        }
        Ok(())
    }

    fn run_one(&mut self, number: u64, sent: &Sent) -> Result<Fate, String> {
        let World { runners: [into, out], devices, role, version, backends, reconciler, .. } = &mut *self.world;
        let runner = if sent.device.is_left() { out } else { into };
        let out = runner.run(&sent.bytes, sent.device.index);
        if out.as_ref().is_err_and(|error| error.kind() == ErrorKind::InvalidInput)
            && Reading::of(&sent.bytes).ip.is_none()
        {
            return Ok(Fate::TooShort);
        }
        let out = out.map_err(|error| format!("running {:02x?}: {error}", sent.bytes))?;
        let view =
            View { model: reconciler.model(), role: *role, version: *version, backends, device: sent.device, devices };
        let fate = self.reference.check(&view, &sent.bytes, &out).map_err(|why| {
            let hex = |bytes: &[u8]| bytes.iter().take(120).map(|byte| format!("{byte:02x}")).collect::<String>();
            let show = |bytes: &[u8]| format!("{}, {} bytes: {:?}", hex(bytes), bytes.len(), Reading::of(bytes).ip);
            let (before, after) = (show(&sent.bytes), show(out.frame));
            format!("{why}\nsent through {:?}: {before}\nverdict {}: {after}", sent.device, out.verdict)
        })?;
        if fate == Fate::Opened {
            self.traffic.opened(&sent.bytes);
        }
        self.past.push(Past {
            number,
            role: *role,
            entry: sent.device.entry,
            before: sent.bytes.clone(),
            after: out.frame.to_vec(),
            fate,
        });
        Ok(fate)
    }

    /// The packets of this round that have something to do with `frame`: one end in common, before or after; or those of
    /// its addresses, if it has no ports.
    fn past_of(&self, frame: &[u8]) -> String {
        let wanted = ends(frame);
        let addresses = |frame: &[u8]| Reading::of(frame).ip.map(|ip| ip.addresses);
        let mut lines = String::new();
        for Past { number, role, entry, before, after, fate } in &self.past {
            let (sent, came) = (ends(before), ends(after));
            let is_fellow = wanted.is_empty() && addresses(before) == addresses(frame);
            if is_fellow || sent.iter().chain(&came).any(|end| wanted.contains(end)) {
                let about = Reading::of(before).ip.map_or_else(String::new, |ip| {
                    let flags = if let Transport::Tcp(tcp) = ip.transport { tcp.flags } else { 0 };
                    format!("flags {flags:02x}, {} hops, {:?}, {:?}", ip.hop_limit, ip.fragment, ip.faults)
                });
                lines += &format!("{number}: {role:?} {entry:?} {sent:?} {about} {fate:?} as {came:?}\n");
            }
        }
        lines
    }
}

/// Source and destination, as text.
fn ends(frame: &[u8]) -> Vec<String> {
    let Some(ip) = Reading::of(frame).ip else { return Vec::new() };
    let Some(ports) = ip.ports() else { return Vec::new() };
    [(ip.addresses.source(), ports.source), (ip.addresses.destination(), ports.destination)]
        .map(|(ip, port)| SocketAddr::new(ip, port).to_string())
        .to_vec()
}
