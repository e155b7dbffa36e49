//! A `freshet serve` process in a directory of its own, and what is asked of it.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use freshet::control::{Client, Target};
use serde_json::Value;

use super::namespaces::Namespace;
use super::nbd_client::NbdClient;

/// Longest wait for what must come; nothing else is asserted about time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const MIB: u64 = 1 << 20;

/// Two sites and a storage site: a directory, unless `store` names another.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    /// URL of the storage site where it is no directory.
    pub(crate) store: Option<String>,
    /// More settings of the table `protect`.
    pub(crate) protect: String,
    /// Networks in which the appliances of sites run, where they have one of their own.
    pub(crate) networks: BTreeMap<String, Namespace>,
}

impl Place {
    pub(crate) fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        Place { dir, store: None, protect: String::new(), networks: BTreeMap::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn store_url(&self) -> String {
        self.store.clone().unwrap_or_else(|| format!("file://{}", self.path("store").display()))
    }

    /// File with a site's options for the storage site, where it has any.
    pub(crate) fn store_options(&self, site: &str) -> PathBuf {
        self.path(&format!("{site}.options"))
    }

    /// A raw image with some data in it.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(4 * MIB).unwrap();
        file.write_all_at(&[7; 8192], MIB).unwrap();
        path
    }

    /// Settings of a site, with `more` below them.
    pub(crate) fn settings(&self, site: &str, more: &str) -> PathBuf {
        let at = |what: &str| self.path(&format!("{site}-{what}")).display().to_string();
        let text = format!(
            "site = \"{site}\"\nstate = \"{}\"\n[protect]\nsocket_dir = \"{}\"\nmemory = \"128MiB\"\nlog_size = \"64MiB\"\nconnections = 16\n\
             segment_age = \"50ms\"\n{}[stores]\nlook_every = \"1s\"\n[listen]\nsocket = \"{}\"\n{more}",
            at("state"),
            at("nbd"),
            self.protect,
            at("api.sock"),
        );
        let path = self.path(&format!("{site}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Starts the appliance of a site.
    pub(crate) fn serve(&self, site: &str) -> Appliance {
        self.serve_with(site, "")
    }

    pub(crate) fn serve_with(&self, site: &str, more: &str) -> Appliance {
        let settings = self.settings(site, more);
        let socket = self.path(&format!("{site}-api.sock"));
        let started = match self.networks.get(site) {
            None => Appliance::start(&settings, &socket),
            Some(network) => Appliance::start_by(&settings, &socket, |command| network.within(|| command.spawn())),
        };
        started.unwrap_or_else(|ran| panic!("it does not start: {ran:?}"))
    }

    /// The same, with all its log lines, as JSON, in the file `<site>.log`.
    pub(crate) fn serve_logged(&self, site: &str, more: &str) -> Appliance {
        let settings = self.settings(site, &format!("{more}\n[log]\nformat = \"json\"\n"));
        let log = std::fs::File::options().create(true).append(true).open(self.path(&format!("{site}.log"))).unwrap();
        let socket = self.path(&format!("{site}-api.sock"));
        let started = Appliance::start_by(&settings, &socket, |command| {
            command.args(["--log", "freshet=debug"]).stderr(log).spawn()
        });
        started.unwrap_or_else(|ran| panic!("it does not start: {ran:?}"))
    }
}

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

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) json: Value,
    #[allow(dead_code, reason = "shown where a test fails")]
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(command: &mut Command) -> Ran {
        let out = command.output().unwrap();
        let stdout = String::from_utf8(out.stdout).unwrap();
        let json = serde_json::from_str(&stdout).unwrap_or(Value::String(stdout));
        Ran { code: out.status.code(), json, stderr: String::from_utf8(out.stderr).unwrap() }
    }

    /// What a command that must end well has printed.
    pub(crate) fn good(self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.json
    }

    /// The message of a command that must end with this code.
    pub(crate) fn bad(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.json["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// A running appliance; killed where a test fails.
pub(crate) struct Appliance {
    child: Child,
    pub(crate) socket: PathBuf,
    pub(crate) ready: Value,
    _lines: BufReader<std::process::ChildStdout>,
}

impl Drop for Appliance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Appliance {
    /// Starts one and waits until it listens.
    pub(crate) fn start(settings: &Path, socket: &Path) -> Result<Appliance, Ran> {
        Appliance::start_by(settings, socket, Command::spawn)
    }

    /// Starts one by `spawn`, as in a network of its own, and waits until it listens.
    pub(crate) fn start_by(
        settings: &Path,
        socket: &Path,
        spawn: impl FnOnce(&mut Command) -> io::Result<Child>,
    ) -> Result<Appliance, Ran> {
        let mut command = freshet();
        command.args(["--json", "serve", "--config"]).arg(settings).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = spawn(&mut command).unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        // Ends where the process does.
        lines.read_line(&mut text).unwrap();
        match serde_json::from_str::<Value>(&text).ok().filter(|value| value["event"] == "ready") {
            Some(ready) => Ok(Appliance { child, socket: socket.to_owned(), ready, _lines: lines }),
            None => {
                std::io::Read::read_to_string(&mut lines, &mut text).unwrap();
                let code = child.wait().unwrap().code();
                let json = serde_json::from_str(&text).unwrap_or(Value::String(text));
                Err(Ran { code, json, stderr: String::new() })
            }
        }
    }

    /// Runs a command about it.
    pub(crate) fn ask(&self, args: &[&str]) -> Ran {
        Ran::of(freshet().arg("--json").args(args).arg("--socket").arg(&self.socket))
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&Target::Socket(self.socket.clone())).await.unwrap()
    }

    pub(crate) fn kill(mut self) {
        self.crash();
    }

    /// As [`Appliance::kill`], where the handle is needed on.
    pub(crate) fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as an operator does.
    pub(crate) fn stop(mut self) -> ExitStatus {
        let id = i32::try_from(self.child.id()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(id).unwrap(), rustix::process::Signal::TERM)
            .unwrap();
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Makes a domain `d` in store `s` with VM `web` on `image`.
    pub(crate) fn protect(&self, place: &Place, image: &Path) {
        self.ask(&["store", "add", "s", "--url", &place.store_url()]).good();
        self.ask(&["domain", "create", "d", "--store", "s"]).good();
        self.ask(&["vm", "protect", "d", "web", "--disk", &format!("root={}", image.display())]).good();
    }

    /// Waits until a domain is as it must be.
    pub(crate) fn until(&self, domain: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let shown = self.ask(&["domain", "show", domain]);
            if shown.code == Some(0) && is(&shown.json) {
                return shown.json;
            }
            assert!(began.elapsed() < PATIENCE, "{what} never came: {shown:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn until_recoverable(&self, domain: &str) -> Value {
        self.until(domain, "recoverable", |shown| shown["status"] == "PROTECTION_STATUS_RECOVERABLE")
    }

    /// A guest of the disk `web/root`.
    pub(crate) fn guest(&self, place: &Place, site: &str) -> NbdClient {
        NbdClient::connect(&place.path(&format!("{site}-nbd/d.sock")), "web/root").unwrap()
    }
}
