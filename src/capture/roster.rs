//! Who takes part: the VMs and disks of a call, matched with the domain's catalogue.
//!
//! Pure. A VM or disk of a new name joins, with a fresh identity; one that is not named stays in the catalogue with its
//! last content. A VM is covered by the point only if every disk that it has in the catalogue was read in this call:
//! otherwise its disks are of different moments.

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Catalogue, DiskInfo, IndexDisk, VmInfo};
use crate::ids::{DiskId, Name, VmId};

use super::request::VmSource;

/// One disk of the call.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// As segments name it.
    pub(crate) disk: IndexDisk,
    /// `vm/disk`.
    pub(crate) label: String,
    /// Whether it joined with this call.
    pub(crate) joined: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Roster {
    /// The catalogue from now on.
    pub(crate) catalogue: Catalogue,
    /// Whether it differs from the one before.
    pub(crate) changed: bool,
    /// The disks, in the order of the request.
    pub(crate) members: Vec<Member>,
    /// VMs that the point covers, sorted.
    pub(crate) covered: Vec<VmId>,
    /// What the operator should know.
    pub(crate) notes: Vec<String>,
}

/// Matches `vms` with the catalogue `old`; `sizes` are the lengths of the images, in the order of the request.
///
/// # Errors
/// `Refused` where a disk shrank without leave, or where no VM would be covered.
pub(crate) fn roster(old: &Catalogue, vms: &[VmSource], sizes: &[u64], allow_shrink: bool) -> Result<Roster> {
    let mut catalogue = old.clone();
    let (mut members, mut covered, mut notes) = (Vec::with_capacity(sizes.len()), Vec::new(), Vec::new());
    let mut sizes = sizes.iter().copied();
    for source in vms {
        let vm = enroll_vm(&mut catalogue, source);
        for disk in &source.disks {
            let size = sizes.next().ok_or_else(|| Error::new(ErrorKind::Internal, "a disk without a size"))?;
            let label = format!("{}/{}", source.name, disk.name);
            let (id, before) = enroll_disk(&mut catalogue, vm, &disk.name, size);
            if before.is_some_and(|before| size < before) && !allow_shrink {
                let before = before.unwrap_or_default();
                let why = format!(
                    "disk {label}: its image has {size} bytes, the disk had {before} at the last point. Is it the right image, \
                     and whole? To drop what lay past its end, allow the disk to shrink"
                );
                return Err(Error::new(ErrorKind::Refused, why));
            }
            members.push(Member { disk: IndexDisk { id, vm, size }, label, joined: before.is_none() });
        }
        let left_out: Vec<String> = catalogue
            .disks_of(vm)
            .filter(|disk| !members.iter().any(|m| m.disk.id == disk.id))
            .map(|disk| disk.name.to_string())
            .collect();
        match left_out.is_empty() {
            true => covered.push(vm),
            false => notes.push(format!(
                "VM {} is not covered by this point: its disks {} were not given and keep their last content",
                source.name,
                left_out.join(", ")
            )),
        }
    }
    if covered.is_empty() {
        let why = format!("the point would cover no VM. {}. Name all disks of a VM", notes.join(". "));
        return Err(Error::new(ErrorKind::Refused, why));
    }
    covered.sort_unstable();
    Ok(Roster { changed: catalogue != *old, catalogue, members, covered, notes })
}

fn enroll_vm(catalogue: &mut Catalogue, source: &VmSource) -> VmId {
    let at = catalogue.vms.iter().position(|vm| vm.name == source.name).unwrap_or_else(|| {
        catalogue.vms.push(VmInfo {
            id: VmId::random(),
            name: source.name.clone(),
            definition_kind: String::new(),
            definition: String::new(),
            shape: Default::default(),
        });
        catalogue.vms.len() - 1
    });
    let vm = &mut catalogue.vms[at];
    if let Some(definition) = &source.definition {
        vm.definition_kind.clone_from(&definition.kind);
        vm.definition.clone_from(&definition.text);
        vm.shape.clone_from(&definition.shape);
    }
    vm.id
}

/// The disk's identity, and its size before where it was known.
fn enroll_disk(catalogue: &mut Catalogue, vm: VmId, name: &Name, size: u64) -> (DiskId, Option<u64>) {
    if let Some(known) = catalogue.disks.iter_mut().find(|d| d.vm == vm && d.name == *name) {
        return (known.id, Some(std::mem::replace(&mut known.size, size)));
    }
    let id = DiskId::random();
    catalogue.disks.push(DiskInfo { id, vm, name: name.clone(), size });
    (id, None)
}

#[cfg(test)]
mod tests {
    use super::super::request::VmDefinition;
    use super::super::samples::vm;
    use super::*;

    #[test]
    fn ids_stay_the_others_stay_in_the_catalogue_and_nothing_changed_is_told() {
        let both = [vm("a", &["root", "data"]), vm("b", &["root"])];
        let first = roster(&Catalogue::default(), &both, &[10, 20, 30], false).unwrap();
        assert!(first.changed && first.members.iter().all(|m| m.joined) && first.covered.len() == 2);
        assert_eq!(first.members.iter().map(|m| m.disk.size).collect::<Vec<_>>(), [10, 20, 30]);
        assert_eq!(first.members[1].label, "a/data");
        let again = roster(&first.catalogue, &both, &[10, 20, 30], false).unwrap();
        assert!(!again.changed && again.members.iter().all(|m| !m.joined));
        assert_eq!(again.members[2].disk, first.members[2].disk);
        let one = roster(&first.catalogue, &[vm("b", &["root"])], &[31], false).unwrap();
        assert!(one.changed, "it grew");
        assert_eq!((one.catalogue.disks.len(), one.covered.len(), one.members.len()), (3, 1, 1));
        assert_eq!(one.catalogue.disks[2].size, 31);
    }

    #[test]
    fn a_vm_is_covered_only_with_all_its_disks() {
        let first = roster(&Catalogue::default(), &[vm("a", &["x", "y"])], &[1, 1], false).unwrap();
        let error = roster(&first.catalogue, &[vm("a", &["x"])], &[1], false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("disks y"), "{error}");
        let mixed = roster(&first.catalogue, &[vm("a", &["x"]), vm("b", &["z"])], &[1, 1], false).unwrap();
        assert_eq!(mixed.covered, [mixed.catalogue.vm_named("b").unwrap().id]);
        assert_eq!(mixed.notes.len(), 1);
    }

    #[test]
    fn shrinking_needs_leave_and_definitions_stay_until_replaced() {
        let definition = VmDefinition { kind: "k".into(), text: "t".into(), shape: Default::default() };
        let defined = VmSource { definition: Some(definition), ..vm("a", &["x"]) };
        let first = roster(&Catalogue::default(), &[defined], &[100], false).unwrap();
        let error = roster(&first.catalogue, &[vm("a", &["x"])], &[99], false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("has 99 bytes") && error.to_string().contains("had 100"), "{error}");
        let shrunk = roster(&first.catalogue, &[vm("a", &["x"])], &[99], true).unwrap();
        assert_eq!(shrunk.catalogue.disks[0].size, 99);
        assert_eq!(shrunk.catalogue.vms[0].definition, "t");
    }
}
