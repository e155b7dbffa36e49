//! Where the disks of VMs are, of many in one call, and whatever else is to be said of those VMs.

use std::collections::BTreeMap;

use super::LibvirtDriver;
use super::definition::{Definition, DiskPart, Source};
use crate::error::Result;
use crate::hypervisor::{SeenDisk, Whereabouts};
use crate::ids::Name;

impl LibvirtDriver {
    pub(super) async fn whereabouts_of(&self, vms: &[Name]) -> Result<BTreeMap<Name, Whereabouts>> {
        let mut list = self.virsh.list().await?;
        list.retain(|listed| vms.contains(&listed.name));
        let found = self.definitions(&list, |vm| vm.active).await?;
        let running = |of: &Definition| list.iter().any(|vm| vm.active && vm.name == of.name);
        let seen = |of: Definition| (of.name.clone(), Whereabouts { running: running(&of), disks: seen(&of) });
        Ok(found.into_iter().map(seen).collect())
    }
}

fn seen(definition: &Definition) -> Vec<SeenDisk> {
    let disk = |part: DiskPart| {
        let (export, place) = match part.source {
            Source::None => (None, "nothing".to_owned()),
            Source::File { path, .. } | Source::Block { path, .. } => (None, path.display().to_string()),
            Source::Volume { pool, volume, .. } => (None, format!("volume {volume} of pool {pool}")),
            Source::Nbd { export, socket } => {
                let place = format!("the NBD export {export}");
                (socket.map(|socket| (export, socket)), place)
            }
            Source::Other(what) => (None, what),
        };
        SeenDisk { name: part.target, export, place }
    };
    definition.disks().into_iter().filter(DiskPart::is_disk).map(disk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hard_disk_is_told_with_its_place() {
        let text = "<domain><name>a</name><devices>\
            <disk type='network'><source protocol='nbd' name='a/vda'><host transport='unix' socket='/s'/></source>\
            <target dev='vda'/></disk><disk type='file'><source file='/b.qcow2'/><target dev='vdb'/></disk>\
            <disk type='network'><source protocol='rbd' name='x'/><target dev='vdc'/></disk>\
            <disk type='file' device='cdrom'><source file='/m.iso'/><target dev='sda'/></disk></devices></domain>";
        let disk = |name: &str, export: Option<(String, std::path::PathBuf)>, place: &str| SeenDisk {
            name: name.to_owned(),
            export,
            place: place.to_owned(),
        };
        assert_eq!(
            seen(&Definition::parse(text).unwrap()),
            [
                disk("vda", Some(("a/vda".into(), "/s".into())), "the NBD export a/vda"),
                disk("vdb", None, "/b.qcow2"),
                disk("vdc", None, "a rbd network disk"),
            ]
        );
    }
}
