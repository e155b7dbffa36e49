//! Which granules are complete, and when that becomes durable.
//!
//! ```text
//! planner: expect(range) ─> worker: submit ─> ring: written(range) ─> granule complete ─┐
//!                                                                                      │ every 64 MiB or second
//!              commit thread: sync disks, and beside it the map of the last round -> set bits -> write the map
//! ```
//!
//! Invariants: a bit is set only by a commit whose sync began after the granule's last write completed. Bytes that are
//! written but not committed are bounded: workers wait at [`Budget::uncommitted`](super::budget::Budget). The first
//! error ends all work.
//!
//! The map is synced in the next round, and before [`Tracker::flush`] returns: two syncs one after the other would cost
//! twice, and what a power loss in between costs is fetching one round again. A killed process loses nothing by it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::datastore::{Completion, DiskEngine, Op, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{GRANULE, Quarantined};
use crate::progress::{DiskDamage, Progress};

use super::budget::COMMIT_BYTES;
use super::disks::{DiskSet, TargetDisk};
use super::state::HydrationState;

/// Time after which a commit begins where anything is complete.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

type Granule = (u32, u32);

#[derive(Default)]
struct Shared {
    /// Bytes still to be written, by granule.
    pending: HashMap<Granule, u64>,
    finished: Vec<Granule>,
    dirty: BTreeSet<u32>,
    uncommitted: u64,
    written: u64,
    jobs: u64,
    in_flight: u64,
    committing: bool,
    flush: bool,
    closing: bool,
    error: Option<(ErrorKind, String)>,
}

/// See the module.
pub(super) struct Tracker {
    shared: Mutex<Shared>,
    changed: Condvar,
    state: Mutex<HydrationState>,
    engine: Arc<dyn DiskEngine>,
    disks: Arc<DiskSet>,
    progress: Arc<Progress>,
    most_uncommitted: u64,
}

impl Tracker {
    /// Tracks writes to `disks`; completes bits of `state`. Of `most_uncommitted` written bytes on, writing waits for a
    /// commit.
    pub(super) fn new(
        state: HydrationState,
        engine: Arc<dyn DiskEngine>,
        disks: Arc<DiskSet>,
        progress: Arc<Progress>,
        most_uncommitted: u64,
    ) -> Arc<Tracker> {
        let (shared, state, changed) = (Mutex::default(), Mutex::new(state), Condvar::new());
        Arc::new(Tracker { shared, changed, state, engine, disks, progress, most_uncommitted })
    }

    /// The hydration map; held only for short.
    pub(super) fn state(&self) -> MutexGuard<'_, HydrationState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The range will be written, and the granules in it are complete when all that is expected of them is.
    pub(super) fn expect(&self, disk: u32, offset: u64, len: u64) {
        let mut shared = self.lock();
        for (granule, bytes) in granule_parts(disk, offset, len) {
            *shared.pending.entry(granule).or_default() += bytes;
        }
    }

    /// Granules that need no write.
    pub(super) fn complete(&self, disk: u32, granules: impl IntoIterator<Item = u32>) {
        let mut shared = self.lock();
        shared.finished.extend(granules.into_iter().map(|g| (disk, g)));
        shared.dirty.insert(disk);
    }

    /// The range holds the right bytes already.
    pub(super) fn found_in_place(&self, disk: u32, offset: u64, len: u64) {
        self.settle(&mut self.lock(), disk, offset, len);
        self.progress.add_disk_done(&self.disks.get(disk).label, len);
    }

    fn settle(&self, shared: &mut Shared, disk: u32, offset: u64, len: u64) {
        for (granule, bytes) in granule_parts(disk, offset, len) {
            let Some(left) = shared.pending.get_mut(&granule) else { continue };
            *left = left.saturating_sub(bytes);
            if *left == 0 {
                shared.pending.remove(&granule);
                shared.finished.push(granule);
            }
        }
    }

    /// The range cannot be had: its granules will not be complete.
    pub(super) fn quarantine(&self, disk: u32, offset: u64, len: u64, why: &str) {
        let target = self.disks.get(disk);
        let place = format!("{} bytes {offset}..{}", target.label, offset + len);
        tracing::error!(%why, "quarantined {place}");
        self.progress.note(format!("damaged: {place}: {why}"));
        {
            let mut shared = self.lock();
            for (granule, _) in granule_parts(disk, offset, len) {
                // What else is written into it must not complete it.
                *shared.pending.entry(granule).or_default() += GRANULE;
            }
        }
        let mut why = why.to_owned();
        why.truncate(why.floor_char_boundary(1000));
        let mut state = self.state();
        if let Some(entry) = state.disk_mut(target.id) {
            for ((_, granule), _) in granule_parts(disk, offset, len) {
                entry.valid.remove(granule);
            }
        }
        state.quarantine(Quarantined { disk: target.id, offset, len, why });
        self.progress.damage_grows(damage_of(&state, &target));
    }

    /// Tells what is quarantined now, of the disks that are here. Not while it is tried again: until that is done, what
    /// was told before counts.
    pub(super) fn tell_damage(&self) {
        let disks = self.disks.all();
        let state = self.state();
        let damage = disks.iter().map(|disk| damage_of(&state, disk)).filter(|damage| damage.ranges > 0);
        self.progress.damage_is(damage);
    }

    /// A range of frames was handed to the pipeline.
    pub(super) fn job_begins(&self) {
        self.lock().jobs += 1;
    }

    /// All writes of a range of frames were submitted, or it failed.
    pub(super) fn job_ends(&self) {
        self.lock().jobs -= 1;
        self.changed.notify_all();
    }

