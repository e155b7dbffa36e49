//! The run of the stages: map pages, reader, workers and uploads side by side, until all is read and stored.
//!
//! Owns the threads and how the memory budget is divided. Invariants: threads are joined before it returns, also after
//! an error; dropping it midway halts them. Of the budget a quarter is for reading, half for segments; the rest is for
//! map pages and what the storage site holds.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::bounded;
use tokio::sync::{RwLock, mpsc, watch};

use super::budget::Budget;
use super::chain::Chain;
use super::halt::Halt;
use super::images::Images;
use super::pieces::{PIECE_BYTES, Page};
use super::reader::{Reader, Work};
use super::request::ReplicateRequest;
use super::ship::{Prefix, accept_all, upload_all};
use super::source::SourceImage;
use super::worker::{Floor, Open, Shipment, Tally, Worker};
use crate::datastore::{Access, DiskEngine, EngineOptions, FileId, Slab, start};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::{Extent, IndexDisk, PAGE_SPAN, Point};
use crate::map::{PageKey, PointMap};
use crate::progress::Progress;
use crate::store::{Domain, DomainWriter};

/// Reads under way at most: enough for any disk at a megabyte each.
const MAX_READS: usize = 64;
/// Map pages loaded ahead of the reader.
const PAGES_AHEAD: usize = 2;
/// What a segment may take beyond the length at which it is cut: one frame that does not compress, and its header.
const SEGMENT_SLACK: u64 = 512 << 10;

/// How the memory budget is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Division {
    slots: usize,
    workers: usize,
    segments: usize,
    segment_bytes: u64,
}

/// A quarter of the budget for reading, half for segments; each worker has an open one, and two more can be under way.
fn divide(memory: u64, wanted_workers: usize, segment_bytes: u64) -> Division {
    let slots = (memory / 4 / PIECE_BYTES).clamp(4, 256) as usize;
    let segment_bytes = segment_bytes.min(memory / 2 / 4);
    let segments = (memory / 2 / (segment_bytes + SEGMENT_SLACK)).clamp(3, 1024) as usize;
    let workers = wanted_workers.clamp(1, segments - 2).min(slots);
    Division { slots, workers, segments, segment_bytes }
}

/// Everything the stages work on.
pub(crate) struct Transfer {
    pub(crate) engine: Arc<dyn DiskEngine>,
    pub(crate) images: Arc<Vec<SourceImage>>,
    pub(crate) floor: Arc<Floor>,
    pub(crate) workers: usize,
    files: Vec<FileId>,
}

/// What the stages did.
pub(crate) struct Transferred {
    /// All segments of the run.
    pub(crate) prefix: Prefix,
    /// Bytes read from the images.
    pub(crate) read: u64,
    /// When the last segment was sealed.
    pub(crate) sealed: std::time::Instant,
    /// The images, with what was found at the end.
    pub(crate) images: Images,
}

/// Stops the threads where the run is given up midway.
struct Abandon(Option<Halt>);

impl Drop for Abandon {
    fn drop(&mut self) {
        if let Some(halt) = self.0.take() {
            halt.fail(Error::new(ErrorKind::Cancelled, "the replication was given up"));
        }
    }
}

/// Starts the engine and opens the images in it.
pub(crate) fn prepare(
    request: &ReplicateRequest,
    images: Vec<SourceImage>,
    disks: Vec<IndexDisk>,
    chain: Chain,
    progress: Arc<Progress>,
    halt: Halt,
) -> Result<Transfer> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = if request.workers == 0 { cores } else { request.workers };
    let division = divide(request.memory, wanted, request.segment_bytes);
    let slab = Slab::new(division.slots, PIECE_BYTES as usize)?;
    let options = EngineOptions { queue_depth: MAX_READS.min(division.slots), ..EngineOptions::default() };
    let engine = start(request.engine, slab, options)?;
    let open = |image: &SourceImage| {
        let opened = engine.open(&image.pinned_path(), Access::Read);
        opened.map_err(|e| e.while_doing(format!("disk image {}", image.path().display())))
    };
    let files = images.iter().map(open).collect::<Result<Vec<_>>>()?;
    let floor = Floor {
        disks,
        chain,
        budget: Budget::new(division.segments, division.segment_bytes + SEGMENT_SLACK),
        halt,
        progress,
        tally: Tally::default(),
        segment_bytes: division.segment_bytes,
        level: request.level,
    };
    Ok(Transfer { engine, images: Arc::new(images), floor: Arc::new(floor), workers: division.workers, files })
}

