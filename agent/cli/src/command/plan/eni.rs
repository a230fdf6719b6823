//! `headroom plan eni`: what the AWS VPC CNI attaches to a node.

use anyhow::{Context, bail};
use headroom_core::observe::WarmTargets;
use headroom_core::sizing::eni::{self, EniPlan, INSTANCE_TYPES, InstanceType, Limits, Question, instance_type};
use serde::Serialize;

use crate::args::Format;
use crate::args::plan::PlanEniArgs;
use crate::command::UsageError;
use crate::output::{self, table::Width};

/// The answer, and what it is about.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// The type of the instance, if it was named.
    pub instance_type: Option<&'static str>,
    /// Network interfaces it can carry.
    pub max_enis: u32,
    /// Addresses of each, the primary one among them.
    pub ips_per_eni: u32,
    /// Pods on the pod network.
    pub pods: u32,
    /// What a node takes.
    #[serde(flatten)]
    pub plan: EniPlan,
    /// What all nodes take.
    pub cluster: Cluster,
}

/// What nodes that are all alike take together.
#[derive(Debug, Serialize)]
pub struct Cluster {
    /// How many.
    pub nodes: u32,
    /// Addresses for pods.
    pub addresses: u64,
    /// Addresses taken from the subnets.
    pub subnet_addresses: u64,
    /// Addresses that no pod uses.
    pub unused: u64,
}

/// Runs the command.
///
/// # Errors
/// An instance that is not known, numbers that none has, a closed stdout.
pub(super) fn run(args: &PlanEniArgs) -> anyhow::Result<u8> {
    let answer = answer(args).map_err(UsageError)?;
    match args.output {
        Format::Json => output::json(&answer)?,
        Format::Table => output::print(&output::table::plan::eni(&answer, Width::of_stdout()))?,
    }
    Ok(super::exit_code(answer.plan.pods_failing == 0))
}

fn answer(args: &PlanEniArgs) -> anyhow::Result<Answer> {
    let (known, limits) = limits(args)?;
    let prefix_delegation = args.prefix_delegation.unwrap_or(false);
    // The stock manifest sets it to 1, though ipamd itself has no default.
    let assumed = prefix_delegation && args.warm_prefix_target.is_none();
    let targets = WarmTargets {
        warm_eni: args.warm_eni_target,
        warm_ip: args.warm_ip_target,
        minimum_ip: args.minimum_ip_target,
        warm_prefix: if assumed { Some(1) } else { args.warm_prefix_target },
        prefix_delegation,
    };
    let mut plan = eni::plan(&Question { limits, targets, pods: args.pods, max_pods: args.max_pods })?;
    let by_addresses = args.warm_ip_target.or(args.minimum_ip_target).is_some_and(|target| target > 0);
    if assumed && !by_addresses {
        plan.notes.push("WARM_PREFIX_TARGET=1 is assumed, as in the stock manifest".to_owned());
    }
    if let Some(known) = known {
        plan.notes.extend(about(known, args));
    }
    let times = |of: u32| u64::from(of) * u64::from(args.nodes);
    let cluster = Cluster {
        nodes: args.nodes,
        addresses: times(plan.addresses),
        subnet_addresses: times(plan.subnet_addresses),
        unused: times(plan.unused),
    };
    let Limits { enis, addresses_per_eni } = limits;
    let instance_type = known.map(|known| known.name);
    Ok(Answer { instance_type, max_enis: enis, ips_per_eni: addresses_per_eni, pods: args.pods, plan, cluster })
}

/// What the instance can carry; numbers given by hand win over the type's.
fn limits(args: &PlanEniArgs) -> anyhow::Result<(Option<&'static InstanceType>, Limits)> {
    let known = args.instance_type.as_deref().map(|name| (name, instance_type(name)));
    match (known, args.max_enis, args.ips_per_eni) {
        (None | Some((_, None)), Some(enis), Some(addresses_per_eni)) => Ok((None, Limits { enis, addresses_per_eni })),
        (Some((_, Some(known))), enis, addresses) => {
            let Limits { enis: of_type, addresses_per_eni } = known.limits;
            let limits =
                Limits { enis: enis.unwrap_or(of_type), addresses_per_eni: addresses.unwrap_or(addresses_per_eni) };
            Ok((Some(known), limits))
        }
        (Some((name, None)), ..) => {
            let family = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
            let near: Vec<&str> =
                INSTANCE_TYPES.iter().map(|known| known.name).filter(|known| family(known) == family(name)).collect();
            let near =
                if near.is_empty() { String::new() } else { format!(" (known of that family: {})", near.join(", ")) };
            bail!(
                "the instance type `{name}` is not in the table of this version{near}; give --max-enis and --ips-per-eni, as `aws ec2 describe-instance-types` tells them (MaximumNetworkInterfaces, Ipv4AddressesPerInterface)"
            )
        }
        (None, ..) => None.context("which instance? Add --instance-type, or both --max-enis and --ips-per-eni"),
    }
}

/// What is known of the type beyond its limits.
fn about(known: &InstanceType, args: &PlanEniArgs) -> Vec<String> {
    let mut notes = Vec::new();
    if args.max_pods.is_none() && args.prefix_delegation == Some(true) {
        notes.push(format!(
            "no --max-pods was given: a node that keeps eni-max-pods.txt's {} pods stops growing there; AWS advises 110 with prefix delegation (250 with more than 30 vCPUs)",
            known.max_pods
        ));
    }
    if known.more_cards {
        notes.push(format!("{} has more than one network card; the limits are those of the first", known.name));
    }
    notes
}
