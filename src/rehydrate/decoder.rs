//! Decode workers: verify, decode, verify, and hand the bytes to the disk engine.
//!
//! Each worker takes one fetched range at a time. Frames that follow each other on the disk are decoded into one slot
//! and written with one request. A frame that does not verify is fetched again, twice at most, since the network may
//! have changed it; then its range is quarantined and the rest goes on.

use std::sync::Arc;

use bytes::Bytes;
use crossbeam::channel::Receiver;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

use crate::datastore::{DiskEngine, Op, Request, Slot};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{DecodeError, FrameDecoder, Parts, VerifiedFrame};
use crate::ids::DomainId;

use super::disks::DiskSet;
use super::source::FrameSource;
use super::tracker::Tracker;
use super::work::{PlannedFrame, RangeWork};

/// Further fetches of a frame that does not verify.
const REFETCHES: u32 = 2;
/// Writes within a slot begin at the same distance from a multiple of this as they do on the disk.
const PHASE: u64 = 4096;

/// A range that was fetched.
pub(super) struct Job {
    /// What it is.
    pub(super) work: RangeWork,
    /// Its bytes, as they came.
    pub(super) parts: Vec<Bytes>,
    /// Where to fetch a frame again.
    pub(super) source: Arc<FrameSource>,
    /// Its share of the memory budget and of the requests, given back when it is decoded.
    pub(super) _permits: Vec<OwnedSemaphorePermit>,
}

/// Bytes that are decoded but not yet handed to the engine.
struct Open {
    slot: Slot,
    disk: u32,
    /// First byte of the disk.
    start: u64,
    /// Where it stands in the slot.
    from: usize,
    len: usize,
}

/// One worker; runs on a thread of its own.
pub(super) struct Worker {
    pub(super) domain: DomainId,
    pub(super) engine: Arc<dyn DiskEngine>,
    pub(super) disks: Arc<DiskSet>,
    pub(super) tracker: Arc<Tracker>,
    pub(super) runtime: Handle,
    decoder: FrameDecoder,
    scratch: Vec<u8>,
    raw: Vec<u8>,
    open: Option<Open>,
}

impl Worker {
    /// A worker for the disks of `domain`.
    pub(super) fn new(
        domain: DomainId,
        engine: Arc<dyn DiskEngine>,
        disks: Arc<DiskSet>,
        tracker: Arc<Tracker>,
        runtime: Handle,
    ) -> Result<Worker> {
        let decoder = FrameDecoder::new().map_err(|e| Error::io("start a decoder", e))?;
        let (scratch, raw) = (Vec::new(), Vec::new());
        Ok(Worker { domain, engine, disks, tracker, runtime, decoder, scratch, raw, open: None })
    }

