//! The working stage: threads that find what of the pieces must be shipped and compress it into segments.
//!
//! Each worker owns one open segment and compresses straight into it from the slot that was read, so that no byte is
//! copied in between; a full segment gets its place in the chain and goes to the uploads. Limits: a segment is opened
//! only with a permit from the budget.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use bytes::Bytes;
use crossbeam::channel::Receiver;
use tokio::sync::mpsc;

use super::budget::{Budget, Buffer};
use super::chain::Chain;
use super::compare::{Change, Comparer};
use super::halt::Halt;
use super::pieces::Piece;
use super::reader::Work;
use crate::datastore::Slot;
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::{FrameEncoder, Index, IndexDisk, Point, SegmentBuilder, SegmentHeader};
use crate::progress::Progress;

/// Raw bytes at which a segment is cut however well they compress, so that no apply of one takes for ever.
const MAX_RAW_BYTES: u64 = 512 << 20;

/// Counts of all workers.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) live: AtomicU64,
    pub(crate) shipped: AtomicU64,
    pub(crate) zeroed: AtomicU64,
    pub(crate) frames: AtomicU64,
    pub(crate) comparing_nanos: AtomicU64,
    pub(crate) compressing_nanos: AtomicU64,
}

/// A segment being filled.
#[derive(Debug)]
pub(crate) struct Open {
    builder: SegmentBuilder,
    buffer: Buffer,
    /// Bytes of images that were examined for it.
    examined: u64,
}

impl Open {
    /// Takes over what `other` holds, if both fit one segment of `segment_bytes`; gives it back otherwise.
    pub(crate) fn absorb(&mut self, other: Open, segment_bytes: u64) -> Option<Open> {
        if (self.builder.len() + other.builder.len()) as u64 > segment_bytes {
            return Some(other);
        }
        self.builder.absorb(&other.builder);
        self.examined += other.examined;
        None
    }
}

/// A sealed segment on its way to the storage site.
#[derive(Debug)]
pub(crate) struct Shipment {
    /// Its header.
    pub(crate) header: SegmentHeader,
    /// Its index.
    pub(crate) index: Index,
    /// The object; holds the permit for its memory.
    pub(crate) bytes: Bytes,
    /// Bytes of images that are done once it is accepted.
    pub(crate) examined: u64,
}

/// What all workers of a run share.
pub(crate) struct Floor {
    /// The disks, by their position in the call.
    pub(crate) disks: Vec<IndexDisk>,
    pub(crate) chain: Chain,
    pub(crate) budget: Arc<Budget>,
    pub(crate) halt: Halt,
    pub(crate) progress: Arc<Progress>,
    pub(crate) tally: Tally,
    /// Stored bytes at which a segment is cut.
    pub(crate) segment_bytes: u64,
    pub(crate) level: i32,
}

impl Floor {
    /// A new segment; `None` once the work is stopped.
    pub(crate) fn open(&self) -> Option<Open> {
        let mut buffer = self.budget.take(&self.halt)?;
        let builder = SegmentBuilder::new(buffer.memory());
        Some(Open { builder, buffer, examined: 0 })
    }

    /// Gives `open` its place in the chain.
    pub(crate) fn seal(&self, open: Open, point: Option<Point>) -> Result<Shipment> {
        let sealed = self.chain.seal(open.builder, point)?;
        let bytes = open.buffer.share(sealed.bytes);
        Ok(Shipment { header: sealed.header, index: sealed.index, bytes, examined: open.examined })
    }
}

/// One worker; see the module.
pub(crate) struct Worker {
    floor: Arc<Floor>,
    out: mpsc::Sender<Shipment>,
    comparer: Comparer,
    encoder: FrameEncoder,
    changes: Vec<Change>,
    open: Option<Open>,
}

impl Worker {
    /// A worker that sends full segments to `out`.
    ///
    /// # Errors
    /// `Io` where there is no memory for compressing.
    pub(crate) fn new(floor: Arc<Floor>, out: mpsc::Sender<Shipment>) -> Result<Worker> {
        let encoder = FrameEncoder::new(floor.level).io_context(|| "set up compression")?;
        Ok(Worker { floor, out, comparer: Comparer::default(), encoder, changes: Vec::new(), open: None })
    }

