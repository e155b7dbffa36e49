//! `freshet failover`: taking a domain over to this site.

use clap::{Args, Subcommand};

use super::appliance_args::{ApplianceArgs, answered, confirmed, parse_pair, report};
use super::context::Context;
use super::plan_args::{PlanArgs, read_message, text as plan_text, told, wrong};
use super::remote_args::RemoteArgs;
use super::report::Report;
use super::task::{follow, text};
use crate::control::Client;
use crate::control::json_of;
use crate::control::proto::{
    CancelFailoverRequest, CompleteFailoverRequest, Direction, FailoverMode, FailoverPlan, PauseFailoverRequest,
    PlanCompletionRequest, PlanCompletionResponse, PlanFailoverRequest, PlanFailoverResponse, ResumeFailoverRequest,
    StartContinuousFailoverRequest, StartFailoverRequest, Task, VmsStage,
};
use crate::error::{Error, ErrorKind, Result};

/// Take a domain over to this site
#[derive(Debug, Args)]
pub(super) struct Failover {
    #[command(subcommand)]
    command: FailoverCommand,
}

#[derive(Debug, Subcommand)]
enum FailoverCommand {
    /// Say what a plan would do and what is wrong with it; acts on nothing
    Plan(Plan),
    /// Recover the domain here now, and run it
    Start(Start),
    /// Keep disks here that follow the domain, until it is completed
    Continuous(Continuous),
    /// Complete a continuous failover: run the domain here
    Complete(Complete),
    /// Cancel what works on a domain, before its point of no return
    Cancel(One),
    /// Let what works on a domain stand still after its step
    Pause(One),
    /// Go on with what was paused
    Resume(One),
}

