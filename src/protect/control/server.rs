//! The server: accepts, checks who is there, reads a line, has it done, answers.
//!
//! One task accepts; each connection has a task of its own and one request at a time. What is begun is ended, since nothing
//! but the end of the whole server, after its grace, takes a request away from the middle of its work.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::capture::VmSource;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Name;

use super::super::hand_over::{HandOverOptions, HandedOver};
use super::line::{Lines, send};
use super::message::{Command, ControlReply, ControlRequest, answer_line};
use super::socket::{Socket, check_peer};

/// Pause after a failed accept, such as one for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a protection does for those who control it. Several requests may come at once; each method orders them as it
/// must. None of them is dropped before it has ended, except when the process ends.
pub trait Controlled: Send + Sync + 'static {
    /// How it stands, as the document that `freshet protect --status --json` shows.
    fn status(&self) -> BoxFuture<'_, Result<Value>>;

    /// The disks of `vm` join; the VM too, where it is new. Done when they are served and captured.
    ///
    /// # Errors
    /// `Refused` where such a disk is there already; what opening its image says. Then none has joined.
    fn add(&self, vm: VmSource) -> BoxFuture<'_, Result<()>>;

    /// Disk `disk` of VM `vm` leaves. Done when it is not captured any more.
    ///
    /// # Errors
    /// `NotFound` where there is none.
    fn remove_disk<'a>(&'a self, vm: &'a Name, disk: &'a Name) -> BoxFuture<'a, Result<()>>;

    /// Cuts a point now and answers with its segment when it is part of the domain.
    ///
    /// # Errors
    /// `Unreachable` where that took longer than `within`; `Fenced`.
    fn flush_point(&self, within: Duration) -> BoxFuture<'_, Result<u64>>;

    /// Gives the domain up without loss, and then ends as [`Controlled::stop`] does.
    ///
    /// # Errors
    /// See [`Protection::hand_over`](crate::protect::Protection::hand_over).
    fn hand_over(&self, options: HandOverOptions) -> BoxFuture<'_, Result<HandedOver>>;

    /// Turns down who asks for the domain.
    ///
    /// # Errors
    /// `Refused` where the domain is not written from here now.
    fn turn_down(&self) -> BoxFuture<'_, Result<()>>;

    /// Asks it to end, as SIGTERM does. Answers at once.
    fn stop(&self) -> BoxFuture<'_, Result<()>>;
}

/// Limits of a server.
#[derive(Debug, Clone)]
pub struct ControlLimits {
    /// Connections at once; more are told so and closed. Default 16.
    pub connections: usize,
    /// Most bytes of a request's line. Default 64 KiB.
    pub line: usize,
    /// Time for a request to come whole, from when the connection is ready for it. Default 60 s.
    pub request: Duration,
    /// Time for a client to take its answer. Default 10 s.
    pub answer: Duration,
    /// Time for requests under way to end when the server ends. Default 5 s.
    pub grace: Duration,
}

impl Default for ControlLimits {
    fn default() -> ControlLimits {
        ControlLimits {
            connections: 16,
            line: 64 << 10,
            request: Duration::from_secs(60),
            answer: Duration::from_secs(10),
            grace: Duration::from_secs(5),
        }
    }
}

/// A running server. Dropping it ends it at once, without grace.
#[derive(Debug)]
pub struct ControlServer {
    closing: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl ControlServer {
    /// Listens at `path` (see [`super::control_path`]), in place of what a killed process left there. The caller holds the
    /// lock of the directory. Needs a tokio runtime.
    ///
    /// # Errors
    /// What making the socket says.
    pub fn start(path: &Path, controlled: Arc<dyn Controlled>, limits: ControlLimits) -> Result<ControlServer> {
        let socket = Socket::bind(path)?;
        let (closing, told) = watch::channel(false);
        let task = crate::log_context::spawn(serve(socket, controlled, limits, told));
        Ok(ControlServer { closing, task })
    }

    /// Accepts nobody any more, lets requests under way end for the grace, and removes the socket.
    pub async fn shutdown(mut self) {
        self.closing.send_replace(true);
        // A panic there has ended it as well.
        let _ = (&mut self.task).await;
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    socket: Socket,
    controlled: Arc<dyn Controlled>,
    limits: ControlLimits,
    mut closing: watch::Receiver<bool>,
) {
    let limits = Arc::new(limits);
    let room = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = socket.listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            _ = closing.wait_for(|closing| *closing) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept at the control socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = check_peer(&stream) {
            tracing::warn!(%error, "refused at the control socket");
            turn_away(&stream, error);
            continue;
        }
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            let why = format!("{} clients are connected already; try again", limits.connections);
            turn_away(&stream, Error::new(ErrorKind::Full, why));
            continue;
        };
        let (controlled, limits, closing) = (Arc::clone(&controlled), Arc::clone(&limits), closing.clone());
        let talk = async move {
            let _permit = permit;
            converse(stream, &*controlled, &limits, closing).await;
        };
        connections.spawn(tracing::Instrument::in_current_span(talk));
    }
    let ended = async { while connections.join_next().await.is_some() {} };
    // What is left is cut off when the set is dropped.
    let _ = tokio::time::timeout(limits.grace, ended).await;
}

/// One line into a fresh socket, which has room for it; whoever does not take it misses nothing but the reason.
fn turn_away(stream: &UnixStream, error: Error) {
    let _ = stream.try_write(&answer_line(&Err(error)));
}

/// Requests of one client, one after the other, until it goes, breaks a limit, or the server ends.
async fn converse(
    mut stream: UnixStream,
    controlled: &dyn Controlled,
    limits: &ControlLimits,
    mut closing: watch::Receiver<bool>,
) {
    let (read, mut write) = stream.split();
    let mut lines = Lines::new(read, limits.line);
    loop {
        let line = tokio::select! {
            line = lines.next(limits.request) => line,
            _ = closing.wait_for(|closing| *closing) => return,
        };
        let (answer, last) = match line {
            Ok(None) => return,
            Ok(Some(line)) => (answer(&line, controlled).await, false),
            // Where the next request begins cannot be told any more.
            Err(e) => (Err(e), true),
        };
        if let Err(error) = send(&mut write, &answer_line(&answer), limits.answer).await {
            tracing::debug!(%error, "answer at the control socket");
            return;
        }
        if last {
            return;
        }
    }
}

async fn answer(line: &[u8], controlled: &dyn Controlled) -> Result<ControlReply> {
    let request = ControlRequest::from_line(line)?;
    if request != ControlRequest::Status {
        tracing::info!(?request, "asked at the control socket");
    }
    match request.check()? {
        Command::Status => controlled.status().await.map(ControlReply::Status),
        Command::Add(vm) => controlled.add(vm).await.map(|()| ControlReply::Added),
        Command::RemoveDisk(vm, disk) => controlled.remove_disk(&vm, &disk).await.map(|()| ControlReply::Removed),
        Command::FlushPoint(within) => controlled.flush_point(within).await.map(ControlReply::Point),
        Command::HandOver(options) => controlled.hand_over(options).await.map(ControlReply::Released),
        Command::TurnDown => controlled.turn_down().await.map(|()| ControlReply::TurnedDown),
        Command::Stop => controlled.stop().await.map(|()| ControlReply::Stopping),
    }
}
