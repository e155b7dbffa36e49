//! One protected disk: what a guest's request does to the local image, the bitmap and the open segment.
//!
//! ```text
//! hold (bounded) -> range lock -> intent bit -> local write -> captured, or marked unsynced -> unlock -> acknowledge
//! ```
//!
//! Owns that order. Invariants: a write joins the open segment, or its regions become unsynced, before it is
//! acknowledged; the range lock is held from before the local write until then; a failed local write leaves its regions
//! unsynced. Reads of guests take no lock. It never ships and never clears a bit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use super::filling::Filling;
use super::health::Health;
use super::recorder::{Recorder, Taken, Written};
use super::unwatched;
use super::valve::Valve;
use crate::error::{Error, ErrorKind, Result};
use crate::format::IndexDisk;
use crate::ids::{Name, SegmentNo};
use crate::intent::{Intent, RangeLock, WriteMark};
use crate::nbd::{
    Answer, BackingDisk, BlockStatus, Buffers, Errno, Export, ExportError, ExportInfo, Payload, Share, ZeroMode,
};

/// Frames begin at multiples of so many bytes.
const SECTOR: u64 = 512;

/// What guests' writes do once another writer owns the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FencedPolicy {
    /// Go on, unprotected: the local disk diverges and is kept.
    #[default]
    Continue,
    /// Fail, so that the guest cannot diverge any further.
    Stop,
}

/// What captures, once the domain is claimed.
pub(crate) struct Flow {
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) valve: Arc<Valve>,
}

/// Counts of one disk's guests.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) writes: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) read: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) failed: AtomicU64,
}

/// See the module.
pub(crate) struct ProtectedDisk {
    label: String,
    index: IndexDisk,
    backing: Arc<BackingDisk>,
    intent: Intent,
    lock: RangeLock,
    /// Buffers for reading back.
    share: Arc<Share>,
    health: Arc<Health>,
    policy: FencedPolicy,
    flow: OnceLock<Flow>,
    began: Instant,
    /// Milliseconds from `began` to the last request of a guest.
    last_request: AtomicU64,
    /// The newest segment when something was last written that the chain has not.
    doubt: AtomicU64,
    /// Some point covered its VM, before this run or in it.
    synced_once: AtomicBool,
    /// Tells whether its guest is being copied onto it: what it holds then is no moment of the guest.
    filling: OnceLock<(Filling, Name, Name)>,
    sync_error: Mutex<Option<String>>,
    /// It is noted on the image that its bitmap cannot be written.
    unwatched: OnceCell<()>,
    pub(crate) traffic: Traffic,
}

impl ProtectedDisk {
    /// A disk whose writes are only marked, until [`ProtectedDisk::attach`].
    pub(crate) fn new(
        label: String,
        index: IndexDisk,
        backing: Arc<BackingDisk>,
        intent: Intent,
        share: Arc<Share>,
        health: Arc<Health>,
        policy: FencedPolicy,
    ) -> ProtectedDisk {
        ProtectedDisk {
            label,
            index,
            backing,
            intent,
            lock: RangeLock::new(),
            share,
            health,
            policy,
            flow: OnceLock::new(),
            began: Instant::now(),
            last_request: AtomicU64::new(0),
            doubt: AtomicU64::new(0),
            synced_once: AtomicBool::new(false),
            filling: OnceLock::new(),
            sync_error: Mutex::new(None),
            unwatched: OnceCell::new(),
            traffic: Traffic::default(),
        }
    }

    /// From now on writes are captured as `flow` says. What was written before is unsynced, and in doubt up to `base`.
    pub(crate) fn attach(&self, flow: Flow, base: SegmentNo) {
        self.doubt.fetch_max(base.get(), Relaxed);
        // Attached once; a second flow would capture into segments that nobody packs.
        let _ = self.flow.set(flow);
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn index_disk(&self) -> &IndexDisk {
        &self.index
    }

    pub(crate) fn intent(&self) -> &Intent {
        &self.intent
    }

    pub(crate) fn lock(&self) -> &RangeLock {
        &self.lock
    }

    pub(crate) fn backing(&self) -> &Arc<BackingDisk> {
        &self.backing
    }

    /// Buffers of all requests, of this disk and the others.
    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        self.share.buffers()
    }

