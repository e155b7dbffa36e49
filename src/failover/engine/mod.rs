//! The engine: carries tasks out, one running task for each domain, and goes on with them after a restart.
//!
//! ```text
//! loop { next_action(task) -> Began durable -> step acts through the World -> Finished, Failed, Asked durable }
//! commands: PauseAsked, CancelAsked, Chose durable -> the step that runs is asked to stop, the loop looks again
//! ```
//!
//! Each task has one driver, which alone begins and ends steps; commands come in between. All entries of a task pass one
//! lock, and none is acted on before it is durable. A driver that is dropped at any moment loses nothing: the next process
//! finds a step that was begun, and does it again.
//!
//! Where the journal cannot be written, a task stands still: after [`JOURNAL_ATTEMPTS`] tries it is left alone until the
//! process starts anew, since nobody knows any more what stands in the journal.

mod drive;
mod meter;
mod slot;

pub(crate) use self::meter::Meter;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use self::slot::Slot;
use super::event::{Entry, Event};
use super::journal::{Abandoned, Journal, Once};
use super::request::{Command, Request};
use super::runbook_check::MAX_SECONDS;
use super::task::{Task, TaskError, TaskId, TaskState, bounded};
use super::transition::{MAX_LINE_LEN, advance, submitted, transition};
use super::validate::Act;
use super::world::World;
use super::{Finding, Summary, modes, policy};
use crate::cancel::Cancel;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};

/// Tries to keep one entry before a task is left alone.
pub const JOURNAL_ATTEMPTS: u32 = 6;
/// Most tasks that are not over at once.
const MAX_ACTIVE: usize = 10_000;

/// How an engine waits and what it keeps in memory.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// Time between two looks at something that is waited for.
    pub poll: Duration,
    /// Time between two reports of progress.
    pub progress_every: Duration,
    /// Tasks that are over and still listed; older ones stand in the journal only.
    pub finished_kept: usize,
    /// Each step is done twice, to show that nothing comes of it.
    #[cfg(test)]
    pub(crate) twice: bool,
}

impl Default for EngineSettings {
    fn default() -> EngineSettings {
        EngineSettings {
            poll: Duration::from_secs(1),
            progress_every: Duration::from_millis(500),
            finished_kept: 1000,
            #[cfg(test)]
            twice: false,
        }
    }
}

/// What a restart found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Tasks that go on.
    pub going_on: Vec<TaskId>,
    /// Tasks that were over.
    pub over: usize,
    /// Tasks whose journal makes no sense, and why. They are listed as far as they were understood, are not gone on with,
    /// and keep their domain from other tasks.
    pub broken: Vec<(TaskId, Error)>,
    /// Tasks that were over and are not remembered any more: the oldest, beyond what is kept. The journal can let go of them.
    pub forgotten: Vec<TaskId>,
}

/// What a request would do.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// What is wrong with it.
    pub findings: Vec<Finding>,
    /// What it comes to.
    pub summary: Summary,
}

/// Carries out tasks. Dropping it is like killing the process, as far as tasks go; see [`Engine::stop`].
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    journal: Arc<dyn Journal>,
    world: Arc<dyn World>,
    clock: Arc<dyn Clock>,
    settings: EngineSettings,
    slots: Mutex<BTreeMap<TaskId, Arc<Slot>>>,
    /// Tasks of whose journal not even the first entry can be read, and why: nobody knows what they are about.
    unknown: Mutex<BTreeMap<TaskId, String>>,
    stop: Cancel,
}

impl Engine {
    /// An engine without tasks; [`Engine::recover`] brings those of the journal. Must be made and used within a tokio
    /// runtime.
    pub fn new(
        journal: Arc<dyn Journal>,
        world: Arc<dyn World>,
        clock: Arc<dyn Clock>,
        settings: EngineSettings,
    ) -> Engine {
        let (slots, unknown, stop) = (Mutex::default(), Mutex::default(), Cancel::new());
        Engine { inner: Arc::new(Inner { journal, world, clock, settings, slots, unknown, stop }) }
    }

