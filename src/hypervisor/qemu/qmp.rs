//! A client of QEMU's monitor (QMP): a connection for a few commands, answers decoded only as far as they are used.
//!
//! QEMU hears one client at a time on a socket, so nobody keeps a connection to the monitor that is asked. Events are passed
//! over there: what is so is asked.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::lines::Lines;
use crate::error::{Error, ErrorKind, Result};

/// A connection to a monitor.
pub(super) struct Qmp {
    lines: Lines,
    next: u64,
}

impl Qmp {
    /// Connects to the monitor at socket `name` in `dir` and agrees to talk.
    ///
    /// # Errors
    /// `Unreachable` where none answers in time.
    pub(super) async fn connect(dir: &Path, name: &str, limit: Duration) -> Result<Qmp> {
        let what = format!("QEMU's monitor {}", dir.join(name).display());
        Qmp::greet(Lines::connect(dir, name, what, limit).await?).await
    }

    pub(super) async fn greet(mut lines: Lines) -> Result<Qmp> {
        lines.receive(|object| object.get("QMP").is_some()).await?;
        let mut qmp = Qmp { lines, next: 0 };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// The name of the next event, however long that takes.
    ///
    /// # Errors
    /// `Unreachable` where QEMU is gone.
    pub(super) async fn event(&mut self) -> Result<String> {
        loop {
            if let Some(name) = self.lines.next().await?.get("event").and_then(Value::as_str) {
                return Ok(name.to_owned());
            }
        }
    }

    /// Runs a command; what it returns.
    ///
    /// # Errors
    /// `Unreachable` where no answer comes in time, `NotFound` where QEMU does not know what is named, `Io` with its words
    /// where it refuses otherwise.
    pub(super) async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let id = self.next;
        self.next += 1;
        let asked = json!({"execute": command, "arguments": arguments, "id": id});
        self.lines.send(format!("{asked}\n").as_bytes()).await.map_err(|e| e.while_doing(command))?;
        let own = |object: &Value| object.get("id") == Some(&Value::from(id));
        let mut answer = self.lines.receive(own).await.map_err(|e| e.while_doing(command))?;
        if let Some(value) = answer.get_mut("return") {
            return Ok(value.take());
        }
        let word = |field: &str| answer["error"][field].as_str().unwrap_or("(nothing)").to_owned();
        let kind = match word("class").as_str() {
            "DeviceNotFound" => ErrorKind::NotFound,
            _ => ErrorKind::Io,
        };
        Err(Error::new(kind, format!("{} does not {command}: {}", self.lines.what(), word("desc"))))
    }

    /// The run state, such as `running`, `paused`, `guest-panicked`, `io-error`.
    pub(super) async fn status(&mut self) -> Result<String> {
        let answer = self.execute("query-status", json!({})).await?;
        let status = answer.get("status").and_then(Value::as_str);
        status.map(str::to_owned).ok_or_else(|| {
            Error::new(ErrorKind::Damaged, format!("{}: query-status says no status", self.lines.what()))
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixStream;

    use super::*;

    const GREETING: &str = "{\"QMP\":{\"version\":{}}}\n";

    /// A monitor that greets, agrees, and answers the next command with `says`; `ID` in it is the command's.
    async fn peer(mut stream: UnixStream, says: Vec<u8>) {
        stream.write_all(GREETING.as_bytes()).await.unwrap();
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read).lines();
        read.next_line().await.unwrap();
        write.write_all(b"{\"return\":{},\"id\":0}\n").await.unwrap();
        if read.next_line().await.unwrap().is_some() {
            // A client that has heard enough hangs up.
            let _ = write.write_all(&says).await;
        }
        let _ = read.next_line().await;
    }

    async fn ask(says: &[u8]) -> Result<String> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(peer(theirs, says.to_vec()));
        let mut qmp = Qmp::greet(Lines::over(ours, Duration::from_millis(300))).await?;
        qmp.status().await
    }

    #[tokio::test]
    async fn answers_are_found_among_events_and_what_is_unknown_is_borne() {
        let says = b"{\"event\":\"RESUME\",\"data\":{}}\nnoise\n[1]\n{\"return\":{\"status\":\"old\"},\"id\":77}\n\
                     {\"return\":{\"status\":\"running\",\"new\":[{}]},\"id\":1,\"more\":null}\n";
        assert_eq!(ask(says).await.unwrap(), "running");
    }

    #[tokio::test]
    async fn what_is_wrong_is_an_error_of_its_kind() {
        let refused =
            ask(b"{\"error\":{\"class\":\"GenericError\",\"desc\":\"not now\"},\"id\":1}\n").await.unwrap_err();
        assert!(refused.kind() == ErrorKind::Io && refused.to_string().contains("query-status: not now"), "{refused}");
        let gone = ask(b"{\"error\":{\"class\":\"DeviceNotFound\"},\"id\":1}\n").await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);
        for (says, kind) in [
            (b"{\"return\":{},\"id\":1}\n".to_vec(), ErrorKind::Damaged),
            (b"{\"id\":1}\n".to_vec(), ErrorKind::Io),
            (b"{\"return\":{\"status\":\"runn".to_vec(), ErrorKind::Unreachable),
            (b"{\"event\":\"X\"}\n".to_vec(), ErrorKind::Unreachable),
            (b"{}\n".repeat(20_000), ErrorKind::Unreachable),
            (vec![b'x'; 3 << 20], ErrorKind::Unreachable),
        ] {
            let error = ask(&says).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
        }
    }

    #[tokio::test]
    async fn a_peer_that_is_no_monitor_is_not_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"SSH-2.0\n").await.unwrap();
        let error = Qmp::greet(Lines::over(ours, Duration::from_millis(100))).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(Qmp::greet(Lines::over(ours, Duration::from_secs(60))).await.is_err());
    }
}
