//! A VM's definition made to fit this site: disks on Freshet's exports, networks of this site, resources of the plan.
//!
//! Pure. Owns which parts change; all others stay as the protected site wrote them. Invariants: every disk of the result is
//! an export of Freshet's, and nothing of the other site's storage is left in it; an identity that another VM here has is
//! never taken.

use std::path::Path;

use super::cpu;
use super::definition::{AGENT_CHANNEL, Definition, DiskPart, MARK, MARK_SPACE, drop_seed};
use super::export::Export;
use super::platform::{MachineAbilities, Platform};
use super::xml::Element;
use crate::error::{Error, ErrorKind, Result};
use crate::hypervisor::{DiskSpec, SEED_SERIAL, VmSpec, seed};

/// Seconds for which the hypervisor's client connects again, before the guest is halted: longer than a restart takes.
pub(super) const RECONNECT_SECONDS: u32 = 300;
/// What a VM gets of which nothing is known.
const USUAL_MEMORY: u64 = 1 << 30;
/// Placement words of the plan for identities: drawn anew.
pub(super) const RENEW: &str = "renew";

/// What is known of this site.
#[derive(Debug)]
pub(super) struct Site<'a> {
    pub(super) platform: &'a Platform,
    pub(super) can: &'a MachineAbilities,
    /// What of the definition's CPU is missing here.
    pub(super) lacks: Option<&'a str>,
    /// All VMs that are defined here.
    pub(super) known: &'a [Definition],
    /// The file that hands addresses to the guest, where its cards get any.
    pub(super) seed: Option<&'a Path>,
}

/// A definition for this site, and what differs from the other's that an operator should know.
#[derive(Debug)]
pub(super) struct Fitted {
    pub(super) root: Element,
    pub(super) notes: Vec<String>,
}

/// A definition for a VM that comes without one that libvirt reads.
pub(super) fn blank(spec: &VmSpec) -> Element {
    let text = |name: &str, text: &str| Element::new(name).saying(text);
    let mut os = Element::new("os").and(text("type", "hvm")).and(Element::new("boot").with("dev", "hd"));
    if spec.firmware == "uefi" {
        os.set("firmware", "efi");
    }
    let mut devices = Element::new("devices");
    for nic in &spec.nics {
        devices.push(Element::new("interface").with("type", "network").and(model(&nic.model)));
    }
    devices.push(Element::new("console").with("type", "pty"));
    let agent = Element::new("target").with("type", "virtio").with("name", AGENT_CHANNEL);
    devices.push(Element::new("channel").with("type", "unix").and(agent));
    let memory = if spec.memory_bytes == 0 { USUAL_MEMORY } else { spec.memory_bytes };
    Element::new("domain")
        .and(text("name", spec.name.as_str()))
        .and(text("memory", &(memory >> 10).to_string()).with("unit", "KiB"))
        .and(text("vcpu", &spec.cpus.max(1).to_string()))
        .and(os)
        .and(Element::new("features").and(Element::new("acpi")).and(Element::new("apic")))
        .and(text("on_crash", "destroy"))
        .and(devices)
}

fn model(model: &str) -> Element {
    Element::new("model").with("type", if model.is_empty() { "virtio" } else { model })
}

/// Makes `root` the definition of `spec` at this site.
///
/// # Errors
/// `Refused` where an identity is another VM's, or the site lacks something; `Invalid` where disks do not match.
pub(super) fn fit(mut root: Element, spec: &VmSpec, site: &Site<'_>) -> Result<Fitted> {
    let mut notes = site.platform.notes.clone();
    identify(&mut root, spec, site)?;
    root.set("type", &site.platform.kind);
    let os = root.child_or_new("os").child_or_new("type");
    os.set("arch", &site.platform.arch);
    match site.platform.machine.as_str() {
        "" => os.unset("machine"),
        machine => os.set("machine", machine),
    }
    cpu::fit(&mut root, site.can, &site.platform.kind, site.lacks, &mut notes)?;
    site.can.fit_firmware(&mut root, &mut notes)?;
    resources(&mut root, spec, &mut notes)?;
    drop_host_matters(&mut root, &mut notes);
    let devices = root.child_or_new("devices");
    devices.remove_all(&["emulator"]);
    drop_seed(devices);
    disks(devices, &spec.disks, &mut notes)?;
    if let Some(path) = site.seed {
        add_seed(devices, path)?;
    }
    let renew = spec.placement.get("mac").is_some_and(|said| said == RENEW);
    nics(devices, spec, renew)?;
    refuse_taken_macs(&root, spec, site)?;
    mark(&mut root, spec);
    Ok(Fitted { root, notes })
}

