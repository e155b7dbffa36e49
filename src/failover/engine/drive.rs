//! The driver of one task: does what is to be done next, until it is over or the engine stops.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use super::meter::Meter;
use super::slot::Slot;
use super::{Event, Inner, policy};
use crate::cancel::Cancel;
use crate::error::{ErrorKind, Result};
use crate::failover::steps::{Context, Ran, Unwound};
use crate::failover::task::{StepState, Task, TaskError};
use crate::failover::transition::{Action, next_action};
use crate::log_context;
use crate::progress::Progress;

/// Pause before looking again at a task that changed in between.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Lets a driver go on with the task.
pub(super) fn start(inner: &Arc<Inner>, slot: &Arc<Slot>) {
    let driver = tokio::spawn(drive(inner.clone(), slot.clone()));
    slot.set_driver(driver);
}

async fn drive(inner: Arc<Inner>, slot: Arc<Slot>) {
    while !inner.stop.is_cancelled() && !slot.is_stalled() {
        let task = slot.task();
        let (about, went_on) = match next_action(&task) {
            Action::End => {
                about(&task, None).in_scope(|| tracing::info!(state = task.state.word(), "the task is over"));
                inner.forget_old();
                return;
            }
            Action::Wait => {
                slot.wake.notified().await;
                continue;
            }
            Action::Settle(step) => {
                let settled = inner.apply(&slot, Event::Interrupted { step: number(step) }).await.map(drop);
                (about(&task, Some(step)), settled)
            }
            Action::Do(step) => {
                let about = about(&task, Some(step));
                (about.clone(), do_step(&inner, &slot, &task, step).instrument(about).await)
            }
            Action::Undo(step) => {
                let about = about(&task, Some(step));
                (about.clone(), undo_step(&inner, &slot, &task, step).instrument(about).await)
            }
        };
        // What was to happen next no longer is, since a command came in between; or the journal failed, and then the
        // task is stalled.
        if let Err(error) = went_on {
            about.in_scope(|| tracing::debug!(%error, "looking again"));
            inner.world.sleep(LOOK_AGAIN).await;
        }
    }
}

/// What lines of a step are about. The generation is that of this site's claim, before it that of the owner.
fn about(task: &Task, step: Option<usize>) -> tracing::Span {
    let learned = &task.learned;
    let generation = learned.claimed.map(|(generation, _)| generation);
    let generation = generation.or(learned.owner.as_ref().map(|(_, generation)| *generation));
    log_context::task(&task.id, &task.domain, step.map(|step| task.steps[step].step.word()), generation)
}

/// Waits before another try. Whether the time is over; a command may have come instead.
async fn pause_before(inner: &Inner, slot: &Slot, attempts: u32) -> bool {
    tokio::select! {
        () = inner.world.sleep(policy::pause_after(attempts)) => true,
        () = slot.wake.notified() => false,
        () = inner.stop.cancelled() => false,
    }
}

async fn do_step(inner: &Arc<Inner>, slot: &Arc<Slot>, task: &Task, i: usize) -> Result<()> {
    let record = &task.steps[i];
    if matches!(record.state, StepState::Retrying { .. }) && !pause_before(inner, slot, record.attempts).await {
        return Ok(());
    }
    let (cancel, before) = (slot.fresh_interrupt(), task.learned.owner.clone());
    let task = inner.apply(slot, Event::Began { step: number(i) }).await?;
    tracing::info!(attempt = task.steps[i].attempts, "begins");
    let mut context = context(inner, &task, i, cancel.clone());
    let ran = with_progress(inner, slot, &mut context).await;
    let log = std::mem::take(&mut context.log);
    let step = number(i);
    let event = match ran {
        Ok(Ran::Done(outcome)) => Event::Finished { step, outcome, log },
        Ok(Ran::Ask(question)) => Event::Asked { step, question, log },
        Err(e) if e.kind() == ErrorKind::Cancelled && cancel.is_cancelled() => {
            let now = slot.task();
            if !now.pause && now.turned.is_none() {
                // The process ends: the step was begun, and is done again by the next one.
                return Ok(());
            }
            Event::Interrupted { step }
        }
        Err(e) => {
            tracing::warn!("failed: {e}");
            Event::Failed { step, error: TaskError::of(&e), log }
        }
    };
    let task = inner.apply(slot, event).await?;
    if let (None, Some((_, generation))) = (before, &task.learned.owner) {
        log_context::generation(*generation);
    }
    tracing::info!(state = task.steps[i].state.word(), "ended");
    Ok(())
}

fn context(inner: &Arc<Inner>, task: &Arc<Task>, i: usize, cancel: Cancel) -> Context {
    Context {
        world: inner.world.clone(),
        clock: inner.clock.clone(),
        poll: inner.settings.poll,
        task: task.clone(),
        index: i,
        progress: Arc::new(Progress::new()),
        cancel,
        log: Vec::new(),
    }
}

/// Runs the step, and reports now and then how far it is.
async fn with_progress(inner: &Arc<Inner>, slot: &Arc<Slot>, context: &mut Context) -> Result<Ran> {
    let (progress, mut meter) = (context.progress.clone(), Meter::default());
    let mut tick = tokio::time::interval(inner.settings.progress_every.max(Duration::from_millis(1)));
    let run = async {
        #[cfg(test)]
        if inner.settings.twice {
            let first = context.run().await?;
            if let Ran::Ask(_) = first {
                return Ok(first);
            }
            context.log.clear();
        }
        context.run().await
    };
    let mut run = std::pin::pin!(run);
    loop {
        tokio::select! {
            ran = &mut run => return ran,
            _ = tick.tick() => {
                let snapshot = progress.snapshot();
                if snapshot.total > 0 || !snapshot.stage.is_empty() {
                    slot.report_progress(meter.take(inner.clock.steady(), snapshot));
                }
            }
        }
    }
}

async fn undo_step(inner: &Arc<Inner>, slot: &Arc<Slot>, task: &Task, i: usize) -> Result<()> {
    let record = &task.steps[i];
    let again = record.state == StepState::Undoing && record.attempts > 0;
    if again && !pause_before(inner, slot, record.attempts).await {
        return Ok(());
    }
    let task = inner.apply(slot, Event::UndoBegan { step: number(i) }).await?;
    let mut context = context(inner, &task, i, Cancel::new());
    let undone = context.undo().await;
    let log = std::mem::take(&mut context.log);
    let step = number(i);
    let event = match undone {
        Ok(Unwound::Undone) => Event::Undone { step, log },
        Ok(Unwound::Overtaken(why)) => Event::UndoOvertaken { step, why },
        Err(e) => {
            tracing::warn!("cannot be undone now: {e}");
            Event::UndoFailed { step, error: TaskError::of(&e) }
        }
    };
    inner.apply(slot, event).await.map(drop)
}

/// Steps are limited to far fewer.
fn number(i: usize) -> u32 {
    u32::try_from(i).expect("a task has at most MAX_STEPS steps")
}
