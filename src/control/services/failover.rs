//! The services of failover and failback: plans are checked, confirmed, and handed to the engine.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::convert::{self, Decided};
use super::{Services, caller, fields, runbooks};
use crate::control::access::Caller;
use crate::control::appliance::Appliance;
use crate::control::catalog::RunbookKind;
use crate::control::fault::{Done, Fault};
use crate::control::proto::failback_service_server::FailbackService;
use crate::control::proto::failover_service_server::FailoverService;
use crate::control::proto::{self, *};
use crate::control::settings::Role;
use crate::control::told::Told;
use crate::control::view::timestamp;
use crate::error::{Error, ErrorKind};
use crate::failover::{
    self, Command, Complete, Completion, Direction, FailoverMode as Mode, Once, Planned, Request as Wish, Resumed,
    Severity as Grave, TaskKind as Kind, World,
};
use crate::format::xxh3_128;
use crate::ids::{Name, Time};
use crate::log_context;

/// What is asked of the engine, and the part of it that a token confirms.
struct Asked {
    wish: Wish,
    token: String,
    request_id: String,
}

#[tonic::async_trait]
impl FailoverService for Services {
    async fn plan_failover(
        &self,
        request: Request<PlanFailoverRequest>,
    ) -> Result<Response<PlanFailoverResponse>, Status> {
        let caller = caller(request.extensions())?;
        let asked = request.into_inner();
        let wish = planned(&self.app, asked.plan.as_ref(), Decided::default()).await?;
        let domain = wish.domain().to_string();
        let told = look(&self.app, &caller, &wish).await.map_err(|fault| fault.about(&domain))?;
        let Answer { findings, summary, token, expires } = told;
        Ok(Response::new(PlanFailoverResponse { findings, summary, confirmation_token: token, expires }))
    }

    async fn start_failover(
        &self,
        request: Request<StartFailoverRequest>,
    ) -> Result<Response<StartFailoverResponse>, Status> {
        let caller = caller(request.extensions())?;
        let StartFailoverRequest { plan, confirmation_token, request_id } = request.into_inner();
        let decided = Decided { mode: Some(Mode::AsNeeded), direction: Some(Direction::Failover) };
        let wish = planned(&self.app, plan.as_ref(), decided).await?;
        let task = self.start(&caller, "FailoverService/StartFailover", wish, confirmation_token, request_id);
        Ok(Response::new(StartFailoverResponse { task: Some(task.await?) }))
    }

    async fn start_continuous_failover(
        &self,
        request: Request<StartContinuousFailoverRequest>,
    ) -> Result<Response<StartContinuousFailoverResponse>, Status> {
        let caller = caller(request.extensions())?;
        let StartContinuousFailoverRequest { plan, request_id, confirmation_token } = request.into_inner();
        let decided = Decided { mode: Some(Mode::Continuous), direction: Some(Direction::Failover) };
        let wish = planned(&self.app, plan.as_ref(), decided).await?;
        let task = self.start(&caller, "FailoverService/StartContinuousFailover", wish, confirmation_token, request_id);
        Ok(Response::new(StartContinuousFailoverResponse { task: Some(task.await?) }))
    }

    async fn plan_completion(
        &self,
        request: Request<PlanCompletionRequest>,
    ) -> Result<Response<PlanCompletionResponse>, Status> {
        let caller = caller(request.extensions())?;
        let asked = request.into_inner();
        let wish = completing(
            &self.app,
            CompleteFailoverRequest {
                domain: asked.domain.clone(),
                planned: asked.planned,
                point: asked.point,
                resume_remote: asked.resume_remote,
                accept_damage: asked.accept_damage,
                networks: asked.networks,
                default_network: asked.default_network,
                without_runbook: asked.without_runbook,
                placement: asked.placement,
                vms: asked.vms,
                release_limit_s: asked.release_limit_s,
                ..CompleteFailoverRequest::default()
            },
        );
        let wish = wish.await?;
        let told = look(&self.app, &caller, &wish).await.map_err(|fault| fault.about(&asked.domain))?;
        let Answer { findings, summary, token, expires } = told;
        Ok(Response::new(PlanCompletionResponse { findings, summary, confirmation_token: token, expires }))
    }

