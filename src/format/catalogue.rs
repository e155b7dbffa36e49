//! The catalogue of a domain: its VMs with their definitions, and their disks. It stands in every manifest, and in each
//! segment at which it changed, so that a bucket and the one binary are enough to recover.
//!
//! Invariants: ids are unique, each disk belongs to a VM of the catalogue, and disk names are unique within a VM.

use std::collections::HashSet;

use crate::ids::{DiskId, MAX_NAME_LEN, Name, VmId};

use super::decode_error::{DecodeError, DecodeResult};
use super::point::MAX_VMS;
use super::wire::{Reader, Writer};

/// Most bytes of an encoded catalogue.
pub const MAX_CATALOGUE_LEN: usize = 64 << 20;
pub(crate) const MAX_DISKS: usize = 1_000_000;
pub(crate) const MAX_NICS: usize = 1024;
pub(crate) const MAX_DEFINITION_LEN: usize = 4 << 20;
pub(crate) const MAX_WORD_LEN: usize = 1024;
const WHAT: &str = "catalogue";

/// A network card of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Nic {
    /// Hardware address as text; empty where unknown.
    pub mac: String,
    /// Network that it is on, as the site names it.
    pub network: String,
    /// Device model; empty where unknown.
    pub model: String,
}

/// A VM in the normal form that every hypervisor driver understands. Zero and empty mean unknown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VmShape {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// `bios` or `uefi`.
    pub firmware: String,
    /// Network cards.
    pub nics: Vec<Nic>,
}

/// A VM of the domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmInfo {
    /// Identity.
    pub id: VmId,
    /// Name, unique in the domain.
    pub name: Name,
    /// What `definition` is written in, such as `libvirt-xml`; empty where there is none.
    pub definition_kind: String,
    /// The definition as its hypervisor wrote it.
    pub definition: String,
    /// The normal form.
    pub shape: VmShape,
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInfo {
    /// Identity.
    pub id: DiskId,
    /// VM that it belongs to.
    pub vm: VmId,
    /// Name, unique in the VM.
    pub name: Name,
    /// Bytes, any number.
    pub size: u64,
}

/// VMs and disks of a domain at one point.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalogue {
    /// In the order in which they joined.
    pub vms: Vec<VmInfo>,
    /// In the order in which they joined; the position is the disk's index in page references.
    pub disks: Vec<DiskInfo>,
}

impl Catalogue {
    /// The VM of this identity.
    pub fn vm(&self, id: VmId) -> Option<&VmInfo> {
        self.vms.iter().find(|v| v.id == id)
    }

    /// The VM of this name.
    pub fn vm_named(&self, name: &str) -> Option<&VmInfo> {
        self.vms.iter().find(|v| v.name.as_str() == name)
    }

    /// The disk of this identity.
    pub fn disk(&self, id: DiskId) -> Option<&DiskInfo> {
        self.disks.iter().find(|d| d.id == id)
    }

    /// The disks of one VM.
    pub fn disks_of(&self, vm: VmId) -> impl Iterator<Item = &DiskInfo> {
        self.disks.iter().filter(move |d| d.vm == vm)
    }

    /// `vm/disk`, for messages.
    pub fn disk_label(&self, id: DiskId) -> String {
        let Some(disk) = self.disk(id) else { return format!("disk {id}") };
        let vm = self.vm(disk.vm).map_or_else(|| disk.vm.to_string(), |v| v.name.to_string());
        format!("{vm}/{}", disk.name)
    }

