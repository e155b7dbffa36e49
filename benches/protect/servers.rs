//! What serves the guest: ours, and the peers at the same cache mode.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{is_here, run};
use crate::{Cache, Outcome};

/// Bytes of the disk.
pub(crate) const SIZE: u64 = 2 << 30;

/// Longest wait for a server to serve, or to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    QemuNbd,
    Nbdkit,
    Protect,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::QemuNbd => "qemu-nbd, io_uring",
            Kind::Nbdkit => "nbdkit file",
            Kind::Protect => "freshet protect",
        }
    }

    /// Those that are here, ours last.
    pub(crate) fn here() -> Vec<Kind> {
        let mut kinds = Vec::new();
        for (kind, program) in [(Kind::QemuNbd, "qemu-nbd"), (Kind::Nbdkit, "nbdkit")] {
            match is_here(program) {
                true => kinds.push(kind),
                false => println!("{program} is not installed and left out"),
            }
        }
        kinds.push(Kind::Protect);
        kinds
    }
}

/// A server of one disk.
pub(crate) struct Server {
    child: Child,
    pub(crate) uri: String,
    lines: Option<std::io::Lines<BufReader<ChildStdout>>>,
}

/// A file without holes, so that no server pays for allocating it.
pub(crate) fn make_image(path: &Path) -> Outcome<()> {
    let mut file = File::create(path)?;
    let block = vec![0x5a; 1 << 20];
    for _ in 0..SIZE >> 20 {
        std::io::Write::write_all(&mut file, &block)?;
    }
    Ok(file.sync_all()?)
}

impl Server {
    /// Starts a peer over `image`.
    pub(crate) fn peer(kind: Kind, cache: Cache, image: &Path, dir: &Path) -> Outcome<Server> {
        let socket = dir.join("peer.sock");
        let _ = std::fs::remove_file(&socket);
        let mut command = match kind {
            Kind::QemuNbd => {
                let mut command = Command::new("qemu-nbd");
                command
                    .args(["--persistent", "--shared=4", "--aio=io_uring", "-f", "raw", "-k"])
                    .arg(&socket)
                    .arg(image);
                command.arg(if cache == Cache::Direct { "--cache=none" } else { "--cache=writeback" });
                command
            }
            Kind::Nbdkit | Kind::Protect => {
                let mut command = Command::new("nbdkit");
                command.args(["--foreground", "--unix"]).arg(&socket).arg("file").arg(image);
                command.arg(if cache == Cache::Direct { "cache=none" } else { "cache=default" });
                command
            }
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if began.elapsed() > PATIENCE {
                return Err(format!("{} does not serve", kind.name()).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Server { child, uri: format!("nbd+unix:///?socket={}", socket.display()), lines: None })
    }

    /// Starts ours over `image` into the storage site `store`, and waits until the VM is recoverable.
    pub(crate) fn protect(
        image: &Path,
        dir: &Path,
        store: &str,
        envs: &[(&str, String)],
        log: &str,
        cache: Cache,
    ) -> Outcome<Server> {
        let (socket, state) = (dir.join("ours.sock"), dir.join("state"));
        std::fs::create_dir_all(&state)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
        command.args(["--json", "protect", "--domain", "bench", "--site", "here", "--store", store, "--log-size", log]);
        command.arg("--log-store").arg(state).arg("--listen").arg(format!("unix:{}", socket.display()));
        command.args(["--cache", if cache == Cache::Direct { "direct" } else { "write-back" }]);
        command.args(["--connections", "16"]).args(["--vm", "vm", "--disk"]).arg(format!("disk={}", image.display()));
        command.envs(envs.iter().map(|(name, value)| (*name, value.as_str())));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let uri = format!("nbd+unix:///vm/disk?socket={}", socket.display());
        let mut server = Server { child, uri, lines: Some(lines) };
        server.until(|event| event["event"] == "ready")?;
        Ok(server)
    }

    /// Reads events until one is so.
    pub(crate) fn until(&mut self, is: impl Fn(&Value) -> bool) -> Outcome<Value> {
        let lines = self.lines.as_mut().ok_or("a peer tells nothing")?;
        for line in lines {
            let event: Value = serde_json::from_str(&line?)?;
            if is(&event) {
                return Ok(event);
            }
        }
        Err("the server ended".into())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The status of ours, whose state is below `dir`.
    pub(crate) fn status(&self, dir: &Path) -> Outcome<Value> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
        command.args(["--json", "protect", "--domain", "bench", "--status", "--log-store"]).arg(dir.join("state"));
        run(&mut command)?.json()
    }

    /// User and system seconds so far.
    pub(crate) fn cpu(&self) -> Outcome<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let fields: Vec<&str> = stat.rsplit_once(')').ok_or("no name")?.1.split_ascii_whitespace().collect();
        let ticks: u64 = [11, 12].iter().filter_map(|i| fields.get(*i)?.parse::<u64>().ok()).sum();
        Ok(ticks as f64 / 100.0)
    }

    /// Largest resident set in bytes.
    pub(crate) fn peak(&self) -> Outcome<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? << 10)
    }

    /// Ends it; ours answers with its report.
    pub(crate) fn stop(mut self) -> Outcome<Value> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid())?).ok_or("no pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let report = match self.lines.is_some() {
            true => self.until(|event| event["event"] == "stopped")?,
            false => Value::Null,
        };
        self.child.wait()?;
        Ok(report)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An empty directory of this name.
pub(crate) fn empty(dir: &Path, name: &str) -> Outcome<PathBuf> {
    let path = dir.join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path)?;
    Ok(path)
}
