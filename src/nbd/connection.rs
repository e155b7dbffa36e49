//! The transmission phase of one connection: requests in, calls of the export, replies out.
//!
//! ```text
//!  socket -> Incoming -> judge -> pieces of at most one buffer -> Op --at once--> Outgoing -> socket
//!                                                                  \--later--> ops --------/
//! ```
//!
//! Owns the socket, the requests and their calls. All of it is one state machine on one thread, so that a request that
//! is answered at once wakes nobody, and the replies to all requests that arrived together leave together.
//!
//! Invariants: a request is answered once; the count of requests in flight, those whose reply still waits for the
//! socket included, never exceeds the limit; calls are driven to their end, also when the client is gone; after
//! `DISC`, the end of the stream, or a breach of the protocol nothing more is read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep};

use super::active::{Kind, Requests};
use super::buffers::{Payload, Share, room};
use super::export::{Errno, ExportError, ExportInfo};
use super::exports::Entry;
use super::incoming::Incoming;
use super::op::{Answered, Call, Ended, Op, RequestId};
use super::outgoing::Outgoing;
use super::proto::MAX_PAYLOAD;
use super::replies;
use super::request::{Agreed, Command, Header, Verdict, judge};

/// Replies are handed to the socket once this many bytes wait, before further requests are looked at.
const FLUSH_AT: usize = 256 << 10;

/// Longest data of a refused write that is taken off the socket; past that the connection ends.
const MAX_REFUSED: u32 = 2 * MAX_PAYLOAD;

/// A stall is noticed after this many looks without a byte.
const STALL_LOOKS: u32 = 4;

/// Longest wait for a client to take the end of the connection.
const GOODBYE: Duration = Duration::from_secs(2);

/// Failures of requests told one by one; past that every thousandth.
const FAILURES_TOLD: u64 = 10;

/// What the client and the server agreed on before.
pub(super) struct Session {
    pub(super) entry: Arc<Entry>,
    pub(super) info: ExportInfo,
    pub(super) agreed: Agreed,
    pub(super) share: Share,
}

/// Settings of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Requests in flight.
    pub(super) max_in_flight: usize,
    /// Time in which a peer that owes us bytes, or room for ours, must move at least one.
    pub(super) stall: Duration,
    /// Whether new requests are answered with `ESHUTDOWN` when the server stops, or not read any more.
    pub(super) refuse_at_end: bool,
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Fate {
    /// The client took its leave, or just went away between two requests.
    Left,
    /// The server stops.
    Stopped,
    /// The socket failed, or the client went away in the middle of a request.
    Broken(io::Error),
    /// The client broke the protocol.
    Breach(String),
}

/// What is being read off the socket.
enum Intake {
    /// Headers.
    Open,
    /// The data of a refused write: bytes left.
    Skip(u64),
    /// A read or write that is made piece by piece.
    Pieces(Pieces),
    /// Nothing any more.
    Closed,
}

/// What is left of a read or write.
struct Pieces {
    request: RequestId,
    write: bool,
    fua: bool,
    offset: u64,
    left: usize,
    /// Bytes of the whole request.
    len: usize,
    /// The buffer that the current piece of a write is read into, and how much of it is there.
    filling: Option<(Payload, usize)>,
    waiting: Option<BoxFuture<'static, Result<Payload, ExportError>>>,
}

/// See the module's head.
pub(super) struct Connection<S> {
    stream: S,
    peer: String,
    entry: Arc<Entry>,
    info: ExportInfo,
    agreed: Agreed,
    share: Arc<Share>,
    limits: Limits,
    incoming: Incoming,
    outgoing: Outgoing,
    intake: Intake,
    requests: Requests,
    ops: FuturesUnordered<Op>,
    stopping: Option<BoxFuture<'static, ()>>,
    refusing: bool,
    fate: Option<Fate>,
    /// Nothing can be sent any more.
    broken: bool,
    stall: Pin<Box<Sleep>>,
    stalled: (u64, u32),
    failures: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// A connection that ends when its client does, or soon after `stopping` is ready.
    pub(super) fn new(
        stream: S,
        peer: String,
        session: Session,
        limits: Limits,
        stopping: BoxFuture<'static, ()>,
    ) -> Connection<S> {
        Connection {
            stream,
            peer,
            entry: session.entry,
            info: session.info,
            agreed: session.agreed,
            share: Arc::new(session.share),
            limits,
            incoming: Incoming::new(),
            outgoing: Outgoing::default(),
            intake: Intake::Open,
            requests: Requests::default(),
            ops: FuturesUnordered::new(),
            stopping: Some(stopping),
            refusing: false,
            fate: None,
            broken: false,
            stall: Box::pin(tokio::time::sleep(limits.stall / STALL_LOOKS)),
            stalled: (0, 0),
            failures: 0,
        }
    }

