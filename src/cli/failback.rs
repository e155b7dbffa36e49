//! `freshet failback`: taking a domain back that was failed over.

use clap::{Args, Subcommand};

use super::appliance_args::{ApplianceArgs, answered, report};
use super::context::Context;
use super::failover::{Begin, aimed, show};
use super::plan_args::PlanArgs;
use super::report::Report;
use crate::control::Client;
use crate::control::proto::{
    Direction, FailoverMode, StartContinuousFailbackRequest, StartFailbackRequest, WithdrawReleaseRequest,
};
use crate::error::Result;

/// Take a domain back that was failed over
#[derive(Debug, Args)]
pub(super) struct Failback {
    #[command(subcommand)]
    command: FailbackCommand,
}

#[derive(Debug, Subcommand)]
enum FailbackCommand {
    /// Bring the domain back here now, fetching only what differs, and run it
    Start(Start),
    /// Let the disks that are here follow the domain, until `freshet failover complete`
    Continuous(Start),
    /// Take back a release that no site has claimed: the guests may start here again
    Withdraw(Withdraw),
}

#[derive(Debug, Args)]
struct Start {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    begin: Begin,
}

#[derive(Debug, Args)]
struct Withdraw {
    /// Name of the domain
    #[arg(value_name = "DOMAIN")]
    domain: String,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

impl Failback {
    pub(super) async fn run(self, context: &Context) -> Result<Report> {
        match self.command {
            FailbackCommand::Start(Start { plan, begin }) => {
                let plan = aimed(&plan, FailoverMode::AsNeeded, Direction::Failback)?;
                begin
                    .plan(context, plan, async |client: &Client, plan, confirmation_token, request_id| {
                        let request = StartFailbackRequest { plan: Some(plan), confirmation_token, request_id };
                        Ok(answered(client.failback().start_failback(request).await)?.task)
                    })
                    .await
            }
            FailbackCommand::Continuous(Start { plan, begin }) => {
                let plan = aimed(&plan, FailoverMode::Continuous, Direction::Failback)?;
                begin
                    .plan(context, plan, async |client: &Client, plan, confirmation_token, request_id| {
                        let request =
                            StartContinuousFailbackRequest { plan: Some(plan), confirmation_token, request_id };
                        Ok(answered(client.failback().start_continuous_failback(request).await)?.task)
                    })
                    .await
            }
            FailbackCommand::Withdraw(Withdraw { domain, appliance }) => {
                let mut client = appliance.connect().await?.failback();
                let done = answered(client.withdraw_release(WithdrawReleaseRequest { domain: domain.clone() }).await)?;
                match done.task {
                    Some(task) => show(Some(task)),
                    None => {
                        let text = format!("domain {domain} is protected here again; start its guests\n");
                        report(&done, text)
                    }
                }
            }
        }
    }
}
