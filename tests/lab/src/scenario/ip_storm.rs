//! CNI's ADD and DEL in a storm, with the real host-local binary, while headroom cleans as fast as it can.
//!
//! Pods are only reservations here: what is proved is that host-local and the cleaner keep out of each other's way. A runtime
//! that names exactly the pods that live, and reservations dated back as soon as they are there, leave nothing but the
//! cleaner's own care between it and a live address: neither age nor a namespace protects them.

#[expect(dead_code, clippy::unwrap_used, reason = "the runtime of headroom-host's own tests, which needs more of it")]
#[path = "../../../../agent/host/tests/pods_cri/fake.rs"]
mod fake;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::step;
use crate::lab::Lab;
use crate::netns::Netns;
use crate::pods::PLUGINS;

const NETWORK: &str = "storm";
/// Those that call CNI at the same time.
const WORKERS: u64 = 4;
/// Pods that live at once, more or less, of 253 addresses.
const ALIVE: usize = 100;
/// One in so many pods is not deleted but forgotten.
const LEAK_ONE_IN: u64 = 6;

/// ADD and DEL of the real host-local in a storm, while headroom cleans; counts what must never happen
#[derive(Debug, Clone, clap::Args)]
pub struct IpStorm {
    /// The headroom binary
    #[arg(long, env = "HEADROOM_BIN", default_value = "headroom")]
    pub headroom: PathBuf,
    /// How many ADDs and DELs of the plugin that do something, at least
    #[arg(long, default_value_t = 10_000)]
    pub operations: u64,
}

/// What came of a storm.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weathered {
    /// ADDs that gave an address, and DELs.
    pub operations: u64,
    /// ADDs that gave an address.
    pub added: u64,
    /// DELs.
    pub deleted: u64,
    /// ADDs that found no free address.
    pub full: u64,
    /// Pods that were forgotten with their reservation.
    pub leaked: usize,
    /// Clean-ups.
    pub runs: u64,
    /// Reservations they gave back.
    pub cleaned: usize,
    /// The longest that an ADD or DEL took.
    pub longest: Duration,
    /// What must never happen, in words.
    pub violations: Vec<String>,
}

/// What is true, apart from all that is tested.
#[derive(Debug, Default)]
struct Truth {
    live: BTreeMap<Ipv4Addr, String>,
    leaked: BTreeSet<String>,
    deleted: BTreeSet<String>,
    violations: Vec<String>,
    longest: Duration,
}

struct Storm<'a> {
    lab: &'a Lab,
    data_dir: PathBuf,
    config: String,
    truth: Mutex<Truth>,
    runtime: Arc<Mutex<fake::State>>,
    added: AtomicU64,
    deleted: AtomicU64,
    full: AtomicU64,
}

