//! The driver of one task: does what is to be done next, until it is over or the engine stops.

use std::sync::Arc;
use std::time::Duration;

use super::meter::Meter;
use super::slot::Slot;
use super::{Event, Inner, policy};
use crate::cancel::Cancel;
use crate::error::{ErrorKind, Result};
use crate::failover::steps::{Context, Ran, Unwound};
use crate::failover::task::{StepState, Task, TaskError};
use crate::failover::transition::{Action, next_action};
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
        let went_on = match next_action(&task) {
            Action::End => {
                inner.forget_old();
                return;
            }
            Action::Wait => {
                slot.wake.notified().await;
                Ok(())
            }
            Action::Settle(step) => inner.apply(&slot, Event::Interrupted { step: number(step) }).await.map(drop),
            Action::Do(step) => do_step(&inner, &slot, &task, step).await,
            Action::Undo(step) => undo_step(&inner, &slot, &task, step).await,
        };
        // What was to happen next no longer is, since a command came in between; or the journal failed, and then the
        // task is stalled.
        if let Err(error) = went_on {
            tracing::debug!(task = %task.id, domain = %task.domain, %error, "looking again");
            inner.world.sleep(LOOK_AGAIN).await;
        }
    }
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
    let cancel = slot.fresh_interrupt();
    let task = inner.apply(slot, Event::Began { step: number(i) }).await?;
    let span = tracing::info_span!("step", task = %task.id, domain = %task.domain, step = task.steps[i].step.word());
    let mut context = context(inner, &task, i, cancel.clone());
    let ran = with_progress(inner, slot, &mut context, &span).await;
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
            tracing::warn!(task = %task.id, domain = %task.domain, step = task.steps[i].step.word(), error = %e);
            Event::Failed { step, error: TaskError::of(&e), log }
        }
    };
    inner.apply(slot, event).await.map(drop)
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
async fn with_progress(
    inner: &Arc<Inner>,
    slot: &Arc<Slot>,
    context: &mut Context,
    span: &tracing::Span,
) -> Result<Ran> {
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
    let mut run = std::pin::pin!(tracing::Instrument::instrument(run, span.clone()));
    loop {
        tokio::select! {
            ran = &mut run => return ran,
            _ = tick.tick() => {
                let snapshot = progress.snapshot();
                if snapshot.total > 0 || !snapshot.stage.is_empty() {
                    slot.report_progress(meter.take(inner.clock.now(), &snapshot));
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
            tracing::warn!(task = %task.id, domain = %task.domain, step = task.steps[i].step.word(), error = %e, "undo");
            Event::UndoFailed { step, error: TaskError::of(&e) }
        }
    };
    inner.apply(slot, event).await.map(drop)
}

/// Steps are limited to far fewer.
fn number(i: usize) -> u32 {
    u32::try_from(i).expect("a task has at most MAX_STEPS steps")
}
