//! What each step does: looks at what is so, does what is missing through the [`World`], and says what it found out.
//!
//! Steps decide nothing about a task and keep nothing: they may be begun at any time, again, by another process, and get
//! the same done. What must not be done twice they look for first.

mod check;
mod data;
mod guests;
mod hand_over;
mod ownership;
mod starting;
mod undo;

use std::sync::Arc;
use std::time::Duration;

use super::event::Outcome;
use super::facts::DomainFacts;
use super::plan::FailoverPlan;
use super::step::Step;
use super::task::{Choice, Question, StepRecord, Task};
use super::transition::{MAX_LINE_LEN, MAX_LOG_LINES};
use super::world::World;
use crate::cancel::Cancel;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Name, Time};
use crate::progress::Progress;

#[cfg(test)]
pub(super) use hand_over::LITTLE;
pub(super) use undo::Unwound;

/// How a step ended, where it did not fail.
#[derive(Debug)]
pub(super) enum Ran {
    /// It is done.
    Done(Outcome),
    /// It needs an operator.
    Ask(Question),
}

impl Ran {
    fn nothing() -> Result<Ran> {
        Ok(Ran::Done(Outcome::Nothing))
    }
}

/// What a step has.
pub(super) struct Context {
    pub(super) world: Arc<dyn World>,
    pub(super) clock: Arc<dyn Clock>,
    /// Time between two looks.
    pub(super) poll: Duration,
    /// The task when the step was begun.
    pub(super) task: Arc<Task>,
    /// Which step.
    pub(super) index: usize,
    pub(super) progress: Arc<Progress>,
    /// The step is asked to stop.
    pub(super) cancel: Cancel,
    /// What it tells.
    pub(super) log: Vec<String>,
}

impl Context {
    /// Does the step.
    pub(super) async fn run(&mut self) -> Result<Ran> {
        match self.step().clone() {
            Step::Check => self.check().await,
            Step::Rehydrate => self.rehydrate().await,
            Step::PublishSettings => self.publish_settings().await,
            Step::Request => self.request().await,
            Step::AwaitRelease => self.await_release().await,
            Step::Claim => self.claim().await,
            Step::Finish => self.finish().await,
            Step::Protect => self.protect().await,
            Step::Define => self.define().await,
            Step::Delay { seconds, .. } => self.delay(seconds).await,
            Step::RunScript { script, vm } => self.run_script(&script, vm.as_ref()).await,
            Step::Start { vm } => self.start(&vm).await,
            Step::WaitFor { wait, vm } => self.wait_for(&wait, &vm).await,
            Step::Confirm { text } => self.confirm(text),
            Step::CleanUp => self.clean_up().await,
            Step::Follow => self.follow().await,
            Step::CatchUp => self.catch_up().await,
            Step::CheckSettings => self.check_settings().await,
            Step::ShutDown => self.shut_down().await,
            Step::Drain => self.drain().await,
            Step::Release => self.release().await,
            Step::AwaitTaker => self.await_taker().await,
            Step::Undefine => self.undefine().await,
            Step::Unfollow => self.unfollow().await,
            Step::Forget { delete_disks } => self.forget(delete_disks).await,
        }
    }

    fn record(&self) -> &StepRecord {
        &self.task.steps[self.index]
    }

    fn step(&self) -> &Step {
        &self.record().step
    }

    fn domain(&self) -> &Name {
        &self.task.domain
    }

    /// What an operator answered to this step's last question.
    fn answer(&self) -> Option<Choice> {
        self.record().answer.as_ref().map(|(choice, _)| *choice)
    }

    /// The plan; a step that goes by one is only in tasks that have one.
    fn plan(&self) -> Result<FailoverPlan> {
        let none = || Error::new(ErrorKind::Internal, format!("task {} has no plan to go by", self.task.id));
        self.task.plan().cloned().ok_or_else(none)
    }

    async fn facts(&self) -> Result<DomainFacts> {
        self.world.facts(self.domain()).await
    }

    /// Waits; fails with `Cancelled` once the step is asked to stop.
    async fn wait(&self, time: Duration) -> Result<()> {
        let world = &self.world;
        let sleep = async {
            world.sleep(time).await;
            Ok(())
        };
        self.cancel.or_stop(sleep).await
    }

    /// When a wait that begins now is over, on the steady clock: nobody waits for hours, or not at all, since a clock was set.
    fn deadline(&self, seconds: u64) -> Time {
        Time::from_millis(self.clock.steady().millis().saturating_add(seconds.saturating_mul(1000)))
    }

    fn is_over(&self, deadline: Time) -> bool {
        self.clock.steady() >= deadline
    }

    fn note(&mut self, text: impl Into<String>) {
        if self.log.len() < MAX_LOG_LINES {
            self.log.push(super::task::bounded(text.into(), MAX_LINE_LEN));
        }
    }
}

/// Another site has what this task was about to take.
fn changed_hands(facts: &DomainFacts) -> Error {
    let owner = &facts.owner;
    let why = format!("domain {} belongs to site {} since {}", facts.domain, owner.site, owner.claimed);
    Error::new(ErrorKind::Fenced, format!("{why} (generation {}), which was first", owner.generation.get()))
}
