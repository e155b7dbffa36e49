//! A task: a long operation with journaled steps, as everybody who looks at it sees it.
//!
//! Plain data. What changes it is the transition function alone, and the progress of the step that runs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::plan::FailoverPlan;
use super::request::{Command, Request};
use super::step::Step;
use crate::error::{Error, ErrorKind};
use crate::ids::{Generation, Name, SegmentRef, Time, uuid_id};

uuid_id!(
    /// Identity of a task: a UUID of version 7, so that they sort by the time at which they were made.
    TaskId
);

impl TaskId {
    /// A fresh one, made at `now`.
    pub fn new(now: Time) -> TaskId {
        let drawn = uuid::Uuid::new_v4();
        let mut random = [0; 10];
        random.copy_from_slice(&drawn.as_bytes()[6..]);
        let made = uuid::Builder::from_unix_timestamp_millis(now.millis(), &random);
        TaskId::from_bytes(*made.as_uuid().as_bytes())
    }
}

/// How a continuous failover is completed, and whether an as-needed one asks the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Completion {
    /// The owner shuts its guests down and releases the domain: nothing is lost.
    Planned,
    /// The domain is taken at once, whatever its owner does.
    Forced,
}

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// Recover the domain here now.
    Failover,
    /// Keep disks here that follow the domain.
    ContinuousFailover,
    /// Run the domain here, on the disks that follow it.
    Complete {
        /// With or without the owner.
        how: Completion,
    },
    /// Give the domain to the site that asks for it.
    HandOver,
    /// Recover the domain at the site that it is at home at.
    Failback,
    /// Keep disks at the home site that follow the domain.
    ContinuousFailback,
    /// End following, and forget what there is of the domain here.
    Forget,
}

impl TaskKind {
    /// One word, for messages and programs.
    pub fn word(self) -> &'static str {
        match self {
            TaskKind::Failover => "failover",
            TaskKind::ContinuousFailover => "continuous-failover",
            TaskKind::Complete { how: Completion::Planned } => "complete-planned",
            TaskKind::Complete { how: Completion::Forced } => "complete-forced",
            TaskKind::HandOver => "hand-over",
            TaskKind::Failback => "failback",
            TaskKind::ContinuousFailback => "continuous-failback",
            TaskKind::Forget => "forget",
        }
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// An error as it is journaled: the kind, and the whole chain in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskError {
    /// What the operator must do.
    pub kind: ErrorKind,
    /// In words.
    pub text: String,
}

/// Longest text of an error in bytes; the rest is cut off.
const MAX_ERROR_TEXT: usize = 4096;

impl TaskError {
    /// Of `error`, bounded.
    pub fn of(error: &Error) -> TaskError {
        TaskError { kind: error.kind(), text: bounded(error.to_string(), MAX_ERROR_TEXT) }
    }

