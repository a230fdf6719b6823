//! The catalogue: one row per finding id. `headroom explain` and the documentation are made from it.

use serde::{Deserialize, Serialize};

macro_rules! catalog {
    ($($(#[$doc:meta])* $id:ident = $name:literal, $title:literal, since $since:literal;
        means $means:literal; matters $matters:literal; remedy $remedy:literal;)*) => {
        /// The kinds of findings; the names are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum FindingId {
            $($(#[$doc])* #[serde(rename = $name)] $id,)*
        }

        /// Every page, in the order of the catalogue.
        pub const PAGES: &[Page] = &[
            $(Page { id: FindingId::$id, name: $name, title: $title, since: $since, means: $means, matters: $matters, remedy: $remedy },)*
        ];
    };
}

/// What `headroom explain` says about a kind of finding.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Which.
    pub id: FindingId,
    /// The id as text.
    pub name: &'static str,
    /// One line.
    pub title: &'static str,
    /// First version that raises it.
    pub since: &'static str,
    /// What the finding means.
    pub means: &'static str,
    /// Why it matters.
    pub matters: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

impl FindingId {
    /// The id as text.
    pub fn name(self) -> &'static str {
        self.page().name
    }

    /// Its page.
    pub fn page(self) -> &'static Page {
        PAGES.iter().find(|page| page.id == self).expect("the macro makes a page for every id")
    }
}

impl std::fmt::Display for FindingId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

