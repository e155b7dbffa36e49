//! A libvirt definition, read: disks, network cards, firmware, and what keeps the VM from being recovered elsewhere.
//!
//! Pure. Owns what the words of the format mean; whatever is not named here is left as it is. Invariant: a definition in
//! which something stands that cannot follow its VM to another site is refused with all the reasons at once.

use std::path::PathBuf;

use super::xml::Element;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Nic, VmShape};
use crate::hypervisor::SEED_SERIAL;
use crate::ids::Name;

/// The word for this format in manifests.
pub const LIBVIRT_XML: &str = "libvirt-xml";
/// Name of the channel to the guest's agent.
pub(super) const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";
/// Most bytes of a number and its unit.
const MAX_MEMORY: u64 = 1 << 50;

/// Where a disk has its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// There is no medium.
    None,
    /// A file on the hypervisor's host, in a format such as `raw` or `qcow2`.
    File { path: PathBuf, format: String },
    /// A block device.
    Block { path: PathBuf, format: String },
    /// A volume of a storage pool.
    Volume { pool: String, volume: String, format: String },
    /// An NBD export: its name, and the Unix socket where it is one.
    Nbd { export: String, socket: Option<PathBuf> },
    /// Something else, in words.
    Other(String),
}

/// A disk as it is defined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiskPart {
    /// `disk`, `cdrom`, `floppy` or `lun`.
    pub(super) device: String,
    /// Its name in the guest, such as `vda`.
    pub(super) target: String,
    pub(super) source: Source,
}

impl DiskPart {
    pub(super) fn of(disk: &Element) -> DiskPart {
        let device = match disk.attr("device") {
            "" => "disk",
            device => device,
        };
        let target = disk.child("target").map_or("", |t| t.attr("dev"));
        DiskPart { device: device.to_owned(), target: target.to_owned(), source: source(disk) }
    }

    /// It is a hard disk of the guest.
    pub(super) fn is_disk(&self) -> bool {
        self.device == "disk"
    }
}

fn source(disk: &Element) -> Source {
    let Some(source) = disk.child("source") else { return Source::None };
    let format = disk.child("driver").map_or("", |d| d.attr("type"));
    let format = if format.is_empty() { "raw" } else { format }.to_owned();
    match disk.attr("type") {
        "" | "file" if source.attr("file").is_empty() => Source::None,
        "" | "file" => Source::File { path: source.attr("file").into(), format },
        "block" if source.attr("dev").is_empty() => Source::None,
        "block" => Source::Block { path: source.attr("dev").into(), format },
        "volume" => {
            Source::Volume { pool: source.attr("pool").to_owned(), volume: source.attr("volume").to_owned(), format }
        }
        "network" if source.attr("protocol") == "nbd" => {
            let socket = source.child("host").map_or("", |host| host.attr("socket"));
            let socket = (!socket.is_empty()).then(|| PathBuf::from(socket));
            Source::Nbd { export: source.attr("name").to_owned(), socket }
        }
        "network" => Source::Other(format!("a {} network disk", source.attr("protocol"))),
        other => Source::Other(format!("a disk of type {other}")),
    }
}

/// A definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Definition {
    pub(super) root: Element,
    pub(super) name: Name,
    /// In lower case; empty where the definition has none.
    pub(super) uuid: String,
}

