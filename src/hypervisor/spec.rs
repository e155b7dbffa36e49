//! A VM as drivers are told about it, in the one normal form that all of them understand.
//!
//! Plain data; its JSON is what the commands of the `exec` driver read, so that fields are added and never changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::Name;

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Its name in the VM.
    pub name: Name,
    /// Where it is served, such as `nbd+unix:///web%2Fsystem?socket=/run/freshet/d.sock`.
    pub uri: String,
    /// Bytes.
    pub size: u64,
}

/// A network card of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NicSpec {
    /// Its name in messages, such as `nic0`.
    pub name: String,
    /// Hardware address; empty where unknown.
    pub mac: String,
    /// Network of this site; empty for none.
    pub network: String,
    /// Device model; empty where unknown.
    pub model: String,
    /// Address and prefix length in the guest; empty where nothing is set.
    pub address: String,
    /// Gateway in the guest; empty where nothing is set.
    pub gateway: String,
    /// Name servers in the guest.
    pub dns: Vec<String>,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// Its name.
    pub name: Name,
    /// The domain that it belongs to.
    pub domain: Name,
    /// Virtual processors; 0 where unknown.
    pub cpus: u32,
    /// Memory in bytes; 0 where unknown.
    pub memory_bytes: u64,
    /// `bios` or `uefi`; empty where unknown.
    pub firmware: String,
    /// Its disks, in order.
    pub disks: Vec<DiskSpec>,
    /// Its network cards, in order.
    pub nics: Vec<NicSpec>,
    /// Where it is placed, in the hypervisor's words.
    pub placement: BTreeMap<String, String>,
    /// Storage policy; empty for none.
    pub storage_policy: String,
    /// What `definition` is written in, such as `libvirt-xml`; empty where there is none.
    pub definition_kind: String,
    /// The definition as the protected site's hypervisor wrote it.
    pub definition: String,
}

impl VmSpec {
    /// What a driver tells that does not read this definition; `None` where there is none.
    pub(crate) fn unread_definition(&self) -> Option<String> {
        let kind = Some(&self.definition_kind).filter(|kind| !kind.is_empty())?;
        Some(format!(
            "its definition of kind {kind} is not read here: it gets its processors, memory, disks and cards, and is \
             otherwise as VMs usually are here"
        ))
    }
}

/// In which state a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerState {
    /// The hypervisor does not know it.
    Absent,
    /// It is defined, and off.
    Off,
    /// It runs, or is paused or starting: its disks may be written.
    Running,
}

/// A VM that a hypervisor knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmEntry {
    /// Its name.
    pub name: Name,
    /// In which state it is.
    pub state: PowerState,
}

/// What defining a VM would come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreseen {
    /// The VM.
    pub vm: Name,
    /// Why it would not be made, or would not start then; `None` where nothing is known against it.
    pub refused: Option<String>,
    /// What it would be otherwise than at the protected site without the plan saying so, each in a sentence.
    pub changes: Vec<String>,
}

/// What shows that a guest is off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffEvidence {
    /// It is off for certain: nothing of it can write any more.
    pub off: bool,
    /// Why that is believed, or why not.
    pub because: String,
}

/// What happened to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuestEvent {
    /// It was started.
    Started,
    /// It is off.
    Stopped,
    /// It crashed.
    Crashed,
    /// An error of a disk halted it.
    Halted,
    /// It goes on after it was halted or paused.
    Resumed,
    /// Its definition, or what it has plugged, may be another.
    Changed,
}

impl GuestEvent {
    /// The words for it in events.
    pub fn words(self) -> &'static str {
        match self {
            GuestEvent::Started => "guest started",
            GuestEvent::Stopped => "guest stopped",
            GuestEvent::Crashed => "guest crashed",
            GuestEvent::Halted => "guest halted",
            GuestEvent::Resumed => "guest resumed",
            GuestEvent::Changed => "guest changed",
        }
    }
}

/// Something that happened to a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestChange {
    /// Which.
    pub vm: Name,
    /// What.
    pub event: GuestEvent,
    /// In the hypervisor's words.
    pub detail: String,
}
