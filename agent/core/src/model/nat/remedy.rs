//! What to change at the NAT: how much, and the lines to type for it. Nothing is run; names that nobody has told are in
//! capitals.

use serde::{Deserialize, Serialize};

use super::{Mode, NatSettings, NodePorts, Profile};
use crate::words::counted;

mod bigger;
mod idle;

pub use bigger::bigger_gateway;
pub use idle::longer_idle;

/// A change in the words of one tool, ready to be pasted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `terraform`, `gcloud`, `aws`, `az`, `iptables`.
    pub tool: String,
    /// What to write or run; may be several lines.
    pub text: String,
}

/// Where the NAT is, as far as somebody has said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// The gateway, or an outbound rule.
    pub gateway: Option<String>,
    /// The AKS cluster that manages it.
    pub cluster: Option<String>,
    /// Its Cloud Router.
    pub router: Option<String>,
    /// Its region.
    pub region: Option<String>,
    /// Its project (Google) or resource group (Azure).
    pub group: Option<String>,
}

impl Names {
    /// These where they are said, else the others.
    pub fn or(self, other: Self) -> Self {
        Self {
            gateway: self.gateway.or(other.gateway),
            cluster: self.cluster.or(other.cluster),
            router: self.router.or(other.router),
            region: self.region.or(other.region),
            group: self.group.or(other.group),
        }
    }
}

/// What the NAT is to be set to; what is absent stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Target {
    /// Static or dynamic ports.
    pub mode: Option<Mode>,
    /// Minimum ports per node; for an Azure load balancer those allocated by hand.
    pub min_ports: Option<u32>,
    /// Maximum ports per node.
    pub max_ports: Option<u32>,
    /// NAT IPs.
    pub nat_ips: Option<u32>,
}

/// What to do, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remedy {
    /// In words.
    pub says: String,
    /// In the words of tools.
    pub changes: Vec<Change>,
}

impl Remedy {
    /// Words and changes, one below the other.
    pub fn text(&self) -> String {
        let changes = self.changes.iter().map(|change| format!("\n{}: {}", change.tool, change.text));
        format!("{}{}", self.says, changes.collect::<String>())
    }
}

/// A quarter on top of the demand, so that there is some air.
fn with_air(demand: u32) -> u32 {
    demand.saturating_add(demand / 4)
}

/// `1 NAT IP`, `2 NAT IPs`.
pub(crate) fn nat_ips(ips: u32) -> String {
    counted(ips, "NAT IP")
}

const REUSE: &str = "reuse connections in the pods named above";
const SPREAD: &str = "spread them over more destination addresses or nodes";

/// What to set so that a node that needs so many ports to one destination gets them, with some air.
pub fn more_ports(nat: &NatSettings, ports: &NodePorts, demand: u32) -> Remedy {
    let wanted = with_air(demand).max(ports.ports.saturating_add(1));
    if let Some(says) = not_in_force(nat, wanted).or_else(|| narrow_range(nat, wanted)) {
        return Remedy { says: format!("{REUSE}, or {says}"), changes: Vec::new() };
    }
    let target = match nat.profile {
        Profile::Gcp => gcp_for(nat, wanted),
        Profile::AzureLb => azure_lb_for(nat, wanted),
        Profile::Aws | Profile::AzureNatgw | Profile::Linux => ips_for(nat, wanted),
        Profile::None => None,
    };
    let Some(target) = target else {
        let says = format!("{REUSE}, or {SPREAD}: {} gives no node more ports", nat.profile.title());
        return Remedy { says, changes: Vec::new() };
    };
    let says = format!("{REUSE}, or set {} on {}", in_words(nat, target), nat.profile.title());
    Remedy { says, changes: changes(nat, target) }
}

/// A setting that would do, and a gateway that is seen to give less: the setting is not to be lowered to what is missing.
fn not_in_force(nat: &NatSettings, wanted: u32) -> Option<String> {
    let given = nat.observed.as_ref()?.ports;
    let asked = nat.min_ports.filter(|min| *min != 0 && nat.profile == Profile::Gcp && nat.mode == Mode::Static)?;
    let set = super::static_ports(Some(asked), false);
    (given < set && wanted <= set).then(|| {
        format!(
            "see whether min_ports_per_vm = {asked} is in force on {}: this node was given {given}",
            nat.profile.title()
        )
    })
}

