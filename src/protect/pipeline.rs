//! All that runs behind the exports of a claimed domain: recorder, packers, sealing, shipping, ledger, sync, clearing.
//!
//! Owns the tasks and the order in which they end: nothing is dropped on the way that was captured, as long as the
//! storage site takes it in time. It does not know how clients reach the disks.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle as Thread;
use std::time::{Duration, Instant};

use crossbeam::channel::bounded;
use tokio::sync::{Mutex, RwLock, mpsc, watch};
use tokio::task::JoinHandle;

use super::age::PointAge;
use super::arena::ArenaPool;
use super::backlog::Backlog;
use super::clearer::Clearer;
use super::coverage::Members;
use super::health::Health;
use super::ledger::{self, Ledger};
use super::memory::SiteMemory;
use super::pace::Pace;
use super::packer;
use super::recorder::{MAX_EMPTY_CUTS, Recorder};
use super::request::{Division, ProtectRequest};
use super::shipper::{Covering, Shipped, Shipper};
use super::syncer::Syncer;
use super::valve::{CaptureMode, Valve};
use crate::cancel::Cancel;
use crate::capture::{Chain, ChainEnd, Halt};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Catalogue;
use crate::ids::{SegmentNo, Time};
use crate::log::ReplicationLog;
use crate::log_context;
use crate::map::PointMap;
use crate::store::DomainWriter;

/// Time between two looks whether a segment must be cut.
const CUT_EVERY: Duration = Duration::from_millis(20);

/// What a pipeline is started on.
pub(crate) struct Foundation {
    pub(crate) writer: DomainWriter,
    pub(crate) map: PointMap,
    /// The catalogue, where it differs from the map's.
    pub(crate) changed: Option<Catalogue>,
    pub(crate) log: ReplicationLog,
    pub(crate) members: Arc<Members>,
    pub(crate) health: Arc<Health>,
    pub(crate) memory: Arc<Mutex<SiteMemory>>,
    pub(crate) division: Division,
}

/// See the module.
pub(crate) struct Pipeline {
    pub(crate) writer: Arc<DomainWriter>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) valve: Arc<Valve>,
    pub(crate) backlog: Arc<Backlog>,
    pub(crate) chain: Arc<Chain>,
    pub(crate) shipped: watch::Receiver<Shipped>,
    pub(crate) sync_read: Arc<AtomicU64>,
    pub(crate) pace: Arc<Pace>,
    pub(crate) clearer: Arc<Clearer>,
    health: Arc<Health>,
    syncer: Arc<Syncer>,
    /// When segments are cut: age of the first write, and time without one.
    cut_at: (Duration, Duration),
    /// Ends sync, cutting, clearing and the valve.
    background: Cancel,
    background_tasks: Vec<JoinHandle<()>>,
    packers: Vec<Thread<()>>,
    sealing: JoinHandle<()>,
    shipping: JoinHandle<()>,
    ledger: JoinHandle<u64>,
    halt: Halt,
    stop_ledger: Cancel,
}

