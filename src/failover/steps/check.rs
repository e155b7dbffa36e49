//! The first step: looks at the domain, says everything that is wrong at once, and lists the steps to come.

use super::{Context, Ran};
use crate::error::{Error, ErrorKind, Result};
use crate::failover::engine::nothing_follows;
use crate::failover::event::Outcome;
use crate::failover::facts::{DomainFacts, LocalDisks};
use crate::failover::finding::{Finding, Severity};
use crate::failover::modes;
use crate::failover::plan::{Direction, FailoverPlan};
use crate::failover::request::{Complete, Forget, HandOver, Request};
use crate::failover::validate::{Act, has_errors, taking_part};
use crate::hypervisor::PowerState;
use crate::ids::Name;

/// What was found fit.
#[derive(Default)]
struct Fit {
    plan: Option<Box<FailoverPlan>>,
    vms: Vec<Name>,
    excluded: Vec<(Name, String)>,
}

impl Context {
    pub(super) async fn check(&mut self) -> Result<Ran> {
        let facts = self.facts().await?;
        let request = self.task.request.clone();
        let fit = match &request {
            Request::Plan(plan) => self.check_plan(plan, Act::Start, &facts).await?,
            Request::Complete(complete) => self.check_complete(complete, &facts).await?,
            Request::HandOver(hand_over) => self.check_hand_over(hand_over, &facts).await?,
            Request::Forget(forget) => check_forget(forget, &facts)?,
        };
        for (vm, why) in &fit.excluded {
            self.note(format!("VM {vm} takes no part: {why}"));
        }
        let plan = match &request {
            Request::Plan(plan) => Some(&**plan),
            _ => fit.plan.as_deref(),
        };
        let steps = modes::steps(&request, plan, &fit.vms);
        Ok(Ran::Done(Outcome::Checked {
            owner: facts.owner.site.clone(),
            generation: facts.owner.generation,
            vms: fit.vms,
            excluded: fit.excluded,
            plan: fit.plan,
            steps,
        }))
    }

    async fn check_plan(&mut self, plan: &FailoverPlan, act: Act, facts: &DomainFacts) -> Result<Fit> {
        self.hold_against_survey(plan, act).await?;
        let (vms, excluded) = taking_part(plan, facts);
        Ok(Fit { plan: None, vms, excluded })
    }

    /// Fails with everything that keeps `plan` from being started; warnings are noted.
    pub(super) async fn hold_against_survey(&mut self, plan: &FailoverPlan, act: Act) -> Result<()> {
        let survey = self.world.survey(plan).await?;
        if let Some(why) = &survey.store_problem {
            return Err(Error::new(ErrorKind::Unreachable, format!("domain {}: {why}", self.domain())));
        }
        let findings = plan.validate(&survey, act);
        for finding in findings.iter().filter(|f| f.severity == Severity::Warning) {
            self.note(finding.to_string());
        }
        match has_errors(&findings) {
            false => Ok(()),
            true => Err(Error::new(ErrorKind::Refused, told(&findings))),
        }
    }

    async fn check_complete(&mut self, complete: &Complete, facts: &DomainFacts) -> Result<Fit> {
        let follow = facts.follow.as_ref().ok_or_else(|| nothing_follows(&self.task.request))?;
        let plan = modes::completing(&follow.plan, complete);
        let fit = self.check_plan(&plan, Act::Complete, facts).await?;
        Ok(Fit { plan: Some(Box::new(plan)), ..fit })
    }

    async fn check_hand_over(&mut self, hand_over: &HandOver, facts: &DomainFacts) -> Result<Fit> {
        if !facts.is_owner() {
            let why = format!("domain {} belongs to site {}", facts.domain, facts.owner.site);
            return Err(Error::new(ErrorKind::Refused, format!("{why}: there is nothing to hand over")));
        }
        let stands =
            |r: &&crate::failover::HandOverRequest| r.site == hand_over.to && !r.withdrawn && r.refused.is_none();
        if facts.request.as_ref().filter(stands).is_none() {
            let why = format!("site {} does not ask for domain {}", hand_over.to, facts.domain);
            return Err(Error::new(ErrorKind::Refused, format!("{why} (any more)")));
        }
        let direction = match facts.home == facts.site {
            true => Direction::Failback,
            false => Direction::Failover,
        };
        let settings = self.world.remote_settings(self.domain(), &hand_over.to).await?;
        let plan = settings.map(|s| Box::new(s.to_plan(facts.domain.clone(), direction)));
        // Those that run now are what is shut down, and what is started again where it comes to nothing.
        let hypervisor = self.world.hypervisor();
        let mut vms = Vec::new();
        for guest in self.world.guests(self.domain()).await? {
            if hypervisor.state(&guest.name).await? == PowerState::Running {
                vms.push(guest.name);
            }
        }
        Ok(Fit { plan, vms, excluded: Vec::new() })
    }
}

fn check_forget(forget: &Forget, facts: &DomainFacts) -> Result<Fit> {
    let refused = |why: String, remedy: &str| {
        Err(Error::new(ErrorKind::Refused, format!("domain {}: {why}; {remedy}", facts.domain)))
    };
    if facts.owner.site == facts.site {
        return refused("this site owns it".into(), "fail it over first, or delete it");
    }
    if facts.protecting {
        return refused("a protection of this site serves its disks".into(), "end that first");
    }
    if let LocalDisks::Diverged { common, .. } = facts.disks
        && forget.delete_disks
        && !forget.accept_divergence
    {
        let why = format!("this site's disks hold what it wrote after segment {}", common.segment.get());
        return refused(format!("{why}, and no chain has that"), "accept that it is deleted, or keep the disks");
    }
    Ok(Fit { vms: facts.vms.iter().map(|v| v.name.clone()).collect(), ..Fit::default() })
}

/// Everything that keeps a plan from being started, in one text.
fn told(findings: &[Finding]) -> String {
    let errors: Vec<String> =
        findings.iter().filter(|f| f.severity == Severity::Error).map(ToString::to_string).collect();
    format!("the plan cannot be started. {}", errors.join(". "))
}
