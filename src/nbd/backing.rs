//! The disk behind an export: an image read and written through the disk engine or the page cache, nothing captured.
//!
//! Owns the open image. What goes where:
//!
//! | cache mode | reads and writes | durable with |
//! |---|---|---|
//! | direct | the engine, past the page cache | flush or FUA: fdatasync, which also empties the disk's own cache |
//! | write-back | what the page cache has at once, on the calling thread; the rest by the engine, through the cache | flush or FUA: fdatasync |
//!
//! Syncs are shared: all who wait for one while another runs are served by the next.
//!
//! Invariants: a disk that failed a sync, or whose image was found shorter than what is served, has failed for good:
//! everything after that is `EIO` until it is opened again, because what it holds is not known any more.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use futures::FutureExt;
use rustix::io::{ReadWriteFlags, retry_on_intr};
use tokio::sync::{Mutex, oneshot};

use super::buffers::{Buffers, Payload};
use super::export::{Answer, BlockStatus, Errno, Export, ExportError, ExportInfo, ZeroMode};
use super::extents;
use super::image::Image;
use super::sync_group::SyncGroup;
use crate::datastore::{
    Access, Completion, DEFAULT_SLOT_BYTES, DiskEngine, EngineKind, EngineOptions, FileId, Op, Request, SLOT_ALIGN,
    Slab, Slot, start,
};
use crate::error::{Error, ErrorKind, IoResultExt, Result};

type Outcome<T> = Result<T, ExportError>;

/// Requests that the engine queues; more than connections usually have in flight, so that nobody waits to ask.
const QUEUE_DEPTH: usize = 1024;

/// Longest write that the calling thread makes into the page cache by itself.
const INLINE_WRITE: usize = DEFAULT_SLOT_BYTES;

/// Whether the page cache stands between the guests and the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// Past the page cache.
    Direct,
    /// Through the page cache; flush and FUA make durable.
    WriteBack,
}

/// Starts an engine for disks of one cache mode, on the buffers of a server.
///
/// # Errors
/// Those of [`start`].
pub fn start_engine(kind: EngineKind, cache: CacheMode, buffers: &Buffers) -> Result<Arc<dyn DiskEngine>> {
    let options = EngineOptions { queue_depth: QUEUE_DEPTH, direct: cache == CacheMode::Direct, ..Default::default() };
    // A ring has nothing to do where all goes through the page cache.
    let kind = if cache == CacheMode::WriteBack && kind == EngineKind::Auto { EngineKind::Threads } else { kind };
    start(kind, Arc::clone(buffers.slab()), options)
}

/// See the module's head. As an [`Export`] it serves the image as it is; what captures writes wraps it and calls the
/// plain methods.
pub struct BackingDisk {
    engine: Arc<dyn DiskEngine>,
    file: FileId,
    /// Through the page cache.
    cached: File,
    image: Image,
    cache: CacheMode,
    failed: OnceLock<String>,
    syncs: SyncGroup,
    /// A buffer of zeros, for what cannot be zeroed in any better way.
    zeros: Mutex<Option<Slot>>,
}

impl BackingDisk {
    /// Opens the image for service by `engine`.
    ///
    /// # Errors
    /// Those of opening; `Invalid` where the engine is not one for this cache mode (see [`start_engine`]).
    pub fn open(engine: Arc<dyn DiskEngine>, image: Image, cache: CacheMode) -> Result<Arc<BackingDisk>> {
        let shown = image.path().display().to_string();
        let access = if image.is_read_only() { Access::Read } else { Access::Write };
        let pinned = image.pinned_path();
        let cached = OpenOptions::new().read(true).write(access == Access::Write).open(&pinned);
        let cached = cached.io_context(|| format!("disk image {shown}"))?;
        let file = engine.open(&pinned, access).map_err(|e| e.while_doing(format!("disk image {shown}")))?;
        let not_direct = engine.file_info(file)?.not_direct;
        match (cache, not_direct) {
            (CacheMode::WriteBack, None) => {
                // Closing what was opened a moment ago cannot fail.
                let _ = engine.close(file);
                let text = format!("disk image {shown}: write-back mode needs an engine without direct I/O");
                return Err(Error::new(ErrorKind::Invalid, text));
            }
            (CacheMode::Direct, Some(why)) => tracing::warn!("disk image {shown} is not served directly: {why}"),
            _ => {}
        }
        Ok(Arc::new(BackingDisk {
            engine,
            file,
            cached,
            image,
            cache,
            failed: OnceLock::new(),
            syncs: SyncGroup::default(),
            zeros: Mutex::new(None),
        }))
    }

