//! The log's file: found or made, locked, and read and written by position.
//!
//! Owns the file, its lock and its id in the disk engine. All I/O is in whole blocks of 4096 bytes, whatever the disk's
//! own block size, so that all of it goes to the disk directly; recovery therefore sees what the disk has, not what a
//! page cache remembers.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;

use crate::datastore::{Access, DiskEngine, FileId, FileLock, Op, SLOT_WAIT, Slot, take_lock};
use crate::error::{Error, ErrorKind, IoResultExt, Result, ResultExt};
use crate::format::{LOG_BLOCK, LOG_RING_START};

/// Bytes of a block as a length in memory.
pub(super) const BLOCK: usize = LOG_BLOCK as usize;

/// The exclusive lock on a log's file: two processes cannot use it. It follows the file through a rename.
#[derive(Debug)]
pub(super) struct Locked {
    lock: FileLock,
}

impl Locked {
    /// Opens and locks `path`; `None` when there is no such file. `create` makes it.
    ///
    /// # Errors
    /// `Refused` when it is in use, here or in another process.
    pub(super) fn open(path: &Path, create: bool, access: Access) -> Result<Option<Locked>> {
        let write = access == Access::Write;
        let file = match OpenOptions::new().read(true).write(write).create(create).truncate(false).open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !create => return Ok(None),
            opened => opened.io_context(|| format!("open replication log {}", path.display()))?,
        };
        let operation = match access {
            Access::Write => FlockOperation::NonBlockingLockExclusive,
            Access::Read => FlockOperation::NonBlockingLockShared,
        };
        let in_use = || {
            let text = format!("replication log {} is in use by another freshet: stop that one first", path.display());
            Error::new(ErrorKind::Refused, text)
        };
        let lock = match take_lock(file, operation) {
            Ok(lock) => lock,
            Err((rustix::io::Errno::WOULDBLOCK, _)) => return Err(in_use()),
            Err((e, _)) => return Err(Error::io(format!("lock replication log {}", path.display()), e.into())),
        };
        // Between open and lock the name may have been given to another file; then the lock protects nothing.
        let ours = lock.file().metadata().io_context(|| format!("stat {}", path.display()))?;
        match std::fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => Ok(Some(Locked { lock })),
            _ => Err(in_use()),
        }
    }

    /// Throws away whatever an interrupted creation left in the file.
    pub(super) fn clear(&self) -> Result<()> {
        self.lock.file().set_len(0).io_context(|| "clear what an interrupted creation of a replication log left")
    }

    /// Bytes of the file.
    pub(super) fn len(&self) -> Result<u64> {
        Ok(self.lock.file().metadata().io_context(|| "stat the replication log")?.len())
    }
}

/// An open, locked log file.
pub(super) struct LogFile {
    engine: Arc<dyn DiskEngine>,
    file: FileId,
    path: PathBuf,
    ring_len: u64,
    lock: Option<Locked>,
}

/// A read that is complete: its place in the order, its outcome, and the bytes asked for.
type Arrived = (usize, Result<(usize, Slot)>, usize);

/// A contiguous part of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// First byte in the file.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) len: usize,
}

/// Cuts `len` bytes at `position` of a ring of `ring_len` bytes into pieces of at most `most` bytes that do not cross
/// the end of the file.
pub(super) fn pieces(ring_len: u64, position: u64, len: u64, most: usize) -> impl Iterator<Item = Piece> {
    let mut at = position;
    std::iter::from_fn(move || {
        let in_ring = at % ring_len;
        let left = (position + len - at).min(ring_len - in_ring).min(most as u64);
        at += left;
        (left > 0).then_some(Piece { offset: LOG_RING_START + in_ring, len: left as usize })
    })
}

impl LogFile {
    /// The file at `path`, which `lock` locks and which has `len` bytes.
    pub(super) fn open(
        engine: Arc<dyn DiskEngine>,
        path: &Path,
        lock: Locked,
        len: u64,
        access: Access,
    ) -> Result<LogFile> {
        let file = engine.open(path, access)?;
        let ring_len = len.saturating_sub(LOG_RING_START).max(LOG_BLOCK);
        Ok(LogFile { engine, file, path: path.to_owned(), ring_len, lock: Some(lock) })
    }

    /// Closes the file in the engine, and keeps the lock.
    pub(super) fn into_lock(mut self) -> Option<Locked> {
        self.lock.take()
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The engine.
    pub(super) fn engine(&self) -> &Arc<dyn DiskEngine> {
        &self.engine
    }

    /// Its id in the engine.
    pub(super) fn id(&self) -> FileId {
        self.file
    }

    /// Bytes of the ring.
    pub(super) fn ring_len(&self) -> u64 {
        self.ring_len
    }

    /// Reserves the space of the whole file. Where the file system cannot reserve, it is written with zeros.
    pub(super) fn allocate(&self, len: u64) -> Result<()> {
        match self.engine.allocate_blocking(self.file, 0, len) {
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                let zeros = vec![0; self.engine.slab().slot_size()];
                let mut at = 0;
                while at < len {
                    let part = (len - at).min(zeros.len() as u64);
                    self.engine.write_all_blocking(self.file, at, &zeros[..part as usize])?;
                    at += part;
                }
                Ok(())
            }
            done => done,
        }
    }

