//! The one primitive: bring the disks to a target map, fetching exactly what differs.
//!
//! ```text
//! retarget: compare the map that the disks equal with the target's, durably clear what differs
//! fill:     missing granules --page by page--> zeros punched, live parts planned --windows--> pipeline
//! ```
//!
//! It serves first hydration, resume after a kill, an older or a newer point, and disks in doubt. The memory that it
//! takes is that of a window of extents, whatever the size of the disks.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use roaring::RoaringBitmap;
use tokio::sync::mpsc;

use crate::cancel::Cancel;
use crate::datastore::{DiskEngine, FileId, Op};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Extent, GRANULE, PAGE_SPAN};
use crate::ids::DiskId;
use crate::map::{PageKey, PointMap};
use crate::progress::Progress;
use crate::store::Domain;

use super::check;
use super::diff::{PER_PAGE, differing, needed};
use super::disks::DiskSet;
use super::doubts::Doubts;
use super::pipeline::Pipeline;
use super::source::FrameSource;
use super::tracker::Tracker;
use super::work::{MAX_RANGE, RangeWork, by_frame, coalesce};

/// Memory that one planned extent takes, in all its forms, in bytes.
const EXTENT_COST: u64 = 512;
/// Most pages that are read at once.
const MAX_PAGE_READS: u64 = 256;
/// Ranges that wait for the fetch stage.
const RANGES_AHEAD: usize = 64;
/// The first requests are short, so that all workers have something to do at once.
const FIRST_RANGE: u64 = 512 << 10;
const FIRST_RANGES: usize = 8;

/// See the module.
pub(super) struct Reconciler {
    pub(super) domain: Domain,
    pub(super) engine: Arc<dyn DiskEngine>,
    pub(super) disks: Arc<DiskSet>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) progress: Arc<Progress>,
    pub(super) cancel: Cancel,
    /// Bytes that plans may take.
    pub(super) plan_bytes: u64,
}

/// One page to fill.
struct PageTask {
    key: PageKey,
    position: u32,
    missing: RoaringBitmap,
    span: std::ops::Range<u64>,
}

impl Reconciler {
    /// Makes the disks equal `target`. What is in doubt is hashed.
    pub(super) async fn reconcile(&self, target: &PointMap, doubts: Doubts) -> Result<()> {
        self.progress.stage("planning");
        let doubts = self.retarget(target, doubts).await?;
        self.progress.stage("rehydrating");
        let (ranges, work) = mpsc::channel(RANGES_AHEAD);
        let source = Arc::new(FrameSource::store(self.domain.clone(), Arc::clone(&self.progress)));
        let (planned, placed) = tokio::join!(self.plan(target, &doubts, ranges), self.pipeline.run(source, work));
        placed?;
        planned?;
        self.check_complete()?;
        self.tracker.tell_damage();
        Ok(())
    }

