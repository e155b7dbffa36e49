//! Initial sync and resync: what the chain may lack is read back and captured, while guests go on.
//!
//! One mechanism for a new disk (every region is unsynced), for what a crash left marked, and for what was written while
//! nothing was captured. Owns the pace: guests come first. Invariants: a region is read, compared and captured under its
//! range lock, so that neither a block that was read before a write can undo it, nor a write slip in unseen; it is
//! compared only with a map that has all that was captured before the region came into doubt. Holds one region at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::RwLock;

use super::backlog::Backlog;
use super::coverage::Members;
use super::disk::ProtectedDisk;
use super::pace::Pace;
use super::recorder::{Recorder, Taken, Written};
use crate::cancel::Cancel;
use crate::capture::{Change, Comparer};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Extent, PAGE_SPAN};
use crate::ids::SegmentNo;
use crate::map::{PageKey, PointMap};
use crate::store::DomainWriter;

/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;
/// Wait where there is nothing to do, or what is needed is not there yet.
const PAUSE: Duration = Duration::from_millis(100);
/// Guests are busy where one asked for something so recently.
const BUSY: Duration = Duration::from_millis(10);
/// While guests are busy, parts of the time that go to them for each that is taken.
const COURTESY: u32 = 2;

/// See the module.
pub(crate) struct Syncer {
    pub(crate) members: Arc<Members>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) backlog: Arc<Backlog>,
    pub(crate) map: Arc<RwLock<PointMap>>,
    pub(crate) writer: Arc<DomainWriter>,
    /// Bytes of disk that are read in a second at most; `None` for no limit.
    pub(crate) rate: Option<u64>,
    pub(crate) read: Arc<AtomicU64>,
    /// What was synced when.
    pub(crate) pace: Arc<Pace>,
}

/// What became of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Synced,
    /// Something that it needs is not there yet.
    NotYet,
}

/// The extents of one page, as of one version of the map.
struct PageAt {
    key: PageKey,
    at: SegmentNo,
    extents: Vec<Extent>,
}

impl Syncer {
    /// Reads back what is unsynced, until `end`. What fails on one disk is told, and that disk is tried again later.
    pub(crate) async fn run(&self, end: Cancel) {
        while !end.is_cancelled() {
            let mut busy = false;
            for disk in self.members.disks() {
                match self.pass(&disk, &end).await {
                    Ok(did) => busy |= did,
                    Err(error) => disk.report_sync_error(&error),
                }
            }
            if !busy {
                tokio::select! { () = tokio::time::sleep(PAUSE) => {} () = end.cancelled() => {} }
            }
        }
    }

    /// One way over a disk; answers whether anything was done.
    async fn pass(&self, disk: &Arc<ProtectedDisk>, end: &Cancel) -> Result<bool> {
        let (mut cursor, mut did, mut page, mut comparer) = (0, false, None, Comparer::default());
        while let Some(region) = disk.intent().next_unsynced(cursor) {
            if end.is_cancelled() || !self.recorder.is_capturing() || !self.may_read() {
                return Ok(did);
            }
            let began = Instant::now();
            if self.region(disk, region, &mut page, &mut comparer).await? == Outcome::NotYet {
                return Ok(did);
            }
            (did, cursor) = (true, region + 1);
            self.give_way(disk, began.elapsed()).await;
        }
        if did {
            // The point that covers the disk comes now, also where nothing differed and no segment is open.
            self.recorder.cut_now();
        }
        disk.clear_sync_error();
        Ok(did)
    }

    /// Background work leaves room for guests' writes, and never makes the backlog spill.
    fn may_read(&self) -> bool {
        let waiting = self.backlog.waiting();
        waiting.memory <= self.backlog.memory_limit() / 2 && self.recorder.free_arenas() >= 2
    }

