//! What Freshet asks of a hypervisor, answered by libvirt.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::LibvirtDriver;
use super::cpu::Compared;
use super::definition::{AGENT_CHANNEL, Definition, LIBVIRT_XML};
use super::fit::{Fitted, RENEW, Site, blank, fit};
use super::platform::{Capabilities, MachineAbilities, Platform, choose};
use super::virsh::{Listed, mark};
use super::xml::Element;
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::hypervisor::qemu::process;
use crate::hypervisor::{
    BY_SEED, Foreseen, GuestChange, GuestDisks, Hypervisor, MAX_ADDRESSES, OffEvidence, PowerState, Seed, VmEntry,
    VmSpec, files, seed, unheeded,
};
use crate::ids::Name;

/// Definitions that one call reads.
const BATCH: usize = 64;
/// Longest wait for a guest's agent to take an order.
const AGENT: Duration = Duration::from_secs(20);
/// Longest wait before a guest is asked once more to shut down; half the time that it has, where that is less.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// What libvirt says where a definition has no way to an agent.
const NO_CHANNEL: &str = "agent is not configured";
/// What libvirt says of an agent that does not answer its greeting, after which nothing was asked of it.
const SILENT: &str = "agent not available for now";
/// What libvirt says where there is nothing to do.
const NOT_RUNNING: &str = "domain is not running";

/// What is said of an agent that does not have its end of the channel open.
const NOT_CONNECTED: &str = "agent is not connected";

/// What a definition is made to fit, as it is at one moment.
struct Here {
    has: Capabilities,
    /// By kind, architecture and machine type.
    machines: BTreeMap<(String, String, String), MachineAbilities>,
    cpus: Compared,
    list: Vec<Listed>,
    /// Of `list`.
    known: Vec<Definition>,
}

/// There is no agent that could do it, or no guest.
fn has_no_agent(error: &Error) -> bool {
    let words = [NO_CHANNEL, NOT_CONNECTED, NOT_RUNNING];
    words.iter().any(|word| error.context().contains(word))
}

/// The addresses in what `virsh domifaddr` says: the last word of each line, with its prefix length.
fn addresses(said: &str) -> Vec<IpAddr> {
    let last = |line: &str| line.split_whitespace().next_back()?.split('/').next()?.parse().ok();
    said.lines().filter_map(last).take(MAX_ADDRESSES).collect()
}

/// What virsh says of freezing, `Froze N filesystem(s)`, is that it froze some.
fn froze_some(vm: &Name, said: &str) -> Result<()> {
    let count = said.split_whitespace().find_map(|word| word.parse::<u64>().ok());
    match count {
        Some(1..) => Ok(()),
        _ => Err(Error::new(ErrorKind::Refused, format!("VM {vm}: its agent froze no file system ({})", said.trim()))),
    }
}

fn power(listed: Option<&Listed>) -> PowerState {
    match listed {
        None => PowerState::Absent,
        // Saved memory belongs to the disks as they are: it is on as a guest that is halted is.
        Some(vm) if vm.active || vm.saved => PowerState::Running,
        Some(_) => PowerState::Off,
    }
}

impl LibvirtDriver {
    /// The definitions of these VMs: as they run of those for which `now` says so, else as their next start takes them.
    pub(super) async fn definitions(
        &self,
        list: &[Listed],
        now: impl Fn(&Listed) -> bool + Send + Sync,
    ) -> Result<Vec<Definition>> {
        let mut out = Vec::with_capacity(list.len());
        for some in list.chunks(BATCH) {
            let mark = mark();
            let which = |vm: &Listed| if now(vm) { "" } else { "--inactive" };
            let commands: Vec<String> =
                some.iter().map(|vm| format!("dumpxml {} {}; echo {mark}", which(vm), vm.uuid)).collect();
            let text = self.virsh.ask(&[&commands.join("; ")]).await?;
            for one in text.split(&mark).map(str::trim).filter(|one| !one.is_empty()) {
                out.push(Definition::parse(one)?);
            }
        }
        Ok(out)
    }

