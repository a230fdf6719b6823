//! The image as the DaemonSet runs it: built by buildah from the static binary, imported into a real containerd, run
//! through the CRI with the manifest's own capabilities, mounts and security context.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests may panic as tests do"
)]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use headroom_lab::image::{ContainerSpec, HostMount};
use headroom_lab::pods::{Leak, PodSpec};
use headroom_lab::traffic::{Connect, Generator, Serve, Server};
use headroom_lab::{Lab, NatLab, NatOptions, Node, NodeOptions, headroom, process};
use serde_json::Value;

const TARGET: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 7), 443);

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

/// The DaemonSet's container, as the manifest says it.
fn manifest() -> Value {
    let text = std::fs::read_to_string(deploy().join("base/daemonset.yaml")).unwrap();
    serde_yaml_ng::from_str(&text).unwrap()
}

/// Builds the image with the Containerfile and stores it as an archive.
fn build_image(lab: &Lab) -> PathBuf {
    let binary = std::env::var_os("HEADROOM_STATIC_BIN").expect("HEADROOM_STATIC_BIN is set by `cargo xtask test`");
    let context = lab.make_dir("context").unwrap();
    std::fs::copy(&binary, context.join("headroom")).unwrap();
    let containerfile = deploy().join("Containerfile");
    let archive = lab.dir().join("headroom.tar");
    let root = lab.make_dir("buildah").unwrap();
    let storage = ["--storage-driver", "vfs", "--root", root.to_str().unwrap(), "--runroot", root.to_str().unwrap()];
    let run = |args: &[&str]| process::run(lab, "buildah", &[&storage[..], args].concat()).unwrap();
    let tag = "localhost/headroom:latest";
    run(&["bud", "--isolation", "chroot", "-t", tag, "-f", containerfile.to_str().unwrap(), context.to_str().unwrap()]);
    run(&["push", tag, &format!("docker-archive:{}:{tag}", archive.display())]);
    archive
}

/// Where the lab's node keeps what a real node has at `path`.
fn on_this_node(node: &Node, config: &Path, volume: &Value) -> PathBuf {
    if volume.get("configMap").is_some() {
        return config.to_owned();
    }
    match volume["hostPath"]["path"].as_str().unwrap() {
        "/var/lib/cni/networks" => node.cni_dir(),
        "/etc/cni/net.d" => node.cni_conf_dir(),
        "/run/containerd" => node.socket().parent().unwrap().to_owned(),
        shared @ ("/run/netns" | "/sys/fs/bpf") => PathBuf::from(shared),
        // Other IPAMs are not here: the kubelet makes an empty directory.
        none @ ("/var/lib/cni/results" | "/var/run/aws-node" | "/var/run/cilium/state" | "/var/run/azure-cns") => {
            let empty = node.cni_conf_dir().with_file_name("none").join(none.trim_start_matches('/'));
            std::fs::create_dir_all(&empty).unwrap();
            empty
        }
        other => panic!("the lab does not know where a node has `{other}`"),
    }
}