#[derive(Debug, Args)]
struct Plan {
    #[command(flatten)]
    plan: PlanArgs,
    /// For a continuous failover
    #[arg(long)]
    continuous: bool,
    /// Only print the plan, as JSON for --plan: what has no flag is added to that. The appliance is not asked
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

/// What every start takes.
#[derive(Debug, Args)]
pub(super) struct Begin {
    /// Only say what it would do
    #[arg(long)]
    dry_run: bool,
    /// Answer yes: the name of the domain once more
    #[arg(long, value_name = "DOMAIN")]
    yes: Option<String>,
    /// Show the task until it has ended
    #[arg(long)]
    watch: bool,
    /// A UUID drawn by the caller: the same one again starts nothing and shows the same task
    #[arg(long, value_name = "UUID", default_value = "")]
    request_id: String,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

#[derive(Debug, Args)]
struct Start {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    begin: Begin,
}

#[derive(Debug, Args)]
struct Continuous {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    begin: Begin,
}

#[derive(Debug, Args)]
struct Complete {
    /// Name of the domain
    #[arg(value_name = "DOMAIN")]
    domain: String,
    /// Ask the owning site to shut its guests down and hand the domain over; else it is taken by force
    #[arg(long)]
    planned: bool,
    /// Point to run from; the newest of the domain unless told
    #[arg(long, value_name = "POINT", conflicts_with = "planned")]
    point: Option<u64>,
    /// Run guests on disks with ranges that cannot be recovered
    #[arg(long)]
    accept_damage: bool,
    /// Network of the protected site to network of this one, beside those that following was started with. Can be repeated
    #[arg(long, value_name = "FROM=TO", value_parser = parse_pair)]
    network: Vec<(String, String)>,
    /// Network of this site for what is mapped nowhere
    #[arg(long, value_name = "NETWORK", default_value = "")]
    default_network: String,
    /// Where VMs are placed, beside what following was started with, such as uuid=renew. Can be repeated
    #[arg(long, value_name = "WHAT=WHERE", value_parser = parse_pair)]
    placement: Vec<(String, String)>,
    /// File with what of the VM settings differs from those that following was started with: the message VmsStage as JSON
    #[arg(long, value_name = "FILE")]
    vms: Option<std::path::PathBuf>,
    /// Seconds that the owning site has to release the domain before the operator is asked; as following was started with
    /// unless told
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    release_limit: u64,
    /// Leave the domain's runbook out
    #[arg(long)]
    without_runbook: bool,
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(flatten)]
    begin: Begin,
}

#[derive(Debug, Args)]
struct One {
    /// Name of the domain
    #[arg(value_name = "DOMAIN")]
    domain: String,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

/// A plan that goes where it is told.
pub(super) fn aimed(plan: &PlanArgs, mode: FailoverMode, direction: Direction) -> Result<FailoverPlan> {
    let mut plan = plan.plan()?;
    if let Some(general) = &mut plan.general {
        general.set_mode(mode);
        general.set_direction(direction);
    }
    Ok(plan)
}

impl Failover {
    pub(super) async fn run(self, context: &Context) -> Result<Report> {
        match self.command {
            FailoverCommand::Plan(args) => {
                let mode = if args.continuous { FailoverMode::Continuous } else { FailoverMode::AsNeeded };
                let plan = aimed(&args.plan, mode, Direction::Failover)?;
                if args.print {
                    let json = json_of(&plan)?;
                    let text = serde_json::to_string_pretty(&json);
                    let text = text.map_err(|e| Error::with_source(ErrorKind::Internal, "write a plan", e))?;
                    return Report::new(&json, text + "\n");
                }
                let planned = look(&args.appliance.connect().await?, plan).await?;
                told(&planned.findings, planned.summary.as_ref())
            }
            FailoverCommand::Start(Start { plan, begin }) => {
                let plan = aimed(&plan, FailoverMode::AsNeeded, Direction::Failover)?;
                begin
                    .plan(context, plan, async |client: &Client, plan, confirmation_token, request_id| {
                        let request = StartFailoverRequest { plan: Some(plan), confirmation_token, request_id };
                        Ok(answered(client.failover().start_failover(request).await)?.task)
                    })
                    .await
            }
            FailoverCommand::Continuous(Continuous { plan, begin }) => {
                let plan = aimed(&plan, FailoverMode::Continuous, Direction::Failover)?;
                begin
                    .plan(context, plan, async |client: &Client, plan, confirmation_token, request_id| {
                        let request =
                            StartContinuousFailoverRequest { plan: Some(plan), confirmation_token, request_id };
                        Ok(answered(client.failover().start_continuous_failover(request).await)?.task)
                    })
                    .await
            }
            FailoverCommand::Complete(complete) => complete.run(context).await,
            FailoverCommand::Cancel(One { domain, appliance }) => {
                let mut client = appliance.connect().await?.failover();
                let done = answered(client.cancel_failover(CancelFailoverRequest { domain: domain.clone() }).await)?;
                match done.task {
                    Some(task) => show(Some(task)),
                    None => {
                        report(&done, format!("disks here follow domain {domain} no more; they stay as they are\n"))
                    }
                }
            }
            FailoverCommand::Pause(One { domain, appliance }) => {
                let mut client = appliance.connect().await?.failover();
                show(answered(client.pause_failover(PauseFailoverRequest { domain }).await)?.task)
            }
            FailoverCommand::Resume(One { domain, appliance }) => {
                let mut client = appliance.connect().await?.failover();
                show(answered(client.resume_failover(ResumeFailoverRequest { domain }).await)?.task)
            }
        }
    }
}

async fn look(client: &Client, plan: FailoverPlan) -> Result<PlanFailoverResponse> {
    answered(client.failover().plan_failover(PlanFailoverRequest { plan: Some(plan) }).await)
}

pub(super) fn show(task: Option<Task>) -> Result<Report> {
    let task = task.unwrap_or_default();
    report(&task, text(&task))
}

impl Begin {
    /// Tells what a plan would do, has it confirmed where something would be lost, and starts it.
    pub(super) async fn plan(
        self,
        context: &Context,
        plan: FailoverPlan,
        start: impl AsyncFnOnce(&Client, FailoverPlan, String, String) -> Result<Option<Task>>,
    ) -> Result<Report> {
        let client = self.appliance.connect().await?;
        let planned = look(&client, plan.clone()).await?;
        if self.dry_run {
            return told(&planned.findings, planned.summary.as_ref());
        }
        let domain = plan.general.as_ref().map(|general| general.domain.clone()).unwrap_or_default();
        // What is lost, and what must be so at the other site, is said before anything is done.
        let conditions = planned.summary.as_ref().is_some_and(|summary| !summary.remote_conditions.is_empty());
        if !planned.confirmation_token.is_empty() || (conditions && !wrong(&planned.findings)) {
            let told = plan_text(&planned.findings, planned.summary.as_ref());
            confirmed(self.yes.as_deref(), &domain, told.trim_end())?;
        }
        let task = start(&client, plan, planned.confirmation_token, self.request_id).await?;
        ended(&client, task, self.watch, context).await
    }
}

/// Shows a task that was started, once or to its end.
async fn ended(client: &Client, task: Option<Task>, watch: bool, context: &Context) -> Result<Report> {
    match task {
        Some(task) if watch => follow(client, &task.id, context).await,
        task => show(task),
    }
}

impl Complete {
    async fn run(self, context: &Context) -> Result<Report> {
        let Complete {
            domain,
            planned,
            point,
            accept_damage,
            network,
            default_network,
            placement,
            vms,
            release_limit,
            without_runbook,
            remote,
            begin,
        } = self;
        let placement: std::collections::HashMap<String, String> = placement.into_iter().collect();
        let vms: Option<VmsStage> = vms.map(|path| read_message(&path, "VM settings", "VmsStage")).transpose()?;
        let networks: std::collections::HashMap<String, String> = network.into_iter().collect();
        let resume_remote = remote.settings(None)?;
        let client = begin.appliance.connect().await?;
        let request = PlanCompletionRequest {
            domain: domain.clone(),
            planned,
            point,
            resume_remote: resume_remote.clone(),
            accept_damage,
            networks: networks.clone(),
            default_network: default_network.clone(),
            without_runbook,
            placement: placement.clone(),
            vms: vms.clone(),
            release_limit_s: release_limit,
        };
        let PlanCompletionResponse { findings, summary, confirmation_token, .. } =
            answered(client.failover().plan_completion(request).await)?;
        if begin.dry_run {
            return told(&findings, summary.as_ref());
        }
        if !confirmation_token.is_empty() || (resume_remote.is_some() && !wrong(&findings)) {
            confirmed(begin.yes.as_deref(), &domain, plan_text(&findings, summary.as_ref()).trim_end())?;
        }
        let request = CompleteFailoverRequest {
            domain,
            planned,
            point,
            resume_remote,
            confirmation_token,
            request_id: begin.request_id,
            accept_damage,
            networks,
            default_network,
            without_runbook,
            placement,
            vms,
            release_limit_s: release_limit,
        };
        let task = answered(client.failover().complete_failover(request).await)?.task;
        ended(&client, task, begin.watch, context).await
    }
}
