//! Affinity, the choice of backends, and what becomes of flows whose backend goes.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{Service as Object, ServiceSpec};
use lb_core::{
    affinity::Affinity,
    service::{Algorithm, DrainPolicy, Service},
    table::TableSize,
    topology::TrafficDistribution,
};

use super::text;
use crate::{
    annotations::{
        AFFINITY_BY_SOURCE, AFFINITY_PREFIX_V4, AFFINITY_PREFIX_V6, ALGORITHM, CILIUM_ALGORITHM, DRAIN,
        MAGLEV_TABLE_SIZE, PANIC_THRESHOLD,
    },
    check::{self, At, Invalid},
    text::quoted,
};

/// Longest time to drain, in seconds.
const MAX_DRAIN: u32 = 86_400;
/// Longest time-out of affinity, in seconds, as Kubernetes limits it.
const MAX_TIMEOUT: i32 = 86_400;

/// Fills in what tunes the balancing.
pub(super) fn read(object: &Object, spec: &ServiceSpec, service: &mut Service) -> Result<(), Invalid> {
    let none = BTreeMap::new();
    let annotations = Annotations(object.metadata.annotations.as_ref().unwrap_or(&none));
    service.affinity = affinity(spec, &annotations)?;
    service.affinity_by_source = annotations.get(AFFINITY_BY_SOURCE, boolean)?.unwrap_or_default();
    service.algorithm = algorithm(&annotations)?;
    service.table_size = table_size(&annotations, service.algorithm)?;
    service.traffic_distribution = traffic_distribution(spec)?;
    service.drain = annotations.get(DRAIN, drain)?.unwrap_or_default();
    service.panic_threshold =
        annotations.get(PANIC_THRESHOLD, |text| check::number(text, 100).map(|percent| percent as u8))?;
    Ok(())
}

struct Annotations<'a>(&'a BTreeMap<String, String>);

impl Annotations<'_> {
    fn get<T>(&self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<Option<T>, Invalid> {
        self.0.get(key).map(|value| parse(value)).transpose().at(|| annotation(key))
    }
}

/// The path of an annotation.
fn annotation(key: &str) -> String {
    format!("metadata.annotations[{key}]")
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(format!("{} is neither true nor false", quoted(other))),
    }
}

fn affinity(spec: &ServiceSpec, annotations: &Annotations<'_>) -> Result<Option<Affinity>, Invalid> {
    let bits = |max| move |text: &str| check::number(text, max).map(|bits| bits as u8);
    let prefix_v4 = annotations.get(AFFINITY_PREFIX_V4, bits(32))?;
    let prefix_v6 = annotations.get(AFFINITY_PREFIX_V6, bits(128))?;
    let by_source = annotations.get(AFFINITY_BY_SOURCE, boolean)?;
    match text(spec.session_affinity.as_ref()) {
        None | Some("None") => {
            let timeout = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let unused = [
                (timeout.is_some(), "spec.sessionAffinityConfig.clientIP".to_owned()),
                (prefix_v4.is_some(), annotation(AFFINITY_PREFIX_V4)),
                (prefix_v6.is_some(), annotation(AFFINITY_PREFIX_V6)),
                (by_source == Some(true), annotation(AFFINITY_BY_SOURCE)),
            ];
            match unused.into_iter().find(|(is_set, _)| *is_set) {
                Some((_, field)) => Err(Invalid::new(field, "it needs `sessionAffinity: ClientIP`")),
                None => Ok(None),
            }
        }
        Some("ClientIP") => {
            let default = Affinity::default();
            Ok(Some(Affinity {
                timeout: timeout(spec)?.unwrap_or(default.timeout),
                prefix_v4: prefix_v4.unwrap_or(default.prefix_v4),
                prefix_v6: prefix_v6.unwrap_or(default.prefix_v6),
            }))
        }
        Some(other) => {
            let message = format!("{} is not an affinity, expected None or ClientIP", quoted(other));
            Err(Invalid::new("spec.sessionAffinity", message))
        }
    }
}

fn timeout(spec: &ServiceSpec) -> Result<Option<Duration>, Invalid> {
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(seconds) = config.and_then(|config| config.timeout_seconds) else { return Ok(None) };
    if (1..=MAX_TIMEOUT).contains(&seconds) {
        return Ok(Some(Duration::from_secs(seconds.unsigned_abs().into())));
    }
    let message = format!("{seconds} is not a time-out, expected 1 to {MAX_TIMEOUT} seconds");
    Err(Invalid::new("spec.sessionAffinityConfig.clientIP.timeoutSeconds", message))
}

fn traffic_distribution(spec: &ServiceSpec) -> Result<Option<TrafficDistribution>, Invalid> {
    match text(spec.traffic_distribution.as_ref()) {
        None => Ok(None),
        Some("PreferSameZone" | "PreferClose") => Ok(Some(TrafficDistribution::PreferSameZone)),
        Some("PreferSameNode") => Ok(Some(TrafficDistribution::PreferSameNode)),
        Some(other) => {
            let message = format!(
                "{} is not a distribution, expected PreferSameZone, PreferSameNode or PreferClose",
                quoted(other)
            );
            Err(Invalid::new("spec.trafficDistribution", message))
        }
    }
}

fn drain(text: &str) -> Result<DrainPolicy, String> {
    match text {
        "keep" => Ok(DrainPolicy::Keep),
        "cut" => Ok(DrainPolicy::Cut),
        seconds => match check::number(seconds, MAX_DRAIN) {
            Ok(seconds) if seconds > 0 => Ok(DrainPolicy::For(Duration::from_secs(seconds.into()))),
            Ok(_) | Err(_) => Err(format!("{} is not `keep`, `cut` or a number from 1 to {MAX_DRAIN}", quoted(text))),
        },
    }
}

fn algorithm(annotations: &Annotations<'_>) -> Result<Option<Algorithm>, Invalid> {
    let cilium = annotations.get(CILIUM_ALGORITHM, |text| {
        let cilium = [Algorithm::Random, Algorithm::Maglev];
        named(text, &cilium).ok_or_else(|| format!("{} is not an algorithm, expected random or maglev", quoted(text)))
    })?;
    let ours = annotations.get(ALGORITHM, |text| {
        let all = [Algorithm::Random, Algorithm::RoundRobin, Algorithm::Maglev, Algorithm::LeastConnections];
        let expected = "random, round-robin, maglev or least-connections";
        named(text, &all).ok_or_else(|| format!("{} is not an algorithm, expected {expected}", quoted(text)))
    })?;
    match (ours, cilium) {
        (Some(ours), Some(cilium)) if ours != cilium => {
            Err(Invalid::new(annotation(ALGORITHM), format!("{ours} contradicts {CILIUM_ALGORITHM}: {cilium}")))
        }
        _ => Ok(ours.or(cilium)),
    }
}

fn named(text: &str, algorithms: &[Algorithm]) -> Option<Algorithm> {
    algorithms.iter().copied().find(|algorithm| algorithm.as_str() == text)
}

fn table_size(annotations: &Annotations<'_>, algorithm: Option<Algorithm>) -> Result<Option<TableSize>, Invalid> {
    let size = annotations.get(MAGLEV_TABLE_SIZE, |text| {
        let size = check::number(text, u32::MAX)?;
        TableSize::new(size).map_err(|error| error.to_string())
    })?;
    if size.is_some() && !matches!(algorithm, None | Some(Algorithm::Maglev)) {
        return Err(Invalid::new(annotation(MAGLEV_TABLE_SIZE), "only Maglev has a table"));
    }
    Ok(size)
}
