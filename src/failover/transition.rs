//! The one function that decides what a task becomes. Live and in replay: what a task is, is what its entries say.
//!
//! ```text
//!             Began            Finished of the last step
//!  Pending -----------> Running -------------------------> Done
//!     |                 | ^  | ^
//!     |      PauseAsked v |  v | Chose            Failed, where it can only end here; Chose(give-up)
//!     |            Paused    WaitingForOperator ------------------------------------------> Failed
//!     |  CancelAsked, Failed for good,  |  ^ |  ^
//!     |  Chose(abort)                   v  | v  | UndoFailed            UndoOvertaken
//!     +---------------------------------> Cancelling -----> Running (the other site acted first)
//!                                             | Undone, or nothing to undo
//!                                             v
//!                                   Cancelled; Failed where it turned back because of an error
//! ```
//!
//! *The point of no return*: a claim that was begun may have been seen by the other site; a domain that was taken is gone.
//! From there on a task only goes forwards: cancelling it is refused, and an error leads to a question.
//!
//! Pure and total: any entry in any state gives the next state or an error that says why not, and what is over stays
//! as it is. A step that is `Running` when nobody runs it was cut off: [`next_action`] says to do it again.

use super::event::{Entry, Event, Outcome};
use super::policy::{self, Verdict};
use super::step::Step;
use super::task::{
    Choice, Learned, LogLine, Question, StepRecord, StepState, Task, TaskError, TaskId, TaskState, TurnedBack, bounded,
};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Time;

/// Most steps of a task.
pub const MAX_STEPS: usize = 20_000;
/// Most lines of log that a step keeps, the newest.
pub const MAX_LOG_LINES: usize = 200;
/// Longest line of a log in bytes.
pub const MAX_LINE_LEN: usize = 1024;

/// What is to be done next with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Begin this step, whether or not it was begun before.
    Do(usize),
    /// Begin to undo this step.
    Undo(usize),
    /// This step is not run any more by anybody: note that.
    Settle(usize),
    /// Nothing, until an operator says something.
    Wait,
    /// Nothing any more.
    End,
}

/// What is to be done next, where nobody runs a step of it now.
pub fn next_action(task: &Task) -> Action {
    let running = task.steps.iter().position(|s| s.state == StepState::Running);
    match (&task.state, running) {
        (TaskState::Done | TaskState::Failed { .. } | TaskState::Cancelled, _) => Action::End,
        (TaskState::Paused | TaskState::WaitingForOperator(_), _) => Action::Wait,
        (TaskState::Cancelling { .. }, Some(step)) => Action::Settle(step),
        (TaskState::Cancelling { .. }, None) => undo_next(task).map_or(Action::End, Action::Undo),
        (TaskState::Pending | TaskState::Running, Some(step)) if task.pause => Action::Settle(step),
        (TaskState::Pending | TaskState::Running, _) => match to_do(task) {
            Some(step) => Action::Do(step),
            None => Action::End,
        },
    }
}

/// The first step that is neither done nor left out.
fn to_do(task: &Task) -> Option<usize> {
    task.steps.iter().position(|s| !matches!(s.state, StepState::Done | StepState::Skipped))
}

/// The last step that was begun, must be undone and is not.
fn undo_next(task: &Task) -> Option<usize> {
    task.steps.iter().rposition(|s| s.started.is_some() && s.step.has_undo() && !matches!(s.state, StepState::Undone))
}

/// The step from which on there is no way back, where it was reached.
pub fn point_of_no_return(task: &Task) -> Option<&StepRecord> {
    task.steps.iter().find(|s| match &s.state {
        StepState::Done | StepState::Skipped => s.step.commits_when_done(),
        StepState::Failed { error } if s.step == Step::Claim => !policy::proves_not_claimed(error),
        _ => s.started.is_some() && s.step.commits_when_begun(),
    })
}

