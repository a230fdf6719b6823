//! Giving 1,000 leaked of 2,000 reservations back: `headroom ipam clean --apply` against the shell loop that Google's
//! documentation gives for it, with a real containerd.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bench::say;
use crate::lab::Lab;
use crate::netns::Netns;
use crate::pods::{Node, NodeOptions, Pod, PodSpec};
use crate::process;

/// The loop as it is published (cloud.google.com, GKE Dataplane V2, "no IP addresses available in range set"), without
/// `sudo`, with this lab's store and containerd.
const LOOP: &str = r#"
for hash in $(find "$STORE" -iregex "$STORE/[0-9].*" -exec head -n1 {} \;); do hash="${hash%%[[:space:]]}"; if [ -z $(ctr --address "$SOCKET" -n k8s.io c ls | grep $hash | awk '{print $1}') ]; then grep -ilr $hash "$STORE"; fi; done | xargs -r rm
"#;

/// How much of everything.
struct Sizes {
    /// Sandboxes that run; each holds as many addresses as it has interfaces.
    pods: usize,
    interfaces: usize,
    leaked: usize,
    rounds: usize,
}

impl Sizes {
    const FULL: Self = Self { pods: 50, interfaces: 20, leaked: 1000, rounds: 5 };
    const QUICK: Self = Self { pods: 5, interfaces: 20, leaked: 100, rounds: 1 };

    fn alive(&self) -> usize {
        self.pods * self.interfaces
    }
}

/// Measures; Markdown.
pub(super) fn measure(lab: &Lab, headroom: &Path, quick: bool) -> Result<String> {
    let sizes = if quick { Sizes::QUICK } else { Sizes::FULL };
    let netns = Netns::add(lab, "node")?;
    let node = Node::start(&netns, NodeOptions { subnet: "10.64.0.0/18".into(), ..NodeOptions::default() })?;
    say(&format!("{} pods", sizes.pods));
    // On the node's network: their reservations are written here, the runtime is what matters.
    let pod = |number| PodSpec {
        namespace: "shop".into(),
        name: format!("web-{number}"),
        host_network: true,
        ..PodSpec::default()
    };
    let pods: Vec<Pod> = (0..sizes.pods).map(|number| node.run_pod_with(&pod(number))).collect::<Result<_>>()?;

    let mut took = Vec::new();
    for round in 0..sizes.rounds {
        fill(&node, &pods, &sizes)?;
        say(&format!("round {} of {}: headroom", round + 1, sizes.rounds));
        took.push(with_headroom(&node, headroom, &sizes)?);
        check(&node, &sizes)?;
    }
    took.sort_unstable();
    let median = *took.get(took.len() / 2).context("at least one round")?;
    fill(&node, &pods, &sizes)?;
    say("the published loop");
    let shell = with_the_loop(lab, &node)?;
    check(&node, &sizes)?;
    Ok(markdown(&sizes, &took, median, shell))
}

/// The store of an hour ago: every interface of every pod, and as many reservations again of containers that are gone.
fn fill(node: &Node, pods: &[Pod], sizes: &Sizes) -> Result<()> {
    let store = node.store();
    if store.exists() {
        fs::remove_dir_all(&store).with_context(|| format!("empty `{}`", store.display()))?;
    }
    fs::create_dir_all(&store).with_context(|| format!("create `{}`", store.display()))?;
    let hour_ago = std::time::SystemTime::now().checked_sub(Duration::from_secs(3600)).context("an hour ago")?;
    let held = pods.iter().flat_map(|pod| (0..sizes.interfaces).map(move |index| (pod.sandbox_id.clone(), index)));
    let gone = (0..sizes.leaked).map(|number| (format!("{number:064x}"), 0));
    for (number, (id, interface)) in held.chain(gone).enumerate() {
        let path = store.join(format!("10.64.{}.{}", number / 250, number % 250 + 2));
        let file = fs::File::create(&path).with_context(|| format!("create `{}`", path.display()))?;
        std::io::Write::write_all(&mut &file, format!("{id}\r\neth{interface}").as_bytes()).context("write it")?;
        file.set_modified(hour_ago).context("date it back")?;
    }
    nix::unistd::sync();
    Ok(())
}

/// What is left is what lives.
fn check(node: &Node, sizes: &Sizes) -> Result<()> {
    let left = node.reservations()?.len();
    ensure!(left == sizes.alive(), "{left} reservations are left of {}", sizes.alive());
    Ok(())
}

/// From the start of the process to its end.
fn with_headroom(node: &Node, headroom: &Path, sizes: &Sizes) -> Result<Duration> {
    let paths = [node.socket(), node.cni_dir(), node.cni_conf_dir()];
    let [socket, cni, conf] = &paths.map(|path| path.to_string_lossy().into_owned());
    let max = sizes.leaked.to_string();
    let args = [
        "ipam",
        "clean",
        "--apply",
        "--max",
        &max,
        "-o",
        "json",
        "--cri-socket",
        socket,
        "--cni-dir",
        cni,
        "--cni-conf-dir",
        conf,
    ];
    let began = Instant::now();
    let output = node.netns().spawn(node.netns().command(headroom, &args))?.wait(Duration::from_secs(120))?;
    let took = began.elapsed();
    if output.code() != 0 {
        bail!("headroom ended with {}: {}{}", output.code(), output.stdout, output.stderr);
    }
    Ok(took)
}

fn with_the_loop(lab: &Lab, node: &Node) -> Result<Duration> {
    let mut command = std::process::Command::new("bash");
    command.args(["-c", LOOP]).env("STORE", node.store()).env("SOCKET", node.socket());
    let began = Instant::now();
    let output = process::Process::spawn(lab, command)?.wait(Duration::from_secs(900))?;
    let took = began.elapsed();
    if output.code() != 0 {
        bail!("the loop ended with {}: {}", output.code(), output.stderr);
    }
    Ok(took)
}

fn markdown(sizes: &Sizes, took: &[Duration], median: Duration, shell: Duration) -> String {
    let ratio = shell.as_secs_f64() / median.as_secs_f64();
    let (least, most) = (took.first().copied().unwrap_or(median), took.last().copied().unwrap_or(median));
    let met = if ratio >= 100.0 { "yes" } else { "**no**" };
    format!(
        "### Giving {} leaked of {} reservations back\n\n\
         A real containerd with {} running pods that hold {} addresses. Whole processes, from start to end; what is left was\n\
         checked after each.\n\n\
         | what | budget | measured | met |\n|---|---|---|---|\n\
         | `headroom ipam clean --apply` against the published shell loop | ≥ 100 × faster | {ratio:.0} × | {met} |\n\n\
         | | time |\n|---|---|\n\
         | `headroom ipam clean --apply --max {}` | {:.2} s ({:.2}–{:.2}, {} rounds) |\n\
         | the shell loop | {:.1} s (1 round) |\n",
        sizes.leaked,
        sizes.leaked + sizes.alive(),
        sizes.pods,
        sizes.alive(),
        sizes.leaked,
        median.as_secs_f64(),
        least.as_secs_f64(),
        most.as_secs_f64(),
        took.len(),
        shell.as_secs_f64(),
    )
}
