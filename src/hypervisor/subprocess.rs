//! Running a command: its input written, its output taken within bounds, and an end to it, whatever it does.
//!
//! ```text
//! spawn in a process group of its own -> poll { input, output, errors, its end, being let go of } -> its exit code
//!        time is over, or nobody waits any more: SIGTERM to the group, two seconds later SIGKILL
//! ```
//!
//! One thread for each command, off the asynchronous ones; no other thread. What a command starts and leaves behind in the
//! background after its own end is left alone, and cannot hold anybody up: output ends with the command itself. A
//! command sees a fixed `PATH` and what it is given, and nothing of this process's environment.
//!
//! Invariant: this process is not forked. Where guests' disks are served it holds much memory, of which a fork copies the
//! page tables and then each page that a guest's request touches, while the guest waits.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Where commands without a slash are looked for.
pub const COMMAND_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Time between asking a command to end and ending it.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes moved at once.
const CHUNK: usize = 64 << 10;

/// A command to run.
#[derive(Clone)]
pub struct RunCommand {
    /// Program and arguments; no shell is between.
    pub command: Vec<String>,
    /// Its variables, besides `PATH` and `LANG`.
    pub environment: BTreeMap<String, String>,
    /// What it reads.
    pub input: Vec<u8>,
    /// Time after which it is ended, with all it started.
    pub limit: Duration,
    /// Most bytes of output that are kept, from the beginning.
    pub max_output: usize,
    /// Most bytes of error output that are kept, from the end.
    pub max_errors: usize,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandEnd {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Its time was over, and it was ended.
    pub timed_out: bool,
    /// What it wrote, from the beginning.
    pub output: Vec<u8>,
    /// It wrote more than was kept.
    pub output_cut: bool,
    /// The end of what it wrote to its error output.
    pub errors: Vec<u8>,
}

impl RunCommand {
    /// Runs it to its end. Where the future is dropped, the command is ended too.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Io` where it cannot be started or looked after. One that ends badly is no error.
    pub async fn run(self) -> Result<CommandEnd> {
        let program = self.command.first().cloned().unwrap_or_default();
        let what = || format!("run {program}");
        let let_go = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC).io_context(what)?);
        let _guard = LetGo(let_go.clone());
        let work = move || self.run_here(&let_go);
        match tokio::task::spawn_blocking(work).await {
            Ok(end) => end,
            Err(e) => Err(Error::with_source(ErrorKind::Internal, what(), e)),
        }
    }

    /// Neither user, session nor anything else is changed by which `Command` would have to fork.
    fn run_here(mut self, let_go: &OwnedFd) -> Result<CommandEnd> {
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(Error::new(ErrorKind::Invalid, "a command without a program"));
        };
        let program = program.clone();
        let what = || format!("run {program}");
        let mut child = Command::new(program_file(&program)?)
            .args(arguments)
            .env_clear()
            .env("PATH", COMMAND_PATH)
            .env("LANG", "C.UTF-8")
            .envs(&self.environment)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .io_context(what)?;
        let input = std::mem::take(&mut self.input);
        let watched = Watched::new(&mut child, input, &self).and_then(|w| w.watch(let_go, self.limit));
        match watched {
            Ok((mut end, timed_out)) => {
                let status = child.wait().io_context(what)?;
                (end.code, end.timed_out) = (status.code(), timed_out);
                Ok(end)
            }
            Err(e) => {
                signal(&child, Signal::KILL);
                let _ = child.wait();
                Err(Error::io(what(), e))
            }
        }
    }
}

/// The file of a program: without a slash in its name, the first that may be run in [`COMMAND_PATH`]. A `Command` that has
/// to look for it there itself forks.
///
/// # Errors
/// `NotFound`.
pub(super) fn program_file(name: &str) -> Result<PathBuf> {
    if name.contains('/') {
        return Ok(name.into());
    }
    let files = COMMAND_PATH.split(':').map(|dir| PathBuf::from(dir).join(name));
    let may_be_run = |file: &PathBuf| {
        std::fs::metadata(file).is_ok_and(|there| there.is_file() && there.permissions().mode() & 0o111 != 0)
    };
    let missing = || Error::new(ErrorKind::NotFound, format!("run {name}: there is none in {COMMAND_PATH}"));
    files.into_iter().find(may_be_run).ok_or_else(missing)
}

/// Looks whether a program is there and may be run.
///
/// # Errors
/// `Unreachable`, naming it: it may be there later.
pub(super) fn find_program(program: &Path) -> Result<()> {
    let missing = |why: String| Error::new(ErrorKind::Unreachable, format!("program {} {why}", program.display()));
    let file = program_file(&program.to_string_lossy()).map_err(|e| missing(format!("cannot be run: {e}")))?;
    match std::fs::metadata(&file) {
        Err(e) => Err(missing(format!("cannot be run: {e}"))),
        Ok(there) if !there.is_file() => Err(missing("is no file".to_owned())),
        Ok(there) if there.permissions().mode() & 0o111 == 0 => Err(missing("may not be run by anybody".to_owned())),
        Ok(_) => Ok(()),
    }
}