    /// The definition of a VM as its next start takes it.
    pub(super) async fn definition(&self, vm: &Listed) -> Result<Definition> {
        Definition::parse(&self.virsh.ask(&["dumpxml", "--inactive", "--security-info", &vm.uuid]).await?)
    }

    /// Gives libvirt a definition.
    pub(super) async fn give(&self, root: &Element) -> Result<()> {
        self.virsh.tell(&["define", "/dev/stdin"], root.write()?, Duration::ZERO).await.map(drop)
    }

    /// Refuses a VM whose disks must not be exchanged under it.
    async fn refuse_unready(&self, vm: &Listed) -> Result<()> {
        let refused = |why: String| Err(Error::new(ErrorKind::Refused, why));
        let name = &vm.name;
        if vm.active {
            return refused(format!("VM {name} runs; switch it off first"));
        }
        if vm.saved {
            let advice = "start it and shut it down, or remove that with `virsh managedsave-remove`";
            return refused(format!("the memory of VM {name} is saved, and would go with other disks; {advice}"));
        }
        let snapshots = self.virsh.ask(&["snapshot-list", "--name", &vm.uuid]).await?;
        match snapshots.split_whitespace().next() {
            Some(first) => {
                refused(format!("VM {name} has snapshots ({first} ...), which speak of other disks; delete them"))
            }
            None => Ok(()),
        }
    }

    fn about(&self, spec: &VmSpec, error: Error) -> Error {
        error.while_doing(format!("define VM {} on {}", spec.name, self.describe()))
    }

    async fn here(&self) -> Result<Here> {
        let has = Capabilities::parse(&self.virsh.ask(&["capabilities"]).await?)?;
        let list = self.virsh.list().await?;
        let known = self.definitions(&list, |_| false).await?;
        Ok(Here { has, machines: BTreeMap::new(), cpus: Compared::new(), list, known })
    }

    /// What a machine of this platform has.
    async fn abilities(&self, platform: &Platform) -> Result<MachineAbilities> {
        let mut asked = vec!["domcapabilities", "--virttype", &platform.kind, "--arch", &platform.arch];
        if !platform.machine.is_empty() {
            asked.extend(["--machine", &platform.machine]);
        }
        MachineAbilities::parse(&self.virsh.ask(&asked).await?)
    }

    /// Where the disk for cloud-init of a VM is, where it gets one.
    fn seed_of(&self, spec: &VmSpec) -> Result<Option<PathBuf>> {
        seed::wanted(spec).then(|| self.seed_path(&spec.name)).transpose().map_err(|e| self.about(spec, e))
    }

    /// The definition of a VM made to fit what is here. Nothing is changed.
    async fn fitted(&self, spec: &VmSpec, here: &mut Here) -> Result<Fitted> {
        let (root, unread) = match spec.definition_kind.as_str() {
            LIBVIRT_XML => {
                let read = Definition::parse(&spec.definition);
                (read.map_err(|e| e.while_doing(format!("definition of VM {}", spec.name)))?.root, None)
            }
            _ => (blank(spec), spec.unread_definition()),
        };
        let platform = choose(&root, &here.has, &spec.placement).map_err(|e| self.about(spec, e))?;
        let key = (platform.kind.clone(), platform.arch.clone(), platform.machine.clone());
        let can = match here.machines.get(&key) {
            Some(can) => can.clone(),
            None => {
                let can = self.abilities(&platform).await?;
                here.machines.insert(key, can.clone());
                can
            }
        };
        if let Some(there) = here.list.iter().find(|listed| listed.name == spec.name) {
            self.refuse_unready(there).await?;
        }
        let seed = self.seed_of(spec)?;
        let lacks = self.lacks(&root, &can, &platform, &mut here.cpus).await.map_err(|e| self.about(spec, e))?;
        let (lacks, seed) = (lacks.as_deref(), seed.as_deref());
        let site = Site { platform: &platform, can: &can, lacks, known: &here.known, seed };
        let mut fitted = fit(root, spec, &site).map_err(|e| self.about(spec, e))?;
        fitted.notes.extend(unread);
        Ok(fitted)
    }

