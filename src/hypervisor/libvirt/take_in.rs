//! VMs that libvirt runs already, and those of their disks that are moved while they are off.
//!
//! Invariants: what is changed is the definition of that one VM, and of it only the disks that are named; no byte of a disk
//! is read or written here.

use std::path::PathBuf;

use super::LibvirtDriver;
use super::definition::{Definition, DiskPart, LIBVIRT_XML, Source};
use super::export::Export;
use super::fit::onto_export;
use super::virsh::Listed;
use super::xml::Element;
use crate::error::{Error, ErrorKind, Result};
use crate::hypervisor::{DiskPlace, DiskSpec, FoundDisk, FoundVm};
use crate::ids::Name;

impl LibvirtDriver {
    /// The definition of a VM as it runs now.
    pub(super) async fn running_definition(&self, vm: &Listed) -> Result<Definition> {
        Definition::parse(&self.virsh.ask(&["dumpxml", &vm.uuid]).await?)
    }

    pub(super) async fn found(&self, vm: &Listed) -> Result<FoundVm> {
        let mut text = self.virsh.ask(&["dumpxml", "--inactive", "--security-info", &vm.uuid]).await?;
        let mut definition = Definition::parse(&text)?;
        if definition.drop_seed() {
            text = definition.root.write()?;
        }
        definition.refuse_unfit()?;
        let refused = |why: String| Err(Error::new(ErrorKind::Refused, format!("VM {}: {why}", vm.name)));
        let snapshots = self.virsh.ask(&["snapshot-list", "--name", &vm.uuid]).await?;
        if let Some(first) = snapshots.split_whitespace().next() {
            return refused(format!("it has snapshots ({first} ...), which would not follow it; delete them"));
        }
        if vm.saved && !vm.active {
            return refused("its memory is saved, with writes in it that no disk has; start it first".to_owned());
        }
        let hard = |d: &Definition| d.disks().into_iter().filter(DiskPart::is_disk).collect::<Vec<_>>();
        let parts = match vm.active {
            true => hard(&self.running_definition(vm).await?),
            false => hard(&definition),
        };
        let targets = |parts: &[DiskPart]| parts.iter().map(|part| part.target.clone()).collect::<Vec<_>>();
        if targets(&parts) != targets(&hard(&definition)) {
            let why = "a disk was plugged or unplugged for as long as it runs";
            return refused(format!("{why}: it has {}, and its definition others", targets(&parts).join(", ")));
        }
        let mut disks = Vec::with_capacity(parts.len());
        for part in parts {
            let what = format!("disk {} of VM {}", part.target, vm.name);
            disks.push(self.found_disk(vm, part).await.map_err(|e| e.while_doing(what))?);
        }
        Ok(FoundVm {
            running: vm.active,
            run: self.run(vm),
            definition_kind: LIBVIRT_XML.to_owned(),
            shape: definition.shape()?,
            notes: definition.left_behind(),
            definition: text,
            disks,
        })
    }

    async fn found_disk(&self, vm: &Listed, part: DiskPart) -> Result<FoundDisk> {
        let name = Name::new(&part.target)?;
        let raw_or = |path: PathBuf, format: String| match format.as_str() {
            "raw" => DiskPlace::Raw(path),
            _ => DiskPlace::Image { path, format },
        };
        // Of an export that is away, nothing is asked.
        let mut asked = vec!["domblkinfo", &vm.uuid, &part.target];
        let place = match &part.source {
            Source::File { path, format } | Source::Block { path, format } => raw_or(path.clone(), format.clone()),
            Source::Volume { pool, volume, format } => {
                if !vm.active {
                    // Only a start has libvirt find out which file it is.
                    asked = vec!["vol-info", "--bytes", "--pool", pool, volume];
                }
                let path = self.virsh.ask(&["vol-path", "--pool", pool, volume]).await?;
                raw_or(path.trim().into(), format.clone())
            }
            Source::Nbd { export, socket } => DiskPlace::Export { name: export.clone(), socket: socket.clone() },
            Source::None | Source::Other(_) => {
                return Err(Error::new(ErrorKind::Refused, format!("disk {name} has no bytes that could be taken in")));
            }
        };
        let size = match &place {
            DiskPlace::Export { .. } => 0,
            _ => capacity(&self.virsh.ask(&asked).await?)?,
        };
        Ok(FoundDisk { name, place, size })
    }