    /// Serves the client to its end, and tells how it ended.
    pub(super) async fn run(mut self) -> Fate {
        std::future::poll_fn(|cx| self.poll(cx)).await;
        if !self.broken {
            // The end of TLS is told to the client; one that does not take it is not waited for.
            let _ = tokio::time::timeout(GOODBYE, self.stream.shutdown()).await;
        }
        self.fate.take().unwrap_or(Fate::Left)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut moved = false;
            while let Poll::Ready(Some(ended)) = self.ops.poll_next_unpin(cx) {
                self.ended(ended);
                moved = true;
            }
            if self.stopping.as_mut().is_some_and(|stopping| stopping.as_mut().poll(cx).is_ready()) {
                self.stopping = None;
                self.stop();
            }
            while self.outgoing.bytes() < FLUSH_AT && self.poll_intake(cx).is_ready() {
                moved = true;
            }
            moved |= self.poll_outgoing(cx);
            if self.is_over() {
                return Poll::Ready(());
            }
            if !moved {
                match self.poll_stall(cx) {
                    Poll::Ready(()) => continue,
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
    }

    /// Whether all is done. While requests are refused at the end, that is when none is left on the socket either.
    fn is_over(&self) -> bool {
        let closed = matches!(self.intake, Intake::Closed);
        let idle = self.refusing && matches!(self.intake, Intake::Open) && !self.incoming.is_partial();
        (closed || idle) && self.requests.len() == 0 && (self.broken || self.outgoing.is_empty())
    }

    /// The server stops: what has begun is finished.
    fn stop(&mut self) {
        self.fate.get_or_insert(Fate::Stopped);
        match self.intake {
            Intake::Open | Intake::Skip(_) if !self.limits.refuse_at_end => self.intake = Intake::Closed,
            _ => self.refusing = true,
        }
    }

    /// Nothing more is read: a request of which a part is missing is given up.
    fn close(&mut self, fate: Option<Fate>) {
        if let Intake::Pieces(pieces) = std::mem::replace(&mut self.intake, Intake::Closed) {
            let active = self.requests.get(pieces.request);
            (active.more, active.abandoned) = (false, true);
            if active.calls == 0 {
                self.finish(pieces.request);
            }
        }
        if let Some(fate) = fate {
            self.fate = Some(fate);
        }
    }

    /// One step of reading requests; pending where the socket has nothing, or something else must happen first.
    fn poll_intake(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let step = match &mut self.intake {
            Intake::Closed => return Poll::Pending,
            Intake::Open => self.poll_request(cx),
            Intake::Pieces(_) => self.poll_piece(cx),
            Intake::Skip(left) => match ready!(self.incoming.poll_skip(cx, &mut self.stream, *left)) {
                Ok(0) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(bytes) => {
                    *left -= bytes as u64;
                    if *left == 0 {
                        self.intake = self.next_intake();
                    }
                    Poll::Ready(Ok(()))
                }
                Err(error) => Poll::Ready(Err(error)),
            },
        };
        if let Err(error) = ready!(step) {
            self.broken |= error.kind() != io::ErrorKind::UnexpectedEof;
            self.close(Some(Fate::Broken(error)));
        }
        Poll::Ready(())
    }

    /// What to read after a request: nothing, when the server stops and its clients are not told so.
    fn next_intake(&self) -> Intake {
        if self.refusing && !self.limits.refuse_at_end { Intake::Closed } else { Intake::Open }
    }

    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_room() {
            return Poll::Pending;
        }
        let Some(bytes) = ready!(self.incoming.poll_header(cx, &mut self.stream))? else {
            if self.incoming.is_partial() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.close(None);
            return Poll::Ready(Ok(()));
        };
        match Header::parse(&bytes) {
            Some(header) => self.begin(&header),
            None => self.close(Some(Fate::Breach("a request that does not begin as one".to_owned()))),
        }
        Poll::Ready(Ok(()))
    }

    /// Whether one more request may be in flight.
    fn has_room(&self) -> bool {
        self.requests.len() + self.outgoing.replies() < self.limits.max_in_flight
    }

    fn begin(&mut self, header: &Header) {
        let mut verdict = judge(header, &self.info, self.agreed);
        if verdict != Verdict::Disconnect && self.refusing {
            verdict = Verdict::Refuse(Errno::Shutdown, "the server is stopping");
        }
        if matches!(verdict, Verdict::Run(_)) && !self.entry.enter() {
            verdict = Verdict::Refuse(Errno::Shutdown, "the export is not served any more");
        }
        match verdict {
            Verdict::Disconnect => self.close(None),
            Verdict::Nothing if header.command == super::proto::command::READ => {
                self.outgoing.push(replies::nothing_read(header.cookie, self.agreed.structured));
            }
            Verdict::Nothing => self.outgoing.push(replies::done(header.cookie)),
            Verdict::Refuse(errno, why) => {
                self.fail(header.cookie, ExportError::new(errno, why));
                match header.payload() {
                    0 => {}
                    len if len > MAX_REFUSED => {
                        self.close(Some(Fate::Breach(format!("a write of {len} bytes"))));
                    }
                    len => self.intake = Intake::Skip(u64::from(len)),
                }
            }
            Verdict::Run(command) => self.run_command(header, command),
        }
    }

    fn run_command(&mut self, header: &Header, command: Command) {
        let (offset, len) = (header.offset, u64::from(header.len));
        let export = self.entry.in_use();
        let (kind, call) = match command {
            Command::Read { whole } => return self.begin_pieces(header, Some(whole), false),
            Command::Write { fua } => return self.begin_pieces(header, None, fua),
            Command::Flush => (Kind::Other, Call::Change(export.flush())),
            Command::Trim { fua } => (Kind::Other, Call::Change(export.trim(offset, len, fua))),
            Command::Cache => (Kind::Other, Call::Change(export.cache(offset, len))),
            Command::WriteZeroes { mode, fua } => {
                let kind = if mode.fast { Kind::FastZeroes } else { Kind::Other };
                (kind, Call::Change(export.write_zeroes(offset, len, mode, fua)))
            }
            Command::BlockStatus { one } => (Kind::Status, Call::Status(export.extents(offset, len, one))),
        };
        let request = self.requests.insert(header.cookie, kind);
        self.start(Op { request, offset, call });
    }

    /// Begins a read (whole or not) or a write.
    fn begin_pieces(&mut self, header: &Header, read: Option<bool>, fua: bool) {
        let len = header.len as usize;
        let single = len <= room(header.offset);
        let kind = match read {
            None => Kind::Write { flush: fua && !single },
            Some(true) if !single => {
                self.entry.leave();
                let text = "too long for one chunk: at most a buffer of 1 MiB can be read in one";
                return self.fail(header.cookie, ExportError::new(Errno::Overflow, text));
            }
            Some(_) if !single && !self.agreed.structured => Kind::InOrder { begun: false },
            Some(whole) => Kind::Read { whole },
        };
        let request = self.requests.insert(header.cookie, kind);
        self.requests.get(request).more = true;
        self.intake = Intake::Pieces(Pieces {
            request,
            write: read.is_none(),
            fua: fua && single,
            offset: header.offset,
            left: len,
            len,
            filling: None,
            waiting: None,
        });
    }

    /// One step of a read or write: a buffer, some data, or the call of a piece.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Intake::Pieces(pieces) = &mut self.intake else { return Poll::Pending };
        let alone = self.requests.len() == 1;
        let active = self.requests.get(pieces.request);
        // Nothing may come between its pieces, so that it waits for all others, and for the piece before.
        if matches!(active.kind, Kind::InOrder { .. }) && !(alone && active.calls == 0) {
            return Poll::Pending;
        }
        if pieces.filling.is_none() {
            match ready!(poll_buffer(&self.share, pieces, cx)) {
                Ok(payload) => pieces.filling = Some((payload, 0)),
                Err(error) => return self.give_up_pieces(error),
            }
        }
        let Some((payload, filled)) = &mut pieces.filling else { return Poll::Pending };
        if pieces.write {
            while *filled < payload.len() {
                let into = &mut payload[*filled..];
                match ready!(self.incoming.poll_data(cx, &mut self.stream, into, pieces.len))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                    bytes => *filled += bytes,
                }
            }
        }
        let Some((payload, _)) = pieces.filling.take() else { return Poll::Pending };
        let (request, offset) = (pieces.request, pieces.offset);
        let export = self.entry.in_use();
        pieces.offset += payload.len() as u64;
        pieces.left -= payload.len();
        self.requests.get(request).more = pieces.left > 0;
        let call = match pieces.write {
            true => Call::Change(export.write(offset, payload, pieces.fua)),
            false => Call::Read(export.read(offset, payload)),
        };
        if pieces.left == 0 {
            self.intake = self.next_intake();
        }
        self.start(Op { request, offset, call });
        Poll::Ready(Ok(()))
    }

    /// No buffer can be had: the request fails, its data is skipped.
    fn give_up_pieces(&mut self, error: ExportError) -> Poll<io::Result<()>> {
        let next = self.next_intake();
        let Intake::Pieces(pieces) = std::mem::replace(&mut self.intake, next) else { return Poll::Pending };
        if pieces.write {
            self.intake = Intake::Skip(pieces.left as u64);
        }
        let active = self.requests.get(pieces.request);
        active.more = false;
        active.error.get_or_insert(error);
        if active.calls == 0 {
            self.finish(pieces.request);
        }
        Poll::Ready(Ok(()))
    }

    /// Makes a call, which may end at once.
    fn start(&mut self, mut op: Op) {
        self.requests.get(op.request).calls += 1;
        // The waker is of no use yet: an answer that is not there is asked for again by `ops` with its own.
        match Pin::new(&mut op).poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(ended) => self.ended(ended),
            Poll::Pending => self.ops.push(op),
        }
    }

    /// Takes the answer of a call.
    fn ended(&mut self, ended: Ended) {
        let structured = self.agreed.structured;
        let active = self.requests.get(ended.request);
        active.calls -= 1;
        let last = active.calls == 0 && !active.more;
        let cookie = active.cookie;
        let wanted = active.error.is_none() && !active.abandoned;
        match (ended.answer, active.kind) {
            (Err(error), _) => {
                active.error.get_or_insert(error);
            }
            (Ok(Answered::Read(data)), Kind::Read { whole }) if wanted && structured => {
                replies::chunks(cookie, ended.offset, data, whole, last, |chunk| self.outgoing.push(chunk));
            }
            (Ok(Answered::Read(data)), Kind::Read { .. }) if wanted => {
                self.outgoing.push(replies::simple_data(cookie, data, true));
            }
            (Ok(Answered::Read(data)), Kind::InOrder { begun }) if wanted => {
                active.kind = Kind::InOrder { begun: true };
                self.outgoing.push(match begun {
                    true => replies::more_data(data, last),
                    false => replies::simple_data(cookie, data, last),
                });
            }
            (Ok(Answered::Status(parts)), _) if wanted => {
                match parts.is_empty() {
                    false => self.outgoing.push(replies::status(cookie, &parts)),
                    // One part at least is owed: a mistake of the export, to be told and not passed on.
                    true => active.error = Some(ExportError::new(Errno::Io, "the export told no status")),
                }
            }
            (Ok(_), _) => {}
        }
        if last {
            self.finish(ended.request);
        }
    }

    /// All calls of a request have ended: what is still owed is sent.
    fn finish(&mut self, request: RequestId) {
        let active = self.requests.get(request);
        if active.kind == (Kind::Write { flush: true }) && active.error.is_none() && !active.abandoned {
            active.kind = Kind::Other;
            let call = Call::Change(self.entry.in_use().flush());
            return self.start(Op { request, offset: 0, call });
        }
        let active = self.requests.remove(request);
        self.entry.leave();
        if let (Kind::InOrder { begun: true }, Some(error)) = (active.kind, &active.error) {
            // Its length was promised: there is no way to take that back.
            return self.close(Some(Fate::Broken(io::Error::other(error.text.clone()))));
        }
        match active.error {
            _ if active.abandoned => {}
            Some(error) => self.fail(active.cookie, plain(error, active.kind)),
            None if matches!(active.kind, Kind::Read { .. } | Kind::InOrder { .. } | Kind::Status) => {}
            None => self.outgoing.push(replies::done(active.cookie)),
        }
    }

    /// Answers with an error, and tells the log of it.
    fn fail(&mut self, cookie: u64, error: ExportError) {
        self.failures += 1;
        let (peer, name) = (&self.peer, self.entry.name());
        if self.failures <= FAILURES_TOLD || self.failures.is_multiple_of(1000) {
            match error.errno {
                Errno::Io | Errno::NoMem => {
                    tracing::warn!("export {name}, {peer}: {error} (failure {})", self.failures)
                }
                _ => tracing::debug!("export {name}, {peer}: {error}"),
            }
        }
        self.outgoing.push(replies::failed(cookie, self.agreed.structured, &error));
    }

    /// Sends what there is; whether anything went.
    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> bool {
        if self.broken {
            self.outgoing.clear();
            return false;
        }
        let before = self.outgoing.total();
        if let Poll::Ready(Err(error)) = self.outgoing.poll_flush(cx, &mut self.stream) {
            // What the client had sent before it left is still carried out, without an answer.
            self.broken = true;
            self.outgoing.clear();
            self.fate = Some(Fate::Broken(error));
            return true;
        }
        self.outgoing.total() != before
    }

    /// Ready when a peer that we wait for has not moved a byte for too long; then the connection is over.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let owes = !self.outgoing.is_empty()
            || match &self.intake {
                Intake::Pieces(pieces) => pieces.write && pieces.filling.is_some(),
                Intake::Skip(_) => true,
                Intake::Open => self.incoming.is_partial() && self.has_room(),
                Intake::Closed => false,
            };
        if !owes {
            self.stalled.1 = 0;
            return Poll::Pending;
        }
        ready!(self.stall.as_mut().poll(cx));
        self.stall.as_mut().reset(Instant::now() + self.limits.stall / STALL_LOOKS);
        let now = self.incoming.total() + self.outgoing.total();
        self.stalled = if self.stalled.0 == now { (now, self.stalled.1 + 1) } else { (now, 0) };
        if self.stalled.1 >= STALL_LOOKS {
            self.broken = true;
            self.outgoing.clear();
            self.close(Some(Fate::Broken(io::ErrorKind::TimedOut.into())));
        }
        Poll::Ready(())
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        // Calls first: what they hold is in use until they are gone.
        self.ops.clear();
        for _ in 0..self.requests.len() {
            self.entry.leave();
        }
    }
}

/// The buffer of the next piece.
fn poll_buffer(share: &Arc<Share>, pieces: &mut Pieces, cx: &mut Context<'_>) -> Poll<Result<Payload, ExportError>> {
    let len = pieces.left.min(room(pieces.offset));
    let waiting = match &mut pieces.waiting {
        Some(waiting) => waiting,
        None => {
            if let Some(payload) = share.try_take(pieces.offset, len) {
                return Poll::Ready(Ok(payload));
            }
            let (share, offset) = (Arc::clone(share), pieces.offset);
            pieces.waiting.insert(Box::pin(async move { share.take(offset, len).await }))
        }
    };
    let payload = ready!(waiting.as_mut().poll(cx));
    pieces.waiting = None;
    Poll::Ready(payload)
}

/// "Not supported" is for zeros that had to be fast only; other requests just fail.
fn plain(mut error: ExportError, kind: Kind) -> ExportError {
    if error.errno == Errno::NotSup && kind != Kind::FastZeroes {
        error.errno = Errno::Inval;
    }
    error
}