/// The task that `entry` makes, its first.
///
/// # Errors
/// `Internal` where it is no first entry.
pub fn submitted(id: TaskId, entry: &Entry) -> Result<Task> {
    let (1, Event::Submitted { request, actor }) = (entry.n, &entry.event) else {
        return Err(Error::new(ErrorKind::Internal, format!("task {id}: its journal does not begin with its request")));
    };
    Ok(Task {
        id,
        kind: request.kind(),
        domain: request.domain().clone(),
        actor: bounded(actor.clone(), MAX_LINE_LEN),
        created: entry.at,
        ended: None,
        request: request.clone(),
        state: TaskState::Pending,
        steps: vec![waiting(Step::Check)],
        learned: Learned::default(),
        progress: None,
        trouble: None,
        entries: 1,
        pause: false,
        turned: None,
        questions: 0,
        asked: 0,
    })
}

fn waiting(step: Step) -> StepRecord {
    StepRecord {
        step,
        state: StepState::Waiting,
        attempts: 0,
        started: None,
        ended: None,
        answer: None,
        log: Vec::new(),
    }
}

/// What `task` becomes by `entry`.
///
/// # Errors
/// `Refused` where it cannot be done in this state, saying why; `Internal` where a journal cannot hold it.
pub fn transition(task: &Task, entry: &Entry) -> Result<Task> {
    let mut next = task.clone();
    advance(&mut next, entry)?;
    Ok(next)
}

/// As [`transition`], in place; a task that it fails for may be half changed.
pub(super) fn advance(task: &mut Task, entry: &Entry) -> Result<()> {
    if entry.n != task.entries + 1 {
        return Err(internal(task, format!("entry {} of its journal follows entry {}", entry.n, task.entries)));
    }
    if task.state.is_terminal() {
        return Err(refused(task, format!("it is over: {}", task.state.word())));
    }
    Turn { task, at: entry.at }.take(&entry.event)?;
    task.entries = entry.n;
    Ok(())
}

fn refused(task: &Task, why: String) -> Error {
    Error::new(ErrorKind::Refused, format!("task {} ({} of domain {}): {why}", task.id, task.kind, task.domain))
}

fn internal(task: &Task, why: String) -> Error {
    Error::new(ErrorKind::Internal, format!("task {} ({} of domain {}): {why}", task.id, task.kind, task.domain))
}

/// One entry being applied. What fails leaves the task to be thrown away.
struct Turn<'a> {
    task: &'a mut Task,
    at: Time,
}

