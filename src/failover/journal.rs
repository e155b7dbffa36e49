//! Where what happened to tasks is kept: durable before it is acted on.
//!
//! A task whose journal cannot be read can be given up by an administrator; its entries stay, for whoever looks into it.
//!
//! Invariant: a task's entries are numbered 1, 2, 3, ... without gaps, and none is ever changed. Appending the same entry
//! again is no error, so that an append whose acknowledgement was lost can be repeated.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::event::Entry;
use super::task::TaskId;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Time;

/// That a task was given up, since its journal cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Abandoned {
    /// When.
    pub at: Time,
    /// By whom.
    pub actor: String,
    /// What was wrong with its journal.
    pub why: String,
}

/// A request that is to begin one task, however often it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Once {
    /// Its id, drawn by whoever asks.
    pub id: String,
    /// Digest of what it asks for: the same id with another one is another request.
    pub digest: String,
}

/// What a journal holds.
#[derive(Debug, Default)]
pub struct Kept {
    /// All entries of all tasks, those of one task in order; one that cannot be read is an error in its place.
    pub entries: Vec<(TaskId, Result<Entry>)>,
    /// Tasks that were given up.
    pub abandoned: BTreeMap<TaskId, Abandoned>,
}

/// A durable list of entries for each task. Calls may block: they are made off the asynchronous threads.
pub trait Journal: Send + Sync {
    /// Keeps `entry` as number [`Entry::n`] of `task`, durable when it returns, and answers with that number. The same
    /// entry once more changes nothing.
    ///
    /// # Errors
    /// `Internal` where another entry has that number or the one before is missing; `Io`, `Full` where it cannot be kept.
    fn append(&self, task: TaskId, entry: &Entry) -> Result<u64>;

    /// Keeps `entry` as the first of `task`, and that the request `once` began it: both are durable when this returns, or
    /// neither is kept. The same once more changes nothing.
    ///
    /// # Errors
    /// As [`append`](Journal::append); `Refused` where the request began another task.
    fn begin(&self, task: TaskId, entry: &Entry, once: &Once) -> Result<u64>;

    /// All that it holds.
    ///
    /// # Errors
    /// `Damaged`, `Io` where it cannot be read at all.
    fn load(&self) -> Result<Kept>;

    /// Keeps that a task was given up, durable when it returns. Again for the same task, nothing changes.
    ///
    /// # Errors
    /// `Io`, `Full` where it cannot be kept.
    fn abandon(&self, task: TaskId, abandoned: &Abandoned) -> Result<()>;
}

/// A request that has begun its task begins no other.
pub(crate) fn began_another(once: &Once) -> Error {
    Error::new(ErrorKind::Refused, format!("request {} has begun another task", once.id))
}

/// A journal in memory, for tests and for trying things out. It keeps the text of entries, as a real one does.
#[derive(Debug, Default)]
pub struct MemoryJournal {
    tasks: Mutex<BTreeMap<TaskId, Vec<String>>>,
    requests: Mutex<BTreeMap<String, TaskId>>,
    abandoned: Mutex<BTreeMap<TaskId, Abandoned>>,
}

impl MemoryJournal {
    /// An empty one.
    pub fn new() -> MemoryJournal {
        MemoryJournal::default()
    }

    /// The task that a request began.
    #[cfg(test)]
    pub(super) fn began_by(&self, request: &str) -> Option<TaskId> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).get(request).copied()
    }

    /// Replaces the text of an entry, as damage would.
    #[cfg(test)]
    pub(super) fn damage(&self, task: TaskId, n: usize, text: &str) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone_into(&mut tasks.get_mut(&task).expect("there is such a task")[n - 1]);
    }
}

impl Journal for MemoryJournal {
    fn append(&self, task: TaskId, entry: &Entry) -> Result<u64> {
        let text = entry.to_text()?;
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = tasks.entry(task).or_default();
        let at = usize::try_from(entry.n).unwrap_or(usize::MAX);
        let wrong = |why: &str| {
            let have = entries.len();
            Error::new(ErrorKind::Internal, format!("task {task}: entry {at} of its journal {why}; it has {have}"))
        };
        match (at.checked_sub(1).and_then(|i| entries.get(i)), at == entries.len() + 1) {
            (Some(there), _) if *there == text => Ok(entry.n),
            (Some(_), _) => Err(wrong("is another one")),
            (None, true) => {
                entries.push(text);
                Ok(entry.n)
            }
            (None, false) => Err(wrong("does not follow the last")),
        }
    }

    fn begin(&self, task: TaskId, entry: &Entry, once: &Once) -> Result<u64> {
        // Held over both: nobody sees one without the other.
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if requests.get(&once.id).is_some_and(|other| *other != task) {
            return Err(began_another(once));
        }
        let n = self.append(task, entry)?;
        requests.insert(once.id.clone(), task);
        Ok(n)
    }

    fn load(&self) -> Result<Kept> {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let all = tasks.iter().flat_map(|(id, entries)| entries.iter().map(move |text| (*id, text)));
        let entries = all.map(|(id, text)| (id, Entry::from_text(text))).collect();
        let abandoned = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Kept { entries, abandoned })
    }

    fn abandon(&self, task: TaskId, abandoned: &Abandoned) -> Result<()> {
        let mut all = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(task).or_insert_with(|| abandoned.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::event::Event;

    #[test]
    fn entries_are_kept_once_and_without_gaps() {
        let journal = MemoryJournal::new();
        let id = TaskId::new(Time::from_millis(1));
        let began = |n, step| Entry::new(n, Time::from_millis(5), Event::Began { step });
        assert_eq!(journal.append(id, &began(1, 0)).unwrap(), 1);
        assert_eq!(journal.append(id, &began(1, 0)).unwrap(), 1);
        assert_eq!(journal.append(id, &began(1, 7)).unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(journal.append(id, &began(3, 0)).unwrap_err().kind(), ErrorKind::Internal);
        assert_eq!(journal.append(id, &began(0, 0)).unwrap_err().kind(), ErrorKind::Internal);
        journal.append(id, &began(2, 1)).unwrap();
        let kept: Vec<_> = journal.load().unwrap().entries.into_iter().map(|(id, e)| (id, e.unwrap())).collect();
        assert_eq!(kept, [(id, began(1, 0)), (id, began(2, 1))]);
    }
}
