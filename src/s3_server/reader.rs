//! A range of a file as the body of a response.
//!
//! Each chunk is read on the spot when the page cache has it (`RWF_NOWAIT`); otherwise a blocking thread reads it,
//! after the kernel was told to fetch the whole range, so that a cold file is read in large requests. Memory is one
//! pooled buffer per chunk in flight.

use super::pool::{Buffer, CHUNK, Pool};
use bytes::Bytes;
use futures::Stream;
use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};
use s3s::StdError;
use s3s::stream::{ByteStream, RemainingLength};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::task::JoinHandle;

/// The bytes `range` of a file, in chunks of [`CHUNK`] but for the last.
pub(super) struct Reader {
    file: Arc<File>,
    range: Range<u64>,
    pool: Pool,
    pending: Option<JoinHandle<io::Result<Buffer>>>,
    advised: bool,
}

impl Reader {
    /// Reads nothing yet. `range` must lie within the file; a file that is shorter ends the body with an error.
    pub(super) fn new(file: File, range: Range<u64>, pool: Pool) -> Reader {
        Reader { file: Arc::new(file), range, pool, pending: None, advised: false }
    }

    fn next_len(&self) -> usize {
        usize::try_from(self.range.end - self.range.start).map_or(CHUNK, |left| left.min(CHUNK))
    }

    /// Reads a chunk that is wholly in the page cache, else starts a blocking read.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let len = self.next_len();
        if self.pending.is_none() {
            let mut buffer = self.pool.take();
            if cached(&self.file, &mut buffer.memory()[..len], self.range.start)? {
                self.range.start += len as u64;
                return Poll::Ready(Ok(buffer.freeze(len)));
            }
            self.pending = Some(self.spawn_read(buffer, len));
        }
        let handle = self.pending.as_mut().expect("set just above");
        let buffer = ready!(Pin::new(handle).poll(cx)).map_err(io::Error::other)??;
        self.pending = None;
        self.range.start += len as u64;
        Poll::Ready(Ok(buffer.freeze(len)))
    }

    fn spawn_read(&mut self, mut buffer: Buffer, len: usize) -> JoinHandle<io::Result<Buffer>> {
        let (file, offset, end) = (Arc::clone(&self.file), self.range.start, self.range.end);
        let advise = !std::mem::replace(&mut self.advised, true);
        tokio::task::spawn_blocking(move || {
            if advise && let Some(len) = NonZeroU64::new(end - offset) {
                // Only advice: where a file system cannot take it, the read below is slower and just as right.
                let _ = rustix::fs::fadvise(&*file, offset, Some(len), Advice::WillNeed);
            }
            file.read_exact_at(&mut buffer.memory()[..len], offset)?;
            Ok(buffer)
        })
    }
}

/// Fills `out` from the page cache; false if any of it is not there.
fn cached(file: &File, out: &mut [u8], offset: u64) -> io::Result<bool> {
    let len = out.len();
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(out)], offset, ReadWriteFlags::NOWAIT) {
        Ok(got) => Ok(got == len),
        Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Stream for Reader {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.range.is_empty() {
            return Poll::Ready(None);
        }
        let chunk = ready!(self.poll_chunk(cx));
        if chunk.is_err() {
            // A body ends at its first error; polled again, it must not read on.
            self.range.start = self.range.end;
        }
        Poll::Ready(Some(chunk.map_err(StdError::from)))
    }
}

impl ByteStream for Reader {
    fn remaining_length(&self) -> RemainingLength {
        usize::try_from(self.range.end - self.range.start)
            .map_or_else(|_| RemainingLength::unknown(), RemainingLength::new_exact)
    }
}
