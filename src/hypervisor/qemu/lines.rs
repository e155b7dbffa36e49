//! JSON objects a line each over a Unix socket, as QEMU's monitor and its guest agent speak them.
//!
//! Owns the bounds: how long a line may be, how many lines that are not the answer are passed over, how long anything may
//! take. A peer that breaks one of them is unreachable; what it said is not used.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Most bytes of a line.
const MAX_LINE: usize = 1 << 20;
/// Most lines that are passed over while one is waited for, such as events.
const MAX_PASSED: usize = 10_000;
/// What the agent puts before the answer that begins a conversation.
const DELIMITER: u8 = 0xff;

/// One end of the conversation. After an error it is to be dropped: where it stands is not known any more.
pub(super) struct Lines {
    stream: BufReader<UnixStream>,
    what: String,
    limit: Duration,
}

fn unreachable(what: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unreachable, format!("{what}: {why}"))
}

impl Lines {
    /// Connects to the socket `name` in `dir`, however long that path is.
    ///
    /// # Errors
    /// `Unreachable` where nobody listens.
    pub(super) async fn connect(dir: &Path, name: &str, what: String, limit: Duration) -> Result<Lines> {
        use std::os::fd::AsRawFd;
        let opened = std::fs::File::open(dir).io_context(|| what.clone())?;
        // An address holds 107 bytes of path; this one is short.
        let path = format!("/proc/self/fd/{}/{name}", opened.as_raw_fd());
        let stream = match tokio::time::timeout(limit, UnixStream::connect(&path)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(e)) => return Err(Error::with_source(ErrorKind::Unreachable, what, e)),
            Err(_) => return Err(unreachable(&what, format!("no connection within {} s", limit.as_secs()))),
        };
        Ok(Lines { stream: BufReader::new(stream), what, limit })
    }

    /// Over a stream that is there already.
    #[cfg(test)]
    pub(super) fn over(stream: UnixStream, limit: Duration) -> Lines {
        Lines { stream: BufReader::new(stream), what: "peer".to_owned(), limit }
    }

    /// What this is, in messages.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// How long anything may take from here on.
    pub(super) fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Sends `bytes` as they are.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match tokio::time::timeout(self.limit, self.stream.get_mut().write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(Error::with_source(ErrorKind::Unreachable, self.what.clone(), e)),
            Err(_) => Err(unreachable(&self.what, format!("takes nothing for {} s", self.limit.as_secs()))),
        }
    }

    /// The first object for which `wanted` holds, within the limit. Others, and what is no object, are passed over.
    ///
    /// # Errors
    /// `Unreachable` where it does not come.
    pub(super) async fn receive(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let until = Instant::now() + self.limit;
        for _ in 0..MAX_PASSED {
            let line = match tokio::time::timeout_at(until, self.line()).await {
                Ok(line) => line?,
                Err(_) => return Err(unreachable(&self.what, format!("no answer within {} s", self.limit.as_secs()))),
            };
            let text = line.rsplit(|byte| *byte == DELIMITER).next().unwrap_or_default();
            if let Some(object) = serde_json::from_slice(text).ok().filter(Value::is_object).filter(&wanted) {
                return Ok(object);
            }
        }
        Err(unreachable(&self.what, format!("{MAX_PASSED} lines and no answer among them")))
    }

    /// The next object, however long that takes. What is none is passed over.
    ///
    /// # Errors
    /// `Unreachable` where the conversation ends.
    pub(super) async fn next(&mut self) -> Result<Value> {
        loop {
            let line = self.line().await?;
            if let Some(object) = serde_json::from_slice(&line).ok().filter(Value::is_object) {
                return Ok(object);
            }
        }
    }

    async fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            let read = self.stream.fill_buf().await;
            let bytes = read.map_err(|e| Error::with_source(ErrorKind::Unreachable, self.what.clone(), e))?;
            if bytes.is_empty() {
                return Err(unreachable(&self.what, "it ended the conversation"));
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let taken = end.unwrap_or(bytes.len());
            if line.len() + taken > MAX_LINE {
                return Err(unreachable(&self.what, format!("a line of more than {MAX_LINE} bytes")));
            }
            line.extend_from_slice(&bytes[..taken]);
            self.stream.consume(taken + usize::from(end.is_some()));
            if end.is_some() {
                return Ok(line);
            }
        }
    }
}
