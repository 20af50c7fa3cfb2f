//! What came of much traffic.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{Failure, FailureKind, Outcome};

/// What came of a load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Answers by pod.
    pub backends: BTreeMap<String, u64>,
    /// Failures by kind.
    pub failures: BTreeMap<FailureKind, u64>,
    /// One failure in words.
    pub example: Option<Failure>,
    /// Latencies of the answers.
    pub latencies: Latencies,
    /// TCP segments that clients had to send again, on connections of [`LoadKind::Crowd`](super::LoadKind::Crowd).
    pub retransmitted: u64,
    /// Those of them that had not arrived before: the others were late, or their acknowledgements were.
    pub lost_segments: u64,
    /// From the first request to the last answer.
    pub elapsed: Duration,
}

impl Report {
    /// Answers of all pods.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.backends.values().sum()
    }

    /// Failures of all kinds.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Answers per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.answered() as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    /// Counts one request.
    pub fn record(&mut self, outcome: Outcome) {
        match outcome {
            Ok(response) => {
                *self.backends.entry(response.pod).or_default() += 1;
                self.latencies.record(response.latency);
            }
            Err(failure) => {
                *self.failures.entry(failure.kind).or_default() += 1;
                self.example.get_or_insert(failure);
            }
        }
    }

    /// Adds another report, taken at the same time as this one.
    pub fn merge(&mut self, other: Self) {
        for (pod, count) in other.backends {
            *self.backends.entry(pod).or_default() += count;
        }
        for (kind, count) in other.failures {
            *self.failures.entry(kind).or_default() += count;
        }
        self.example = self.example.take().or(other.example);
        self.latencies.merge(&other.latencies);
        self.retransmitted += other.retransmitted;
        self.lost_segments += other.lost_segments;
        self.elapsed = self.elapsed.max(other.elapsed);
    }
}

/// Distribution of latencies, exact to a thousandth, in nanoseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    const DIGITS: u8 = 3;

    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        self.record_n(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX), 1);
    }

    /// Adds those of another distribution.
    pub fn merge(&mut self, other: &Self) {
        for value in other.0.iter_recorded() {
            self.record_n(value.value_iterated_to(), value.count_at_value());
        }
    }

    fn record_n(&mut self, nanoseconds: u64, count: u64) {
        self.0.record_n(nanoseconds, count).expect("the histogram grows to any value");
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The latency that this share (0.0..=1.0) of all does not exceed. Zero if there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(share))
    }

    /// Median.
    #[must_use]
    pub fn p50(&self) -> Duration {
        self.quantile(0.5)
    }

    /// Ninety-ninth percentile.
    #[must_use]
    pub fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    /// The longest.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }

    /// Mean.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.0.mean() / 1e9)
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new(Self::DIGITS).expect("three digits are within the histogram's 0..=5"))
    }
}

impl From<Vec<(u64, u64)>> for Latencies {
    fn from(buckets: Vec<(u64, u64)>) -> Self {
        let mut latencies = Self::default();
        for (nanoseconds, count) in buckets {
            latencies.record_n(nanoseconds, count);
        }
        latencies
    }
}

impl From<Latencies> for Vec<(u64, u64)> {
    fn from(latencies: Latencies) -> Self {
        latencies.0.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_survive_the_way_through_json() {
        let mut latencies = Latencies::default();
        for micros in 1..=1000 {
            latencies.record(Duration::from_micros(micros));
        }
        let json = serde_json::to_string(&latencies).unwrap();
        let back: Latencies = serde_json::from_str(&json).unwrap();
        assert_eq!((back.count(), back.p50(), back.max()), (1000, latencies.p50(), latencies.max()));
        assert!((back.p99().as_micros() as i64 - 990).abs() <= 1, "{:?}", back.p99());
    }

    #[test]
    fn merged_reports_count_both() {
        let failure = Failure { kind: FailureKind::Refused, detail: String::new(), after: Duration::ZERO };
        let mut one = Report::default();
        one.record(Err(failure.clone()));
        let mut other = Report::default();
        other.record(Err(failure));
        one.merge(other);
        assert_eq!((one.answered(), one.failed()), (0, 2));
        assert_eq!(one.failures, BTreeMap::from([(FailureKind::Refused, 2)]));
    }
}
