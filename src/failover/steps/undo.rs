//! Taking back what a step did, last step first. Each may be repeated, like the steps themselves.

use super::{Context, changed_hands};
use crate::error::Result;
use crate::failover::facts::DomainFacts;
use crate::failover::step::Step;
use crate::failover::world::Resumed;
use crate::hypervisor::PowerState;

/// How undoing a step ended.
pub(in crate::failover) enum Unwound {
    /// It is as if the step had not been done.
    Undone,
    /// The other site acted first, and the task must go forwards; why.
    Overtaken(String),
}

impl Context {
    /// Undoes the step, whether it was done wholly, in part or not at all.
    pub(in crate::failover) async fn undo(&mut self) -> Result<Unwound> {
        match self.step() {
            Step::PublishSettings => self.world.publish_remote_settings(self.domain(), None).await?,
            Step::Request => self.world.withdraw_request(self.domain()).await?,
            Step::Follow => self.world.unfollow(self.domain()).await?,
            Step::CheckSettings => self.refuse().await?,
            Step::ShutDown => self.start_again().await?,
            Step::Drain => {
                // Before protection claims a new generation, which would end the request without an answer.
                self.refuse().await?;
                self.protect_again().await?;
            }
            Step::Release => return self.take_back().await,
            _ => {}
        }
        Ok(Unwound::Undone)
    }

    async fn refuse(&mut self) -> Result<()> {
        let facts = self.facts().await?;
        let standing = facts.request.as_ref().filter(|r| !r.withdrawn && r.refused.is_none());
        let Some(request) = standing.filter(|_| facts.is_owner()) else { return Ok(()) };
        let because = self.task.turned.as_ref().and_then(|t| t.because.as_ref());
        let why = because.map_or_else(|| "an operator there aborted it".to_owned(), ToString::to_string);
        self.world.refuse_request(self.domain(), request, &why).await
    }

    async fn start_again(&mut self) -> Result<()> {
        let facts = self.facts().await?;
        if self.is_lost(&facts) {
            return Ok(());
        }
        self.still_ours(&facts)?;
        let hypervisor = self.world.hypervisor();
        for vm in self.task.learned.vms.clone() {
            if hypervisor.state(&vm).await? == PowerState::Off {
                hypervisor.start(&vm).await?;
                self.note(format!("VM {vm} started again"));
            }
        }
        Ok(())
    }

    async fn protect_again(&mut self) -> Result<()> {
        let facts = self.facts().await?;
        if self.is_lost(&facts) {
            return Ok(());
        }
        self.still_ours(&facts)?;
        if !facts.protecting {
            self.world.protect(self.domain(), None, &[]).await?;
        }
        Ok(())
    }

    /// Whether another site has the domain: then there is nothing to go on with here, and nobody need be asked about it.
    fn is_lost(&mut self, facts: &DomainFacts) -> bool {
        let lost = facts.owner.site != facts.site;
        if lost {
            self.note(format!("nothing starts again here: {}", changed_hands(facts)));
        }
        lost
    }

    fn still_ours(&self, facts: &DomainFacts) -> Result<()> {
        match facts.is_owner() {
            true => Ok(()),
            false => Err(changed_hands(facts)),
        }
    }

    async fn take_back(&mut self) -> Result<Unwound> {
        match self.world.resume(self.domain()).await? {
            Resumed::Ours => Ok(Unwound::Undone),
            Resumed::Taken { by, generation } => Ok(Unwound::Overtaken(format!(
                "site {by} took domain {} as generation {} before its release was withdrawn",
                self.domain(),
                generation.get()
            ))),
        }
    }
}
