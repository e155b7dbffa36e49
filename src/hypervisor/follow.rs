//! A command whose lines are followed while it runs, such as one that tells events.
//!
//! One thread, which ends with the command; the command ends when this is dropped. Lines wait in a bounded queue: where
//! nobody takes them the command is held up, and nothing is lost or piles up.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};
use tokio::sync::mpsc;

use super::subprocess::{COMMAND_PATH, program_file};
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Lines that wait.
const QUEUE: usize = 256;
/// Most bytes of a line; what is longer comes in parts.
const MAX_LINE: u64 = 4096;

/// See the module.
#[derive(Debug)]
pub(super) struct Followed {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Followed {
    /// Starts a command, which sees a fixed `PATH` and these variables.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Io` where it cannot be started.
    pub(super) fn start(command: &[String], environment: &BTreeMap<String, String>) -> Result<Followed> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(Error::new(ErrorKind::Invalid, "a command without a program"));
        };
        let mut started = Command::new(program_file(program)?);
        started.args(arguments).env_clear().env("PATH", COMMAND_PATH).envs(environment).current_dir("/");
        started.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut child = started.spawn().io_context(|| format!("run {program}"))?;
        let (tell, lines) = mpsc::channel(QUEUE);
        let output = child.stdout.take();
        std::thread::spawn(move || {
            let Some(output) = output else { return };
            let mut output = BufReader::new(output);
            loop {
                let mut line = Vec::new();
                match output.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) if tell.blocking_send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() => {
                        return;
                    }
                    Ok(_) => {}
                }
            }
        });
        Ok(Followed { child, lines })
    }

    /// The next line; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<String> {
        self.lines.recv().await
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // It fails only where nobody of the group is left.
        let _ = rustix::process::kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_while_it_runs_and_it_ends_with_whoever_follows() {
        let sh = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned);
        let variables = [("GIVEN".to_owned(), "yes".to_owned())].into();
        let mut followed = Followed::start(&sh("echo $$; echo $GIVEN; exec sleep 600"), &variables).unwrap();
        let pid: i32 = followed.next().await.unwrap().parse().unwrap();
        assert_eq!(followed.next().await.unwrap(), "yes");
        drop(followed);
        assert!(rustix::process::test_kill_process(Pid::from_raw(pid).unwrap()).is_err(), "it was waited for");
        let mut short = Followed::start(&sh("printf x"), &BTreeMap::new()).unwrap();
        assert_eq!((short.next().await, short.next().await), (Some("x".to_owned()), None));
        assert_eq!(Followed::start(&["/none".into()], &BTreeMap::new()).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