    async fn complete_failover(
        &self,
        request: Request<CompleteFailoverRequest>,
    ) -> Result<Response<CompleteFailoverResponse>, Status> {
        let caller = caller(request.extensions())?;
        let asked = request.into_inner();
        let (token, request_id) = (asked.confirmation_token.clone(), asked.request_id.clone());
        let wish = completing(&self.app, asked).await?;
        let task = self.start(&caller, "FailoverService/CompleteFailover", wish, token, request_id);
        Ok(Response::new(CompleteFailoverResponse { task: Some(task.await?) }))
    }

    async fn cancel_failover(
        &self,
        request: Request<CancelFailoverRequest>,
    ) -> Result<Response<CancelFailoverResponse>, Status> {
        let caller = caller(request.extensions())?;
        let domain = request.into_inner().domain;
        let name = fields::name("domain", &domain)?;
        if self.app.engine.running(&name).is_none() && self.app.follows(&name).await.map_err(Fault::from)? {
            self.stop_following(&caller, name).await?;
            return Ok(Response::new(CancelFailoverResponse { task: None }));
        }
        let task = self.command(&caller, "FailoverService/CancelFailover", domain, Command::Cancel, None).await?;
        Ok(Response::new(CancelFailoverResponse { task: Some(task) }))
    }

    async fn pause_failover(
        &self,
        request: Request<PauseFailoverRequest>,
    ) -> Result<Response<PauseFailoverResponse>, Status> {
        let caller = caller(request.extensions())?;
        let domain = request.into_inner().domain;
        let task = self.command(&caller, "FailoverService/PauseFailover", domain, Command::Pause, None).await?;
        Ok(Response::new(PauseFailoverResponse { task: Some(task) }))
    }

    async fn resume_failover(
        &self,
        request: Request<ResumeFailoverRequest>,
    ) -> Result<Response<ResumeFailoverResponse>, Status> {
        let caller = caller(request.extensions())?;
        let domain = request.into_inner().domain;
        let task = self.command(&caller, "FailoverService/ResumeFailover", domain, Command::Resume, None).await?;
        Ok(Response::new(ResumeFailoverResponse { task: Some(task) }))
    }
}

#[tonic::async_trait]
impl FailbackService for Services {
    async fn start_failback(
        &self,
        request: Request<StartFailbackRequest>,
    ) -> Result<Response<StartFailbackResponse>, Status> {
        let caller = caller(request.extensions())?;
        let StartFailbackRequest { plan, confirmation_token, request_id } = request.into_inner();
        let decided = Decided { mode: Some(Mode::AsNeeded), direction: Some(Direction::Failback) };
        let wish = planned(&self.app, plan.as_ref(), decided).await?;
        let task = self.start(&caller, "FailbackService/StartFailback", wish, confirmation_token, request_id);
        Ok(Response::new(StartFailbackResponse { task: Some(task.await?) }))
    }

    async fn start_continuous_failback(
        &self,
        request: Request<StartContinuousFailbackRequest>,
    ) -> Result<Response<StartContinuousFailbackResponse>, Status> {
        let caller = caller(request.extensions())?;
        let StartContinuousFailbackRequest { plan, request_id, confirmation_token } = request.into_inner();
        let decided = Decided { mode: Some(Mode::Continuous), direction: Some(Direction::Failback) };
        let wish = planned(&self.app, plan.as_ref(), decided).await?;
        let task = self.start(&caller, "FailbackService/StartContinuousFailback", wish, confirmation_token, request_id);
        Ok(Response::new(StartContinuousFailbackResponse { task: Some(task.await?) }))
    }

    async fn withdraw_release(
        &self,
        request: Request<WithdrawReleaseRequest>,
    ) -> Result<Response<WithdrawReleaseResponse>, Status> {
        let caller = caller(request.extensions())?;
        let domain = request.into_inner().domain;
        let name = fields::name("domain", &domain)?;
        if self.app.engine.running(&name).is_none() && self.app.domain(&name).await.is_ok() {
            self.take_back(&caller, name).await?;
            return Ok(Response::new(WithdrawReleaseResponse { task: None }));
        }
        let only = Some(Kind::HandOver);
        let task = self.command(&caller, "FailbackService/WithdrawRelease", domain, Command::Cancel, only).await?;
        Ok(Response::new(WithdrawReleaseResponse { task: Some(task) }))
    }
}