    /// What is said of a network that a definition needs and that does not run: its VM would not start.
    async fn missing_network(&self, root: &Element) -> Result<Option<String>> {
        let cards = root.child("devices").into_iter().flat_map(|devices| devices.all("interface"));
        let wanted: Vec<String> =
            cards.filter(|card| card.attr("type") == "network").map(super::definition::network_of).collect();
        if wanted.is_empty() {
            return Ok(None);
        }
        let said = self.virsh.ask(&["net-list", "--name"]).await?;
        let missing = wanted.into_iter().find(|network| !said.lines().any(|line| line.trim() == network));
        Ok(missing.map(|network| {
            format!("network {network} does not run on {}: start it (`virsh net-start`)", self.describe())
        }))
    }

    /// Bridges of this host, by the kernel's word.
    fn bridges(&self) -> Vec<String> {
        if !self.is_local() {
            return Vec::new();
        }
        let devices = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
        let bridges = devices.filter(|device| device.path().join("bridge").is_dir());
        let mut names: Vec<String> =
            bridges.filter_map(|b| Some(format!("bridge:{}", b.file_name().to_str()?))).collect();
        names.sort();
        names
    }

    /// A process of this host that has the VM's UUID among its arguments.
    fn process(&self, uuid: &str) -> Option<u32> {
        let entries = std::fs::read_dir("/proc").ok()?.flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|b| *b == 0).collect::<Vec<_>>().windows(2).any(|two| two == [b"-uuid", uuid.as_bytes()])
        })
    }

    /// Which run of a VM this is: its process, when that began, and in which boot of the host.
    pub(super) fn run(&self, vm: &Listed) -> String {
        let pid = (vm.active && self.is_local()).then(|| self.process(&vm.uuid)).flatten();
        let began = pid.and_then(|pid| Some((pid, process::began(pid)?)));
        began.map_or_else(String::new, |(pid, began)| format!("{pid} {began} {}", process::boot()))
    }

    /// Has the agent of a guest do what a verb of virsh's says.
    async fn ask_agent(&self, vm: &Listed, verb: &str, more: &[&str], limit: Duration) -> Result<String> {
        let order = [&[verb, &vm.uuid], more].concat();
        match tokio::time::timeout(limit, self.virsh.ask(&order)).await {
            Ok(done) => done,
            Err(_) => {
                let why = format!("{verb} of VM {}: its agent has not answered within {} s", vm.name, limit.as_secs());
                Err(Error::new(ErrorKind::Unreachable, why))
            }
        }
    }

    /// Why no file can be put beside its guests.
    fn away(&self) -> String {
        format!("{} is on another host, where the disk that hands them to cloud-init cannot be put", self.describe())
    }

    /// Where the disk is that hands addresses to the guest.
    fn seed_path(&self, vm: &Name) -> Result<PathBuf> {
        match self.is_local() {
            true => Ok(self.virsh.settings.seeds.join(format!("{}.img", vm.key()))),
            false => Err(Error::new(ErrorKind::Unsupported, format!("addresses of its cards: {}", self.away()))),
        }
    }

    /// Removes that disk, where there is one.
    fn drop_seed(&self, vm: &Name) -> Result<()> {
        match self.is_local() {
            true => files::remove(&self.seed_path(vm)?),
            false => Ok(()),
        }
    }

    /// Asks a guest to shut down: its agent, and its power button where that does not take it, or has been told before and
    /// the guest is still there.
    async fn ask_down(&self, vm: &Listed, again: bool, limit: Duration) -> Result<()> {
        if !again && self.agent_takes_it_down(vm, limit).await {
            return Ok(());
        }
        match self.virsh.ask(&["shutdown", &vm.uuid, "--mode", "acpi"]).await {
            Err(error) if error.context().contains(NOT_RUNNING) => return Ok(()),
            other => drop(other?),
        }
        if again {
            // One that was not there yet, of a guest that heeds no button.
            self.agent_takes_it_down(vm, limit).await;
        }
        Ok(())
    }

    /// Whether an agent takes the order to shut its guest down: not whether the guest follows it.
    async fn agent_takes_it_down(&self, vm: &Listed, limit: Duration) -> bool {
        match self.ask_agent(vm, "shutdown", &["--mode", "agent"], AGENT.min(limit)).await {
            Ok(_) => return true,
            Err(error) if has_no_agent(&error) => tracing::debug!(vm = %vm.name, "no agent shuts it down: {error}"),
            Err(error) => tracing::info!(vm = %vm.name, "its agent does not shut it down: {error}"),
        }
        false
    }
}

