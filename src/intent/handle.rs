//! The handle that callers have of one disk's open bitmap.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::{INTENT_PAGE_REGIONS, IntentShape};
use crate::ids::SegmentNo;

use super::commit;
use super::mark::WriteMark;
use super::open::{Found, IntentIdentity, IntentOptions, open};
use super::page::{Candidate, Page};
use super::rule::{Clause, Rule};
use super::shared::Shared;

/// Most calls that a region may have to be quiet.
const MOST_QUIET_CALLS: u32 = 100_000;

/// An open write-intent bitmap. See the module's head for the rule. Dropping it writes what is cleared in memory only,
/// and waits for that.
#[derive(Debug)]
pub struct Intent {
    shared: Arc<Shared>,
    rule: Rule,
    quiet_calls: u32,
    thread: Option<JoinHandle<()>>,
}

/// Figures of one disk, for status and reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntentReport {
    /// Bytes of a region.
    pub region_bytes: u64,
    /// Bytes of the disk in regions that are set: what a crash now would resync.
    pub dirty_bytes: u64,
    /// Bytes of the disk in regions whose content the chain may lack.
    pub unsynced_bytes: u64,
    /// Syncs of the file since it was opened.
    pub syncs: u64,
    /// Bits cleared since it was opened.
    pub cleared: u64,
}