impl Transfer {
    /// Runs all stages. `point` makes the point, once all is read and found unchanged.
    ///
    /// # Errors
    /// The first error of any stage.
    pub(crate) async fn run(
        self,
        writer: &DomainWriter,
        map: &RwLock<PointMap>,
        mut images: Images,
        point: impl FnOnce(bool) -> Point,
    ) -> Result<Transferred> {
        let halt = self.floor.halt.clone();
        let mut abandon = Abandon(Some(halt.clone()));
        let (pages_in, pages) = mpsc::channel(PAGES_AHEAD);
        let (shipments_in, shipments) = mpsc::channel(1);
        let (prefix_in, prefix) = watch::channel(Prefix { at: map.read().await.at(), ..Prefix::default() });
        let domain = writer.domain().clone();
        let threads = self.spawn(pages, &shipments_in)?;
        let progress = Arc::clone(&self.floor.progress);
        let loading = async { self.load_pages(&domain, map, pages_in).await.unwrap_or_else(|e| halt.fail(e)) };
        let uploading = async {
            let all = upload_all(domain.site(), domain.name(), shipments, map, prefix_in, &progress, &halt);
            all.await.unwrap_or_else(|e| halt.fail(e));
        };
        let accepting = async { accept_all(writer, prefix, &progress).await.map_err(|e| halt.fail(e)).ok() };
        let closing =
            async { self.close(threads, shipments_in, &mut images, point).await.map_err(|e| halt.fail(e)).ok() };
        let ((), (), accepted, closed) = tokio::join!(loading, uploading, accepting, closing);
        abandon.0 = None;
        halt.outcome()?;
        match (accepted, closed) {
            (Some(prefix), Some((read, sealed))) => Ok(Transferred { prefix, read, sealed, images }),
            _ => Err(Error::new(ErrorKind::Internal, "a stage ended without its result")),
        }
    }

    /// Starts reader and workers.
    fn spawn(&self, pages: mpsc::Receiver<Page>, shipments: &mpsc::Sender<Shipment>) -> Result<Threads> {
        let (work_in, work) = bounded::<Work>(self.engine.slab().slots());
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let mut workers = Vec::with_capacity(self.workers);
        for _ in 0..self.workers {
            let worker = Worker::new(Arc::clone(&self.floor), shipments.clone())?;
            let work = work.clone();
            let thread = spawn("freshet-pack").spawn(move || worker.run(&work));
            workers.push(thread.io_context(|| "start a worker thread")?);
        }
        let depth = self.engine.info().queue_depth;
        let (engine, images) = (Arc::clone(&self.engine), Arc::clone(&self.images));
        let reader = Reader::new(engine, images, self.files.clone(), depth, pages, work_in, self.floor.halt.clone());
        let reader = spawn("freshet-read").spawn(move || reader.run()).io_context(|| "start the reading thread")?;
        Ok(Threads { reader, workers })
    }

