//! The pipeline: ranges of frames in, bytes on the disks out.
//!
//! ```text
//! ranges --> fetch tasks (bounded requests and bytes) --> decode threads --> slots --> disk engine --> tracker
//! ```
//!
//! A range holds its share of the memory budget from before its request until it is decoded; decoded bytes are bounded
//! by the slots. One pipeline serves a whole run: fill, apply, and the next apply.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::channel::{Sender, bounded};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::cancel::Cancel;
use crate::datastore::DiskEngine;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::DomainId;
use crate::log_context::here;

use super::decoder::{Job, Worker};
use super::disks::DiskSet;
use super::source::FrameSource;
use super::tracker::Tracker;
use super::work::{MAX_RANGE, RangeWork};

/// Unit of the byte budget's permits.
const PERMIT_BYTES: u64 = 4096;
/// Most requests under way at once.
const MAX_REQUESTS: usize = 64;

/// See the module.
pub(super) struct Pipeline {
    tracker: Arc<Tracker>,
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    budget: Arc<Semaphore>,
    budget_permits: u32,
    /// Of these, what [`Reserved`] holds.
    reserved: Arc<AtomicU32>,
    requests: Arc<Semaphore>,
    first_fetch: OnceLock<Instant>,
    cancel: Cancel,
}

impl Pipeline {
    /// Starts the threads. `fetch_bytes` bounds what is fetched and not yet decoded.
    pub(super) fn start(
        domain: DomainId,
        engine: &Arc<dyn DiskEngine>,
        disks: &Arc<DiskSet>,
        tracker: &Arc<Tracker>,
        fetch_bytes: u64,
        cancel: Cancel,
    ) -> Result<Pipeline> {
        let requests = usize::try_from(fetch_bytes / MAX_RANGE).unwrap_or(MAX_REQUESTS).clamp(2, MAX_REQUESTS);
        let (sender, receiver) = bounded::<Job>(requests);
        let mut threads = Vec::new();
        let spawn = |name: String, run: Box<dyn FnOnce() + Send>| {
            let builder = std::thread::Builder::new().name(name);
            builder.spawn(here(run)).map_err(|e| Error::io("start a thread", e))
        };
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        for i in 0..cores {
            let (engine, disks, tracker) = (Arc::clone(engine), Arc::clone(disks), Arc::clone(tracker));
            let worker = Worker::new(domain, engine, disks, tracker, Handle::current())?;
            let receiver = receiver.clone();
            threads.push(spawn(format!("decode-{i}"), Box::new(move || worker.run(&receiver)))?);
        }
        let commits = Arc::clone(tracker);
        threads.push(spawn("hydration-commit".into(), Box::new(move || commits.run_commits()))?);
        let budget_permits = u32::try_from(fetch_bytes / PERMIT_BYTES).unwrap_or(u32::MAX >> 4).max(1);
        Ok(Pipeline {
            tracker: Arc::clone(tracker),
            jobs: Some(sender),
            threads,
            budget: Arc::new(Semaphore::new(budget_permits as usize)),
            budget_permits,
            reserved: Arc::default(),
            requests: Arc::new(Semaphore::new(requests)),
            first_fetch: OnceLock::new(),
            cancel,
        })
    }

