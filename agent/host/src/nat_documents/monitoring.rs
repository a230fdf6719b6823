//! What Cloud Monitoring measured: `projects.timeSeries.list` of the `compute.googleapis.com/nat/…` metrics.
//!
//! `allocated_ports` has a series for each NAT IP of a machine, of which those are added that go on; `port_usage` is the largest number of
//! connections to one destination, of which the maximum is taken.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use headroom_core::model::nat::{Described, Profile};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected};
use serde_json::Value;

use super::count::{Count, number};
use super::{BadDocument, Failed, Said, field, last_part};

const TOOL: &str = "Cloud Monitoring time series";

/// Series whose last points are no further apart go on: the metrics are sampled every minute. What ended before the newest of a
/// machine's series by more is an IP that it has no more.
const TOGETHER: Duration = Duration::from_secs(120);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Series {
    metric: Labelled,
    resource: Labelled,
    metadata: Option<Metadata>,
    points: Option<Vec<Point>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Labelled {
    #[serde(rename = "type")]
    kind: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    #[serde(alias = "system_labels")]
    system_labels: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Point {
    interval: Interval,
    value: Measured,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Interval {
    #[serde(alias = "end_time")]
    end_time: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Measured {
    #[serde(alias = "int64_value")]
    int64_value: Option<Count>,
    #[serde(alias = "double_value", deserialize_with = "not_negative")]
    double_value: Option<f64>,
    #[serde(alias = "bool_value")]
    bool_value: Option<bool>,
}

fn not_negative<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    match Option::<f64>::deserialize(deserializer)? {
        Some(value) if value < 0.0 => Err(D::Error::invalid_value(Unexpected::Float(value), &"a number from 0 on")),
        value => Ok(value),
    }
}

/// The last value of a series, and when that was.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Last {
    ports: u32,
    at: Option<String>,
}

impl Last {
    /// Points without a number are passed over.
    fn of(points: &[Point]) -> Option<Self> {
        let numbered = points.iter().filter_map(|point| Some((point.interval.end_time.clone(), point.number()?)));
        numbered.max_by(|a, b| a.0.cmp(&b.0)).map(|(at, ports)| Self { ports, at })
    }

    fn moment(&self) -> Option<SystemTime> {
        humantime::parse_rfc3339_weak(self.at.as_deref()?).ok()
    }
}

/// Ports of a machine now, and of when that is.
fn present(series: &[Last]) -> (u32, Option<String>) {
    let newest = series.iter().filter_map(Last::moment).max();
    let goes_on = |last: &&Last| match (newest, last.moment()) {
        (Some(newest), Some(moment)) => newest.duration_since(moment).is_ok_and(|ago| ago <= TOGETHER),
        _ => true,
    };
    let ports = series.iter().filter(goes_on).map(|last| last.ports).fold(0, u32::saturating_add);
    (ports, series.iter().filter_map(|last| last.at.clone()).max())
}

impl Point {
    fn number(&self) -> Option<u32> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a float is cast to the nearest number there is, NaN to 0"
        )]
        let rounded = |value: f64| value.ceil() as u32;
        number(self.value.int64_value).or(self.value.double_value.map(rounded))
    }
}

impl Labelled {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.as_ref()?.get(name).map(String::as_str)
    }
}

/// All series of an answer.
pub(super) fn read(list: &Value, path: &str) -> Result<Said, BadDocument> {
    let list: Vec<Series> = field(list, TOOL, path)?;
    let mut said = Said {
        tool: TOOL,
        described: Described { profile: Some(Profile::Gcp), ..Described::default() },
        ..Said::default()
    };
    let (mut known, mut dropped) = (false, BTreeMap::<String, u64>::new());
    let (mut allocated, mut sums) = (BTreeMap::<String, Vec<Last>>::new(), false);
    for series in &list {
        let points = series.points.as_deref().unwrap_or_default();
        match last_part(&series.metric.kind).as_str() {
            "allocated_ports" => {
                known = true;
                let name = instance(series);
                sums |= name.is_none();
                if let (Some(name), Some(last)) = (name, Last::of(points)) {
                    allocated.entry(name).or_default().push(last);
                }
            }
            "port_usage" => {
                known = true;
                let most = points.iter().filter_map(Point::number).max();
                let name = instance(series);
                sums |= name.is_none();
                if let (Some(name), Some(most)) = (name, most) {
                    let instance = said.instances.entry(name).or_default();
                    instance.used = instance.used.max(Some(most));
                }
            }
            "dropped_sent_packets_count" => {
                known = true;
                let reason = series.metric.label("reason").unwrap_or("no reason given");
                // Often misspelt by those who save it.
                let reason =
                    if reason == "ENDPOINT_INDEPENDENT_CONFLICT" { "ENDPOINT_INDEPENDENCE_CONFLICT" } else { reason };
                let packets: u64 = points.iter().filter_map(Point::number).map(u64::from).sum();
                *dropped.entry(super::shortened(reason)).or_default() += packets;
            }
            "nat_allocation_failed" => {
                known = true;
                let latest = points.iter().max_by_key(|point| point.interval.end_time.as_deref());
                if let Some(point) = latest.filter(|point| point.value.bool_value == Some(true)) {
                    // Of several gateways the one that failed last.
                    let failed = Failed { at: point.interval.end_time.clone() };
                    let before = said.allocation_failed.take().filter(|before| before.at > failed.at);
                    said.allocation_failed = before.or(Some(failed));
                }
            }
            _ => {}
        }
    }
    if !known {
        let hint = ": wanted are compute.googleapis.com/nat/allocated_ports and port_usage".to_owned();
        return Err(BadDocument::Nothing { tool: TOOL, hint });
    }
    for (name, series) in allocated {
        let (ports, at) = present(&series);
        let instance = said.instances.entry(name).or_default();
        instance.ports = Some(ports);
        instance.at = at;
    }
    if sums {
        said.notes.push("series without an instance are sums over machines: not counted as one machine".to_owned());
    }
    let dropped = dropped.into_iter().filter(|(_, packets)| *packets > 0);
    said.notes.extend(dropped.map(|(reason, packets)| format!("the gateway dropped {packets} packets: {reason}")));
    Ok(said)
}

/// The machine of a series: by its name where the answer has it, else by its number. A sum over machines has neither.
fn instance(series: &Series) -> Option<String> {
    let system = series.metadata.as_ref().and_then(|metadata| metadata.system_labels.as_ref());
    let name = system.and_then(|labels| labels.get("name")).and_then(Value::as_str);
    let name = name.or_else(|| series.metric.label("instance_name")).or_else(|| series.resource.label("instance_name"));
    name.or_else(|| series.resource.label("instance_id")).map(str::to_owned)
}
