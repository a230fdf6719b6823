//! Who made a rule, as far as chains, tables and comments tell.

use crate::observe::SourceNatRule;
use crate::report::RuleOwner;

/// Beginnings of chain names. ip-masq-agent: `IP-MASQ` (upstream: `IP-MASQ-AGENT` up to 2.0, and with AKS); plugins of CNI make
/// one chain for each pod; Cilium renames its chains while it replaces them.
const CHAINS: [(&str, RuleOwner); 13] = [
    ("IP-MASQ", RuleOwner::IpMasqAgent),
    ("KUBE-", RuleOwner::KubeProxy),
    ("CILIUM_", RuleOwner::Cilium),
    ("OLD_CILIUM_", RuleOwner::Cilium),
    ("AWS-SNAT-CHAIN", RuleOwner::AwsVpcCni),
    ("AWS-CONNMARK-CHAIN", RuleOwner::AwsVpcCni),
    ("CNI-", RuleOwner::Cni),
    ("masq_checks", RuleOwner::Cni),
    ("cali-", RuleOwner::Calico),
    ("FLANNEL-", RuleOwner::Flannel),
    ("DOCKER", RuleOwner::Docker),
    ("LIBVIRT_", RuleOwner::Libvirt),
    ("libvirt_", RuleOwner::Libvirt),
];

/// Tables of nftables that belong to one program.
const TABLES: [(&str, RuleOwner); 5] = [
    ("kube-proxy", RuleOwner::KubeProxy),
    ("cni_plugins_masquerade", RuleOwner::Cni),
    ("calico", RuleOwner::Calico),
    ("flannel", RuleOwner::Flannel),
    ("libvirt_network", RuleOwner::Libvirt),
];

/// Parts of comments.
const COMMENTS: [(&str, RuleOwner); 6] = [
    ("ip-masq-agent", RuleOwner::IpMasqAgent),
    ("ip-masq:", RuleOwner::IpMasqAgent),
    ("kubernetes service traffic", RuleOwner::KubeProxy),
    ("cilium ", RuleOwner::Cilium),
    ("AWS", RuleOwner::AwsVpcCni),
    ("flanneld", RuleOwner::Flannel),
];

/// Who made it.
pub(in crate::model) fn owner(rule: &SourceNatRule) -> RuleOwner {
    let place = &rule.place;
    // The innermost chain says most: a chain of kube-proxy may be reached through somebody else's.
    let mut chains = std::iter::once(&place.chain).chain(rule.path.iter().rev());
    let mut by_chain = || chains.find_map(|chain| Some(CHAINS.iter().find(|(prefix, _)| chain.starts_with(prefix))?.1));
    let by_table = || TABLES.iter().find(|(table, _)| place.table == *table).map(|(_, owner)| *owner);
    let by_comment = || {
        let has = |part: &str| rule.comments.iter().any(|comment| comment.contains(part));
        COMMENTS.iter().find(|(part, _)| has(part)).map(|(_, owner)| *owner)
    };
    // Docker's rules are in the chain at the hook and have no comment: `-s 172.17.0.0/16 ! -o docker0`.
    let by_interface = || {
        let docker = |condition: &String| condition.ends_with(" docker0") || condition.contains("-o br-");
        rule.conditions.iter().any(docker).then_some(RuleOwner::Docker)
    };
    by_chain().or_else(by_table).or_else(by_comment).or_else(by_interface).unwrap_or(RuleOwner::Other)
}