/// Writes the disk at `path` that hands addresses to the guest of `root`, before anybody is told of it.
fn put_seed(path: &Path, spec: &VmSpec, root: &Element) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let macs = Definition { root: root.clone(), name: spec.name.clone(), uuid: String::new() }.macs();
    let Some(seed) = Seed::of(spec, &macs)? else { return Ok(()) };
    let dir = path.parent().unwrap_or(path);
    // QEMU's user must come to it; nothing in it is a secret.
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
    // Whatever this process's mask takes away.
    let opened = || std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755));
    made.and_then(|()| opened()).io_context(|| format!("make {}, which is hypervisor.seed_dir", dir.display()))?;
    files::replace(path, &seed.image()?, 0o644)
}

#[async_trait]
impl Hypervisor for LibvirtDriver {
    fn describe(&self) -> String {
        format!("libvirt at {}", self.virsh.settings.uri)
    }

    async fn ready(&self) -> Result<()> {
        self.look_at_all().await.map(drop)
    }

    fn guest_disks(&self) -> Option<&dyn GuestDisks> {
        Some(self)
    }

    async fn watch(&self, tell: &(dyn Fn(GuestChange) + Send + Sync)) {
        self.watch_events(tell).await;
    }

    async fn inventory(&self) -> Result<Vec<VmEntry>> {
        let list = self.virsh.list().await?;
        Ok(list.into_iter().map(|vm| VmEntry { state: power(Some(&vm)), name: vm.name }).collect())
    }

