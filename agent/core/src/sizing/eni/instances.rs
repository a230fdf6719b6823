//! What EC2 instances can carry: a selection of `pkg/vpc/vpc_ip_resource_limit.go` and `misc/eni-max-pods.txt` of
//! amazon-vpc-cni-k8s v1.23.1. EC2 has many more types; for those the numbers are given by hand.

use super::Limits;

/// One type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceType {
    /// Its name.
    pub name: &'static str,
    /// What it can carry.
    pub limits: Limits,
    /// What `eni-max-pods.txt` says: addresses for pods, and two pods on the host's network.
    pub max_pods: u32,
    /// It has more than one network card; the limits are those of the first, which is all that pods use by default.
    pub more_cards: bool,
}

const fn of(name: &'static str, enis: u32, addresses_per_eni: u32, max_pods: u32) -> InstanceType {
    InstanceType { name, limits: Limits { enis, addresses_per_eni }, max_pods, more_cards: false }
}

/// The types that are known, by name.
pub const INSTANCE_TYPES: &[InstanceType] = &[
    of("c5.18xlarge", 15, 50, 737),
    of("c5.xlarge", 4, 15, 58),
    of("c6g.large", 3, 10, 29),
    of("g4dn.xlarge", 3, 10, 29),
    of("m4.4xlarge", 8, 30, 234),
    of("m4.large", 2, 10, 20),
    of("m5.24xlarge", 15, 50, 737),
    of("m5.4xlarge", 8, 30, 234),
    of("m5.large", 3, 10, 29),
    of("m5.xlarge", 4, 15, 58),
    of("m6i.large", 3, 10, 29),
    of("m7g.medium", 2, 4, 8),
    of("p3dn.24xlarge", 15, 50, 737),
    InstanceType { more_cards: true, ..of("p4d.24xlarge", 15, 50, 737) },
    of("r5.large", 3, 10, 29),
    of("r5.xlarge", 4, 15, 58),
    of("t2.micro", 2, 2, 4),
    of("t3.large", 3, 12, 35),
    of("t3.medium", 3, 6, 17),
    of("t3.micro", 2, 2, 4),
    of("t3.nano", 2, 2, 4),
    of("t3.small", 3, 4, 11),
    of("t3.xlarge", 4, 15, 58),
    of("t3a.small", 2, 4, 8),
];

/// A type by its name.
pub fn instance_type(name: &str) -> Option<&'static InstanceType> {
    INSTANCE_TYPES.iter().find(|known| known.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maximum_pods_follow_from_the_limits() {
        for known in INSTANCE_TYPES {
            let Limits { enis, addresses_per_eni } = known.limits;
            assert_eq!(known.max_pods, enis * (addresses_per_eni - 1) + 2, "{}", known.name);
        }
        assert!(INSTANCE_TYPES.is_sorted_by_key(|known| known.name));
        assert_eq!(instance_type("t3.small").unwrap().limits, Limits { enis: 3, addresses_per_eni: 4 });
        assert_eq!(instance_type("x99.huge"), None);
    }
}
