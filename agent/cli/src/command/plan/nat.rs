//! `headroom plan nat`: NAT sizes.

use anyhow::Context;
use headroom_core::model::nat::{Basis, Described, SetTimes};
use headroom_core::sizing::nat::{Question, plan};

use crate::args::Format;
use crate::args::plan::PlanNatArgs;
use crate::command::UsageError;
use crate::output::{self, table::Width};

/// Runs the command.
///
/// # Errors
/// Settings that contradict each other or would be refused; a closed stdout.
pub(super) fn run(args: &PlanNatArgs) -> anyhow::Result<u8> {
    let question = question(args).map_err(UsageError)?;
    let plan = plan(&question).map_err(|nothing| UsageError(nothing.into()))?;
    match args.output {
        Format::Json => output::json(&plan)?,
        Format::Table => output::print(&output::table::plan::nat(&plan, Width::of_stdout()))?,
    }
    Ok(super::exit_code(plan.fits))
}

fn question(args: &PlanNatArgs) -> anyhow::Result<Question> {
    let described = args.described();
    let profile = described.profile.context("which NAT? Add `--profile gcp` (or aws, azure-natgw, azure-lb, linux)")?;
    let nat = described.settings(profile, Basis::Configured).context("check the NAT settings")?;
    Ok(Question { nat, demand: args.demand.clone().unwrap_or_default(), lifetime: args.lifetime.unwrap_or_default() })
}

impl PlanNatArgs {
    fn described(&self) -> Described {
        Described {
            profile: self.profile.map(Into::into),
            mode: self.mode.map(Into::into),
            min_ports: self.min_ports,
            max_ports: self.max_ports,
            nat_ips: self.nat_ips,
            nodes: self.nodes,
            surge: self.surge,
            alias_ranges: self.alias_ranges,
            endpoint_independent: self.endpoint_independent,
            port_range: self.port_range,
            times: SetTimes { tcp_time_wait: self.tcp_time_wait, ..SetTimes::default() },
            ..Described::default()
        }
    }
}
