//! What cases borrow from the machine around them: programs that run beside a test, exports as files, mounted images.
//!
//! Each is given back when it is dropped, also by a panic. Mounts belong into a mount namespace of the test
//! (`support::mounts`), so that nobody else sees them and none outlives it.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};

use super::PATIENCE;
use crate::support::mounts::mount_memory;
use crate::support::real_images::{find, run, tool};

/// The first of some programs that this machine lacks.
pub(crate) fn missing(programs: &[&'static str]) -> Option<&'static str> {
    programs.iter().copied().find(|program| find(program).is_none())
}

/// Waits until something is there, and no longer than a test may take.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what} never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A program that runs beside the test, and the lines that it has printed, with when they were read.
pub(crate) struct Running {
    child: Child,
    lines: Arc<Mutex<Vec<(SystemTime, String)>>>,
    reader: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts it.
    pub(crate) fn start(command: &mut Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            // A console is not always UTF-8.
            for line in out.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                into.lock().unwrap().push((SystemTime::now(), line));
            }
        });
        Running { child, lines, reader: Some(reader) }
    }

    /// What it has printed up to now.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().iter().map(|(_, line)| line.clone()).collect()
    }

    /// What it had printed at some time.
    pub(crate) fn lines_until(&self, time: SystemTime) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        lines.iter().take_while(|(at, _)| *at <= time).map(|(_, line)| line.clone()).collect()
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line.
    pub(crate) fn wait_line(&self, what: &str, is: impl Fn(&str) -> bool) -> String {
        wait_for(what, || self.lines().into_iter().find(|line| is(line)))
    }

    /// Ends it by a signal, and waits: with how it ended, everything that it printed.
    pub(crate) fn end(mut self, signal: Signal) -> (std::process::ExitStatus, Vec<String>) {
        self.signal(signal);
        let status = wait_for("the end of a program", || self.child.try_wait().unwrap());
        self.reader.take().unwrap().join().unwrap();
        (status, self.lines())
    }

    fn signal(&self, signal: Signal) {
        // Fails where it has ended by itself, which the wait then shows.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Running {
    /// `QUIT` first, which tells PostgreSQL to take its own processes with it.
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(5);
        while self.reader.is_some() && matches!(self.child.try_wait(), Ok(None)) {
            match Instant::now() < until {
                true => self.signal(Signal::QUIT),
                false => self.signal(Signal::KILL),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A mounted file system.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// Mounts a file that holds an ext4, by a loop device that goes with the mount.
    pub(crate) fn image(file: &Path, at: &Path) -> Mount {
        std::fs::create_dir_all(at).unwrap();
        run(tool("mount").args(["-t", "ext4", "-o", "loop"]).arg(file).arg(at));
        Mount(at.to_owned())
    }

    /// Mounts a new file system of memory.
    pub(crate) fn memory(at: &Path, options: &str) -> Mount {
        std::fs::create_dir_all(at).unwrap();
        mount_memory("tmpfs", at, options);
        Mount(at.to_owned())
    }

    pub(crate) fn unmount(self) {
        run(tool("umount").arg(&self.0));
        std::mem::forget(self);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = tool("umount").arg("--lazy").arg(&self.0).stderr(Stdio::null()).status();
    }
}

/// An export as a file.
pub(crate) struct ExportFile {
    // Before the program that serves it.
    mount: Mount,
    program: Running,
    pub(crate) file: PathBuf,
}

impl ExportFile {
    /// Serves `export` at `socket` as a file in the directory `at`.
    pub(crate) fn open(socket: &Path, export: &str, at: &Path) -> ExportFile {
        std::fs::create_dir_all(at).unwrap();
        let file = at.join("disk");
        let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
        let mut command = tool("nbdfuse");
        let program = Running::start(command.arg(&file).arg(uri).stdin(Stdio::null()));
        let mount = Mount(at.to_owned());
        wait_for("the file of an export", || file.exists().then_some(()));
        ExportFile { mount, program, file }
    }

    pub(crate) fn close(self) {
        self.mount.unmount();
        // It ends by itself now.
        let (status, _) = self.program.end(Signal::CONT);
        assert!(status.success(), "nbdfuse: {status}");
    }
}

/// Plays the journal of a copy of a recovered ext4, has it checked, and mounts it: what a machine does that boots on it.
pub(crate) fn boot(recovered: &Path, copy: &Path, at: &Path) -> Mount {
    run(tool("cp").args(["--sparse=always", "--reflink=auto"]).arg(recovered).arg(copy));
    Mount::image(copy, at).unmount();
    run(tool("e2fsck").arg("-fn").arg(copy));
    Mount::image(copy, at)
}