impl Definition {
    /// Reads a definition.
    ///
    /// # Errors
    /// `Invalid` where it is none.
    pub(super) fn parse(text: &str) -> Result<Definition> {
        let root = Element::parse(text)?;
        if root.name != "domain" {
            let why = format!("the definition is a <{}>, must be a <domain>", root.name);
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        let name = Name::new(&root.text_of("name")).map_err(|e| e.while_doing("name of a definition"))?;
        let uuid = root.text_of("uuid").to_ascii_lowercase();
        Ok(Definition { root, name, uuid })
    }

    fn devices(&self) -> impl Iterator<Item = &Element> {
        self.root.child("devices").into_iter().flat_map(Element::elements)
    }

    /// Its disks of all kinds, in order.
    pub(super) fn disks(&self) -> Vec<DiskPart> {
        self.root.child("devices").map(Definition::disks_in).unwrap_or_default()
    }

    /// The element of the first disk that is so.
    pub(super) fn disk(&self, is: impl Fn(&DiskPart) -> bool) -> Option<&Element> {
        self.devices().filter(|d| d.name == "disk" && !is_seed(d)).find(|disk| is(&DiskPart::of(disk)))
    }

    /// Disks of all kinds in the element `devices`.
    pub(super) fn disks_in(devices: &Element) -> Vec<DiskPart> {
        devices.all("disk").filter(|disk| !is_seed(disk)).map(DiskPart::of).collect()
    }

    /// Takes out what hands addresses to its guest: it belongs to the site, and not to the VM. Whether there was one.
    pub(super) fn drop_seed(&mut self) -> bool {
        self.root.child_mut("devices").is_some_and(drop_seed)
    }

    /// It has a channel of this name to something in the guest.
    pub(super) fn has_channel(&self, name: &str) -> bool {
        let channels = self.devices().filter(|d| d.name == "channel");
        channels.filter_map(|c| c.child("target")).any(|target| target.attr("name") == name)
    }

    /// Hardware addresses of its network cards, in lower case.
    pub(super) fn macs(&self) -> Vec<String> {
        let cards = self.devices().filter(|d| d.name == "interface");
        cards.filter_map(|card| Some(card.child("mac")?.attr("address").to_ascii_lowercase())).collect()
    }

    /// What stands under `metadata` of Freshet: the protected domain that it was defined for.
    pub(super) fn owner(&self) -> Option<String> {
        let mark = self.root.child("metadata")?.child(MARK)?;
        Some(mark.attr("domain").to_owned())
    }

    /// The normal form.
    ///
    /// # Errors
    /// `Invalid` for numbers that are none.
    pub(super) fn shape(&self) -> Result<VmShape> {
        let vcpu = self.root.text_of("vcpu");
        let cpus = if vcpu.is_empty() { 1 } else { vcpu.parse().map_err(|_| bad("vcpu", &vcpu))? };
        let memory = self.root.child("memory");
        let memory_bytes = memory.map(bytes).transpose()?.unwrap_or(0);
        let nic = |card: &Element| Nic {
            mac: card.child("mac").map_or("", |m| m.attr("address")).to_ascii_lowercase(),
            network: network_of(card),
            model: card.child("model").map_or("", |m| m.attr("type")).to_owned(),
        };
        let nics = self.devices().filter(|d| d.name == "interface").map(nic).collect();
        Ok(VmShape { cpus, memory_bytes, firmware: self.firmware().to_owned(), nics })
    }

    /// `uefi` or `bios`.
    pub(super) fn firmware(&self) -> &'static str {
        let Some(os) = self.root.child("os") else { return "bios" };
        let loader = os.child("loader").is_some_and(|loader| loader.attr("type") == "pflash");
        if os.attr("firmware") == "efi" || loader { "uefi" } else { "bios" }
    }

    /// What keeps the VM from following its disks to another site.
    ///
    /// # Errors
    /// `Refused` with all the reasons.
    pub(super) fn refuse_unfit(&self) -> Result<()> {
        let mut reasons = Vec::new();
        let disks: Vec<&Element> = self.devices().filter(|d| d.name == "disk" && !is_seed(d)).collect();
        let parts: Vec<DiskPart> = disks.iter().map(|disk| DiskPart::of(disk)).collect();
        if !parts.iter().any(DiskPart::is_disk) {
            reasons.push("it has no disk".to_owned());
        }
        for (i, (disk, part)) in disks.iter().zip(&parts).enumerate() {
            let target = &part.target;
            if target.is_empty() {
                reasons.push(format!("disk {} has no target", i + 1));
            }
            if parts[..i].iter().any(|other| other.target == *target) {
                reasons.push(format!("two disks are named {target}"));
            }
            if parts[..i].iter().any(|other| other.source != Source::None && other.source == part.source) {
                reasons.push(format!("disk {target} has the bytes of another of its disks"));
            }
            reasons.extend(disk_reason(disk, part).map(|why| format!("disk {target} {why}")));
        }
        for device in self.devices() {
            let kind = device.attr("type");
            let reason = match (device.name.as_str(), kind) {
                ("hostdev", _) => format!("a device of its host is passed through ({kind})"),
                ("interface", "hostdev" | "vdpa") => "a network card of its host is passed through".to_owned(),
                ("interface", "vhostuser") => "a network card is served by a process of its host".to_owned(),
                ("filesystem", _) => "a directory of its host is shared with it".to_owned(),
                ("memory", "") if device.attr("model") == "nvdimm" => "it has persistent memory (nvdimm)".to_owned(),
                ("shmem", _) => "it shares memory with others".to_owned(),
                _ => continue,
            };
            reasons.push(reason);
        }
        match reasons.is_empty() {
            true => Ok(()),
            false => {
                let why = format!("VM {} cannot be recovered at another site: {}", self.name, reasons.join("; "));
                Err(Error::new(ErrorKind::Refused, why))
            }
        }
    }