    /// Bytes for manifest and segment.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.count(self.vms.len());
        for vm in &self.vms {
            out.put(&vm.id).text(vm.name.as_str()).text(&vm.definition_kind).text(&vm.definition);
            out.put(&vm.shape.cpus).put(&vm.shape.memory_bytes).text(&vm.shape.firmware);
            out.count(vm.shape.nics.len());
            for nic in &vm.shape.nics {
                out.text(&nic.mac).text(&nic.network).text(&nic.model);
            }
        }
        out.count(self.disks.len());
        for disk in &self.disks {
            out.put(&disk.id).put(&disk.vm).text(disk.name.as_str()).put(&disk.size);
        }
        out.finish()
    }

    /// From the bytes of [`Catalogue::encode`], checked.
    pub fn decode(bytes: &[u8]) -> DecodeResult<Catalogue> {
        let mut from = Reader::new(WHAT, bytes);
        let vm_count = from.count(48, MAX_VMS)?;
        let vms = (0..vm_count).map(|_| take_vm(&mut from)).collect::<DecodeResult<Vec<_>>>()?;
        let disk_count = from.count(44, MAX_DISKS)?;
        let disks = (0..disk_count).map(|_| take_disk(&mut from)).collect::<DecodeResult<Vec<_>>>()?;
        from.finish()?;
        let catalogue = Catalogue { vms, disks };
        catalogue.check()?;
        Ok(catalogue)
    }

    fn check_limits(&self) -> DecodeResult<()> {
        within("VMs", self.vms.len(), MAX_VMS)?;
        within("disks", self.disks.len(), MAX_DISKS)?;
        for vm in &self.vms {
            within("bytes of definition", vm.definition.len(), MAX_DEFINITION_LEN)?;
            within("network cards", vm.shape.nics.len(), MAX_NICS)?;
            let nics = vm.shape.nics.iter().flat_map(|n| [&n.mac, &n.network, &n.model]);
            for word in nics.chain([&vm.definition_kind, &vm.shape.firmware]) {
                within("bytes of one word", word.len(), MAX_WORD_LEN)?;
            }
        }
        Ok(())
    }

    /// What a decoder would refuse is not written either.
    pub(crate) fn check(&self) -> DecodeResult<()> {
        self.check_limits()?;
        let (mut ids, mut names) = (HashSet::new(), HashSet::new());
        for vm in &self.vms {
            if !ids.insert(vm.id) || !names.insert(&vm.name) {
                return Err(DecodeError::value(WHAT, format!("VM {} {} twice", vm.id, vm.name)));
            }
        }
        let (mut disks, mut disk_names) = (HashSet::new(), HashSet::new());
        for disk in &self.disks {
            if !ids.contains(&disk.vm) {
                return Err(DecodeError::value(WHAT, format!("disk {} of an unknown VM", disk.name)));
            }
            if !disks.insert(disk.id) || !disk_names.insert((disk.vm, &disk.name)) {
                return Err(DecodeError::value(WHAT, format!("disk {} {} twice", disk.id, disk.name)));
            }
        }
        Ok(())
    }
}

fn within(what: &str, len: usize, max: usize) -> DecodeResult<()> {
    match len <= max {
        true => Ok(()),
        false => Err(DecodeError::value(WHAT, format!("{what}: {len}, at most {max}"))),
    }
}

fn take_name(from: &mut Reader<'_>) -> DecodeResult<Name> {
    let text = from.text(MAX_NAME_LEN)?;
    Name::new(text).map_err(|e| DecodeError::value(WHAT, e.to_string()))
}

fn take_vm(from: &mut Reader<'_>) -> DecodeResult<VmInfo> {
    let id = from.take()?;
    let name = take_name(from)?;
    let definition_kind = from.text(MAX_WORD_LEN)?.to_owned();
    let definition = from.text(MAX_DEFINITION_LEN)?.to_owned();
    let (cpus, memory_bytes) = (from.take()?, from.take()?);
    let firmware = from.text(MAX_WORD_LEN)?.to_owned();
    let nic_count = from.count(12, MAX_NICS)?;
    let mut word = || from.text(MAX_WORD_LEN).map(str::to_owned);
    let mut nics = Vec::with_capacity(nic_count);
    for _ in 0..nic_count {
        nics.push(Nic { mac: word()?, network: word()?, model: word()? });
    }
    Ok(VmInfo { id, name, definition_kind, definition, shape: VmShape { cpus, memory_bytes, firmware, nics } })
}

fn take_disk(from: &mut Reader<'_>) -> DecodeResult<DiskInfo> {
    let (id, vm) = (from.take()?, from.take()?);
    let name = take_name(from)?;
    Ok(DiskInfo { id, vm, name, size: from.take()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn sample() -> Catalogue {
        let vm = VmId::from_bytes([1; 16]);
        let shape = VmShape {
            cpus: 2,
            memory_bytes: 1 << 30,
            firmware: "uefi".into(),
            nics: vec![Nic { mac: "52:54:00:00:00:01".into(), network: "default".into(), model: "virtio".into() }],
        };
        Catalogue {
            vms: vec![VmInfo {
                id: vm,
                name: Name::new("web ☃").unwrap(),
                definition_kind: "libvirt-xml".into(),
                definition: "<domain/>".into(),
                shape,
            }],
            disks: vec![DiskInfo {
                id: DiskId::from_bytes([2; 16]),
                vm,
                name: Name::new("root").unwrap(),
                size: 12345,
            }],
        }
    }

    #[test]
    fn round_trip_and_every_truncation_is_noticed() {
        let bytes = sample().encode();
        assert_eq!(Catalogue::decode(&bytes).unwrap(), sample());
        for n in 0..bytes.len() {
            assert!(Catalogue::decode(&bytes[..n]).is_err(), "{n}");
        }
    }

    #[test]
    fn doubles_and_strays_are_refused() {
        let mut twice = sample();
        twice.disks.push(twice.disks[0].clone());
        assert!(Catalogue::decode(&twice.encode()).is_err());
        let mut stray = sample();
        stray.disks[0].vm = VmId::from_bytes([9; 16]);
        assert!(Catalogue::decode(&stray.encode()).is_err());
    }
}
