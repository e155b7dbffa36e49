//! What happened to a task, as it is journaled.
//!
//! Entries are text of one line (JSON), so that an operator can read a journal. Each repeats the version of its format and
//! its number within the task; what is not known is refused and never skipped, since a task that goes on without
//! knowing what was done could do it twice. The format is pinned by a test with the text of every kind of entry.

use serde::{Deserialize, Serialize};

use super::plan::FailoverPlan;
use super::request::Request;
use super::step::Step;
use super::task::{Choice, Question, TaskError};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Generation, Name, SegmentRef, Time};

/// Version of the entries.
pub const ENTRY_VERSION: u32 = 1;
/// Most bytes of an entry.
pub const MAX_ENTRY_LEN: usize = 8 << 20;

/// What a step found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// Nothing that later steps go by.
    Nothing,
    /// The domain was looked at.
    Checked {
        /// Who owned it.
        owner: Name,
        /// That owner's generation.
        generation: Generation,
        /// VMs that take part.
        vms: Vec<Name>,
        /// VMs that do not, each with the reason.
        excluded: Vec<(Name, String)>,
        /// The plan that later steps go by, where it does not stand in the request.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        plan: Option<Box<FailoverPlan>>,
        /// The steps from here on.
        steps: Vec<Step>,
    },
    /// The domain was released, with other VMs than were found when it was looked at.
    Released {
        /// VMs that take part.
        vms: Vec<Name>,
        /// VMs that do not, each with the reason.
        excluded: Vec<(Name, String)>,
        /// The steps from here on.
        steps: Vec<Step>,
    },
    /// Disks equal this point.
    Rehydrated {
        /// The point.
        at: SegmentRef,
    },
    /// The domain belongs to this site.
    Claimed {
        /// The generation that was claimed.
        generation: Generation,
        /// The last segment that it inherits.
        base: SegmentRef,
    },
    /// All that guests wrote is part of the domain.
    Drained {
        /// The final point.
        at: SegmentRef,
    },
    /// Another site has the domain.
    Taken {
        /// Which.
        by: Name,
        /// Its generation.
        generation: Generation,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// The task was accepted. Always the first, and only that.
    Submitted {
        /// What it is to do.
        request: Request,
        /// Who asked for it.
        actor: String,
    },
    /// A step is about to be done.
    Began {
        /// Which, from 0.
        step: u32,
    },
    /// It was done.
    Finished {
        /// Which.
        step: u32,
        /// What it found out.
        outcome: Outcome,
        /// What it told.
        #[serde(default)]
        log: Vec<String>,
    },
    /// It failed.
    Failed {
        /// Which.
        step: u32,
        /// Why.
        error: TaskError,
        /// What it told.
        #[serde(default)]
        log: Vec<String>,
    },
    /// It stopped early because it was asked to, and can go on.
    Interrupted {
        /// Which.
        step: u32,
    },
    /// It cannot go on without an operator.
    Asked {
        /// Which.
        step: u32,
        /// The question.
        question: Question,
        /// What it told.
        #[serde(default)]
        log: Vec<String>,
    },
    /// An operator answered.
    Chose {
        /// What.
        choice: Choice,
        /// Which of the task's questions that is an answer to, from 1; absent in what was written before they had numbers,
        /// which then is an answer to the one that stands.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        question: Option<u32>,
        /// Who.
        actor: String,
    },
    /// An operator wants it to stand still.
    PauseAsked {
        /// Who.
        actor: String,
    },
    /// An operator wants it to go on.
    ResumeAsked {
        /// Who.
        actor: String,
    },
    /// An operator wants what it did undone.
    CancelAsked {
        /// Who.
        actor: String,
    },
    /// A step is about to be undone.
    UndoBegan {
        /// Which.
        step: u32,
    },
    /// It was undone.
    Undone {
        /// Which.
        step: u32,
        /// What undoing told.
        #[serde(default)]
        log: Vec<String>,
    },
    /// Undoing it failed.
    UndoFailed {
        /// Which.
        step: u32,
        /// Why.
        error: TaskError,
    },
    /// It cannot be undone any more, since the other site acted first: the task goes on forwards.
    UndoOvertaken {
        /// Which.
        step: u32,
        /// By what.
        why: String,
    },
}

/// One entry of a task's journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// [`ENTRY_VERSION`].
    pub version: u32,
    /// Its number within the task; the first is 1.
    pub n: u64,
    /// When it happened.
    pub at: Time,
    /// What happened.
    pub event: Event,
}

impl Entry {
    /// The `n`-th of its task.
    pub fn new(n: u64, at: Time, event: Event) -> Entry {
        Entry { version: ENTRY_VERSION, n, at, event }
    }

    /// As a journal keeps it: one line, without a newline.
    ///
    /// # Errors
    /// `Invalid` where it is larger than [`MAX_ENTRY_LEN`].
    pub fn to_text(&self) -> Result<String> {
        let text = serde_json::to_string(self)
            .map_err(|e| Error::with_source(ErrorKind::Internal, "an entry of the journal has no text", e))?;
        match text.len() <= MAX_ENTRY_LEN {
            true => Ok(text),
            false => {
                let why = format!("an entry of the journal has {} bytes, at most {MAX_ENTRY_LEN} are kept", text.len());
                Err(Error::new(ErrorKind::Invalid, why))
            }
        }
    }

    /// From the text of [`Entry::to_text`].
    ///
    /// # Errors
    /// `Unsupported` for another version; `Damaged` for what is no entry.
    pub fn from_text(text: &str) -> Result<Entry> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        if text.len() > MAX_ENTRY_LEN {
            let why = format!("an entry of the journal has {} bytes, at most {MAX_ENTRY_LEN} can be", text.len());
            return Err(Error::new(ErrorKind::Damaged, why));
        }
        let damaged =
            |e: serde_json::Error| Error::with_source(ErrorKind::Damaged, "an entry of the journal cannot be read", e);
        let head: Head = serde_json::from_str(text).map_err(damaged)?;
        if head.version != ENTRY_VERSION {
            let why = format!("an entry of the journal has version {}: use a newer freshet", head.version);
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        serde_json::from_str(text).map_err(damaged)
    }
}