impl Pipeline {
    /// Starts everything; nothing is captured until the valve is opened.
    pub(crate) fn start(on: Foundation, request: &ProtectRequest) -> Result<Pipeline> {
        let Foundation { writer, map, changed, log, members, health, memory, division } = on;
        let writer = Arc::new(writer);
        let end = ChainEnd {
            domain: writer.domain().id(),
            generation: writer.generation(),
            writer: writer.writer(),
            tip: map.at(),
            digest: map.index_digest(),
        };
        let first = map.at().segment.next();
        let chain = Arc::new(Chain::new(end, changed, Arc::clone(&request.clock)));
        let pool = ArenaPool::new(division.arenas, division.arena);
        let (cuts_in, cuts) = bounded(pool.count() + MAX_EMPTY_CUTS);
        let last_point = map.last_point().map(|point| point.time);
        let (clock, hold) = (Arc::clone(&request.clock), request.longest_hold);
        let recorder = Arc::new(Recorder::new(pool, clock, hold, first, last_point, members.clone(), cuts_in));
        let backlog = Arc::new(Backlog::new(division.backlog, Arc::new(log)));
        let valve = Arc::new(Valve::new(
            Arc::clone(&recorder),
            Arc::clone(&backlog),
            Arc::clone(&health),
            request.longest_hold,
        ));

        let (packed_in, packed) = mpsc::channel(division.arenas);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if request.packers == 0 { cores } else { request.packers };
        let packers = packer::start(threads, request.level, &cuts, &packed_in)?;
        drop((cuts, packed_in));
        let sealing = log_context::spawn({
            let (chain, backlog, health) = (Arc::clone(&chain), Arc::clone(&backlog), Arc::clone(&health));
            async move {
                let sealed = packer::seal_all(packed, first, chain, &backlog).await;
                sealed.unwrap_or_else(|error| health.fail(&error));
                backlog.close();
            }
        });

        let at = found(&map, request.clock.now());
        let (accepted, shipped) = watch::channel(at);
        let (ledger_in, ledger_out) = mpsc::channel(ledger::MAX_WAITING);
        let shipper = Shipper {
            site: writer.domain().site().clone(),
            domain: request.domain.clone(),
            writer: Arc::clone(&writer),
            backlog: Arc::clone(&backlog),
            health: Arc::clone(&health),
            accepted,
            ledger: ledger_in,
        };
        let shipping = log_context::spawn(until_worse(Arc::clone(&health), shipper.run()));
        let map = Arc::new(RwLock::new(map));
        let stop_ledger = Cancel::new();
        let halt = Halt::new(stop_ledger.clone());
        let ledger = Ledger {
            writer: Arc::clone(&writer),
            map: Arc::clone(&map),
            health: Arc::clone(&health),
            manifest_every: request.manifest_every,
            halt: halt.clone(),
        };
        let ledger = log_context::spawn({
            let health = Arc::clone(&health);
            async move {
                ledger.run(ledger_out).await.unwrap_or_else(|error| {
                    health.fail(&error);
                    0
                })
            }
        });

        let (sync_read, pace) = (Arc::new(AtomicU64::new(0)), Arc::new(Pace::default()));
        let syncer = Arc::new(Syncer {
            members: Arc::clone(&members),
            recorder: Arc::clone(&recorder),
            backlog: Arc::clone(&backlog),
            map,
            writer: Arc::clone(&writer),
            rate: request.sync_rate,
            read: Arc::clone(&sync_read),
            pace: Arc::clone(&pace),
        });
        let clearer = Arc::new(Clearer {
            members,
            memory,
            shipped: shipped.clone(),
            domain: writer.domain().id(),
            generation: writer.generation(),
            health: Arc::clone(&health),
        });
        let mut pipeline = Pipeline {
            writer,
            recorder,
            valve,
            backlog,
            chain,
            shipped,
            sync_read,
            pace,
            clearer,
            health,
            syncer,
            cut_at: (request.segment_age, request.idle_point),
            background: Cancel::new(),
            background_tasks: Vec::new(),
            packers,
            sealing,
            shipping,
            ledger,
            halt,
            stop_ledger,
        };
        pipeline.begin_background();
        Ok(pipeline)
    }

    /// Begins what runs beside guests, unless it runs: sync, the valve, cutting in time, clearing.
    fn begin_background(&mut self) {
        if !self.background_tasks.is_empty() {
            return;
        }
        let end = Cancel::new();
        self.background = end.clone();
        let (syncer, valve, clearer) = (Arc::clone(&self.syncer), Arc::clone(&self.valve), Arc::clone(&self.clearer));
        let ((age, idle), recorder) = (self.cut_at, Arc::clone(&self.recorder));
        let ends = [(); 4].map(|()| end.clone());
        let [sync_end, valve_end, cut_end, clear_end] = ends;
        self.background_tasks = vec![
            log_context::spawn(async move { syncer.run(sync_end).await }),
            log_context::spawn(async move { valve.run(valve_end).await }),
            log_context::spawn(cut_in_time(recorder, age, idle, cut_end)),
            log_context::spawn(async move { clearer.run(clear_end).await }),
        ];
    }

    async fn end_background(&mut self) {
        self.background.cancel();
        for task in self.background_tasks.drain(..) {
            let _ = task.await;
        }
    }

    /// Cuts the last point, when no guest writes any more, and captures nothing after it; answers with its segment. `None`
    /// where nothing is captured now.
    pub(crate) async fn quiesce(&mut self) -> Option<SegmentNo> {
        self.end_background().await;
        let last = self.recorder.cut_now();
        self.recorder.pause();
        last
    }

    /// Captures again after [`Pipeline::quiesce`].
    pub(crate) fn go_on(&mut self) {
        if self.valve.mode() != CaptureMode::Bitmap {
            self.recorder.resume();
        }
        self.begin_background();
    }