/// Masquerading that was given a narrow range of ports: there are more on the addresses that it has.
fn narrow_range(nat: &NatSettings, wanted: u32) -> Option<String> {
    let range = nat.port_range.filter(|_| nat.profile == Profile::Linux)?;
    let most = nat.profile.capacity()?.per_destination.saturating_mul(nat.nat_ips.unwrap_or(1));
    (wanted <= most).then(|| format!("widen --to-ports of the masquerading, {range} now, or {SPREAD}"))
}

/// The next power of two; more NAT IPs where it is known that these nodes do not fit otherwise.
fn gcp_for(nat: &NatSettings, wanted: u32) -> Option<Target> {
    let wanted = wanted.checked_next_power_of_two()?;
    match nat.mode {
        // The largest power of two that Cloud NAT takes: 57,344 is above it.
        Mode::Static if wanted <= 32_768 => {
            let nat_ips = nat.nodes.and_then(|nodes| more_ips(nat, u64::from(nodes) * u64::from(wanted)));
            Some(Target { min_ports: Some(wanted), nat_ips, ..Target::default() })
        }
        Mode::Dynamic if wanted <= 65_536 => Some(Target { max_ports: Some(wanted), ..Target::default() }),
        Mode::Static | Mode::Dynamic => None,
    }
}

/// The next multiple of 8, which Azure asks for.
fn azure_lb_for(nat: &NatSettings, wanted: u32) -> Option<Target> {
    let wanted = wanted.checked_next_multiple_of(8).filter(|ports| *ports <= 64_000)?;
    let nodes = nat.nodes.map(|nodes| nodes.saturating_add(nat.surge.unwrap_or(0)));
    let nat_ips = nodes.and_then(|nodes| more_ips(nat, u64::from(nodes) * u64::from(wanted)));
    Some(Target { min_ports: Some(wanted), nat_ips, ..Target::default() })
}

/// So many IPs that one destination takes them all.
fn ips_for(nat: &NatSettings, wanted: u32) -> Option<Target> {
    let capacity = nat.profile.capacity()?;
    let ips = wanted.div_ceil(nat.ports_of_an_ip(capacity.per_destination).max(1));
    capacity.max_ips.is_none_or(|most| ips <= most).then_some(Target { nat_ips: Some(ips), ..Target::default() })
}

/// How many NAT IPs hold so many ports, if that is more than there are; one there is, whoever says nothing.
pub fn more_ips(nat: &NatSettings, ports: u64) -> Option<u32> {
    let capacity = nat.profile.capacity()?;
    let needed = ports.div_ceil(u64::from(nat.ports_of_an_ip(capacity.ports_per_ip).max(1)));
    let needed = u32::try_from(needed).unwrap_or(u32::MAX);
    (!nat.auto_ips && needed > nat.ips_counted()).then_some(needed)
}

fn in_words(nat: &NatSettings, target: Target) -> String {
    let mut parts = Vec::new();
    match target.mode {
        Some(Mode::Dynamic) => parts.push("dynamic allocation".to_owned()),
        Some(Mode::Static) => parts.push("static allocation".to_owned()),
        None => {}
    }
    let min = if nat.profile == Profile::AzureLb { "allocated outbound ports" } else { "min_ports_per_vm" };
    parts.extend(target.min_ports.map(|ports| format!("{min} = {ports}")));
    parts.extend(target.max_ports.map(|ports| format!("max_ports_per_vm = {ports}")));
    if let Some(ips) = target.nat_ips {
        let there = nat.nat_ips.map_or_else(|| " in all".to_owned(), |ips| format!(" (there are {ips})"));
        let least = if nat.nat_ips.is_none() { "at least " } else { "" };
        let nodes =
            nat.nodes.filter(|nodes| *nodes > 1).map_or_else(String::new, |nodes| format!(" for {nodes} nodes"));
        parts.push(format!("{least}{}{there}{nodes}", nat_ips(ips)));
    }
    parts.join(" and ")
}

