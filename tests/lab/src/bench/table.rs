//! The results as Markdown.

use super::meter::Spread;
use super::tools::Tool;
use super::{Cost, Results, Row};

const MIB: f64 = 1024.0 * 1024.0;

/// Everything that was measured, against its budgets.
pub(super) fn markdown(results: &Results) -> String {
    [machine(results), budgets(results), comparison(results), agent(results)].join("\n")
}

/// Kernel and shape of the machine; no names.
fn machine(results: &Results) -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    let memory = kib.map_or("unknown memory".to_owned(), |kib| format!("{:.0} GiB", kib / 1024.0 / 1024.0));
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, name)| name);
    let sizes = &results.sizes;
    format!(
        "{}, Linux {}, {cores} cores ({cpu}), {memory}. {} round(s) of {} connections for each tool, after {} to warm up, and {} of {} with \
         nobody and the agent alone; medians, and least to greatest in brackets. Ratios are within a round.\n",
        today(),
        kernel.trim().split('-').next().unwrap_or_default(),
        sizes.rounds,
        sizes.connections,
        sizes.warm_up,
        sizes.pairs,
        sizes.pair_connections
    )
}

/// Today, as the system has it (UTC).
pub(super) fn today() -> String {
    let secs = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    civil(secs / 86_400)
}