    /// Counts what is fetched and not decoded: used, and what there is of it, without what is set aside. Keeps no memory
    /// of the pipeline.
    pub(super) fn fetch_memory(&self) -> impl Fn() -> (u64, u64) + Send + Sync + 'static {
        let (budget, all, reserved) = (Arc::clone(&self.budget), self.budget_permits, Arc::clone(&self.reserved));
        move || {
            let of = all.saturating_sub(reserved.load(Relaxed));
            // Permits that are being set aside are out a moment before they are counted so.
            let out = (all as usize).saturating_sub(budget.available_permits());
            let used = (out as u64).saturating_sub(u64::from(all - of)).min(u64::from(of));
            (used * PERMIT_BYTES, u64::from(of) * PERMIT_BYTES)
        }
    }

    /// When the first range was asked for.
    pub(super) fn first_fetch(&self) -> Option<Instant> {
        self.first_fetch.get().copied()
    }

    /// Fetches and places all ranges that come, then waits until everything is written, synced and committed. Asked to
    /// stop, or after an error, it waits for no fetch: a slow store must not keep a program that shall end.
    pub(super) async fn run(&self, source: Arc<FrameSource>, work: mpsc::Receiver<RangeWork>) -> Result<()> {
        // Dropped where it stands, it aborts its fetches.
        let fetched = self.cancel.or_stop(self.fetch_all(source, work)).await;
        let tracker = Arc::clone(&self.tracker);
        let flushed = tokio::task::spawn_blocking(here(move || tracker.flush())).await;
        flushed.map_err(|e| Error::with_source(ErrorKind::Internal, "wait for the disks", e))??;
        fetched
    }

    /// Fetches all ranges that come and hands them to the decode threads.
    async fn fetch_all(&self, source: Arc<FrameSource>, mut work: mpsc::Receiver<RangeWork>) -> Result<()> {
        let mut fetches = JoinSet::new();
        while let Some(range) = work.recv().await {
            while let Some(done) = fetches.try_join_next() {
                joined(done)?;
            }
            self.tracker.check()?;
            let permits = self.permits(&range).await?;
            self.first_fetch.get_or_init(Instant::now);
            let (jobs, source, begun) = (self.jobs.clone(), Arc::clone(&source), Begun::new(&self.tracker));
            let one = async move {
                let tracker = Arc::clone(&begun.tracker);
                if let Err(e) = fetch(begun, jobs.as_ref(), source, range, permits).await {
                    tracker.fail(e);
                }
            };
            fetches.spawn(tracing::Instrument::in_current_span(one));
        }
        while let Some(done) = fetches.join_next().await {
            joined(done)?;
            self.tracker.check()?;
        }
        Ok(())
    }

    /// Sets `bytes` of the budget aside for another use. Waits until they are free.
    pub(super) async fn reserve(&self, bytes: u64) -> Result<Reserved> {
        let units = u32::try_from(bytes / PERMIT_BYTES).unwrap_or(u32::MAX).min(self.budget_permits - 1);
        let closed = |_| Error::new(ErrorKind::Internal, "the pipeline is closed");
        let permits = Arc::clone(&self.budget).acquire_many_owned(units).await.map_err(closed)?;
        self.reserved.fetch_add(units, Relaxed);
        Ok(Reserved { units, reserved: Arc::clone(&self.reserved), _permits: permits })
    }

    /// The range's share of requests and bytes; waits for both.
    async fn permits(&self, range: &RangeWork) -> Result<Vec<OwnedSemaphorePermit>> {
        let closed = |_| Error::new(ErrorKind::Internal, "the pipeline is closed");
        let request = Arc::clone(&self.requests).acquire_owned().await.map_err(closed)?;
        let units = (range.end - range.start).div_ceil(PERMIT_BYTES);
        // A segment from the log may be larger than the whole budget; it then has the budget for itself.
        let most = self.budget_permits.saturating_sub(self.reserved.load(Relaxed)).max(1);
        let units = u32::try_from(units).unwrap_or(u32::MAX).min(most);
        let bytes = Arc::clone(&self.budget).acquire_many_owned(units).await.map_err(closed)?;
        Ok(vec![request, bytes])
    }
}

/// A share of the budget that is set aside, until this is dropped.
pub(super) struct Reserved {
    units: u32,
    reserved: Arc<AtomicU32>,
    _permits: OwnedSemaphorePermit,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.reserved.fetch_sub(self.units, Relaxed);
    }
}

/// A job that the tracker counts from here until it is handed to a decode thread, or dropped: also where its fetch is
/// aborted.
struct Begun {
    tracker: Arc<Tracker>,
    handed_on: bool,
}

impl Begun {
    fn new(tracker: &Arc<Tracker>) -> Begun {
        tracker.job_begins();
        Begun { tracker: Arc::clone(tracker), handed_on: false }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.handed_on {
            self.tracker.job_ends();
        }
    }
}

fn joined(done: std::result::Result<(), tokio::task::JoinError>) -> Result<()> {
    done.map_err(|e| Error::with_source(ErrorKind::Internal, "a fetch ended abnormally", e))
}

async fn fetch(
    mut begun: Begun,
    jobs: Option<&Sender<Job>>,
    source: Arc<FrameSource>,
    work: RangeWork,
    permits: Vec<OwnedSemaphorePermit>,
) -> Result<()> {
    let tracker = Arc::clone(&begun.tracker);
    let quarantine = |why: &str| {
        for planned in &work.frames {
            planned.pieces().for_each(|p| tracker.quarantine(planned.disk, p.offset, u64::from(p.len), why));
        }
    };
    match source.fetch(work.segment, work.start..work.end).await {
        Ok(Some(parts)) => {
            let gone = || Error::new(ErrorKind::Internal, "the decode threads are gone");
            // The channel holds as many jobs as there are requests, so this does not block.
            jobs.ok_or_else(gone)?.send(Job { work, parts, source, _permits: permits }).map_err(|_| gone())?;
            // The decode thread tells its end.
            begun.handed_on = true;
            Ok(())
        }
        Ok(None) => {
            quarantine(&format!("segment {} is missing", work.segment));
            Ok(())
        }
        Err(e) if e.kind() == ErrorKind::Damaged => {
            quarantine(&format!("segment {}: {e}", work.segment));
            Ok(())
        }
        Err(e) => Err(e),
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.jobs = None;
        self.tracker.close();
        for thread in self.threads.drain(..) {
            // A panicked thread has told so itself; there is nothing to add here.
            let _ = thread.join();
        }
    }
}