    /// The image.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Bytes served.
    pub fn size(&self) -> u64 {
        self.image.size()
    }

    /// Why the disk has failed for good, if it has.
    pub fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    /// Fills `into` from `offset` on.
    ///
    /// # Errors
    /// `Io`; also where the image ends before the range does.
    pub async fn read_into(&self, offset: u64, mut into: Payload) -> Outcome<Payload> {
        self.check()?;
        let done = match self.cache {
            CacheMode::Direct => 0,
            CacheMode::WriteBack => self.read_cached(offset, &mut into),
        };
        if done == into.len() {
            return Ok(into);
        }
        let (slot, range, mut rest) = into.into_parts();
        let wanted = range.len() - done;
        let op = Op::Read { offset: offset + done as u64, slot, range: range.start + done..range.end };
        let (completion, permit) = self.carry(op, rest.permit()).await;
        let read = completion.result.map_err(ExportError::from)?;
        if read < wanted {
            return Err(self.cut(offset + (done + read) as u64));
        }
        Ok(rest.join(slot_of(completion.slot)?, permit.flatten()))
    }

    /// Writes `data` at `offset` and gives it back. Not durable yet.
    ///
    /// # Errors
    /// `Io`, `NoSpc`; any part of the range may have been written then.
    pub async fn write_from(&self, offset: u64, data: Payload) -> Outcome<Payload> {
        self.check_whole()?;
        if self.cache == CacheMode::WriteBack && self.is_inline(offset, data.len()) {
            self.write_cached(offset, &data)?;
            return Ok(data);
        }
        let (slot, range, mut rest) = data.into_parts();
        let (completion, permit) = self.carry(Op::Write { offset, slot, range }, rest.permit()).await;
        completion.result.map_err(ExportError::from)?;
        Ok(rest.join(slot_of(completion.slot)?, permit.flatten()))
    }

    /// Makes all durable that had completed before: fdatasync, shared with others who wait for one.
    ///
    /// # Errors
    /// `Io`; the disk has failed for good then.
    pub async fn sync_data(&self) -> Outcome<()> {
        self.check_whole()?;
        if self.image.is_read_only() {
            return Ok(());
        }
        let synced = self.syncs.synced(async || self.control(Op::SyncData).await).await;
        synced.map_err(|error| self.fail(error.to_string()))?;
        // Shrunk meanwhile means that what was written is gone.
        self.check_whole()
    }

    /// Makes exactly the range read as zeros, and frees its space where that can be done.
    ///
    /// # Errors
    /// `NotSup` where holes cannot be made; nothing is changed then. `Io`.
    pub async fn punch(&self, offset: u64, len: u64) -> Outcome<()> {
        self.zero(offset, len, ZeroMode { no_hole: false, fast: true }).await
    }

    /// Makes exactly the range read as zeros, in the way that `mode` wants.
    ///
    /// # Errors
    /// `NotSup` for a fast wish that cannot be met, nothing is changed then; `Io`, `NoSpc`.
    pub async fn zero(&self, offset: u64, len: u64, mode: ZeroMode) -> Outcome<()> {
        self.check_whole()?;
        let whole = offset..offset + len;
        // The kernel zeroes whole blocks of a device without writing them one by one, and of a file any bytes.
        let middle = match self.image.is_block_device() {
            true => {
                offset.next_multiple_of(SLOT_ALIGN as u64).min(whole.end)
                    ..whole.end / SLOT_ALIGN as u64 * SLOT_ALIGN as u64
            }
            false => whole.clone(),
        };
        // On a device only a hole is sure not to be written out as zeros by the kernel.
        let slow = middle != whole || (self.image.is_block_device() && mode.no_hole);
        if mode.fast && slow {
            return Err(ExportError::new(Errno::NotSup, "zeros are not faster than a write here"));
        }
        if middle.is_empty() {
            return self.write_zeros(whole).await;
        }
        let (offset, len) = (middle.start, middle.end - middle.start);
        let op = if mode.no_hole { Op::ZeroRange { offset, len } } else { Op::PunchHole { offset, len } };
        match self.control(op).await {
            Ok(()) => {
                self.write_zeros(whole.start..middle.start).await?;
                self.write_zeros(middle.end..whole.end).await
            }
            Err(error) if error.kind() == ErrorKind::Unsupported && !mode.fast => self.write_zeros(whole).await,
            Err(error) => Err(error.into()),
        }
    }

