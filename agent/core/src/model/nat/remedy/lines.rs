//! The lines to type for a change, in the words of each cloud's tools.

use super::{Change, Target};
use crate::model::nat::{Mode, NatSettings, Profile};

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
            let terraform = (ips > 1 && !nat.regional).then(|| change("terraform", secondary));
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
    }
    lines.extend(target.endpoint_independent.map(|on| format!("enable_endpoint_independent_mapping = {on}")));
    lines.extend(target.min_ports.map(|ports| format!("min_ports_per_vm = {ports}")));
    lines.extend(target.max_ports.map(|ports| format!("max_ports_per_vm = {ports}")));
    lines.extend(
        target.nat_ips.map(|ips| format!("nat_ips = google_compute_address.nat[*].self_link  # count = {ips}")),
    );
    lines.join("\n")
}

/// The beginning of the line that changes a gateway.
pub(super) fn gcloud_update(nat: &NatSettings) -> String {
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
        Some(Mode::Dynamic) => command.push_str(" --enable-dynamic-port-allocation"),
        Some(Mode::Static) => command.push_str(" --no-enable-dynamic-port-allocation"),
        None => {}
    }
    match target.endpoint_independent {
        Some(true) => command.push_str(" --enable-endpoint-independent-mapping"),
        Some(false) => command.push_str(" --no-enable-endpoint-independent-mapping"),
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
    let zone = if nat.regional { " --availability-zone ZONE" } else { "" };
    format!(
        "aws ec2 associate-nat-gateway-address --nat-gateway-id {gateway}{zone} --allocation-ids {}",
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
pub(super) fn own_outbound_rule(nat: &NatSettings) -> Option<&str> {
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