impl Intent {
    /// Opens or makes the bitmap at `path`, exclusively; its directory must exist. Blocks for some writes and a sync.
    ///
    /// # Errors
    /// `Refused` where it is in use, or is another domain's or disk's (both are named); `Unsupported` where a newer program
    /// wrote it; `Invalid` for an empty disk or options out of bounds; `Full`, `Denied` or `Io`. Nothing of the file was
    /// changed then, except that an `Io` may have left some pages written again.
    pub fn open(path: &Path, identity: &IntentIdentity, options: &IntentOptions) -> Result<(Intent, Found)> {
        if options.quiet_calls > MOST_QUIET_CALLS {
            let why = format!("quiet_calls {} is above {MOST_QUIET_CALLS}", options.quiet_calls);
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        let opened = open(path, identity)?;
        let rule = Rule::default();
        let pages = opened.set.into_iter().map(|set| Page::opened(set, rule)).collect();
        let shared = Arc::new(Shared::new(path, opened.header, opened.shape, pages));
        let mut intent = Intent::over(shared, rule, options.quiet_calls);
        let (shared, mut file, patience) = (Arc::clone(&intent.shared), opened.file, options.patience);
        let thread = std::thread::Builder::new().name("intent-commit".into());
        let thread = thread.spawn(crate::log_context::here(move || commit::run(&shared, &mut file, patience)));
        intent.thread = Some(thread.io_context(|| "start thread intent-commit")?);
        Ok((intent, opened.found))
    }

    /// Over shared state that somebody else commits.
    pub(super) fn over(shared: Arc<Shared>, rule: Rule, quiet_calls: u32) -> Intent {
        Intent { shared, rule, quiet_calls, thread: None }
    }

    /// How the disk is cut into regions.
    pub fn shape(&self) -> &IntentShape {
        self.shared.shape()
    }

    /// A write to `range` of the disk is about to be made: answers when it may. At once where its regions are marked;
    /// else it waits for a commit, which it shares with all who wait. Dropping the future takes the write back.
    ///
    /// # Errors
    /// `Invalid` for a range that is empty or leaves the disk; `Io`, naming the file, once a commit has failed.
    pub async fn begin_write(&self, range: Range<u64>) -> Result<WriteMark> {
        let regions = self.regions_of(&range)?;
        self.shared.check()?;
        // In flight from here on: no bit of it is cleared any more, and none that is marked stops being so.
        let mut mark = WriteMark::begun(Arc::clone(&self.shared), regions.clone());
        if self.shared.begin(regions.clone()) {
            mark.let_through();
            return Ok(mark);
        }
        let mut rounds = self.shared.subscribe();
        self.shared.commit_soon();
        loop {
            self.shared.check()?;
            if self.shared.is_marked(regions.clone()) {
                mark.let_through();
                return Ok(mark);
            }
            let ended = |e| Error::with_source(ErrorKind::Internal, "the bitmap went away under a write", e);
            rounds.changed().await.map_err(ended)?;
        }
    }

    /// A write that goes on without protection, because the caller has decided so after [`Intent::begin_write`] failed. Its
    /// regions are dirty in memory, and unsynced however it ends; a crash may lose track of them, and the caller must make
    /// sure that the disk is compared or synced anew after that.
    ///
    /// # Errors
    /// `Invalid` for a range that is empty or leaves the disk.
    pub fn begin_unprotected(&self, range: Range<u64>) -> Result<WriteMark> {
        let regions = self.regions_of(&range)?;
        let mut mark = WriteMark::begun(Arc::clone(&self.shared), regions.clone());
        self.shared.begin(regions);
        mark.let_through();
        Ok(mark)
    }

    fn regions_of(&self, range: &Range<u64>) -> Result<Range<u32>> {
        self.shape().regions_of(range).ok_or_else(|| {
            let why = format!("range {range:?} of a disk of {} bytes", self.shape().size());
            Error::new(ErrorKind::Invalid, why)
        })
    }

    /// The first unsynced region that is not below `from`: what a resync reads next. `None` at the end; start over with 0.
    pub fn next_unsynced(&self, from: u32) -> Option<u32> {
        let first_page = from / INTENT_PAGE_REGIONS;
        for page in first_page..self.shape().pages() {
            let base = page * INTENT_PAGE_REGIONS;
            if let Some(n) = self.shared.page(page).and_then(|p| p.unsynced().next(from.saturating_sub(base))) {
                return Some(base + n);
            }
        }
        None
    }

    /// Whether the chain may lack what `region` holds.
    pub fn is_unsynced(&self, region: u32) -> bool {
        self.shared.region(region).is_some_and(|(page, n)| page.unsynced().has(n))
    }

    /// Whether `region` is set.
    pub fn is_set(&self, region: u32) -> bool {
        self.shared.region(region).is_some_and(|(page, n)| page.set().has(n))
    }

    /// All of `region` was read back and captured in `segment`. The caller has held the lock of the region's range from
    /// before the first read until after this call, so that no write came in between.
    pub fn synced(&self, region: u32, segment: SegmentNo) {
        if let Some((mut page, n)) = self.shared.region(region) {
            page.synced(n, segment);
        }
    }

    /// Segments after `last` were given up and never come into the chain: what was captured in them only is unsynced.
    /// Answers how many regions became so. Writes still in flight must not end as captured in one of them.
    pub fn lost_after(&self, last: SegmentNo) -> u32 {
        self.shared.pages().map(|(_, mut page)| page.lost_after(last)).sum()
    }

    /// All segments up to `accepted` are accepted: clears the bits of regions whose writes are thereby proved and that
    /// were quiet for a while. `sync` makes the disk's completed writes durable; it is called where there is something to
    /// clear, and must not begin before. Answers how many were cleared; the file learns of it with a later commit.
    ///
    /// # Errors
    /// What `sync` says, and from then on always `Io`: a sync that succeeds after one that failed proves nothing. `Io` once
    /// a commit has failed.
    pub async fn clear_accepted<F>(&self, accepted: SegmentNo, sync: impl FnOnce() -> F) -> Result<u32>
    where
        F: Future<Output = Result<()>>,
    {
        self.check_disk()?;
        self.shared.check()?;
        let found = self.shared.pages().map(|(n, mut page)| (n, page.candidates(accepted, self.quiet_calls)));
        let found: Vec<(u32, Vec<Candidate>)> = found.filter(|(_, candidates)| !candidates.is_empty()).collect();
        if found.is_empty() {
            return Ok(0);
        }
        if !self.rule.lacks(Clause::SyncedAfter)
            && let Err(e) = sync().await
        {
            self.disk_sync_failed(&e.to_string());
            return Err(e.while_doing(format!("sync disk {} to clear its bitmap", self.shared.header().disk)));
        }
        // Somebody else's sync may have failed meanwhile, and taken the error that ours should have got.
        self.check_disk()?;
        let clear = |(n, candidates): (u32, Vec<Candidate>)| {
            self.shared.page(n).map_or(0, |mut page| page.clear(&candidates, accepted))
        };
        let cleared = found.into_iter().map(clear).sum();
        if cleared > 0 {
            self.shared.note_cleared(u64::from(cleared));
        }
        Ok(cleared)
    }

    /// The disk was proved, by other means than this bitmap, to hold exactly what the chain has, durably: all regions are
    /// clear but those that somebody writes to or wrote to since this was opened. To be called before the first write, and
    /// only once it is durable elsewhere of which chain the bits speak. Answers how many were cleared; the file learns of it
    /// with a commit that begins at once, and a crash before its end costs a comparison.
    ///
    /// # Errors
    /// `Io` once a commit or a sync of the disk has failed.
    pub fn proven(&self) -> Result<u32> {
        self.check_disk()?;
        self.shared.check()?;
        let cleared = self.shared.pages().map(|(_, mut page)| page.proven()).sum();
        if cleared > 0 {
            self.shared.note_cleared(u64::from(cleared));
            self.shared.commit_soon();
        }
        Ok(cleared)
    }

    /// A sync of the guest's disk failed, for whomever it was made: nothing that was written since the last good one can
    /// be proved any more, so nothing is cleared until the disk and this are opened again.
    pub fn disk_sync_failed(&self, why: &str) {
        self.shared.disk_sync_failed(why.to_owned());
    }

    fn check_disk(&self) -> Result<()> {
        match self.rule.lacks(Clause::SyncFailedEndsClearing) {
            true => Ok(()),
            false => self.shared.check_disk(),
        }
    }

    /// What of the disk is in regions that are set, as ranges of bytes, ascending and apart; at most `most` of them, and how
    /// many more there are.
    pub fn set_ranges(&self, most: usize) -> (Vec<Range<u64>>, u64) {
        let (mut found, mut more): (Vec<Range<u64>>, u64) = (Vec::new(), 0);
        let mut end = None;
        for (n, page) in self.shared.pages() {
            let base = n * INTENT_PAGE_REGIONS;
            let mut next = page.set().next(0);
            while let Some(region) = next {
                let range = self.shape().range_of(base + region);
                if end != Some(range.start) {
                    match found.len() < most {
                        true => found.push(range.clone()),
                        false => more += 1,
                    }
                } else if more == 0
                    && let Some(last) = found.last_mut()
                {
                    last.end = range.end;
                }
                end = Some(range.end);
                next = page.set().next(region + 1);
            }
        }
        (found, more)
    }

    /// Bytes of the disk in regions that are set.
    pub fn dirty_bytes(&self) -> u64 {
        self.report().dirty_bytes
    }

    /// Bytes of the disk in regions whose content the chain may lack.
    pub fn unsynced_bytes(&self) -> u64 {
        self.report().unsynced_bytes
    }

    /// All figures. Takes some microseconds for each page.
    pub fn report(&self) -> IntentReport {
        let shape = self.shape();
        let (mut dirty, mut unsynced) = (0_u64, 0_u64);
        for (_, page) in self.shared.pages() {
            dirty += u64::from(page.set().count());
            unsynced += u64::from(page.unsynced().count());
        }
        // The last region may be short.
        let last = shape.regions() - 1;
        let missing = shape.region_bytes() - (shape.size() - shape.range_of(last).start);
        let bytes = |regions: u64, has_last: bool| {
            regions.saturating_mul(shape.region_bytes()).saturating_sub(if has_last { missing } else { 0 })
        };
        IntentReport {
            region_bytes: shape.region_bytes(),
            dirty_bytes: bytes(dirty, self.is_set(last)),
            unsynced_bytes: bytes(unsynced, self.is_unsynced(last)),
            syncs: self.shared.syncs(),
            cleared: self.shared.cleared(),
        }
    }

    /// Writes what is cleared in memory only, ends the thread and lets go of the file. Blocks for a write and a sync.
    ///
    /// # Errors
    /// `Io` where a commit has failed, this last one included: opening it again will find more regions set.
    pub fn close(mut self) -> Result<()> {
        self.end_thread();
        self.shared.check()
    }

    fn end_thread(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take() {
            // A panic there has poisoned the bitmap, which is told to whoever asks next.
            let _ = thread.join();
        }
    }
}

impl Drop for Intent {
    fn drop(&mut self) {
        self.end_thread();
    }
}
