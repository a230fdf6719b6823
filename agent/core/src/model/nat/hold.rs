//! How long a NAT keeps a port after a flow ended or fell silent: the defaults of each NAT, and what a user sets over them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Profile;

/// The longest time that a port may outlive its flow: every ended flow is remembered that long.
pub const MAX_HOLD: Duration = Duration::from_secs(3600);

/// How long a NAT keeps a port after the flow ended or fell silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldTimes {
    /// After a TCP connection closed in good order.
    pub tcp_time_wait: Duration,
    /// After a TCP connection was reset.
    pub tcp_reset: Duration,
    /// After the last packet of a TCP connection that is half open: still opening, or only half closed.
    pub tcp_transitory: Duration,
    /// After the last packet of an established TCP connection.
    pub tcp_established_idle: Duration,
    /// After the last packet of a UDP flow.
    pub udp_idle: Duration,
    /// After that, before the port may serve the same destination again.
    pub udp_hold_down: Duration,
    /// After the last packet of an ICMP flow; zero where the NAT translates no ICMP.
    pub icmp_idle: Duration,
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

impl Profile {
    /// The NAT's own times, where nobody has set others.
    pub const fn hold(self) -> HoldTimes {
        match self {
            // Compute API `RouterNat`; a reset falls under the transitory time-out. Without a known NAT the longest common
            // times are taken, so that demand is not told too small.
            Self::Gcp | Self::None => HoldTimes {
                tcp_time_wait: secs(120),
                tcp_reset: secs(30),
                tcp_transitory: secs(30),
                tcp_established_idle: secs(1200),
                udp_idle: secs(30),
                udp_hold_down: secs(0),
                icmp_idle: secs(30),
            },
            // Only the idle time-out is published as such. That some 900 connections a second (55,000 a minute) to one
            // destination reach the limit of 55,000 (VPC user guide, NAT gateway basics) means a minute after the end.
            Self::Aws => HoldTimes {
                tcp_time_wait: secs(60),
                tcp_reset: secs(60),
                tcp_transitory: secs(60),
                tcp_established_idle: secs(350),
                udp_idle: secs(350),
                udp_hold_down: secs(0),
                icmp_idle: secs(350),
            },
            // azure-docs `nat-gateway-resource.md`: reuse timers towards the same destination; ICMP is not supported.
            Self::AzureNatgw => HoldTimes {
                tcp_time_wait: secs(65),
                tcp_reset: secs(16),
                tcp_transitory: secs(30),
                tcp_established_idle: secs(240),
                udp_idle: secs(240),
                udp_hold_down: secs(65),
                icmp_idle: secs(0),
            },
            // azure-docs `load-balancer-outbound-connections.md`: 240 s after a FIN, 15 s after a RST. Idle: 30 minutes on
            // AKS (4 on a plain Standard Load Balancer), 4 for UDP.
            Self::AzureLb => HoldTimes {
                tcp_time_wait: secs(240),
                tcp_reset: secs(15),
                tcp_transitory: secs(240),
                tcp_established_idle: secs(1800),
                udp_idle: secs(240),
                udp_hold_down: secs(0),
                icmp_idle: secs(0),
            },
            // `Documentation/networking/nf_conntrack-sysctl.rst`: time_wait, close, syn_sent, established, udp_stream, icmp.
            Self::Linux => HoldTimes {
                tcp_time_wait: secs(120),
                tcp_reset: secs(10),
                tcp_transitory: secs(120),
                tcp_established_idle: secs(432_000),
                udp_idle: secs(120),
                udp_hold_down: secs(0),
                icmp_idle: secs(30),
            },
        }
    }
}

impl Default for HoldTimes {
    /// Cloud NAT's.
    fn default() -> Self {
        Profile::Gcp.hold()
    }
}

impl HoldTimes {
    /// How long a UDP port stays taken towards a destination after the last packet.
    pub fn udp_held(self) -> Duration {
        self.udp_idle.saturating_add(self.udp_hold_down)
    }

    /// The longest time a port outlives its flow.
    pub fn longest_after_end(self) -> Duration {
        self.after_end().into_iter().map(|(_, held)| held).fold(Duration::ZERO, Duration::max)
    }