impl IpStorm {
    /// Runs the storm and prints what came of it.
    pub fn run(&self) -> Result<ExitCode> {
        let began = Instant::now();
        let weathered = self.weather(&Lab::new()?)?;
        step(&format!("{weathered:#?}\nin {:.1?}", began.elapsed()));
        Ok(if weathered.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Runs the storm.
    pub fn weather(&self, lab: &Lab) -> Result<Weathered> {
        let netns = Netns::add(lab, "node")?;
        let dir = lab.make_dir("storm")?;
        let data_dir = dir.join("networks");
        let socket = dir.join("runtime.sock");
        let storm = Storm {
            lab,
            config: serde_json::json!({
                "cniVersion": "0.4.0", "name": NETWORK, "type": "ptp",
                "ipam": { "type": "host-local", "dataDir": data_dir, "ranges": [[{ "subnet": "10.199.0.0/24" }]] },
            })
            .to_string(),
            data_dir,
            truth: Mutex::default(),
            runtime: fake::serve(&socket),
            added: AtomicU64::new(0),
            deleted: AtomicU64::new(0),
            full: AtomicU64::new(0),
        };
        let clean = || self.clean(&netns, &storm.data_dir, &socket);
        let over = AtomicBool::new(false);
        let (mut runs, mut cleaned) = std::thread::scope(|scope| {
            let workers: Vec<_> = (1..=WORKERS)
                .map(|seed| {
                    scope.spawn({
                        let storm = &storm;
                        move || storm.work(seed, self.operations)
                    })
                })
                .collect();
            let cleaner = scope.spawn(|| {
                let (mut runs, mut cleaned) = (0, 0);
                while !over.load(Ordering::Relaxed) {
                    cleaned += clean()?;
                    runs += 1;
                }
                Ok((runs, cleaned))
            });
            let worked: Result<()> = workers.into_iter().try_for_each(joined);
            over.store(true, Ordering::Relaxed);
            let cleaned: Result<(u64, usize)> = joined(cleaner);
            worked.and(cleaned)
        })?;
        // When the wind has gone, what is left of the leaks goes, too.
        cleaned += clean()?;
        runs += 1;
        storm.check_the_end(cleaned)?;
        let truth = storm.truth();
        let (added, deleted) = (storm.added.load(Ordering::Relaxed), storm.deleted.load(Ordering::Relaxed));
        Ok(Weathered {
            operations: added + deleted,
            added,
            deleted,
            full: storm.full.load(Ordering::Relaxed),
            leaked: truth.leaked.len(),
            runs,
            cleaned,
            longest: truth.longest,
            violations: truth.violations.clone(),
        })
    }

    /// One clean-up; how many reservations it gave back.
    fn clean(&self, netns: &Netns, data_dir: &Path, socket: &Path) -> Result<usize> {
        let (data_dir, socket) = (data_dir.to_string_lossy(), socket.to_string_lossy());
        let args = [
            "ipam",
            "clean",
            "--apply",
            "--force",
            "--leak-grace",
            "1m",
            "-o",
            "json",
            "--cni-dir",
            &*data_dir,
            "--cni-conf-dir",
            "/nonexistent",
            "--cri-socket",
            &*socket,
        ];
        let output = netns.spawn(netns.command(&self.headroom, &args))?.wait(Duration::from_secs(60))?;
        let answer: Value = serde_json::from_str(&output.stdout)
            .with_context(|| format!("read what headroom said: {}{}", output.stdout, output.stderr))?;
        let applied = answer.get("applied").and_then(Value::as_array).context("find `applied`")?;
        Ok(applied.len())
    }
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_panic| bail!("a thread panicked"))
}

impl Storm<'_> {
    /// One worker's ADDs and DELs.
    fn work(&self, seed: u64, operations: u64) -> Result<()> {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        while self.added.load(Ordering::Relaxed) + self.deleted.load(Ordering::Relaxed) < operations {
            let alive = self.truth().live.len();
            // Around the wanted number both happen, so that they meet.
            let wanted = if alive < ALIVE { 3 } else { 1 };
            if alive == 0 || random.below(4) < wanted {
                self.add(&mut random)?;
            } else {
                self.end(&mut random)?;
            }
        }
        Ok(())
    }

    fn add(&self, random: &mut Random) -> Result<()> {
        let id: String = (0..4).map(|_| format!("{:016x}", random.next())).collect();
        let (worked, said) = self.host_local("ADD", &id)?;
        if !worked {
            ensure!(said.contains(super::NODE_FULL), "host-local failed: {said}");
            self.full.fetch_add(1, Ordering::Relaxed);
            return self.end(random);
        }
        self.added.fetch_add(1, Ordering::Relaxed);
        let answer: Value = serde_json::from_str(&said).with_context(|| format!("read host-local's answer {said}"))?;
        let address = answer.pointer("/ips/0/address").and_then(Value::as_str).and_then(|text| text.split('/').next());
        let address: Ipv4Addr = address.context("an address in the answer")?.parse().context("read the address")?;
        {
            let mut truth = self.truth();
            if let Some(other) = truth.live.insert(address, id.clone()) {
                truth.violations.push(format!("{address} was handed out to {id} while {other} has it"));
            }
        }
        self.runtime().sandboxes.push((id, fake::Answer::Address("")));
        // From here on its age protects it no more.
        let file = fs::File::options().write(true).open(self.reservation(address)).context("open a new reservation")?;
        let hour_ago = SystemTime::now().checked_sub(Duration::from_secs(3600)).context("an hour ago")?;
        file.set_modified(hour_ago).context("date a reservation back")
    }

