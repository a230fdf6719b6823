//! Rules that divide connections by chance, with other rules between them.

use super::*;

/// All of the ports of the second one are NodePorts, none of the first one's: the share is the second one's part.
fn two(first: f64, second: f64, between: Between) -> Vec<SourceNatRule> {
    let mut last = rule(3, Some(Protocol::TCP), Some("30000-32767"), RANDOM, second);
    last.between = between;
    vec![rule(1, Some(Protocol::TCP), Some("1024-29999"), RANDOM, first), last]
}

/// Rules, share and reason of each row, largest share first.
fn rows(rules: Vec<SourceNatRule>) -> Vec<(u32, Option<f64>, String)> {
    let shares = Node::with(rules, vec![]).report().overlap.shares;
    let of_tcp = shares.into_iter().filter(|row| row.protocol == Protocol::TCP);
    of_tcp.map(|row| (row.rules, row.share, row.why)).collect()
}

#[track_caller]
fn assert_share(rules: Vec<SourceNatRule>, expected: f64) {
    let rows = rows(rules);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_near(rows.first().unwrap().1, expected);
}

fn leaving(protocols: Protocols, parts: &[f64]) -> Between {
    let mut between = Between::default();
    parts.iter().for_each(|part| between.leave(protocols, *part));
    between
}

/// Exercises what is taken out by chance between two rules. If this fails, the share is one that no measurement finds.
#[test]
fn what_chance_takes_out_between_rules_comes_to_neither() {
    // A half of all, and the rest.
    assert_share(two(0.5, 1.0, Between::default()), 0.5);
    // A half of all; of the other half a half goes back: 0.5 and 0.25.
    assert_share(two(0.5, 1.0, leaving(Protocols::ALL, &[0.5])), 1.0 / 3.0);
    // 0.5, and 0.5 * 0.5 * 0.8 * 0.5.
    assert_share(two(0.5, 0.5, leaving(Protocols::only(Protocol::TCP), &[0.5, 0.8])), 0.1 / 0.6);
    // UDP goes back.
    assert_share(two(0.5, 1.0, leaving(Protocols::only(Protocol::UDP), &[0.5])), 0.5);
    // Every third (0.3333), and of the rest every second: as many.
    assert_share(two(1.0 / 3.0, 0.5, Between::default()), 0.5);
    // What goes back in front of both is missing from both alike.
    let mut behind = two(0.5, 1.0, Between::default());
    behind[0].between = leaving(Protocols::ALL, &[0.1]);
    assert_share(behind, 0.5);
    // In front of a rule for another protocol, which stands between them.
    let mut rules = two(0.5, 1.0, Between::default());
    let udp = rule(2, Some(Protocol::UDP), None, RANDOM, 1.0);
    rules.insert(1, SourceNatRule { between: leaving(Protocols::ALL, &[0.5]), ..udp });
    assert_share(rules, 1.0 / 3.0);
    let rows = rows(two(0.5, 1.0, leaving(Protocols::ALL, &[0.5])));
    assert!(rows[0].2.starts_with("66.7 %: ") && rows[0].2.contains("; 33.3 %: "), "{rows:?}");
}

/// Exercises what depends on the traffic. If this fails, a number is told that nobody can know.
#[test]
fn rules_of_which_nobody_knows_the_parts_are_told_by_themselves() {
    let doubting = |protocol| {
        let mut between = Between::default();
        between.doubt(Protocols::only(protocol));
        between
    };
    let apart = rows(two(0.5, 1.0, doubting(Protocol::TCP)));
    assert_eq!(apart.iter().map(|row| (row.0, row.1)).collect::<Vec<_>>(), [(1, Some(1.0)), (1, Some(0.0))]);
    assert!(apart[0].2.starts_with("how many come here is not known"), "{apart:?}");
    assert!(!apart[1].2.contains("not known"), "{apart:?}");
    assert_share(two(0.5, 1.0, doubting(Protocol::UDP)), 0.5);
    // Where the rules in front leave nothing over, nothing comes, whatever is taken out.
    assert_share(two(1.0, 1.0, doubting(Protocol::TCP)), 0.0);
    // A rule that lets packets pass by for an unknown reason leaves some over.
    let mut selective = two(1.0, 1.0, Between::default());
    selective[0].selective = true;
    assert_eq!(rows(selective).iter().map(|row| row.1).collect::<Vec<_>>(), [Some(1.0), Some(0.0)]);
}

/// Exercises the bound of what is told apart between two rules. If this fails, what is beyond it is taken for nothing.
#[test]
fn protocols_that_chance_treats_apart_are_told_up_to_the_bound_and_beyond_it_they_are_unsure() {
    let of = |number: usize| Protocols::only(Protocol(u8::try_from(100 + number).unwrap()));
    let mut between = Between::default();
    (1..Between::LIMIT).for_each(|number| between.leave(of(number), 0.9));
    let tcp = Protocols::only(Protocol::TCP);
    between.leave(tcp, 0.5);
    assert_share(two(0.5, 1.0, between.clone()), 1.0 / 3.0);
    between.leave(of(0), 0.9);
    assert!(between.is_unsure_of(Protocol(100)));
    between.leave(tcp, 0.5);
    // 0.5, and 0.5 * 0.5 * 0.5.
    assert_share(two(0.5, 1.0, between), 0.2);
}
