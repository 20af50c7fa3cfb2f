//! What clients notice, round by round.

use std::{
    net::SocketAddr,
    panic::resume_unwind,
    thread,
    time::{Duration, Instant},
};

use lb_testkit::{LabError, lab::Lab, traffic::Latencies};

use super::{
    bed::Path,
    error::Result,
    result::{Counts, Speed},
    stats::{median, median_ratio, round},
};

/// What the rounds said about one path.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    cps: Vec<f64>,
    failures: u64,
}

impl Samples {
    /// Measures the path once.
    pub(super) fn add(&mut self, lab: &Lab, path: &Path, n: &Counts) -> Result<()> {
        let latencies = self.one_by_one(lab, path, n)?;
        self.p50_us.push(micros(latencies.p50()));
        self.p99_us.push(micros(latencies.p99()));
        let rate = self.in_parallel(lab, path, n)?;
        self.cps.push(rate);
        Ok(())
    }

    /// The medians, beside the same rounds of the baselines.
    pub(super) fn speed(&self, direct: &Self, floor: &Self) -> Speed {
        let middle = |values: &[f64], digits| round(median(values.iter().copied()).unwrap_or(0.0), digits);
        let ratio = |values: &[f64], base: &[f64]| round(median_ratio(values, base).unwrap_or(0.0), 3);
        Speed {
            connect_p50_us: middle(&self.p50_us, 2),
            connect_p99_us: middle(&self.p99_us, 2),
            connect_p50_ratio: ratio(&self.p50_us, &direct.p50_us),
            connect_floor_ratio: ratio(&self.p50_us, &floor.p50_us),
            cps: middle(&self.cps, 0),
            cps_ratio: ratio(&self.cps, &direct.cps),
            cps_floor_ratio: ratio(&self.cps, &floor.cps),
            failures: self.failures,
        }
    }

    /// One connection after the other, to several places in turns as a service spreads them.
    fn one_by_one(&mut self, lab: &Lab, path: &Path, n: &Counts) -> Result<Latencies> {
        let each = each(n.connects, path);
        let places = self.again(|| lab.client(path.origin).connect_race(&path.to, each))?;
        let mut all = Latencies::default();
        places.iter().for_each(|latencies| all.merge(latencies));
        Ok(all)
    }

    /// The same on several lanes at once, each beginning at another place. Connections per second.
    fn in_parallel(&mut self, lab: &Lab, path: &Path, n: &Counts) -> Result<f64> {
        let each = each(n.lane_connects, path);
        let lanes: Vec<Vec<SocketAddr>> = (0..n.lanes).map(|lane| rotated(&path.to, lane)).collect();
        let start = Instant::now();
        let counts = thread::scope(|scope| {
            let run = |to: &Vec<SocketAddr>| lab.client(path.origin).connect_race(to, each);
            let lanes: Vec<_> = lanes.iter().map(|to| scope.spawn(move || run(to))).collect();
            let ended = lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|cause| resume_unwind(cause)));
            ended.collect::<Vec<_>>()
        });
        let took = start.elapsed();
        let mut connections = 0;
        for (lane, to) in counts.into_iter().zip(&lanes) {
            match lane {
                Ok(latencies) => connections += latencies.iter().map(Latencies::count).sum::<u64>(),
                Err(_) => {
                    self.failures += 1;
                    lab.client(path.origin).connect_race(to, 1)?;
                }
            }
        }
        Ok(connections as f64 / took.as_secs_f64())
    }

    /// Counts a failure and tries once more; if that fails, too, the path is broken.
    fn again<T>(&mut self, attempt: impl Fn() -> std::result::Result<T, LabError>) -> Result<T> {
        match attempt() {
            Ok(value) => Ok(value),
            Err(_) => {
                self.failures += 1;
                Ok(attempt()?)
            }
        }
    }
}

/// Rounds over the places of a path that make `connections` in all.
fn each(connections: u32, path: &Path) -> u32 {
    connections.div_ceil(u32::try_from(path.to.len()).unwrap_or(u32::MAX)).max(1)
}

fn rotated(to: &[SocketAddr], by: usize) -> Vec<SocketAddr> {
    let mut rotated = to.to_vec();
    rotated.rotate_left(by % to.len().max(1));
    rotated
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_begins_elsewhere_and_goes_everywhere() {
        let to: Vec<SocketAddr> = (1..=4).map(|port| SocketAddr::from(([10, 0, 0, 1], port))).collect();
        let ports = |lane| rotated(&to, lane).iter().map(SocketAddr::port).collect::<Vec<_>>();
        assert_eq!((ports(0), ports(1), ports(5)), (vec![1, 2, 3, 4], vec![2, 3, 4, 1], vec![2, 3, 4, 1]));
        assert_eq!(rotated(&[], 3), []);
    }

    fn samples(p50: &[f64], cps: &[f64]) -> Samples {
        Samples { p50_us: p50.into(), p99_us: p50.iter().map(|p| p * 3.0).collect(), cps: cps.into(), failures: 0 }
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        let direct = samples(&[30.0, 300.0, 30.0], &[100.0, 10.0, 100.0]);
        let floor = samples(&[36.0, 360.0, 36.0], &[80.0, 8.0, 80.0]);
        let slow = samples(&[60.0, 600.0, 60.0], &[50.0, 5.0, 50.0]);
        let speed = slow.speed(&direct, &floor);
        assert_eq!((speed.connect_p50_us, speed.connect_p99_us, speed.cps), (60.0, 180.0, 50.0));
        assert_eq!((speed.connect_p50_ratio, speed.cps_ratio), (2.0, 0.5));
        assert_eq!((speed.connect_floor_ratio, speed.cps_floor_ratio), (1.667, 0.625));
        assert_eq!(direct.speed(&direct, &floor).connect_p50_ratio, 1.0);
    }
}