    /// What is allocated from `offset` on; see [`Export::extents`].
    ///
    /// # Errors
    /// `Io`; also where the image ends before `offset`.
    pub fn allocation(&self, offset: u64, len: u64, one: bool) -> Outcome<Vec<BlockStatus>> {
        self.check_whole()?;
        if self.image.is_block_device() {
            return Ok(vec![BlockStatus { len, hole: false, zero: false }]);
        }
        let found = extents::of_file(&self.cached, offset..offset + len, one);
        found.map_err(|e| Error::io(format!("look for holes of {}", self.image.path().display()), e).into())
    }

    /// Has the range read into the page cache, where there is one in the way.
    pub fn advise(&self, offset: u64, len: u64) {
        if self.cache == CacheMode::WriteBack
            && let Err(error) =
                rustix::fs::fadvise(&self.cached, offset, std::num::NonZeroU64::new(len), rustix::fs::Advice::WillNeed)
        {
            tracing::debug!("read ahead in {}: {error}", self.image.path().display());
        }
    }

    /// Submits one operation and waits. `kept` is given back with the completion, or let go of after the operation
    /// when nobody waits any more.
    async fn carry<K: Send + 'static>(&self, op: Op, kept: K) -> (Completion, Option<K>) {
        let (sender, receiver) = oneshot::channel();
        let done = Box::new(move |completion: Completion| {
            // An error means that the future was dropped: the buffer goes back before what it was counted by.
            if let Err((completion, kept)) = sender.send((completion, kept)) {
                drop(completion);
                drop(kept);
            }
        });
        self.engine.submit(Request { file: self.file, op, done });
        match receiver.await {
            Ok((completion, kept)) => (completion, Some(kept)),
            Err(_) => {
                let error = Error::new(ErrorKind::Internal, "the disk engine dropped a request without an answer");
                (Completion { result: Err(error), slot: None }, None)
            }
        }
    }

    /// The same for an operation without a buffer.
    async fn control(&self, op: Op) -> Result<()> {
        self.carry(op, ()).await.0.result.map(drop)
    }

    /// Reads what the page cache has at once; how many bytes that was.
    fn read_cached(&self, offset: u64, into: &mut [u8]) -> usize {
        let mut done = 0;
        while done < into.len() {
            let mut part = [io::IoSliceMut::new(&mut into[done..])];
            let read = retry_on_intr(|| {
                rustix::io::preadv2(&self.cached, &mut part, offset + done as u64, ReadWriteFlags::NOWAIT)
            });
            match read {
                // The end of the file, something to wait for, or an error: the engine finds out which.
                Ok(0) | Err(_) => break,
                Ok(bytes) => done += bytes,
            }
        }
        done
    }

    /// Whether a write is made by the calling thread: whole pages need nothing read first.
    fn is_inline(&self, offset: u64, len: usize) -> bool {
        let end = offset + len as u64;
        let whole = |at: u64| at.is_multiple_of(SLOT_ALIGN as u64);
        len <= INLINE_WRITE && whole(offset) && (whole(end) || end == self.size())
    }

    fn write_cached(&self, offset: u64, data: &[u8]) -> Outcome<()> {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let wrote = match retry_on_intr(|| rustix::io::pwrite(&self.cached, &data[done..], at)) {
                Ok(0) => Err(io::Error::from(io::ErrorKind::WriteZero)),
                other => other.map_err(io::Error::from),
            };
            done += wrote.io_context(|| {
                format!("write of {} bytes at {offset} of {}", data.len(), self.image.path().display())
            })?;
        }
        Ok(())
    }

    async fn write_zeros(&self, range: Range<u64>) -> Outcome<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut kept = self.zeros.lock().await;
        let mut at = range.start;
        while at < range.end {
            let slot = match kept.take() {
                Some(slot) => slot,
                None => {
                    let mut slot = Slab::new(1, DEFAULT_SLOT_BYTES)?.take();
                    slot.fill(0);
                    slot
                }
            };
            let lead = (at % SLOT_ALIGN as u64) as usize;
            let len = (range.end - at).min((slot.len() - lead) as u64);
            let op = Op::Write { offset: at, slot, range: lead..lead + len as usize };
            let completion = self.carry(op, ()).await.0;
            *kept = completion.slot;
            completion.result?;
            at += len;
        }
        Ok(())
    }

    fn check(&self) -> Outcome<()> {
        match self.failed.get() {
            None => Ok(()),
            Some(why) => {
                Err(ExportError::new(Errno::Io, format!("{why}; the disk is not served until it is opened again")))
            }
        }
    }

    /// [`BackingDisk::check`], and that the image is as long as it was. A write past the end of a file that was cut
    /// would put it back to its length with zeros where data was.
    fn check_whole(&self) -> Outcome<()> {
        self.check()?;
        if self.image.is_block_device() {
            return Ok(());
        }
        let len = self.image.length_now().io_context(|| format!("length of {}", self.image.path().display()))?;
        if len < self.size() { Err(self.cut(len)) } else { Ok(()) }
    }

    fn cut(&self, at: u64) -> ExportError {
        let (path, size) = (self.image.path().display(), self.size());
        self.fail(format!("{path} was cut to {at} bytes, or less, while {size} were served"))
    }

    /// The disk has failed for good; told once.
    fn fail(&self, why: String) -> ExportError {
        let first = self.failed.get_or_init(|| {
            tracing::error!("{why}; every request is refused from now on");
            why
        });
        ExportError::new(Errno::Io, first.clone())
    }
}

