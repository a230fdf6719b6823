//! The manifests against the schemas of Kubernetes.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The oldest and the newest version the manifests are for; the fields of the security context are younger than some.
const VERSIONS: [&str; 2] = ["1.30", "1.36"];

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/base")
}

fn validate(version: &str, file: &Path) -> (bool, String) {
    let program = std::env::var_os("HEADROOM_KUBERNETES_VALIDATE").expect("set by `cargo xtask test`");
    let output = Command::new(program).args(["--strict", "-k", version]).arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

fn read(name: &str) -> Value {
    serde_yaml_ng::from_str(&std::fs::read_to_string(base().join(name)).unwrap()).unwrap()
}

/// Exercises every resource the kustomization names. If this fails, `kubectl apply -k` is refused on a cluster.
#[test]
fn every_resource_of_the_base_is_valid_in_the_oldest_and_the_newest_version() {
    let kustomization = read("kustomization.yaml");
    let resources: Vec<&str> =
        kustomization["resources"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(resources.contains(&"daemonset.yaml"));
    for version in VERSIONS {
        for resource in &resources {
            let (valid, said) = validate(version, &base().join(resource));
            assert!(valid && said.contains("passed"), "{resource} in {version}: {said}");
        }
    }
    for file in kustomization["configMapGenerator"][0]["files"].as_array().unwrap() {
        assert!(base().join(file.as_str().unwrap()).is_file(), "{file} is missing");
    }
}

/// Exercises what the cleaner's overlay changes. If this fails, the base can write, or the cleaner cannot.
#[test]
fn only_the_cleaners_overlay_writes_and_it_only_writes_host_locals_directory() {
    let overlay = base().join("../overlays/cleaner");
    let overlaid = |name: &str| -> Value {
        serde_yaml_ng::from_str(&std::fs::read_to_string(overlay.join(name)).unwrap()).unwrap()
    };
    let kustomization = overlaid("kustomization.yaml");
    assert_eq!(kustomization["resources"], serde_json::json!(["../../base"]));
    assert_eq!(kustomization["patches"], serde_json::json!([{ "path": "daemonset.yaml" }]));
    let container = |daemonset: &Value| daemonset["spec"]["template"]["spec"]["containers"][0].clone();
    let (base, patch) = (container(&read("daemonset.yaml")), container(&overlaid("daemonset.yaml")));
    let writable = |container: &Value| -> Vec<Value> {
        let mounts = container["volumeMounts"].as_array().unwrap();
        mounts.iter().filter(|mount| mount["readOnly"] != true).map(|mount| mount["mountPath"].clone()).collect()
    };
    assert_eq!(writable(&base), Vec::<Value>::new());
    assert_eq!(writable(&patch), ["/var/lib/cni/networks"]);
    assert_eq!(patch["name"], base["name"]);
    assert!(patch["securityContext"].is_null(), "no further privilege");
    let named = |mount: &Value| (mount["name"].clone(), mount["mountPath"].clone());
    let mounts: Vec<_> = base["volumeMounts"].as_array().unwrap().iter().map(named).collect();
    assert!(patch["volumeMounts"].as_array().unwrap().iter().all(|mount| mounts.contains(&named(mount))));
    assert!(patch["args"].is_null(), "the base's");
    assert_eq!(patch["env"], serde_json::json!([{ "name": "HEADROOM_CLEAN_INTERVAL", "value": "10m" }]));
    let help = Command::new(headroom_lab::headroom::binary().unwrap()).args(["agent", "--help"]).output().unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).contains("HEADROOM_CLEAN_INTERVAL"), "{help:?}");
}

/// Exercises the overlay for Azure CNI. If this fails, headroom sees an old file for ever, or writes.
#[test]
fn azures_overlay_mounts_the_directory_that_its_files_are_replaced_in() {
    let path = base().join("../overlays/azure-cni/daemonset.yaml");
    let patch: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let pod = &patch["spec"]["template"]["spec"];
    let mount = serde_json::json!([{ "name": "run", "mountPath": "/var/run", "readOnly": true }]);
    assert_eq!(pod["containers"][0]["volumeMounts"], mount);
    assert_eq!(
        pod["volumes"],
        serde_json::json!([{ "name": "run", "hostPath": { "path": "/run", "type": "Directory" } }])
    );
}

/// Exercises the kustomization as a whole, where kubectl is on the machine (Debian has no package of it; `cargo xtask setup`
/// says so). If this fails, the pieces are valid and do not fit together.
#[test]
fn the_kustomization_builds_and_its_result_is_valid() {
    for folder in [base(), base().join("../overlays/cleaner"), base().join("../overlays/azure-cni")] {
        builds(&folder);
    }
}

fn builds(folder: &Path) {
    let built = match Command::new("kubectl").arg("kustomize").arg(folder).output() {
        Ok(built) => built,
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
            return;
        }
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let file = std::env::temp_dir().join(format!("hrlab{}-built.yaml", std::process::id()));
    std::fs::write(&file, built.stdout).unwrap();
    let checked = VERSIONS.map(|version| validate(version, &file));
    std::fs::remove_file(&file).unwrap();
    for (valid, said) in checked {
        assert!(valid && said.contains("configmap") && said.contains("daemonset"), "{said}");
    }
}

/// Exercises the checker itself. If this fails, the test above cannot fail.
#[test]
fn a_misspelt_field_is_refused() {
    let text = std::fs::read_to_string(base().join("daemonset.yaml")).unwrap();
    let file = std::env::temp_dir().join(format!("hrlab{}-misspelt.yaml", std::process::id()));
    std::fs::write(&file, text.replace("readOnlyRootFilesystem", "readonlyRootFilesystem")).unwrap();
    let (valid, said) = validate(VERSIONS[0], &file);
    std::fs::remove_file(&file).unwrap();
    assert!(!valid, "{said}");
}

/// Exercises the promise that every privilege has its reason beside it. If this fails, somebody added one in silence.
#[test]
fn every_capability_and_mount_has_a_comment_right_above_it() {
    let text = std::fs::read_to_string(base().join("daemonset.yaml")).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let after = |mark: &str| lines.iter().position(|line| *line == mark).unwrap_or_else(|| unreachable!("no `{mark}`"));
    let (capabilities, resources) = (after("add:"), after("resources:"));
    let (mounts, volumes) = (after("volumeMounts:"), after("volumes:"));
    let reasoned = |range: std::ops::Range<usize>, item: &str| {
        let items: Vec<usize> = range.filter(|index| lines[*index].starts_with(item)).collect();
        assert!(items.len() >= 5, "{items:?}");
        for index in items {
            assert!(lines[index - 1].starts_with('#'), "`{}` has no reason above it", lines[index]);
        }
    };
    reasoned(capabilities..resources, "- ");
    reasoned(mounts..volumes, "- name:");
    for namespace in ["hostNetwork: true", "hostPID: true"] {
        assert!(lines[after(namespace) - 1].starts_with('#'), "`{namespace}` has no reason above it");
    }
}
