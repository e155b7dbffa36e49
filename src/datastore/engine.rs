//! The contract of the disk engine: what can be asked of a file, what comes back, and how an engine is started.
//!
//! Two engines fulfil it, one on io_uring and one on plain threads; the same tests run on both. This file holds the
//! words, and the choice between them in [`start`]; it does no I/O.
//!
//! # Contract
//!
//! * **Order.** There is none: requests may run and complete in any order, also on one file. Who needs an order
//!   submits the second after the first has completed. Two writes in flight at once must not touch the same block
//!   ([`Alignment::offset`] bytes) unless they touch disjoint bytes of it.
//! * **Whole or error.** A write is complete or failed; short writes are continued inside, and one that makes no
//!   progress is an error. After an error any part of the range may have been written. A read is short only at the
//!   end of the file.
//! * **Durable.** [`Op::SyncData`] covers every write, hole, allocation and length that had *completed before it was
//!   submitted*, through either descriptor of the file.
//! * **Poison.** After a failed sync nobody knows what is on the disk, and a second sync would report success. The
//!   file is poisoned: every later request on that [`FileId`] fails and says so, until it is closed and opened again
//!   by somebody who then trusts nothing since the last good sync.
//! * **Buffers** stay with the engine until the kernel is done with them, whatever happens, and come back in the
//!   [`Completion`].
//! * **Bounded.** At most [`EngineOptions::queue_depth`] requests are queued and in flight together, and 128 more on
//!   each thread that the engine drives; `submit` blocks at the limit. Dropping the engine first completes all that was
//!   submitted, then ends its threads.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use super::faults::Faults;
use super::slab::{Slab, Slot};
use super::threads::Threads;
use super::uring::Uring;
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads only: every other request fails, and the file may be on a read-only file system.
    Read,
    /// Reads and changes.
    Write,
}

/// An open file of one engine. Ids are never used again within it, so a stale one is an error and not another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub(crate) u32);

/// What goes straight to the disk. Requests that do not keep to it work too, but their odd head and tail (or, with
/// misaligned memory, all of them) go through the page cache, which is slower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Offsets and lengths in the file that are multiples of this many bytes go to the disk directly. At least a
    /// page, also where the disk takes 512: a page must not be written through the cache and directly at once.
    pub offset: u32,
    /// Addresses in memory must be multiples of this many bytes. Every slot begins at one.
    pub memory: u32,
    /// The unit that the disk itself reports for direct I/O in bytes, mostly 512 or 4096; for information.
    pub device: u32,
}

/// What an engine found out when it opened a file.
#[derive(Debug, Clone)]
pub struct FileInfo {
    /// Path as it was given to `open`.
    pub path: PathBuf,
    /// What it was opened for.
    pub access: Access,
    /// Length in bytes when asked: of the file, or of the block device.
    pub len: u64,
    /// Whether it is a block device, whose length is fixed.
    pub block_device: bool,
    /// What goes straight to the disk.
    pub alignment: Alignment,
    /// `None` when the file is opened for direct I/O, else the readable reason why it goes through the page cache.
    pub not_direct: Option<String>,
}

/// One operation on a file.
#[derive(Debug)]
pub enum Op {
    /// Write `slot[range]` to the file at `offset` bytes; past the end the file grows (a block device does not).
    Write {
        /// First byte in the file.
        offset: u64,
        /// The buffer, given back in the completion.
        slot: Slot,
        /// Which bytes of the slot; may be any part of it, also an empty one.
        range: Range<usize>,
    },
    /// Read into `slot[range]` from the file at `offset` bytes.
    Read {
        /// First byte in the file.
        offset: u64,
        /// The buffer, given back in the completion.
        slot: Slot,
        /// Which bytes of the slot; may be any part of it, also an empty one.
        range: Range<usize>,
    },
    /// Make durable all that completed before this was submitted (fdatasync: data, and the length needed to read it).
    SyncData,
    /// Make the range read as zeros and free its space; the file keeps its length, also where the range goes past it.
    /// Fails with `Unsupported` where the file system cannot: write zeros there.
    PunchHole {
        /// First byte in the file.
        offset: u64,
        /// Bytes; none is fine.
        len: u64,
    },
    /// Make the range read as zeros and keep, or reserve, its space; the file keeps its length, also where the range
    /// goes past it. Fails with `Unsupported` where the file system cannot: write zeros there.
    ZeroRange {
        /// First byte in the file.
        offset: u64,
        /// Bytes; none is fine.
        len: u64,
    },
    /// Reserve space for the range, which reads as zeros where nothing was written; the file grows to cover it.
    /// Fails with `Unsupported` where the file system cannot, and with `Full` where the space is not there.
    Allocate {
        /// First byte in the file.
        offset: u64,
        /// Bytes; none is fine.
        len: u64,
    },
    /// Cut or extend the file to this many bytes.
    SetLen(u64),
}