impl Services {
    /// Hands a wish to the engine, once for each request id.
    async fn start(
        &self,
        caller: &Caller,
        action: &'static str,
        wish: Wish,
        token: String,
        request_id: String,
    ) -> Done<proto::Task> {
        if !request_id.is_empty() && uuid::Uuid::parse_str(&request_id).is_err() {
            return Err(Fault::field("request_id", "must be a UUID, or empty"));
        }
        may_send(caller, &wish)?;
        let (app, who, subject) = (Arc::clone(&self.app), caller.clone(), wish.domain().to_string());
        let asked = Asked { wish, token, request_id };
        self.app.act(caller, action, &subject, async move { begin(&app, &who, asked).await }).await
    }

    /// Tells the task that works on a domain something.
    async fn command(
        &self,
        caller: &Caller,
        action: &'static str,
        domain: String,
        command: Command,
        only: Option<Kind>,
    ) -> Done<proto::Task> {
        let (app, by, subject) = (Arc::clone(&self.app), caller.name.clone(), domain.clone());
        let told = self.app.act(caller, action, &subject, async move {
            let name = fields::name("domain", &domain)?;
            app.domain(&name).await?;
            let engine = &app.engine;
            let running = engine.running(&name).filter(|task| only.is_none_or(|kind| task.kind == kind));
            let Some(task) = running else {
                let what = only.map_or("nothing works on", |_| "nothing hands over");
                let why = format!("{what} domain {name} at this site");
                return Err(Error::new(ErrorKind::NotFound, why).into());
            };
            if !task.is_told(command) {
                engine.command(task.id, command, &by).await?;
            }
            Ok(convert::task(&*engine.task(task.id)?))
        });
        told.await
    }

    /// Has the disks of a domain follow it no more. They stay as they are.
    async fn stop_following(&self, caller: &Caller, domain: Name) -> Done<()> {
        let (app, by, subject) = (Arc::clone(&self.app), caller.name.clone(), domain.to_string());
        let stopped = self.app.act(caller, "FailoverService/CancelFailover", &subject, async move {
            let _turn = app.turns.take(&domain, &format!("{by} ends following it")).await?;
            app.must_have_no_task(&domain)?;
            Ok(app.world.unfollow(&domain).await?)
        });
        stopped.await
    }

    /// Takes a release back that no task works on any more, as after one that was given up, and protects the domain again.
    async fn take_back(&self, caller: &Caller, domain: Name) -> Done<()> {
        let (app, by, subject) = (Arc::clone(&self.app), caller.name.clone(), domain.to_string());
        let taken_back = self.app.act(caller, "FailbackService/WithdrawRelease", &subject, async move {
            let _turn = app.turns.take(&domain, &format!("{by} withdraws its release")).await?;
            app.must_have_no_task(&domain)?;
            let facts = app.world.facts(&domain).await?;
            if facts.owner.site != facts.site || facts.protecting {
                let owner = &facts.owner.site;
                let why = format!("nothing is released of domain {domain} here: it belongs to site {owner}");
                return Err(Error::new(ErrorKind::NotFound, why).into());
            }
            match app.world.resume(&domain).await? {
                Resumed::Ours => Ok(app.world.protect(&domain, None, &[]).await?),
                Resumed::Taken { by, generation } => {
                    let why = format!("site {by} has claimed domain {domain} as generation {}", generation.get());
                    Err(Fault::refused(why))
                }
            }
        });
        taken_back.await
    }
}

/// The wish of a plan, with the domain's runbook.
async fn planned(app: &Appliance, sent: Option<&proto::FailoverPlan>, decided: Decided) -> Done<Wish> {
    let (mut plan, with_runbook) = convert::plan(sent, decided, &app.settings)?;
    let domain = plan.general.domain.clone();
    app.domain(&domain).await.map_err(|e| Fault::from(e).about(domain.as_str()))?;
    if with_runbook {
        plan.options.runbook = runbooks::kept(app, &domain, kind_of(plan.general.direction)).await?;
    }
    Ok(Wish::Plan(Box::new(plan)))
}

