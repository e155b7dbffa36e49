//! Asking for a domain, waiting for its release, and claiming it.

use super::{Context, Ran, changed_hands};
use crate::error::{Error, ErrorKind, Result};
use crate::failover::event::Outcome;
use crate::failover::facts::{DomainFacts, Underway};
use crate::failover::modes;
use crate::failover::plan::FailoverPlan;
use crate::failover::step::Step;
use crate::failover::task::{Choice, Question};
use crate::failover::validate::taking_part;
use crate::failover::world::Claim;
use crate::ids::{Generation, Name};

/// Most looks at a claim that was made and does not show.
const MAX_LOOKS: usize = 3;

impl Context {
    pub(super) async fn publish_settings(&mut self) -> Result<Ran> {
        let plan = self.plan()?;
        self.world.publish_remote_settings(self.domain(), plan.options.resume_remote.as_ref()).await?;
        Ran::nothing()
    }

    pub(super) async fn request(&mut self) -> Result<Ran> {
        let facts = self.facts().await?;
        self.still_theirs(&facts)?;
        if self.plan()?.options.resume_remote.is_none() {
            // What a task before this one left, and could not take back, is not meant this time.
            self.world.publish_remote_settings(self.domain(), None).await?;
        }
        self.ask_for_it(&facts).await?;
        Ran::nothing()
    }

    /// Asks for the domain, unless that was done, or is not needed any more.
    async fn ask_for_it(&mut self, facts: &DomainFacts) -> Result<()> {
        let asked = facts.request.as_ref().is_some_and(|r| r.site == facts.site && !r.withdrawn && r.refused.is_none());
        if asked || facts.owner.released.is_some() || facts.owner.site == facts.site {
            return Ok(());
        }
        self.world.request(self.domain()).await
    }

    pub(super) async fn await_release(&mut self) -> Result<Ran> {
        let plan = self.plan()?;
        let deadline = self.deadline(plan.options.release_limit_seconds);
        let mut heard = None;
        loop {
            let facts = self.facts().await?;
            self.still_theirs(&facts)?;
            if facts.owner.released.is_some() {
                return Ok(self.released(&plan, &facts));
            }
            let underway = facts.request.as_ref().and_then(|request| request.underway.clone());
            if underway != heard {
                heard = underway;
                self.hear(heard.as_ref());
            }
            if facts.owner.site == facts.site {
                return Ran::nothing();
            }
            match facts.request.as_ref().filter(|r| r.site == facts.site) {
                Some(request) if request.refused.is_some() => {
                    let why = request.refused.clone().unwrap_or_default();
                    let said = format!("site {} will not hand domain {} over", facts.owner.site, facts.domain);
                    return Err(Error::new(ErrorKind::Refused, format!("{said}: {why}")));
                }
                Some(request) if !request.withdrawn => {}
                // The owner was started anew, and a new claim ends all requests.
                _ => self.ask_for_it(&facts).await?,
            }
            if self.is_over(deadline) {
                let said = heard.map(|heard| format!("; it says: {}", heard.what)).unwrap_or_default();
                let text = format!(
                    "site {} has not released domain {}{said}. Wait waits as long once more; abort withdraws the request, \
                     and nothing was changed",
                    facts.owner.site, facts.domain
                );
                return Ok(Ran::Ask(Question { text, choices: vec![Choice::Wait, Choice::Abort], vms: Vec::new() }));
            }
            self.wait(self.poll).await?;
        }
    }

    /// Shows while it is so, and keeps, what the owner says that it does.
    fn hear(&mut self, underway: Option<&Underway>) {
        match underway {
            Some(underway) => {
                self.progress.stage(underway.doing.stage());
                self.note(format!("{}: {}", underway.doing.stage(), underway.what));
            }
            // It was asked anew, or has not said anything of this request yet.
            None => self.progress.stage("waiting for the other site"),
        }
    }

    /// The final point may cover VMs that joined since the domain was looked at, and not those that left: the steps to come
    /// are for those that it has.
    fn released(&mut self, plan: &FailoverPlan, facts: &DomainFacts) -> Ran {
        let (vms, excluded) = taking_part(plan, facts);
        if vms == self.task.learned.vms || vms.is_empty() {
            return Ran::Done(Outcome::Nothing);
        }
        let names: Vec<&str> = vms.iter().map(Name::as_str).collect();
        self.note(format!("VMs joined or left meanwhile; those that take part now: {}", names.join(", ")));
        let all = modes::steps(&self.task.request, Some(plan), &vms);
        let steps = all.into_iter().skip_while(|step| *step != Step::AwaitRelease).skip(1).collect();
        Ran::Done(Outcome::Released { vms, excluded, steps })
    }

    /// Fails where neither this site nor the one that owned the domain when the task began has it.
    fn still_theirs(&self, facts: &DomainFacts) -> Result<()> {
        let began_with = self.task.learned.owner.as_ref().map(|(site, _)| site);
        match Some(&facts.owner.site) == began_with || facts.owner.site == facts.site {
            true => Ok(()),
            false => Err(changed_hands(facts)),
        }
    }

    pub(super) async fn claim(&mut self) -> Result<Ran> {
        let plan = self.plan()?;
        let planned = plan.failover.planned;
        for _ in 0..MAX_LOOKS {
            let facts = self.facts().await?;
            let (generation, base) = (facts.owner.generation, facts.owner.base);
            if facts.is_owner() {
                if let Some(base) = base {
                    self.note(format!("generation {} goes on after segment {}", generation.get(), base.segment.get()));
                    return Ok(Ran::Done(Outcome::Claimed { generation, base }));
                }
                // A run before this one claimed it, and ended before it said what it inherits.
                self.claim_generation(generation, &plan, planned).await?;
                continue;
            }
            self.still_theirs(&facts)?;
            if planned && facts.owner.released.is_none() {
                let why = format!("site {} withdrew its release of domain {}", facts.owner.site, facts.domain);
                return Err(Error::new(ErrorKind::Refused, why));
            }
            self.claim_generation(generation.next(), &plan, planned).await?;
        }
        let why = format!("domain {} was claimed, and its ownership log does not show it", self.domain());
        Err(Error::new(ErrorKind::Unreachable, why))
    }

    async fn claim_generation(&self, generation: Generation, plan: &FailoverPlan, planned: bool) -> Result<()> {
        let point = plan.options.point;
        let claim = Claim { domain: self.domain().clone(), generation, forced: !planned, point };
        let Err(error) = self.world.claim(&claim).await else { return Ok(()) };
        use ErrorKind::{Fenced, Incomplete, Invalid, NotFound, Refused, Unsupported};
        if !matches!(error.kind(), Refused | Fenced | Invalid | NotFound | Unsupported) {
            return Err(error);
        }
        // Only what the ownership log says proves that nothing was claimed, and that the way back is open.
        let facts = self.facts().await?;
        let (kind, why) = match facts.owner.site == facts.site {
            true => (Incomplete, "the domain is claimed, and not more than that"),
            false if error.kind() == Fenced => (Fenced, "the domain was not claimed"),
            false => (Refused, "the domain was not claimed"),
        };
        Err(Error::new(kind, format!("{why}: {error}")))
    }
}
