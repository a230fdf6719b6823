//! The lines to type so that the NAT waits longer before it forgets a silent connection: twice as long, as far as it lets itself
//! be set.

use super::Change;
use crate::model::nat::{NatSettings, Profile};

/// Minutes that an Azure NAT gateway waits at most, and an outbound rule of a load balancer.
const NATGW_MINUTES: u64 = 120;
const LB_MINUTES: u64 = 100;

/// None where it is fixed, or as long as it can be.
pub fn longer_idle(nat: &NatSettings) -> Vec<Change> {
    let idle = nat.hold.tcp_established_idle.as_secs();
    let change = |tool: &str, text: String| Change { tool: tool.to_owned(), text };
    let twice = idle.saturating_mul(2);
    let minutes = |most: u64| Some(twice.div_ceil(60).min(most)).filter(|minutes| minutes * 60 > idle);
    match nat.profile {
        Profile::Gcp => vec![
            change("terraform", format!("tcp_established_idle_timeout_sec = {twice}")),
            change("gcloud", format!("{} --tcp-established-idle-timeout={twice}s", super::lines::gcloud_update(nat))),
        ],
        Profile::AzureNatgw => minutes(NATGW_MINUTES).map_or_else(Vec::new, |minutes| natgw(nat, minutes)),
        Profile::AzureLb => minutes(LB_MINUTES).map_or_else(Vec::new, |minutes| lb(nat, minutes)),
        Profile::Linux => {
            vec![change("sysctl", format!("sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established={twice}"))]
        }
        Profile::Aws | Profile::None => Vec::new(),
    }
}

fn natgw(nat: &NatSettings, minutes: u64) -> Vec<Change> {
    let change = |tool: &str, text: String| Change { tool: tool.to_owned(), text };
    let group = nat.names.group.as_deref().unwrap_or("GROUP");
    let setting = format!("idle_timeout_in_minutes = {minutes}");
    if let (Some(gateway), None) = (&nat.names.gateway, &nat.names.cluster) {
        return vec![
            change("terraform", setting),
            change("az", format!("az network nat gateway update -g {group} -n {gateway} --idle-timeout {minutes}")),
        ];
    }
    let cluster = nat.names.cluster.as_deref().unwrap_or("CLUSTER");
    vec![
        change("terraform", format!("nat_gateway_profile {{\n  {setting}\n}}")),
        change("az", format!("az aks update -g {group} -n {cluster} --nat-gateway-idle-timeout {minutes}")),
    ]
}

fn lb(nat: &NatSettings, minutes: u64) -> Vec<Change> {
    let change = |tool: &str, text: String| Change { tool: tool.to_owned(), text };
    let group = nat.names.group.as_deref().unwrap_or("GROUP");
    let setting = format!("idle_timeout_in_minutes = {minutes}");
    if let Some(rule) = super::lines::own_outbound_rule(nat) {
        let update = format!(
            "az network lb outbound-rule update -g {group} --lb-name LOAD-BALANCER -n {rule} --idle-timeout {minutes} \
             --enable-tcp-reset true"
        );
        return vec![change("terraform", format!("{setting}\nenable_tcp_reset = true")), change("az", update)];
    }
    let cluster = nat.names.cluster.as_deref().unwrap_or("CLUSTER");
    vec![
        change("terraform", format!("load_balancer_profile {{\n  {setting}\n}}")),
        change("az", format!("az aks update -g {group} -n {cluster} --load-balancer-idle-timeout {minutes}")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::nat::Basis;
    use crate::model::nat::remedy::Names;

    fn lines(profile: Profile, names: Names) -> String {
        let nat = NatSettings { names, ..NatSettings::of(profile, Basis::Configured) };
        longer_idle(&nat).iter().map(|change| format!("{}: {}\n", change.tool, change.text)).collect()
    }

    /// Exercises every NAT. If this fails, people type a line that its tool refuses.
    #[test]
    fn each_nat_is_told_to_wait_twice_as_long_in_the_words_of_its_own_tools() {
        let gcp = lines(Profile::Gcp, Names { gateway: Some("nat-gw".to_owned()), ..Names::default() });
        assert!(gcp.contains("tcp_established_idle_timeout_sec = 2400"), "{gcp}");
        let gcloud = "gcloud compute routers nats update nat-gw --router=ROUTER --region=REGION --tcp-established-idle-timeout=2400s";
        assert!(gcp.contains(gcloud), "{gcp}");
        let own = Names { gateway: Some("gw".to_owned()), group: Some("g".to_owned()), ..Names::default() };
        let natgw = lines(Profile::AzureNatgw, own);
        assert!(natgw.contains("az network nat gateway update -g g -n gw --idle-timeout 8"), "{natgw}");
        assert!(lines(Profile::AzureNatgw, Names::default()).contains("--nat-gateway-idle-timeout 8"));
        assert!(lines(Profile::AzureLb, Names::default()).contains("--load-balancer-idle-timeout 60"));
        let rule = lines(Profile::AzureLb, Names { gateway: Some("out".to_owned()), ..Names::default() });
        assert!(rule.contains("-n out --idle-timeout 60 --enable-tcp-reset true"), "{rule}");
        assert!(lines(Profile::Linux, Names::default()).contains("nf_conntrack_tcp_timeout_established=864000"));
        assert_eq!(lines(Profile::Aws, Names::default()), "", "350 s are fixed");
    }

    #[test]
    fn what_waits_as_long_as_it_can_is_left_alone() {
        let mut nat = NatSettings::of(Profile::AzureNatgw, Basis::Configured);
        nat.hold.tcp_established_idle = std::time::Duration::from_secs(120 * 60);
        assert!(longer_idle(&nat).is_empty());
    }
}
