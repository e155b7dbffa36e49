//! How tasks ended, written down as events: who asked for one was told only that it began.
//!
//! Owns which ends were told. Invariant: each end is written down once while the appliance runs; those of before it are in
//! the events already, or the process was killed at that very moment.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::appliance::Appliance;
use crate::failover::{Task, TaskId, TaskState};

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The outcome of a task as an event has it, and its words.
fn outcome(task: &Task) -> (Result<(), &'static str>, String) {
    let what = format!("{} {}", task.kind, task.id);
    match &task.state {
        TaskState::Failed { error } => (Err(error.kind.word()), format!("{what}: {error}")),
        TaskState::Cancelled => (Err("cancelled"), what),
        _ => (Ok(()), what),
    }
}

impl Appliance {
    /// Writes down how tasks end, until the appliance closes.
    pub(crate) async fn keep_noting_ends(self: Arc<Appliance>) {
        let over = |task: &Arc<Task>| task.state.is_terminal();
        let mut told: HashSet<TaskId> = self.engine.tasks().iter().filter(|task| over(task)).map(|t| t.id).collect();
        while !self.closing.is_cancelled() {
            let tasks = self.engine.tasks();
            for task in tasks.iter().filter(|task| over(task) && !told.contains(&task.id)) {
                let (outcome, detail) = outcome(task);
                self.note(&task.actor, "task ended", task.domain.as_str(), outcome, &detail).await;
            }
            // Of no more than are remembered.
            told = tasks.iter().filter(|task| over(task)).map(|task| task.id).collect();
            let pause = tokio::time::sleep(LOOK_EVERY);
            tokio::select! { () = pause => {} () = self.closing.cancelled() => {} }
        }
    }
}