/// The wish of a completion.
async fn completing(app: &Appliance, asked: CompleteFailoverRequest) -> Done<Wish> {
    let domain = fields::name("domain", &asked.domain)?;
    app.domain(&domain).await.map_err(|e| Fault::from(e).about(domain.as_str()))?;
    if !asked.planned && asked.resume_remote.is_some() {
        return Err(Fault::field(
            "resume_remote",
            "is for a planned completion: a forced one asks nothing of the old site",
        ));
    }
    let vms = convert::vms_stage("vms", asked.vms.as_ref())?;
    let mut networks = vms.networks;
    networks.extend(convert::words("networks", &asked.networks)?);
    let default_network = match asked.default_network.as_str() {
        "" => vms.default_network,
        network => convert::word("default_network", network)?,
    };
    Ok(Wish::Complete(Box::new(Complete {
        point: convert::point("point", asked.point)?,
        accept_damage: asked.accept_damage,
        resume_remote: convert::remote("resume_remote", asked.resume_remote.as_ref())?,
        runbook: completing_by(app, &domain, asked.without_runbook).await?,
        networks,
        default_network,
        placement: convert::words("placement", &asked.placement)?,
        storage_policy: vms.storage_policy,
        vms: vms.vms,
        release_limit_seconds: Some(asked.release_limit_s).filter(|seconds| *seconds > 0),
        ..Complete::new(domain.clone(), if asked.planned { Completion::Planned } else { Completion::Forced })
    })))
}

/// The runbook that is set here now; that of the plan counts where none is, as where the other site sent it along.
async fn completing_by(app: &Appliance, domain: &Name, without: bool) -> Done<Option<failover::Runbook>> {
    if without {
        return Ok(Some(failover::Runbook::default()));
    }
    let Some(recovery) = app.world.known().recovery(domain).await? else { return Ok(None) };
    runbooks::kept(app, domain, kind_of(recovery.plan.general.direction)).await
}

fn kind_of(direction: Direction) -> RunbookKind {
    match direction {
        Direction::Failover => RunbookKind::Failover,
        Direction::Failback => RunbookKind::Failback,
    }
}

/// Programs are run only by what an admin said, also at the other site.
fn may_send(caller: &Caller, wish: &Wish) -> Done<()> {
    let remote = match wish {
        Wish::Plan(plan) => &plan.options.resume_remote,
        Wish::Complete(complete) => &complete.resume_remote,
        Wish::HandOver(_) | Wish::Forget(_) => return Ok(()),
    };
    let runbook = remote.as_ref().and_then(|remote| remote.runbook.as_ref());
    if caller.role < Role::Admin && runbook.is_some_and(failover::Runbook::runs_programs) {
        let why = format!(
            "{} is {}: a runbook for the other site that runs programs needs admin",
            caller.name,
            caller.role.word()
        );
        return Err(Error::new(ErrorKind::Denied, why).into());
    }
    Ok(())
}

/// The same wish, with the loss accepted, as long as the domain is this owner's.
fn accepting(wish: &Wish, from: Option<&Name>) -> Wish {
    let mut wish = wish.clone();
    match &mut wish {
        Wish::Plan(plan) => (plan.options.accept_loss, plan.options.from) = (true, from.cloned()),
        Wish::Complete(complete) => (complete.accept_loss, complete.from) = (true, from.cloned()),
        Wish::HandOver(_) | Wish::Forget(_) => {}
    }
    wish
}

/// The same wish always has the same digest.
fn digest(wish: &Wish) -> Done<String> {
    let text = serde_json::to_string(wish);
    let text = text.map_err(|e| Error::with_source(ErrorKind::Internal, "write a plan", e))?;
    Ok(format!("{:?}", xxh3_128(text.as_bytes())))
}

