//! What Cloud Monitoring measured: `projects.timeSeries.list` of the `compute.googleapis.com/nat/…` metrics.
//!
//! `allocated_ports` has a series for each NAT IP of a machine, which are added; `port_usage` is the largest number of
//! connections to one destination, of which the maximum is taken.

use std::collections::BTreeMap;

use headroom_core::model::nat::{Described, Profile};
use serde::Deserialize;
use serde_json::Value;

use super::count::{Count, number};
use super::{BadDocument, Instance, Said, field, last_part};

const TOOL: &str = "Cloud Monitoring time series";

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
    #[serde(alias = "double_value")]
    double_value: Option<f64>,
    #[serde(alias = "bool_value")]
    bool_value: Option<bool>,
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
    for series in &list {
        let points = series.points.as_deref().unwrap_or_default();
        match last_part(&series.metric.kind).as_str() {
            "allocated_ports" => {
                known = true;
                let Some(latest) = points.iter().max_by_key(|point| point.interval.end_time.as_deref()) else {
                    continue;
                };
                let instance = instance(&mut said, series);
                let more = latest.number().unwrap_or(0);
                instance.ports = Some(instance.ports.unwrap_or(0).saturating_add(more));
                instance.at = instance.at.take().max(latest.interval.end_time.clone());
            }
            "port_usage" => {
                known = true;
                let most = points.iter().filter_map(Point::number).max();
                let instance = instance(&mut said, series);
                instance.used = instance.used.max(most);
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
                if latest.is_some_and(|point| point.value.bool_value == Some(true)) {
                    said.missing_ips = Some(1);
                    said.notes
                        .push("the gateway could not give ports to some machine (nat_allocation_failed)".to_owned());
                }
            }
            _ => {}
        }
    }
    if !known {
        let hint = ": wanted are compute.googleapis.com/nat/allocated_ports and port_usage".to_owned();
        return Err(BadDocument::Nothing { tool: TOOL, hint });
    }
    let dropped = dropped.into_iter().filter(|(_, packets)| *packets > 0);
    said.notes.extend(dropped.map(|(reason, packets)| format!("the gateway dropped {packets} packets: {reason}")));
    Ok(said)
}

/// The machine of a series: by its name where the answer has it, else by its number.
fn instance<'a>(said: &'a mut Said, series: &Series) -> &'a mut Instance {
    let system = series.metadata.as_ref().and_then(|metadata| metadata.system_labels.as_ref());
    let name = system.and_then(|labels| labels.get("name")).and_then(Value::as_str);
    let name = name.or_else(|| series.metric.label("instance_name")).or_else(|| series.resource.label("instance_name"));
    let name = name.or_else(|| series.resource.label("instance_id")).unwrap_or("all machines together");
    said.instances.entry(name.to_owned()).or_default()
}
