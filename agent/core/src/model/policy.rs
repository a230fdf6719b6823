//! Thresholds, grace periods and what the user told us; each with its default and where that comes from.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::flow::{Protocol, nat64_of};
use crate::model::nat::{Basis, NatSettings, Profile};
use crate::observe::{Cloud, Platform, ServiceProxy};
use crate::ports::PortRange;

/// Everything a verdict depends on besides the facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The NAT in front of the node; `None` = to be recognised from the platform.
    pub nat: Option<NatSettings>,
    /// Prefixes that do not pass the NAT, besides the built-in ones.
    pub extra_private: Vec<IpNet>,
    /// The NodePort range of the cluster.
    pub node_ports: PortRange,
    /// That range is what the user said, not the default.
    pub node_ports_given: bool,
    /// NodePorts that the user says are allocated, besides those that are seen.
    pub allocated_node_ports: Vec<(Protocol, u16)>,
    /// What makes Services reachable at this node, if the user says so.
    pub service_proxy: Option<ServiceProxy>,
    /// A reservation younger than this is never called leaked. Default 10 minutes, as in Google's clean-up script.
    pub leak_grace: Duration,
    /// From this share of an allocation on, it is called low (percent). Default 80: the kernel's own port search fails
    /// from some 93 % on, and a node needs time to react.
    pub low_percent: u32,
    /// Failed connects or unanswered SYNs per destination within a minute that are worth a warning. Default 3.
    pub failures_per_minute: u64,
    /// Destinations listed in a report at most; the rest is summed up. Default 100.
    pub max_destinations: usize,
    /// Reservations listed in a report at most (those in use only in `ipam scan`). Default 256.
    pub max_reservations: usize,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            nat: None,
            extra_private: Vec::new(),
            node_ports: PortRange::NODE_PORTS,
            node_ports_given: false,
            allocated_node_ports: Vec::new(),
            service_proxy: None,
            leak_grace: Duration::from_secs(600),
            low_percent: 80,
            failures_per_minute: 3,
            max_destinations: 100,
            max_reservations: 256,
        }
    }
}

/// Prefixes whose traffic no cloud NAT translates: private, shared, link-local, loopback, multicast, unspecified and
/// reserved ones. Those of the providers: [`Profile::bypass`].
const NOT_TRANSLATED: [&str; 15] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
    "ff00::/8",
    "64:ff9b:1::/48",
];

impl Policy {
    /// The NAT to judge by: as configured, or as the platform suggests.
    pub fn nat_on(&self, platform: Option<&Platform>) -> NatSettings {
        if let Some(nat) = &self.nat {
            return nat.clone();
        }
        Self::assumed_nat(platform.and_then(|platform| platform.cloud.present()).copied())
    }

    /// The NAT that nodes of a cloud have in front of them unless somebody has set up another: on Azure the load balancer
    /// that AKS makes by itself.
    pub fn assumed_nat(cloud: Option<Cloud>) -> NatSettings {
        let profile = match cloud {
            Some(Cloud::Gcp) => Profile::Gcp,
            Some(Cloud::Aws) => Profile::Aws,
            Some(Cloud::Azure) => Profile::AzureLb,
            None => Profile::None,
        };
        NatSettings::of(profile, Basis::Assumed)
    }

    /// Which addresses pass the NAT.
    pub fn scope(&self, nat: &NatSettings) -> Scope {
        let profile = nat.profile;
        let built_in = NOT_TRANSLATED.iter().chain(profile.bypass()).filter_map(|prefix| prefix.parse().ok());
        let (v4, v6) =
            built_in.chain(self.extra_private.iter().copied()).fold((Vec::new(), Vec::new()), |mut both, net| {
                match net {
                    IpNet::V4(net) => both.0.push(net),
                    IpNet::V6(net) => both.1.push(net),
                }
                both
            });
        Scope { v4, v6, translates_v6: profile == Profile::None, nat64: nat.may_nat64() }
    }
}

/// The addresses that pass the NAT.
#[derive(Debug, Clone)]
pub struct Scope {
    v4: Vec<ipnet::Ipv4Net>,
    v6: Vec<ipnet::Ipv6Net>,
    /// Cloud NAT leaves native IPv6 alone; without a known NAT public IPv6 counts as outside like any other.
    translates_v6: bool,
    /// IPv6 addresses that stand for IPv4 ones pass the NAT as these do.
    nat64: bool,
}

