//! Signals while the store is slow: the program ends soon, says what is done, and goes on from there.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use freshet::s3_server::{Fault, Options, Rule, S3Server, Verb};

/// Bytes per second of the slow store. The images below take minutes through it, a test waits far less.
const SLOW: u64 = 100_000;
const IMAGE: usize = 24 << 20;
/// Longest wait for one step; nothing else is asserted about time.
const PATIENCE: Duration = Duration::from_secs(60);

struct Slow {
    dir: tempfile::TempDir,
    server: S3Server,
}

impl Slow {
    fn new() -> Slow {
        let dir = tempfile::tempdir().unwrap();
        let server = S3Server::start(&dir.path().join("s3"), Options::default()).unwrap();
        std::fs::create_dir(dir.path().join("ds")).unwrap();
        std::fs::write(dir.path().join("image"), []).unwrap();
        Slow { dir, server }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Other bytes, which do not compress.
    fn change(&self, seed: u64) {
        let mut bytes = vec![0; IMAGE];
        fastrand::Rng::with_seed(seed).fill(&mut bytes);
        std::fs::write(self.path("image"), bytes).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
        command.args(args).args(["--json", "--store", &self.server.url("site"), "--domain", "d"]);
        command.envs(self.server.env()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    }

    fn replicate(&self) {
        let disk = format!("root={}", self.path("image").display());
        let done = self.command(&["replicate", "--site", "a", "--vm", "v", "--disk", &disk]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    fn rehydrate(&self, more: &[&str]) -> Running {
        let ds = self.path("ds");
        let mut command = self.command(&["rehydrate", "--log-size", "136MiB", "--datastore", ds.to_str().unwrap()]);
        Running(Some(command.args(more).spawn().unwrap()))
    }

    /// From here on bodies come slowly; returns once `running` waits for one.
    fn slow_down(&self) {
        self.server.faults().set([Rule::new(Fault::Bandwidth(SLOW)).verb(Verb::Get)]);
        self.server.reset_counters();
    }

    fn wait_for_bytes(&self, least: u64) {
        wait(|| self.server.counters().bytes_out > least);
    }

    fn assert_same(&self, image: &Path) {
        let found = std::fs::read(self.path("ds/d/v/root.raw")).unwrap();
        assert!(found == std::fs::read(image).unwrap());
    }
}

fn wait(done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A program that is killed when the test ends, however that is.
struct Running(Option<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Running {
    fn signal(&self, signal: i32) {
        let id = self.0.as_ref().unwrap().id();
        // SAFETY: kill only sends a signal, to a child that was not waited for yet, so that its id is its own.
        assert_eq!(unsafe { libc::kill(i32::try_from(id).unwrap(), signal) }, 0);
    }

    /// Its exit code and what it printed.
    fn end(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        while self.0.as_mut().unwrap().try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        let out = self.0.take().unwrap().wait_with_output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap())
    }
}

#[test]
fn a_signal_ends_a_rehydration_though_the_store_is_slow_and_it_goes_on_later() {
    for continuous in [false, true] {
        let slow = Slow::new();
        slow.change(1);
        slow.replicate();
        slow.slow_down();
        let running = slow.rehydrate(if continuous { &["--continuous"] } else { &[] });
        slow.wait_for_bytes(SLOW);
        running.signal(libc::SIGTERM);
        let (code, printed) = running.end();
        // No point was reached: that is told also in continuous mode.
        assert_eq!(code, Some(130), "{printed}");
        assert!(printed.contains("\"cancelled\"") && printed.contains("run it again"), "{printed}");
        slow.server.faults().clear();
        assert_eq!(slow.rehydrate(&[]).end().0, Some(0));
        slow.assert_same(&slow.path("image"));
    }
}

#[test]
fn a_signal_ends_a_follower_that_waits_for_a_segment_at_the_point_it_has() {
    let slow = Slow::new();
    slow.change(1);
    slow.replicate();
    let running = slow.rehydrate(&["--continuous"]);
    std::fs::copy(slow.path("image"), slow.path("first")).unwrap();
    let image = std::fs::read(slow.path("image")).unwrap();
    wait(|| std::fs::read(slow.path("ds/d/v/root.raw")).is_ok_and(|found| found == image));
    slow.slow_down();
    slow.change(2);
    slow.replicate();
    slow.wait_for_bytes(2 * SLOW);
    running.signal(libc::SIGINT);
    let (code, printed) = running.end();
    assert_eq!(code, Some(0), "{printed}");
    let end: serde_json::Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    let found = (end["event"].as_str(), end["point"].as_u64(), end["between_points"].as_bool());
    // Segments are of 16 MiB, so that the first point ends at the second.
    assert_eq!(found, (Some("end"), Some(2), Some(false)), "{end}");
    slow.assert_same(&slow.path("first"));
    slow.server.faults().clear();
    assert_eq!(slow.rehydrate(&[]).end().0, Some(0));
    slow.assert_same(&slow.path("image"));
}