fn is_same(spec: &VmSpec, uuid: &str, known: &Definition) -> bool {
    known.name == spec.name && (known.uuid == uuid || known.owner().as_deref() == Some(spec.domain.as_str()))
}

/// Name and UUID. A VM of that name that is this one gives its UUID.
fn identify(root: &mut Element, spec: &VmSpec, site: &Site<'_>) -> Result<()> {
    let refused = |why: String| Err(Error::new(ErrorKind::Refused, why));
    let uuid = root.text_of("uuid").to_ascii_lowercase();
    root.child_or_new("name").set_text(spec.name.as_str());
    root.unset("id");
    if let Some(there) = site.known.iter().find(|known| known.name == spec.name) {
        if !is_same(spec, &uuid, there) {
            let why = format!("a VM named {} is here already, with UUID {}, and is another one", spec.name, there.uuid);
            return refused(format!("{why}; rename or remove it"));
        }
        root.child_or_new("uuid").set_text(&there.uuid);
        return Ok(());
    }
    let taken = site.known.iter().find(|known| !uuid.is_empty() && known.uuid == uuid);
    match (taken, spec.placement.get("uuid").is_some_and(|said| said == RENEW)) {
        (Some(other), false) => {
            let why = format!("UUID {uuid} of VM {} is that of VM {} here", spec.name, other.name);
            refused(format!("{why}; remove that, or say placement.uuid=renew in the plan"))
        }
        (_, true) => {
            root.remove_all(&["uuid"]);
            Ok(())
        }
        (None, false) => Ok(()),
    }
}

fn refuse_taken_macs(root: &Element, spec: &VmSpec, site: &Site<'_>) -> Result<()> {
    let own = Definition { root: root.clone(), name: spec.name.clone(), uuid: String::new() }.macs();
    for other in site.known.iter().filter(|known| known.name != spec.name) {
        if let Some(mac) = other.macs().into_iter().find(|mac| own.contains(mac)) {
            let why = format!("address {mac} of a network card of VM {} is one of VM {} here", spec.name, other.name);
            let remedy = "remove that VM, or say placement.mac=renew in the plan";
            return Err(Error::new(ErrorKind::Refused, format!("{why}; {remedy}")));
        }
    }
    Ok(())
}

fn resources(root: &mut Element, spec: &VmSpec, notes: &mut Vec<String>) -> Result<()> {
    let cpus = root.text_of("vcpu");
    let memory = root.child("memory").map(super::definition::bytes).transpose()?.unwrap_or(0);
    let other_cpus = spec.cpus > 0 && cpus != spec.cpus.to_string();
    let other_memory = (spec.memory_bytes > 0 && spec.memory_bytes != memory) || memory == 0;
    if other_cpus {
        let vcpu = root.child_or_new("vcpu");
        ["current", "cpuset"].iter().for_each(|name| vcpu.unset(name));
        vcpu.set_text(&spec.cpus.to_string());
        root.remove_all(&["vcpus"]);
    }
    if other_memory {
        let bytes = if spec.memory_bytes == 0 { USUAL_MEMORY } else { spec.memory_bytes };
        let kib = (bytes >> 10).to_string();
        root.child_or_new("memory").set("unit", "KiB");
        root.child_or_new("memory").set_text(&kib);
        root.remove_all(&["currentMemory", "maxMemory"]);
    }
    if (other_cpus || other_memory)
        && let Some(cpu) = root.child_mut("cpu")
        && cpu.remove_all(&["topology", "numa"]) > 0
    {
        notes.push("its CPU topology is not kept, since it has other resources here".to_owned());
    }
    Ok(())
}

