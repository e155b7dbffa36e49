//! One read or write on its way: which bytes are done, and what comes next.
//!
//! Owns the slot and the use of the file while the request is under way, so that a transfer can move between a ring
//! and a helper thread as one thing. Makes no system call itself except in [`Transfer::step`]. Invariants: bytes are
//! done in order from the front; each step does at least one byte or ends the transfer, so it ends.

use std::io;
use std::ops::Range;

use super::engine::Completion;
use super::file::{Piece, check_range};
use super::slab::Slot;
use super::table::InUse;
use crate::error::{Error, ErrorKind, Result};

/// See the module's head.
#[derive(Debug)]
pub(super) struct Transfer {
    file: InUse,
    slot: Slot,
    write: bool,
    offset: u64,
    range: Range<usize>,
    done: usize,
    at_end: bool,
}

impl Transfer {
    /// A transfer between `slot[range]` and the file at `offset`; [`Transfer::check`] comes before the first step.
    pub(super) fn new(file: InUse, write: bool, offset: u64, slot: Slot, range: Range<usize>) -> Transfer {
        Transfer { file, slot, write, offset, range, done: 0, at_end: false }
    }

    /// Whether it may be done at all.
    ///
    /// # Errors
    /// `Invalid` for a range outside the slot or past the largest offset and for a write to a file opened for
    /// reading, `Io` for a poisoned file.
    pub(super) fn check(&self) -> Result<()> {
        let Range { start, end } = self.range;
        if start > end || end > self.slot.len() {
            let text = format!("{}: bytes {start} to {end} of a buffer of {}", self.what(), self.slot.len());
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        check_range(self.offset, self.range.len() as u64).map_err(|error| error.while_doing(self.what()))?;
        if self.write { self.file.check_write() } else { self.file.check() }
    }

    /// The next piece, or `None` when all is done.
    pub(super) fn next(&self) -> Option<Piece> {
        let left = self.range.len() - self.done;
        if left == 0 || self.at_end {
            return None;
        }
        let address = self.slot.as_ptr() as usize + self.position();
        Some(self.file.piece(self.offset + self.done as u64, address, left))
    }

    /// Counts what a step transferred.
    ///
    /// # Errors
    /// The step's, or that a write did nothing, with file and range.
    pub(super) fn advance(&mut self, moved: io::Result<usize>) -> Result<()> {
        match moved {
            Ok(0) if self.write => {
                let error = io::Error::new(io::ErrorKind::WriteZero, "the disk took none of the bytes");
                Err(Error::io(self.what(), error))
            }
            Ok(0) => {
                self.at_end = true;
                Ok(())
            }
            Ok(bytes) => {
                self.done = (self.done + bytes).min(self.range.len());
                Ok(())
            }
            Err(error) => Err(Error::io(self.what(), error)),
        }
    }

    /// Does some of a piece with a blocking call.
    pub(super) fn step(&mut self, piece: Piece) -> io::Result<usize> {
        let start = self.position();
        let bytes = &mut self.slot[start..start + piece.len];
        if self.write { self.file.write(piece, bytes) } else { self.file.read(piece, bytes) }
    }

    /// Does all of it with blocking calls.
    pub(super) fn run(&mut self) -> Result<()> {
        self.check()?;
        while let Some(piece) = self.next() {
            let moved = self.step(piece);
            self.advance(moved)?;
        }
        Ok(())
    }

    /// The completion, and the use of the file, to be let go of after the completion was told.
    pub(super) fn finish(self, result: Result<()>) -> (Completion, InUse) {
        (Completion { result: result.map(|()| self.done), slot: Some(self.slot) }, self.file)
    }

    /// Gives the slot up for ever, for when the kernel may still be using its memory.
    pub(super) fn abandon(self) {
        std::mem::forget(self.slot);
    }

    pub(super) fn file(&self) -> &InUse {
        &self.file
    }

    pub(super) fn slot(&self) -> &Slot {
        &self.slot
    }

    pub(super) fn is_write(&self) -> bool {
        self.write
    }

    /// First byte of the slot that is not done.
    pub(super) fn position(&self) -> usize {
        self.range.start + self.done
    }

    fn what(&self) -> String {
        let doing = if self.write { "write" } else { "read" };
        format!("{doing} of {} bytes at {} of {}", self.range.len(), self.offset, self.file.path().display())
    }
}
