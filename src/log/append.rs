//! Writing records: one thread copies segments into buffers and keeps several writes in flight.
//!
//! A segment's space is reserved before it gets here, so nothing waits here but for a buffer. Copy and digest go over
//! each piece while it is warm. The header block is written last of all because only then the digest is known; it needs
//! no order on the disk, because recovery checks the payload against it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use xxhash_rust::xxh3::Xxh3;

use crate::datastore::{Completion, Op, Request, SLOT_WAIT, Slot};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Digest, LOG_BLOCK, LOG_RING_START, LogRecord, log_record_len};

use super::file::{BLOCK, LogFile, Piece, pieces};
use super::shared::Shared;

/// Bytes that are copied and then digested while they are in the processor's nearest cache.
const WARM: usize = 32 << 10;

/// A segment with its place.
pub(super) struct Command {
    /// The header of its record; the digest is not known yet.
    pub(super) record: LogRecord,
    /// The segment's bytes.
    pub(super) parts: Vec<Bytes>,
    /// Told when `parts` are copied and given up.
    pub(super) reply: oneshot::Sender<Result<()>>,
}

/// The thread: until no more commands can come.
pub(super) fn run(shared: &Arc<Shared>, file: &LogFile, mut commands: mpsc::Receiver<Command>) {
    let _guard = shared.guard();
    while let Some(Command { record, parts, reply }) = commands.blocking_recv() {
        let done = write_record(shared, file, record, &parts);
        if let Err(e) = &done {
            // The record's place is taken and will never be whole: nothing after it could count.
            shared.poison(e);
        }
        drop(parts);
        // Whoever stopped waiting is not told; the segment is in the log all the same.
        let _ = reply.send(done);
    }
}

fn write_record(shared: &Arc<Shared>, file: &LogFile, mut record: LogRecord, parts: &[Bytes]) -> Result<()> {
    let ring_len = file.ring_len();
    let slot_size = file.engine().slab().slot_size();
    let in_flight = InFlight { shared: Arc::clone(shared), position: record.position, left: AtomicUsize::new(1) };
    let in_flight = Arc::new(in_flight);
    let mut source = Source { parts, at: 0, hash: Xxh3::new() };
    let padded = log_record_len(record.payload_len) - LOG_BLOCK;
    for piece in pieces(ring_len, record.position + LOG_BLOCK, padded, slot_size) {
        let mut slot = buffer(shared, file)?;
        let filled = source.fill(&mut slot[..piece.len]);
        slot[filled..piece.len].fill(0);
        in_flight.submit(file, slot, piece);
    }
    record.payload_digest = Digest(source.hash.digest128().to_le_bytes());
    let mut slot = buffer(shared, file)?;
    slot[..BLOCK].copy_from_slice(&record.encode());
    let block = Piece { offset: LOG_RING_START + record.position % ring_len, len: BLOCK };
    in_flight.submit(file, slot, block);
    in_flight.finish_one();
    Ok(())
}

fn buffer(shared: &Shared, file: &LogFile) -> Result<Slot> {
    drop(shared.lock()?);
    let text = "no buffer came free to write the replication log with: others hold them all";
    file.engine().slab().take_timeout(SLOT_WAIT).ok_or_else(|| Error::new(ErrorKind::Full, text))
}

/// The bytes of the parts, one after the other.
struct Source<'a> {
    parts: &'a [Bytes],
    at: usize,
    hash: Xxh3,
}

impl Source<'_> {
    /// Copies into `to` and digests; returns the bytes copied, fewer than asked only at the end.
    fn fill(&mut self, to: &mut [u8]) -> usize {
        let mut filled = 0;
        while let Some(part) = self.parts.first() {
            let len = (part.len() - self.at).min(to.len() - filled).min(WARM);
            let target = &mut to[filled..filled + len];
            target.copy_from_slice(&part[self.at..self.at + len]);
            self.hash.update(target);
            filled += len;
            self.at += len;
            if self.at == part.len() {
                (self.parts, self.at) = (&self.parts[1..], 0);
            } else if filled == to.len() {
                break;
            }
        }
        filled
    }
}

/// The writes of one record that are not complete.
struct InFlight {
    shared: Arc<Shared>,
    position: u64,
    left: AtomicUsize,
}

impl InFlight {
    fn submit(self: &Arc<Self>, file: &LogFile, slot: Slot, piece: Piece) {
        self.left.fetch_add(1, Ordering::Relaxed);
        let this = Arc::clone(self);
        let done = Box::new(move |completion: Completion| {
            drop(completion.slot);
            match completion.result {
                Ok(_) => this.finish_one(),
                // Never counted as finished, so the record never counts as written.
                Err(e) => this.shared.poison(&e),
            }
        });
        let op = Op::Write { offset: piece.offset, slot, range: 0..piece.len };
        file.engine().submit(Request { file: file.id(), op, done });
    }

    fn finish_one(&self) {
        // The last one sees what all others did before: their writes are complete.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let moved = self.shared.peek().ring.written(self.position);
            if moved {
                self.shared.signal();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_gives_all_bytes_whatever_the_cuts() {
        let whole: Vec<u8> = (0..100_000_u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        for cut in [1, 4096, 32_768, 50_000, 99_999] {
            let parts = [
                Bytes::copy_from_slice(&whole[..cut]),
                Bytes::new(),
                Bytes::copy_from_slice(&whole[cut..]),
                Bytes::new(),
            ];
            let mut source = Source { parts: &parts, at: 0, hash: Xxh3::new() };
            let mut out = Vec::new();
            let mut buffer = vec![0; 40_000];
            loop {
                let n = source.fill(&mut buffer);
                out.extend_from_slice(&buffer[..n]);
                if n < buffer.len() {
                    break;
                }
            }
            assert_eq!(out, whole, "cut at {cut}");
            assert_eq!(source.hash.digest128().to_le_bytes(), crate::format::xxh3_128(&whole).0);
        }
    }
}
