//! Everything that is measured at one number of services.

use std::time::Duration;

use lb_agent::driver::{self, DatapathKind};
use lb_core::datapath::KernelUsage;
use lb_testkit::worlds::BACKEND_PORT;

use super::{
    bed::{Bed, Path},
    error::Result,
    floor,
    footprint::{self, Footprint},
    iptables, memory,
    paths::Samples,
    probe::Probe,
    progress::Progress,
    result::{Comparison, Counts, PathRow, Row},
    stats::{median, order, percentile, round},
    subject::Subject,
    table::thousands,
    world::{Compared, Group},
};

/// A first sync is repeated until this much time has gone into it.
const ENOUGH_SYNC: Duration = Duration::from_secs(1);

/// One number of services.
pub(super) struct Size<'a> {
    pub(super) services: u32,
    pub(super) datapaths: &'a [DatapathKind],
    pub(super) n: Counts,
    pub(super) seed: u64,
    pub(super) progress: &'a Progress,
}

/// What was measured of one datapath, beside its path.
#[derive(Clone, Debug, Default)]
struct Control {
    sync_ms: Vec<f64>,
    /// Growth of the kernel's memory in the first sync, in MiB.
    grown_mib: f64,
    change_ms: Vec<f64>,
    commit_ms: Vec<f64>,
    usage: KernelUsage,
    failed_probes: u64,
}