/// The lines to type. Where nobody knows how many NAT IPs there are, or the gateway adds them by itself, none sets their number:
/// it could be smaller than what is there.
pub fn changes(nat: &NatSettings, target: Target) -> Vec<Change> {
    let target = Target { nat_ips: target.nat_ips.filter(|_| nat.nat_ips.is_some() && !nat.auto_ips), ..target };
    if target == Target::default() {
        return Vec::new();
    }
    let change = |tool: &str, text: String| Change { tool: tool.to_owned(), text };
    match nat.profile {
        Profile::Gcp => vec![change("terraform", gcp_terraform(target)), change("gcloud", gcloud(nat, target))],
        Profile::Aws => target.nat_ips.map_or_else(Vec::new, |ips| {
            let secondary = format!("secondary_allocation_ids = [{}]", listed("aws_eip.nat", 1, ips, "id"));
            // The first is none of them.
            let terraform = (ips > 1).then(|| change("terraform", secondary));
            terraform.into_iter().chain([change("aws", aws(nat, ips))]).collect()
        }),
        Profile::AzureNatgw => target.nat_ips.map_or_else(Vec::new, |ips| azure_natgw(nat, ips)),
        Profile::AzureLb => azure_lb(nat, target),
        Profile::Linux => target.nat_ips.map_or_else(Vec::new, |ips| {
            let last = format!("FIRST-ADDRESS-LAST-ADDRESS  # {ips} of them");
            vec![change(
                "iptables",
                format!(
                    "iptables -t nat -I POSTROUTING -s PODS -o INTERFACE -j SNAT --random-fully --to-source {last}"
                ),
            )]
        }),
        Profile::None => Vec::new(),
    }
}

/// `a[1].id, a[2].id`
fn listed(resource: &str, first: u32, end: u32, attribute: &str) -> String {
    const MOST: u32 = 4;
    let shown = (first..end.min(first.saturating_add(MOST))).map(|index| format!("{resource}[{index}].{attribute}"));
    let more = if end > first.saturating_add(MOST) { ", …" } else { "" };
    format!("{}{more}", shown.collect::<Vec<_>>().join(", "))
}

fn gcp_terraform(target: Target) -> String {
    let mut lines = Vec::new();
    if let Some(mode) = target.mode {
        lines.push(format!("enable_dynamic_port_allocation = {}", mode == Mode::Dynamic));
        if mode == Mode::Dynamic {
            lines.push("enable_endpoint_independent_mapping = false".to_owned());
        }
    }
    lines.extend(target.min_ports.map(|ports| format!("min_ports_per_vm = {ports}")));
    lines.extend(target.max_ports.map(|ports| format!("max_ports_per_vm = {ports}")));
    lines.extend(
        target.nat_ips.map(|ips| format!("nat_ips = google_compute_address.nat[*].self_link  # count = {ips}")),
    );
    lines.join("\n")
}

/// The beginning of the line that changes a gateway.
fn gcloud_update(nat: &NatSettings) -> String {
    let names = &nat.names;
    let gateway = names.gateway.as_deref().unwrap_or("NAT");
    let router = names.router.as_deref().unwrap_or("ROUTER");
    let region = names.region.as_deref().unwrap_or("REGION");
    let project = names.group.as_deref().map_or_else(String::new, |project| format!(" --project={project}"));
    format!("gcloud compute routers nats update {gateway} --router={router} --region={region}{project}")
}

fn gcloud(nat: &NatSettings, target: Target) -> String {
    let mut command = gcloud_update(nat);
    match target.mode {
        Some(Mode::Dynamic) => {
            command.push_str(" --enable-dynamic-port-allocation --no-enable-endpoint-independent-mapping");
        }
        Some(Mode::Static) => command.push_str(" --no-enable-dynamic-port-allocation"),
        None => {}
    }
    command.extend(target.min_ports.map(|ports| format!(" --min-ports-per-vm={ports}")));
    command.extend(target.max_ports.map(|ports| format!(" --max-ports-per-vm={ports}")));
    if let Some(ips) = target.nat_ips {
        let addresses = if ips > 1 { format!("ADDRESS-1,…,ADDRESS-{ips}") } else { "ADDRESS-1".to_owned() };
        command.push_str(&format!(" --nat-external-ip-pool={addresses}"));
    }
    command
}

fn aws(nat: &NatSettings, ips: u32) -> String {
    let gateway = nat.names.gateway.as_deref().unwrap_or("NAT-GATEWAY-ID");
    let more = ips.saturating_sub(nat.nat_ips.unwrap_or(1)).max(1);
    format!(
        "aws ec2 associate-nat-gateway-address --nat-gateway-id {gateway} --allocation-ids {}",
        (1..=more).map(|index| format!("EIPALLOC-{index}")).collect::<Vec<_>>().join(" ")
    )
}