    /// Works until the reader ends; returns the segment that is not full yet. Once the work is stopped it only empties
    /// the channel, so that the reader never waits for it.
    pub(crate) fn run(mut self, work: &Receiver<Work>) -> Option<Open> {
        for item in work {
            if self.floor.halt.is_set() {
                continue;
            }
            let outcome = match item {
                Work::Piece(piece, slot) => self.piece(&piece, slot),
                Work::Zeros { disk, offset, len } => self.push_zeros(disk, offset, len),
            };
            if let Err(error) = outcome {
                self.floor.halt.fail(error);
            }
        }
        self.open
    }

    fn piece(&mut self, piece: &Piece, mut slot: Slot) -> Result<()> {
        let started = Instant::now();
        let bytes = &mut slot[..piece.len];
        clear_gaps(bytes, &piece.runs);
        let mut changes = std::mem::take(&mut self.changes);
        changes.clear();
        let live = self.comparer.compare(piece.offset, bytes, piece.extents(), &mut changes);
        self.floor.tally.live.fetch_add(live, Relaxed);
        self.floor.tally.comparing_nanos.fetch_add(nanos_since(started), Relaxed);
        for change in &changes {
            match *change {
                Change::Data { offset, len } => {
                    let from = (offset - piece.offset) as usize;
                    self.push_data(piece.disk, offset, &bytes[from..from + len as usize])?;
                }
                Change::Zeros { offset, len } => self.push_zeros(piece.disk, offset, len)?,
            }
        }
        match &mut self.open {
            // What was found ends in the open segment at the latest, and is done when that is accepted.
            Some(open) if !changes.is_empty() => open.examined += piece.data_bytes(),
            _ => self.floor.progress.add_done(piece.data_bytes()),
        }
        self.changes = changes;
        Ok(())
    }

    fn push_data(&mut self, disk: usize, offset: u64, raw: &[u8]) -> Result<()> {
        self.make_room()?;
        let started = Instant::now();
        let Some(open) = &mut self.open else { return Err(stopped()) };
        let pushed = open.builder.push_data(&self.floor.disks[disk], offset, raw, None, &mut self.encoder);
        pushed.io_context(|| format!("compress {} bytes at {offset}", raw.len()))?;
        let tally = &self.floor.tally;
        tally.shipped.fetch_add(raw.len() as u64, Relaxed);
        tally.frames.fetch_add(1, Relaxed);
        tally.compressing_nanos.fetch_add(nanos_since(started), Relaxed);
        Ok(())
    }

    fn push_zeros(&mut self, disk: usize, offset: u64, len: u64) -> Result<()> {
        self.make_room()?;
        let Some(open) = &mut self.open else { return Err(stopped()) };
        open.builder.push_zeros(&self.floor.disks[disk], offset, len);
        self.floor.tally.zeroed.fetch_add(len, Relaxed);
        Ok(())
    }

    /// Sends the open segment off if it is full, and sees to it that there is one.
    fn make_room(&mut self) -> Result<()> {
        let full = |open: &mut Open| {
            open.builder.len() as u64 >= self.floor.segment_bytes || open.builder.raw_bytes() >= MAX_RAW_BYTES
        };
        if let Some(open) = self.open.take_if(full) {
            let shipment = self.floor.seal(open, None)?;
            self.out.blocking_send(shipment).map_err(|_| stopped())?;
        }
        if self.open.is_none() {
            self.open = Some(self.floor.open().ok_or_else(stopped)?);
        }
        Ok(())
    }
}

/// What ends a worker's step once the work is stopped; where something else failed first, that is what is told.
fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "stopped as asked; run it again to go on")
}

/// Makes zero what was not read: the slot holds stale bytes there.
fn clear_gaps(bytes: &mut [u8], runs: &[Range<usize>]) {
    let mut at = 0;
    for run in runs {
        bytes[at..run.start].fill(0);
        at = run.end;
    }
    bytes[at..].fill(0);
}

fn nanos_since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
