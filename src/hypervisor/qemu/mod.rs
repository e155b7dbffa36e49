//! The driver for appliances without libvirt: Freshet starts QEMU itself, a process for each guest, and owns it.
//!
//! ```text
//! define  -> <dir>/<vm>/vm.json                    start -> qemu, in a session of its own, holding <vm>/lock
//! state   <- is the lock held?                     shutdown -> agent, then the power button; off: the lock is free
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `settings` | where, which program, which networks |
//! | `definition`, `folder` | what is kept of a VM, and the lock that tells whether it lives |
//! | `command`, `disk` | from a VM to QEMU's arguments |
//! | `process` | processes: started, found again, ended |
//! | `lines`, `qmp`, `agent` | talking to QEMU and to the guest's agent |
//! | `resets` | guests that start anew by themselves |
//! | `accel` | kvm or software emulation |
//! | `mirror` | moving a running guest's disk |
//!
//! The driver itself remembers nothing that counts: guests live on while this program is away, and the next one finds
//! them by their folders. Invariant: of each VM at most one process lives, whoever is killed when.

mod accel;
mod agent;
mod command;
mod definition;
mod disk;
mod folder;
mod lines;
mod mirror;
pub(super) mod process;
mod qmp;
mod resets;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use self::accel::Finding;
use self::command::{AGENT, CONSOLE, MONITOR, UEFI_VARS};
use self::folder::{Folder, LOG, Moving};
use self::process::Ends;
use self::qmp::Qmp;
use super::restarts::Restarts;
use super::subprocess::find_program;
use super::{BY_SEED, Foreseen, GuestChange, Hypervisor, OffEvidence, PowerState, Seed, VmEntry, VmSpec, seed};
use crate::error::{Error, ErrorKind, IoResultExt, Result, ResultExt};
use crate::ids::Name;

pub use definition::{MAX_QEMU_VM_LEN, Machine, OnReboot, QEMU_DEFINITION, QEMU_VM_FORMAT, QemuDefinition, qemu_vm};
pub use settings::{AccelChoice, Console, Forward, NetworkKind, QemuNetwork, QemuSettings};

/// Time between two looks whether a QEMU that was started answers.
const LOOK: Duration = Duration::from_millis(50);
/// Time after which a guest that does not shut down is asked once more: one that is just booting hears nothing.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Bytes of the end of what a guest wrote that are kept.
const SAID: usize = 4096;
/// The run state of a guest that panicked.
const PANICKED: &str = "guest-panicked";
/// How long a QEMU may take to say how it is, and to end by itself before it is killed.
const QUIT: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct QemuDriver {
    settings: QemuSettings,
    ends: Ends,
    finding: OnceCell<Finding>,
    /// The end of what guests wrote to consoles that are read only once.
    said: Mutex<BTreeMap<Name, String>>,
    /// Guests that start anew by themselves.
    restarts: Mutex<Restarts>,
}

impl QemuDriver {
    /// A driver with these settings. Nothing is run or looked for yet: guests that run are known by their folders alone.
    pub fn new(settings: QemuSettings) -> QemuDriver {
        let (ends, finding) = (Ends::default(), OnceCell::new());
        QemuDriver { settings, ends, finding, said: Mutex::default(), restarts: Mutex::default() }
    }