/// What speaks of the other site's host and means nothing, or harm, here.
fn drop_host_matters(root: &mut Element, notes: &mut Vec<String>) {
    root.remove_all(&["resource", "seclabel"]);
    let mut pinned = root.remove_all(&["numatune"]);
    if let Some(tune) = root.child_mut("cputune") {
        pinned += tune.remove_all(&["vcpupin", "emulatorpin", "iothreadpin"]);
    }
    if let Some(vcpu) = root.child_mut("vcpu") {
        pinned += usize::from(!vcpu.attr("cpuset").is_empty());
        vcpu.unset("cpuset");
    }
    if pinned > 0 {
        notes.push("it is not pinned to processors or memory of the host any more".to_owned());
    }
    for graphics in root.child_mut("devices").into_iter().flat_map(Element::elements_mut) {
        if graphics.name != "graphics" {
            continue;
        }
        let everywhere = ["", "0.0.0.0", "127.0.0.1", "::", "::1"];
        let own = |listen: &str| !everywhere.contains(&listen);
        if own(graphics.attr("listen")) || graphics.all("listen").any(|l| own(l.attr("address"))) {
            graphics.unset("listen");
            graphics.remove_all(&["listen"]);
        }
    }
}

/// Which of `specs` a disk of the definition is: that of its name, or the one at its place where no name fits any disk.
fn partner<'a>(specs: &'a [DiskSpec], targets: &[String], n: usize) -> Option<&'a DiskSpec> {
    let named = |target: &String| specs.iter().find(|spec| spec.name.as_str() == target);
    match targets.iter().any(|target| named(target).is_some()) {
        true => named(&targets[n]),
        false => specs.get(n),
    }
}

fn disks(devices: &mut Element, specs: &[DiskSpec], notes: &mut Vec<String>) -> Result<()> {
    let all = Definition::disks_in(devices);
    let targets: Vec<String> = all.iter().filter(|d| d.is_disk()).map(|d| d.target.clone()).collect();
    let used: Vec<&str> = all.iter().map(|d| d.target.as_str()).collect();
    let (mut n, mut gone, mut placed) = (0, Vec::new(), Vec::new());
    for (part, disk) in all.iter().zip(devices.elements_mut().filter(|e| e.name == "disk")) {
        if !part.is_disk() {
            empty(disk, part, notes);
            continue;
        }
        match partner(specs, &targets, n) {
            Some(spec) => {
                onto_export(disk, spec)?;
                placed.push(spec.name.clone());
            }
            None => gone.push(part.target.clone()),
        }
        n += 1;
    }
    for target in &gone {
        notes.push(format!("disk {target} of its definition is not protected: it is left out here"));
    }
    devices.remove(|e| e.name == "disk" && gone.iter().any(|t| e.child("target").is_some_and(|c| c.attr("dev") == t)));
    let mut letters = ('a'..='z').map(|letter| format!("vd{letter}")).filter(|dev| !used.contains(&dev.as_str()));
    for spec in specs.iter().filter(|spec| !placed.contains(&spec.name)) {
        let full =
            || Error::new(ErrorKind::Refused, format!("there is no room for disk {} beside the others", spec.name));
        let target = Element::new("target").with("dev", &letters.next().ok_or_else(full)?).with("bus", "virtio");
        let mut disk = Element::new("disk").with("device", "disk").and(target);
        onto_export(&mut disk, spec)?;
        devices.push(disk);
    }
    Ok(())
}

/// A drive without a medium.
fn empty(drive: &mut Element, part: &DiskPart, notes: &mut Vec<String>) {
    if part.source != super::definition::Source::None {
        notes.push(format!("{} {} is empty here", part.device, part.target));
    }
    drive.remove_all(&["source", "backingStore", "mirror", "auth", "encryption"]);
    drive.set("type", "file");
}

/// Has a disk read and write an export. Where the export is away for longer than the client waits, the guest is halted, and
/// no error reaches it.
pub(super) fn onto_export(disk: &mut Element, spec: &DiskSpec) -> Result<()> {
    let export = Export::parse(&spec.uri)?;
    disk.set("type", "network");
    disk.remove_all(&["source", "backingStore", "mirror", "auth", "encryption", "transient", "shareable"]);
    let driver = disk.child_or_new("driver");
    for (name, value) in [
        ("name", "qemu"),
        ("type", "raw"),
        ("cache", "none"),
        ("discard", "unmap"),
        ("error_policy", "stop"),
        ("rerror_policy", "stop"),
    ] {
        driver.set(name, value);
    }
    // Of a host's file.
    ["io", "copy_on_read", "detect_zeroes"].iter().for_each(|name| driver.unset(name));
    disk.push(export.source());
    Ok(())
}

