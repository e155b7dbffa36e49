//! Helpers that submit one operation and wait for it, for start-up, tests and other cold paths.
//!
//! They own nothing. They must not be called from a completion ([`super::Done`]) or from an async task: they block.
//! Those that copy take slots of the engine's slab one at a time, and give up after [`SLOT_WAIT`] rather than wait
//! for ever on a slab whose slots are all held by the caller.

use std::ops::Range;
use std::time::Duration;

use crossbeam::channel;

use super::engine::{Completion, DiskEngine, FileId, Op, Request};
use super::slab::{SLOT_ALIGN, Slot};
use crate::error::{Error, ErrorKind, Result};

/// Longest wait for a free slot in the helpers that copy.
pub const SLOT_WAIT: Duration = Duration::from_secs(60);

impl dyn DiskEngine + '_ {
    /// Submits one operation and waits for its completion.
    pub fn execute(&self, file: FileId, op: Op) -> Completion {
        let (sender, receiver) = channel::bounded(1);
        let done = Box::new(move |completion| {
            // The receiver lives in this call until the answer is there; nobody else can have dropped it.
            let _ = sender.send(completion);
        });
        self.submit(Request { file, op, done });
        receiver.recv().unwrap_or_else(|_| Completion {
            result: Err(Error::new(ErrorKind::Internal, "the disk engine dropped a request without an answer")),
            slot: None,
        })
    }

    /// Writes `slot[range]` at `offset` and gives the slot back; after an error it goes back to its slab.
    ///
    /// # Errors
    /// See [`Completion`].
    pub fn write_slot_blocking(&self, file: FileId, offset: u64, slot: Slot, range: Range<usize>) -> Result<Slot> {
        let (_, slot) = transfer(self.execute(file, Op::Write { offset, slot, range }))?;
        Ok(slot)
    }

    /// Reads into `slot[range]` from `offset`: the bytes read, less than asked only at the end of the file, and the
    /// slot; after an error it goes back to its slab.
    ///
    /// # Errors
    /// See [`Completion`].
    pub fn read_slot_blocking(
        &self,
        file: FileId,
        offset: u64,
        slot: Slot,
        range: Range<usize>,
    ) -> Result<(usize, Slot)> {
        transfer(self.execute(file, Op::Read { offset, slot, range }))
    }

    /// Writes all of `bytes` at `offset`, copied through slots of the engine's slab.
    ///
    /// # Errors
    /// See [`Completion`]; `Full` when no slot came free within [`SLOT_WAIT`]. Any part may have been written.
    pub fn write_all_blocking(&self, file: FileId, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let (at, range) = self.chunk(offset, done, bytes.len())?;
            let mut slot = self.slot_in_time()?;
            let next = done + range.len();
            slot[range.clone()].copy_from_slice(&bytes[done..next]);
            self.write_slot_blocking(file, at, slot, range)?;
            done = next;
        }
        Ok(())
    }

    /// Reads into `bytes` from `offset`, copied through slots of the engine's slab. Returns the bytes read, less than
    /// asked only at the end of the file.
    ///
    /// # Errors
    /// See [`Completion`]; `Full` when no slot came free within [`SLOT_WAIT`].
    pub fn read_blocking(&self, file: FileId, offset: u64, bytes: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            let (at, range) = self.chunk(offset, done, bytes.len())?;
            let slot = self.slot_in_time()?;
            let (read, slot) = self.read_slot_blocking(file, at, slot, range.clone())?;
            bytes[done..done + read].copy_from_slice(&slot[range.start..range.start + read]);
            done += read;
            if read < range.len() {
                break;
            }
        }
        Ok(done)
    }

    /// [`Op::SyncData`], waited for.
    ///
    /// # Errors
    /// See [`Completion`]; the file is poisoned then.
    pub fn sync_blocking(&self, file: FileId) -> Result<()> {
        self.execute(file, Op::SyncData).result.map(drop)
    }

    /// [`Op::PunchHole`], waited for.
    ///
    /// # Errors
    /// See [`Op::PunchHole`].
    pub fn punch_hole_blocking(&self, file: FileId, offset: u64, len: u64) -> Result<()> {
        self.execute(file, Op::PunchHole { offset, len }).result.map(drop)
    }

    /// [`Op::Allocate`], waited for.
    ///
    /// # Errors
    /// See [`Op::Allocate`].
    pub fn allocate_blocking(&self, file: FileId, offset: u64, len: u64) -> Result<()> {
        self.execute(file, Op::Allocate { offset, len }).result.map(drop)
    }

    /// [`Op::SetLen`], waited for.
    ///
    /// # Errors
    /// See [`Completion`].
    pub fn set_len_blocking(&self, file: FileId, len: u64) -> Result<()> {
        self.execute(file, Op::SetLen(len)).result.map(drop)
    }

    /// Where in the file and in a slot the bytes from `done` on go, of `len` in all that begin at `offset`. They lie
    /// in the slot as in the file's pages, so that all but the edges can go directly.
    fn chunk(&self, offset: u64, done: usize, len: usize) -> Result<(u64, Range<usize>)> {
        let at = offset.checked_add(done as u64).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("{len} bytes at {offset} end past the largest file offset"))
        })?;
        let start = (at % SLOT_ALIGN as u64) as usize;
        let end = self.slab().slot_size().min(start + len - done);
        Ok((at, start..end))
    }

    fn slot_in_time(&self) -> Result<Slot> {
        self.slab().take_timeout(SLOT_WAIT).ok_or_else(|| {
            let text =
                format!("no buffer came free in {} s: all {} are held", SLOT_WAIT.as_secs(), self.slab().slots());
            Error::new(ErrorKind::Full, text)
        })
    }
}

fn transfer(completion: Completion) -> Result<(usize, Slot)> {
    let bytes = completion.result?;
    let slot = completion.slot.ok_or_else(|| Error::new(ErrorKind::Internal, "the disk engine kept a buffer"))?;
    Ok((bytes, slot))
}