    /// Makes the folder of VMs, where it is not there.
    fn make_dir(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let dir = &self.settings.dir;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|e| {
            let why = format!("make {}, the folder of VMs (qemu.dir in the settings)", dir.display());
            Error::with_source(ErrorKind::Unreachable, why, e)
        })
    }

    /// Refuses what needs the program or the folder while one of them is missing.
    fn must_be_ready(&self) -> Result<()> {
        self.make_dir()?;
        let advice = "QEMU cannot be used: install it, or set qemu.program in the settings";
        find_program(&self.settings.program).while_doing(|| advice)
    }

    fn folder(&self, vm: &Name) -> Folder {
        Folder::new(&self.settings.dir, vm)
    }

    /// VMs that have a folder, by their names.
    fn folders(&self) -> Result<Vec<Name>> {
        self.make_dir()?;
        let dir = &self.settings.dir;
        let entries = std::fs::read_dir(dir).io_context(|| format!("read {}", dir.display()))?.flatten();
        let named = entries.filter(|entry| entry.path().is_dir());
        let mut names: Vec<Name> =
            named.filter_map(|entry| entry.file_name().to_str().and_then(Name::from_key)).collect();
        names.sort();
        Ok(names)
    }

    fn known(&self, vm: &Name) -> Result<(Folder, VmSpec)> {
        let folder = self.folder(vm);
        match folder.read()? {
            Some(spec) => Ok((folder, spec)),
            None => Err(Error::new(ErrorKind::NotFound, format!("VM {vm} is not defined on {}", self.describe()))),
        }
    }

    /// The folder of a VM that is to end: one that runs does so whatever its definition has become.
    fn to_end(&self, vm: &Name) -> Result<Folder> {
        let folder = self.folder(vm);
        match folder.is_alive()? {
            true => Ok(folder),
            false => self.known(vm).map(|(folder, _)| folder),
        }
    }

    async fn finding(&self) -> Result<&Finding> {
        self.must_be_ready()?;
        let found = self.finding.get_or_try_init(|| accel::find(&self.settings)).await?;
        Ok(found)
    }

    /// Whether guests have the processor's own virtualisation here.
    ///
    /// # Errors
    /// `Unreachable` where there is no QEMU; what writing the probe guest says.
    pub async fn has_kvm(&self) -> Result<bool> {
        Ok(self.finding().await?.kvm)
    }

    /// Ends the VM's process without asking it, as a power failure would. One that does not run is no error.
    ///
    /// # Errors
    /// `Io` where it cannot be found or ended.
    pub async fn kill(&self, vm: &Name) -> Result<()> {
        let folder = self.folder(vm);
        let killed = tokio::task::spawn_blocking(move || process::kill(&folder)).await;
        killed.map_err(|e| Error::with_source(ErrorKind::Internal, format!("end VM {vm}"), e))?
    }

    async fn monitor(&self, folder: &Folder) -> Result<Qmp> {
        Qmp::connect(folder.path(), MONITOR, self.settings.limit).await
    }

    /// Refuses a VM that cannot be made here.
    async fn may_define(&self, spec: &VmSpec) -> Result<()> {
        let folder = self.folder(&spec.name);
        let refused = |why: &str| Err(Error::new(ErrorKind::Refused, format!("VM {} {why}", spec.name)));
        if let Some(known) = folder.read()?
            && known.domain != spec.domain
        {
            return refused(&format!("is there already, in domain {}", known.domain));
        }
        if folder.is_alive()? {
            return refused("runs: what is known of it is not changed");
        }
        if spec.firmware == "uefi" {
            for file in [&self.settings.uefi_vars, &self.settings.uefi_code] {
                let why =
                    || format!("UEFI firmware {} (package ovmf; qemu.uefi_code and qemu.uefi_vars)", file.display());
                std::fs::metadata(file).io_context(why)?;
            }
        }
        self.arguments(spec).await.map(drop)
    }

    /// The arguments for `spec`, which are made at its definition, too, so that what cannot be made is refused there.
    async fn arguments(&self, spec: &VmSpec) -> Result<Vec<std::ffi::OsString>> {
        let own = QemuDefinition::of(spec, &self.settings.boot_dirs)?;
        command::arguments(spec, &own, &self.settings, self.finding().await?.kvm)
    }

    /// Waits until a QEMU that was started answers and its guest runs.
    async fn until_running(&self, vm: &Name, folder: &Folder) -> Result<()> {
        let until = Instant::now() + self.settings.limit;
        loop {
            if !folder.is_alive()? {
                let end = self.ends.of(vm).map(|end| format!(" ({end})")).unwrap_or_default();
                let why = format!("QEMU of VM {vm} ended at its start{end}: {}", folder.tail(LOG));
                folder.forget_process()?;
                return Err(Error::new(ErrorKind::Io, why));
            }
            // Its socket comes before it opens the disks, and it answers after that.
            let left = until.saturating_duration_since(Instant::now());
            if let Ok(mut qmp) = Qmp::connect(folder.path(), MONITOR, left.max(LOOK)).await
                && qmp.status().await.is_ok()
            {
                return Ok(());
            }
            if Instant::now() >= until {
                let limit = self.settings.limit.as_secs();
                let why = format!("QEMU of VM {vm} was started and does not answer within {limit} s");
                return Err(Error::new(ErrorKind::Unreachable, format!("{why}: {}", folder.tail(LOG))));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until no process of the VM lives, for at most `limit`. Whether none does.
    async fn until_off(&self, folder: &Folder, limit: Duration) -> Result<bool> {
        let until = Instant::now() + limit;
        while folder.is_alive()? {
            let now = Instant::now();
            if now >= until {
                return Ok(false);
            }
            tokio::time::sleep(self.settings.poll.min(until - now)).await;
        }
        Ok(true)
    }

    /// Whether the guest panicked: it hears nothing any more.
    async fn has_panicked(&self, folder: &Folder) -> bool {
        let status = async { Qmp::connect(folder.path(), MONITOR, QUIT).await?.status().await };
        status.await.is_ok_and(|status| status == PANICKED)
    }

    /// Tells the guest that it is to shut down: its agent, and its power button where that does not take it, or has been
    /// told before and the guest is still there.
    async fn ask_to_shut_down(&self, folder: &Folder, again: bool) -> Result<()> {
        if !again && agent::shut_down(folder.path(), AGENT).await {
            return Ok(());
        }
        self.monitor(folder).await?.execute("system_powerdown", json!({})).await?;
        if again {
            // One that was not there yet, of a guest that heeds no button.
            agent::shut_down(folder.path(), AGENT).await;
        }
        Ok(())
    }

    /// Moves the disk of that name of a running VM to `uri` without stopping it, and keeps that in its definition. Where it
    /// is there already nothing is done. One that was begun and cut off is settled first.
    ///
    /// # Errors
    /// `NotFound` where there is no such VM or disk, `Refused` where it does not run, what moving it says otherwise: it is
    /// on its old disk then.
    pub async fn move_disk(&self, vm: &Name, disk: &Name, uri: &str, limit: Duration) -> Result<()> {
        let (folder, mut spec) = self.known(vm)?;
        let Some(n) = spec.disks.iter().position(|known| known.name == *disk) else {
            return Err(Error::new(ErrorKind::NotFound, format!("VM {vm} has no disk {disk}")));
        };
        if !folder.is_alive()? {
            return Err(Error::new(ErrorKind::Refused, format!("VM {vm} does not run: its disk {disk} is not moved")));
        }
        let what = || format!("move disk {disk} of VM {vm}");
        let mut qmp = self.monitor(&folder).await?;
        self.settle(&folder, &mut spec, &mut qmp).await.while_doing(what)?;
        if spec.disks[n].uri == uri {
            return Ok(());
        }
        let node = mirror::target_node(n);
        folder.note_moving(Some(&Moving { disk: n, uri: uri.to_owned(), node: node.clone() }))?;
        let moved = mirror::move_disk(&mut qmp, n, (&node, uri), self.settings.reconnect, limit).await;
        // Whatever was said, the guest is asked where it is.
        drop(qmp);
        let mut qmp = self.monitor(&folder).await.while_doing(what)?;
        let settled = self.settle(&folder, &mut spec, &mut qmp).await;
        moved.and(settled).while_doing(what)
    }

    /// Brings the definition up to what a move that was begun has come to.
    async fn settle(&self, folder: &Folder, spec: &mut VmSpec, qmp: &mut Qmp) -> Result<()> {
        let Some(moving) = folder.moving()? else { return Ok(()) };
        if mirror::settle(qmp, moving.disk, &moving.node).await?
            && let Some(disk) = spec.disks.get_mut(moving.disk)
        {
            disk.uri = moving.uri;
            folder.write(spec)?;
        }
        folder.note_moving(None)
    }

    /// The newest of what the guest wrote to its serial console, in a line; empty where there is nothing.
    async fn last_words(&self, vm: &Name, folder: &Folder) -> String {
        if self.settings.console == Console::File {
            return folder.tail(CONSOLE);
        }
        let read = async {
            let mut qmp = self.monitor(folder).await?;
            qmp.execute("ringbuf-read", json!({"device": "console", "size": 65536})).await
        };
        let text = read.await.ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default();
        // What was read is gone from the ring, and somebody asks again.
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let all = said.entry(vm.clone()).or_default();
        all.push_str(&text);
        let from = all.ceil_char_boundary(all.len().saturating_sub(SAID));
        all.drain(..from);
        folder::last_lines(all.as_bytes())
    }
}

/// What hands addresses to the guest of `spec`.
fn seed_of(spec: &VmSpec) -> Result<Option<Seed>> {
    let macs: Vec<String> = (0..spec.nics.len()).map(|n| seed::mac_of(spec, n)).collect();
    Seed::of(spec, &macs)
}

/// What the VM is otherwise here than at the protected site.
fn changes(spec: &VmSpec) -> Vec<String> {
    let foreign = (spec.definition_kind != QEMU_DEFINITION).then(|| spec.unread_definition()).flatten();
    foreign.into_iter().collect()
}

#[async_trait]
impl Hypervisor for QemuDriver {
    fn describe(&self) -> String {
        match self.finding.get() {
            Some(found) if found.kvm => format!("QEMU with kvm ({})", found.because),
            Some(found) => format!("QEMU with tcg ({})", found.because),
            None => "QEMU".to_owned(),
        }
    }

    async fn ready(&self) -> Result<()> {
        self.must_be_ready()
    }

    async fn watch(&self, _tell: &(dyn Fn(GuestChange) + Send + Sync)) {
        self.hear_resets().await;
    }

    async fn inventory(&self) -> Result<Vec<VmEntry>> {
        let mut vms = Vec::new();
        for name in self.folders()? {
            // A folder without a definition is what is left of one that was being made.
            if self.folder(&name).read()?.is_some() {
                vms.push(VmEntry { state: self.state(&name).await?, name });
            }
        }
        Ok(vms)
    }

    async fn networks(&self) -> Result<Option<Vec<String>>> {
        Ok(Some(self.settings.networks.iter().map(|network| network.name.clone()).collect()))
    }

    fn addressing(&self) -> std::result::Result<&'static str, String> {
        Ok(BY_SEED)
    }

    async fn define(&self, spec: &VmSpec) -> Result<Vec<String>> {
        self.must_be_ready()?;
        self.may_define(spec).await?;
        let folder = self.folder(&spec.name);
        let seed = seed_of(spec)?;
        folder.make()?;
        folder.put_seed(seed.as_ref())?;
        if spec.firmware == "uefi" {
            let vars = folder.path().join(UEFI_VARS);
            if !vars.exists() {
                let from = &self.settings.uefi_vars;
                let bytes = std::fs::read(from).io_context(|| format!("UEFI variables {}", from.display()))?;
                folder.replace(UEFI_VARS, &bytes)?;
            }
        }
        folder.write(spec)?;
        folder.note_moving(None)?;
        folder.forget_process()?;
        Ok(changes(spec))
    }

    async fn foresee(&self, specs: &[VmSpec]) -> Result<Vec<Foreseen>> {
        self.must_be_ready()?;
        let mut out = Vec::new();
        for spec in specs {
            let refused = self.may_define(spec).await.err().map(|why| why.to_string());
            out.push(Foreseen { vm: spec.name.clone(), refused, changes: changes(spec) });
        }
        Ok(out)
    }

    async fn undefine(&self, vm: &Name) -> Result<()> {
        let folder = self.folder(vm);
        match folder.is_alive()? {
            true => Err(Error::new(ErrorKind::Refused, format!("VM {vm} runs: it is not forgotten"))),
            false => folder.remove(),
        }
    }

    async fn start(&self, vm: &Name) -> Result<()> {
        let (folder, spec) = self.known(vm)?;
        if folder.is_alive()? {
            // Perhaps one that a start before this one left without an answer.
            return self.until_running(vm, &folder).await;
        }
        self.must_be_ready()?;
        if let Some(moving) = folder.moving()? {
            let why = format!("VM {vm} ended while its disk {} was moved to {}", moving.disk, moving.uri);
            let remedy = "either place may have its newest writes; define it again with the disk that has";
            return Err(Error::new(ErrorKind::Refused, format!("{why}: {remedy}")));
        }
        self.said.lock().unwrap_or_else(PoisonError::into_inner).remove(vm);
        self.restarts().forget(vm);
        let arguments = self.arguments(&spec).await?;
        folder.put_seed(seed_of(&spec)?.as_ref())?;
        let (program, ends, name, its) = (self.settings.program.clone(), self.ends.clone(), vm.clone(), folder.clone());
        let spawned =
            tokio::task::spawn_blocking(move || process::spawn(&its, &name, &program, &arguments, &ends)).await;
        spawned.map_err(|e| Error::with_source(ErrorKind::Internal, format!("start VM {vm}"), e))??;
        self.until_running(vm, &folder).await
    }

    async fn shutdown(&self, vm: &Name, limit: Duration) -> Result<bool> {
        let folder = self.to_end(vm)?;
        let until = Instant::now() + limit;
        folder.note_told(true)?;
        let mut again = false;
        loop {
            if !folder.is_alive()? {
                break;
            }
            if self.has_panicked(&folder).await {
                folder.note_told(false)?;
                return Ok(false);
            }
            if let Err(e) = self.ask_to_shut_down(&folder, again).await
                && folder.is_alive()?
            {
                tracing::warn!(%vm, "it cannot be asked to shut down: {e}");
            }
            again = true;
            let left = until.saturating_duration_since(Instant::now());
            if self.until_off(&folder, left.min(ASK_AGAIN)).await? {
                break;
            }
            if left <= ASK_AGAIN {
                folder.note_told(false)?;
                return Ok(false);
            }
        }
        folder.forget_process()?;
        Ok(true)
    }

    async fn power_off(&self, vm: &Name) -> Result<()> {
        let folder = self.to_end(vm)?;
        folder.note_told(true)?;
        // It may be told to end while its monitor hangs, or not at all: then it is killed.
        let quit = async { Qmp::connect(folder.path(), MONITOR, QUIT).await?.execute("quit", json!({})).await };
        let asked = quit.await.is_ok();
        if !asked || !self.until_off(&folder, QUIT).await? {
            self.kill(vm).await?;
        }
        match self.until_off(&folder, self.settings.limit).await? {
            true => folder.forget_process(),
            false => Err(Error::new(ErrorKind::Io, format!("VM {vm}: its QEMU was killed and does not end"))),
        }
    }

    async fn state(&self, vm: &Name) -> Result<PowerState> {
        let folder = self.folder(vm);
        if folder.is_alive()? {
            return Ok(PowerState::Running);
        }
        Ok(match folder.read()? {
            Some(_) => PowerState::Off,
            None => PowerState::Absent,
        })
    }

    async fn off_evidence(&self, vm: &Name) -> Result<OffEvidence> {
        let folder = self.folder(vm);
        if folder.is_alive()? {
            let panicked = if self.has_panicked(&folder).await { ", and its guest panicked" } else { "" };
            let because = format!("a process holds its lock: its QEMU lives{panicked}");
            return Ok(OffEvidence { off: false, because });
        }
        let record = folder.process();
        if let Some(record) = record.as_ref().filter(|record| process::lives(record)) {
            let because = format!("its lock is free, and process {} lives still", record.pid);
            return Ok(OffEvidence { off: false, because });
        }
        let process = record.map(|record| format!(", and process {} is gone", record.pid)).unwrap_or_default();
        let end = self.ends.of(vm).map(|end| format!(", with {end}")).unwrap_or_default();
        Ok(OffEvidence { off: true, because: format!("no process holds its lock{process}{end}") })
    }

    async fn freeze(&self, vm: &Name, limit: Duration) -> Result<bool> {
        let folder = self.folder(vm);
        if !folder.is_alive()? {
            return Ok(false);
        }
        let frozen = agent::call(folder.path(), AGENT, "guest-fsfreeze-freeze", limit).await?;
        match frozen.as_ref().map(Value::as_u64) {
            None => Ok(false),
            Some(Some(0) | None) => {
                Err(Error::new(ErrorKind::Refused, format!("VM {vm}: its agent froze no file system")))
            }
            Some(_) => Ok(true),
        }
    }

    async fn thaw(&self, vm: &Name, limit: Duration) -> Result<()> {
        let folder = self.folder(vm);
        if !folder.is_alive()? || agent::call(folder.path(), AGENT, "guest-fsfreeze-thaw", limit).await?.is_some() {
            return Ok(());
        }
        let why = format!("VM {vm}: no agent answers that could thaw its file systems");
        Err(Error::new(ErrorKind::Unreachable, why))
    }

    async fn agent(&self, vm: &Name, addresses: bool, limit: Duration) -> Result<Option<Vec<IpAddr>>> {
        let folder = self.folder(vm);
        if !folder.is_alive()? {
            return Ok(None);
        }
        let command = if addresses { "guest-network-get-interfaces" } else { "guest-ping" };
        let said = agent::call(folder.path(), AGENT, command, limit).await?;
        Ok(said.map(|said| if addresses { agent::addresses(&said) } else { Vec::new() }))
    }

    async fn trouble(&self, vm: &Name) -> Result<Option<String>> {
        let folder = self.folder(vm);
        if !folder.is_alive()? {
            // One that was told to end is no trouble.
            return Ok(folder.process().filter(|record| !record.told).map(|_| {
                let end = self.ends.of(vm).map(|end| format!(" with {end}")).unwrap_or_default();
                let said = [folder.tail(CONSOLE), folder.tail(LOG)].join(" | ");
                format!("its guest or its QEMU ended by itself{end}: {}", said.trim_matches([' ', '|']))
            }));
        }
        let status = match Qmp::connect(folder.path(), MONITOR, QUIT).await {
            Ok(mut qmp) => qmp.status().await,
            Err(e) => Err(e),
        };
        Ok(match status.as_deref() {
            Ok(PANICKED) => Some(format!("its guest panicked: {}", self.last_words(vm, &folder).await)),
            Ok("io-error") => {
                // Its disk is there again, or the next write stops it once more.
                let resumed = async { self.monitor(&folder).await?.execute("cont", json!({})).await };
                let then = if resumed.await.is_ok() { "it was told to go on" } else { "it does not go on" };
                Some(format!("it stood still since a disk failed; {then}"))
            }
            Ok("internal-error") => Some("QEMU stopped it after an internal error".to_owned()),
            Ok(_) => self.restarts().trouble(vm, std::time::Instant::now()),
            Err(_) if !folder.is_alive()? => None,
            Err(e) => Some(format!("its QEMU does not answer: {e}")),
        })
    }
}