impl Scope {
    /// Whether traffic to this address passes the NAT.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => !self.v4.iter().any(|net| net.contains(&address)),
            IpAddr::V6(address) => {
                let stands_for = nat64_of(address).filter(|_| self.nat64);
                let translated = stands_for.map_or(self.translates_v6, |stands_for| self.contains(stands_for.into()));
                translated && !self.v6.iter().any(|net| net.contains(&address))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(policy: &Policy, profile: Profile) -> Scope {
        policy.scope(&NatSettings::of(profile, Basis::Assumed))
    }

    /// Exercises what each provider serves past its NAT. If this fails, such traffic counts as demand, or real demand does not.
    #[test]
    fn the_providers_own_addresses_are_out_of_scope_behind_their_own_nat_only() {
        let contains =
            |profile: Profile, address: &str| scope(&Policy::default(), profile).contains(address.parse().unwrap());
        for (profile, google, azure) in [
            (Profile::Gcp, false, true),
            (Profile::Aws, true, true),
            (Profile::AzureNatgw, true, false),
            (Profile::AzureLb, true, false),
            (Profile::Linux, true, true),
            (Profile::None, false, false),
        ] {
            let found = (contains(profile, "199.36.153.8"), contains(profile, "168.63.129.16"));
            assert_eq!(found, (google, azure), "{profile}");
            assert!(!contains(profile, "169.254.169.254") && contains(profile, "168.63.129.17"), "{profile}");
        }
    }

    #[test]
    fn private_and_google_private_access_addresses_are_out_of_scope() {
        let policy = Policy { extra_private: vec!["198.51.100.0/24".parse().unwrap()], ..Policy::default() };
        let scope = scope(&policy, Profile::Gcp);
        for (address, expected) in [
            ("203.0.113.7", true),
            ("10.1.2.3", false),
            ("172.31.255.255", false),
            ("172.32.0.1", true),
            ("169.254.169.254", false),
            ("199.36.153.10", false),
            ("199.36.153.12", true),
            ("198.51.100.1", false),
            ("2001:db8::1", false),
            ("34.126.63.255", false),
            ("34.126.64.0", true),
        ] {
            assert_eq!(scope.contains(address.parse().unwrap()), expected, "{address}");
        }
        assert!(self::scope(&policy, Profile::None).contains("2001:db8::1".parse().unwrap()));
    }

    /// Exercises addresses that DNS64 makes of IPv4 ones. If this fails, flows that take ports of the NAT need none.
    #[test]
    fn an_ipv6_address_that_stands_for_an_ipv4_one_passes_the_nat_as_that_does() {
        let policy = Policy { extra_private: vec!["64:ff9b::c633:6400/120".parse().unwrap()], ..Policy::default() };
        for (profile, translates) in [
            (Profile::Gcp, true),
            (Profile::Aws, true),
            (Profile::AzureNatgw, false),
            (Profile::AzureLb, false),
            (Profile::Linux, false),
        ] {
            let contains = |address: &str| scope(&policy, profile).contains(address.parse().unwrap());
            assert_eq!(contains("64:ff9b::808:808"), translates, "{profile}");
            // 10.0.0.1, 198.51.100.1 (excluded by the user), a prefix of its own, a longer one, no such address.
            for out in
                ["64:ff9b::a00:1", "64:ff9b::c633:6401", "64:ff9b:1::808:808", "64:ff9b::1:808:808", "2001:db8::1"]
            {
                assert!(!contains(out), "{profile} {out}");
            }
        }
        assert!(
            !scope(&policy, Profile::Gcp).contains("64:ff9b::c724:9908".parse().unwrap()),
            "private.googleapis.com"
        );
        let off = NatSettings { nat64: Some(false), ..NatSettings::of(Profile::Gcp, Basis::Configured) };
        assert!(!policy.scope(&off).contains("64:ff9b::808:808".parse().unwrap()), "its settings say that it does not");
    }

    #[test]
    fn every_built_in_prefix_parses() {
        let of_providers = Profile::ALL.iter().flat_map(|profile| profile.bypass());
        assert!(NOT_TRANSLATED.iter().chain(of_providers).all(|prefix| prefix.parse::<IpNet>().is_ok()));
    }
}
