//! What the server asks of a disk: the trait that everything served implements, and its words.
//!
//! # Contract
//!
//! * **Checked.** The server has checked every range before: it lies within the size that [`Export::info`] told when
//!   the client chose the export, is not empty, and reads and writes are at most [`super::MAX_PIECE`] bytes (longer
//!   requests arrive as several, in any order). Changes never reach an export that is read only.
//! * **Order.** Calls run at the same time and end in any order; the client keeps overlapping ones apart, or lives
//!   with either outcome.
//! * **Durable.** A flush covers every change that had *completed before it was called*, on whatever connection. A
//!   change with `fua` is durable when it completes.
//! * **Driven to the end.** The server polls every answer until it is there, also after its client went away; answers
//!   are dropped only when the server is told to stop and its grace is over.
//! * **Where it runs.** Answers are polled on the thread of a connection, which does nothing else meanwhile: what takes
//!   long is waited for and not computed. That thread has a tokio runtime of its own with time and I/O, which ends with
//!   the connection: work that must outlive the call is spawned elsewhere.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::buffers::Payload;
use crate::error::{Error, ErrorKind};

/// What comes of a call, later or at once.
pub type Answer<T> = BoxFuture<'static, Result<T, ExportError>>;

/// One disk. See the module's head for what callers and implementations may rely on.
pub trait Export: Send + Sync + 'static {
    /// Size and properties. The size never changes while the export is served.
    fn info(&self) -> ExportInfo;

    /// Fills all of `into` from `offset` bytes on, and gives it back.
    fn read(self: Arc<Self>, offset: u64, into: Payload) -> Answer<Payload>;

    /// Writes all of `data` at `offset` bytes; durable when it completes if `fua`.
    fn write(self: Arc<Self>, offset: u64, data: Payload, fua: bool) -> Answer<()>;

    /// Makes every change durable that had completed before, on all connections.
    fn flush(self: Arc<Self>) -> Answer<()>;

    /// The range is not needed any more; what it reads as from now on is for the export to say.
    fn trim(self: Arc<Self>, offset: u64, len: u64, fua: bool) -> Answer<()>;

    /// Makes the range read as zeros.
    fn write_zeroes(self: Arc<Self>, offset: u64, len: u64, mode: ZeroMode, fua: bool) -> Answer<()>;

    /// The range will be read soon. Advice only; does nothing unless implemented.
    fn cache(self: Arc<Self>, offset: u64, len: u64) -> Answer<()> {
        let _ = (offset, len);
        Box::pin(std::future::ready(Ok(())))
    }

    /// How the range is allocated, from `offset` on: at least one part, parts without gaps, none empty; together they
    /// may fall short of `len` and never exceed it. One part is enough when `one`.
    fn extents(self: Arc<Self>, offset: u64, len: u64, one: bool) -> Answer<Vec<BlockStatus>>;
}

/// What a client is told about an export before it uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Bytes.
    pub size: u64,
    /// For people; may be empty, at most 4096 bytes.
    pub description: String,
    /// Changes are refused by the server.
    pub read_only: bool,
    /// Seeks are slow.
    pub rotational: bool,
    /// Offsets and lengths of requests must be multiples of this many bytes: a power of two up to 64 KiB.
    pub min_block: u32,
    /// Requests of multiples of this many bytes are the fast ones: a power of two, at least 512.
    pub preferred_block: u32,
}

impl ExportInfo {
    /// A disk of `size` bytes that takes any request, best in pages.
    pub fn new(size: u64) -> ExportInfo {
        ExportInfo {
            size,
            description: String::new(),
            read_only: false,
            rotational: false,
            min_block: 1,
            preferred_block: 4096,
        }
    }
}

/// How zeros may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZeroMode {
    /// The range must be allocated afterwards, so that later writes to it cannot run out of space.
    pub no_hole: bool,
    /// Fail at once with [`Errno::NotSup`], changing nothing, unless it is faster than writing.
    pub fast: bool,
}

/// A part of an export, as `base:allocation` tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockStatus {
    /// Bytes, at least one.
    pub len: u64,
    /// Not allocated: writing to it may run out of space.
    pub hole: bool,
    /// Reads as zeros.
    pub zero: bool,
}

/// Error values of the protocol (section "Error values").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted: a change to a read-only export.
    Perm = 1,
    /// Input or output failed.
    Io = 5,
    /// No memory.
    NoMem = 12,
    /// The request is wrong.
    Inval = 22,
    /// No space.
    NoSpc = 28,
    /// Too long.
    Overflow = 75,
    /// Not supported; only for zeros that cannot be written fast.
    NotSup = 95,
    /// The server or the export is going away.
    Shutdown = 108,
}

/// Why a request failed: what the client is told, and what the log is told.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{text}")]
pub struct ExportError {
    /// For the client.
    pub errno: Errno,
    /// For people.
    pub text: String,
}

impl ExportError {
    /// An error in these words.
    pub fn new(errno: Errno, text: impl Into<String>) -> ExportError {
        ExportError { errno, text: text.into() }
    }
}

impl From<Error> for ExportError {
    fn from(error: Error) -> ExportError {
        let errno = match error.kind() {
            ErrorKind::Full => Errno::NoSpc,
            ErrorKind::Denied | ErrorKind::Refused => Errno::Perm,
            ErrorKind::Invalid => Errno::Inval,
            ErrorKind::Unsupported => Errno::NotSup,
            ErrorKind::Cancelled | ErrorKind::Fenced => Errno::Shutdown,
            _ => Errno::Io,
        };
        ExportError::new(errno, error.to_string())
    }
}
