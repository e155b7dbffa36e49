//! One task while its process lives: what it is now, who is told, and how the step that runs is asked to stop.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::cancel::Cancel;
use crate::failover::task::{Task, TaskId, TaskProgress};

/// A task, and all that belongs to it in this process.
pub(super) struct Slot {
    pub(super) id: TaskId,
    task: watch::Sender<Arc<Task>>,
    /// Held while an entry is made and kept: one after the other.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// Something changed that the driver may wait for.
    pub(super) wake: Notify,
    own: Mutex<Own>,
}

/// What else there is of a task here.
#[derive(Default)]
struct Own {
    /// Its first entry is durable.
    kept: bool,
    /// Its journal could not be written, so that nobody knows what stands in it: nothing more is done before a restart.
    stalled: bool,
    /// Why its journal could not be read when this process started, where it could not.
    broken: Option<String>,
    /// Somebody gave it up.
    given_up: bool,
    /// Asks the step that runs to stop.
    interrupt: Cancel,
    driver: Option<JoinHandle<()>>,
}

impl Slot {
    pub(super) fn new(task: Task, kept: bool) -> Slot {
        Slot {
            id: task.id,
            task: watch::Sender::new(Arc::new(task)),
            turn: tokio::sync::Mutex::new(()),
            wake: Notify::new(),
            own: Mutex::new(Own { kept, ..Own::default() }),
        }
    }

    pub(super) fn task(&self) -> Arc<Task> {
        self.task.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Task>> {
        self.task.subscribe()
    }

    /// It is what its entries say now.
    pub(super) fn publish(&self, task: Task) {
        self.task.send_replace(Arc::new(task));
    }

    pub(super) fn report_progress(&self, progress: TaskProgress) {
        self.task.send_modify(|task| Arc::make_mut(task).progress = Some(progress));
    }

    pub(super) fn report_trouble(&self, trouble: Option<String>) {
        self.task.send_modify(|task| Arc::make_mut(task).trouble = trouble);
    }

    pub(super) fn is_kept(&self) -> bool {
        self.own().kept
    }

    pub(super) fn set_kept(&self) {
        self.own().kept = true;
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.own().stalled
    }

    pub(super) fn stall(&self) {
        self.own().stalled = true;
    }

    /// Its journal could not be read: nothing more is done.
    pub(super) fn set_broken(&self, why: String) {
        let mut own = self.own();
        (own.stalled, own.broken) = (true, Some(why));
    }

    pub(super) fn broken(&self) -> Option<String> {
        self.own().broken.clone()
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.own().given_up
    }

    pub(super) fn set_given_up(&self) {
        self.own().given_up = true;
    }

    /// What the next step is asked to stop with.
    pub(super) fn fresh_interrupt(&self) -> Cancel {
        let fresh = Cancel::new();
        self.own().interrupt = fresh.clone();
        fresh
    }

    pub(super) fn interrupt(&self) {
        self.own().interrupt.cancel();
    }

    pub(super) fn set_driver(&self, driver: JoinHandle<()>) {
        self.own().driver = Some(driver);
    }

    pub(super) fn take_driver(&self) -> Option<JoinHandle<()>> {
        self.own().driver.take()
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