    /// Durably clears what differs from the target, and names it as the target. Answers what is in doubt, which is all
    /// where the map that the disks equal cannot be read any more.
    async fn retarget(&self, target: &PointMap, mut doubts: Doubts) -> Result<Doubts> {
        self.tracker.state().retry_quarantined();
        let (from, untouched) = {
            let state = self.tracker.state();
            (state.target(), !state.between_points())
        };
        if from == target.at() && untouched && !doubts.any() {
            return Ok(doubts);
        }
        let any_valid = self.tracker.state().disks().iter().any(|d| !d.valid.is_empty());
        let mut clear: HashMap<DiskId, RoaringBitmap> = HashMap::new();
        if !doubts.all && any_valid && from != target.at() {
            match PointMap::load(&self.domain, from).await {
                Ok(old) => clear = self.differences(&old, target).await?,
                Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::Invalid) => {
                    self.progress.note(format!("the map of {from} cannot be read ({e}): all blocks are hashed"));
                    doubts.all = true;
                }
                Err(e) => return Err(e),
            }
        }
        let mut state = self.tracker.state();
        for disk in self.disks.all() {
            let Some(entry) = state.disk_mut(disk.id) else { continue };
            if doubts.distrusts(disk.id) {
                entry.valid.clear();
                entry.pristine = false;
                continue;
            }
            let touched = std::mem::take(&mut entry.touched);
            entry.valid -= touched;
            if let Some(differs) = clear.get(&disk.id) {
                entry.valid -= differs;
            }
            // Parts of another target may stand where no bit is set.
            entry.pristine &= from == target.at() || entry_is_new(from);
        }
        state.set_target(target.at());
        state.commit()?;
        Ok(doubts)
    }

    async fn differences(&self, old: &PointMap, new: &PointMap) -> Result<HashMap<DiskId, RoaringBitmap>> {
        let mut keys: BTreeSet<PageKey> = old.pages().into_iter().chain(new.pages()).collect();
        keys.retain(|k| self.disks.position(k.disk).is_some() && !new.same_page(old, *k));
        let reads = self.page_reads(new, keys.iter().copied()).div_ceil(2).max(1);
        let mut pages = stream::iter(keys)
            .map(|key| async move {
                let whole = || {
                    let first = u32::try_from(key.page * PER_PAGE).unwrap_or(u32::MAX);
                    (first..first.saturating_add(PER_PAGE as u32)).collect()
                };
                let site = self.domain.site();
                match (old.page(site, &self.domain, key).await, new.page(site, &self.domain, key).await) {
                    (Ok(old), Ok(new)) => Ok((key.disk, differing(&old, &new))),
                    (Err(e), _) | (_, Err(e)) if e.kind() == ErrorKind::Damaged => Ok((key.disk, whole())),
                    (Err(e), _) | (_, Err(e)) => Err(e),
                }
            })
            .buffer_unordered(reads);
        let mut out: HashMap<DiskId, RoaringBitmap> = HashMap::new();
        while let Some(page) = pages.next().await {
            self.cancel.check()?;
            let (disk, granules) = page?;
            *out.entry(disk).or_default() |= granules;
        }
        Ok(out)
    }

    /// How many pages may be read at once within the budget.
    fn page_reads(&self, map: &PointMap, keys: impl Iterator<Item = PageKey>) -> usize {
        let largest = keys.map(|k| map.page_cost(k)).max().unwrap_or(0).max(4096);
        // Decoded extents take about twice what the page takes.
        let reads = (self.plan_bytes / 2 / (largest * 3)).clamp(1, MAX_PAGE_READS);
        usize::try_from(reads).unwrap_or(1)
    }

    /// Plans all missing granules, and sends the ranges to fetch.
    async fn plan(&self, target: &PointMap, doubts: &Doubts, ranges: mpsc::Sender<RangeWork>) -> Result<()> {
        let mut tasks = Vec::new();
        for disk in self.disks.all() {
            if let Some(position) = self.disks.position(disk.id) {
                tasks.extend(self.page_tasks(target, position).await?);
            }
        }
        let reads = self.page_reads(target, tasks.iter().map(|t| t.key));
        let mut pages = stream::iter(tasks)
            .map(|task| async move {
                let extents = target.page(self.domain.site(), &self.domain, task.key).await;
                (task, extents)
            })
            .buffered(reads);
        let limit = usize::try_from((self.plan_bytes / 2 / EXTENT_COST).max(1024)).unwrap_or(usize::MAX);
        let mut window: Vec<(u32, Extent)> = Vec::new();
        let mut sent = 0;
        while let Some((task, extents)) = pages.next().await {
            self.cancel.check()?;
            self.tracker.check()?;
            match extents {
                Ok(extents) => {
                    let live = self.plan_page(target, &task, &extents, doubts).await?;
                    window.extend(live.into_iter().map(|e| (task.position, e)));
                }
                Err(e) if e.kind() == ErrorKind::Damaged => {
                    let len = task.span.end - task.span.start;
                    self.tracker.quarantine(task.position, task.span.start, len, &e.to_string());
                }
                Err(e) => return Err(e),
            }
            if window.len() >= limit {
                send(std::mem::take(&mut window), &ranges, &mut sent).await?;
            }
        }
        send(window, &ranges, &mut sent).await
    }

    /// The pages of one disk that have anything missing; what is missing outside all pages is zero.
    async fn page_tasks(&self, target: &PointMap, position: u32) -> Result<Vec<PageTask>> {
        let disk = self.disks.get(position);
        let (missing, pristine) = {
            let state = self.tracker.state();
            (state.missing(disk.id), state.disk(disk.id).is_some_and(|d| d.pristine))
        };
        let mut rest = missing.clone();
        let mut tasks = Vec::new();
        for key in target.pages().into_iter().filter(|k| k.disk == disk.id && k.page * PAGE_SPAN < disk.size) {
            let first = u32::try_from(key.page * PER_PAGE).unwrap_or(u32::MAX);
            let last = first.saturating_add(PER_PAGE as u32);
            rest.remove_range(first..last);
            let live = target.unchanged(key).map(|r| r.live_bytes);
            self.progress.add_disk_total(&disk.label, live.unwrap_or(0));
            if missing.range_cardinality(first..last) == 0 {
                self.progress.add_disk_done(&disk.label, live.unwrap_or(0));
                continue;
            }
            let mut here = RoaringBitmap::new();
            here.insert_range(first..last);
            here &= &missing;
            let span = key.page * PAGE_SPAN..((key.page + 1) * PAGE_SPAN).min(disk.size);
            tasks.push(PageTask { key, position, missing: here, span });
        }
        if !pristine {
            let runs = runs_of(&rest).map(|(from, to)| (from, to.min(disk.size))).collect();
            self.punch(disk.file, runs).await?;
        }
        self.tracker.complete(position, rest.iter());
        Ok(tasks)
    }

    /// Makes the zeros of one page, and answers with the live parts that are to be fetched.
    async fn plan_page(
        &self,
        target: &PointMap,
        task: &PageTask,
        extents: &[Extent],
        doubts: &Doubts,
    ) -> Result<Vec<Extent>> {
        let disk = self.disks.get(task.position);
        let pristine = self.tracker.state().disk(disk.id).is_some_and(|d| d.pristine);
        let needs = needed(extents, &task.missing, task.span.clone());
        if target.unchanged(task.key).is_none() {
            self.progress.add_disk_total(&disk.label, extents.iter().map(|e| u64::from(e.len)).sum());
        }
        self.progress.add_disk_done(&disk.label, needs.kept);
        if !pristine {
            self.punch(disk.file, needs.zeros).await?;
        }
        for e in &needs.extents {
            self.tracker.expect(task.position, e.offset, u64::from(e.len));
        }
        self.tracker.complete(task.position, needs.empty);
        if !doubts.hashes(disk.id) {
            return Ok(needs.extents);
        }
        let in_place = check::in_place(&self.engine, disk.file, &needs.extents).await?;
        let mut wanted = Vec::new();
        for (extent, same) in needs.extents.into_iter().zip(in_place) {
            match same {
                true => self.tracker.found_in_place(task.position, extent.offset, u64::from(extent.len)),
                false => wanted.push(extent),
            }
        }
        Ok(wanted)
    }

    async fn punch(&self, file: FileId, ranges: Vec<(u64, u64)>) -> Result<()> {
        if ranges.is_empty() {
            return Ok(());
        }
        let engine = Arc::clone(&self.engine);
        let punch = move || make_zero(&engine, file, &ranges);
        let joined = tokio::task::spawn_blocking(punch).await;
        joined.map_err(|e| Error::with_source(ErrorKind::Internal, "punch holes", e))?
    }

    /// Every granule is valid, or in a quarantined range.
    fn check_complete(&self) -> Result<()> {
        let state = self.tracker.state();
        for disk in self.disks.all() {
            for granule in state.missing(disk.id) {
                let (from, to) = (u64::from(granule) * GRANULE, (u64::from(granule) + 1) * GRANULE);
                let named = state
                    .quarantined()
                    .iter()
                    .any(|q| q.disk == disk.id && q.offset < to && q.offset.saturating_add(q.len) > from);
                if !named {
                    let why = format!("{} bytes {from}..{to} were neither filled nor quarantined", disk.label);
                    return Err(Error::new(ErrorKind::Internal, why));
                }
            }
        }
        Ok(())
    }
}