/// Called once with the outcome of a request, on a thread of the engine. It must be light, must not block, and must
/// not submit to, close files of, or wait for the same engine: send the completion on and return.
pub type Done = Box<dyn FnOnce(Completion) + Send>;

/// One operation on one file, and whom to tell.
pub struct Request {
    /// The file, as `open` returned it.
    pub file: FileId,
    /// What to do.
    pub op: Op,
    /// Whom to tell; always called, also for a file that is closed or poisoned.
    pub done: Done,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("file", &self.file).field("op", &self.op).finish_non_exhaustive()
    }
}

/// The outcome of a request.
#[derive(Debug)]
pub struct Completion {
    /// Bytes transferred: for a write the whole range, for a read less only at the end of the file, else 0. Errors
    /// name the file and the range; out of space is [`ErrorKind::Full`].
    pub result: Result<usize>,
    /// The buffer of a read or write, also after an error.
    pub slot: Option<Slot>,
}

/// Which engine to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// io_uring, or plain threads where the kernel does not let us; the reason is in [`EngineInfo`].
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// Plain threads.
    Threads,
}

/// Settings of an engine. All have bounds, checked by [`start`].
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Requests queued and in flight together, 1 to 4096. Default 64.
    pub queue_depth: usize,
    /// Threads with a ring each, 1 to 16. Default 1, which is enough for several GB/s.
    pub ring_threads: usize,
    /// Worker threads of the plain-thread engine, 1 to 128. Default 16.
    pub worker_threads: usize,
    /// Threads beside the rings for what would stall them (odd heads and tails, syncs, holes), 1 to 64. Default 4.
    pub helper_threads: usize,
    /// Register the slab with the kernel, where the memlock limit allows. Default true.
    pub register_buffers: bool,
    /// Open files for direct I/O, where the file system allows. Default true.
    pub direct: bool,
    /// Smallest [`Alignment::offset`], whatever the disk reports: a power of two up to 1 MiB. Default 1 (no wish).
    /// Makes a disk of 512-byte blocks behave like one of larger blocks.
    pub min_alignment: u32,
    /// Decides over every system call on a file's data, for tests of what stands on the engine; `None` outside them.
    pub faults: Option<Arc<dyn Faults>>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            queue_depth: 64,
            ring_threads: 1,
            worker_threads: 16,
            helper_threads: 4,
            register_buffers: true,
            direct: true,
            min_alignment: 1,
            faults: None,
        }
    }
}

