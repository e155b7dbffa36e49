//! Where a process is killed or a call fails: at its n-th moment. A moment is before and after each call, and before and
//! after each entry of the journal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::failover::event::Entry;
use crate::failover::journal::{Abandoned, Journal, Kept, Once};
use crate::failover::task::TaskId;

/// What happens at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// The process ends: nothing it does from here on has an effect, and nothing answers it.
    Kill,
    /// The call fails with this kind, before or after its effect as the moment has it.
    Fail(ErrorKind),
}

/// What happens, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    /// Moment, from 1.
    pub(crate) at: u64,
    pub(crate) what: What,
}

/// Counts the moments of one process.
pub(crate) struct Faults {
    state: Mutex<(u64, Option<Fault>, Option<String>)>,
    dead: AtomicBool,
}

impl Faults {
    pub(crate) fn new(fault: Option<Fault>) -> Arc<Faults> {
        Arc::new(Faults { state: Mutex::new((0, fault, None)), dead: AtomicBool::new(false) })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Where the fault struck, if it did.
    pub(crate) fn struck(&self) -> Option<String> {
        self.state.lock().unwrap().2.clone()
    }

    /// The next moment. Fails where the fault says so; whether the process still lives otherwise.
    fn next(&self, place: &str, journal: bool) -> Result<bool> {
        if self.is_dead() {
            return Ok(false);
        }
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        let Some(fault) = state.1.filter(|f| f.at == state.0) else { return Ok(true) };
        state.2 = Some(format!("{:?} at moment {}, {place}", fault.what, fault.at));
        match fault.what {
            What::Kill => {
                self.dead.store(true, Ordering::SeqCst);
                Ok(false)
            }
            What::Fail(_) if journal => Err(Error::new(ErrorKind::Io, format!("injected at {place}"))),
            What::Fail(kind) => Err(Error::new(kind, format!("injected at {place}"))),
        }
    }

    /// A moment of a call: a dead process never gets past it. Others have their turn at each, as they would while a real call
    /// is under way.
    pub(crate) async fn moment(&self, place: &str) -> Result<()> {
        tokio::task::yield_now().await;
        match self.next(place, false)? {
            true => Ok(()),
            false => std::future::pending().await,
        }
    }
}

/// A journal whose writer can be killed before and after each entry.
pub(crate) struct GatedJournal {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) faults: Arc<Faults>,
}

impl GatedJournal {
    fn gate(&self, place: &str) -> Result<()> {
        match self.faults.next(place, true)? {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Io, "the process is dead")),
        }
    }
}

impl Journal for GatedJournal {
    fn append(&self, task: TaskId, entry: &Entry) -> Result<u64> {
        self.gate(&format!("before entry {:?}", entry.event))?;
        let n = self.journal.append(task, entry)?;
        self.gate(&format!("after entry {:?}", entry.event))?;
        Ok(n)
    }

    fn begin(&self, task: TaskId, entry: &Entry, once: &Once) -> Result<u64> {
        self.gate(&format!("before entry {:?}", entry.event))?;
        let n = self.journal.begin(task, entry, once)?;
        self.gate(&format!("after entry {:?}", entry.event))?;
        Ok(n)
    }

    fn load(&self) -> Result<Kept> {
        self.journal.load()
    }

    fn abandon(&self, task: TaskId, abandoned: &Abandoned) -> Result<()> {
        self.journal.abandon(task, abandoned)
    }
}
