//! Bringing disks to a point, letting them follow, and protecting them.

use super::{Context, Ran, changed_hands};
use crate::error::{Error, ErrorKind, Result};
use crate::failover::event::Outcome;
use crate::failover::facts::LocalDisks;
use crate::failover::plan::PointChoice;
use crate::failover::request::Request;
use crate::failover::task::{Choice, Question};
use crate::failover::transition::point_of_no_return;
use crate::failover::world::{Reached, RehydrateTo};
use crate::ids::SegmentRef;

impl Context {
    pub(super) async fn rehydrate(&mut self) -> Result<Ran> {
        let plan = self.plan()?;
        // A planned one runs from a point that does not exist yet: the newest is what it is nearest to.
        let point = if plan.failover.planned { PointChoice::Newest } else { plan.options.point };
        let vms = self.task.learned.vms.clone();
        let to = RehydrateTo { plan, point, vms };
        let reached = self.world.rehydrate(&to, self.progress.clone(), self.cancel.clone()).await?;
        self.judge(reached)
    }

    pub(super) async fn finish(&mut self) -> Result<Ran> {
        let Some((_, base)) = self.task.learned.claimed else {
            return Err(Error::new(ErrorKind::Internal, "disks cannot be finished before a claim"));
        };
        let (progress, cancel) = (self.progress.clone(), self.cancel.clone());
        let reached = match self.task.request {
            Request::Complete(_) => self.world.finish_following(self.domain(), base, progress, cancel).await?,
            _ => {
                let (plan, vms) = (self.plan()?, self.task.learned.vms.clone());
                let to = RehydrateTo { plan, point: PointChoice::Number(base.segment), vms };
                self.world.rehydrate(&to, progress, cancel).await?
            }
        };
        if reached.at != base {
            let why = format!("disks of domain {} equal {} and not {base}", self.domain(), reached.at);
            return Err(Error::new(ErrorKind::Internal, why));
        }
        self.judge(reached)
    }

    /// Damage is accepted by the plan or by an operator, or it is asked about.
    fn judge(&mut self, reached: Reached) -> Result<Ran> {
        let accepted = self.plan()?.options.accept_damage || self.answer() == Some(Choice::Confirm);
        for damage in &reached.damage {
            self.note(damage.clone());
        }
        if reached.damage.is_empty() || accepted {
            self.note(format!("disks equal point {}", reached.at.segment.get()));
            return Ok(Ran::Done(Outcome::Rehydrated { at: reached.at }));
        }
        let out = match point_of_no_return(&self.task).is_some() {
            true => Choice::GiveUp,
            false => Choice::Abort,
        };
        let text = format!(
            "{} parts of the disks of domain {} are not as they were at the point; the step's log names them. Retry tries \
             to read them again; confirm goes on with them as they are; {out} ends the task",
            reached.damage.len(),
            self.domain()
        );
        Ok(Ran::Ask(Question { text, choices: vec![Choice::Retry, Choice::Confirm, out], vms: Vec::new() }))
    }

    pub(super) async fn protect(&mut self) -> Result<Ran> {
        let facts = self.facts().await?;
        if !facts.is_owner() {
            return Err(changed_hands(&facts));
        }
        if !facts.protecting {
            let (plan, vms) = (self.plan()?, self.task.learned.vms.clone());
            self.world.protect(self.domain(), Some(&plan), &vms).await?;
        }
        Ran::nothing()
    }

    pub(super) async fn follow(&mut self) -> Result<Ran> {
        let facts = self.facts().await?;
        let plan = self.plan()?;
        if facts.is_owner() {
            let why = format!("this site owns domain {}, and cannot follow itself", facts.domain);
            return Err(Error::new(ErrorKind::Refused, why));
        }
        if let (LocalDisks::Diverged { common, .. }, false) = (facts.disks, plan.options.accept_divergence) {
            let why = format!("this site's disks hold what it wrote after segment {}", common.segment.get());
            let remedy = "start a continuous failback that accepts that it is overwritten";
            return Err(Error::new(ErrorKind::Refused, format!("{why}: {remedy}")));
        }
        if facts.follow.is_none() {
            self.world.follow(&plan).await?;
        }
        Ran::nothing()
    }

    pub(super) async fn catch_up(&mut self) -> Result<Ran> {
        let mut told = None;
        let mut counted = (0, 0);
        self.progress.stage("catching up");
        loop {
            let facts = self.facts().await?;
            let Some(follow) = facts.follow else {
                let why = format!("disks of domain {} do not follow it any more", facts.domain);
                return Err(Error::new(ErrorKind::Refused, why));
            };
            let (done, total) = follow.done;
            self.progress.add_total(total.saturating_sub(counted.1));
            self.progress.add_done(done.saturating_sub(counted.0));
            counted = (counted.0.max(done), counted.1.max(total));
            self.progress.disks_are(&follow.disks);
            if follow.caught_up {
                let at: SegmentRef = follow.applied.map(|p| p.at).unwrap_or_default();
                self.note(format!("disks follow from point {} on", at.segment.get()));
                return Ran::nothing();
            }
            if follow.problem != told {
                self.note(follow.problem.clone().unwrap_or_else(|| "the problem is gone".into()));
                told = follow.problem;
            }
            self.wait(self.poll).await?;
        }
    }

    pub(super) async fn unfollow(&mut self) -> Result<Ran> {
        self.world.unfollow(self.domain()).await?;
        Ran::nothing()
    }

    pub(super) async fn forget(&mut self, delete_disks: bool) -> Result<Ran> {
        let facts = match self.facts().await {
            // Forgotten by a run before this one.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ran::nothing(),
            facts => facts?,
        };
        if facts.owner.site == facts.site || facts.protecting {
            let why = format!("domain {} is this site's again", facts.domain);
            return Err(Error::new(ErrorKind::Refused, why));
        }
        self.world.forget(self.domain(), delete_disks).await?;
        Ran::nothing()
    }

    pub(super) async fn clean_up(&mut self) -> Result<Ran> {
        self.world.clean_up(self.domain()).await?;
        Ran::nothing()
    }
}
