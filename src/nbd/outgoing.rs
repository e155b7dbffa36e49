//! Replies on their way to a client.
//!
//! Owns them from when they are made until the socket has taken the last byte, and with them the buffers of reads; all
//! that is there goes out with one system call. Invariant: messages go out whole and in order.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use super::buffers::Payload;

/// Longest head: a chunk's header and the offset and length of a hole.
const HEAD: usize = 32;

/// Most parts of memory in one system call.
const PARTS: usize = 64;

/// The data of a message.
#[derive(Debug)]
pub(super) enum Body {
    None,
    Bytes(Vec<u8>),
    Whole(Payload),
    Part(Arc<Payload>, Range<usize>),
}

impl Body {
    fn bytes(&self) -> &[u8] {
        match self {
            Body::None => &[],
            Body::Bytes(bytes) => bytes,
            Body::Whole(payload) => payload,
            Body::Part(payload, range) => &payload[range.clone()],
        }
    }
}

/// One message, or a part of one.
#[derive(Debug)]
pub(super) struct Message {
    head: [u8; HEAD],
    head_len: usize,
    body: Body,
    /// Whether a request is answered in full with it.
    ends: bool,
}

impl Message {
    /// `head` in order (32 bytes together at most), then `body`. `ends`: the request is answered in full with it.
    pub(super) fn new(head: &[&[u8]], body: Body, ends: bool) -> Message {
        let mut message = Message { head: [0; HEAD], head_len: 0, body, ends };
        for part in head {
            message.head[message.head_len..][..part.len()].copy_from_slice(part);
            message.head_len += part.len();
        }
        message
    }

    fn len(&self) -> usize {
        self.head_len + self.body.bytes().len()
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    queue: VecDeque<Message>,
    /// Bytes of the first message that are gone.
    sent: usize,
    /// Bytes queued and not gone.
    bytes: usize,
    /// Requests whose answer is not gone in full.
    replies: usize,
    /// Bytes given to the socket, ever.
    total: u64,
}

impl Outgoing {
    /// Bytes waiting for the socket.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Answers waiting for the socket.
    pub(super) fn replies(&self) -> usize {
        self.replies
    }

    /// Bytes given to the socket, ever.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Queues a message.
    pub(super) fn push(&mut self, message: Message) {
        self.replies += usize::from(message.ends);
        self.bytes += message.len();
        self.queue.push_back(message);
    }

    /// Forgets all of it: nobody takes it any more.
    pub(super) fn clear(&mut self) {
        *self = Outgoing { total: self.total, ..Outgoing::default() };
    }

    /// Gives the socket what it takes; ready when nothing is left.
    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        while !self.queue.is_empty() {
            let mut parts = [IoSlice::new(&[]); PARTS];
            let mut count = 0;
            let mut skip = self.sent;
            for message in &self.queue {
                for part in [&message.head[..message.head_len], message.body.bytes()] {
                    let gone = skip.min(part.len());
                    skip -= gone;
                    if gone < part.len() && count < PARTS {
                        parts[count] = IoSlice::new(&part[gone..]);
                        count += 1;
                    }
                }
                if count == PARTS {
                    break;
                }
            }
            match ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &parts[..count]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => self.advance(bytes),
            }
        }
        Pin::new(stream).poll_flush(cx)
    }

    fn advance(&mut self, bytes: usize) {
        self.total += bytes as u64;
        self.bytes -= bytes;
        self.sent += bytes;
        while let Some(first) = self.queue.front()
            && self.sent >= first.len()
        {
            self.sent -= first.len();
            self.replies -= usize::from(first.ends);
            self.queue.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    /// Takes `most` bytes at a time.
    struct Narrow {
        taken: Vec<u8>,
        most: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let most = self.most.min(bytes.len());
            self.taken.extend(&bytes[..most]);
            Poll::Ready(Ok(most))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn messages_go_out_whole_and_in_order_however_little_is_taken() {
        for most in [1, 3, 17, usize::MAX] {
            let mut outgoing = Outgoing::default();
            let mut expected = Vec::new();
            for n in 0..100_u8 {
                let body = vec![n; usize::from(n) * 3];
                expected.extend([b'h', n]);
                expected.extend(&body);
                outgoing.push(Message::new(&[b"h", &[n]], Body::Bytes(body), true));
            }
            assert_eq!((outgoing.bytes(), outgoing.replies()), (expected.len(), 100));
            let mut stream = Narrow { taken: Vec::new(), most };
            poll_fn(|cx| outgoing.poll_flush(cx, &mut stream)).await.unwrap();
            assert!(stream.taken == expected, "{most}");
            assert_eq!((outgoing.bytes(), outgoing.replies()), (0, 0));
        }
    }
}