    /// Writes one block at `offset` of the file and waits. Not durable before the next sync.
    pub(super) fn write_block(&self, offset: u64, block: &[u8; BLOCK]) -> Result<()> {
        self.engine.write_all_blocking(self.file, offset, block)
    }

    /// Makes all writes that have completed durable. After an error nothing since the last sync is known to be.
    pub(super) fn sync(&self) -> Result<()> {
        self.engine.sync_blocking(self.file)
    }

    /// Reads one block at `offset` of the file.
    pub(super) fn read_block(&self, offset: u64) -> Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        let read = self.engine.read_blocking(self.file, offset, &mut block)?;
        whole(read, BLOCK, &self.path)?;
        Ok(block)
    }

    /// Reads `len` bytes at `position` of the ring, several reads in flight, and hands them to `sink` in order.
    pub(super) fn read(&self, position: u64, len: u64, mut sink: impl FnMut(&[u8])) -> Result<()> {
        const WINDOW: usize = 8;
        let (sender, receiver) = crossbeam::channel::bounded(WINDOW);
        let mut pieces = pieces(self.ring_len, position, len, self.engine.slab().slot_size()).enumerate();
        let mut arrived: Vec<Arrived> = Vec::with_capacity(WINDOW);
        let (mut started, mut next, mut more) = (0_usize, 0_usize, true);
        loop {
            while more && started - next < WINDOW {
                // Whoever holds a buffer must not wait for another: wait only when nothing is in flight.
                let slab = self.engine.slab();
                let slot = if started == next { slab.take_timeout(SLOT_WAIT) } else { slab.try_take() };
                let Some(slot) = slot else { break };
                let Some((n, piece)) = pieces.next() else {
                    more = false;
                    break;
                };
                let (sender, len) = (sender.clone(), piece.len);
                let done = Box::new(move |c: crate::datastore::Completion| {
                    let slot = c.slot.ok_or_else(|| Error::new(ErrorKind::Internal, "the disk engine kept a buffer"));
                    // The channel has room for the whole window, and lives as long as this call.
                    let _ = sender.send((n, c.result.and_then(|read| Ok((read, slot?))), len));
                });
                let op = Op::Read { offset: piece.offset, slot, range: 0..piece.len };
                self.engine.submit(crate::datastore::Request { file: self.file, op, done });
                started += 1;
            }
            if started == next {
                return match more {
                    false => Ok(()),
                    true => Err(Error::new(ErrorKind::Full, "no buffer came free to read the replication log with")),
                };
            }
            while let Some(at) = arrived.iter().position(|(n, ..)| *n == next) {
                let (_, result, len) = arrived.swap_remove(at);
                next += 1;
                let (read, slot) = result.while_doing(|| "read the replication log")?;
                whole(read, len, &self.path)?;
                sink(&slot[..len]);
            }
            if started > next {
                let answer = receiver.recv();
                arrived.push(answer.map_err(|_| Error::new(ErrorKind::Internal, "the disk engine lost a read"))?);
            }
        }
    }

    /// Reads `len` bytes at `position` and writes the same bytes again. Not durable before the next sync.
    pub(super) fn rewrite(&self, position: u64, len: u64) -> Result<()> {
        for piece in pieces(self.ring_len, position, len, self.engine.slab().slot_size()) {
            let slot = self.engine.slab().take_timeout(SLOT_WAIT);
            let slot =
                slot.ok_or_else(|| Error::new(ErrorKind::Full, "no buffer came free to recover the log with"))?;
            let (read, slot) = self.engine.read_slot_blocking(self.file, piece.offset, slot, 0..piece.len)?;
            whole(read, piece.len, &self.path)?;
            self.engine.write_slot_blocking(self.file, piece.offset, slot, 0..piece.len)?;
        }
        Ok(())
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        // Nothing depends on it: what had to be durable was synced, and an id that is not open is closed already.
        let _ = self.engine.close(self.file);
    }
}

fn whole(read: usize, asked: usize, path: &Path) -> Result<()> {
    match read == asked {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Damaged, format!("replication log {}: the file was cut", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_range_once_and_never_cross_the_end() {
        let ring = 10 * LOG_BLOCK;
        for position in (0..30).map(|n| n * LOG_BLOCK) {
            for len in (0..=10).map(|n| n * LOG_BLOCK) {
                for most in [BLOCK, 3 * BLOCK, 64 * BLOCK] {
                    let mut at = position;
                    for piece in pieces(ring, position, len, most) {
                        assert_eq!(piece.offset, LOG_RING_START + at % ring);
                        assert!(piece.len <= most && piece.offset + piece.len as u64 <= LOG_RING_START + ring);
                        at += piece.len as u64;
                    }
                    assert_eq!(at, position + len);
                }
            }
        }
    }
}
