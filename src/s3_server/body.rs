//! A body on its way through the front: counted, and paced, cut or falsified where a fault says so.
//!
//! Without a fault, frames pass as they are, uncopied.

use super::counters::{Direction, Tally};
use super::faults::Pacer;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use s3s::StdError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes let through at a time when a line is slow.
const PACED: usize = 64 * 1024;

/// A body with what is to happen to it.
pub(super) struct Shaped<B> {
    inner: B,
    tally: Tally,
    direction: Direction,
    pacers: Vec<Arc<Pacer>>,
    /// Received from `inner`, not yet passed on; its first `paid` bytes have waited for the line.
    held: Bytes,
    paid: usize,
    wait: Option<Pin<Box<Sleep>>>,
    passed: u64,
    flip_at: Option<u64>,
    cut_at: Option<u64>,
    flushed: bool,
}

impl<B: Body<Data = Bytes, Error: Into<StdError>> + Unpin> Shaped<B> {
    pub(super) fn new(inner: B, tally: Tally, direction: Direction, pacers: Vec<Arc<Pacer>>) -> Shaped<B> {
        Shaped {
            inner,
            tally,
            direction,
            pacers,
            held: Bytes::new(),
            paid: 0,
            wait: None,
            passed: 0,
            flip_at: None,
            cut_at: None,
            flushed: false,
        }
    }

    /// Flips a bit of the byte in the middle; false if there is no byte.
    pub(super) fn flip(&mut self) -> bool {
        self.flip_at = self.middle();
        self.flip_at.is_some()
    }

    /// Ends the connection in the middle of the body; false if there is no byte.
    pub(super) fn cut(&mut self) -> bool {
        self.cut_at = self.middle();
        self.cut_at.is_some()
    }

    fn middle(&self) -> Option<u64> {
        self.inner.size_hint().exact().filter(|len| *len > 0).map(|len| len / 2)
    }

    /// Waits until the next piece of what is held may pass.
    fn poll_pace(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.paid == 0 {
            self.paid = self.held.len();
            if !self.pacers.is_empty() {
                self.paid = self.paid.min(PACED);
                let free_at = self.pacers.iter().map(|pacer| pacer.reserve(self.paid)).max();
                self.wait = free_at.map(|at| Box::pin(sleep_until(Instant::from_std(at))));
            }
        }
        if let Some(wait) = &mut self.wait {
            ready!(wait.as_mut().poll(cx));
            self.wait = None;
        }
        Poll::Ready(())
    }

    /// The next piece of what is held, wrong where it must be.
    fn pass(&mut self) -> Bytes {
        let left = self.cut_at.map_or(u64::MAX, |cut| cut - self.passed);
        let len = usize::try_from(left).map_or(self.paid, |left| left.min(self.paid));
        let mut piece = self.held.split_to(len);
        self.paid = 0;
        let range = self.passed..self.passed + len as u64;
        if let Some(at) = self.flip_at.filter(|at| range.contains(at)) {
            let mut wrong = piece.to_vec();
            wrong[(at - self.passed) as usize] ^= 1;
            piece = wrong.into();
        }
        self.passed = range.end;
        self.tally.bytes(self.direction, len);
        piece
    }

    /// The end of a cut body: first a pause in which the connection sends what it was given, then the error that
    /// makes it close.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        if !std::mem::replace(&mut self.flushed, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err("the body is cut here on purpose".into())))
    }
}

impl<B: Body<Data = Bytes, Error: Into<StdError>> + Unpin> Body for Shaped<B> {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        loop {
            if this.cut_at == Some(this.passed) {
                return this.poll_cut(cx);
            }
            if !this.held.is_empty() {
                ready!(this.poll_pace(cx));
                return Poll::Ready(Some(Ok(Frame::data(this.pass()))));
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.held = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.cut_at.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        let held = self.held.len() as u64;
        if let Some(exact) = hint.exact() {
            hint.set_exact(exact + held);
        }
        hint
    }
}
