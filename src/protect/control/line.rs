//! Lines of bounded length over a socket, each within a bounded time.
//!
//! Invariant: never more than one line's limit and one read's worth of bytes is held; a line is given out only when its
//! newline has come.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::error::{Error, ErrorKind, IoResultExt, Result};

const READ: usize = 4096;

/// Takes lines from a stream.
pub(super) struct Lines<R> {
    from: R,
    /// Bytes that came and are not given out.
    held: Vec<u8>,
    most: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Lines of at most `most` bytes, with their newline.
    pub(super) fn new(from: R, most: usize) -> Lines<R> {
        Lines { from, held: Vec::new(), most }
    }

    /// The stream itself, to write to.
    #[cfg(test)]
    pub(super) fn stream(&mut self) -> &mut R {
        &mut self.from
    }

    /// The next line, without its newline; `None` where the stream ends, in the middle of a line too.
    ///
    /// # Errors
    /// `Full` where the line is longer than the limit; `Unreachable` where it is not whole within `within`; `Io`.
    pub(super) async fn next(&mut self, within: Duration) -> Result<Option<Vec<u8>>> {
        match timeout(within, self.read()).await {
            Ok(read) => read,
            Err(_) => Err(Error::new(ErrorKind::Unreachable, format!("no whole line within {within:?}"))),
        }
    }

    async fn read(&mut self) -> Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.held[searched..].iter().position(|b| *b == b'\n') {
                let rest = self.held.split_off(searched + at + 1);
                let mut line = std::mem::replace(&mut self.held, rest);
                if line.len() > self.most {
                    return Err(self.too_long());
                }
                line.pop();
                return Ok(Some(line));
            }
            searched = self.held.len();
            if searched >= self.most {
                return Err(self.too_long());
            }
            let mut piece = [0; READ];
            let n = self.from.read(&mut piece).await.io_context(|| "read from the control socket")?;
            if n == 0 {
                return Ok(None);
            }
            self.held.extend_from_slice(&piece[..n]);
        }
    }

    fn too_long(&self) -> Error {
        Error::new(ErrorKind::Full, format!("a line of more than {} bytes", self.most))
    }
}

/// Writes a line within a bounded time.
///
/// # Errors
/// `Unreachable` where the other side does not take it; `Io`.
pub(super) async fn send(to: &mut (impl AsyncWrite + Unpin), line: &[u8], within: Duration) -> Result<()> {
    match timeout(within, to.write_all(line)).await {
        Ok(written) => written.io_context(|| "write to the control socket"),
        Err(_) => Err(Error::new(ErrorKind::Unreachable, format!("the other side took no answer within {within:?}"))),
    }
}
