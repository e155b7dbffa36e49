//! `freshet protect` as a program of its own, and what others ask of it by the same program.

use std::process::{Command, ExitStatus, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use super::outside::Running;
use super::*;

/// The program, with nothing of this machine's own settings.
pub(crate) fn freshet() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["AWS_", "AZURE_", "GOOGLE_", "RUST_LOG"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// The beginning of every command about the world's domain; its state is where `request` has it.
pub(crate) fn about(world: &World) -> Command {
    let state = world.dir.path().join("state");
    std::fs::create_dir_all(&state).unwrap();
    let mut command = freshet();
    command.args(["--json", "protect", "--domain", world.domain.as_str(), "--log-store"]).arg(state);
    command
}

/// Protects the first `disks` of the world's disks at its socket, as `request` does.
pub(crate) fn protect(world: &World, disks: usize) -> Command {
    let mut command = about(world);
    command.args(["--site", "first site", "--store", world.site.url(), "--memory", "128MiB", "--log-size", "64MiB"]);
    command.args([
        "--connections",
        "16",
        "--segment-age",
        "50",
        "--listen",
        &format!("unix:{}", socket(world).display()),
    ]);
    let mut last = None;
    for (vm, disk) in &world.disks[..disks] {
        if last.replace(vm) != Some(vm) {
            command.args(["--vm", vm]);
        }
        command.args(["--disk", &format!("{disk}={}", world.image(vm, disk).display())]);
    }
    command
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) code: i32,
    pub(crate) json: Value,
}

impl Asked {
    /// The word of the error's kind and its message.
    pub(crate) fn error(&self) -> (&str, &str) {
        let text = |name: &str| self.json["error"][name].as_str().unwrap_or("");
        (text("kind"), text("message"))
    }
}

/// Runs a command that ends by itself and answers with one JSON document, the last one that it prints.
pub(crate) fn answer(command: &mut Command) -> Asked {
    let out = command.stderr(Stdio::null()).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let documents = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let json = documents.map(|document| document.unwrap_or_else(|e| panic!("{e}: {text}"))).last();
    Asked { code: out.status.code().unwrap(), json: json.unwrap_or_else(|| panic!("nothing was answered")) }
}

/// Asks the protection of the world's domain.
pub(crate) fn ask(world: &World, args: &[&str]) -> Asked {
    answer(about(world).args(args))
}

/// The status that it tells.
pub(crate) fn status(world: &World) -> ProtectStatus {
    let asked = ask(world, &["--status"]);
    assert_eq!(asked.code, 0, "{asked:?}");
    serde_json::from_value(asked.json).unwrap()
}

/// Waits until the status is as it must be.
pub(crate) fn until_told(world: &World, what: &str, is: impl Fn(&ProtectStatus) -> bool) -> ProtectStatus {
    let mut last = None;
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let asked = ask(world, &["--status"]);
        if asked.code == 0 {
            let status: ProtectStatus = serde_json::from_value(asked.json.clone()).unwrap();
            if is(&status) {
                return status;
            }
        }
        last = Some(asked);
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what} never came: {last:#?}");
}

pub(crate) fn recoverable(status: &ProtectStatus) -> bool {
    status.status == "Recoverable"
}

/// A protection that runs beside the test.
pub(crate) struct Program(Running);

impl Program {
    pub(crate) fn start(command: &mut Command) -> Program {
        Program(Running::start(command))
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits for an event of this kind.
    pub(crate) fn event(&self, kind: &str) -> Value {
        let line = self.0.wait_line(kind, |line| is_event(line, kind));
        serde_json::from_str(&line).unwrap()
    }

    /// Whether such an event was told up to now.
    pub(crate) fn has_told(&self, kind: &str) -> bool {
        self.0.lines().iter().any(|line| is_event(line, kind))
    }

    /// Ends it by a signal; with the last line that it printed.
    pub(crate) fn end(self, signal: Signal) -> (ExitStatus, Value) {
        let (status, lines) = self.0.end(signal);
        let last = lines.iter().rev().find_map(|line| serde_json::from_str(line).ok());
        (status, last.unwrap_or_default())
    }

    /// Ends it as an operator does; everything must have been shipped, and the recovered disks must be the images.
    pub(crate) fn stop_and_compare(self, world: &World, runtime: &tokio::runtime::Handle) {
        let (status, report) = self.end(Signal::TERM);
        assert!(status.success() && report["all_shipped"] == true, "{status}: {report:#}");
        assert_eq!(report["dirty"], 0, "{report:#}");
        runtime.block_on(async {
            world.rehydrate().await;
            let images: Vec<PathBuf> = world.disks.iter().map(|(vm, disk)| world.image(vm, disk)).collect();
            world.assert_disks(&images);
        });
    }

    /// Waits until it has ended by itself.
    pub(crate) fn ended(self) -> (ExitStatus, Value) {
        // Changes nothing for a process that runs, and fails for one that has ended.
        self.end(Signal::CONT)
    }
}

fn is_event(line: &str, kind: &str) -> bool {
    serde_json::from_str::<Value>(line).is_ok_and(|value| value["event"] == kind)
}