    /// Changes disks of a VM that is off, those of which `change` says that it did. The rest of it stays as it is.
    pub(super) async fn change_disks(
        &self,
        vm: &Name,
        mut change: impl FnMut(&str, &mut Element) -> Result<bool> + Send,
    ) -> Result<()> {
        let there = self.virsh.must_find(vm).await?;
        if there.active || there.saved {
            let why = format!("VM {vm} runs: its disks are moved by copying them, or once it is shut down");
            return Err(Error::new(ErrorKind::Refused, why));
        }
        let mut definition = self.definition(&there).await?;
        let mut changed = false;
        for disk in definition.root.child_or_new("devices").elements_mut().filter(|e| e.name == "disk") {
            let target = disk.child("target").map_or(String::new(), |t| t.attr("dev").to_owned());
            changed |= change(&target, disk)?;
        }
        if changed {
            self.give(&definition.root).await?;
        }
        Ok(())
    }

    pub(super) async fn attach_disks(&self, vm: &Name, disks: &[DiskSpec]) -> Result<()> {
        let mut placed = 0;
        let change = |target: &str, disk: &mut Element| {
            let Some(spec) = disks.iter().find(|spec| spec.name.as_str() == target) else { return Ok(false) };
            placed += 1;
            onto_export(disk, spec).map(|()| true)
        };
        self.change_disks(vm, change).await?;
        match placed == disks.len() {
            true => Ok(()),
            false => {
                Err(Error::new(ErrorKind::NotFound, format!("VM {vm} has not all of the disks that are protected")))
            }
        }
    }

    pub(super) async fn detach_disks(&self, vm: &Name, images: &[(DiskSpec, PathBuf)]) -> Result<()> {
        let change = |_: &str, disk: &mut Element| {
            let source = DiskPart::of(disk).source;
            let is_on = |spec: &DiskSpec| Export::parse(&spec.uri).is_ok_and(|export| export.is(&source));
            let Some((_, image)) = images.iter().find(|(spec, _)| is_on(spec)) else { return Ok(false) };
            onto_image(disk, image)?;
            Ok(true)
        };
        self.change_disks(vm, change).await
    }
}

/// Has a disk read and write a raw image file, or a block device.
pub(super) fn onto_image(disk: &mut Element, image: &std::path::Path) -> Result<()> {
    let bad = || Error::new(ErrorKind::Invalid, format!("{} is not UTF-8", image.display()));
    let path = image.to_str().ok_or_else(bad)?;
    let is_block =
        std::fs::metadata(image).is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_block_device(&m.file_type()));
    let (kind, name) = if is_block { ("block", "dev") } else { ("file", "file") };
    disk.set("type", kind);
    disk.remove_all(&["source", "backingStore", "mirror"]);
    let driver = disk.child_or_new("driver");
    driver.set("type", "raw");
    ["error_policy", "rerror_policy"].iter().for_each(|policy| driver.unset(policy));
    disk.push(Element::new("source").with(name, path));
    Ok(())
}

/// What `virsh domblkinfo` and `virsh vol-info` tell of the bytes that the guest sees.
fn capacity(text: &str) -> Result<u64> {
    let number = text.lines().find_map(|line| line.strip_prefix("Capacity:")?.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| Error::new(ErrorKind::Damaged, format!("virsh says {text:?}, which is no capacity")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_goes_onto_an_export_and_back_onto_its_image() {
        let text = "<disk type=\"file\" device=\"disk\"><driver name=\"qemu\" type=\"raw\"/><source file=\"/a.img\"/>\
                    <target dev=\"vda\"/></disk>";
        let mut disk = Element::parse(text).unwrap();
        let uri = "nbd+unix:///web/vda?socket=/s".to_owned();
        onto_export(&mut disk, &DiskSpec { name: Name::new("vda").unwrap(), uri: uri.clone(), size: 1 }).unwrap();
        assert!(Export::parse(&uri).unwrap().is(&DiskPart::of(&disk).source));
        onto_image(&mut disk, std::path::Path::new("/a.img")).unwrap();
        let source = Source::File { path: "/a.img".into(), format: "raw".into() };
        assert_eq!(DiskPart::of(&disk).source, source);
        assert!(!disk.write().unwrap().contains("policy"));
        assert_eq!(capacity("Capacity:       100663296\nAllocation:     1\n").unwrap(), 100_663_296);
        assert_eq!(capacity("Name:  v\nCapacity:       4194304 bytes\n").unwrap(), 4 << 20);
        assert!(capacity("nothing").is_err());
    }
}