    /// Times for which a port outlives its flow, by the names of the settings.
    pub(super) fn after_end(self) -> [(&'static str, Duration); 4] {
        [
            ("tcp-time-wait", self.tcp_time_wait),
            ("tcp-reset", self.tcp_reset),
            ("udp-idle", self.udp_held()),
            ("icmp-idle", self.icmp_idle),
        ]
    }
}

/// Times that somebody has set; absent ones stay the NAT's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetTimes {
    /// See [`HoldTimes::tcp_time_wait`].
    pub tcp_time_wait: Option<Duration>,
    /// See [`HoldTimes::tcp_reset`].
    pub tcp_reset: Option<Duration>,
    /// See [`HoldTimes::tcp_transitory`].
    pub tcp_transitory: Option<Duration>,
    /// See [`HoldTimes::tcp_established_idle`].
    pub tcp_established_idle: Option<Duration>,
    /// See [`HoldTimes::udp_idle`].
    pub udp_idle: Option<Duration>,
    /// See [`HoldTimes::udp_hold_down`].
    pub udp_hold_down: Option<Duration>,
    /// See [`HoldTimes::icmp_idle`].
    pub icmp_idle: Option<Duration>,
}

impl SetTimes {
    /// These where they are set, else the others.
    pub fn or(self, other: Self) -> Self {
        Self {
            tcp_time_wait: self.tcp_time_wait.or(other.tcp_time_wait),
            tcp_reset: self.tcp_reset.or(other.tcp_reset),
            tcp_transitory: self.tcp_transitory.or(other.tcp_transitory),
            tcp_established_idle: self.tcp_established_idle.or(other.tcp_established_idle),
            udp_idle: self.udp_idle.or(other.udp_idle),
            udp_hold_down: self.udp_hold_down.or(other.udp_hold_down),
            icmp_idle: self.icmp_idle.or(other.icmp_idle),
        }
    }

    /// The times that hold: those set, and the NAT's own otherwise. Cloud NAT keeps a reset connection for its transitory
    /// time-out, so that setting the one sets the other.
    pub fn over(self, own: HoldTimes) -> HoldTimes {
        let same = own.tcp_reset == own.tcp_transitory;
        HoldTimes {
            tcp_time_wait: self.tcp_time_wait.unwrap_or(own.tcp_time_wait),
            tcp_reset: self.tcp_reset.or(self.tcp_transitory.filter(|_| same)).unwrap_or(own.tcp_reset),
            tcp_transitory: self.tcp_transitory.unwrap_or(own.tcp_transitory),
            tcp_established_idle: self.tcp_established_idle.unwrap_or(own.tcp_established_idle),
            udp_idle: self.udp_idle.unwrap_or(own.udp_idle),
            udp_hold_down: self.udp_hold_down.unwrap_or(own.udp_hold_down),
            icmp_idle: self.icmp_idle.unwrap_or(own.icmp_idle),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exercises the published times. If this fails, demand is told too small or too large on that NAT.
    #[test]
    fn times_are_those_of_the_documentation() {
        for (profile, in_secs) in [
            (Profile::Gcp, [120, 30, 30, 1200, 30, 0, 30]),
            (Profile::Aws, [60, 60, 60, 350, 350, 0, 350]),
            (Profile::AzureNatgw, [65, 16, 30, 240, 240, 65, 0]),
            (Profile::AzureLb, [240, 15, 240, 1800, 240, 0, 0]),
            (Profile::Linux, [120, 10, 120, 432_000, 120, 0, 30]),
        ] {
            let hold = profile.hold();
            let all = [
                hold.tcp_time_wait,
                hold.tcp_reset,
                hold.tcp_transitory,
                hold.tcp_established_idle,
                hold.udp_idle,
                hold.udp_hold_down,
                hold.icmp_idle,
            ];
            assert_eq!(all.map(|time| time.as_secs()), in_secs, "{profile:?}");
        }
        assert_eq!(Profile::AzureNatgw.hold().longest_after_end(), secs(305));
    }

    #[test]
    fn what_is_set_wins_and_cloud_nats_transitory_time_is_that_of_resets() {
        let set = SetTimes { tcp_transitory: Some(secs(7)), icmp_idle: Some(secs(9)), ..SetTimes::default() };
        let gcp = set.over(Profile::Gcp.hold());
        assert_eq!((gcp.tcp_transitory, gcp.tcp_reset, gcp.icmp_idle), (secs(7), secs(7), secs(9)));
        let azure = set.over(Profile::AzureNatgw.hold());
        assert_eq!((azure.tcp_transitory, azure.tcp_reset), (secs(7), secs(16)));
    }
}