    /// A pod ends: mostly by DEL; now and then it is forgotten.
    fn end(&self, random: &mut Random) -> Result<()> {
        let leak = random.below(LEAK_ONE_IN) == 0;
        let (address, id) = {
            let mut truth = self.truth();
            let count = u64::try_from(truth.live.len()).context("a count")?;
            // Those of the runtime alone: the others are still being made.
            let known: BTreeSet<String> = self.runtime().sandboxes.iter().map(|(id, _)| id.clone()).collect();
            let skip = usize::try_from(random.below(count.max(1))).context("an index")?;
            let chosen =
                truth.live.iter().skip(skip).find(|(_, id)| known.contains(*id)).map(|(a, id)| (*a, id.clone()));
            let Some((address, id)) = chosen else { return Ok(()) };
            let content = fs::read_to_string(self.reservation(address)).unwrap_or_default();
            if !content.starts_with(&id) {
                truth.violations.push(format!("{address} of the live {id} holds `{content}`"));
            }
            truth.live.remove(&address);
            if leak {
                truth.leaked.insert(id.clone());
            }
            (address, id)
        };
        if !leak {
            let (worked, said) = self.host_local("DEL", &id)?;
            ensure!(worked, "host-local failed to give {address} back: {said}");
            self.deleted.fetch_add(1, Ordering::Relaxed);
            self.truth().deleted.insert(id.clone());
        }
        self.runtime().sandboxes.retain(|(known, _)| *known != id);
        Ok(())
    }

    /// Whether the plugin succeeded, and what it said.
    fn host_local(&self, verb: &str, id: &str) -> Result<(bool, String)> {
        let began = Instant::now();
        let mut child = Command::new(Path::new(PLUGINS).join("host-local"))
            .env_clear()
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", id), ("CNI_NETNS", "/dev/null"), ("CNI_IFNAME", "eth0")])
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run host-local")?;
        child.stdin.take().context("host-local's stdin")?.write_all(self.config.as_bytes()).context("write to it")?;
        let output = child.wait_with_output().context("wait for host-local")?;
        let mut truth = self.truth();
        truth.longest = truth.longest.max(began.elapsed());
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), said))
    }

    /// Every live pod has its reservation, nothing else is reserved, and what was taken was leaked and was taken once.
    fn check_the_end(&self, cleaned: usize) -> Result<()> {
        let mut truth = self.truth();
        let mut found = Vec::new();
        let mut reserved = BTreeMap::new();
        for entry in fs::read_dir(self.data_dir.join(NETWORK)).context("list the store")?.flatten() {
            let Some(address) = entry.file_name().to_str().and_then(|name| name.parse::<Ipv4Addr>().ok()) else {
                continue;
            };
            reserved.insert(address, fs::read_to_string(entry.path()).context("read a reservation")?);
        }
        for (address, id) in &truth.live {
            let content = reserved.remove(address).unwrap_or_default();
            if !content.starts_with(id.as_str()) {
                found.push(format!("at the end {address} of the live {id} holds `{content}`"));
            }
        }
        for (address, content) in reserved {
            found.push(format!("at the end {address} is still reserved for `{content}`"));
        }
        let mut taken = BTreeSet::new();
        let mut folders = vec![self.data_dir.join(headroom_host::act::journal::FOLDER)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "taken") {
                    let content = fs::read_to_string(&path).context("read a journal's entry")?;
                    let id = content.lines().next().unwrap_or_default().to_owned();
                    if !truth.leaked.contains(&id) {
                        let deleted = truth.deleted.contains(&id);
                        found.push(format!("{id} was taken and not leaked (deleted in order: {deleted})"));
                    }
                    if !taken.insert(id.clone()) {
                        found.push(format!("{id} was taken twice"));
                    }
                }
            }
        }
        if taken.len() != cleaned || taken != truth.leaked {
            let (taken, leaked) = (taken.len(), truth.leaked.len());
            found.push(format!("{leaked} were leaked, headroom says it took {cleaned}, the journals hold {taken}"));
        }
        truth.violations.append(&mut found);
        // The directory goes with the lab.
        ensure!(self.data_dir.starts_with(self.lab.dir()), "the store is the lab's own");
        Ok(())
    }

    fn reservation(&self, address: Ipv4Addr) -> PathBuf {
        self.data_dir.join(NETWORK).join(address.to_string())
    }

    fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runtime(&self) -> MutexGuard<'_, fake::State> {
        self.runtime.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// xorshift64*: the same storm for the same seed, as far as threads allow.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