/// The date of a day since 1970 (Howard Hinnant's `civil_from_days`).
fn civil(days: u64) -> String {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

/// A row of the budgets: what, the budget, what was measured, and whether that is within.
fn budget(text: &mut String, what: &str, limit: &str, measured: Option<(String, bool)>) {
    let (measured, met) = measured
        .map_or(("not measured".to_owned(), "–"), |(measured, met)| (measured, if met { "yes" } else { "**no**" }));
    text.push_str(&format!("| {what} | {limit} | {measured} | {met} |\n"));
}

fn budgets(results: &Results) -> String {
    let mut text = "### Budgets\n\n| what | budget | measured | met |\n|---|---|---|---|\n".to_owned();
    let steady = &results.steady;
    let speed = ratio(results, Tool::Headroom, Tool::Nothing, |cost| cost.per_sec);
    let shown = |spread: Spread| format!("{:.2} × ({:.2}–{:.2})", spread.median, spread.least, spread.greatest);
    budget(
        &mut text,
        "connections per second with the agent, against without",
        "≥ 0.97 ×",
        speed.map(|it| (shown(it), it.median >= 0.97)),
    );
    let bpf = ratio(results, Tool::Headroom, Tool::Bpftrace, |cost| cost.bpf_ns);
    budget(
        &mut text,
        "eBPF time per connection, against one line of bpftrace that counts the same events",
        "≤ 0.35 ×",
        bpf.map(|it| (shown(it), it.median <= 0.35)),
    );
    let percent = steady.at_rate.cpu_ratio * 100.0;
    budget(
        &mut text,
        &format!("agent CPU at {} connections/s (reached: {:.0})", results.sizes.rate, steady.reached_per_sec),
        "≤ 1 % of a core",
        Some((format!("{percent:.2} %"), percent <= 1.0)),
    );
    let resident = mib(steady.full.resident_bytes);
    budget(
        &mut text,
        &format!(
            "agent resident with {} conntrack entries and {} destinations",
            results.sizes.entries, results.sizes.destinations
        ),
        "≤ 40 MiB",
        Some((format!("{resident:.1} MiB (highest {:.1})", mib(steady.full.resident_highest_bytes)), resident <= 40.0)),
    );
    let table = format!("reading {} entries, against `conntrack -L`", results.sizes.dumped);
    budget(
        &mut text,
        &format!("{table}: user CPU"),
        "≤ 0.2 ×",
        Some((shown(steady.user_ratio), steady.user_ratio.median <= 0.2)),
    );
    budget(
        &mut text,
        &format!("{table}: wall"),
        "≤ 0.6 ×",
        Some((shown(steady.wall_ratio), steady.wall_ratio.median <= 0.6)),
    );
    text
}

fn comparison(results: &Results) -> String {
    let mut text = "### Side by side, on the same connections\n\n\
        | who looks | connections/s | against nobody | machine CPU, µs per connection | its own process, µs per connection \
        | BPF runs per connection | BPF ns per run | BPF ns per connection |\n|---|---|---|---|---|---|---|---|\n"
        .to_owned();
    for Row { tool, costs } in &results.rows {
        let line = match costs {
            Err(why) => format!("| {} | not measured: {} | | | | | | |", tool.name(), why.replace(['|', '\n'], " ")),
            Ok(costs) => {
                let cell = |of: fn(&Cost) -> f64, digits: usize| {
                    Spread::of(costs.iter().map(of)).map_or("–".to_owned(), |it| match it.greatest > 0.0 {
                        true => format!("{:.digits$} ({:.digits$}–{:.digits$})", it.median, it.least, it.greatest),
                        false => "–".to_owned(),
                    })
                };
                let against = ratio(results, *tool, Tool::Nothing, |cost| cost.per_sec)
                    .map_or("–".to_owned(), |it| format!("{:.2} × ({:.2}–{:.2})", it.median, it.least, it.greatest));
                format!(
                    "| {} | {} | {against} | {} | {} | {} | {} | {} |",
                    tool.name(),
                    cell(|cost| cost.per_sec, 0),
                    cell(|cost| cost.machine_cpu_us, 0),
                    cell(|cost| cost.own_cpu_us, 1),
                    cell(|cost| cost.bpf_runs, 1),
                    cell(|cost| if cost.bpf_runs > 0.0 { cost.bpf_ns / cost.bpf_runs } else { 0.0 }, 0),
                    cell(|cost| cost.bpf_ns, 0),
                )
            }
        };
        text.push_str(&line);
        text.push('\n');
    }
    let accepted = results.steady.accepted_ns;
    text.push_str(&format!(
        "\nThe five events of an accepted connection, which are not headroom's to count, take its program {:.0} ({:.0}–{:.0}) ns \
         together: shown to it by themselves, as it runs in the agent.\n",
        accepted.median, accepted.least, accepted.greatest
    ));
    text
}

fn agent(results: &Results) -> String {
    let (steady, sizes) = (&results.steady, &results.sizes);
    let mut text =
        "### The agent by itself\n\n| state | CPU, % of a core | of which by thread | resident, MiB | highest | `/metrics`, kB | \
                    `/report.json`, kB |\n|---|---|---|---|---|---|---|\n"
            .to_owned();
    for (state, it) in [
        ("idle".to_owned(), &steady.idle),
        (format!("{:.0} connections/s", steady.reached_per_sec), &steady.at_rate),
        (format!("{} entries, {} destinations", sizes.entries, sizes.destinations), &steady.full),
    ] {
        let thread = |(name, ratio): &(String, f64)| format!("{name} {:.2}", ratio * 100.0);
        text.push_str(&format!(
            "| {state} | {:.2} | {} | {:.1} | {:.1} | {} | {} |\n",
            it.cpu_ratio * 100.0,
            it.threads.iter().map(thread).collect::<Vec<_>>().join(", "),
            mib(it.resident_bytes),
            mib(it.resident_highest_bytes),
            it.metrics_bytes / 1000,
            it.report_bytes / 1000
        ));
    }
    text.push_str(&format!("\n### Reading {} conntrack entries\n\n", sizes.dumped));
    text.push_str("| who | user, ms | system, ms | wall, ms |\n|---|---|---|---|\n");
    for (who, it) in [("headroom's dump", &steady.dump), ("`conntrack -L`", &steady.list)] {
        let cell = |it: Spread| format!("{:.0} ({:.0}–{:.0})", it.median, it.least, it.greatest);
        text.push_str(&format!("| {who} | {} | {} | {} |\n", cell(it.user_ms), cell(it.system_ms), cell(it.wall_ms)));
    }
    text
}

/// One tool against another, round by round.
fn ratio(results: &Results, tool: Tool, against: Tool, of: fn(&Cost) -> f64) -> Option<Spread> {
    let costs = |wanted: Tool| results.rows.iter().find(|row| row.tool == wanted)?.costs.as_ref().ok();
    let pairs = costs(tool)?.iter().zip(costs(against)?);
    Spread::of(pairs.map(|(one, other)| of(one) / of(other)).filter(|ratio| ratio.is_finite()))
}

#[expect(clippy::cast_precision_loss, reason = "memory is less than 2^52 bytes")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_from_1970() {
        assert_eq!([0, 59, 11_016, 20_779].map(civil), ["1970-01-01", "1970-03-01", "2000-02-29", "2026-11-22"]);
    }
}
