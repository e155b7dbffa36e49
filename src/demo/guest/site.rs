//! One site of the demonstration: its directories, its appliance as a process, its guests, and what it is asked.
//!
//! It is asked by the commands an operator has, with `--json`; nothing here knows more than they do. Whatever it started
//! it ends.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::hypervisor::{
    AccelChoice, Console, Forward, NetworkKind, QemuDriver, QemuNetwork, QemuSettings, RunCommand,
};
use crate::ids::Name;

/// The domain.
pub(super) const DOMAIN: &str = "shop";
/// The network of both sites.
pub(super) const NETWORK: &str = "lan";
/// Size of each replication log.
pub(super) const LOG_SIZE: &str = "256MiB";
/// Longest wait for what must come.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);
/// Time between two looks.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// Longest run of one command.
const COMMAND: Duration = Duration::from_secs(60);

/// A port of this machine that leads to a guest.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) vm: Name,
    pub(super) address: SocketAddr,
}

/// See the module.
pub(super) struct Site {
    name: &'static str,
    dir: PathBuf,
    program: PathBuf,
    child: Option<Child>,
    pub(super) ways: Vec<Way>,
    pub(super) driver: QemuDriver,
    cancel: Cancel,
}

impl Site {
    /// A site called `name` below `dir`, whose guests of these names can be reached.
    pub(super) fn new(
        name: &'static str,
        dir: &Path,
        program: &Path,
        kvm: bool,
        vms: &[Name],
        cancel: Cancel,
    ) -> Result<Site> {
        let own = dir.join(name);
        for sub in ["disks", "state"] {
            let made = own.join(sub);
            std::fs::create_dir_all(&made).io_context(|| format!("make {}", made.display()))?;
        }
        let ways =
            vms.iter().map(|vm| Ok(Way { vm: vm.clone(), address: free_port()? })).collect::<Result<Vec<_>>>()?;
        let forward = |way: &Way| Forward { vm: way.vm.clone(), listen: way.address, port: 80 };
        let settings = QemuSettings {
            accel: if kvm { AccelChoice::Kvm } else { AccelChoice::Tcg },
            console: Console::File,
            boot_dirs: vec![dir.join("boot")],
            reconnect: PATIENCE,
            limit: PATIENCE,
            poll: LOOK,
            networks: vec![QemuNetwork {
                name: NETWORK.to_owned(),
                kind: NetworkKind::User { forwards: ways.iter().map(forward).collect() },
            }],
            ..QemuSettings::plain(own.join("vms"), PathBuf::from(super::QEMU))
        };
        let text = text(name, &own, &settings, &ways);
        let path = own.join("freshet.toml");
        std::fs::write(&path, text).io_context(|| format!("write {}", path.display()))?;
        let driver = QemuDriver::new(settings);
        Ok(Site { name, dir: own, program: program.to_owned(), child: None, ways, driver, cancel })
    }

    pub(super) fn disks(&self) -> PathBuf {
        self.dir.join("disks")
    }

    pub(super) fn way(&self, vm: &Name) -> Option<SocketAddr> {
        self.ways.iter().find(|way| way.vm == *vm).map(|way| way.address)
    }