    /// Goes on with every task of the journal that is not over. Called once, before anything is submitted.
    ///
    /// # Errors
    /// What the journal says where it cannot be read.
    pub async fn recover(&self) -> Result<Recovered> {
        let journal = self.inner.journal.clone();
        let kept = off_thread(move || journal.load()).await?;
        let mut by_task: BTreeMap<TaskId, Vec<Result<Entry>>> = BTreeMap::new();
        for (id, entry) in kept.entries {
            by_task.entry(id).or_default().push(entry);
        }
        let mut recovered = Recovered::default();
        for (id, entries) in by_task {
            let (task, broken) = replay(id, entries);
            let abandoned = kept.abandoned.get(&id);
            let Some(mut task) = task else {
                if let Some(error) = broken.filter(|_| abandoned.is_none()) {
                    self.inner.unknown().insert(id, error.to_string());
                    recovered.broken.push((id, error));
                }
                continue;
            };
            if let Some(abandoned) = abandoned {
                given_up(&mut task, abandoned);
            }
            let over = task.state.is_terminal();
            let broken = broken.filter(|_| abandoned.is_none());
            task.trouble = broken.as_ref().map(|e| format!("{UNREADABLE}: {e}"));
            let slot = Arc::new(Slot::new(task, true));
            if abandoned.is_some() {
                slot.set_given_up();
            }
            self.inner.slots().insert(id, slot.clone());
            match (broken, over) {
                (Some(error), _) => {
                    slot.set_broken(error.to_string());
                    recovered.broken.push((id, error));
                }
                (None, true) => recovered.over += 1,
                (None, false) => {
                    drive::start(&self.inner, &slot);
                    recovered.going_on.push(id);
                }
            }
        }
        recovered.forgotten = self.inner.forget_old();
        Ok(recovered)
    }

    /// Accepts a task, durable when this returns, and begins it.
    ///
    /// # Errors
    /// `Refused` where a task of its domain is not over, naming it; `Invalid`; what the journal says. After an error of
    /// the journal the task may have been kept all the same, and then begins at the next start.
    pub async fn submit(&self, request: Request, actor: &str) -> Result<TaskId> {
        self.submit_once(request, actor, None).await
    }

