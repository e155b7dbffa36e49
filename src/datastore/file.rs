//! One open file: a direct descriptor and its buffered twin, what the disk wants aligned, and whether it is poisoned.
//!
//! Owns the descriptors and makes every system call on them except the direct reads and writes of the ring (see
//! `uring.rs`, which asks [`OpenFile::judge`] and [`OpenFile::check`] like everybody). All calls here block.
//!
//! # Which bytes go where
//!
//! ```text
//!  file        |....|....|....|....|....|      | = multiples of Alignment::offset
//!  request        [=================)
//!  descriptor     bb direct....direct bb       b = buffered twin
//! ```
//!
//! The unit is a page at least, although most disks take 512: a page that is half written through the cache and half
//! directly at the same time can lose the direct half, because the cache read the whole page before and writes the
//! whole page after. With whole units, two requests over disjoint bytes never meet in one page by different ways.
//!
//! # Poison
//!
//! Syncs of a file run one at a time, so that no second sync can take "nothing left to write" for success between
//! the first one's failure and the poison. One fdatasync covers both descriptors: it works on the inode, flushes the
//! disk's cache for what went directly, and errors of write-back are kept for each descriptor until it asks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, Statx, StatxFlags};
use rustix::io::retry_on_intr;

use super::engine::{Access, Alignment, EngineOptions, FileInfo};
use super::faults::{Call, Faults, Verdict};
use super::probe;
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Used where the kernel does not tell (before 6.1, network file systems): every disk known takes it.
const UNKNOWN_ALIGNMENT: u32 = 4096;

/// How a file is opened; the part of [`EngineOptions`] that concerns files.
#[derive(Debug, Clone)]
pub(super) struct FileOptions {
    direct: bool,
    min_alignment: u32,
    faults: Option<Arc<dyn Faults>>,
}

impl From<&EngineOptions> for FileOptions {
    fn from(options: &EngineOptions) -> FileOptions {
        FileOptions { direct: options.direct, min_alignment: options.min_alignment, faults: options.faults.clone() }
    }
}

/// A part of a request that goes through one descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Through the direct descriptor, else through the buffered twin.
    pub(super) direct: bool,
    /// First byte in the file.
    pub(super) offset: u64,
    /// Bytes, at least one.
    pub(super) len: usize,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct OpenFile {
    path: PathBuf,
    access: Access,
    buffered: OwnedFd,
    direct: Option<OwnedFd>,
    not_direct: Option<String>,
    block_device: bool,
    alignment: Alignment,
    faults: Option<Arc<dyn Faults>>,
    syncing: Mutex<()>,
    poison: OnceLock<String>,
}

