//! Demand as headroom estimates it, against the gateway's own table: every second of a mixed load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use headroom_lab::Lab;
use headroom_lab::accuracy::{Scene, check_load, compare};
use headroom_lab::headroom::Daemon;

/// Seconds that are compared.
const SECONDS: u32 = 60;

/// Exercises the accounting against the gateway's own table: every second of a minute of mixed load, some of which existed
/// before. If this fails, headroom's numbers are not what the NAT counts.
#[test]
fn demand_agrees_with_the_gateways_own_table_every_second() {
    let lab = Lab::new().unwrap();
    let scene = Scene::build(&lab).unwrap();
    let args = "--nat-profile gcp --nat-min-ports 128 --nat-alias-ranges false --nat-tcp-time-wait 12s --nat-tcp-reset 5s \
                --nat-tcp-transitory 6s --nat-udp-idle 10s";
    let daemon = Daemon::start(&scene.nat.node, 9497, &args.split_whitespace().collect::<Vec<_>>()).unwrap();
    let _load = scene.mixed_load(SECONDS + 3).unwrap();

    let stop = AtomicBool::new(false);
    let (mut reports, readings) = std::thread::scope(|scope| {
        let follower = scope.spawn(|| scene.follow_gateway(Duration::from_millis(40), &stop).unwrap());
        // The first report may be older than the first reading, and the last newer than the last.
        std::thread::sleep(Duration::from_secs(2));
        let mut reports = Vec::new();
        for _ in 0..SECONDS {
            std::thread::sleep(Duration::from_secs(1));
            reports.push(daemon.report().unwrap());
        }
        std::thread::sleep(Duration::from_secs(1));
        stop.store(true, Ordering::Relaxed);
        (reports, follower.join().unwrap())
    });
    reports.dedup_by(|a, b| a["time"] == b["time"]);
    assert!(reports.len() >= SECONDS as usize - 10, "{} reports in {SECONDS} seconds", reports.len());

    let comparison = compare(&reports, &readings).unwrap();
    println!("{comparison}");
    comparison.agrees().unwrap();
    check_load(&comparison, reports.last().unwrap(), SECONDS).unwrap();
}
