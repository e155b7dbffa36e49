//! A hook in front of every system call on a file's data, so that tests can make disks fail.
//!
//! Owns nothing and is never set outside tests: no setting, flag or environment variable reaches it. Failing syncs,
//! torn writes and the machine stopping at the n-th sync cannot be had from a healthy disk otherwise.

use std::fmt;
use std::io;
use std::path::Path;

/// A system call that is about to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Read of `len` bytes at `offset`; a request may take several.
    Read {
        /// First byte in the file.
        offset: u64,
        /// Bytes.
        len: usize,
    },
    /// Write of `len` bytes at `offset`; a request may take several.
    Write {
        /// First byte in the file.
        offset: u64,
        /// Bytes.
        len: usize,
    },
    /// fdatasync.
    Sync,
    /// Hole over `len` bytes at `offset`.
    PunchHole {
        /// First byte in the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Zeros over `len` bytes at `offset`, kept allocated.
    ZeroRange {
        /// First byte in the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Reservation of `len` bytes at `offset`.
    Allocate {
        /// First byte in the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// New length in bytes.
    SetLen(u64),
}

/// What becomes of a call.
#[derive(Debug)]
pub enum Verdict {
    /// It is made.
    Pass,
    /// It is not made and fails with this error.
    Fail(io::Error),
    /// A read or write is made for this many of its bytes only; rounded down to what the disk takes for a direct
    /// one, and none means that the call is not made and transfers nothing. Other calls pass.
    Short(usize),
}

/// Decides over the calls of an engine; called from its threads, so it must be quick on io_uring.
pub trait Faults: Send + Sync + fmt::Debug {
    /// What becomes of `call` on the file opened as `path`.
    fn judge(&self, path: &Path, call: Call) -> Verdict;
}
