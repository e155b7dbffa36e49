//! One call of an export that is under way.
//!
//! Owns the answer that is waited for, and whose it is. It is dropped only with the connection.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::buffers::Payload;
use super::export::{Answer, BlockStatus, ExportError};

/// Position of a request in the table of a connection.
pub(super) type RequestId = usize;

/// See the module's head.
pub(super) struct Op {
    pub(super) request: RequestId,
    /// Where the call begins, in bytes of the export.
    pub(super) offset: u64,
    pub(super) call: Call,
}

/// What was called.
pub(super) enum Call {
    Read(Answer<Payload>),
    Change(Answer<()>),
    Status(Answer<Vec<BlockStatus>>),
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Answered {
    Read(Payload),
    Changed,
    Status(Vec<BlockStatus>),
}

/// A call that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) request: RequestId,
    pub(super) offset: u64,
    pub(super) answer: Result<Answered, ExportError>,
}

impl Future for Op {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let answer = match &mut self.call {
            Call::Read(answer) => ready!(answer.as_mut().poll(cx)).map(Answered::Read),
            Call::Change(answer) => ready!(answer.as_mut().poll(cx)).map(|()| Answered::Changed),
            Call::Status(answer) => ready!(answer.as_mut().poll(cx)).map(Answered::Status),
        };
        Poll::Ready(Ended { request: self.request, offset: self.offset, answer })
    }
}