    /// Works until the channel is closed.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        for job in jobs {
            // A panic must not leave the others waiting for this job for ever.
            let guarded = std::panic::AssertUnwindSafe(|| self.tracker.check().and_then(|()| self.process(&job)));
            let result = std::panic::catch_unwind(guarded);
            self.open = None;
            match result {
                Ok(Ok(())) => {}
                Ok(Err(e)) => self.tracker.fail(e),
                Err(_) => self.tracker.fail(Error::new(ErrorKind::Internal, "a decode worker panicked")),
            }
            drop(job);
            self.tracker.job_ends();
        }
    }

    fn process(&mut self, job: &Job) -> Result<()> {
        let parts = Parts::new(&job.parts);
        for planned in &job.work.frames {
            let range = planned.frame.pos - job.work.start..planned.frame.end_pos() - job.work.start;
            let Err(error) = self.place(&parts, range, planned)? else { continue };
            self.place_again(job, planned, error)?;
        }
        self.submit_open()
    }

    /// Fetches a frame again and places it, or quarantines its live parts.
    fn place_again(&mut self, job: &Job, planned: &PlannedFrame, first: DecodeError) -> Result<()> {
        let mut error = first;
        for _ in 0..REFETCHES {
            let range = planned.frame.pos..planned.frame.end_pos();
            let fetched = self.runtime.block_on(job.source.again(job.work.segment, range.clone()))?;
            let Some(parts) = fetched else { break };
            match self.place(&Parts::new(&parts), 0..range.end - range.start, planned)? {
                Ok(()) => return Ok(()),
                Err(e) => error = e,
            }
        }
        let why = format!("frame at byte {} of segment {}: {error}", planned.frame.pos, job.work.segment);
        for piece in planned.pieces() {
            self.tracker.quarantine(planned.disk, piece.offset, u64::from(piece.len), &why);
        }
        Ok(())
    }

    /// Decodes one frame into slots. The outer error ends all work; the inner one is the frame's own.
    fn place(
        &mut self,
        parts: &Parts<'_>,
        range: std::ops::Range<u64>,
        planned: &PlannedFrame,
    ) -> Result<std::result::Result<(), DecodeError>> {
        let disk = self.disks.get(planned.disk);
        let id = planned.frame.id(self.domain, disk.id);
        let mut scratch = std::mem::take(&mut self.scratch);
        let stored = parts.slice(range, &mut scratch);
        let frame = stored.and_then(|stored| VerifiedFrame::open(stored, &id, &planned.frame.body));
        let placed = match frame {
            Err(e) => Ok(Err(e)),
            Ok(frame) if planned.is_whole() => self.place_whole(&frame, planned),
            Ok(frame) => self.place_parts(&frame, planned),
        };
        self.scratch = scratch;
        placed
    }

    fn place_whole(
        &mut self,
        frame: &VerifiedFrame<'_>,
        planned: &PlannedFrame,
    ) -> Result<std::result::Result<(), DecodeError>> {
        let len = planned.first.len as usize;
        self.make_room(planned.disk, planned.first.offset, len)?;
        let Some(open) = self.open.as_mut() else { return Err(no_slot()) };
        let at = open.from + open.len;
        let decoded = self.decoder.decode_into(frame, &mut open.slot[at..at + len]);
        if decoded.is_ok() {
            open.len += len;
        }
        Ok(decoded)
    }

    fn place_parts(
        &mut self,
        frame: &VerifiedFrame<'_>,
        planned: &PlannedFrame,
    ) -> Result<std::result::Result<(), DecodeError>> {
        let mut raw = std::mem::take(&mut self.raw);
        raw.resize(planned.frame.body.raw_len as usize, 0);
        let decoded = self.decoder.decode_into(frame, &mut raw);
        if decoded.is_ok() {
            for piece in planned.pieces() {
                let from = usize::try_from(piece.offset - planned.frame.start).unwrap_or(usize::MAX);
                let len = piece.len as usize;
                self.make_room(planned.disk, piece.offset, len)?;
                let Some(open) = self.open.as_mut() else { return Err(no_slot()) };
                let at = open.from + open.len;
                open.slot[at..at + len].copy_from_slice(&raw[from..from + len]);
                open.len += len;
            }
        }
        self.raw = raw;
        Ok(decoded)
    }

    /// Makes the open slot one that `len` bytes at `offset` of `disk` can be appended to.
    fn make_room(&mut self, disk: u32, offset: u64, len: usize) -> Result<()> {
        if let Some(open) = &self.open {
            let follows = open.disk == disk && open.start + open.len as u64 == offset;
            if follows && open.from + open.len + len <= open.slot.len() {
                return Ok(());
            }
        }
        self.submit_open()?;
        let slot = self.engine.slab().take();
        // Less than a page, so it fits; a frame that then does not fit is one that begins off a page boundary and
        // fills a slot, which goes through the page cache anyway.
        let mut from = (offset % PHASE) as usize;
        if from + len > slot.len() {
            from = 0;
        }
        self.open = Some(Open { slot, disk, start: offset, from, len: 0 });
        Ok(())
    }

    fn submit_open(&mut self) -> Result<()> {
        let Some(Open { slot, disk, start, from, len }) = self.open.take() else { return Ok(()) };
        if len == 0 {
            return Ok(());
        }
        self.tracker.write_begins()?;
        let tracker = Arc::clone(&self.tracker);
        let done = Box::new(move |completion: crate::datastore::Completion| {
            drop(completion.slot);
            tracker.write_ends(disk, start, len as u64, completion.result);
        });
        let op = Op::Write { offset: start, slot, range: from..from + len };
        self.engine.submit(Request { file: self.disks.get(disk).file, op, done });
        Ok(())
    }
}

fn no_slot() -> Error {
    Error::new(ErrorKind::Internal, "decode worker lost its slot")
}