impl Turn<'_> {
    fn take(mut self, event: &Event) -> Result<()> {
        match event {
            Event::Submitted { .. } => Err(internal(self.task, "was submitted before".into())),
            Event::Began { step } => self.began(*step),
            Event::Finished { step, outcome, log } => self.finished(*step, outcome, log),
            Event::Failed { step, error, log } => self.failed(*step, error, log),
            Event::Interrupted { step } => self.interrupted(*step),
            Event::Asked { step, question, log } => self.asked(*step, question, log),
            Event::Chose { choice, question, actor } => self.chose(*choice, *question, actor),
            Event::PauseAsked { actor } => self.pause_asked(actor),
            Event::ResumeAsked { actor } => self.resume_asked(actor),
            Event::CancelAsked { actor } => self.cancel_asked(actor),
            Event::UndoBegan { step } => self.undo_began(*step),
            Event::Undone { step, log } => self.undone(*step, log),
            Event::UndoFailed { step, error } => self.undo_failed(*step, error),
            Event::UndoOvertaken { step, why } => self.undo_overtaken(*step, why),
        }
    }

    fn began(&mut self, step: u32) -> Result<()> {
        let i = step as usize;
        if next_action(self.task) != Action::Do(i) {
            return Err(internal(self.task, format!("step {i} cannot begin now")));
        }
        self.task.state = TaskState::Running;
        let record = &mut self.task.steps[i];
        record.state = StepState::Running;
        record.attempts = record.attempts.saturating_add(1);
        record.started.get_or_insert(self.at);
        Ok(())
    }

    fn finished(&mut self, step: u32, outcome: &Outcome, log: &[String]) -> Result<()> {
        let i = self.running(step)?;
        self.learn(i, outcome)?;
        self.end_step(i, StepState::Done, log);
        if self.task.steps[i].step.commits_when_done() && self.task.turned.take().is_some() {
            self.note(i, "it was to be cancelled; that came too late");
            self.task.state = TaskState::Running;
        }
        self.settle();
        Ok(())
    }

    fn failed(&mut self, step: u32, error: &TaskError, log: &[String]) -> Result<()> {
        let i = self.running(step)?;
        let failed = StepState::Failed { error: error.clone() };
        self.note(i, &error.text);
        self.end_step(i, failed, log);
        if self.task.turned.is_some() {
            self.settle();
            return Ok(());
        }
        let committed = point_of_no_return(self.task).is_some();
        let record = &mut self.task.steps[i];
        match policy::verdict(&record.step, error, record.attempts, committed) {
            Verdict::Retry => {
                record.state = StepState::Retrying { error: error.clone() };
                self.settle();
            }
            Verdict::Ask => {
                let question = policy::question_after(&record.step, error, committed);
                self.ask(i, question);
            }
            Verdict::TurnBack => self.turn_back(Some(error.clone())),
            Verdict::End => self.end(TaskState::Failed { error: error.clone() }),
        }
        Ok(())
    }

    fn interrupted(&mut self, step: u32) -> Result<()> {
        let i = self.running(step)?;
        if !self.task.pause && self.task.turned.is_none() {
            return Err(internal(self.task, format!("nobody asked step {i} to stop")));
        }
        self.end_step(i, StepState::Waiting, &[]);
        self.task.steps[i].attempts = 0;
        self.settle();
        Ok(())
    }

    fn asked(&mut self, step: u32, question: &Question, log: &[String]) -> Result<()> {
        let i = self.running(step)?;
        if question.choices.is_empty() {
            return Err(internal(self.task, format!("step {i} asks without a choice")));
        }
        self.end_step(i, StepState::Waiting, log);
        match self.task.turned.is_some() {
            true => self.settle(),
            false => self.ask(i, question.clone()),
        }
        Ok(())
    }

    fn chose(&mut self, choice: Choice, number: Option<u32>, actor: &str) -> Result<()> {
        let TaskState::WaitingForOperator(question) = &self.task.state else {
            return Err(refused(self.task, format!("it asks nothing, so that {choice} answers nothing")));
        };
        let now = self.task.questions;
        if let Some(number) = number.filter(|number| *number != now) {
            let why =
                format!("{choice} is an answer to its question {number}, and it asks question {now}: look at that");
            return Err(refused(self.task, why));
        }
        if !question.choices.contains(&choice) {
            let may: Vec<&str> = question.choices.iter().map(|c| c.word()).collect();
            return Err(refused(self.task, format!("{choice} is no answer to its question: {}", may.join(", "))));
        }
        if let (Choice::Abort, Some(step)) = (choice, point_of_no_return(self.task)) {
            let why = format!("it is past the point of no return, which is step {}", step.step.word());
            return Err(refused(self.task, why));
        }
        let vms = question.vms.clone();
        let i = self.task.asked;
        if i >= self.task.steps.len() {
            return Err(internal(self.task, format!("its question is about step {i}, which it does not have")));
        }
        self.note(i, &format!("{actor} chose {choice}"));
        let record = &mut self.task.steps[i];
        record.answer = Some((choice, vms));
        record.attempts = 0;
        match (choice, self.task.turned.clone()) {
            (Choice::GiveUp, turned) => {
                let given_up = self.given_up(i, actor, turned);
                self.end(TaskState::Failed { error: given_up });
            }
            (_, Some(turned)) => self.task.state = TaskState::Cancelling { because: turned.because },
            (Choice::Abort, None) => self.turn_back(None),
            (Choice::Skip, None) => {
                self.task.steps[i].state = StepState::Skipped;
                self.task.state = TaskState::Running;
                self.settle();
            }
            (Choice::Retry | Choice::Wait | Choice::PowerOff | Choice::Confirm, None) => {
                self.task.steps[i].state = StepState::Waiting;
                self.task.state = TaskState::Running;
                self.settle();
            }
        }
        Ok(())
    }

    fn given_up(&self, i: usize, actor: &str, turned: Option<TurnedBack>) -> TaskError {
        let record = &self.task.steps[i];
        let because = match &record.state {
            StepState::Failed { error } => Some(error.clone()),
            _ => turned.and_then(|t| t.because),
        };
        let kind = because.as_ref().map_or(ErrorKind::Cancelled, |e| e.kind);
        let why = because.map_or_else(String::new, |e| format!(": {e}"));
        TaskError { kind, text: format!("given up by {actor} at step {}{why}", record.step.word()) }
    }

    fn pause_asked(&mut self, actor: &str) -> Result<()> {
        match &self.task.state {
            TaskState::Pending | TaskState::Running if !self.task.pause => {
                self.task.pause = true;
                self.note_current(&format!("{actor} asked for a pause"));
                self.settle();
                Ok(())
            }
            TaskState::Pending | TaskState::Running | TaskState::Paused => {
                Err(refused(self.task, "it is paused already".into()))
            }
            state => Err(refused(self.task, format!("it cannot be paused while {}", state.word()))),
        }
    }

    fn resume_asked(&mut self, actor: &str) -> Result<()> {
        if !self.task.pause {
            return Err(refused(self.task, format!("it is not paused but {}", self.task.state.word())));
        }
        self.task.pause = false;
        if self.task.state == TaskState::Paused {
            self.task.state = TaskState::Running;
        }
        self.note_current(&format!("{actor} resumed it"));
        Ok(())
    }

    fn cancel_asked(&mut self, actor: &str) -> Result<()> {
        if self.task.turned.is_some() {
            return Err(refused(self.task, "it is being cancelled already".into()));
        }
        if let Some(step) = point_of_no_return(self.task) {
            let why = format!("it is past the point of no return, which is step {}", step.step.word());
            return Err(refused(self.task, why));
        }
        self.note_current(&format!("{actor} cancelled it"));
        self.turn_back(None);
        Ok(())
    }

    fn undo_began(&mut self, step: u32) -> Result<()> {
        let i = step as usize;
        if next_action(self.task) != Action::Undo(i) {
            return Err(internal(self.task, format!("step {i} cannot be undone now")));
        }
        let record = &mut self.task.steps[i];
        record.state = StepState::Undoing;
        record.attempts = record.attempts.saturating_add(1);
        Ok(())
    }

    fn undone(&mut self, step: u32, log: &[String]) -> Result<()> {
        let i = self.undoing(step)?;
        self.end_step(i, StepState::Undone, log);
        self.settle();
        Ok(())
    }

    fn undo_failed(&mut self, step: u32, error: &TaskError) -> Result<()> {
        let i = self.undoing(step)?;
        self.note(i, &error.text);
        let record = &self.task.steps[i];
        if policy::verdict(&record.step, error, record.attempts, true) != Verdict::Retry {
            let question = policy::question_after_undo(&record.step, error);
            self.ask(i, question);
        }
        Ok(())
    }

    fn undo_overtaken(&mut self, step: u32, why: &str) -> Result<()> {
        let i = self.undoing(step)?;
        if self.task.steps[i].step != Step::Release {
            return Err(internal(self.task, format!("nobody can overtake step {i}")));
        }
        self.note(i, why);
        self.end_step(i, StepState::Done, &[]);
        for record in &mut self.task.steps[i + 1..] {
            record.state = StepState::Waiting;
            record.attempts = 0;
        }
        self.task.turned = None;
        self.task.state = TaskState::Running;
        self.settle();
        Ok(())
    }

    /// The step of this number, which must run.
    fn running(&self, step: u32) -> Result<usize> {
        let i = step as usize;
        match self.task.steps.get(i) {
            Some(record) if record.state == StepState::Running => Ok(i),
            _ => Err(internal(self.task, format!("step {i} does not run"))),
        }
    }

    /// The step of this number, which must be on its way to be undone.
    fn undoing(&self, step: u32) -> Result<usize> {
        let i = step as usize;
        match (self.task.steps.get(i), &self.task.state) {
            (Some(record), TaskState::Cancelling { .. }) if record.state == StepState::Undoing => Ok(i),
            _ => Err(internal(self.task, format!("step {i} is not being undone"))),
        }
    }

    fn learn(&mut self, i: usize, outcome: &Outcome) -> Result<()> {
        let task = &mut *self.task;
        let step = &task.steps[i].step;
        match (step, outcome) {
            (Step::Check, Outcome::Checked { owner, generation, vms, excluded, plan, steps }) => {
                if steps.is_empty() || steps.len() >= MAX_STEPS || steps.contains(&Step::Check) {
                    return Err(internal(task, format!("its list of {} steps cannot be", steps.len())));
                }
                task.learned.owner = Some((owner.clone(), *generation));
                task.learned.vms = vms.clone();
                task.learned.excluded = excluded.clone();
                task.learned.plan = plan.clone();
                task.steps.truncate(1);
                task.steps.extend(steps.iter().cloned().map(waiting));
            }
            (Step::AwaitRelease, Outcome::Released { vms, excluded, steps }) => {
                if steps.is_empty() || i + steps.len() >= MAX_STEPS || steps.contains(&Step::Check) {
                    return Err(internal(task, format!("its list of {} steps cannot be", steps.len())));
                }
                task.learned.vms = vms.clone();
                task.learned.excluded = excluded.clone();
                task.steps.truncate(i + 1);
                task.steps.extend(steps.iter().cloned().map(waiting));
            }
            (Step::Rehydrate | Step::Finish, Outcome::Rehydrated { at }) => task.learned.rehydrated = Some(*at),
            (Step::Claim, Outcome::Claimed { generation, base }) => task.learned.claimed = Some((*generation, *base)),
            (Step::Drain, Outcome::Drained { at }) => task.learned.drained = Some(*at),
            (Step::AwaitTaker, Outcome::Taken { by, generation }) => {
                task.learned.taken = Some((by.clone(), *generation));
            }
            (
                Step::Check | Step::Rehydrate | Step::Finish | Step::Claim | Step::Drain | Step::AwaitTaker,
                Outcome::Nothing,
            ) => {
                return Err(internal(task, format!("step {i} ended without what it is for")));
            }
            (_, Outcome::Nothing) => {}
            _ => return Err(internal(task, format!("step {i} found out what it does not look at"))),
        }
        Ok(())
    }

    fn end_step(&mut self, i: usize, state: StepState, log: &[String]) {
        for line in log {
            self.note(i, line);
        }
        let record = &mut self.task.steps[i];
        record.state = state;
        record.ended = Some(self.at);
    }

    fn ask(&mut self, i: usize, question: Question) {
        self.task.asked = i;
        self.task.questions = self.task.questions.saturating_add(1);
        self.task.pause = false;
        self.task.state = TaskState::WaitingForOperator(question);
    }

    fn turn_back(&mut self, because: Option<TaskError>) {
        self.task.turned = Some(TurnedBack { because: because.clone() });
        self.task.pause = false;
        self.task.state = TaskState::Cancelling { because };
        for record in &mut self.task.steps {
            record.attempts = 0;
        }
        self.settle();
    }

    fn end(&mut self, state: TaskState) {
        self.task.state = state;
        self.task.ended = Some(self.at);
        self.task.pause = false;
    }

    /// The state that follows where no step runs any more: the end, a pause, or as it is.
    fn settle(&mut self) {
        if self.task.steps.iter().any(|s| s.state == StepState::Running) {
            return;
        }
        match self.task.turned.clone() {
            Some(_) if undo_next(self.task).is_some() => {}
            Some(TurnedBack { because: None }) => self.end(TaskState::Cancelled),
            Some(TurnedBack { because: Some(error) }) => self.end(TaskState::Failed { error }),
            None if to_do(self.task).is_none() => self.end(TaskState::Done),
            None if self.task.pause => self.task.state = TaskState::Paused,
            None => {}
        }
    }

    fn note_current(&mut self, text: &str) {
        let at = self.task.current().map(|(i, _)| i).or_else(|| to_do(self.task));
        if let Some(i) = at {
            self.note(i, text);
        }
    }

    fn note(&mut self, i: usize, text: &str) {
        let log = &mut self.task.steps[i].log;
        if log.len() == MAX_LOG_LINES {
            log.remove(0);
        }
        log.push(LogLine { at: self.at, text: bounded(text.to_owned(), MAX_LINE_LEN) });
    }
}
