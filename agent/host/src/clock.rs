//! The clocks of a node. The only place that reads them.

use std::time::Duration;

use headroom_core::time::{NodeTime, Now, WallTime};
use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot (`CLOCK_BOOTTIME`, also counting suspension).
pub fn node_time() -> NodeTime {
    let spec = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME exists since Linux 2.6.39");
    let (secs, nanos) = (spec.tv_sec().unsigned_abs(), spec.tv_nsec().unsigned_abs());
    NodeTime::from_nanos(secs.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// The present on both clocks.
pub fn now() -> Now {
    let spec = clock_gettime(ClockId::CLOCK_REALTIME).expect("CLOCK_REALTIME always exists");
    let millis = spec.tv_sec().saturating_mul(1000).saturating_add(spec.tv_nsec() / 1_000_000);
    Now { node: node_time(), wall: WallTime::from_millis(millis) }
}

/// What the calling thread has used of a CPU so far, in the kernel and outside (`CLOCK_THREAD_CPUTIME_ID`).
pub fn thread_cpu() -> Duration {
    let spec =
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("CLOCK_THREAD_CPUTIME_ID exists since Linux 2.6.12");
    Duration::from_secs(spec.tv_sec().unsigned_abs()) + Duration::from_nanos(spec.tv_nsec().unsigned_abs())
}
