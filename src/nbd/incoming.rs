//! What a client has sent and nobody has looked at yet.
//!
//! Owns one buffer of fixed size. Headers and small data are taken out of it, many with one system call; large data
//! goes from the socket to where it belongs and not through here. Invariant: bytes are given out once and in order.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::proto::REQUEST_LEN;

/// Bytes of the buffer: some fifteen small writes.
const CAPACITY: usize = 64 << 10;

/// Data of at least this many bytes is taken past the buffer, and the next header is then read by itself: what follows
/// is likely of the same kind.
const LARGE: usize = 32 << 10;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Incoming {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Whether the last data was large.
    large: bool,
    /// Bytes taken off the socket, ever.
    total: u64,
}

impl Incoming {
    pub(super) fn new() -> Incoming {
        Incoming { buffer: vec![0; CAPACITY].into(), start: 0, end: 0, large: false, total: 0 }
    }

    /// Bytes taken off the socket, ever.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Whether a part of a header is here.
    pub(super) fn is_partial(&self) -> bool {
        self.start < self.end
    }

    /// The next header, or `None` at the end of the stream.
    pub(super) fn poll_header(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<Option<[u8; REQUEST_LEN]>>> {
        loop {
            if let Some(header) = self.buffer[self.start..self.end].first_chunk::<REQUEST_LEN>() {
                let header = *header;
                self.start += REQUEST_LEN;
                return Poll::Ready(Ok(Some(header)));
            }
            if ready!(self.poll_fill(cx, stream))? == 0 {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Some data of the current request, at most `into`; 0 at the end of the stream. `len` is the length of all of it.
    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
        into: &mut [u8],
        len: usize,
    ) -> Poll<io::Result<usize>> {
        self.large = len >= LARGE;
        if self.start == self.end {
            if self.large {
                let mut into = ReadBuf::new(into);
                ready!(Pin::new(stream).poll_read(cx, &mut into))?;
                self.total += into.filled().len() as u64;
                return Poll::Ready(Ok(into.filled().len()));
            }
            if ready!(self.poll_fill(cx, stream))? == 0 {
                return Poll::Ready(Ok(0));
            }
        }
        let bytes = into.len().min(self.end - self.start);
        into[..bytes].copy_from_slice(&self.buffer[self.start..self.start + bytes]);
        self.start += bytes;
        Poll::Ready(Ok(bytes))
    }

    /// Throws some data away, at most `len`; 0 at the end of the stream.
    pub(super) fn poll_skip(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
        len: u64,
    ) -> Poll<io::Result<usize>> {
        self.large = false;
        if self.start == self.end && ready!(self.poll_fill(cx, stream))? == 0 {
            return Poll::Ready(Ok(0));
        }
        let bytes = usize::try_from(len).unwrap_or(usize::MAX).min(self.end - self.start);
        self.start += bytes;
        Poll::Ready(Ok(bytes))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, stream: &mut (impl AsyncRead + Unpin)) -> Poll<io::Result<usize>> {
        // What is left is less than a header, or nothing: moving it is cheap, and leaves room.
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let most = if self.large { REQUEST_LEN.max(self.end + 1) } else { CAPACITY };
        let mut into = ReadBuf::new(&mut self.buffer[self.end..most]);
        ready!(Pin::new(stream).poll_read(cx, &mut into))?;
        let bytes = into.filled().len();
        self.end += bytes;
        self.total += bytes as u64;
        Poll::Ready(Ok(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// Gives `sizes` bytes at a time, in turn.
    struct Trickle {
        bytes: Vec<u8>,
        at: usize,
        sizes: Vec<usize>,
        turn: usize,
    }

    impl AsyncRead for Trickle {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let size = self.sizes[self.turn % self.sizes.len()].min(into.remaining()).min(self.bytes.len() - self.at);
            into.put_slice(&self.bytes[self.at..self.at + size]);
            self.at += size;
            self.turn += 1;
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn headers_and_data_come_whole_and_in_order_however_they_arrive() {
        let lens = [4096_usize, 0, 100_000, 1, 65_536, 40_000, 512];
        let mut bytes = Vec::new();
        for (n, len) in lens.into_iter().enumerate() {
            bytes.extend([n as u8; REQUEST_LEN]);
            bytes.extend((0..len).map(|i| (i * 3 + n) as u8));
        }
        for sizes in [vec![1], vec![7, 100_000], vec![usize::MAX], vec![29, 3]] {
            let mut stream = Trickle { bytes: bytes.clone(), at: 0, sizes, turn: 0 };
            let mut incoming = Incoming::new();
            for (n, len) in lens.into_iter().enumerate() {
                let header = poll_fn(|cx| incoming.poll_header(cx, &mut stream)).await.unwrap().unwrap();
                assert_eq!(header, [n as u8; REQUEST_LEN]);
                let mut data = vec![0; len];
                let mut done = 0;
                while done < len {
                    let got = poll_fn(|cx| incoming.poll_data(cx, &mut stream, &mut data[done..], len)).await.unwrap();
                    assert!(got > 0);
                    done += got;
                }
                assert!(data.iter().enumerate().all(|(i, &b)| b == (i * 3 + n) as u8));
            }
            assert!(poll_fn(|cx| incoming.poll_header(cx, &mut stream)).await.unwrap().is_none());
            assert_eq!(incoming.total(), bytes.len() as u64);
        }
    }

    #[tokio::test]
    async fn what_is_skipped_is_gone_and_nothing_more() {
        let mut stream = Trickle { bytes: (0..=255).cycle().take(100_000).collect(), at: 0, sizes: vec![777], turn: 0 };
        let mut incoming = Incoming::new();
        let mut left = 90_000;
        while left > 0 {
            left -= poll_fn(|cx| incoming.poll_skip(cx, &mut stream, left)).await.unwrap() as u64;
        }
        let header = poll_fn(|cx| incoming.poll_header(cx, &mut stream)).await.unwrap().unwrap();
        assert_eq!(header[0], (90_000 % 256) as u8);
    }
}