/// Tells the thread of a command that nobody waits for it any more.
struct LetGo(Arc<OwnedFd>);

impl Drop for LetGo {
    fn drop(&mut self) {
        // An eventfd takes one more count unless it holds 2^64 - 2 of them.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// A running command with the near ends of its pipes.
struct Watched<'a> {
    child: &'a Child,
    pidfd: OwnedFd,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    input: Vec<u8>,
    written: usize,
    max_output: usize,
    max_errors: usize,
    end: CommandEnd,
}

impl<'a> Watched<'a> {
    fn new(child: &'a mut Child, input: Vec<u8>, run: &RunCommand) -> io::Result<Watched<'a>> {
        let stdin = child.stdin.take().map(OwnedFd::from);
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        for fd in [&stdin, &stdout, &stderr].into_iter().flatten() {
            let flags = rustix::fs::fcntl_getfl(fd)?;
            rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        }
        let pidfd = rustix::process::pidfd_open(pid(child), PidfdFlags::empty())?;
        let (max_output, max_errors) = (run.max_output, run.max_errors);
        let end = CommandEnd::default();
        Ok(Watched { child, pidfd, stdin, stdout, stderr, input, written: 0, max_output, max_errors, end })
    }

    /// Moves bytes until the command has ended. What it wrote, and whether its time was over.
    fn watch(mut self, let_go: &OwnedFd, limit: Duration) -> io::Result<(CommandEnd, bool)> {
        let start = Instant::now();
        let mut deadline = start.checked_add(limit);
        let (mut timed_out, mut asked, mut dropped) = (false, false, false);
        loop {
            self.write_input();
            self.read_output()?;
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            let (ended, gone) = self.wait(let_go, left, dropped)?;
            if ended {
                // What is in the pipes now is all that it wrote itself.
                self.read_output()?;
                return Ok((self.end, timed_out));
            }
            let over = deadline.is_some_and(|d| d <= Instant::now());
            match (over || (gone && !dropped), asked) {
                (false, _) => {}
                (true, false) => {
                    (asked, timed_out, dropped) = (true, over, gone);
                    signal(self.child, Signal::TERM);
                    deadline = Instant::now().checked_add(GRACE);
                }
                (true, true) => {
                    dropped |= gone;
                    signal(self.child, Signal::KILL);
                    deadline = None;
                }
            }
        }
    }

    /// Waits until something can be done. Whether the command ended, and whether it was let go of.
    fn wait(&self, let_go: &OwnedFd, left: Option<Duration>, dropped: bool) -> io::Result<(bool, bool)> {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        if !dropped {
            fds.push(PollFd::new(let_go, PollFlags::IN));
        }
        let reads = [&self.stdout, &self.stderr].into_iter().flatten();
        fds.extend(reads.map(|fd| PollFd::new(fd, PollFlags::IN)));
        fds.extend(self.stdin.iter().map(|fd| PollFd::new(fd, PollFlags::OUT)));
        let timeout = left.map(|l| Timespec {
            tv_sec: i64::try_from(l.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(l.subsec_nanos()),
        });
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ended = !fds[0].revents().is_empty();
        let gone = !dropped && !fds[1].revents().is_empty();
        Ok((ended, gone))
    }

    /// Writes what its input takes now. A command that reads less than it is given is its own matter.
    fn write_input(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        while self.written < self.input.len() {
            match rustix::io::write(stdin, &self.input[self.written..]) {
                Ok(n) => self.written += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => break,
            }
        }
        self.stdin = None;
    }

    fn read_output(&mut self) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        while let Some(n) = read(&mut self.stdout, &mut chunk)? {
            let room = self.max_output - self.end.output.len();
            self.end.output.extend_from_slice(&chunk[..n.min(room)]);
            self.end.output_cut |= n > room;
        }
        while let Some(n) = read(&mut self.stderr, &mut chunk)? {
            let errors = &mut self.end.errors;
            errors.extend_from_slice(&chunk[..n]);
            let too_many = errors.len().saturating_sub(self.max_errors);
            errors.drain(..too_many);
        }
        Ok(())
    }
}

/// Bytes that a pipe has now; `None` where it has none. At its end it is closed.
fn read(pipe: &mut Option<OwnedFd>, chunk: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        let Some(fd) = pipe else { return Ok(None) };
        match rustix::io::read(fd, &mut *chunk) {
            Ok(0) => *pipe = None,
            Ok(n) => return Ok(Some(n)),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// To the command and all it started that is still in its group.
fn signal(child: &Child, signal: Signal) {
    // It fails only where nobody of the group is left.
    let _ = rustix::process::kill_process_group(pid(child), signal);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> RunCommand {
        RunCommand {
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            environment: [("GIVEN".to_owned(), "yes".to_owned())].into(),
            input: b"hello".to_vec(),
            limit,
            max_output: 1 << 20,
            max_errors: 16,
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn input_output_errors_and_code_come_through() {
        let end = sh("cat; echo \" $GIVEN $CARGO_MANIFEST_DIR\"; echo 0123456789abcdefXYZ >&2; exit 7", LONG)
            .run()
            .await
            .unwrap();
        assert_eq!(end.code, Some(7));
        assert_eq!(String::from_utf8(end.output).unwrap(), "hello yes \n", "nothing of our environment");
        assert_eq!(String::from_utf8(end.errors).unwrap(), "456789abcdefXYZ\n");
        assert!(!end.timed_out && !end.output_cut);
    }

    #[tokio::test]
    async fn large_input_and_output_flow_side_by_side_and_output_is_bounded() {
        let mut run = sh("cat", LONG);
        run.input = vec![b'x'; 3 << 20];
        let end = run.run().await.unwrap();
        assert_eq!((end.output.len(), end.output_cut, end.code), (1 << 20, true, Some(0)));
    }

    #[tokio::test]
    async fn a_command_that_reads_nothing_is_no_error() {
        let mut run = sh("exec 0<&-; echo done", LONG);
        run.input = vec![b'x'; 3 << 20];
        let end = run.run().await.unwrap();
        assert_eq!((end.output.as_slice(), end.code), (b"done\n".as_slice(), Some(0)));
    }

    #[tokio::test]
    async fn time_is_over_for_all_of_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; trap '' TERM; wait; sleep 600", mark.display());
        let end = sh(&script, Duration::from_millis(300)).run().await.unwrap();
        assert!(end.timed_out && end.code.is_none(), "{end:?}");
        let pid: i32 = std::fs::read_to_string(&mark).unwrap().trim().parse().unwrap();
        assert_dead(pid).await;
    }

    #[tokio::test]
    async fn a_child_in_the_background_holds_nobody_up() {
        let end = sh("sleep 600 & echo $!", LONG).run().await.unwrap();
        assert_eq!(end.code, Some(0));
        let pid: i32 = String::from_utf8(end.output).unwrap().trim().parse().unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).expect("it was left alone");
    }

    #[tokio::test]
    async fn a_command_that_nobody_waits_for_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("pid");
        let run = sh(&format!("echo $$ > {}; sleep 600", mark.display()), LONG);
        let waiting = tokio::spawn(run.run());
        let pid = loop {
            match std::fs::read_to_string(&mark).ok().and_then(|t| t.trim().parse().ok()) {
                Some(pid) => break pid,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        waiting.abort();
        assert_dead(pid).await;
    }

    #[tokio::test]
    async fn what_cannot_be_run_is_said() {
        let mut run = sh("", LONG);
        run.command = vec!["/does/not/exist".into()];
        let error = run.clone().run().await.unwrap_err();
        assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("/does/not/exist"), "{error}");
        run.command = vec!["/etc/passwd".into()];
        assert_eq!(run.clone().run().await.unwrap_err().kind(), ErrorKind::Denied);
        run.command.clear();
        assert_eq!(run.run().await.unwrap_err().kind(), ErrorKind::Invalid);
    }

    thread_local! {
        static FORKS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }

    extern "C" fn count_fork() {
        FORKS.set(FORKS.get() + 1);
    }

    #[test]
    fn this_process_is_not_forked() {
        // SAFETY: the handler lives as long as the program, and touches only a number of the thread that forks.
        assert_eq!(unsafe { libc::pthread_atfork(Some(count_fork), None, None) }, 0);
        let mut run = sh("", LONG);
        run.command = ["sh", "-c", "cat; pwd"].map(str::to_owned).to_vec();
        let let_go = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let end = run.clone().run_here(&let_go).unwrap();
        assert_eq!((end.output.as_slice(), FORKS.get()), (b"hello/\n".as_slice(), 0));
        // What it would be otherwise, so that this can fail.
        let forked = Command::new("sh").args(["-c", "true"]).env("PATH", COMMAND_PATH).status().unwrap();
        assert!(forked.success() && FORKS.get() == 1, "{}", FORKS.get());
        run.command = vec!["no-such-program".to_owned()];
        let error = run.run_here(&let_go).unwrap_err();
        assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("no-such-program"), "{error}");
    }

    /// Waits until the process is gone, or is a zombie that only its parent can take away.
    async fn assert_dead(pid: i32) {
        for _ in 0..6000 {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            match stat.as_deref().map(|s| s.rsplit(')').next().unwrap_or("").trim().chars().next()) {
                Err(_) | Ok(Some('Z' | 'X')) => return,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        panic!("process {pid} lives on");
    }
}
