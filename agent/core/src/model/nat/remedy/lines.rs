//! The lines to type for a change, in the words of each cloud's tools.

use super::{Change, Target};
use crate::model::nat::{Mode, NatSettings, Profile};
use crate::ports::PortRange;

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
            // The first is none of them.
            let secondary = format!("secondary_allocation_ids = slice(aws_eip.nat[*].id, 1, {ips})");
            let terraform = (ips > 1 && !nat.regional).then(|| change("terraform", secondary));
            terraform.into_iter().chain([change("aws", aws(nat, ips))]).collect()
        }),
        Profile::AzureNatgw => target.nat_ips.map_or_else(Vec::new, |ips| azure_natgw(nat, ips)),
        Profile::AzureLb => azure_lb(nat, target),
        Profile::Linux => target
            .port_range
            .map(to_ports)
            .into_iter()
            .chain(target.nat_ips.map(|ips| {
                let last = format!("FIRST-ADDRESS-LAST-ADDRESS  # {ips} of them");
                change(
                    "iptables",
                    format!(
                        "iptables -t nat -I POSTROUTING -s PODS -o INTERFACE -j SNAT --random-fully --to-source {last}"
                    ),
                )
            }))
            .collect(),
        Profile::None => Vec::new(),
    }
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

/// Ports go with a protocol: one rule for each.
fn to_ports(range: PortRange) -> Change {
    let text = format!(
        "iptables -t nat -I POSTROUTING -s PODS -o INTERFACE -p tcp -j MASQUERADE --random-fully --to-ports {range}  # and -p udp"
    );
    Change { tool: "iptables".to_owned(), text }
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
        let association = format!(
            "resource \"azurerm_nat_gateway_public_ip_association\" \"nat\" {{\n  count                = {ips}\n  \
             nat_gateway_id       = azurerm_nat_gateway.nat.id\n  public_ip_address_id = \
             azurerm_public_ip.nat[count.index].id\n}}"
        );
        return vec![
            change("terraform", association),
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
        let ips = target.nat_ips.map_or_else(String::new, |ips| {
            let more = if ips > 1 { format!(" … IP-{ips}") } else { String::new() };
            format!(" --frontend-ip-configs IP-1{more}")
        });
        let mut block: Vec<String> = Vec::new();
        block.extend(target.min_ports.map(|ports| format!("allocated_outbound_ports = {ports}")));
        block.extend(target.nat_ips.map(frontends));
        let update =
            format!("az network lb outbound-rule update -g {group} --lb-name LOAD-BALANCER -n {rule}{ports}{ips}");
        return vec![change("terraform", block.join("\n")), change("az", update)];
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

/// Frontend IPs of a rule, called as the command beside calls them.
fn frontends(ips: u32) -> String {
    format!(
        "dynamic \"frontend_ip_configuration\" {{\n  for_each = range(1, {})  # {ips} of them\n  content {{\n    name = \
         \"IP-${{frontend_ip_configuration.value}}\"\n  }}\n}}",
        ips.saturating_add(1)
    )
}