    /// As an error again.
    pub fn to_error(&self) -> Error {
        Error::new(self.kind, self.text.clone())
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `text`, cut at a character boundary to at most `most` bytes, with a mark where something is missing.
pub(super) fn bounded(mut text: String, most: usize) -> String {
    if text.len() > most {
        let mut end = most;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}

/// What an operator may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// Try the step again.
    Retry,
    /// Go on as if the step were done.
    Skip,
    /// Wait as long once more.
    Wait,
    /// Switch off the guests that the question names.
    PowerOff,
    /// Go on: what was asked for was done or seen.
    Confirm,
    /// Undo what the task did, and end it.
    Abort,
    /// End the task where it stands; the question says what stays.
    GiveUp,
}

impl Choice {
    /// All of them.
    pub const ALL: [Choice; 7] =
        [Choice::Retry, Choice::Skip, Choice::Wait, Choice::PowerOff, Choice::Confirm, Choice::Abort, Choice::GiveUp];

    /// One word, as it is typed.
    pub fn word(self) -> &'static str {
        match self {
            Choice::Retry => "retry",
            Choice::Skip => "skip",
            Choice::Wait => "wait",
            Choice::PowerOff => "power-off",
            Choice::Confirm => "confirm",
            Choice::Abort => "abort",
            Choice::GiveUp => "give-up",
        }
    }

    /// The choice of this word.
    pub fn from_word(word: &str) -> Option<Choice> {
        Choice::ALL.into_iter().find(|c| c.word() == word)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What only an operator can decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// In words: what happened, and what each choice does.
    pub text: String,
    /// What may be answered, at least one.
    pub choices: Vec<Choice>,
    /// VMs that it is about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vms: Vec<Name>,
}

/// Where a task stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// Accepted, nothing done yet.
    Pending,
    /// A step runs, or the next one is about to.
    Running,
    /// Stands still between two steps until it is resumed.
    Paused,
    /// Stands still until a choice is made.
    WaitingForOperator(Question),
    /// What it did is undone, last step first. `because` is why, where nobody asked for it.
    Cancelling {
        /// The error that made it turn back; `None` where it was cancelled.
        because: Option<TaskError>,
    },
    /// Everything was done.
    Done,
    /// It ended with an error.
    Failed {
        /// Which.
        error: TaskError,
    },
    /// Cancelled, and undone.
    Cancelled,
}

impl TaskState {
    /// The words of all of them.
    pub const WORDS: [&str; 8] =
        ["pending", "running", "paused", "waiting-for-operator", "cancelling", "done", "failed", "cancelled"];

    /// Nothing changes it any more.
    pub fn is_terminal(&self) -> bool {
        matches!(self, TaskState::Done | TaskState::Failed { .. } | TaskState::Cancelled)
    }

    /// One word, for messages and programs.
    pub fn word(&self) -> &'static str {
        match self {
            TaskState::Pending => "pending",
            TaskState::Running => "running",
            TaskState::Paused => "paused",
            TaskState::WaitingForOperator(_) => "waiting-for-operator",
            TaskState::Cancelling { .. } => "cancelling",
            TaskState::Done => "done",
            TaskState::Failed { .. } => "failed",
            TaskState::Cancelled => "cancelled",
        }
    }
}

/// Where a step stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepState {
    /// Not begun.
    Waiting,
    /// It runs, or ran when the process ended.
    Running,
    /// It failed and is tried again.
    Retrying {
        /// Why it failed last.
        error: TaskError,
    },
    /// Done.
    Done,
    /// Left out, as an operator or the runbook said.
    Skipped,
    /// It failed for good.
    Failed {
        /// Why.
        error: TaskError,
    },
    /// It is being undone, or was when the process ended.
    Undoing,
    /// Undone.
    Undone,
}

impl StepState {
    /// One word, for messages and programs.
    pub fn word(&self) -> &'static str {
        match self {
            StepState::Waiting => "waiting",
            StepState::Running => "running",
            StepState::Retrying { .. } => "retrying",
            StepState::Done => "done",
            StepState::Skipped => "skipped",
            StepState::Failed { .. } => "failed",
            StepState::Undoing => "undoing",
            StepState::Undone => "undone",
        }
    }
}

/// A line of a step's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When it was journaled.
    pub at: Time,
    /// In words.
    pub text: String,
}

/// One step of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRecord {
    /// What it does.
    pub step: Step,
    /// Where it stands.
    pub state: StepState,
    /// How often it was begun since the last answer of an operator; undoing counts anew.
    pub attempts: u32,
    /// When it was begun first.
    pub started: Option<Time>,
    /// When it ended last.
    pub ended: Option<Time>,
    /// The last answer about it, and the VMs that the question named.
    pub answer: Option<(Choice, Vec<Name>)>,
    /// What it told, the newest lines.
    pub log: Vec<LogLine>,
}

/// How far one disk of the step that runs is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DiskProgress {
    /// `vm/disk`.
    pub disk: String,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all, as far as they are known.
    pub total_bytes: u64,
    /// Bytes a second, over the same time as those of the whole; 0 where nothing moved.
    pub bytes_per_second: f64,
    /// Seconds left at that rate; `None` where it cannot be told.
    pub eta_seconds: Option<f64>,
}