impl OpenFile {
    /// Opens both descriptors. See [`super::DiskEngine::open`].
    pub(super) fn open(path: &Path, access: Access, options: &FileOptions) -> Result<OpenFile> {
        let shown = path.display();
        // Asked before opening, because opening a pipe for reading would wait for a writer.
        let kind = retry_on_intr(|| rustix::fs::stat(path)).io_context(|| format!("open {shown}"))?;
        let block_device = match FileType::from_raw_mode(kind.st_mode) {
            FileType::RegularFile => false,
            FileType::BlockDevice => true,
            other => {
                let text = format!("open {shown}: a regular file or block device is needed, this is a {other:?}");
                return Err(Error::new(ErrorKind::Invalid, text));
            }
        };
        let mode = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::RDWR,
        };
        let open = |more| retry_on_intr(|| rustix::fs::open(path, mode | OFlags::CLOEXEC | more, Mode::empty()));
        let buffered = open(OFlags::empty()).io_context(|| format!("open {shown}"))?;
        let stat = statx(&buffered).io_context(|| format!("open {shown}"))?;
        let (direct, not_direct) = if !options.direct {
            (None, Some("direct I/O is switched off in the settings".to_owned()))
        } else if dio(&stat).is_some_and(|(_, offset)| offset == 0) {
            (None, Some(probe::no_direct(None, &buffered)))
        } else {
            match open(OFlags::DIRECT) {
                Ok(fd) => (Some(fd), None),
                Err(error) => (None, Some(probe::no_direct(Some(error.into()), &buffered))),
            }
        };
        if let Some(direct) = &direct {
            same_file(&stat, direct).io_context(|| format!("open {shown} a second time"))?;
        }
        let alignment = alignment(&stat, options.min_alignment);
        Ok(OpenFile {
            path: path.to_owned(),
            access,
            buffered,
            direct,
            not_direct,
            block_device,
            alignment,
            faults: options.faults.clone(),
            syncing: Mutex::new(()),
            poison: OnceLock::new(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor for direct pieces, where there is one.
    pub(super) fn direct(&self) -> Option<BorrowedFd<'_>> {
        self.direct.as_ref().map(AsFd::as_fd)
    }

    /// What is known, with the length of now.
    pub(super) fn info(&self) -> Result<FileInfo> {
        let len = if self.block_device {
            rustix::fs::seek(&self.buffered, SeekFrom::End(0))
        } else {
            rustix::fs::fstat(&self.buffered).map(|stat| stat.st_size.unsigned_abs())
        };
        Ok(FileInfo {
            path: self.path.clone(),
            access: self.access,
            len: len.io_context(|| format!("length of {}", self.path.display()))?,
            block_device: self.block_device,
            alignment: self.alignment,
            not_direct: self.not_direct.clone(),
        })
    }

    /// Whether the file may be used now: not after a failed sync.
    pub(super) fn check(&self) -> Result<()> {
        match self.poison.get() {
            None => Ok(()),
            Some(first) => {
                let text = format!(
                    "{} is poisoned: {first}; close it, open it again and trust nothing written since the last good sync",
                    self.path.display()
                );
                Err(Error::new(ErrorKind::Io, text))
            }
        }
    }

    /// Whether changes are allowed: [`OpenFile::check`], and opened for writing.
    pub(super) fn check_write(&self) -> Result<()> {
        if self.access == Access::Read {
            let text = format!("{} is opened for reading only", self.path.display());
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        self.check()
    }

    /// The first piece of what is left of a transfer: `len` bytes (at least one) between the file at `offset` and
    /// memory at `address`.
    pub(super) fn piece(&self, offset: u64, address: usize, len: usize) -> Piece {
        let unit = self.alignment.offset as usize;
        let into_unit = (offset % unit as u64) as usize;
        let head = if into_unit == 0 { 0 } else { unit - into_unit };
        let middle = len.saturating_sub(head) / unit * unit;
        let aligned_memory = (address + head).is_multiple_of(self.alignment.memory as usize);
        if self.direct.is_none() || middle == 0 || !aligned_memory {
            Piece { direct: false, offset, len }
        } else if head > 0 {
            Piece { direct: false, offset, len: head }
        } else {
            Piece { direct: true, offset, len: middle }
        }
    }

    /// What the tests' hook makes of a read or write: how many bytes of it to do.
    pub(super) fn judge(&self, write: bool, piece: Piece) -> io::Result<usize> {
        let Some(faults) = &self.faults else { return Ok(piece.len) };
        let Piece { offset, len, .. } = piece;
        let call = if write { Call::Write { offset, len } } else { Call::Read { offset, len } };
        match faults.judge(&self.path, call) {
            Verdict::Pass => Ok(len),
            Verdict::Fail(error) => Err(error),
            Verdict::Short(short) if piece.direct => {
                Ok(short.min(len) / self.alignment.offset as usize * self.alignment.offset as usize)
            }
            Verdict::Short(short) => Ok(short.min(len)),
        }
    }

    /// Reads some of a piece; 0 at the end of the file.
    pub(super) fn read(&self, piece: Piece, into: &mut [u8]) -> io::Result<usize> {
        match self.judge(false, piece)? {
            0 => Ok(0),
            len => Ok(retry_on_intr(|| rustix::io::pread(self.descriptor(piece), &mut into[..len], piece.offset))?),
        }
    }

    /// Writes some of a piece.
    pub(super) fn write(&self, piece: Piece, from: &[u8]) -> io::Result<usize> {
        match self.judge(true, piece)? {
            0 => Ok(0),
            len => Ok(retry_on_intr(|| rustix::io::pwrite(self.descriptor(piece), &from[..len], piece.offset))?),
        }
    }

    /// fdatasync; poisons the file when it fails, whatever the reason.
    pub(super) fn sync_data(&self) -> Result<()> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_write()?;
        let synced = self.call(Call::Sync, || rustix::fs::fdatasync(&self.buffered));
        synced.map_err(|error| {
            let error = Error::io(format!("sync {}", self.path.display()), error);
            // Only set here, under the lock, after a check that it is not set.
            let _ = self.poison.set(error.to_string());
            error
        })
    }

    /// See [`super::Op::PunchHole`].
    pub(super) fn punch_hole(&self, offset: u64, len: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.fallocate("punch a hole", Call::PunchHole { offset, len }, flags, offset, len)
    }

    /// See [`super::Op::ZeroRange`].
    pub(super) fn zero_range(&self, offset: u64, len: u64) -> Result<()> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        self.fallocate("zero a range", Call::ZeroRange { offset, len }, flags, offset, len)
    }

    /// See [`super::Op::Allocate`].
    pub(super) fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.fallocate("reserve space", Call::Allocate { offset, len }, FallocateFlags::empty(), offset, len)
    }