    /// Ends it where it stands, as a kill would: what is not accepted stays marked in the bitmaps.
    pub(crate) fn abandon(self) {
        self.background.cancel();
        self.recorder.close();
        self.background_tasks.iter().for_each(JoinHandle::abort);
        self.sealing.abort();
        self.shipping.abort();
        self.stop_ledger.cancel();
        self.ledger.abort();
    }

    /// Ends it. What was captured is shipped, for as long as `drain` and the storage site allow; then bits are cleared as
    /// far as what was shipped goes. Answers whether all was shipped. To be called when no guest writes any more.
    pub(crate) async fn stop(mut self, drain: Duration) -> Result<Stopped> {
        self.end_background().await;
        // The last point, at which all guests are still.
        self.recorder.cut_now();
        let (clearer, backlog, shipped) = (Arc::clone(&self.clearer), Arc::clone(&self.backlog), self.shipped.clone());
        let health = Arc::clone(&self.health);
        let Ended { writer, whole, manifests } = self.end_tasks(drain).await?;
        let waiting = backlog.waiting();
        clearer.clear_all().await?;
        let shipped = shipped.borrow().clone();
        let all = whole && waiting.segments == 0 && health.is_sound();
        Ok(Stopped { writer, clearer, shipped, all, left: waiting.bytes, manifests })
    }

    /// Ends it after [`Pipeline::quiesce`], when all is shipped: nothing more is captured, and nothing of what the bitmaps
    /// and the record say is changed.
    pub(crate) async fn retire(self, patience: Duration) -> Result<Arc<DomainWriter>> {
        self.end_tasks(patience).await.map(|ended| ended.writer)
    }

    /// Ends the tasks in their order, for as long as `drain` allows.
    async fn end_tasks(self, drain: Duration) -> Result<Ended> {
        self.recorder.close();
        let packers = self.packers;
        let joined = tokio::task::spawn_blocking(move || packers.into_iter().all(|packer| packer.join().is_ok()));
        let whole = joined.await.map_err(|e| Error::with_source(ErrorKind::Internal, "wait for packers", e))?;
        let (mut sealing, mut shipping, mut ledger) = (self.sealing, self.shipping, self.ledger);
        let ended = tokio::time::timeout(drain, async {
            let _ = (&mut sealing).await;
            let _ = (&mut shipping).await;
            (&mut ledger).await.unwrap_or(0)
        });
        let ended = ended.await;
        if ended.is_err() {
            // Aborted where they stand: what is not accepted stays marked in the bitmaps.
            sealing.abort();
            shipping.abort();
            self.stop_ledger.cancel();
            drop(self.halt);
            ledger.abort();
        }
        Ok(Ended { writer: self.writer, whole: whole && ended.is_ok(), manifests: ended.unwrap_or(0) })
    }
}

/// How the tasks ended.
struct Ended {
    writer: Arc<DomainWriter>,
    /// None was cut off.
    whole: bool,
    manifests: u64,
}

/// How a pipeline ended.
pub(crate) struct Stopped {
    pub(crate) writer: Arc<DomainWriter>,
    pub(crate) clearer: Arc<Clearer>,
    pub(crate) shipped: Shipped,
    /// Everything that was captured is part of the domain.
    pub(crate) all: bool,
    /// Bytes of segments that were not shipped.
    pub(crate) left: u64,
    pub(crate) manifests: u64,
}

/// What is part of the domain at the start, at `now` of the wall clock.
fn found(map: &PointMap, now: Time) -> Shipped {
    let covered = map.last_point().map(|point| Arc::clone(&point.vms)).unwrap_or_default();
    let point_time = map.last_point().map(|point| point.time).unwrap_or_default();
    let mut shipped = Shipped { at: map.at(), point_time, covered, ..Shipped::default() };
    let since = Instant::now();
    let older = map.manifest().into_iter().flat_map(|manifest| &manifest.points);
    for (at, point) in older.chain(map.points_since_manifest()) {
        let age = PointAge::found(point.time, now, since);
        let covering = Covering { at: at.segment, time: point.time, age };
        shipped.points.extend(point.vms.iter().map(|vm| (*vm, covering)));
    }
    shipped
}

async fn until_worse(health: Arc<Health>, work: impl Future<Output = Result<()>>) {
    if let Err(error) = work.await {
        health.fail(&error);
    }
}

async fn cut_in_time(recorder: Arc<Recorder>, age: Duration, idle: Duration, end: Cancel) {
    while !end.is_cancelled() {
        recorder.cut_if_due(age, idle);
        tokio::select! { () = tokio::time::sleep(CUT_EVERY.min(age / 2)) => {} () = end.cancelled() => {} }
    }
}
