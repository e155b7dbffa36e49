//! A process that stands by while guests may be frozen, and thaws them where the appliance dies meanwhile.
//!
//! It is this program again, in a process group of its own, with the read end of a pipe as its standard input. A byte in it
//! is its dismissal; its end without one is the death of the appliance, whatever that died of. It says on its standard output
//! where it looks for notes once it has all that it needs: before that nobody is frozen.
//!
//! Invariant: who freezes, and a guard that thaws, has the *turn*: a lock on a file beside the notes. So a guard never thaws
//! what an appliance that was started anew has just frozen.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::appliance::hypervisor;
use super::quiesce::{FreezeNotes, Freezer, THAW_AGAIN};
use super::settings::Settings;
use crate::datastore::{FileLock, take_lock};
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Tries to thaw guests whose agents do not answer, [`THAW_AGAIN`] apart: ten minutes. The next start goes on with it.
const TRIES: u32 = 120;
/// Longest wait for one that was dismissed.
const GOES_WITHIN: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);
/// Longest wait until one stands by.
const STANDS_WITHIN: Duration = Duration::from_secs(10);
/// Longest line that it says: a path.
const MOST_LINE: usize = 8192;

/// The turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "it is held")] FileLock);

impl Turn {
    /// `None` where another process has it, and keeps it.
    pub(super) async fn take(path: PathBuf) -> Result<Option<Turn>> {
        let take = move || {
            let what = || format!("lock {}", path.display());
            let file = File::options().create(true).truncate(false).write(true).open(&path).io_context(what)?;
            match take_lock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(lock) => Ok(Some(Turn(lock))),
                Err((Errno::WOULDBLOCK, _)) => Ok(None),
                Err((e, _)) => Err(Error::io(what(), e.into())),
            }
        };
        let ended = tokio::task::spawn_blocking(take).await;
        ended.unwrap_or_else(|e| Err(Error::with_source(ErrorKind::Internal, "take a lock", e)))
    }
}

/// See the module; this is the appliance's side.
#[derive(Debug)]
pub(super) struct ThawGuard {
    child: Child,
    pipe: ChildStdin,
    /// Nothing comes any more; its end would meet who writes.
    _words: ChildStdout,
}

impl ThawGuard {
    /// Starts one for the appliance whose settings are in the file `config`, and waits until it stands by for the notes in
    /// `notes`.
    ///
    /// # Errors
    /// `Refused` where it does not, as where the settings were changed since.
    pub(super) async fn start(config: &Path, notes: &Path) -> Result<ThawGuard> {
        let what = || "start the process that thaws guests if this one dies".to_owned();
        // The program that runs, also where another one has its name by now.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("freshet").arg("serve").arg("--config").arg(config).arg("--thaw-when-alone");
        // What ends the appliance from a terminal does not end it.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().io_context(what)?;
        let asked = || Error::new(ErrorKind::Internal, "a pipe that was asked for");
        let (pipe, words) = (child.stdin.take().ok_or_else(asked)?, child.stdout.take().ok_or_else(asked)?);
        let said = tokio::task::spawn_blocking(move || first_line(words));
        let said = tokio::time::timeout(STANDS_WITHIN, said).await;
        match said {
            Ok(Ok((words, said))) if said == notes.display().to_string() => {
                Ok(ThawGuard { child, pipe, _words: words })
            }
            _ => {
                let _ = child.kill().and_then(|()| child.wait());
                let why = "nobody stands by to thaw guests if this appliance dies";
                let remedy =
                    format!("`freshet config check --config {}`: was it changed since the start?", config.display());
                Err(Error::new(ErrorKind::Refused, format!("{why}: none is frozen; {remedy}")))
            }
        }
    }

    /// It is there still.
    pub(super) fn stands(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Nobody is frozen any more.
    pub(super) async fn dismiss(mut self) {
        // One byte, which an empty pipe takes at once.
        if let Err(error) = self.pipe.write_all(b".") {
            tracing::warn!("who stands by to thaw guests cannot be told that they are: {error}");
        }
        drop(self.pipe);
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if began.elapsed() > GOES_WITHIN {
                // Thawing guests that are not frozen does no harm; leaving it behind would.
                let _ = self.child.kill().and_then(|()| self.child.wait());
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The first line that it says, of bounded length, without its end.
fn first_line(mut words: ChildStdout) -> (ChildStdout, String) {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < MOST_LINE && matches!(words.read(&mut byte), Ok(1)) && byte != *b"\n" {
        line.push(byte[0]);
    }
    (words, String::from_utf8_lossy(&line).into_owned())
}

/// What the process does: says that it stands by, waits, and thaws where it is left alone.
///
/// # Errors
/// What the settings' hypervisor says; `Incomplete` where guests do not thaw.
pub async fn stand_by(settings: &Settings) -> Result<()> {
    let notes = tokio::sync::Mutex::new(FreezeNotes::new(&settings.state, None));
    let hypervisor = hypervisor(settings)?;
    let mut out = std::io::stdout();
    let said = writeln!(out, "{}", notes.lock().await.dir().display()).and_then(|()| out.flush());
    said.io_context(|| "say that somebody stands by".to_owned())?;
    let read = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
    if matches!(read.await, Ok(Ok(1..))) {
        return Ok(());
    }
    for _ in 0..TRIES {
        let notes = notes.lock().await;
        let Some(turn) = notes.take_turn().await? else {
            // An appliance that was started since takes care of it.
            return Ok(());
        };
        let left = notes.all();
        if left.is_empty() {
            return Ok(());
        }
        tracing::error!(?left, "the appliance ended while guests may be frozen: they are thawed");
        let freezer = Freezer { hypervisor: hypervisor.clone(), notes, limit: settings.protect.freeze_limit };
        freezer.thaw_all().await;
        if freezer.notes.all().is_empty() {
            return Ok(());
        }
        // An appliance that is started meanwhile goes on with it, and freezes and thaws as ever.
        drop((freezer, turn));
        tokio::time::sleep(THAW_AGAIN).await;
    }
    Err(Error::new(ErrorKind::Incomplete, "guests that may be frozen do not thaw; start the appliance, which goes on"))
}

/// Where the turn is.
pub(super) fn turn_of(state: &Path) -> PathBuf {
    state.join("frozen.lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_has_the_turn_until_it_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let take = async || Turn::take(turn_of(dir.path())).await.unwrap();
        let first = take().await;
        assert!(first.is_some() && take().await.is_none());
        drop(first);
        assert!(take().await.is_some());
        let missing = Turn::take(turn_of(&dir.path().join("none"))).await.unwrap_err();
        assert!(missing.to_string().contains("frozen.lock"), "{missing}");
    }
}
