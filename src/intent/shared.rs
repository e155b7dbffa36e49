//! What callers and the commit thread share: the pages behind their locks, what there is to commit, and whether the
//! bitmap is poisoned.
//!
//! A page's lock is held for as long as it takes to look at the regions of one write, or at the entries of one page; never
//! while anything is written or waited for, and never two at a time.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{INTENT_PAGE_REGIONS, IntentHeader, IntentShape};

use super::page::{End, Page};

/// What the commit thread is asked for.
#[derive(Debug, Default)]
struct Asked {
    /// Somebody waits.
    now: bool,
    /// Since when bits are cleared in memory only.
    cleared: Option<Instant>,
    closing: bool,
}

/// What the commit thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Write what changed.
    Commit,
    /// The same, and end.
    CommitAndEnd,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Shared {
    path: PathBuf,
    header: IntentHeader,
    shape: IntentShape,
    pages: Box<[Mutex<Page>]>,
    asked: Mutex<Asked>,
    wake: Condvar,
    /// Commits that are done, well or badly; each wakes those who wait for one.
    rounds: watch::Sender<u64>,
    poison: OnceLock<String>,
    disk_sync_failed: OnceLock<String>,
    syncs: AtomicU64,
    cleared: AtomicU64,
}

impl Shared {
    /// The bitmap that the file at `path`, which `header` begins, holds durably.
    pub(super) fn new(path: &Path, header: IntentHeader, shape: IntentShape, pages: Vec<Page>) -> Shared {
        Shared {
            path: path.to_owned(),
            header,
            shape,
            pages: pages.into_iter().map(Mutex::new).collect(),
            asked: Mutex::default(),
            wake: Condvar::new(),
            rounds: watch::Sender::new(0),
            poison: OnceLock::new(),
            disk_sync_failed: OnceLock::new(),
            syncs: AtomicU64::new(0),
            cleared: AtomicU64::new(0),
        }
    }

    pub(super) fn header(&self) -> &IntentHeader {
        &self.header
    }

    pub(super) fn shape(&self) -> &IntentShape {
        &self.shape
    }

    /// The pages in order; each is locked on its own.
    pub(super) fn pages(&self) -> impl Iterator<Item = (u32, MutexGuard<'_, Page>)> {
        (0..).zip(self.pages.iter().map(lock))
    }

    /// One page, locked; `None` past the last.
    pub(super) fn page(&self, page: u32) -> Option<MutexGuard<'_, Page>> {
        self.pages.get(page as usize).map(lock)
    }

    /// `regions` page by page, with the numbers that the page counts them by.
    fn by_page(&self, regions: Range<u32>) -> impl Iterator<Item = (MutexGuard<'_, Page>, Range<u32>)> {
        let first = regions.start / INTENT_PAGE_REGIONS;
        let last = regions.end.div_ceil(INTENT_PAGE_REGIONS);
        (first..last).filter_map(move |page| {
            let base = page * INTENT_PAGE_REGIONS;
            let start = regions.start.max(base) - base;
            let end = regions.end.min(base + INTENT_PAGE_REGIONS) - base;
            self.page(page).map(|p| (p, start..end))
        })
    }

    /// See [`Page::begin`].
    pub(super) fn begin(&self, regions: Range<u32>) -> bool {
        self.by_page(regions).fold(true, |marked, (mut page, part)| page.begin(part) && marked)
    }

    /// See [`Page::is_marked`].
    pub(super) fn is_marked(&self, regions: Range<u32>) -> bool {
        self.by_page(regions).all(|(page, part)| page.is_marked(part))
    }

    /// See [`Page::end`].
    pub(super) fn end(&self, regions: Range<u32>, end: End) {
        self.by_page(regions).for_each(|(mut page, part)| page.end(part, end));
    }

    /// The page of `region` and its number there; `None` past the last.
    pub(super) fn region(&self, region: u32) -> Option<(MutexGuard<'_, Page>, u32)> {
        (region < self.shape.regions()).then_some(())?;
        self.page(region / INTENT_PAGE_REGIONS).map(|page| (page, region % INTENT_PAGE_REGIONS))
    }

    /// Told of every commit from now on.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.rounds.subscribe()
    }

    /// Somebody waits for a commit of what is set now.
    pub(super) fn commit_soon(&self) {
        lock(&self.asked).now = true;
        self.wake.notify_one();
    }

    /// `cleared` bits are cleared in memory; the file learns of it by and by.
    pub(super) fn note_cleared(&self, cleared: u64) {
        self.cleared.fetch_add(cleared, Ordering::Relaxed);
        lock(&self.asked).cleared.get_or_insert_with(Instant::now);
        self.wake.notify_one();
    }

    /// The commit thread is to end.
    pub(super) fn close(&self) {
        lock(&self.asked).closing = true;
        self.wake.notify_one();
    }

    /// Waits until there is something to do. What is cleared only is written after `patience`, or with what is urgent.
    pub(super) fn next(&self, patience: Duration) -> Next {
        let mut asked = lock(&self.asked);
        loop {
            let rest = asked.cleared.map(|since| patience.saturating_sub(since.elapsed()));
            if asked.closing || asked.now || rest.is_some_and(|rest| rest.is_zero()) {
                let next = if asked.closing { Next::CommitAndEnd } else { Next::Commit };
                (asked.now, asked.cleared) = (false, None);
                return next;
            }
            asked = match rest {
                None => self.wake.wait(asked).unwrap_or_else(PoisonError::into_inner),
                Some(rest) => self.wake.wait_timeout(asked, rest).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// A commit is over: those who wait look again.
    pub(super) fn round_done(&self) {
        self.rounds.send_modify(|n| *n += 1);
    }

    /// A sync of the file is about to be made.
    pub(super) fn count_sync(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    /// Syncs of the file so far.
    pub(super) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Bits cleared so far.
    pub(super) fn cleared(&self) -> u64 {
        self.cleared.load(Ordering::Relaxed)
    }

    /// Nothing of the file is trusted any more; `why` is the first reason.
    pub(super) fn poison(&self, why: String) {
        tracing::error!(path = %self.path.display(), why, "write-intent bitmap is not trusted any more");
        let _ = self.poison.set(why);
        self.round_done();
    }

    /// Fails once the bitmap is poisoned.
    pub(super) fn check(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some(why) => {
                let path = self.path.display();
                let what = format!("write-intent bitmap {path}: {why}; nothing can be marked until it is opened again");
                Err(Error::new(ErrorKind::Io, what))
            }
        }
    }

    /// A sync of the guest's disk failed.
    pub(super) fn disk_sync_failed(&self, why: String) {
        let _ = self.disk_sync_failed.set(why);
    }

    /// Fails once a sync of the guest's disk has failed.
    pub(super) fn check_disk(&self) -> Result<()> {
        match self.disk_sync_failed.get() {
            None => Ok(()),
            Some(why) => {
                let what = format!(
                    "disk {}: a sync failed ({why}); its regions stay dirty until it is opened again",
                    self.header.disk
                );
                Err(Error::new(ErrorKind::Io, what))
            }
        }
    }
}

/// A lock whose holders change what it guards in steps that cannot panic between two of them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