    /// The list that says whether its guest is being copied onto it, with its names there.
    pub(crate) fn watch_filling(&self, list: &Filling, vm: &Name, disk: &Name) {
        // Once, before it is served.
        let _ = self.filling.set((list.clone(), vm.clone(), disk.clone()));
    }

    fn is_filling(&self) -> bool {
        self.filling.get().is_some_and(|(list, vm, disk)| list.has(vm, disk))
    }

    /// Whether the chain has all of it that was acknowledged, and that is of its guest.
    pub(crate) fn is_synced(&self) -> bool {
        let synced = !self.is_filling() && self.intent.next_unsynced(0).is_none();
        if synced {
            self.note_synced();
        }
        synced
    }

    /// Some point covers its VM.
    pub(crate) fn note_synced(&self) {
        self.synced_once.store(true, Relaxed);
    }

    /// Whether some point ever did.
    pub(crate) fn was_synced(&self) -> bool {
        self.synced_once.load(Relaxed)
    }

    /// A map tells what must be shipped only from this segment on.
    pub(crate) fn doubt(&self) -> SegmentNo {
        SegmentNo::new(self.doubt.load(Relaxed))
    }

    /// How long no guest asked for anything.
    pub(crate) fn idle_for(&self) -> Duration {
        let last = self.last_request.load(Relaxed);
        self.began.elapsed().saturating_sub(Duration::from_millis(last))
    }

    /// All regions may hold anything: they are marked, durably, and will be compared.
    pub(crate) async fn doubt_all(&self) -> Result<()> {
        let mark = self.intent.begin_write(0..self.index.size).await?;
        self.missed(mark);
        Ok(())
    }

    pub(crate) fn report_sync_error(&self, error: &Error) {
        let mut told = self.sync_error.lock().unwrap_or_else(PoisonError::into_inner);
        let text = error.to_string();
        if told.as_ref() != Some(&text) {
            tracing::warn!("sync of {}: {text}", self.label);
            *told = Some(text);
        }
    }