    /// Loads the pages of all disks in order.
    async fn load_pages(&self, domain: &Domain, map: &RwLock<PointMap>, out: mpsc::Sender<Page>) -> Result<()> {
        for (disk, member) in self.floor.disks.iter().enumerate() {
            for page in 0..member.size.div_ceil(PAGE_SPAN) {
                let span = page * PAGE_SPAN..((page + 1) * PAGE_SPAN).min(member.size);
                let key = PageKey { disk: member.id, page };
                let mut extents = map.read().await.page(domain.site(), domain, key).await?;
                clip(&mut extents, span.end);
                if out.send(Page { disk, span, extents: extents.into() }).await.is_err() {
                    // The reader ended: why is told by it.
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Waits for the threads, checks that the images are what was read, and seals what is left; the last segment ends at
    /// the point.
    async fn close(
        &self,
        threads: Threads,
        shipments: mpsc::Sender<Shipment>,
        images: &mut Images,
        point: impl FnOnce(bool) -> Point,
    ) -> Result<(u64, std::time::Instant)> {
        let joined = tokio::task::spawn_blocking(move || threads.join()).await;
        let (read, left) = joined.map_err(|e| Error::with_source(ErrorKind::Internal, "wait for threads", e))??;
        self.floor.halt.check()?;
        images.check_still(&self.images)?;
        let mut open = self.merge(left);
        let last = match open.pop() {
            Some(last) => last,
            None => self.open().await?,
        };
        for part in open {
            self.send(&shipments, self.floor.seal(part, None)?).await?;
        }
        let last = self.floor.seal(last, Some(point(images.fuzzy)))?;
        let sealed = std::time::Instant::now();
        self.send(&shipments, last).await?;
        Ok((read, sealed))
    }

    /// Puts what the workers left into as few segments as it fits.
    fn merge(&self, left: Vec<Open>) -> Vec<Open> {
        let mut merged: Vec<Open> = Vec::with_capacity(left.len());
        for part in left {
            let rest = match merged.last_mut() {
                Some(last) => last.absorb(part, self.floor.segment_bytes),
                None => Some(part),
            };
            merged.extend(rest);
        }
        merged
    }

    /// An empty segment, for the point alone.
    async fn open(&self) -> Result<Open> {
        let floor = Arc::clone(&self.floor);
        let opened = tokio::task::spawn_blocking(move || floor.open()).await;
        let opened = opened.map_err(|e| Error::with_source(ErrorKind::Internal, "wait for memory", e))?;
        opened.ok_or_else(|| Error::new(ErrorKind::Cancelled, "stopped; run it again to go on"))
    }

    async fn send(&self, shipments: &mpsc::Sender<Shipment>, shipment: Shipment) -> Result<()> {
        let sent = shipments.send(shipment).await;
        sent.map_err(|_| Error::new(ErrorKind::Cancelled, "stopped; run it again to go on"))
    }
}

struct Threads {
    reader: JoinHandle<u64>,
    workers: Vec<JoinHandle<Option<Open>>>,
}

impl Threads {
    fn join(self) -> Result<(u64, Vec<Open>)> {
        let died = |_| Error::new(ErrorKind::Internal, "a thread of the replication panicked");
        let read = self.reader.join().map_err(died)?;
        let left = self.workers.into_iter().map(|w| w.join().map_err(died)).collect::<Result<Vec<_>>>()?;
        Ok((read, left.into_iter().flatten().collect()))
    }
}

/// Cuts off what lies past the end of a disk that shrank.
fn clip(extents: &mut Vec<Extent>, end: u64) {
    extents.retain(|e| e.offset < end);
    if let Some(last) = extents.last_mut() {
        // Shorter than it was, so that it still fits.
        last.len = u32::try_from(u64::from(last.len).min(end - last.offset)).unwrap_or(last.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_fit_the_budget_and_leave_room_for_uploads() {
        const MIB: u64 = 1 << 20;
        for memory in [96, 128, 512, 4096] {
            for workers in [1, 2, 16, 500] {
                for segment in [MIB / 16, 16 * MIB, 64 * MIB] {
                    let d = divide(memory * MIB, workers, segment);
                    let taken = d.slots as u64 * PIECE_BYTES + d.segments as u64 * (d.segment_bytes + SEGMENT_SLACK);
                    assert!(taken <= memory * MIB * 7 / 8, "{d:?} of {memory} MiB");
                    assert!(d.workers >= 1 && d.segments >= d.workers + 2 && d.slots >= 24, "{d:?}");
                }
            }
        }
        assert_eq!(divide(512 * MIB, 2, 16 * MIB).segment_bytes, 16 * MIB);
    }
}