    async fn networks(&self) -> Result<Option<Vec<String>>> {
        let said = match self.virsh.ask(&["net-list", "--all", "--name"]).await {
            // Built or installed without its driver of networks.
            Err(error) if error.context().contains("not supported by the connection driver") => return Ok(None),
            said => said?,
        };
        let named = said.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned);
        Ok(Some(named.chain(self.bridges()).collect()))
    }

    fn unheeded(&self, placement: &BTreeMap<String, String>, policies: &[&str]) -> Vec<String> {
        let words: [(&str, &[&str]); 3] = [("machine", &[]), ("mac", &[RENEW]), ("uuid", &[RENEW])];
        unheeded(&self.describe(), &words, placement, policies)
    }

    fn addressing(&self) -> std::result::Result<&'static str, String> {
        match self.is_local() {
            true => Ok(BY_SEED),
            false => Err(self.away()),
        }
    }

    async fn define(&self, spec: &VmSpec) -> Result<Vec<String>> {
        let fitted = self.fitted(spec, &mut self.here().await?).await?;
        let seed = self.seed_of(spec)?;
        if let Some(path) = &seed {
            put_seed(path, spec, &fitted.root).map_err(|e| self.about(spec, e))?;
        }
        self.give(&fitted.root).await.map_err(|e| self.about(spec, e))?;
        if seed.is_none() {
            self.drop_seed(&spec.name)?;
        }
        Ok(fitted.notes)
    }

    async fn foresee(&self, specs: &[VmSpec]) -> Result<Vec<Foreseen>> {
        let mut here = self.here().await?;
        let mut out = Vec::new();
        for spec in specs {
            let (refused, changes) = match self.fitted(spec, &mut here).await {
                Ok(fitted) => (self.missing_network(&fitted.root).await?, fitted.notes),
                Err(e) if matches!(e.kind(), ErrorKind::Refused | ErrorKind::Invalid) => {
                    (Some(e.to_string()), Vec::new())
                }
                Err(error) => return Err(error),
            };
            out.push(Foreseen { vm: spec.name.clone(), refused, changes });
        }
        Ok(out)
    }

    async fn undefine(&self, vm: &Name) -> Result<()> {
        let Some(there) = self.virsh.find(vm).await? else { return self.drop_seed(vm) };
        if power(Some(&there)) == PowerState::Running {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("VM {vm} runs, or its memory is saved; switch it off first"),
            ));
        }
        // Nothing of storage is named, and its UEFI variables stay where they are.
        self.virsh.ask(&["undefine", &there.uuid, "--keep-nvram"]).await?;
        self.drop_seed(vm)
    }

    async fn start(&self, vm: &Name) -> Result<()> {
        let there = self.virsh.must_find(vm).await?;
        if there.active {
            return Ok(());
        }
        // Memory that was saved belongs to disks as they were then.
        self.virsh.ask(&["start", &there.uuid, "--force-boot"]).await?;
        // It runs; without this it is halted, and not harmed, where Freshet restarts.
        if let Err(error) = self.reconnect_again(&there).await {
            tracing::warn!(%vm, "its disks do not connect again by themselves: {error}");
        }
        Ok(())
    }

    async fn shutdown(&self, vm: &Name, limit: Duration) -> Result<bool> {
        let began = Instant::now();
        let mut asked_at = None;
        loop {
            let there = self.virsh.must_find(vm).await?;
            if !there.active {
                return Ok(!there.saved);
            }
            if self.has_panicked(vm).await? {
                // It hears nothing any more.
                return Ok(false);
            }
            // A guest that was starting has not heard the first, and an agent may take it and do nothing.
            let pause = ASK_AGAIN.min(limit / 2);
            if asked_at.is_none_or(|at: Instant| at.elapsed() >= pause) {
                let again = asked_at.replace(Instant::now()).is_some();
                let left = limit.saturating_sub(began.elapsed());
                self.ask_down(&there, again, pause.min(left)).await?;
            }
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(power(self.virsh.find(vm).await?.as_ref()) != PowerState::Running);
            }
            tokio::time::sleep(self.virsh.settings.poll.min(left)).await;
        }
    }

    async fn power_off(&self, vm: &Name) -> Result<()> {
        let Some(there) = self.virsh.find(vm).await? else { return Ok(()) };
        if there.active {
            match self.virsh.ask(&["destroy", &there.uuid]).await {
                Err(error) if error.context().contains(NOT_RUNNING) => {}
                other => drop(other?),
            }
        }
        if there.saved {
            self.virsh.ask(&["managedsave-remove", &there.uuid]).await?;
        }
        Ok(())
    }

    async fn state(&self, vm: &Name) -> Result<PowerState> {
        Ok(power(self.virsh.find(vm).await?.as_ref()))
    }

    async fn freeze(&self, vm: &Name, limit: Duration) -> Result<bool> {
        let there = self.virsh.must_find(vm).await?;
        match self.ask_agent(&there, "domfsfreeze", &[], limit).await {
            Err(error) if has_no_agent(&error) || error.context().contains(SILENT) => Ok(false),
            other => froze_some(vm, &other?).map(|()| true),
        }
    }

    async fn thaw(&self, vm: &Name, limit: Duration) -> Result<()> {
        let Some(there) = self.virsh.find(vm).await? else { return Ok(()) };
        match self.ask_agent(&there, "domfsthaw", &[], limit).await {
            // One that went away while file systems are frozen has left them so: it is asked again when it is back.
            Err(error) if error.context().contains(NOT_CONNECTED) && self.state(vm).await? == PowerState::Running => {
                let why = format!("VM {vm}: its agent is not there now, and cannot be told to thaw");
                Err(Error::with_source(ErrorKind::Unreachable, why, error))
            }
            Err(error) if has_no_agent(&error) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn agent(&self, vm: &Name, addresses: bool, limit: Duration) -> Result<Option<Vec<IpAddr>>> {
        let there = self.virsh.must_find(vm).await?;
        match self.ask_agent(&there, "domifaddr", &["--source", "agent"], limit).await {
            Ok(said) => Ok(Some(if addresses { self::addresses(&said) } else { Vec::new() })),
            Err(error) if error.context().contains(NO_CHANNEL) => {
                let why =
                    format!("VM {vm}: its definition has no channel {AGENT_CHANNEL}, so that no agent can be asked");
                Err(Error::new(ErrorKind::Unsupported, format!("{why}; add one, and have the agent in the guest")))
            }
            // It answers, and does not know this, which is a sign of life as well.
            Err(error) if error.context().contains("unable to execute QEMU agent command") => match addresses {
                false => Ok(Some(Vec::new())),
                true => Err(error),
            },
            Err(error) if has_no_agent(&error) || error.context().contains("agent is not responding") => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn agent_problem(&self, vm: &VmSpec) -> Option<String> {
        // Other definitions become ones of ours, which have the channel.
        let read = (vm.definition_kind == LIBVIRT_XML).then(|| Definition::parse(&vm.definition).ok()).flatten()?;
        let why = format!("its definition has no channel {AGENT_CHANNEL}, so that no agent in it can be asked");
        (!read.has_channel(AGENT_CHANNEL)).then_some(why)
    }

    async fn trouble(&self, vm: &Name) -> Result<Option<String>> {
        self.trouble_of(vm).await
    }

    async fn off_evidence(&self, vm: &Name) -> Result<OffEvidence> {
        let evidence = |off: bool, because: String| Ok(OffEvidence { off, because });
        let Some(there) = self.virsh.find(vm).await? else {
            return evidence(true, format!("{} has no such VM", self.describe()));
        };
        if there.active {
            let said = self.virsh.ask(&["domstate", "--reason", &there.uuid]).await.unwrap_or_default();
            return evidence(false, format!("{} says that it is {}", self.describe(), said.trim()));
        }
        if there.saved {
            return evidence(false, "its memory is saved, with writes in it that no disk has".to_owned());
        }
        if let Some(pid) = self.is_local().then(|| self.process(&there.uuid)).flatten() {
            return evidence(false, format!("libvirt says that it is off, and process {pid} runs it"));
        }
        let said = self.virsh.ask(&["domstate", "--reason", &there.uuid]).await?;
        let looked = if self.is_local() { ", and no process of this host has its UUID" } else { "" };
        evidence(true, format!("{} says that it is {}{looked}", self.describe(), said.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_the_last_word_of_each_line() {
        let said = " Name       MAC address          Protocol     Address\n\
                    -------------------------------------------------------------------------------\n \
                    lo         00:00:00:00:00:00    ipv4         127.0.0.1/8\n \
                    -          -                    ipv6         ::1/128\n \
                    my card    52:54:00:12:34:56    ipv4         10.0.0.5/24\n \
                    eth1       52:54:00:12:34:57    N/A          N/A\n\n";
        let read = ["127.0.0.1", "::1", "10.0.0.5"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(addresses(said), read);
        assert_eq!(addresses(""), Vec::<IpAddr>::new());
        assert_eq!(addresses(&"x 10.0.0.5/24\n".repeat(MAX_ADDRESSES + 1)).len(), MAX_ADDRESSES);
    }

    #[test]
    fn an_agent_froze_where_it_says_how_many() {
        let vm = Name::new("web").unwrap();
        assert!(froze_some(&vm, "Froze 2 filesystem(s)\n").is_ok());
        for said in ["Froze 0 filesystem(s)", "", "what"] {
            assert_eq!(froze_some(&vm, said).unwrap_err().kind(), ErrorKind::Refused, "{said}");
        }
    }
}