    /// The same, where `once` is noted together with the task: whoever finds one finds the other, whenever the process
    /// ends. Whether the request came before is for the caller to look up.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub async fn submit_once(&self, request: Request, actor: &str, once: Option<Once>) -> Result<TaskId> {
        check_limits(&request)?;
        let actor = bounded(actor.to_owned(), MAX_LINE_LEN);
        let inner = self.inner.clone();
        // Not to be dropped half-way where the caller goes away.
        detached(async move {
            let now = inner.clock.now();
            let entry = Entry::new(1, now, Event::Submitted { request, actor });
            let task = submitted(TaskId::new(now), &entry)?;
            let slot = inner.reserve(task)?;
            let kept = inner.keep(&slot, &entry, once).await;
            if let Err(e) = kept {
                inner.slots().remove(&slot.id);
                return Err(e);
            }
            slot.set_kept();
            drive::start(&inner, &slot);
            Ok(slot.id)
        })
        .await
    }

    /// Tells a task something, durable when this returns.
    ///
    /// # Errors
    /// `NotFound`; `Refused` where that cannot be in its state, saying why; what the journal says.
    pub async fn command(&self, id: TaskId, command: Command, actor: &str) -> Result<()> {
        let slot = self.inner.slot(id)?;
        let actor = bounded(actor.to_owned(), MAX_LINE_LEN);
        let event = match command {
            Command::Cancel => Event::CancelAsked { actor },
            Command::Pause => Event::PauseAsked { actor },
            Command::Resume => Event::ResumeAsked { actor },
            Command::Choose { choice, question } => Event::Chose { choice, question: Some(question), actor },
        };
        let inner = self.inner.clone();
        detached(async move {
            let task = inner.apply(&slot, event).await?;
            let stops = task.pause || task.turned.is_some();
            if stops && task.current().is_some_and(|(_, s)| s.step.is_interruptible()) {
                slot.interrupt();
            }
            slot.wake.notify_one();
            Ok(())
        })
        .await
    }

    /// Gives up a task whose journal cannot be read, durable when this returns: it is over, and its domain is free for
    /// another one. Nothing is undone. Answers with the task as far as it is known.
    ///
    /// # Errors
    /// `NotFound`; `Refused` where its journal reads well, since such a task can be answered or cancelled; what the journal
    /// says.
    pub async fn abandon(&self, id: TaskId, actor: &str) -> Result<Option<Arc<Task>>> {
        let unknown = self.inner.unknown().get(&id).cloned();
        let slot = match self.inner.slot(id) {
            _ if unknown.is_some() => None,
            Ok(slot) => Some(slot),
            Err(error) => {
                // One of which nothing could be read, and which was given up before.
                let journal = self.inner.journal.clone();
                let before = off_thread(move || journal.load()).await?.abandoned.contains_key(&id);
                return if before { Ok(None) } else { Err(error) };
            }
        };
        if let Some(slot) = slot.as_ref().filter(|slot| slot.is_given_up()) {
            return Ok(Some(slot.task()));
        }
        let why = unknown.or_else(|| slot.as_ref().and_then(|slot| slot.broken()));
        let Some(why) = why else {
            let why = format!("the journal of task {id} reads well: cancel the task, or answer its question");
            return Err(Error::new(ErrorKind::Refused, why));
        };
        let actor = bounded(actor.to_owned(), MAX_LINE_LEN);
        let inner = self.inner.clone();
        detached(async move {
            let abandoned = Abandoned { at: inner.clock.now(), actor, why };
            let (journal, kept) = (inner.journal.clone(), abandoned.clone());
            off_thread(move || journal.abandon(id, &kept)).await?;
            inner.unknown().remove(&id);
            let Some(slot) = slot else { return Ok(None) };
            let mut task = (*slot.task()).clone();
            given_up(&mut task, &abandoned);
            slot.set_given_up();
            slot.publish(task);
            Ok(Some(slot.task()))
        })
        .await
    }

    /// What `request` would do, and what is wrong with it. Changes nothing.
    ///
    /// # Errors
    /// What the world says where it cannot be looked at; `Invalid` for requests without a plan.
    pub async fn plan(&self, request: &Request) -> Result<Planned> {
        let (plan, act) = match request {
            Request::Plan(plan) => ((**plan).clone(), Act::Start),
            Request::Complete(complete) => {
                let facts = self.inner.world.facts(&complete.domain).await?;
                let follow = facts.follow.ok_or_else(|| nothing_follows(request))?;
                (modes::completing(&follow.plan, complete), Act::Complete)
            }
            Request::HandOver(_) | Request::Forget(_) => {
                return Err(Error::new(ErrorKind::Invalid, format!("a {} has no plan", request.kind())));
            }
        };
        let survey = self.inner.world.survey(&plan).await?;
        Ok(Planned { findings: plan.validate(&survey, act), summary: plan.summary(&survey, act) })
    }

    /// All tasks that are known here, oldest first.
    pub fn tasks(&self) -> Vec<Arc<Task>> {
        self.inner.slots().values().filter(|s| s.is_kept()).map(|s| s.task()).collect()
    }

    /// One task.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn task(&self, id: TaskId) -> Result<Arc<Task>> {
        Ok(self.inner.slot(id)?.task())
    }

    /// The task of a domain that is not over, if there is one.
    pub fn running(&self, domain: &crate::ids::Name) -> Option<Arc<Task>> {
        let tasks = self.inner.slots();
        tasks.values().map(|s| s.task()).find(|t| t.domain == *domain && !t.state.is_terminal())
    }

    /// A task, and every change of it.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn watch(&self, id: TaskId) -> Result<watch::Receiver<Arc<Task>>> {
        Ok(self.inner.slot(id)?.watch())
    }

    /// Stops all drivers: steps that can be interrupted are, others are waited for. Tasks go on with the next
    /// [`Engine::recover`] of another engine.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        let slots: Vec<Arc<Slot>> = self.inner.slots().values().cloned().collect();
        for slot in slots {
            slot.interrupt();
            slot.wake.notify_one();
            if let Some(driver) = slot.take_driver() {
                // It ends by itself, and what it did is in the journal, also where it panicked.
                let _ = driver.await;
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.inner.stop.cancel();
        for slot in self.inner.slots().values() {
            if let Some(driver) = slot.take_driver() {
                driver.abort();
            }
        }
    }
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<TaskId, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unknown(&self) -> MutexGuard<'_, BTreeMap<TaskId, String>> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, id: TaskId) -> Result<Arc<Slot>> {
        let slot = self.slots().get(&id).filter(|s| s.is_kept()).cloned();
        slot.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no task {id}")))
    }

    /// Takes the domain's place, so that no other task of it begins.
    fn reserve(&self, task: Task) -> Result<Arc<Slot>> {
        let mut slots = self.slots();
        let active: Vec<Arc<Task>> = slots.values().map(|s| s.task()).filter(|t| !t.state.is_terminal()).collect();
        if let Some(other) = active.iter().find(|t| t.domain == task.domain) {
            let why = format!(
                "domain {} has a task already: {} {} of {}, {}",
                task.domain,
                other.kind,
                other.id,
                other.actor,
                other.state.word()
            );
            return Err(Error::new(ErrorKind::Refused, why));
        }
        if self.stop.is_cancelled() || active.len() >= MAX_ACTIVE {
            let why = format!("{} tasks are not over, and no more are taken", active.len());
            return Err(Error::new(ErrorKind::Refused, why));
        }
        let slot = Arc::new(Slot::new(task, false));
        slots.insert(slot.id, slot.clone());
        Ok(slot)
    }

    /// Makes `event` the next entry of the task: decided, durable, then seen.
    async fn apply(&self, slot: &Slot, event: Event) -> Result<Arc<Task>> {
        let _turn = slot.turn.lock().await;
        if slot.is_stalled() {
            let why = format!("task {} stands still: its journal could not be written or read", slot.id);
            return Err(Error::new(ErrorKind::Io, format!("{why}; start the process anew")));
        }
        let current = slot.task();
        let entry = Entry::new(current.entries + 1, self.clock.now(), event);
        let mut next = transition(&current, &entry)?;
        self.keep(slot, &entry, None).await?;
        next.trouble = None;
        next.progress = None;
        slot.publish(next);
        Ok(slot.task())
    }

    /// Appends `entry`, the first with the request that began the task where there is one, with a few tries; after the
    /// last the task is stalled.
    async fn keep(&self, slot: &Slot, entry: &Entry, once: Option<Once>) -> Result<()> {
        for attempt in 1.. {
            let (journal, id, copy, once) = (self.journal.clone(), slot.id, entry.clone(), once.clone());
            let append = move || match &once {
                Some(once) => journal.begin(id, &copy, once),
                None => journal.append(id, &copy),
            };
            let error = match off_thread(append).await {
                Ok(_) => return Ok(()),
                Err(e) => e.while_doing("keep what happened to a task"),
            };
            if attempt >= JOURNAL_ATTEMPTS || is_final(error.kind()) {
                slot.stall();
                slot.report_trouble(Some(format!("stands still until the process starts anew: {error}")));
                return Err(error);
            }
            slot.report_trouble(Some(error.to_string()));
            self.world.sleep(policy::pause_after(attempt)).await;
        }
        unreachable!("the last attempt returns")
    }

    /// Tasks that are over leave the memory, oldest first, where there are too many.
    fn forget_old(&self) -> Vec<TaskId> {
        let mut slots = self.slots();
        let mut over: Vec<TaskId> = slots.values().filter(|s| s.task().state.is_terminal()).map(|s| s.id).collect();
        over.truncate(over.len().saturating_sub(self.settings.finished_kept));
        for id in &over {
            slots.remove(id);
        }
        over
    }
}