fn slot_of(slot: Option<Slot>) -> Outcome<Slot> {
    slot.ok_or_else(|| ExportError::new(Errno::Io, "the disk engine kept a buffer"))
}

impl Drop for BackingDisk {
    fn drop(&mut self) {
        // Waits for what is in flight, so that nothing is written after the lock is let go of.
        if let Err(error) = self.engine.close(self.file) {
            tracing::warn!("close {}: {error}", self.image.path().display());
        }
    }
}

impl std::fmt::Debug for BackingDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackingDisk").field("image", &self.image).field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Export for BackingDisk {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            // No path: clients need not know how this machine is laid out.
            description: match self.cache {
                CacheMode::Direct => "disk image, past the page cache".to_owned(),
                CacheMode::WriteBack => "disk image, through the page cache".to_owned(),
            },
            read_only: self.image.is_read_only(),
            ..ExportInfo::new(self.size())
        }
    }

    fn read(self: Arc<Self>, offset: u64, into: Payload) -> Answer<Payload> {
        async move { self.read_into(offset, into).await }.boxed()
    }

    fn write(self: Arc<Self>, offset: u64, data: Payload, fua: bool) -> Answer<()> {
        async move {
            self.write_from(offset, data).await?;
            if fua { self.sync_data().await } else { Ok(()) }
        }
        .boxed()
    }

    fn flush(self: Arc<Self>) -> Answer<()> {
        async move { self.sync_data().await }.boxed()
    }

    fn trim(self: Arc<Self>, offset: u64, len: u64, fua: bool) -> Answer<()> {
        async move {
            match self.punch(offset, len).await {
                // A hint: what cannot be freed stays as it is.
                Err(error) if error.errno == Errno::NotSup => return Ok(()),
                other => other?,
            }
            if fua { self.sync_data().await } else { Ok(()) }
        }
        .boxed()
    }

    fn write_zeroes(self: Arc<Self>, offset: u64, len: u64, mode: ZeroMode, fua: bool) -> Answer<()> {
        async move {
            self.zero(offset, len, mode).await?;
            if fua { self.sync_data().await } else { Ok(()) }
        }
        .boxed()
    }

    fn cache(self: Arc<Self>, offset: u64, len: u64) -> Answer<()> {
        self.advise(offset, len);
        std::future::ready(Ok(())).boxed()
    }

    fn extents(self: Arc<Self>, offset: u64, len: u64, one: bool) -> Answer<Vec<BlockStatus>> {
        std::future::ready(self.allocation(offset, len, one)).boxed()
    }
}

#[cfg(test)]
mod tests;
