//! The lines to type: whatever is to be changed, Terraform can read what is for Terraform, and it says all that the others say.
#![expect(clippy::panic, reason = "helpers of tests may panic as tests do")]

use hcl_edit::expr::Expression;
use hcl_edit::structure::Body;
use headroom_core::model::nat::remedy::{Change, Names, Target, changes, longer_idle};
use headroom_core::model::nat::{Basis, Mode, NatSettings, Profile};

fn settings(profile: Profile, names: &Names) -> NatSettings {
    NatSettings { nat_ips: Some(1), names: names.clone(), ..NatSettings::of(profile, Basis::Configured) }
}

/// Nobody has said what it is called, everybody has, and a cluster manages it.
fn names() -> [Names; 3] {
    let some = |text: &str| Some(text.to_owned());
    let gateway =
        Names { gateway: some("gw"), cluster: None, router: some("r"), region: some("europe-west1"), group: some("g") };
    let cluster = Names { gateway: None, cluster: some("c"), ..gateway.clone() };
    [Names::default(), gateway, cluster]
}

/// What each NAT may be told to set.
fn targets(profile: Profile) -> Vec<Target> {
    let ips = |nat_ips| Target { nat_ips: Some(nat_ips), ..Target::default() };
    let ports = Target { min_ports: Some(2048), ..Target::default() };
    let mut targets: Vec<Target> = [1, 2, 3, 8, 16].map(ips).into();
    if profile == Profile::Gcp {
        let dynamic = Target {
            mode: Some(Mode::Dynamic),
            min_ports: Some(64),
            max_ports: Some(2048),
            nat_ips: None,
            endpoint_independent: Some(false),
            port_range: None,
        };
        let off = Target { endpoint_independent: Some(false), ..Target::default() };
        targets.extend([dynamic, off, Target { nat_ips: Some(300), ..dynamic }]);
        targets.push(Target { max_ports: Some(4096), ..Target::default() });
    }
    if matches!(profile, Profile::Gcp | Profile::AzureLb) {
        targets.extend([ports, Target { nat_ips: Some(5), ..ports }]);
    }
    targets
}

fn parsed(change: &Change) -> Body {
    change.text.parse().unwrap_or_else(|error| panic!("{error}\n{}", change.text))
}

/// All numbers of a body, however deep in blocks, with the names of their attributes.
fn numbers(body: &Body) -> Vec<(String, u64)> {
    let own = body
        .attributes()
        .filter_map(|attribute| Some((attribute.key.to_string(), attribute.value.as_number()?.as_u64()?)));
    body.blocks().flat_map(|block| numbers(&block.body)).chain(own).collect()
}

/// Exercises everything that can be told of every NAT, however it is called. If this fails, people paste what Terraform does not
/// read, or what lacks half of the change.
#[test]
fn terraform_reads_all_that_it_is_given_and_it_is_all_there_is_to_change() {
    let mut read = 0;
    for profile in Profile::ALL {
        for names in names() {
            let nat = settings(profile, &names);
            for target in targets(profile) {
                let changes = changes(&nat, target);
                for change in &changes {
                    assert!(change.tool == "terraform" || !change.text.contains('\n'), "{}", change.text);
                }
                let Some(terraform) = changes.iter().find(|change| change.tool == "terraform") else {
                    let first_alone = profile == Profile::Aws && target.nat_ips == Some(1);
                    assert!(first_alone || matches!(profile, Profile::Linux | Profile::None), "{profile} {target:?}");
                    continue;
                };
                let body = parsed(terraform);
                let ports: Vec<u64> =
                    numbers(&body).into_iter().filter(|(name, _)| name != "count").map(|(_, is)| is).collect();
                for wanted in [target.min_ports, target.max_ports].into_iter().flatten() {
                    assert!(ports.contains(&wanted.into()), "{}", terraform.text);
                }
                if let Some(ips) = target.nat_ips {
                    assert!(terraform.text.contains(&ips.to_string()), "{ips}: {}", terraform.text);
                }
                read += 1;
            }
            for change in longer_idle(&nat).iter().filter(|change| change.tool == "terraform") {
                parsed(change);
            }
        }
    }
    assert_eq!(read, 81, "each of them");
}

/// Exercises an outbound rule of the user's own. If this fails, a rule with ports for every node has the frontend IPs of before.
#[test]
fn a_rule_of_ones_own_is_told_its_ports_and_its_frontend_ips() {
    let names = Names { gateway: Some("out".to_owned()), group: Some("g".to_owned()), ..Names::default() };
    let nat = NatSettings { nat_ips: Some(2), ..settings(Profile::AzureLb, &names) };
    for min_ports in [Some(2048), None] {
        let lines = changes(&nat, Target { min_ports, nat_ips: Some(4), ..Target::default() });
        let body = parsed(&lines[0]);
        let ports = body.get_attribute("allocated_outbound_ports").and_then(|set| set.value.as_number()?.as_u64());
        assert_eq!(ports, min_ports.map(u64::from), "{}", lines[0].text);
        let frontends = body.get_blocks("dynamic").next().unwrap();
        assert!(frontends.has_labels(&["frontend_ip_configuration"]), "{}", lines[0].text);
        let Expression::FuncCall(range) = &frontends.body.get_attribute("for_each").unwrap().value else {
            panic!("{body:?}")
        };
        let bounds: Vec<u64> = range.args.iter().map(|bound| bound.as_number().unwrap().as_u64().unwrap()).collect();
        assert_eq!(bounds, [1, 5], "{}", lines[0].text);
        assert!(lines[1].text.contains("--frontend-ip-configs IP-1 … IP-4"), "{}", lines[1].text);
    }
}