/// Whether an error of a journal stays one however often it is tried.
fn is_final(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Internal | ErrorKind::Invalid)
}

/// What a task of which no more is known than up to here is called.
const UNREADABLE: &str = "its journal cannot be read; an admin can give it up (freshet task abandon)";

/// It is over: somebody gave it up.
fn given_up(task: &mut Task, abandoned: &Abandoned) {
    let text = format!(
        "given up by {}, since its journal cannot be read: {}; nothing was undone",
        abandoned.actor, abandoned.why
    );
    task.trouble = None;
    // What had ended well before an entry that cannot be read has ended so.
    if !task.state.is_terminal() {
        task.state = TaskState::Failed { error: TaskError { kind: ErrorKind::Damaged, text } };
        (task.ended, task.progress) = (Some(abandoned.at), None);
    }
}

/// The task that entries of a journal make, as far as they make one, and what cannot be read or does not fit. No I/O.
pub fn replay(id: TaskId, entries: Vec<Result<Entry>>) -> (Option<Task>, Option<Error>) {
    let mut read = Vec::with_capacity(entries.len());
    for entry in entries {
        match entry {
            Ok(entry) => read.push(entry),
            Err(error) => {
                let (task, broken) = folded(id, &read);
                return (task, Some(broken.unwrap_or(error)));
            }
        }
    }
    folded(id, &read)
}

/// The task that `entries` make, as far as they make one, and what does not fit.
pub(super) fn folded(id: TaskId, entries: &[Entry]) -> (Option<Task>, Option<Error>) {
    let Some((first, rest)) = entries.split_first() else { return (None, None) };
    let mut task = match submitted(id, first) {
        Ok(task) => task,
        Err(e) => return (None, Some(e)),
    };
    for entry in rest {
        if let Err(e) = advance(&mut task, entry) {
            return (Some(task), Some(e));
        }
    }
    (Some(task), None)
}

/// Limits of a request that can be told without looking at anything.
fn check_limits(request: &Request) -> Result<()> {
    let Request::HandOver(hand_over) = request else { return Ok(()) };
    let limits = [
        ("shutdown_limit_seconds", hand_over.shutdown_limit_seconds, MAX_SECONDS),
        ("taken_limit_seconds", hand_over.taken_limit_seconds, 604_800),
    ];
    for (what, seconds, most) in limits {
        if !(1..=most).contains(&seconds) {
            return Err(Error::new(ErrorKind::Invalid, format!("{what} is {seconds}, must be 1 to {most}")));
        }
    }
    Ok(())
}

pub(super) fn nothing_follows(request: &Request) -> Error {
    let why = format!("no disks at this site follow domain {}", request.domain());
    Error::new(ErrorKind::Refused, format!("{why}: start a continuous failover first"))
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(Error::with_source(ErrorKind::Internal, "the journal", e)),
    }
}

/// Runs to its end, also where nobody waits for it any more.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(e) => Err(Error::with_source(ErrorKind::Internal, "a task", e)),
    }
}
