//! The report as Prometheus metrics (OpenMetrics text).
//!
//! [`FAMILIES`] is the one table of what there is; every label that is not fixed has its bound beside it. Pod names and
//! addresses are no labels, except those of the largest [`MAX_DESTINATIONS`] destinations and [`MAX_PODS`] pods.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use headroom_core::findings::Severity;
use headroom_core::model::leak::Verdict;
use headroom_core::observe::CiliumMap;
use headroom_core::report::{CleanerMode, CoverageState, DestinationReport, NetworkReport, Report, RuleOwner};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What `prometheus-client` writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Destinations that become series at most.
pub const MAX_DESTINATIONS: usize = 20;
/// Pods that become series at most.
pub const MAX_PODS: usize = 20;
/// Networks that become series at most.
const MAX_NETWORKS: usize = 16;
/// Range sets of one network that become series at most: dual-stack networks have two.
const MAX_RANGE_SETS: usize = 4;

type Number = Gauge<f64, AtomicU64>;

/// One family: name, help, labels and their bound.
#[derive(Debug)]
pub struct FamilyRow {
    /// Name, without the prefix `headroom_`.
    pub name: &'static str,
    /// Help text.
    pub help: &'static str,
    /// Labels, and how many series they can make.
    pub labels: &'static str,
}

macro_rules! families {
    ($($id:ident = $name:literal, $labels:literal, $help:literal;)*) => {
        $(const $id: FamilyRow = FamilyRow { name: $name, help: $help, labels: $labels };)*
        /// Every family there is.
        pub const FAMILIES: &[FamilyRow] = &[$($id),*];
    };
}