    /// Guests come first.
    async fn give_way(&self, disk: &ProtectedDisk, took: Duration) {
        let mut rest = Duration::ZERO;
        if let Some(rate) = self.rate {
            let bytes = disk.intent().shape().region_bytes();
            rest = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64).saturating_sub(took);
        }
        if self.members.disks().iter().any(|disk| disk.idle_for() < BUSY) {
            rest = rest.max(took * COURTESY);
        }
        if !rest.is_zero() {
            tokio::time::sleep(rest.min(Duration::from_secs(1))).await;
        } else {
            tokio::task::yield_now().await;
        }
    }

    async fn region(
        &self,
        disk: &Arc<ProtectedDisk>,
        region: u32,
        page: &mut Option<PageAt>,
        comparer: &mut Comparer,
    ) -> Result<Outcome> {
        let range = disk.intent().shape().range_of(region);
        if !self.load_page(disk, range.start, page).await? {
            return Ok(Outcome::NotYet);
        }
        let _guard = disk.lock().lock(range.clone()).await;
        // Under the lock nothing of the region comes into doubt; before it was taken something may have.
        let Some(known) = page.as_ref().filter(|page| page.at >= disk.doubt()) else { return Ok(Outcome::NotYet) };
        let mut last = known.at;
        let mut offset = range.start;
        while offset < range.end {
            let len = PIECE.min(range.end - offset);
            let first = known.extents.partition_point(|e| e.end() <= offset);
            let beyond = known.extents.partition_point(|e| e.offset < offset + len);
            let extents = &known.extents[first..beyond.max(first)];
            match self.piece(disk, offset, len, extents, comparer).await? {
                Some(number) => last = last.max(number),
                None => return Ok(Outcome::NotYet),
            }
            offset += len;
        }
        disk.intent().synced(region, last);
        self.pace.add(range.end - range.start, Instant::now());
        Ok(Outcome::Synced)
    }

    /// Captures what of a piece differs from the map; answers with the last segment that took something. `None` where
    /// nothing is captured now.
    async fn piece(
        &self,
        disk: &Arc<ProtectedDisk>,
        offset: u64,
        len: u64,
        extents: &[Extent],
        comparer: &mut Comparer,
    ) -> Result<Option<SegmentNo>> {
        let mut last = SegmentNo::ZERO;
        let Some(bytes) = disk.read_back(offset, len).await? else {
            // All of it is a hole: zeros, where the map has something else.
            for extent in extents {
                let (from, to) = (extent.offset.max(offset), extent.end().min(offset + len));
                match self.recorder.record(disk.index_disk(), from, Written::Zeros(to - from)).await {
                    Taken::Captured(number) => last = last.max(number),
                    Taken::Not => return Ok(None),
                }
            }
            return Ok(Some(last));
        };
        self.read.fetch_add(len, Relaxed);
        let mut changes = Vec::new();
        comparer.compare(offset, &bytes, extents, &mut changes);
        for change in changes {
            let (at, written) = match change {
                Change::Data { offset: at, len } => {
                    let from = (at - offset) as usize;
                    (at, Written::Bytes(&bytes[from..from + len as usize]))
                }
                Change::Zeros { offset: at, len } => (at, Written::Zeros(len)),
            };
            match self.recorder.record(disk.index_disk(), at, written).await {
                Taken::Captured(number) => last = last.max(number),
                Taken::Not => return Ok(None),
            }
        }
        Ok(Some(last))
    }

    /// Has in `page` the extents around `offset`, as of a map that has all that was captured before the disk came into
    /// doubt; answers whether there is one already.
    async fn load_page(&self, disk: &ProtectedDisk, offset: u64, page: &mut Option<PageAt>) -> Result<bool> {
        let key = PageKey { disk: disk.index_disk().id, page: offset / PAGE_SPAN };
        if page.as_ref().is_some_and(|p| p.key == key && p.at >= disk.doubt()) {
            return Ok(true);
        }
        let view = self.writer.view().await;
        let map = self.map.read().await;
        if map.at().segment < disk.doubt() {
            return Ok(false);
        }
        let at = map.at().segment;
        let mut extents = map.page(view.site(), &view, key).await?;
        let size = disk.index_disk().size;
        if extents.last().is_some_and(|e| e.end() > size) {
            let why = format!("the map of {} goes past its end at {size}", disk.label());
            return Err(Error::new(ErrorKind::Internal, why));
        }
        extents.shrink_to_fit();
        *page = Some(PageAt { key, at, extents });
        Ok(true)
    }
}
