//! Dynamic port allocation: the gateway doubles the node's range once it is used up, a while later, as Cloud NAT does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::NatLab;
use crate::conntrack::{self, Protocol};
use crate::netns::Netns;

/// How the range grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// First port of the range.
    pub first: u16,
    /// Ports at the beginning.
    pub min: u16,
    /// Ports at most.
    pub max: u16,
    /// From when they are used up until there are twice as many.
    pub delay: Duration,
}

/// Ports from when on, since the start.
pub type Grown = Vec<(Duration, u16)>;

/// The one who enlarges the range; stopped when dropped.
#[derive(Debug)]
pub struct DynamicPorts {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Grown>>>,
}

impl DynamicPorts {
    /// Watches what the gateway's own table holds for a destination. The gateway must have been built with the smallest range.
    pub fn start(nat: &NatLab, growth: Growth, destination: SocketAddr) -> Self {
        let (gateway, stop) = (nat.gateway.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || grow(&gateway, growth, destination, &stopped));
        Self { stop, thread: Some(thread) }
    }

    /// Stops it; how the range grew.
    pub fn stop(mut self) -> Result<Grown> {
        self.end().context("the range is watched until it is stopped")?
    }

    fn end(&mut self) -> Option<Result<Grown>> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take()?.join();
        Some(ended.unwrap_or_else(|_panic| Err(anyhow::anyhow!("the thread that enlarges the range panicked"))))
    }
}

impl Drop for DynamicPorts {
    fn drop(&mut self) {
        drop(self.end());
    }
}

fn grow(gateway: &Netns, growth: Growth, destination: SocketAddr, stop: &AtomicBool) -> Result<Grown> {
    let (start, mut grown) = (Instant::now(), vec![(Duration::ZERO, growth.min)]);
    let mut ports = growth.min;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        let held = conntrack::held(gateway, Protocol::Tcp, destination)?.ports;
        if held < usize::from(ports) || ports >= growth.max {
            continue;
        }
        std::thread::sleep(growth.delay);
        ports = ports.saturating_mul(2).min(growth.max);
        let range = format!("{}-{}", growth.first, growth.first.saturating_add(ports - 1));
        // The rules of the lab, in their order: TCP, then UDP.
        for (number, protocol) in ["tcp", "udp"].into_iter().enumerate() {
            let number = (number + 1).to_string();
            let rule = ["-w", "-t", "nat", "-R", "POSTROUTING", &number, "-o", "outside", "-p", protocol];
            gateway.exec("iptables", &[&rule[..], &["-j", "MASQUERADE", "--to-ports", &range]].concat())?;
        }
        grown.push((start.elapsed(), ports));
    }
    Ok(grown)
}