    pub(crate) fn clear_sync_error(&self) {
        *self.sync_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn sync_error(&self) -> Option<String> {
        self.sync_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the local disk holds in a range of at most a buffer; `None` where all of it is known to be zero. The caller
    /// holds the range's lock.
    pub(crate) async fn read_back(&self, offset: u64, len: u64) -> Result<Option<Payload>> {
        let failed = |e: ExportError| Error::new(ErrorKind::Io, format!("{}: {}", self.label, e.text));
        let mut at = offset;
        while at < offset + len {
            let parts = self.backing.allocation(at, offset + len - at, false).map_err(failed)?;
            if parts.iter().any(|part| !part.zero) {
                let into = self.share.take(offset, len as usize).await.map_err(failed)?;
                return self.backing.read_into(offset, into).await.map(Some).map_err(failed);
            }
            let told: u64 = parts.iter().map(|part| part.len).sum();
            at += told.max(1);
        }
        Ok(None)
    }

    fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_request.store(now, Relaxed);
    }

    /// Holds a change as long as the valve says, and refuses it where the policy says so. Answers how much longer the
    /// change may be held.
    async fn admit(&self) -> Result<Duration, ExportError> {
        self.touch();
        if self.policy == FencedPolicy::Stop && self.health.is_fenced() {
            let why = format!("{}: another writer owns the domain; changes are refused, as asked", self.label);
            return Err(ExportError::new(Errno::Perm, why));
        }
        let Some(flow) = self.flow.get() else { return Ok(Duration::MAX) };
        let (bound, hold) = (flow.valve.bound(), flow.valve.hold());
        if !hold.is_zero() {
            tokio::time::sleep(hold).await;
        }
        Ok(bound.saturating_sub(hold))
    }

    /// A mark on the regions of a change. Where the bitmap cannot be written any more, the guest goes on unprotected.
    async fn mark(&self, range: std::ops::Range<u64>) -> Result<WriteMark, ExportError> {
        match self.intent.begin_write(range.clone()).await {
            Ok(mark) => Ok(mark),
            Err(error) => {
                self.health.fail(&error);
                self.unwatched.get_or_try_init(|| self.note_unwatched()).await?;
                Ok(self.intent.begin_unprotected(range)?)
            }
        }
    }

    /// The next start must not believe the bitmap, which says nothing of what is written from now on.
    async fn note_unwatched(&self) -> Result<(), ExportError> {
        let path = self.backing.image().path().to_owned();
        let noting = tokio::task::spawn_blocking(crate::log_context::here(move || unwatched::note(&path))).await;
        let noted = noting.map_err(|e| Error::with_source(ErrorKind::Internal, "note on an image", e)).and_then(|n| n);
        match noted {
            Ok(()) => Ok(()),
            Err(error) if self.policy == FencedPolicy::Stop => {
                let why = format!("{}: its bitmap cannot be written, nor can that be noted: {error}", self.label);
                Err(ExportError::new(Errno::Io, why))
            }
            Err(error) => {
                let advice = "remove its bitmap from the state directory before the next start";
                self.report_sync_error(&error.while_doing(format!("{}: {advice}", self.label)));
                Ok(())
            }
        }
    }

    /// Ends a change that is on the local disk, and may be held for `patience` yet. `parts` are what stands there now.
    async fn capture(&self, mark: WriteMark, parts: &[(u64, Written<'_>)], mut patience: Duration) {
        let mut last = None;
        if let Some(flow) = self.flow.get() {
            patience = patience.min(flow.valve.bound());
            for (offset, written) in parts {
                match flow.recorder.record_within(&self.index, *offset, *written, &mut patience).await {
                    Taken::Captured(number) => last = last.max(Some(number)),
                    Taken::Not => {
                        last = None;
                        break;
                    }
                }
            }
            flow.valve.note_held(flow.valve.bound().saturating_sub(patience));
        }
        match last {
            Some(number) => mark.captured(number),
            None => self.missed(mark),
        }
    }

    /// The chain lacks a change. First the doubt, then the mark: who sees the region unsynced knows from when on.
    pub(crate) fn missed(&self, mark: WriteMark) {
        if let Some(flow) = self.flow.get() {
            self.doubt.fetch_max(flow.recorder.newest().get(), Relaxed);
        }
        mark.uncaptured();
    }

    fn failed(&self, mark: WriteMark, error: ExportError) -> ExportError {
        self.traffic.failed.fetch_add(1, Relaxed);
        if let Some(flow) = self.flow.get() {
            self.doubt.fetch_max(flow.recorder.newest().get(), Relaxed);
        }
        mark.failed();
        error
    }

    /// The sectors that a range touches.
    fn sectors(&self, offset: u64, len: u64) -> std::ops::Range<u64> {
        let end = (offset + len).next_multiple_of(SECTOR).min(self.index.size);
        offset - offset % SECTOR..end
    }

    async fn change(&self, offset: u64, data: Payload, fua: bool) -> Result<(), ExportError> {
        let patience = self.admit().await?;
        let len = data.len() as u64;
        let range = self.sectors(offset, len);
        let guard = self.lock.lock(range.clone()).await;
        let mark = self.mark(range.clone()).await?;
        let data = match self.backing.write_from(offset, data).await {
            Ok(data) => data,
            Err(error) => return Err(self.failed(mark, error)),
        };
        self.traffic.writes.fetch_add(1, Relaxed);
        self.traffic.written.fetch_add(len, Relaxed);
        if range == (offset..offset + len) {
            self.capture(mark, &[(offset, Written::Bytes(&data))], patience).await;
        } else {
            drop(data);
            self.capture_sectors(mark, range, patience).await;
        }
        drop(guard);
        if fua { self.sync().await } else { Ok(()) }
    }

    /// Makes all durable on the local disk that had completed before.
    async fn sync(&self) -> Result<(), ExportError> {
        let synced = self.backing.sync_data().await;
        if let Err(error) = &synced {
            // No later sync proves what this one did not.
            self.intent.disk_sync_failed(&error.text);
        }
        synced
    }

    /// Captures whole sectors as they stand on the disk, after a change of parts of them.
    async fn capture_sectors(&self, mark: WriteMark, range: std::ops::Range<u64>, patience: Duration) {
        let mut parts = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(1 << 20).min((1 << 20) - at % 4096);
            match self.read_back(at, len).await {
                Ok(read) => parts.push((at, len, read)),
                Err(error) => {
                    tracing::warn!("{}: could not be read back: {error}", self.label);
                    return self.missed(mark);
                }
            }
            at += len;
        }
        let parts: Vec<_> = parts
            .iter()
            .map(|(at, len, read)| (*at, read.as_ref().map_or(Written::Zeros(*len), |bytes| Written::Bytes(bytes))))
            .collect();
        self.capture(mark, &parts, patience).await;
    }

    async fn zero(&self, offset: u64, len: u64, mode: ZeroMode, fua: bool) -> Result<(), ExportError> {
        let patience = self.admit().await?;
        let range = self.sectors(offset, len);
        let guard = self.lock.lock(range.clone()).await;
        let mark = self.mark(range.clone()).await?;
        if let Err(error) = self.backing.zero(offset, len, mode).await {
            return Err(self.failed(mark, error));
        }
        self.traffic.writes.fetch_add(1, Relaxed);
        self.capture_zeros(mark, offset, len, patience).await;
        drop(guard);
        if fua { self.sync().await } else { Ok(()) }
    }

    /// Captures a range that was made zero. What is not a whole sector at either end is read back: frames begin at
    /// sectors.
    async fn capture_zeros(&self, mark: WriteMark, offset: u64, len: u64, patience: Duration) {
        let range = self.sectors(offset, len);
        if range == (offset..offset + len) {
            return self.capture(mark, &[(offset, Written::Zeros(len))], patience).await;
        }
        let inner = offset.next_multiple_of(SECTOR)..(offset + len) / SECTOR * SECTOR;
        if inner.start >= inner.end {
            return self.capture_sectors(mark, range, patience).await;
        }
        let (head, tail) = (self.sector(range.start, inner.start).await, self.sector(inner.end, range.end).await);
        let (Ok(head), Ok(tail)) = (head, tail) else { return self.missed(mark) };
        let mut parts = vec![(inner.start, Written::Zeros(inner.end - inner.start))];
        parts.extend(head.as_deref().map(|bytes| (range.start, Written::Bytes(bytes))));
        parts.extend(tail.as_deref().map(|bytes| (inner.end, Written::Bytes(bytes))));
        self.capture(mark, &parts, patience).await;
    }

    /// What stands in a part of a sector's length; `None` where it is empty.
    async fn sector(&self, from: u64, to: u64) -> Result<Option<Vec<u8>>> {
        if from >= to {
            return Ok(None);
        }
        let len = (to - from) as usize;
        Ok(Some(self.read_back(from, to - from).await?.map_or_else(|| vec![0; len], |bytes| bytes.to_vec())))
    }
}

impl Export for ProtectedDisk {
    fn info(&self) -> ExportInfo {
        self.backing.info()
    }

    fn read(self: Arc<Self>, offset: u64, into: Payload) -> Answer<Payload> {
        self.touch();
        self.traffic.reads.fetch_add(1, Relaxed);
        self.traffic.read.fetch_add(into.len() as u64, Relaxed);
        Export::read(Arc::clone(&self.backing), offset, into)
    }

    fn write(self: Arc<Self>, offset: u64, data: Payload, fua: bool) -> Answer<()> {
        Box::pin(async move { self.change(offset, data, fua).await })
    }

    fn flush(self: Arc<Self>) -> Answer<()> {
        self.touch();
        self.traffic.flushes.fetch_add(1, Relaxed);
        Box::pin(async move { self.sync().await })
    }

    /// Reads as zeros afterwards, so that disk and chain agree.
    fn trim(self: Arc<Self>, offset: u64, len: u64, fua: bool) -> Answer<()> {
        Box::pin(async move { self.zero(offset, len, ZeroMode { no_hole: false, fast: false }, fua).await })
    }

    fn write_zeroes(self: Arc<Self>, offset: u64, len: u64, mode: ZeroMode, fua: bool) -> Answer<()> {
        Box::pin(async move { self.zero(offset, len, mode, fua).await })
    }

    fn cache(self: Arc<Self>, offset: u64, len: u64) -> Answer<()> {
        Arc::clone(&self.backing).cache(offset, len)
    }

    fn extents(self: Arc<Self>, offset: u64, len: u64, one: bool) -> Answer<Vec<BlockStatus>> {
        Export::extents(Arc::clone(&self.backing), offset, len, one)
    }
}