/// Adds the disk that hands addresses to the guest, behind its own, on a bus that the guest has a driver for.
fn add_seed(devices: &mut Element, path: &Path) -> Result<()> {
    let bad = |why: &str| Error::new(ErrorKind::Invalid, format!("{}: {why}", path.display()));
    let file = path.to_str().ok_or_else(|| bad("it is not UTF-8"))?;
    let targets: Vec<&Element> = devices.all("disk").filter_map(|disk| disk.child("target")).collect();
    // Disks on the other buses cannot be read-only.
    let bus = if targets.first().is_some_and(|target| target.attr("bus") == "scsi") { "scsi" } else { "virtio" };
    let prefix = if bus == "scsi" { "sd" } else { "vd" };
    let mut free = ('a'..='z').rev().map(|letter| format!("{prefix}{letter}"));
    let name = free.find(|name| targets.iter().all(|target| target.attr("dev") != name));
    let name = name.ok_or_else(|| bad("there is no room for it beside the VM's disks"))?;
    let driver = Element::new("driver").with("name", "qemu").with("type", "raw");
    let disk = Element::new("disk").with("type", "file").with("device", "disk");
    let disk = disk.and(driver).and(Element::new("source").with("file", file));
    let disk = disk.and(Element::new("target").with("dev", &name).with("bus", bus)).and(Element::new("readonly"));
    devices.push(disk.and(Element::new("serial").saying(SEED_SERIAL)));
    Ok(())
}

fn nics(devices: &mut Element, spec: &VmSpec, renew: bool) -> Result<()> {
    // A guest that gets addresses tells its cards by theirs: none is left for libvirt to draw.
    let (specs, fixed) = (&spec.nics, seed::wanted(spec));
    let cards: Vec<&mut Element> = devices.elements_mut().filter(|e| e.name == "interface").collect();
    if cards.len() != specs.len() {
        let why = format!("the definition has {} network cards, the VM has {}", cards.len(), specs.len());
        return Err(Error::new(ErrorKind::Invalid, why));
    }
    for (n, (card, nic)) in cards.into_iter().zip(specs).enumerate() {
        card.remove_all(&["target"]);
        let same = super::definition::network_of(card) == nic.network;
        if !same || nic.network.is_empty() {
            connect(card, &nic.network);
        }
        if renew {
            card.remove_all(&["mac"]);
        } else if !nic.mac.is_empty() {
            card.child_or_new("mac").set("address", &nic.mac);
        }
        if fixed && card.child("mac").is_none() {
            let salt = if renew { RENEW } else { "" };
            card.child_or_new("mac").set("address", &seed::drawn_mac(spec, n, salt));
        }
    }
    Ok(())
}

/// Puts a card on a network; on none where it is empty.
fn connect(card: &mut Element, network: &str) {
    card.remove_all(&["source", "virtualport", "filterref", "portForward", "backend"]);
    card.unset("trustGuestRxFilters");
    let (kind, source) = match network.split_once(':') {
        Some(("bridge", bridge)) => ("bridge", Some(("bridge", bridge))),
        Some(("direct", dev)) => ("direct", Some(("dev", dev))),
        _ if network.is_empty() => ("user", None),
        _ => ("network", Some(("network", network))),
    };
    card.set("type", kind);
    match source {
        Some((name, value)) => card.push(Element::new("source").with(name, value)),
        // It is there, and its cable is not.
        None => card.child_or_new("link").set("state", "down"),
    }
}

/// Says whose it is.
fn mark(root: &mut Element, spec: &VmSpec) {
    let metadata = root.child_or_new("metadata");
    metadata.remove_all(&[MARK]);
    metadata.push(Element::new(MARK).with("xmlns:freshet", MARK_SPACE).with("domain", spec.domain.as_str()));
}

#[cfg(test)]
#[path = "fit_tests.rs"]
mod tests;
