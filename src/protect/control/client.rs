//! The client: what `freshet protect --status` and its like ask a running protection.

use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::error::{Error, ErrorKind, Result, ResultExt};

use super::line::{Lines, send};
use super::message::{ControlReply, ControlRequest, read_answer};
use super::socket::connect;

/// Time to connect, to send, and for the server to set about a request.
const EXCHANGE: Duration = Duration::from_secs(15);
/// Most bytes of an answer: the status of a very large domain.
const MOST_ANSWER: usize = 64 << 20;

/// A connection to a running protection.
#[derive(Debug)]
pub struct ControlClient {
    stream: UnixStream,
}

impl ControlClient {
    /// Connects to the socket at `path`, see [`super::control_path`].
    ///
    /// # Errors
    /// `NotFound` where no protection runs; `Denied` where the socket is another user's; `Unreachable`; `Io`.
    pub async fn connect(path: &Path) -> Result<ControlClient> {
        match timeout(EXCHANGE, connect(path)).await {
            Ok(stream) => Ok(ControlClient { stream: stream? }),
            Err(_) => {
                let why = format!("connect to {}: not accepted within {EXCHANGE:?}", path.display());
                Err(Error::new(ErrorKind::Unreachable, why))
            }
        }
    }

    /// Asks and waits for the answer, for as long as the request may take.
    ///
    /// # Errors
    /// What the protection answers; `Unreachable` where it does not, or ends before it does; `Damaged` or `Unsupported` where
    /// its answer is not understood. After an error that is not the protection's own the connection is of no use.
    pub async fn call(&mut self, request: &ControlRequest) -> Result<ControlReply> {
        let (read, mut write) = self.stream.split();
        let sent = send(&mut write, &request.to_line()?, EXCHANGE).await;
        // Whoever is turned away is told so before anything is read.
        let mut lines = Lines::new(read, MOST_ANSWER);
        let line = lines.next(EXCHANGE + request.patience()).await;
        match line {
            Ok(Some(line)) => read_answer(&line),
            Ok(None) => {
                sent?;
                Err(Error::new(ErrorKind::Unreachable, "the protection ended before it answered"))
            }
            Err(e) => Err(e).while_doing(|| "wait for the protection's answer"),
        }
    }
}
