//! Which sources run, in which order and how often. The one place where a source is registered.

use std::time::Duration;

use headroom_core::observe::SourceId;
use headroom_host::netlink::socket::EVENT_BUFFER_BYTES;
use headroom_host::source::aws_vpc_cni::AwsVpcCniSource;
use headroom_host::source::azure_cni::AzureCniSource;
use headroom_host::source::cilium::CiliumSource;
use headroom_host::source::cilium_conntrack::CiliumConntrackSource;
use headroom_host::source::cni_cache::CniCacheSource;
use headroom_host::source::connections::{self, ConnectionsSource};
use headroom_host::source::conntrack::{self, ConntrackSource};
use headroom_host::source::conntrack_use::ConntrackUseSource;
use headroom_host::source::cri::CriSource;
use headroom_host::source::namespaces::NamespacesSource;
use headroom_host::source::paced::Paced;
use headroom_host::source::platform::PlatformSource;
use headroom_host::source::rules::RulesSource;
use headroom_host::source::services::ServicesSource;

use crate::engine::Lane;
use crate::settings::Settings;

/// How eagerly to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// One diagnosis: two looks at the reservations in quick succession.
    Once,
    /// For days: reservations every ten seconds.
    Steady,
}

/// Longest a first report waits for a lane: a hanging runtime is given up after two seconds by its source.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Rules and Services change when somebody deploys something.
const RULES_EVERY: Duration = Duration::from_secs(30);

/// All lanes.
pub fn all(settings: &Settings, pace: Pace) -> Vec<Lane> {
    let root = &settings.root;
    let reading = connections::Options { max_destinations: settings.max_destinations, reading: connections::READING };
    let connections = ConnectionsSource::start(root, reading);
    let tcp_is_counted = connections.is_counting();
    let conntrack = conntrack::Options {
        // What comes and goes is heard, but not what falls silent: a NAT forgets datagrams within seconds.
        dump_interval: if tcp_is_counted { Duration::from_secs(1) } else { Duration::from_millis(250) },
        dumping: conntrack::DUMPING,
        tcp_is_counted,
        node_ports: settings.policy.node_ports,
        max_keys: settings.max_destinations,
        event_buffer_bytes: EVENT_BUFFER_BYTES,
    };
    let mut lanes = vec![
        platform(settings),
        Lane {
            name: "connections",
            reports: &[SourceId::Tcp, SourceId::Sockets],
            pause: Duration::from_millis(250),
            rounds_wanted: 1,
            sources: vec![Box::new(connections)],
        },
        Lane {
            name: "conntrack",
            reports: &[SourceId::Conntrack, SourceId::ConntrackUse],
            // Events are drained ten times a second: their queue in the kernel is bounded.
            pause: Duration::from_millis(100),
            rounds_wanted: 1,
            sources: vec![
                // Time-outs first: the ages of flows follow from them.
                Box::new(Paced::new(ConntrackUseSource::new(root), Duration::from_secs(1))),
                Box::new(ConntrackSource::start(root, conntrack)),
            ],
        },
    ];
    lanes.push(Lane {
        name: "cilium",
        reports: &[SourceId::CiliumConntrack],
        pause: Duration::from_secs(10),
        rounds_wanted: 1,
        sources: vec![Box::new(CiliumConntrackSource::new(root))],
    });
    lanes.push(Lane {
        name: "rules",
        reports: &[SourceId::Rules, SourceId::Services],
        // The source itself looks less often where there is much to read.
        pause: Duration::from_secs(5),
        rounds_wanted: 1,
        sources: vec![
            Box::new(RulesSource::new(root, RULES_EVERY)),
            Box::new(ServicesSource::new(root, settings.policy.node_ports, RULES_EVERY)),
        ],
    });
    lanes.push(pods(settings, pace));
    lanes
}

/// Only what verdicts on reservations need.
pub fn reservations(settings: &Settings) -> Vec<Lane> {
    vec![platform(settings), Lane { pause: Duration::from_millis(20), ..pods(settings, Pace::Once) }]
}

fn platform(settings: &Settings) -> Lane {
    Lane {
        name: "platform",
        reports: &[SourceId::Platform],
        pause: Duration::from_secs(60),
        rounds_wanted: 1,
        sources: vec![Box::new(PlatformSource::new(settings.root.clone(), settings.node_name.clone()))],
    }
}

fn pods(settings: &Settings, pace: Pace) -> Lane {
    let root = &settings.root;
    Lane {
        name: "pods",
        reports: &[
            SourceId::HostLocal,
            SourceId::AwsVpcCni,
            SourceId::AzureCni,
            SourceId::Cilium,
            SourceId::CniCache,
            SourceId::Cri,
            SourceId::Namespaces,
        ],
        pause: if pace == Pace::Once { Duration::from_millis(300) } else { Duration::from_secs(10) },
        rounds_wanted: 2,
        sources: vec![
            // Reservations first, the runtime second: a pod that starts in between must not look leaked.
            Box::new(settings.stores()),
            Box::new(AwsVpcCniSource::new(root.clone(), settings.vpc_cni_introspection.clone())),
            Box::new(AzureCniSource::new(root.clone(), settings.cni_conf_dir.clone())),
            Box::new(CiliumSource::new(root.clone())),
            Box::new(CniCacheSource::new(root.clone())),
            Box::new(CriSource::new(settings.cri_socket.clone(), root.clone())),
            Box::new(NamespacesSource::new(root.clone())),
        ],
    }
}
