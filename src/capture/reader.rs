//! The reading stage: one thread that keeps the disk busy and hands what was read to the workers.
//!
//! ```text
//! pages --> cut --> engine.submit(Read) --> completions --> next run of the piece, or --> workers
//! ```
//!
//! Owns the order of reading and the slots until they are full. Does no work on the bytes. Limits: the slots of the
//! slab bound what is read ahead, the queue depth of the engine what is under way. The runs of one piece are read one
//! after another into its slot; pieces are read side by side.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::halt::Halt;
use super::pieces::{Cut, Cutter, Page, Piece};
use super::source::SourceImage;
use crate::datastore::{Completion, DiskEngine, FileId, Op, Request, Slot};
use crate::error::{Error, ErrorKind, Result};

/// Longest wait before it is looked whether the work was stopped.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What the workers get.
#[derive(Debug)]
pub(crate) enum Work {
    /// A piece, and the slot that holds its bytes wherever its runs say.
    Piece(Piece, Slot),
    /// A range without data in which something was live.
    Zeros { disk: usize, offset: u64, len: u64 },
}

/// A piece that is being read: how many of its runs are done.
struct Reading {
    piece: Piece,
    run: usize,
}

/// A read that completed.
type Read = (Reading, Completion);

/// See the module.
pub(crate) struct Reader {
    engine: Arc<dyn DiskEngine>,
    images: Arc<Vec<SourceImage>>,
    files: Vec<FileId>,
    pages: tokio::sync::mpsc::Receiver<Page>,
    out: Sender<Work>,
    halt: Halt,
    done: (Sender<Read>, Receiver<Read>),
    in_flight: usize,
    depth: usize,
    cutter: Option<Cutter>,
    pending: Option<Piece>,
    read: u64,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("in_flight", &self.in_flight).field("read", &self.read).finish_non_exhaustive()
    }
}

/// What can be read next.
enum Next {
    Piece(Piece),
    Wait,
    End,
}

impl Reader {
    /// A reader of `images`, opened in `engine` as `files`, at most `depth` reads under way.
    pub(crate) fn new(
        engine: Arc<dyn DiskEngine>,
        images: Arc<Vec<SourceImage>>,
        files: Vec<FileId>,
        depth: usize,
        pages: tokio::sync::mpsc::Receiver<Page>,
        out: Sender<Work>,
        halt: Halt,
    ) -> Reader {
        let (in_flight, cutter, pending, read) = (0, None, None, 0);
        Reader {
            engine,
            images,
            files,
            pages,
            out,
            halt,
            done: bounded(depth),
            in_flight,
            depth,
            cutter,
            pending,
            read,
        }
    }

    /// Reads everything; returns the bytes read. On an error, and once the work is stopped, it waits for the reads
    /// under way and ends.
    pub(crate) fn run(mut self) -> u64 {
        if let Err(error) = self.read_all() {
            self.halt.fail(error);
        }
        while self.in_flight > 0 {
            // Every submitted read completes; its slot goes back here.
            drop(self.done.1.recv());
            self.in_flight -= 1;
        }
        self.read
    }

    fn read_all(&mut self) -> Result<()> {
        let mut more = true;
        while more || self.in_flight > 0 {
            if self.halt.is_set() {
                return Ok(());
            }
            while more && self.in_flight < self.depth {
                match self.next()? {
                    Next::Piece(piece) => match self.slot() {
                        Some(slot) => self.submit(Reading { piece, run: 0 }, slot),
                        None => {
                            self.pending = Some(piece);
                            break;
                        }
                    },
                    Next::Wait => break,
                    Next::End => more = false,
                }
            }
            if self.in_flight > 0
                && let Ok((reading, completion)) = self.done.1.recv_timeout(LOOK_EVERY)
            {
                self.in_flight -= 1;
                self.completed(reading, completion)?;
            }
        }
        Ok(())
    }

    /// A slot; waits for one only while nothing is under way, since then only a worker can give one back.
    fn slot(&self) -> Option<Slot> {
        match self.in_flight {
            0 => self.engine.slab().take_timeout(LOOK_EVERY),
            _ => self.engine.slab().try_take(),
        }
    }

    fn next(&mut self) -> Result<Next> {
        if let Some(piece) = self.pending.take() {
            return Ok(Next::Piece(piece));
        }
        loop {
            while let Some(cut) = self.cutter.as_mut().and_then(Cutter::next) {
                match cut {
                    Cut::Piece(piece) => return Ok(Next::Piece(piece)),
                    Cut::Zeros { disk, offset, len } => self.send(Work::Zeros { disk, offset, len }),
                }
                if self.halt.is_set() {
                    return Ok(Next::End);
                }
            }
            let page = match self.pages.try_recv() {
                Ok(page) => page,
                Err(tokio::sync::mpsc::error::TryRecvError::Empty) if self.in_flight > 0 => return Ok(Next::Wait),
                // Whoever loads pages drops its end when it ends, also on an error.
                Err(_) => match self.pages.blocking_recv() {
                    Some(page) => page,
                    None => return Ok(Next::End),
                },
            };
            let data = self.images[page.disk].data_ranges(page.span.clone())?;
            self.cutter = Some(Cutter::new(page, data));
        }
    }

    fn submit(&mut self, reading: Reading, slot: Slot) {
        let range = reading.piece.runs[reading.run].clone();
        let op = Op::Read { offset: reading.piece.offset + range.start as u64, slot, range };
        let (file, done) = (self.files[reading.piece.disk], self.done.0.clone());
        let done = Box::new(move |completion| {
            // The channel has room for all reads under way, and lives as long as any of them.
            let _ = done.try_send((reading, completion));
        });
        self.in_flight += 1;
        self.engine.submit(Request { file, op, done });
    }

    fn completed(&mut self, mut reading: Reading, completion: Completion) -> Result<()> {
        let path = self.images[reading.piece.disk].path();
        let run = reading.piece.runs[reading.run].clone();
        let got = completion.result.map_err(|e| e.while_doing(format!("read disk image {}", path.display())))?;
        let slot = completion.slot.ok_or_else(|| Error::new(ErrorKind::Internal, "a read lost its buffer"))?;
        if got < run.end - run.start {
            let end = reading.piece.offset + (run.start + got) as u64;
            let why = format!("disk image {}: ends at byte {end}, it was cut while it was read", path.display());
            return Err(Error::new(ErrorKind::Io, why));
        }
        self.read += got as u64;
        reading.run += 1;
        match reading.run < reading.piece.runs.len() {
            true => self.submit(reading, slot),
            false => self.send(Work::Piece(reading.piece, slot)),
        }
        Ok(())
    }

    /// The workers take everything until their channel is closed, also once the work is stopped.
    fn send(&self, work: Work) {
        if self.out.send(work).is_err() {
            self.halt.fail(Error::new(ErrorKind::Internal, "no worker is left to take what was read"));
        }
    }
}