    /// Starts its appliance and waits until it answers.
    pub(super) async fn serve(&mut self) -> Result<()> {
        let log = self.dir.join("log");
        let file = std::fs::File::options().create(true).append(true).open(&log);
        let file = file.io_context(|| format!("open {}", log.display()))?;
        let mut command = Command::new(&self.program);
        command.args(["--json", "serve", "--config"]).arg(self.dir.join("freshet.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::from(file));
        // What is typed at the terminal is for the demonstration, which ends it.
        command.process_group(0);
        self.child = Some(command.spawn().io_context(|| format!("start {}", self.program.display()))?);
        let until = Instant::now() + PATIENCE;
        loop {
            let why = match self.ask(&["site", "show"]).await {
                Ok(_) => return Ok(()),
                Err(e) => e,
            };
            let ended = self.child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None)));
            if ended || Instant::now() > until {
                return Err(why.while_doing(format!("the appliance of site {}, see {}", self.name, log.display())));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends the appliance as a power failure would.
    pub(super) fn kill_appliance(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that has ended already is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends every guest as a power failure would: all of them, whatever one of them says.
    pub(super) async fn kill_guests(&self) -> Result<()> {
        let mut done = Ok(());
        for way in &self.ways {
            let killed = self.driver.kill(&way.vm).await;
            done = done.and(killed);
        }
        done
    }

    /// The number behind the last whole line with these words that a guest wrote to its console.
    ///
    /// # Errors
    /// `Io` where it said no such thing.
    pub(super) async fn said_last(&self, vm: &Name, words: &str) -> Result<u64> {
        let path = self.dir.join("vms").join(vm.key()).join("console");
        let bytes = tokio::fs::read(&path).await.io_context(|| format!("read {}", path.display()))?;
        let said = String::from_utf8_lossy(&bytes);
        let number = said.lines().rev().find_map(|line| line.trim().strip_prefix(words)?.trim().parse().ok());
        let none = || Error::new(ErrorKind::Io, format!("guest {vm} did not say \"{words}\", see {}", path.display()));
        number.ok_or_else(none)
    }

    /// What a command about the appliance says.
    pub(super) async fn ask(&self, args: &[&str]) -> Result<Value> {
        self.cancel.check()?;
        let socket = self.dir.join("api.sock").display().to_string();
        let words = [self.program.display().to_string(), "--json".to_owned()].into_iter();
        let words = words.chain(args.iter().map(|word| (*word).to_owned())).chain(["--socket".to_owned(), socket]);
        let run = RunCommand {
            command: words.collect(),
            environment: Default::default(),
            input: Vec::new(),
            limit: COMMAND,
            max_output: 16 << 20,
            max_errors: 4096,
        };
        let end = self.cancel.or_stop(run.run()).await?;
        let said: Value = serde_json::from_slice(&end.output).unwrap_or_default();
        match end.code {
            Some(0) => Ok(said),
            code => {
                let word = said["error"]["kind"].as_str().and_then(ErrorKind::from_word);
                let why = said["error"]["message"].as_str().map(str::to_owned);
                let why = why.unwrap_or_else(|| String::from_utf8_lossy(&end.errors).trim().to_owned());
                let text = format!("site {}: freshet {} ends with {code:?}: {why}", self.name, args.join(" "));
                Err(Error::new(word.unwrap_or(ErrorKind::Io), text))
            }
        }
    }

    /// Starts a task, and waits until it is done. The task as it ended.
    pub(super) async fn task(&self, args: &[&str]) -> Result<Value> {
        let begun = self.ask(args).await?;
        let id = begun["task"]["id"].as_str().or(begun["id"].as_str()).unwrap_or_default().to_owned();
        let until = Instant::now() + PATIENCE;
        loop {
            let shown = self.ask(&["task", "show", &id]).await?;
            let state = shown["state"].as_str().unwrap_or_default();
            if state == "TASK_STATE_DONE" {
                return Ok(shown);
            }
            let ended = matches!(state, "TASK_STATE_FAILED" | "TASK_STATE_CANCELLED") || !shown["question"].is_null();
            if ended || Instant::now() > until {
                let why = [&shown["error"], &shown["trouble"], &shown["question"]["text"]];
                let why: Vec<&str> =
                    why.into_iter().filter_map(Value::as_str).filter(|text| !text.is_empty()).collect();
                let text =
                    format!("site {}: freshet {} came to {state}: {}", self.name, args.join(" "), why.join("; "));
                return Err(Error::new(ErrorKind::Io, text));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the domain is as `is` wants it.
    pub(super) async fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let until = Instant::now() + PATIENCE;
        loop {
            let shown = self.ask(&["domain", "show", DOMAIN]).await;
            if let Ok(shown) = &shown
                && is(shown)
            {
                return Ok(shown.clone());
            }
            if Instant::now() > until {
                let last = shown.map_or_else(|e| e.to_string(), |shown| shown.to_string());
                let text = format!("site {}: {what} did not come within {} s: {last}", self.name, PATIENCE.as_secs());
                return Err(Error::new(ErrorKind::Unreachable, text));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill_appliance();
    }
}

/// A port that nobody has now. Somebody may have it when it is used: then that is told.
fn free_port() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").io_context(|| "find a free port")?;
    listener.local_addr().io_context(|| "find a free port")
}

/// The settings of its appliance.
fn text(name: &str, dir: &Path, qemu: &QemuSettings, ways: &[Way]) -> String {
    let at = |what: &str| dir.join(what).display().to_string();
    let accel = if qemu.accel == AccelChoice::Kvm { "kvm" } else { "tcg" };
    let forward = |way: &Way| format!("{{ vm = {:?}, listen = \"{}\", port = 80 }}", way.vm.as_str(), way.address);
    let forwards: Vec<String> = ways.iter().map(forward).collect();
    format!(
        "site = {name:?}\nstate = {:?}\n[listen]\nsocket = {:?}\n[stores]\nlook_every = \"1s\"\n\
         [protect]\nsocket_dir = {:?}\nmemory = \"128MiB\"\nlog_size = \"64MiB\"\nconnections = 16\n\
         [hypervisor]\nkind = \"qemu\"\npoll = \"100ms\"\nlimit = \"{limit}s\"\n\
         [qemu]\ndir = {:?}\nprogram = {:?}\naccel = \"{accel}\"\nconsole = \"file\"\nboot_dirs = [{:?}]\nreconnect = \"{limit}s\"\n\
         [[network]]\nname = {NETWORK:?}\nforwards = [{}]\n",
        at("state"),
        at("api.sock"),
        at("nbd"),
        at("vms"),
        qemu.program.display().to_string(),
        qemu.boot_dirs.first().map(|dir| dir.display().to_string()).unwrap_or_default(),
        forwards.join(", "),
        limit = PATIENCE.as_secs(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::settings::{HypervisorSettings, Settings};

    #[test]
    fn the_appliance_has_the_settings_of_the_driver_beside_it() {
        if !Path::new(super::super::QEMU).exists() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let vms = [Name::new("web").unwrap(), Name::new("db").unwrap()];
        let site = Site::new("first", dir.path(), Path::new("/bin/true"), false, &vms, Cancel::new()).unwrap();
        let read = Settings::load(&site.dir.join("freshet.toml")).unwrap();
        let HypervisorSettings::Qemu(qemu) = read.hypervisor else { panic!("{:?}", read.hypervisor) };
        assert_eq!(qemu.dir, dir.path().join("first/vms"));
        let NetworkKind::User { forwards } = &qemu.networks[0].kind else { panic!() };
        let listens: Vec<SocketAddr> = forwards.iter().map(|forward| forward.listen).collect();
        assert_eq!(listens, site.ways.iter().map(|way| way.address).collect::<Vec<_>>());
    }
}