impl EngineOptions {
    /// Whether every setting is within its bounds.
    ///
    /// # Errors
    /// `Invalid`, naming the first setting that is not.
    pub fn validate(&self) -> Result<()> {
        let bounds = [
            ("queue_depth", self.queue_depth, 4096),
            ("ring_threads", self.ring_threads, 16),
            ("worker_threads", self.worker_threads, 128),
            ("helper_threads", self.helper_threads, 64),
            ("min_alignment", self.min_alignment as usize, 1 << 20),
        ];
        for (name, value, most) in bounds {
            if !(1..=most).contains(&value) {
                let text = format!("disk engine: {name} is {value}, must be 1 to {most}");
                return Err(Error::new(ErrorKind::Invalid, text));
            }
        }
        if !self.min_alignment.is_power_of_two() {
            let text = format!("disk engine: min_alignment is {}, must be a power of two", self.min_alignment);
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        Ok(())
    }
}

/// What was started, for `--json` reports and the log.
#[derive(Debug, Clone)]
pub struct EngineInfo {
    /// [`EngineKind::IoUring`] or [`EngineKind::Threads`], never `Auto`.
    pub kind: EngineKind,
    /// Slots of the slab that are registered with the kernel; 0 on plain threads.
    pub registered_slots: usize,
    /// Requests queued and in flight together at most.
    pub queue_depth: usize,
    /// Readable reasons why it is less than was asked for (no io_uring, no registered buffers), and what to change.
    pub fallbacks: Vec<String>,
}

/// Moves slots to and from files. Cheap to share as `Arc<dyn DiskEngine>`; see the module's head for the contract,
/// and `impl dyn DiskEngine` for helpers that wait.
pub trait DiskEngine: Send + Sync {
    /// Opens an existing file or block device, for direct I/O where it can be had, with a second descriptor through
    /// the page cache for odd heads and tails.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Invalid` (a directory, a pipe), `Io`; each names the path.
    fn open(&self, path: &Path, access: Access) -> Result<FileId>;

    /// Waits for the requests in flight on `file`, then closes it. Nothing is synced. Also clears a poisoned file.
    /// Not to be called from [`Done`]. From work that an engine drives ([`DiskEngine::drive`]) it does not wait: the file
    /// is closed soon after.
    ///
    /// # Errors
    /// `Invalid` when it is not open.
    fn close(&self, file: FileId) -> Result<()>;

    /// Queues a request; blocks while the queue is full. Never fails itself: what is wrong comes in the completion.
    fn submit(&self, request: Request);

    /// Runs `work` on this thread until it is done, in a tokio runtime with I/O and time. Work that makes many small
    /// requests of this engine is served faster so: where the engine can it carries them on this thread. The work must
    /// not block for long, which would hold up its own requests and whoever closes a file. Not to be called from async
    /// code.
    ///
    /// # Errors
    /// `Io` when there can be no runtime; the work was not begun then.
    fn drive(&self, work: DrivenWork) -> Result<()> {
        drive_plainly(work)
    }

    /// What is known about an open file; the length is read anew.
    ///
    /// # Errors
    /// `Invalid` when it is not open, `Io` when the length cannot be read.
    fn file_info(&self, file: FileId) -> Result<FileInfo>;

    /// The slab whose slots this engine moves fastest. Slots of another slab work too, unregistered.
    fn slab(&self) -> &Arc<Slab>;

    /// Which engine this is and what it had to do without.
    fn info(&self) -> EngineInfo;
}

impl fmt::Debug for dyn DiskEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskEngine({:?})", self.info().kind)
    }
}

/// Work for [`DiskEngine::drive`]: called once, on the thread that runs what it answers with.
pub type DrivenWork = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Runs `work` on this thread, with no engine's help. What it started and did not wait for is not waited for either.
///
/// # Errors
/// `Io` when there can be no runtime; the work was not begun then.
pub fn drive_plainly(work: DrivenWork) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.io_context(|| "start the runtime of a thread")?;
    runtime.block_on(async { work().await });
    runtime.shutdown_background();
    Ok(())
}

/// Starts an engine over `slab`.
///
/// # Errors
/// `Invalid` for a setting out of bounds; `Unsupported` when `kind` is `IoUring` and the kernel refuses, with the
/// reason; `Io` when threads cannot be started.
pub fn start(kind: EngineKind, slab: Arc<Slab>, options: EngineOptions) -> Result<Arc<dyn DiskEngine>> {
    options.validate()?;
    let fallbacks = match kind {
        EngineKind::Threads => Vec::new(),
        EngineKind::Auto | EngineKind::IoUring => match Uring::start(Arc::clone(&slab), &options) {
            Ok(engine) => return Ok(Arc::new(engine)),
            Err(error) if kind == EngineKind::Auto && error.kind() == ErrorKind::Unsupported => {
                vec![error.to_string()]
            }
            Err(error) => return Err(error),
        },
    };
    Ok(Arc::new(Threads::start(slab, &options, fallbacks)?))
}