/// A hydration map that never had a target: all its disks were just created.
fn entry_is_new(from: crate::ids::SegmentRef) -> bool {
    from == crate::ids::SegmentRef::default()
}

/// Bytes of the runs of granules in a bitmap.
fn runs_of(bitmap: &RoaringBitmap) -> impl Iterator<Item = (u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for granule in bitmap {
        let (from, to) = (u64::from(granule) * GRANULE, (u64::from(granule) + 1) * GRANULE);
        match runs.last_mut() {
            Some((_, end)) if *end == from => *end = to,
            _ => runs.push((from, to)),
        }
    }
    runs.into_iter()
}

/// Makes ranges zero: as holes, or where the file system has none, by writing.
pub(super) fn make_zero(engine: &Arc<dyn DiskEngine>, file: FileId, ranges: &[(u64, u64)]) -> Result<()> {
    for (from, to) in ranges {
        let punched = engine.execute(file, Op::PunchHole { offset: *from, len: to - from }).result;
        match punched {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                let zeros = vec![0; 1 << 20];
                let mut at = *from;
                while at < *to {
                    let n = (to - at).min(zeros.len() as u64);
                    engine.write_all_blocking(file, at, &zeros[..n as usize])?;
                    at += n;
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

async fn send(window: Vec<(u32, Extent)>, ranges: &mpsc::Sender<RangeWork>, sent: &mut usize) -> Result<()> {
    let mut frames = by_frame(window);
    if *sent == 0 {
        let head: Vec<_> = {
            let mut bytes = 0;
            let short = frames.iter().take_while(|f| {
                bytes += f.frame.body.len_with_header();
                bytes <= FIRST_RANGE * FIRST_RANGES as u64
            });
            let n = short.count();
            frames.drain(..n).collect()
        };
        send_ranges(coalesce(head, FIRST_RANGE), ranges, sent).await?;
    }
    send_ranges(coalesce(frames, MAX_RANGE), ranges, sent).await
}

async fn send_ranges(work: Vec<RangeWork>, ranges: &mpsc::Sender<RangeWork>, sent: &mut usize) -> Result<()> {
    for range in work {
        *sent += 1;
        // The receiver goes only where the pipeline failed, and then that is the error that counts.
        if ranges.send(range).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