families! {
    ALLOCATED = "nat_allocated_ports", "none: 1 series", "NAT ports this node was given, per protocol and destination; absent if unknown";
    DEMAND = "nat_demand_ports", "protocol: 3 series", "NAT ports the worst destination needs: held and wanting";
    DEMAND_PEAK = "nat_demand_peak_ports", "protocol: 3 series", "Largest demand of the last ten minutes";
    RATE = "nat_demand_connections_per_second", "protocol: 3 series", "New connections per second to the worst destination, over the last minute";
    RATE_ALLOWED = "nat_sustainable_connections_per_second", "protocol: 3 series", "New connections per second to the worst destination that the allocation can sustain";
    SOURCES = "nat_source_ports", "protocol: 3 series", "Source addresses and ports that hold something beyond the NAT, each of which needs a port of one that maps endpoint-independently; absent unless the NAT is said to";
    POD_HELD = "nat_pod_held_ports", "namespace, pod: the 20 largest", "NAT ports that a pod holds over all destinations in scope";
    EXHAUSTED_IN = "nat_exhausted_in_seconds", "protocol: 3 series", "Time until the allocation is reached at the present trend; absent without one";
    HELD = "nat_destination_held_ports", "protocol, address, port: the 20 largest in scope", "NAT ports held towards a destination";
    WANTING = "nat_destination_wanting_ports", "protocol, address, port: the 20 largest in scope", "Unanswered connects towards a destination";
    FORGOTTEN = "nat_destination_forgotten_flows", "protocol, address, port: the 20 largest in scope", "Flows open on this node that the NAT has dropped since they were silent";
    FAILED = "nat_destination_failed_connects", "protocol, address, port, cause: 5 series for each of the 20 largest in scope", "Connects to a destination that failed since start";
    DESTINATIONS = "nat_destinations", "none: 1 series", "Destinations known now";
    ADDRESSES = "ipam_addresses", "network, verdict: 4 series a network, 16 networks", "Reserved pod addresses by verdict; at least so many, and never zero, while a network is read only in part";
    USABLE = "ipam_usable_addresses", "network: 16 series", "Pod addresses a network can hand out";
    SET_USABLE = "ipam_range_set_usable_addresses", "network, ranges: 4 series a network, 16 networks", "Pod addresses that host-local can hand out of a range set";
    SET_USED = "ipam_range_set_reserved_addresses", "network, ranges: 4 series a network, 16 networks", "Of these, reserved; at the same number the next pod finds no IP address; absent while a network is read only in part";
    SET_FULL_IN = "ipam_range_set_exhausted_in_seconds", "network, ranges: 4 series a network, 16 networks", "Time until a range set is used up at the present trend; absent without one";
    POOL = "ipam_pool_addresses", "network, state: 3 series a network, 16 networks", "Addresses attached to the node ahead of need: assigned to pods, cooling, warm";
    POOL_BEYOND = "ipam_pool_beyond_target_addresses", "network: 16 series", "Of the cooling and warm ones, more than the IPAM's own settings ask for; absent if those are not known";
    STRANDED = "ipam_stranded_addresses", "network: 16 series", "Addresses of the node's own range that its pods leave to nobody";
    RELEASED = "ipam_released_addresses", "none: 1 series", "Leaked pod addresses that the agent gave back since start; absent if its cleaner is off";
    REFUSED = "ipam_refused_addresses", "verdict: 3 series", "Pod addresses that nobody seems to use and that the cleaner's last run left; absent before it";
    CLEANED_AT = "ipam_cleaner_last_run_timestamp_seconds", "none: 1 series", "When the cleaner looked last; absent before it did";
    CLEAN_ERRORS = "ipam_cleaner_errors", "none: 1 series", "Runs of the cleaner that had trouble since start; absent if it is off";
    LOCAL = "local_ports_used_ratio", "none: 1 series", "Local ports in use towards one destination against those usable, the largest of all";
    OVERLAP = "ephemeral_nodeport_overlap_ports", "none: 1 series", "NodePorts the node may pick as source ports";
    MASQUERADE = "masquerade_nodeport_ratio", "owner, protocol, which: 60 series at most", "Of the connections that rules of an owner translate, the largest share whose new source port is in the NodePort range, or is an allocated NodePort";
    NODE_PORTS = "nodeports_allocated", "none: 1 series", "NodePorts that are allocated; absent if not known";
    LIVE = "nodeport_range_flows", "none: 1 series", "Translated flows with a source port inside the NodePort range";
    LIVE_COLLIDING = "nodeport_colliding_flows", "none: 1 series", "Of these, with an allocated NodePort as source port; absent if those are not known";
    LIVE_UNANSWERED = "nodeport_colliding_unanswered_flows", "none: 1 series", "Of these, without an answer";
    CT_ENTRIES = "conntrack_entries", "none: 1 series", "Entries of the conntrack table";
    CT_MAX = "conntrack_max_entries", "none: 1 series", "Room of the conntrack table";
    CT_INSERT_FAILED = "conntrack_insert_failed", "none: 1 series", "conntrack insertions that failed since boot";
    CT_DROP = "conntrack_drop", "none: 1 series", "Packets conntrack dropped since boot";
    CT_EARLY_DROP = "conntrack_early_drop", "none: 1 series", "conntrack entries evicted since boot";
    CT_TABLE_FULL = "conntrack_table_full_packets", "none: 1 series", "Packets of new connections dropped since boot because the table was full, at least";
    CT_CHAIN = "conntrack_chain_toolong", "none: 1 series", "conntrack insertions refused since boot because a hash chain was too long";
    CT_CLASH = "conntrack_clash_resolve", "none: 1 series", "Races of conntrack insertions since boot that were settled without a loss";
    CT_RESTART = "conntrack_search_restart", "none: 1 series", "conntrack lookups begun again since boot";
    CT_STATES = "conntrack_state_entries", "state: 16 series", "Entries of the conntrack table by state, as of the last dump";
    CT_SOURCE = "conntrack_largest_source_entries", "none: 1 series", "Entries of the source that has most, as of the last dump";
    CT_FULL_IN = "conntrack_full_in_seconds", "none: 1 series", "Time until the conntrack table is full at the present trend; absent without an upward trend";
    CT_HAIRPIN = "conntrack_hairpin_entries_left_behind", "none: 1 series", "Entries without a socket of pods that talk to themselves through a Service; absent where sockets are not seen";
    CILIUM_ENTRIES = "cilium_conntrack_entries", "map: 4 series", "Entries of Cilium's own conntrack maps (TCP and all else, over IPv4 and IPv6)";
    CILIUM_MAX = "cilium_conntrack_max_entries", "map: 4 series", "Room of these maps";
    CILIUM_LEFT = "cilium_conntrack_hairpin_entries_left_behind", "none: 1 series", "Entries in them left behind by pods that talk to themselves";
    CT_NO_PORT = "conntrack_no_port_packets", "none: 1 series", "Packets of new connections that this node dropped for want of a source port, since start";
    CT_DRIFT = "conntrack_drift_entries", "none: 1 series", "Entries by which the kernel's counters had to be corrected, since start";
    FINDINGS = "findings", "id, severity: one series per finding id and severity", "Findings now";
    SOURCE_UP = "source_up", "source: one series per source", "1 if the source works, 0 if it could not be read; absent where there is nothing of the kind";
    SOURCE_AGE = "source_age_seconds", "source: 2 series, tcp and conntrack", "Since the source began to read the counters that its numbers rest on; absent where it counts nothing";
    LOST = "lost_events", "what: one series per kind of loss", "Events lost since start";
    PROGRAM_UP = "ebpf_program_attached", "program: one series per program, 6 at most", "1 if the eBPF program is attached";
    PROGRAM_RUNS = "ebpf_program_runs", "program: as above", "Runs that the kernel counted: only with kernel.bpf_stats_enabled";
    PROGRAM_SECONDS = "ebpf_program_run_seconds", "program: as above", "Time that these runs took, without the way to the program";
    PROGRAM_MISSED = "ebpf_program_missed_events", "program: as above", "Events that the kernel kept from the program since another one, or the same, was running on that CPU; absent where it does not count them";
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ProtocolLabel {
    protocol: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MapLabel {
    map: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DestinationLabel {
    protocol: String,
    address: String,
    port: u32,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PodLabel {
    namespace: String,
    pod: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FailureLabel {
    protocol: String,
    address: String,
    port: u32,
    cause: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MasqueradeLabel {
    owner: &'static str,
    protocol: String,
    which: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NetworkLabel {
    network: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RangeSetLabel {
    network: String,
    ranges: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolLabel {
    network: String,
    state: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VerdictLabel {
    network: String,
    verdict: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CleanVerdictLabel {
    verdict: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FindingLabel {
    id: &'static str,
    severity: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ProgramLabel {
    program: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LossLabel {
    what: String,
}

/// Counters of the report that stand still while it is rendered.
struct Writer(Registry);

impl Writer {
    /// A single number; absent numbers make no series.
    fn number(&mut self, row: &FamilyRow, value: Option<f64>) {
        if let Some(value) = value {
            let gauge = Number::default();
            gauge.set(value);
            self.0.register(row.name, row.help, gauge);
        }
    }

    fn counter(&mut self, row: &FamilyRow, value: Option<u64>) {
        if let Some(value) = value {
            self.0.register(row.name, row.help, ConstCounter::new(value));
        }
    }

    fn family<L>(&mut self, row: &FamilyRow, values: impl Iterator<Item = (L, f64)>)
    where
        L: Clone + std::hash::Hash + Eq + EncodeLabelSet + std::fmt::Debug + Send + Sync + 'static,
    {
        let family = Family::<L, Number>::default();
        for (label, value) in values {
            family.get_or_create(&label).inc_by(value);
        }
        self.0.register(row.name, row.help, family);
    }

    /// Counters that are not whole numbers.
    fn amounts<L>(&mut self, row: &FamilyRow, values: impl Iterator<Item = (L, f64)>)
    where
        L: Clone + std::hash::Hash + Eq + EncodeLabelSet + std::fmt::Debug + Send + Sync + 'static,
    {
        let family = Family::<L, Counter<f64, AtomicU64>>::default();
        for (label, value) in values {
            family.get_or_create(&label).inc_by(value);
        }
        self.0.register(row.name, row.help, family);
    }

    fn counters<L>(&mut self, row: &FamilyRow, values: impl Iterator<Item = (L, u64)>)
    where
        L: Clone + std::hash::Hash + Eq + EncodeLabelSet + std::fmt::Debug + Send + Sync + 'static,
    {
        let family = Family::<L, Counter>::default();
        for (label, value) in values {
            family.get_or_create(&label).inc_by(value);
        }
        self.0.register(row.name, row.help, family);
    }
}

/// Renders a report.
pub fn render(report: &Report) -> String {
    let mut writer = Writer(Registry::with_prefix("headroom"));
    nat(&mut writer, report);
    ipam(&mut writer, report);
    let host = report.overlap.ephemeral.iter().find(|row| row.subject == "host");
    writer.number(&OVERLAP, host.and_then(|row| row.overlap_ports).map(f64::from));
    masquerade(&mut writer, report);
    writer.number(&LIVE, report.overlap.live.in_node_port_range.map(float));
    writer.number(&LIVE_COLLIDING, report.overlap.live.colliding.map(float));
    writer.number(&LIVE_UNANSWERED, report.overlap.live.unanswered.map(float));
    writer.number(&CT_ENTRIES, report.conntrack.entries.map(float));
    writer.number(&CT_MAX, report.conntrack.max.map(float));
    writer.counter(&CT_INSERT_FAILED, report.conntrack.insert_failed);
    writer.counter(&CT_DROP, report.conntrack.drop);
    writer.counter(&CT_EARLY_DROP, report.conntrack.early_drop);
    conntrack(&mut writer, report);
    writer.counter(&CT_NO_PORT, report.conntrack.no_port_total);
    writer.counter(&CT_DRIFT, report.conntrack.drift.map(|drift| drift.total));
    about_ourselves(&mut writer, report);
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &writer.0) {
        tracing::error!(%error, "metrics could not be encoded");
    }
    text
}

fn conntrack(writer: &mut Writer, report: &Report) {
    let table = &report.conntrack;
    writer.counter(&CT_TABLE_FULL, table.table_full);
    writer.counter(&CT_CHAIN, table.chain_toolong);
    writer.counter(&CT_CLASH, table.clash_resolve);
    writer.counter(&CT_RESTART, table.search_restart);
    writer.number(&CT_FULL_IN, table.full_in_secs.map(float));
    let left_behind = table.hairpins.iter().map(|row| row.left_behind).collect::<Option<Vec<_>>>();
    let left_behind = left_behind.filter(|_| table.census.is_some());
    writer.number(&CT_HAIRPIN, left_behind.map(|rows| float(rows.into_iter().sum())));
    if let Some(cilium) = &table.cilium {
        let label = |map: &CiliumMap| MapLabel { map: map.name.clone() };
        writer.family(&CILIUM_ENTRIES, cilium.maps.iter().map(|map| (label(map), float(map.entries))));
        writer.family(&CILIUM_MAX, cilium.maps.iter().map(|map| (label(map), float(map.max))));
        writer.number(&CILIUM_LEFT, Some(float(cilium.left_behind)));
    }
    let Some(census) = &table.census else { return };
    let label = |state: &str| StateLabel { state: state.to_owned() };
    writer.family(&CT_STATES, census.states.iter().map(|state| (label(&state.state), float(state.entries))));
    writer.number(&CT_SOURCE, Some(float(census.sources.first().map_or(0, |source| source.entries))));
}

fn nat(writer: &mut Writer, report: &Report) {
    let demands = [("tcp", &report.nat.demand.tcp), ("udp", &report.nat.demand.udp), ("icmp", &report.nat.demand.icmp)];
    let label = |protocol: &str| ProtocolLabel { protocol: protocol.to_owned() };
    writer.number(&ALLOCATED, report.nat.allocation.ports.map(f64::from));
    writer.family(&DEMAND, demands.iter().filter_map(|(name, demand)| Some((label(name), f64::from(demand.ports?)))));
    writer.family(
        &DEMAND_PEAK,
        demands.iter().filter_map(|(name, demand)| Some((label(name), f64::from(demand.peak_10m?)))),
    );
    let rates = || demands.iter().filter_map(|(name, demand)| Some((label(name), demand.rate.as_ref()?)));
    writer.family(&RATE, rates().map(|(label, rate)| (label, rate.per_sec)));
    writer.family(&RATE_ALLOWED, rates().filter_map(|(label, rate)| Some((label, rate.allowed_per_sec?))));
    writer.family(
        &EXHAUSTED_IN,
        demands.iter().filter_map(|(name, demand)| Some((label(name), float(demand.exhausted_in_secs?)))),
    );
    let sources =
        demands.iter().filter_map(|(name, demand)| Some((label(name), demand.endpoint_independent.as_ref()?.ports?)));
    writer.family(&SOURCES, sources.map(|(label, ports)| (label, f64::from(ports))));
    let pods = report.nat.pods.iter().filter_map(|pod| {
        let label = PodLabel { namespace: pod.namespace.clone()?, pod: pod.name.clone()? };
        Some((label, float(pod.held)))
    });
    writer.family(&POD_HELD, pods.take(MAX_PODS));
    let local = report.nat.local.iter().filter(|row| row.usable > 0);
    writer.number(&LOCAL, local.map(|row| f64::from(row.used) / f64::from(row.usable)).reduce(f64::max));
    let listed = || {
        report.nat.destinations.iter().filter(|destination| destination.in_scope).take(MAX_DESTINATIONS).map(
            |destination| {
                let label = DestinationLabel {
                    protocol: destination.protocol.to_string(),
                    address: destination.address.to_string(),
                    port: u32::from(destination.port),
                };
                (label, destination)
            },
        )
    };
    writer.family(&HELD, listed().map(|(label, destination)| (label, f64::from(destination.held))));
    writer.family(&WANTING, listed().map(|(label, destination)| (label, f64::from(destination.wanting))));
    writer.family(
        &FORGOTTEN,
        listed().filter_map(|(label, destination)| Some((label, f64::from(destination.forgotten?)))),
    );
    writer.counters(&FAILED, listed().flat_map(|(label, destination)| failed(label, destination)));
    let listed = u64::try_from(report.nat.destinations.len()).unwrap_or(u64::MAX);
    writer.number(&DESTINATIONS, Some(float(listed.saturating_add(report.nat.omitted.destinations))));
}

/// Failed connects to one destination, by cause. Their sum is the report's `failed_total`.
fn failed(label: DestinationLabel, row: &DestinationReport) -> impl Iterator<Item = (FailureLabel, u64)> {
    let causes = [
        ("refused", row.refused_total),
        ("timed_out", row.timed_out_total),
        ("unreachable", row.unreachable_total),
        ("given_up", row.given_up_total),
        ("no_local_port", row.no_local_port_total),
    ];
    causes.into_iter().filter_map(move |(cause, total)| {
        let DestinationLabel { protocol, address, port } = label.clone();
        Some((FailureLabel { protocol, address, port, cause }, total?))
    })
}

fn masquerade(writer: &mut Writer, report: &Report) {
    let mut largest: BTreeMap<(RuleOwner, String, &'static str), f64> = BTreeMap::new();
    for row in &report.overlap.shares {
        for (which, share) in [("range", row.share), ("allocated", row.share_allocated)] {
            if let Some(share) = share {
                let held = largest.entry((row.owner, row.protocol.to_string(), which)).or_default();
                *held = held.max(share);
            }
        }
    }
    let series = largest
        .into_iter()
        .map(|((owner, protocol, which), share)| (MasqueradeLabel { owner: owner.name(), protocol, which }, share));
    writer.family(&MASQUERADE, series);
    writer.number(&NODE_PORTS, report.overlap.nodeports_total.map(float));
}

fn ipam(writer: &mut Writer, report: &Report) {
    let networks = || report.ipam.networks.iter().take(MAX_NETWORKS);
    let counts = networks().flat_map(|network| {
        let count = [
            (Verdict::InUse, network.counts.in_use),
            (Verdict::Settling, network.counts.settling),
            (Verdict::Leaked, network.counts.leaked),
            (Verdict::Undetermined, network.counts.undetermined),
        ];
        // A network that was read in part has at least that many, and no zero.
        count.into_iter().filter(|(_, count)| network.complete || *count > 0).map(|(verdict, count)| {
            (VerdictLabel { network: network.network.clone(), verdict: verdict.name() }, float(count))
        })
    });
    writer.family(&ADDRESSES, counts);
    let label = |network: &NetworkReport| NetworkLabel { network: network.network.clone() };
    writer.family(&USABLE, networks().filter_map(|network| Some((label(network), float(network.usable?)))));
    let sets = || {
        networks().flat_map(|network| {
            let sets = network.range_sets.iter().take(MAX_RANGE_SETS);
            sets.map(move |set| (RangeSetLabel { network: network.network.clone(), ranges: set.name() }, network, set))
        })
    };
    writer.family(&SET_USABLE, sets().map(|(label, _, set)| (label, float(set.usable))));
    let used = sets().filter(|(_, network, _)| network.complete).map(|(label, _, set)| (label, float(set.used)));
    writer.family(&SET_USED, used);
    writer.family(&SET_FULL_IN, sets().filter_map(|(label, _, set)| Some((label, float(set.exhausted_in_secs?)))));
    let pools = || networks().filter_map(|network| Some((network, network.pool.as_ref()?)));
    let states = pools().flat_map(|(network, pool)| {
        let warm = pool.idle.saturating_sub(pool.cooling);
        let states = [("assigned", pool.assigned), ("cooling", pool.cooling), ("warm", warm)];
        states.map(|(state, count)| (PoolLabel { network: network.network.clone(), state }, float(count)))
    });
    writer.family(&POOL, states);
    writer
        .family(&POOL_BEYOND, pools().filter_map(|(network, pool)| Some((label(network), float(pool.beyond_target?)))));
    let stranded = networks().filter_map(|network| Some((label(network), float(network.stranded.as_ref()?.stranded))));
    writer.family(&STRANDED, stranded);
    cleaner(writer, report);
}

fn cleaner(writer: &mut Writer, report: &Report) {
    let Some(cleaner) = report.ipam.cleaner.as_ref().filter(|cleaner| cleaner.mode != CleanerMode::Off) else { return };
    writer.counter(&RELEASED, Some(cleaner.released_total));
    writer.counter(&CLEAN_ERRORS, Some(cleaner.errors_total));
    // Whole seconds: exact for the next 285 million years.
    let at = cleaner.last_run_unix_secs.and_then(|secs| u64::try_from(secs).ok());
    writer.number(&CLEANED_AT, at.map(float));
    if at.is_some() {
        let refused = cleaner.refused_last;
        let counts = [
            (Verdict::Settling, refused.settling),
            (Verdict::Leaked, refused.leaked),
            (Verdict::Undetermined, refused.undetermined),
        ];
        writer.family(
            &REFUSED,
            counts.into_iter().map(|(verdict, count)| (CleanVerdictLabel { verdict: verdict.name() }, float(count))),
        );
    }
}

fn about_ourselves(writer: &mut Writer, report: &Report) {
    let findings = report.findings.iter().map(|finding| {
        let severity: Severity = finding.severity;
        (FindingLabel { id: finding.id.name(), severity: severity.name() }, 1.0)
    });
    writer.family(&FINDINGS, findings);
    let sources = report.coverage.iter().filter_map(|row| {
        let up = match row.state {
            CoverageState::Ok | CoverageState::Degraded => 1.0,
            CoverageState::Unknown => 0.0,
            CoverageState::Absent => return None,
        };
        Some((SourceLabel { source: row.source.name() }, up))
    });
    writer.family(&SOURCE_UP, sources);
    let age = |age_millis| float(age_millis) / 1e3;
    let ages = report.coverage.iter().filter_map(|row| Some((row.source.name(), row.age_millis.map(age)?)));
    writer.family(&SOURCE_AGE, ages.map(|(source, age)| (SourceLabel { source }, age)));
    let programs = || report.programs.iter().map(|program| (ProgramLabel { program: program.name.clone() }, program));
    writer.family(&PROGRAM_UP, programs().map(|(label, program)| (label, f64::from(u8::from(program.attached)))));
    // Where the kernel does not count, zero would be a lie.
    let counted =
        || programs().filter_map(|(label, program)| Some((label, program.runs.filter(|runs| *runs > 0)?, program)));
    writer.counters(&PROGRAM_RUNS, counted().map(|(label, runs, _)| (label, runs)));
    writer.amounts(
        &PROGRAM_SECONDS,
        counted().filter_map(|(label, _, program)| Some((label, float(program.time_ns?) / 1e9))),
    );
    writer.counters(&PROGRAM_MISSED, programs().filter_map(|(label, program)| Some((label, program.missed?))));
    writer.counters(&LOST, report.lost.iter().map(|(what, total)| (LossLabel { what: what.clone() }, *total)));
}

/// Prometheus has only floats: exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "Prometheus samples are 64-bit floats")]
fn float(count: u64) -> f64 {
    count as f64
}