/// How far the step that runs is. Not journaled: it is measured.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TaskProgress {
    /// What is being done, in a few words.
    pub stage: &'static str,
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all; 0 while not known.
    pub total_bytes: u64,
    /// Bytes a second, over the last half minute; 0 before anything was measured.
    pub bytes_per_second: f64,
    /// Seconds left at that rate; `None` where it cannot be told.
    pub eta_seconds: Option<f64>,
    /// Seconds over which the rate was measured, at most thirty: what the time left is based on.
    pub measured_seconds: f64,
    /// The same for each disk, where the step counts by disks.
    pub disks: Vec<DiskProgress>,
}

/// What steps found out and later steps go by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Learned {
    /// Owner and generation when the task began.
    pub owner: Option<(Name, Generation)>,
    /// The plan that steps go by, where it does not stand in the request.
    pub plan: Option<Box<FailoverPlan>>,
    /// VMs that take part.
    pub vms: Vec<Name>,
    /// VMs that were left out, each with the reason.
    pub excluded: Vec<(Name, String)>,
    /// The point that the disks were brought to last.
    pub rehydrated: Option<SegmentRef>,
    /// Generation and base of this site's claim.
    pub claimed: Option<(Generation, SegmentRef)>,
    /// The final point of a hand-over.
    pub drained: Option<SegmentRef>,
    /// The site that took the domain, and its generation.
    pub taken: Option<(Name, Generation)>,
}

/// A task.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Identity.
    pub id: TaskId,
    /// What it does.
    pub kind: TaskKind,
    /// The domain that it is about.
    pub domain: Name,
    /// Who asked for it.
    pub actor: String,
    /// When.
    pub created: Time,
    /// When it ended.
    pub ended: Option<Time>,
    /// What it was asked to do.
    pub request: Request,
    /// Where it stands.
    pub state: TaskState,
    /// Its steps, in order; more may be known after the first.
    pub steps: Vec<StepRecord>,
    /// What steps found out.
    pub learned: Learned,
    /// How far the step that runs is.
    pub progress: Option<TaskProgress>,
    /// Why it stands still though it should not, such as a journal that cannot be written.
    pub trouble: Option<String>,
    /// Entries of the journal that made it what it is.
    pub entries: u64,
    /// It is to stand still after the step that runs.
    pub(super) pause: bool,
    /// It turned back: what it did is undone.
    pub(super) turned: Option<TurnedBack>,
    /// Questions that it has asked, the one that it waits with included: that one's number.
    pub questions: u32,
    /// The step that its question is about.
    pub(super) asked: usize,
}

/// Why a task turned back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TurnedBack {
    /// The error; `None` where it was cancelled.
    pub(super) because: Option<TaskError>,
}

impl Task {
    /// The question that it waits with.
    pub fn question(&self) -> Option<&Question> {
        match &self.state {
            TaskState::WaitingForOperator(question) => Some(question),
            _ => None,
        }
    }

    /// The plan that its steps go by; none of a hand-over after which nothing follows, and while it is not known yet.
    pub fn plan(&self) -> Option<&FailoverPlan> {
        match (&self.learned.plan, &self.request) {
            (Some(plan), _) => Some(plan),
            (None, Request::Plan(plan)) => Some(plan),
            (None, _) => None,
        }
    }

    /// The error that it ended with.
    pub fn error(&self) -> Option<&TaskError> {
        match &self.state {
            TaskState::Failed { error } => Some(error),
            _ => None,
        }
    }

    /// Whether it was told this already, and is about it: once more would change nothing.
    pub fn is_told(&self, command: Command) -> bool {
        match command {
            Command::Cancel => self.turned.is_some(),
            Command::Pause => self.pause,
            Command::Resume => !self.pause,
            Command::Choose { .. } => false,
        }
    }

    /// The step that runs, is tried again or is being undone.
    pub fn current(&self) -> Option<(usize, &StepRecord)> {
        let active = |s: &StepState| matches!(s, StepState::Running | StepState::Retrying { .. } | StepState::Undoing);
        self.steps.iter().enumerate().find(|(_, s)| active(&s.state))
    }
}