/// A gateway of its own if one was named, else the one that AKS manages.
fn azure_natgw(nat: &NatSettings, ips: u32) -> Vec<Change> {
    let group = nat.names.group.as_deref().unwrap_or("GROUP");
    let change = |tool: &str, text: String| Change { tool: tool.to_owned(), text };
    if let (Some(gateway), None) = (&nat.names.gateway, &nat.names.cluster) {
        let resource = "azurerm_nat_gateway_public_ip_association";
        return vec![
            change("terraform", format!("resource \"{resource}\" \"nat\" {{ count = {ips} … }}")),
            change(
                "az",
                format!(
                    "az network nat gateway update -g {group} -n {gateway} --public-ip-addresses IP-1{}",
                    if ips > 1 { format!(" … IP-{ips}") } else { String::new() }
                ),
            ),
        ];
    }
    let cluster = nat.names.cluster.as_deref().unwrap_or("CLUSTER");
    vec![
        change("terraform", format!("nat_gateway_profile {{\n  managed_outbound_ip_count = {ips}\n}}")),
        change("az", format!("az aks update -g {group} -n {cluster} --nat-gateway-managed-outbound-ip-count {ips}")),
    ]
}

/// An outbound rule that was named, and that AKS has not made.
fn own_outbound_rule(nat: &NatSettings) -> Option<&str> {
    nat.names.gateway.as_deref().filter(|rule| nat.names.cluster.is_none() && !rule.starts_with("aks"))
}

/// A rule of its own if one was named that AKS has not made, else the load balancer of the cluster.
fn azure_lb(nat: &NatSettings, target: Target) -> Vec<Change> {
    let group = nat.names.group.as_deref().unwrap_or("GROUP");
    let change = |tool: &str, text: String| Change { tool: tool.to_owned(), text };
    if let Some(rule) = own_outbound_rule(nat) {
        let ports = target.min_ports.map_or_else(String::new, |ports| format!(" --outbound-ports {ports}"));
        let ips = target.nat_ips.map_or_else(String::new, |ips| format!(" --frontend-ip-configs IP-1 … IP-{ips}"));
        let attribute =
            target.min_ports.map(|ports| change("terraform", format!("allocated_outbound_ports = {ports}")));
        let update =
            format!("az network lb outbound-rule update -g {group} --lb-name LOAD-BALANCER -n {rule}{ports}{ips}");
        return attribute.into_iter().chain([change("az", update)]).collect();
    }
    let cluster = nat.names.cluster.as_deref().unwrap_or("CLUSTER");
    let mut block = Vec::new();
    let mut command = format!("az aks update -g {group} -n {cluster}");
    if let Some(ips) = target.nat_ips {
        block.push(format!("managed_outbound_ip_count = {ips}"));
        command.push_str(&format!(" --load-balancer-managed-outbound-ip-count {ips}"));
    }
    if let Some(ports) = target.min_ports {
        block.push(format!("outbound_ports_allocated = {ports}"));
        command.push_str(&format!(" --load-balancer-outbound-ports {ports}"));
    }
    vec![change("terraform", format!("load_balancer_profile {{\n  {}\n}}", block.join("\n  "))), change("az", command)]
}

/// What to do where the gateway says itself how many NAT IPs it lacks.
pub fn missing_ips(nat: &NatSettings, missing: u32) -> Remedy {
    if nat.nat_ips == Some(0) {
        let target = Target { nat_ips: Some(missing.max(1)), ..Target::default() };
        return Remedy { says: "give the gateway NAT IPs".to_owned(), changes: changes(nat, target) };
    }
    let with_ips = nat.nat_ips.filter(|_| !nat.auto_ips).map(|ips| ips.saturating_add(missing));
    let says = match with_ips {
        Some(ips) => format!("use {} or lower min_ports_per_vm", nat_ips(ips)),
        None if nat.auto_ips => {
            "lower min_ports_per_vm, or raise the quota of external IP addresses: the gateway adds NAT IPs by itself"
                .to_owned()
        }
        None => format!("add {} or lower min_ports_per_vm", nat_ips(missing)),
    };
    Remedy { says, changes: changes(nat, Target { nat_ips: with_ips, ..Target::default() }) }
}