    /// Waits while too much is uncommitted; then one more write is in flight.
    pub(super) fn write_begins(&self) -> Result<()> {
        let mut shared = self.lock();
        while shared.uncommitted >= self.most_uncommitted && shared.error.is_none() {
            shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(error) = &shared.error {
            return Err(again(error));
        }
        shared.in_flight += 1;
        Ok(())
    }

    /// A write completed. Called on a thread of the engine.
    pub(super) fn write_ends(&self, disk: u32, offset: u64, len: u64, result: Result<usize>) {
        let target = self.disks.get(disk);
        let mut shared = self.lock();
        shared.in_flight -= 1;
        match result {
            Ok(_) => {
                self.settle(&mut shared, disk, offset, len);
                shared.dirty.insert(disk);
                shared.uncommitted += len;
                shared.written += len;
                self.progress.add_disk_done(&target.label, len);
            }
            Err(e) => fail(&mut shared, e),
        }
        if shared.in_flight == 0 || shared.uncommitted >= COMMIT_BYTES || shared.error.is_some() {
            self.changed.notify_all();
        }
    }

    /// Ends all work with an error; the first one counts.
    pub(super) fn fail(&self, error: Error) {
        fail(&mut self.lock(), error);
        self.changed.notify_all();
    }

    /// Fails once any work has failed.
    pub(super) fn check(&self) -> Result<()> {
        self.lock().error.as_ref().map_or(Ok(()), |e| Err(again(e)))
    }

    /// Raw bytes written to the disks so far.
    pub(super) fn written(&self) -> u64 {
        self.lock().written
    }

    /// Waits until all that was handed over is written, synced and committed. Blocks.
    pub(super) fn flush(&self) -> Result<()> {
        let mut shared = self.lock();
        loop {
            if let Some(error) = &shared.error {
                return Err(again(error));
            }
            let idle = shared.jobs == 0 && shared.in_flight == 0 && !shared.committing;
            if idle && shared.finished.is_empty() && shared.dirty.is_empty() {
                // What is left belongs to quarantined granules.
                shared.pending.clear();
                shared.flush = false;
                drop(shared);
                return self.state().sync();
            }
            shared.flush = true;
            self.changed.notify_all();
            shared = self.changed.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the commit thread after what is complete is committed.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_all();
    }

    /// The commit thread: see the module.
    pub(super) fn run_commits(&self) {
        let mut last = Instant::now();
        loop {
            let mut shared = self.lock();
            loop {
                if shared.error.is_some() {
                    return;
                }
                let any = !shared.finished.is_empty() || !shared.dirty.is_empty();
                let quiet = shared.jobs == 0 && shared.in_flight == 0;
                let due = shared.uncommitted >= COMMIT_BYTES || last.elapsed() >= COMMIT_EVERY;
                if any && (due || (shared.flush && quiet) || shared.closing) {
                    break;
                }
                if shared.closing {
                    return;
                }
                let wait = COMMIT_EVERY.saturating_sub(last.elapsed()).max(Duration::from_millis(20));
                shared = self.changed.wait_timeout(shared, wait).unwrap_or_else(PoisonError::into_inner).0;
            }
            let finished = std::mem::take(&mut shared.finished);
            let dirty = std::mem::take(&mut shared.dirty);
            let bytes = shared.uncommitted;
            shared.committing = true;
            drop(shared);
            let result = self.commit(&finished, &dirty);
            last = Instant::now();
            let mut shared = self.lock();
            shared.committing = false;
            shared.uncommitted -= bytes;
            if let Err(e) = result {
                fail(&mut shared, e);
            }
            drop(shared);
            self.changed.notify_all();
        }
    }

    fn commit(&self, finished: &[Granule], dirty: &BTreeSet<u32>) -> Result<()> {
        let (sender, synced) = crossbeam::channel::bounded(dirty.len());
        for disk in dirty {
            let sender = sender.clone();
            // There is room for every answer; the receiver is gone only after an error.
            let done = Box::new(move |completion: Completion| drop(sender.send(completion.result)));
            self.engine.submit(Request { file: self.disks.get(*disk).file, op: Op::SyncData, done });
        }
        drop(sender);
        self.state().sync()?;
        for _ in dirty {
            let gone = |e| Error::with_source(ErrorKind::Internal, "the disk engine lost a sync", e);
            synced.recv().map_err(gone)??;
        }
        if finished.is_empty() {
            return Ok(());
        }
        let mut state = self.state();
        for (disk, granule) in finished {
            if let Some(disk) = state.disk_mut(self.disks.get(*disk).id) {
                disk.valid.insert(*granule);
            }
        }
        state.record()
    }
}

fn damage_of(state: &HydrationState, disk: &TargetDisk) -> DiskDamage {
    let (ranges, bytes) = state.damage_of(disk.id);
    DiskDamage { vm: disk.vm.clone(), disk: disk.name.clone(), ranges, bytes }
}

fn fail(shared: &mut Shared, error: Error) {
    if shared.error.is_none() {
        shared.error = Some((error.kind(), error.to_string()));
    }
}

fn again((kind, text): &(ErrorKind, String)) -> Error {
    Error::new(*kind, text.clone())
}

/// The granules that a range touches, with the bytes of it in each.
fn granule_parts(disk: u32, offset: u64, len: u64) -> impl Iterator<Item = (Granule, u64)> {
    let end = offset + len;
    (offset / GRANULE..end.div_ceil(GRANULE)).map(move |g| {
        let (from, to) = (offset.max(g * GRANULE), end.min((g + 1) * GRANULE));
        // A disk has at most u32::MAX granules, which is checked when it joins the map.
        ((disk, g as u32), to - from)
    })
}