catalog! {
    /// Demand has reached the allocation.
    NatPortsExhausted = "nat-ports-exhausted", "The node has used up its NAT ports to a destination", since "0.1.0";
    means "All NAT ports this node was given are held towards one destination (protocol, address and port), or more connections want one than there are. A NAT port can serve many destinations at once, but each connection to the same destination needs a port of its own, and the NAT keeps it for a while after the connection has closed (two minutes for TCP with Cloud NAT's defaults). Behind an Azure load balancer a port serves one UDP flow to an address at a time, whatever the port there: UDP flows to all ports of an address count together.";
    matters "New connections to that destination are dropped by the NAT without a word: connect() hangs until it times out, image pulls and API calls fail now and then, other destinations work. Nothing on the node logs it.";
    remedy "Open fewer connections: pool and reuse them, use HTTP keep-alive, spread over more destination addresses. Or give the node more ports: with Cloud NAT static allocation raise `min_ports_per_vm`; with dynamic allocation raise `max_ports_per_vm`; add NAT IPs if the sum does not fit, or switch to dynamic allocation: twice the ports for each node are half the nodes for each NAT IP, and while ports are set anew nodes may fall back to the minimum. If endpoint-independent mapping uses them up, turn it off: then a port serves every destination once. On AWS and behind an Azure NAT gateway add NAT IPs; on AKS' load balancer allocate more outbound ports. The finding has the lines to type, `headroom plan nat` what fits. Reach Google APIs without NAT through Private Google Access.";

    /// Demand comes close to the allocation.
    NatPortsLow = "nat-ports-low", "The node's NAT ports to a destination run low", since "0.1.0";
    means "The ports held and wanted towards one destination have reached most of what this node was given (80 % unless configured otherwise), or most of what this node's own masquerading has: 64,512 ports per address, destination and protocol.";
    matters "A burst, a slow peer or a restart that opens all connections at once takes the rest; from then on new connections fail silently. With dynamic allocation packets may be dropped while the NAT enlarges the range. A NAT that searches for a free port, like the kernel's own, begins to fail some per cent before the last port.";
    remedy "As for nat-ports-exhausted, while there is time: find the pods named in the finding, reuse connections, raise the ports per node.";

    /// Not every node can get its ports.
    NatGatewayTooSmall = "nat-gateway-too-small", "The NAT gateway cannot serve all nodes", since "0.1.0";
    means "The ports reserved for every node, times the number of nodes, are more than the NAT IPs have (64,512 each). On GKE with static allocation every node gets at least 1,024 ports, whatever the console shows, because nodes have alias IP ranges: one NAT IP serves 63 nodes. Where nothing is reserved (AWS, Azure NAT gateway): if all nodes needed as much to one destination as this one does, the gateway would have too few. Or the gateway itself says that it lacks NAT IPs, has none at all, or has given this node nothing.";
    matters "Nodes beyond that number get no ports at all: their pods reach nothing on the internet that goes through the NAT. Image pulls from other registries fail while Google's own work.";
    remedy "Switch to dynamic port allocation (enable_dynamic_port_allocation = true, enable_endpoint_independent_mapping = false, min_ports_per_vm = 64, max_ports_per_vm = 1024 or more), or add NAT IPs. Lowering min_ports_per_vm helps only down to those 1,024. `headroom plan nat` calculates what fits, for every cloud's NAT.";

    /// SYNs to a destination go unanswered.
    NatSynUnanswered = "nat-syn-unanswered", "Connects to a destination behind the NAT get no answer", since "0.1.0";
    means "Within the last minute connects to this destination failed or had to be repeated, although the node holds fewer ports than it was given.";
    matters "The destination may be down or blocked. But it is also what a NAT looks like that has fewer ports for this node than its settings say, that is just enlarging its range, or that dropped the packet for another reason.";
    remedy "Compare the number of held ports with what the gateway reports for this node (Cloud NAT: `gcloud compute routers get-nat-mapping-info`, metrics allocated_ports and dropped_sent_packets_count). Try the destination from a node that works.";

    /// The NAT drops silent connections before keepalive speaks.
    NatIdleTimeoutExceedsKeepalive = "nat-idle-timeout-exceeds-keepalive", "The NAT drops silent connections that the node believes in", since "0.1.0";
    means "Established connections through the NAT were silent for longer than the NAT waits (1,200 s with Cloud NAT's defaults, 350 s on AWS, 4 minutes on Azure unless raised). The NAT has dropped them; both ends still take them for open. Nothing kept them alive: their sockets send no keepalive probes, or the first one (net.ipv4.tcp_keepalive_time, 7,200 s unless changed) would come later than that.";
    matters "The next packet on such a connection is lost or answered with a reset: a pooled database or API connection fails or hangs for many minutes on its first use after a quiet time, mostly at night or after a weekend. Their ports are free again on the NAT, so they are not counted as held.";
    remedy "Turn SO_KEEPALIVE on in the application and have the first probe sent well before the NAT's time-out: TCP_KEEPIDLE on the socket, or `net.ipv4.tcp_keepalive_time` in the pod (`spec.securityContext.sysctls`, a safe sysctl since Kubernetes 1.29) or on the node. Or close idle connections in the pool earlier than the NAT does, or raise the NAT's idle time-out.";

    /// Local ports run out.
    EphemeralPortsLow = "ephemeral-ports-low", "Local ports towards a destination run low", since "0.1.0";
    means "Most ports of ip_local_port_range are taken for connections from one source address to one destination (80 % unless configured otherwise), or connect() failed within the last minute because all of them were (the kernel says EADDRNOTAVAIL). Usable are the ports of the range, an even number of them, without those in ip_local_reserved_ports and those that somebody listens on. A port that a socket is bound to by hand without listening cannot be used either, and is not subtracted: /proc/net/tcp does not list sockets that are only bound, and does not tell of open ones how they got their port. Where programs bind many ports by hand, fewer are usable than is told.";
    matters "When the last one is taken, connect() fails at once with an error, not a time-out. The limit is per source address and destination, and ports stay taken for 60 seconds after the side that closed first.";
    remedy "Reuse connections; let the server close first; widen net.ipv4.ip_local_port_range in the pod (keep it apart from the NodePort range or reserve that range).";

    /// Source ports may be NodePorts.
    EphemeralOverlapsNodeport = "ephemeral-overlaps-nodeport", "Source ports can collide with NodePorts", since "0.1.0";
    means "The range from which connections draw their source port (net.ipv4.ip_local_port_range) reaches into the NodePort range, and the overlap is not excluded by net.ipv4.ip_local_reserved_ports.";
    matters "With Dataplane V2, Cilium or kube-proxy in ipvs mode, answers to a connection whose source port is an allocated NodePort are taken for traffic to that Service: the connection times out or is reset, rarely and without a pattern. The node's own namespace matters most; a pod's range matters as far as its ports survive masquerading.";
    remedy "Move the range (`sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\"`) or reserve the NodePorts (`sysctl -w net.ipv4.ip_local_reserved_ports=30000-32767`), and make it permanent in the node's configuration.";

    /// Translated connections may leave with a NodePort as source port.
    MasqueradeOverlapsNodeport = "masquerade-overlaps-nodeport", "Masquerading can give a connection the port of a NodePort", since "0.1.0";
    means "A rule of this node that translates source addresses (iptables, nftables) draws source ports from a range that holds NodePorts. Without `--to-ports` the kernel draws from 1024-65535, whatever net.ipv4.ip_local_port_range and net.ipv4.ip_local_reserved_ports say: with `--random-fully` (ip-masq-agent from 2.10 on, kube-proxy) for every connection, otherwise only where the connection's own port is taken. The finding tells the share of connections that get a port of the range, and the share that gets an allocated one.";
    matters "With Dataplane V2 or Cilium, and for the node's own connections with kube-proxy in ipvs mode, the answer to a connection whose source port is an allocated NodePort goes to that Service instead: the connection times out or is reset. It hits a fixed share of connections, rarely and without a pattern. With kube-proxy in iptables or nftables mode it does no harm: answers of a known connection are translated back before rules are asked.";
    remedy "Keep masquerading off the NodePorts: `--to-ports=1024-29999,32768-65535` with ip-masq-agent 2.12 or later, `--to-ports 32768-65535` in a rule of your own. Or let connections keep their port with `--random-fully=false` (ip-masq-agent 2.11 or later), where the pods' ip_local_port_range is apart from the NodePorts; then two pods that use the same port at the same moment towards one destination may lose a packet (conntrack insert_failed).";

    /// Connections that have an allocated NodePort as source port.
    NodeportCollision = "nodeport-collision", "Connections have an allocated NodePort as source port", since "0.1.0";
    means "Connections have a source port that is an allocated NodePort: masquerading gave it to connections of pods, or the node itself opened a connection from such a port. What makes Services reachable here takes the answer for traffic to the NodePort. Cilium and GKE Dataplane V2 do so before conntrack can translate an answer back: pods and the node itself are hit. IPVS (kube-proxy in ipvs mode) looks at what is addressed to the node after that: it hits the node's own connections, those with the port they were opened from included, and spares pods. The finding names the pods, destinations, ports and Services, and which of the connections got no answer.";
    matters "The answer is taken for a new connection to the Service, and sent to one of its backends or dropped. The connection times out or is reset; the next attempt gets another port and works. Seen from the pod it is a rare failure without a pattern, more often the more NodePorts are allocated.";
    remedy "Keep masquerading away from the NodePorts: ip-masq-agent `--random-fully=false` (2.11 and later) keeps the pods' own ports, `--to-ports 1024-29999,32768-65535` (2.12 and later) limits the choice; for rules of your own the same arguments of MASQUERADE. Keep the pods' ip_local_port_range apart from the NodePorts, and the node's own: `sysctl -w net.ipv4.ip_local_reserved_ports=30000-32767`. With kube-proxy in iptables or nftables mode such a port does no harm.";

    /// The conntrack table fills.
    ConntrackLow = "conntrack-low", "The conntrack table is nearly full", since "0.1.0";
    means "nf_conntrack_count has come close to nf_conntrack_max (80 % unless configured otherwise), will reach it within half an hour at the present trend, or the kernel has evicted entries or dropped packets for want of room while headroom watched. The finding names who opened the entries, where they go, what they are doing and for how long no packet has passed. Or one of Cilium's own maps (the subject is its name, cilium_ct4_global say) holds as large a share of what it can: with GKE Dataplane V2 and Cilium connections of pods are tracked there.";
    matters "At 100 % the kernel looks in eight hash buckets for an entry that has not seen traffic in both directions, which a new connection takes the place of (early_drop), and drops the packet if there is none (\"nf_conntrack: table full\", counted in drop but not in insert_failed). Once it has dropped one, its garbage collection evicts such entries and those that are closing, down to 95 % (since Linux 4.12). All pods of the node share the table. A full map of Cilium evicts what was not used for longest, connections that live among it: their next packet counts as the first of a new connection, which a network policy may drop and which has lost its way back to the Service.";
    remedy "Let the pods named reuse connections. To make room: `sysctl -w net.netfilter.nf_conntrack_max=N` and the hash size N/4 in /sys/module/nf_conntrack/parameters/hashsize; kube-proxy sets both when it starts (conntrack.maxPerCore x CPUs, at least conntrack.min), so set them there, or they are gone after its next start. If most are established connections that fell silent, shorten nf_conntrack_tcp_timeout_established (kube-proxy: conntrack.tcpEstablishedTimeout), but keep it longer than the keepalive of long connections. Cilium's maps: bpf-ct-global-tcp-max and bpf-ct-global-any-max (Helm: bpf.ctTcpMax, bpf.ctAnyMax), or bpf-map-dynamic-size-ratio (bpf.mapDynamicSizeRatio); a map of another size is made anew, and open connections break once.";

    /// conntrack entries could not be inserted.
    ConntrackInsertFailed = "conntrack-insert-failed", "conntrack could not insert entries", since "0.1.0";
    means "While headroom watched, the kernel failed to insert conntrack entries and dropped their packets: because masquerading found no free source port towards a destination, because of two packets of one flow that raced (UDP, mostly DNS), or because a hash chain was too long (chain_toolong, since Linux 5.15). Races that were settled without a loss are in clash_resolve and are harmless. A chain of your own that drops packets behind the translation of their source (postrouting or input, priority above 100) looks the same to headroom but for conntrack's statistics: if no insert failed, it is told as info, not critical.";
    matters "Each is a lost first packet: a connect that hangs for a second or more, a DNS query that times out after five.";
    remedy "Look at the destinations with the most held ports: the node's own masquerading may have run out towards one of them. For DNS use a node-local cache or TCP. If chain_toolong grows, the hash table is too small: raise /sys/module/nf_conntrack/parameters/hashsize.";

    /// Entries of pods that talk to themselves stay behind.
    ConntrackHairpinLeak = "conntrack-hairpin-leak", "Entries of a pod that talks to itself through a Service do not end", since "0.1.0";
    means "A pod dials a Service and the Service sends it to the same pod. In the node's conntrack table, or in Cilium's own (GKE Dataplane V2), entries of such connections stay although the connections are gone. In netfilter: they are open, nothing has passed for 10 seconds, and the pod has no socket for them. In Cilium: of the two entries of a connection the dialling side's (OUT) never sees the answering side close, and keeps its lifetime of six hours, while the other (IN) goes after seconds.";
    matters "They fill the table. In Cilium it is worse: when the source port comes up again, the new connection meets the old OUT entry, no proper IN entry is made, and the connection times out. It happens now and then, more the more entries were left behind.";
    remedy "GKE Dataplane V2: upgrade to 1.28.3-gke.1090000, 1.27.11-gke.1097000 or later (Cilium: the change \"defer CT_INGRESS entry creation for loopback connections\", pull request 27602, backported to 1.11 to 1.14). Until then let the pod keep its connections open (keep-alive), or dial localhost. In netfilter the entries go when nf_conntrack_tcp_timeout_established has passed; `conntrack -D -p tcp -s POD -d SERVICE` removes them at once, live ones too.";

    /// A pod address is reserved for nobody.
    IpamLeaked = "ipam-leaked", "Pod addresses are reserved for containers that no longer exist", since "0.1.0";
    means "host-local holds reservations whose container the runtime does not know, which no live network namespace carries and which are older than the grace period; seen so twice in a row.";
    matters "Every leaked address is one pod fewer. When all are gone, pods stay in ContainerCreating with \"no IP addresses available in range set\", and only on this node.";
    remedy "`headroom ipam clean` shows what would be given back and on what evidence; with --apply it does it, under host-local's lock and after looking again, and `headroom ipam restore` undoes it. Do not delete the files by hand: while the runtime is down or a pod is starting that frees live addresses. Upgrade a runtime that leaks (containerd issue 5768 and its relatives; a newer version is no proof that it does not).";

    /// A pod network has few addresses left.
    IpamLow = "ipam-low", "The node runs out of pod addresses", since "0.1.0";
    means "Most addresses of a range set of a pod network on this node are reserved (90 % or more), or all will be within an hour if their number goes on rising as it does. Every pod takes an address of each range set, so the fullest one counts.";
    matters "The next pods scheduled here will not start.";
    remedy "Free leaked addresses if there are any; otherwise lower the maximum number of pods of the node or give nodes a larger range (a new node pool on GKE).";

    /// A node holds back a range that its pods do not fill.
    IpamRangeStranded = "ipam-range-stranded", "The node's range of pod addresses is mostly empty", since "0.1.0";
    means "Every node has a range of pod addresses of its own, at least twice as large as its maximum of pods (GKE: 110 pods, /24, 256 addresses). The pods that run here would fit into a range a quarter of that size, with as many addresses to spare.";
    matters "The addresses of a node's range go to no other node. A cluster of nodes with one pod each runs out of pod addresses after a few hundred pods: then no node can be added, although almost every address is free.";
    remedy "Make a node pool with a smaller maximum of pods per node (it cannot be changed on an existing one), or larger nodes that take more pods. `headroom plan pods` calculates both. Once addresses are no longer the brake, more nodes may start than before: watch the bill.";

    /// More addresses are attached to the node than its pods need.
    EniWarmWaste = "eni-warm-waste", "The AWS VPC CNI holds many addresses that no pod uses", since "0.1.0";
    means "ipamd attaches addresses to the node ahead of need. More than half of them (and at least 16) are used by no pod, or at least 16 more than its own settings ask for: with WARM_ENI_TARGET=1, the default, a whole network interface of addresses is always kept spare, and an interface with a single pod on it cannot be given back.";
    matters "These addresses are taken from the subnet. When it has none left, new nodes and pods anywhere in it get no address, while they lie idle here.";
    remedy "Set WARM_IP_TARGET (2 or 5) and MINIMUM_IP_TARGET (the usual number of pods per node) on the DaemonSet aws-node: they win over WARM_ENI_TARGET. `headroom plan eni` calculates what a node takes then. Never set MINIMUM_IP_TARGET alone: the pool would not grow beyond it.";

    /// A containerd that forgets sandboxes with their addresses.
    KnownIssueContainerd5768 = "known-issue-containerd-5768", "This containerd is known to leak pod addresses", since "0.1.0";
    means "The container runtime is a containerd of before the fix of issue 5768 (in 1.7 and about 1.6.9; on GKE 1.22.17-gke.3100, 1.23.16-gke.200, 1.24.9-gke.3200, 1.25.6-gke.200). When the set-up of a sandbox takes too long, its teardown fails, the sandbox is forgotten, and the address it had stays reserved. A build of GKE's own (1.6.8-gke.0) may have the fix under an older number: then it is told as information, and the GKE version decides.";
    matters "Each such pod costs an address of the node for good. When all are gone, no pod starts here any more: \"no IP addresses available in range set\".";
    remedy "Upgrade the runtime. `headroom ipam scan` shows what leaked already. A version with the fix is no proof that nothing leaks: look again after the upgrade.";

    /// A containerd that passes over errors of a teardown.
    KnownIssueContainerd10744 = "known-issue-containerd-10744", "This containerd passes over errors of a teardown", since "0.1.0";
    means "containerd 1.6.37 and later 1.6 ignore an error of the teardown of a sandbox that has no CNI result (pull requests 10744 and relatives), so that clean-up is not blocked. The reservation that its ADD may have left behind then stays. The same change to 1.7 was held back because of a suspected leak of addresses.";
    matters "It undoes part of what the fix of issue 5768 gained: a failed start of a pod can cost an address.";
    remedy "Watch `headroom ipam scan` and give back what leaks. It is only told as a warning where addresses are leaked.";

    /// A containerd with an open issue.
    KnownIssueContainerd12130 = "known-issue-containerd-12130", "An open issue of containerd leaks pod addresses", since "0.1.0";
    means "containerd issue 12130 is open: where the configuration chains plugins and a later one fails, the address that the first one reserved is not given back. It was reproduced with containerd 2.2.5.";
    matters "Every pod whose start fails like that costs an address of the node.";
    remedy "Watch `headroom ipam scan` and give back what leaks; on the AWS VPC CNI restart aws-node. It is only told as a warning where addresses are leaked.";

    /// A source does not work.
    SourceDegraded = "source-degraded", "Something could not be observed", since "0.1.0";
    means "One of headroom's sources does not work here, or only partly. The finding says which question stays open because of it, or what stands in. Or it works, but its counters were read more than two seconds ago: reading them may take only a small part of the time, which is more seldom on a node that is slow or has very many destinations.";
    matters "What was not observed is not shown as zero, but it is not known either.";
    remedy "`headroom doctor` says for every source what it needs: a capability, a mount, a kernel feature, a running service.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lower_case_with_hyphens_and_digits() {
        let names: std::collections::BTreeSet<_> = PAGES.iter().map(|page| page.name).collect();
        assert_eq!(names.len(), PAGES.len());
        assert!(
            names.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'))
        );
    }

    #[test]
    fn an_id_is_serialised_as_its_name() {
        for page in PAGES {
            assert_eq!(serde_json::to_value(page.id).unwrap(), page.name);
            assert_eq!(page.id.page().name, page.name);
        }
    }
}
