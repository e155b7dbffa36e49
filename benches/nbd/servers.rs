//! The servers that are compared: how each is started on an image, and stopped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;

/// A program that serves images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Freshet,
    QemuNbd,
    Nbdkit,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Freshet => "freshet",
            Kind::QemuNbd => "qemu-nbd",
            Kind::Nbdkit => "nbdkit",
        }
    }

    pub(crate) fn is_here(self) -> bool {
        self == Kind::Freshet || Command::new(self.name()).arg("--version").output().is_ok()
    }

    fn command(self, image: &Path, socket: &Path, direct: bool) -> Command {
        let (shown, image) = (socket.display(), image.display());
        match self {
            Kind::Freshet => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
                command.args(["export", "--cache", if direct { "direct" } else { "write-back" }]);
                command.arg(format!("--disk=disk={image}")).arg(format!("--listen=unix:{shown}"));
                command
            }
            Kind::QemuNbd => {
                let mut command = Command::new("qemu-nbd");
                command.args(["--format=raw", "--persistent", "--shared=8", "--export-name=disk"]);
                command.arg(if direct { "--cache=none" } else { "--cache=writeback" }).arg("--aio=io_uring");
                command.arg(format!("--socket={shown}")).arg(image.to_string());
                command
            }
            Kind::Nbdkit => {
                let mut command = Command::new("nbdkit");
                command.args(["--foreground", "--exportname=disk"]).arg(format!("--unix={shown}")).arg("file");
                command.arg(format!("file={image}")).arg(if direct { "cache=none" } else { "cache=default" });
                command
            }
        }
    }
}

/// A server that runs; killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    socket: PathBuf,
}

impl Running {
    pub(crate) fn start(kind: Kind, image: &Path, dir: &Path, direct: bool) -> Outcome<Running> {
        let socket = dir.join(format!("{}.socket", kind.name()));
        let _ = std::fs::remove_file(&socket);
        let mut command = kind.command(image, &socket, direct);
        // The peers complain about the client below that leaves without a handshake.
        let stderr = if kind == Kind::Freshet { Stdio::inherit() } else { Stdio::null() };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn()?;
        let mut running = Running { child, socket };
        let end = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(&running.socket).is_err() {
            if Instant::now() > end || running.child.try_wait()?.is_some() {
                return Err(format!("{} does not serve", kind.name()).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(running)
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket.display())
    }

    /// Stops it; the CPU seconds that it took.
    pub(crate) fn stop(mut self) -> Outcome<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // User and system time in ticks of a hundredth, behind the name, which may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
        let ticks: f64 = fields.get(11..13).unwrap_or_default().iter().filter_map(|f| f.parse::<f64>().ok()).sum();
        self.child.kill()?;
        self.child.wait()?;
        Ok(ticks / 100.0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