fn spec(node: &Node, config: &Path, args: &[&str]) -> (PodSpec, ContainerSpec) {
    let manifest = manifest();
    let pod = &manifest["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
    assert_eq!(
        (&security["privileged"], &security["allowPrivilegeEscalation"]),
        (&Value::from(false), &Value::from(false))
    );
    let volumes = pod["volumes"].as_array().unwrap();
    let mounts = container["volumeMounts"].as_array().unwrap().iter().map(|mount| {
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        HostMount {
            host_path: on_this_node(node, config, volume),
            container_path: mount["mountPath"].as_str().unwrap().into(),
            read_only: mount["readOnly"] == true,
            follows_host: mount["mountPropagation"] == "HostToContainer",
        }
    });
    let strings =
        |list: &Value| list.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect();
    let container = ContainerSpec {
        name: "headroom".to_owned(),
        image: "localhost/headroom:latest".to_owned(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec![("NODE_NAME".to_owned(), "lab-node".to_owned())],
        mounts: mounts.collect(),
        add_capabilities: strings(&security["capabilities"]["add"]),
        read_only_root: security["readOnlyRootFilesystem"] == true,
        seccomp_runtime_default: security["seccompProfile"]["type"] == "RuntimeDefault",
        ..ContainerSpec::default()
    };
    let pod = PodSpec {
        namespace: "headroom".to_owned(),
        name: "headroom-x1".to_owned(),
        host_network: pod["hostNetwork"] == true,
        host_pid: pod["hostPID"] == true,
    };
    (pod, container)
}

/// What must be the same, wherever headroom runs: findings, verdicts, destinations with their pods, and which sources work.
fn essence(report: &Value, store: &str) -> Value {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let findings: BTreeSet<String> =
        list(&report["findings"]).iter().map(|finding| format!("{} {}", finding["id"], finding["subject"])).collect();
    let destinations: BTreeSet<String> = list(&report["nat"]["destinations"])
        .iter()
        .filter(|row| row["in_scope"] == true)
        .map(|row| {
            format!(
                "{}:{} held {} wanting {} {}",
                row["address"], row["port"], row["held"], row["wanting"], row["pods"]
            )
        })
        .collect();
    let coverage: BTreeSet<String> = list(&report["coverage"])
        .iter()
        .map(|row| format!("{} {} {}", row["source"], row["state"], row["why"]))
        .collect();
    let networks: BTreeSet<String> = list(&report["ipam"]["networks"])
        .iter()
        .map(|network| {
            assert!(network["store"].as_str().unwrap().ends_with(store), "{network}");
            let leaked: Vec<_> = list(&network["entries"])
                .iter()
                .map(|entry| format!("{} {}", entry["address"], entry["verdict"]))
                .collect();
            format!("{} usable {} {} {leaked:?}", network["network"], network["usable"], network["counts"])
        })
        .collect();
    let host = list(&report["overlap"]["ephemeral"]).into_iter().find(|row| row["subject"] == "host");
    serde_json::json!({
        "node": report["node"], "findings": findings, "destinations": destinations, "coverage": coverage, "networks": networks,
        "host_ports": host.map(|row| row["range"].clone()), "allocation": report["nat"]["allocation"],
    })
}

/// The one thing the DaemonSet goes without: CAP_SYS_ADMIN, to enter pods' namespaces for their port settings. It must say
/// so, in these words and no others; then the report is made equal in this point.
fn without_pods_ports(mut report: Value) -> Value {
    let rows = report["coverage"].as_array_mut().unwrap();
    let row = rows.iter_mut().find(|row| row["source"] == "namespaces").unwrap();
    let why = row["why"].as_str().unwrap_or_else(|| panic!("namespaces is not degraded: {row}")).to_owned();
    let rest = why.strip_prefix("port settings of ").unwrap_or_else(|| panic!("{why}"));
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    assert_eq!(rest, " network namespaces are unknown: entering them needs CAP_SYS_ADMIN");
    (row["state"], row["why"]) = (Value::from("ok"), Value::Null);
    let findings = report["findings"].as_array_mut().unwrap();
    findings.retain(|finding| finding["id"] != "source-degraded" || finding["subject"] != "namespaces");
    report
}

/// Exercises the DaemonSet's privileges. If this fails, the agent is blind in the cluster although it sees on the host, or
/// a privilege in the manifest is missing.
#[test]
fn the_image_with_the_daemonsets_privileges_reports_the_same_as_the_binary_on_the_host() {
    let lab = Lab::new().unwrap();
    let nat = NatLab::build(&lab, &NatOptions { pods: 0, ..NatOptions::default() }).unwrap();
    let _servers = Server::start(&nat.outside, &Serve::tcp([SocketAddr::from(TARGET)])).unwrap();
    // A real node has no gateway on it. A namespace without any process cannot be looked into without CAP_SYS_ADMIN, and
    // that alone would leave every verdict open, as it should.
    let _somebody = nat.gateway.spawn(nat.gateway.command("sleep", &["infinity"])).unwrap();
    // The store where a real node has it: the configuration inside the container names the same path.
    let data_dir = Some(PathBuf::from("/var/lib/cni/networks"));
    let node = Node::start(&nat.node, NodeOptions { data_dir, ..NodeOptions::default() }).unwrap();
    let client = node.run_pod("shop", "checkout-7d9f").unwrap();
    let leaked = node.make_leak("shop", "gone-1", Leak::BehindTheBack).unwrap();
    node.set_reservation_age(leaked.address, Duration::from_secs(3600)).unwrap();
    let _held = Generator::start(&client.netns, &Connect::tcp(TARGET.into(), 30, Duration::from_secs(120))).unwrap();
    std::thread::sleep(Duration::from_secs(1));

    let config = lab.make_dir("config").unwrap();
    let toml = "[nat]\nprofile = \"gcp\"\nmin_ports = 32\nalias_ranges = false\n";
    std::fs::write(config.join("headroom.toml"), toml).unwrap();
    let check = ["check", "--watch", "2s", "-o", "json"];

    let archive = build_image(&lab);
    node.import_image(&archive).unwrap();
    let inside =
        [&check[..], &["--config", "/etc/headroom/headroom.toml", "--cri-socket", "/run/containerd/c.sock"]].concat();
    let (pod, container) = spec(&node, &config, &inside);
    let pod = node.run_pod_with(&pod).unwrap();
    let ran = node.run_container(&pod, &container).unwrap().wait(Duration::from_secs(60)).unwrap();
    let in_container: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));

    let (config, socket, cni, conf) =
        (config.join("headroom.toml"), node.socket(), node.cni_dir(), node.cni_conf_dir());
    let paths = [&config, &socket, &cni, &conf].map(|path| path.to_str().unwrap());
    let outside = [
        &check[..],
        &[
            "--config",
            paths[0],
            "--cri-socket",
            paths[1],
            "--cni-dir",
            paths[2],
            "--cni-conf-dir",
            paths[3],
            "--node-name",
            "lab-node",
        ],
    ]
    .concat();
    let said = headroom::run(&nat.node, &outside).unwrap();
    let on_host = said.json().unwrap();
    let ipam = in_container["ipam"].to_string();
    let (inside, outside) = (without_pods_ports(in_container), on_host);
    let (inside, outside) = (essence(&inside, "gke-pod-network"), essence(&outside, "gke-pod-network"));
    assert_eq!(
        serde_json::to_string_pretty(&inside).unwrap(),
        serde_json::to_string_pretty(&outside).unwrap(),
        "left: in the container, right: on the host; reservations in the container: {ipam}"
    );
    assert_eq!(ran.exit_code, said.exit_code);
    // Not equal in being blind: each of these was seen.
    let text = inside.to_string();
    for seen in
        ["nat-ports-low", "ipam-leaked", "checkout-7d9f", "held 30", "\\\"leaked\\\"", "\\\"tcp\\\" \\\"ok\\\" null"]
    {
        assert!(text.contains(seen), "`{seen}` is missing in {text}");
    }
}