    /// What does not follow the VM, and is no reason to refuse it.
    pub(super) fn left_behind(&self) -> Vec<String> {
        let mut out = Vec::new();
        for part in self.disks() {
            if matches!(part.device.as_str(), "cdrom" | "floppy") && part.source != Source::None {
                out.push(format!("the medium in {} {} stays here: it is empty elsewhere", part.device, part.target));
            }
        }
        let os = self.root.child("os");
        if os.is_some_and(|os| os.child("kernel").is_some()) {
            let kernel = os.map(|os| os.text_of("kernel")).unwrap_or_default();
            out.push(format!("it boots from files of its host ({kernel}): the other site must have them, too"));
        }
        if self.firmware() == "uefi" {
            out.push("its UEFI variables are not replicated: elsewhere it starts with new ones".to_owned());
        }
        if self.devices().any(|d| d.name == "tpm") {
            out.push("the state of its TPM is not replicated".to_owned());
        }
        if self.root.child("qemu:commandline").is_some() {
            out.push("it has arguments for QEMU, which are taken as they are".to_owned());
        }
        out
    }
}

/// It is no disk of the VM, but one of Freshet's that hands addresses to the guest.
pub(super) fn is_seed(disk: &Element) -> bool {
    disk.name == "disk" && disk.text_of("serial") == SEED_SERIAL && disk.child("readonly").is_some()
}

/// Takes such a disk out of `devices`. Whether there was one.
pub(super) fn drop_seed(devices: &mut Element) -> bool {
    devices.remove(is_seed) > 0
}

/// Name of the element in `metadata`, with its prefix as it is written.
pub(super) const MARK: &str = "freshet:vm";
/// Namespace of that prefix.
pub(super) const MARK_SPACE: &str = "urn:freshet:libvirt:1";

fn disk_reason(disk: &Element, part: &DiskPart) -> Option<String> {
    let says = |word: &str| disk.child(word).is_some();
    match part.device.as_str() {
        "cdrom" | "floppy" => return None,
        "disk" => {}
        "lun" => return Some("is a device of its host that is passed through (lun)".to_owned()),
        other => return Some(format!("is a {other}, which is not known")),
    }
    match &part.source {
        Source::None => return Some("has no source".to_owned()),
        Source::Other(what) => return Some(format!("is {what}: only files, block devices and volumes are taken in")),
        _ => {}
    }
    let words = [
        ("shareable", "is shared with other VMs"),
        ("transient", "is transient: what is written to it is not kept"),
        ("encryption", "is encrypted by its hypervisor"),
    ];
    let source = disk.child("source");
    let encrypted = source.is_some_and(|source| source.child("encryption").is_some());
    let found = words.iter().find(|(word, _)| says(word) || (*word == "encryption" && encrypted));
    found.map(|(_, why)| (*why).to_owned())
}

/// The network that a card is on, in the words of [`crate::hypervisor::Hypervisor::networks`]: that of libvirt by its name, a
/// bridge or device of the host with its kind before it.
pub(super) fn network_of(card: &Element) -> String {
    let Some(source) = card.child("source") else { return String::new() };
    match card.attr("type") {
        "network" => source.attr("network").to_owned(),
        "bridge" => format!("bridge:{}", source.attr("bridge")),
        "direct" => format!("direct:{}", source.attr("dev")),
        _ => String::new(),
    }
}

fn bad(what: &str, value: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{what} of the definition is {value:?}, which cannot be understood"))
}

/// Bytes that an element tells with its unit.
pub(super) fn bytes(element: &Element) -> Result<u64> {
    let text = element.text();
    let number: u64 = text.parse().map_err(|_| bad(&element.name, &text))?;
    let unit: u64 = match element.attr("unit") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "" | "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        unit => return Err(bad(&format!("the unit of {}", element.name), unit)),
    };
    number.checked_mul(unit).filter(|bytes| *bytes <= MAX_MEMORY).ok_or_else(|| bad(&element.name, &text))
}