/// What is told of a wish before it is started.
struct Answer {
    findings: Vec<proto::Finding>,
    summary: Option<proto::PlanSummary>,
    token: String,
    expires: Option<prost_types::Timestamp>,
}

/// What a token is drawn for: this wish, while this generation owns the domain, and no more is lost.
fn told_of(wish: &Wish, planned: &Planned) -> Done<Told> {
    let owner = planned.summary.owner.as_ref();
    let owner = owner.map(|owner| format!("{} {}", owner.site, owner.generation)).unwrap_or_default();
    let overwritten = planned.summary.overwritten.as_deref().unwrap_or_default();
    Ok(Told::of_plan(format!("{} {owner} {overwritten}", digest(wish)?), &planned.summary))
}

fn act_of(wish: &Wish) -> String {
    format!("{} of domain {}", wish.kind(), wish.domain())
}

async fn look(app: &Appliance, caller: &Caller, wish: &Wish) -> Done<Answer> {
    may_send(caller, wish)?;
    let about = log_context::call(&caller.name, &act_of(wish), Some(wish.domain().as_str()));
    let planned = app.engine.plan(&accepting(wish, None)).instrument(about).await?;
    let wrong = planned.findings.iter().any(|found| found.severity == Grave::Error);
    let mut told = Answer {
        findings: planned.findings.iter().map(convert::finding).collect(),
        summary: Some(convert::summary(&planned.summary)),
        token: String::new(),
        expires: None,
    };
    if planned.summary.loses() && !wrong {
        told.token = app.tokens.draw(&caller.name, &act_of(wish), told_of(wish, &planned)?);
        let life = u64::try_from(app.tokens.life().as_millis()).unwrap_or(u64::MAX);
        told.expires = Some(timestamp(Time::from_millis(app.now().millis().saturating_add(life))));
    }
    Ok(told)
}

async fn begin(app: &Arc<Appliance>, caller: &Caller, asked: Asked) -> Done<proto::Task> {
    let Asked { wish, token, request_id } = asked;
    let (engine, domain): (_, Name) = (&app.engine, wish.domain().clone());
    let _turn = app.turns.take(&domain, &format!("{} starts a {}", caller.name, wish.kind())).await?;
    let digest = digest(&wish)?;
    let once = (!request_id.is_empty()).then_some(Once { id: request_id, digest });
    if let Some(once) = &once
        && let Some(task) = app.catalog.task_of_request(once).await?
    {
        // Not in memory: it is too old, or its journal failed when it was begun.
        let known = engine.task(task).map_err(|e| e.while_doing(format!("request {} began it", once.id)))?;
        return Ok(convert::task(&known));
    }
    let planned = engine.plan(&accepting(&wish, None)).await?;
    let wrong: Vec<&failover::Finding> =
        planned.findings.iter().filter(|found| found.severity == Grave::Error).collect();
    if !wrong.is_empty() {
        let words: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        let why = format!("{} findings keep it from being started:\n  {}", wrong.len(), words.join("\n  "));
        let field = |found: &&failover::Finding| format!("{}.{}", found.stage.word(), found.field);
        return Err(Fault::refused_by(why, wrong.iter().map(field).zip(words).collect()));
    }
    let wish = match (planned.summary.loses(), &planned.summary.overwritten) {
        (false, _) => wish,
        (true, Some(overwritten)) if token.is_empty() => {
            let why = format!(
                "it overwrites what only this site has: {overwritten}; confirm that with the token of the plan"
            );
            return Err(Fault::refused(why));
        }
        (true, None) if token.is_empty() => {
            let loss = planned.summary.loss_words();
            let why = format!("it would lose {loss}; confirm that with the token of the plan, or choose a planned one");
            return Err(Fault::refused(why));
        }
        (true, _) => {
            app.tokens.redeem(&token, &caller.name, &act_of(&wish), &told_of(&wish, &planned)?)?;
            match planned.summary.loss {
                Some(_) => accepting(&wish, planned.summary.owner.as_ref().map(|owner| &owner.site)),
                None => wish,
            }
        }
    };
    let id = engine.submit_once(wish, &caller.name, once).await?;
    Ok(convert::task(&*engine.task(id)?))
}