    fn fallocate(&self, doing: &str, call: Call, flags: FallocateFlags, offset: u64, len: u64) -> Result<()> {
        self.check_write()?;
        let context = || format!("{doing} of {len} bytes at {offset} of {}", self.path.display());
        check_range(offset, len).map_err(|error| error.while_doing(context()))?;
        if len == 0 {
            return Ok(());
        }
        let done = self.call(call, || retry_on_intr(|| rustix::fs::fallocate(&self.buffered, flags, offset, len)));
        done.map_err(|error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV) => {
                Error::with_source(ErrorKind::Unsupported, context(), error)
            }
            _ => Error::io(context(), error),
        })
    }

    /// See [`super::Op::SetLen`].
    pub(super) fn set_len(&self, len: u64) -> Result<()> {
        self.check_write()?;
        let context = || format!("set the length of {} to {len} bytes", self.path.display());
        if self.block_device {
            return Err(Error::new(ErrorKind::Invalid, format!("{}: a block device's is fixed", context())));
        }
        check_range(0, len).map_err(|error| error.while_doing(context()))?;
        let done = self.call(Call::SetLen(len), || retry_on_intr(|| rustix::fs::ftruncate(&self.buffered, len)));
        done.io_context(context)
    }

    fn descriptor(&self, piece: Piece) -> BorrowedFd<'_> {
        match &self.direct {
            Some(direct) if piece.direct => direct.as_fd(),
            _ => self.buffered.as_fd(),
        }
    }

    fn call(&self, call: Call, make: impl FnOnce() -> rustix::io::Result<()>) -> io::Result<()> {
        if let Some(faults) = &self.faults
            && let Verdict::Fail(error) = faults.judge(&self.path, call)
        {
            return Err(error);
        }
        Ok(make()?)
    }
}

/// Whether `len` bytes at `offset` can be named to the kernel, which counts in signed 64 bits.
///
/// # Errors
/// `Invalid`.
pub(super) fn check_range(offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(Error::new(ErrorKind::Invalid, format!("{len} bytes at {offset} end past the largest file offset"))),
    }
}

fn statx(fd: &OwnedFd) -> rustix::io::Result<Statx> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
    retry_on_intr(|| rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, wanted))
}

/// Alignment of memory and of offsets for direct I/O, where the kernel tells; zeros mean that there is none.
fn dio(stat: &Statx) -> Option<(u32, u32)> {
    let told = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    told.then_some((stat.stx_dio_mem_align, stat.stx_dio_offset_align))
}

fn alignment(stat: &Statx, wish: u32) -> Alignment {
    let (memory, device) = match dio(stat) {
        Some((memory, offset)) if offset.is_power_of_two() && memory.is_power_of_two() => (memory, offset),
        _ => (UNKNOWN_ALIGNMENT, UNKNOWN_ALIGNMENT),
    };
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(UNKNOWN_ALIGNMENT);
    Alignment { offset: device.max(page).max(wish), memory, device }
}

/// Whether the path still named the same file when it was opened a second time.
fn same_file(first: &Statx, second: &OwnedFd) -> io::Result<()> {
    let second = statx(second)?;
    let id = |stat: &Statx| (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
    if id(first) == id(&second) {
        return Ok(());
    }
    Err(io::Error::other("another file has taken its place: run it again"))
}