impl Size<'_> {
    /// Steps of the progress that one size takes.
    pub(super) fn steps(datapaths: usize, n: &Counts) -> u64 {
        let (datapaths, rounds) = (datapaths as u64, u64::from(n.rounds));
        1 + datapaths + u64::from(n.changes) + rounds + datapaths + 1
    }

    /// Measures everything and adds it to `comparison`.
    pub(super) fn measure(&self, comparison: &mut Comparison) -> Result<()> {
        self.step("building a cluster");
        let bed = Bed::build(self.datapaths)?;
        let world = bed.world(self.services, self.n.maglev);
        floor::install(bed.floor(), world.frontend(), &bed.servers(Group::A), BACKEND_PORT)?;
        let mut controls = vec![Control::default(); self.datapaths.len()];
        let mut subjects = self.sync_all(&bed, &world, &mut controls)?;
        self.change_all(&bed, &world, &mut subjects, &mut controls)?;
        for (index, subject) in subjects.iter().enumerate() {
            controls[index].usage = subject.usage()?;
            self.check_place(&bed, &world, index, comparison)?;
        }
        let paths = bed.paths(&world);
        let samples = self.rounds(&bed, &paths)?;
        drop(subjects);
        let footprints = self.footprints(&bed, &world)?;
        self.conclude(comparison, &controls, &footprints, &paths, &samples);
        bed.close()
    }

    /// First syncs, one datapath after the other.
    fn sync_all<'lab>(&self, bed: &'lab Bed, world: &Compared, controls: &mut [Control]) -> Result<Vec<Subject<'lab>>> {
        let mut subjects: Vec<Option<Subject<'lab>>> = self.datapaths.iter().map(|_| None).collect();
        for index in order(self.datapaths.len(), self.seed, 0) {
            let kind = self.datapaths[index];
            self.step(&format!("first sync of {kind}"));
            let subject = self.sync(Subject::open(kind, bed.node(index))?, world, &mut controls[index])?;
            subjects[index] = Some(subject);
        }
        Ok(subjects.into_iter().flatten().collect())
    }

    fn sync<'lab>(&self, mut subject: Subject<'lab>, world: &Compared, control: &mut Control) -> Result<Subject<'lab>> {
        let before = memory::kernel_total()?;
        let mut total = subject.sync(world)?;
        control.grown_mib = memory::kernel_total()? - before;
        control.sync_ms.push(millis(total));
        while control.sync_ms.len() < self.n.syncs as usize && total < ENOUGH_SYNC {
            subject = subject.reopen()?;
            let took = subject.sync(world)?;
            control.sync_ms.push(millis(took));
            total += took;
        }
        Ok(subject)
    }

    /// Changes of the last service's endpoints, in turns.
    fn change_all(
        &self,
        bed: &Bed,
        world: &Compared,
        subjects: &mut [Subject<'_>],
        controls: &mut [Control],
    ) -> Result<()> {
        for change in 0..self.n.changes {
            self.step(&format!("change {} of {}", change + 1, self.n.changes));
            let (from, to) = (Group::after(change + 1), Group::after(change));
            for index in order(subjects.len(), self.seed, change) {
                let (subject, control) = (&mut subjects[index], &mut controls[index]);
                let netns = bed.client_netns(index);
                let probe = Probe::start(subject.kind(), bed.node(index), netns, world.frontend(), from)?;
                let committed = subject.change(world.last_slice(to))?;
                let effect = probe.effect(committed, to)?;
                control.change_ms.push(millis(effect.after));
                control.commit_ms.push(millis(committed.took));
                control.failed_probes += effect.failures;
            }
        }
        Ok(())
    }

    /// Connections on every path, in turns.
    fn rounds(&self, bed: &Bed, paths: &[Path]) -> Result<Vec<Samples>> {
        let mut samples = vec![Samples::default(); paths.len()];
        for round in 0..self.n.rounds {
            self.step(&format!("connections, round {} of {}", round + 1, self.n.rounds));
            for index in order(paths.len(), self.seed, round) {
                samples[index].add(bed.lab(), &paths[index], &self.n)?;
            }
        }
        Ok(samples)
    }

    /// One agent after the other; the last one has no datapath, to compare the others with.
    fn footprints(&self, bed: &Bed, world: &Compared) -> Result<Vec<Footprint>> {
        let manifests = footprint::write_manifests(world, bed.lab().run_dir()?.join("manifests"))?;
        let kinds = self.datapaths.iter().chain(&[driver::MEMORY]);
        let measured = kinds.enumerate().map(|(index, &kind)| {
            self.step(&format!("agent on {kind}"));
            footprint::measure(kind, bed.agent_node(index), &manifests)
        });
        measured.collect()
    }

    /// The last service is meant to be the last that packets are compared with; says so if it is not.
    fn check_place(&self, bed: &Bed, world: &Compared, index: usize, comparison: &mut Comparison) -> Result<()> {
        let kind = self.datapaths[index];
        let position = iptables::position(kind, bed.node(index), world.frontend().ip())?;
        if let Some(rule) = position.filter(|rule| rule.position != rule.services) {
            comparison.notes.push(format!(
                "{kind} at {} services: the measured service is number {} of {} in its chain, not the last",
                self.services, rule.position, rule.services
            ));
        }
        Ok(())
    }

    fn conclude(
        &self,
        comparison: &mut Comparison,
        controls: &[Control],
        footprints: &[Footprint],
        paths: &[Path],
        samples: &[Samples],
    ) {
        let (direct, floor) = (&samples[0], &samples[1]);
        let rows = self.datapaths.len();
        for (index, (path, sample)) in paths.iter().zip(samples).enumerate() {
            let speed = sample.speed(direct, floor);
            let services = self.services;
            let row = PathRow { name: path.name, services, speed };
            match index.checked_sub(2) {
                None => comparison.baselines.push(row),
                Some(index) if index < rows => {
                    let without = footprints.last();
                    let row = self.row(index, &controls[index], footprints[index], without, row);
                    comparison.rows.push(row);
                }
                Some(_) => comparison.extras.push(row),
            }
        }
        self.note_failures(comparison, controls);
    }

    fn row(
        &self,
        index: usize,
        control: &Control,
        footprint: Footprint,
        without: Option<&Footprint>,
        path: PathRow,
    ) -> Row {
        let charged = footprint.charged_mib.zip(without.and_then(|without| without.charged_mib));
        let grown = charged.map_or(control.grown_mib, |(with, without)| with - without).max(0.0);
        let kernel_mib = control.usage.bytes.map_or(grown, |bytes| bytes as f64 / f64::from(1 << 20));
        let middle = |values: &[f64]| round(median(values.iter().copied()).unwrap_or(0.0), 3);
        let last = |values: &[f64]| round(percentile(values.to_vec(), 99).unwrap_or(0.0), 3);
        Row {
            datapath: self.datapaths[index],
            services: self.services,
            sync_ms: middle(&control.sync_ms),
            change_ms: middle(&control.change_ms),
            change_p99_ms: last(&control.change_ms),
            commit_ms: middle(&control.commit_ms),
            commit_p99_ms: last(&control.commit_ms),
            rules: control.usage.rules,
            elements: control.usage.elements,
            ready_ms: round(millis(footprint.ready), 1),
            rss_mib: round(footprint.rss_mib, 2),
            kernel_mib: round(kernel_mib, 3),
            speed: path.speed,
        }
    }

    fn note_failures(&self, comparison: &mut Comparison, controls: &[Control]) {
        let at = format!("at {} services", thousands(u64::from(self.services)));
        for (kind, control) in self.datapaths.iter().zip(controls).filter(|(_, control)| control.failed_probes > 0) {
            let count = control.failed_probes;
            comparison.notes.push(format!("{kind} {at}: {count} requests failed while changes were carried out"));
        }
        let paths = comparison.baselines.iter().chain(&comparison.extras);
        let speeds = paths.map(|path| (path.name, path.services, path.speed));
        let rows = comparison.rows.iter().map(|row| (row.datapath.name(), row.services, row.speed));
        let failed: Vec<String> = speeds
            .chain(rows)
            .filter(|(_, services, speed)| *services == self.services && speed.failures > 0)
            .map(|(name, _, speed)| format!("{name} {at}: {} connections failed", speed.failures))
            .collect();
        comparison.notes.extend(failed);
    }

    fn step(&self, what: &str) {
        self.progress.step(&format!("{} services: {what}", thousands(u64::from(self.services))));
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
