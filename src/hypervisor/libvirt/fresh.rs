//! The definition that travels with a VM's disks, made anew of the one that libvirt has now.
//!
//! ```text
//! taken here:           what libvirt has, with the places that its disks had before they were exports
//! made here by Freshet: the one that travels, with the resources and cards that were changed since it was made
//! ```
//!
//! Pure. The second kind was made to fit this site, and what does not fit elsewhere must not travel. Invariant: a definition
//! that says the same is left as it is, however it is written.

use super::definition::{Definition, DiskPart};
use super::xml::{Element, Node};
use crate::error::Result;
use crate::format::VmShape;
use crate::hypervisor::{Refresh, Refreshed};

/// What a VM has of processors and memory.
const RESOURCES: [&str; 5] = ["vcpu", "vcpus", "memory", "currentMemory", "maxMemory"];
/// What speaks of where a disk is, and how that is used.
const PLACE: [&str; 6] = ["driver", "source", "backingStore", "mirror", "auth", "encryption"];

/// What became of `kept`, by what is there `now` and what was there `before`.
pub(super) fn refresh(kept: &str, before: Option<&str>, now: &str) -> Result<Refresh> {
    let (old, now) = (Definition::parse(kept)?, Definition::parse(now)?);
    if now.owner() == old.owner() {
        return Ok(Refresh { new: other(&old, taken(&old, now.root.clone()))?, remember: false });
    }
    let Some(before) = before.map(Definition::parse).transpose()? else {
        return Ok(Refresh { new: None, remember: true });
    };
    let remember = canonical(&before.root) != canonical(&now.root);
    Ok(Refresh { new: other(&old, carried(&old, &before, &now))?, remember })
}

/// The definition `new`, where it says something else than `old`.
fn other(old: &Definition, new: Element) -> Result<Option<Refreshed>> {
    if canonical(&old.root) == canonical(&new) {
        return Ok(None);
    }
    let definition = new.write()?;
    let shape = Definition::parse(&definition)?.shape()?;
    let changes = changes(&old.shape()?, &shape);
    Ok(Some(Refreshed { definition, shape, changes }))
}

/// What libvirt has, with the disks that `old` knows where they were in it.
fn taken(old: &Definition, mut root: Element) -> Element {
    let Some(devices) = root.child_mut("devices") else { return root };
    let had: Vec<&Element> = old.root.child("devices").into_iter().flat_map(|devices| devices.all("disk")).collect();
    for disk in devices.elements_mut().filter(|element| element.name == "disk") {
        let part = DiskPart::of(disk);
        let before = had.iter().find(|had| DiskPart::of(had).target == part.target);
        // Where a disk is now, on an export or where somebody has put it for a while, is for this site alone.
        let Some(before) = before.filter(|_| part.is_disk()) else { continue };
        disk.remove_all(&PLACE);
        disk.set("type", before.attr("type"));
        before.elements().filter(|e| PLACE.contains(&e.name.as_str())).for_each(|e| disk.push(e.clone()));
    }
    root
}

/// `old` with what of resources and cards is other `now` than `before`.
fn carried(old: &Definition, before: &Definition, now: &Definition) -> Element {
    let mut root = old.root.clone();
    for name in RESOURCES {
        let (was, is) = (before.root.child(name), now.root.child(name));
        if was.map(canonical) != is.map(canonical) {
            root.remove_all(&[name]);
            is.into_iter().for_each(|is| root.push(is.clone()));
        }
    }
    let (had, has) = (before.macs(), now.macs());
    let mac = |card: &Element| card.child("mac").map_or(String::new(), |mac| mac.attr("address").to_ascii_lowercase());
    let devices = root.child_or_new("devices");
    devices.remove(|e| e.name == "interface" && had.contains(&mac(e)) && !has.contains(&mac(e)));
    let cards = now.root.child("devices").into_iter().flat_map(|devices| devices.all("interface"));
    for card in cards.filter(|card| !had.contains(&mac(card)) && !mac(card).is_empty()) {
        let mut card = card.clone();
        // Where it is plugged, is for whoever has the other devices to say.
        card.remove_all(&["address", "alias", "target"]);
        devices.push(card);
    }
    root
}

/// The same text for all ways to write the same: white space, comments, and the order of what has different names.
fn canonical(element: &Element) -> String {
    let mut out = format!("<{}", element.name);
    let mut attributes = element.attributes().to_vec();
    attributes.sort();
    attributes.iter().for_each(|(name, value)| out.push_str(&format!(" {name}={value:?}")));
    let mut children: Vec<&Element> = element.elements().collect();
    children.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = String::new();
    for node in &element.nodes {
        if let Node::Text(part) | Node::CData(part) = node {
            text.push_str(part);
        }
    }
    out.push_str(&format!(" {:?}>", text.trim()));
    children.into_iter().for_each(|child| out.push_str(&canonical(child)));
    out.push_str("</>");
    out
}

/// What is other, in words.
fn changes(old: &VmShape, new: &VmShape) -> String {
    let mut out = Vec::new();
    let mut tell = |what: &str, old: String, new: String| {
        if old != new {
            out.push(format!("{what} {new} (was {old})"));
        }
    };
    tell("CPUs", old.cpus.to_string(), new.cpus.to_string());
    tell("memory", format!("{} KiB", old.memory_bytes >> 10), format!("{} KiB", new.memory_bytes >> 10));
    tell("firmware", old.firmware.clone(), new.firmware.clone());
    let cards = |shape: &VmShape| {
        let card = |nic: &crate::format::Nic| format!("{} on {:?}", nic.mac, nic.network);
        format!("[{}]", shape.nics.iter().map(card).collect::<Vec<_>>().join(", "))
    };
    tell("network cards", cards(old), cards(new));
    if out.is_empty() { "other parts of it".to_owned() } else { out.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(memory: u32, metadata: &str, disk: &str, more: &str) -> String {
        format!(
            "<domain type='kvm'>\n <name>a</name>{metadata}<memory unit='KiB'>{memory}</memory><vcpu>1</vcpu>\
             <devices>{disk}{more}</devices></domain>"
        )
    }

    const FILE: &str = "<disk type='file' device='disk'><driver name='qemu' type='qcow2' io='native'/>\
        <source file='/a.qcow2'/><target dev='vda' bus='virtio'/></disk>";
    const EXPORT: &str = "<disk device='disk' type='network'><driver name='qemu' type='raw' cache='none'/><source \
        protocol='nbd' name='a/vda'><host transport='unix' socket='/s'/></source><target bus='virtio' dev='vda'/></disk>";
    const CARD: &str =
        "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='lan'/></interface>";
    const OTHER_CARD: &str = "<interface type='network'><mac address='52:54:00:00:00:02'/><source network='dmz'/>\
        <address type='pci' slot='0x09'/></interface>";
    const MADE: &str = "<metadata><freshet:vm xmlns:freshet='urn:freshet:libvirt:1' domain='d'/></metadata>";

    #[test]
    fn what_was_taken_here_is_taken_anew_with_the_places_of_its_disks() {
        let kept = vm(1024, "", FILE, CARD);
        let same = refresh(&kept, None, &vm(1024, "", EXPORT, CARD)).unwrap();
        assert_eq!(same, Refresh::default(), "on its export it is the same VM");
        let elsewhere = FILE.replace("/a.qcow2", "/served.img").replace("qcow2", "raw");
        assert_eq!(refresh(&kept, None, &vm(1024, "", &elsewhere, CARD)).unwrap(), same);
        let new = refresh(&kept, None, &vm(2048, "", EXPORT, &format!("{CARD}{OTHER_CARD}"))).unwrap().new.unwrap();
        assert!(new.definition.contains("/a.qcow2") && new.definition.contains("io=\"native\""), "{new:?}");
        assert!(!new.definition.contains("nbd") && !new.definition.contains("cache"), "{new:?}");
        assert_eq!((new.shape.memory_bytes, new.shape.nics.len()), (2048 << 10, 2));
        assert!(
            new.changes.contains("memory 2048 KiB (was 1024 KiB)") && new.changes.contains("dmz"),
            "{}",
            new.changes
        );
        assert_eq!(
            refresh(&new.definition, None, &vm(2048, "", EXPORT, &format!("{CARD}{OTHER_CARD}"))).unwrap(),
            same
        );
        // A bus is no place, and the order of what has one name counts.
        let bus = refresh(&kept, None, &vm(1024, "", &EXPORT.replace("virtio", "sata"), CARD)).unwrap().new.unwrap();
        assert!(bus.definition.contains("sata") && bus.changes == "other parts of it", "{bus:?}");
        let swapped = vm(1024, "", FILE, &format!("{OTHER_CARD}{CARD}"));
        assert!(refresh(&swapped, None, &vm(1024, "", EXPORT, &format!("{CARD}{OTHER_CARD}"))).unwrap().new.is_some());
    }

    #[test]
    fn of_what_was_made_here_only_what_was_changed_since_travels() {
        let kept = vm(1024, "", FILE, CARD);
        let here = CARD.replace("lan", "there");
        // Made with other memory and another network.
        let made = vm(4096, MADE, EXPORT, &here);
        let first = refresh(&kept, None, &made).unwrap();
        assert_eq!(first, Refresh { new: None, remember: true }, "nobody knows yet what was changed");
        assert_eq!(refresh(&kept, Some(&made), &made).unwrap(), Refresh::default());
        let changed = vm(8192, MADE, EXPORT, &format!("{here}{OTHER_CARD}"));
        let Refresh { new, remember } = refresh(&kept, Some(&made), &changed).unwrap();
        let new = new.unwrap();
        assert!(remember && new.definition.contains("8192") && new.definition.contains("network=\"lan\""), "{new:?}");
        assert_eq!(new.shape.nics.iter().map(|nic| nic.network.as_str()).collect::<Vec<_>>(), ["lan", "dmz"]);
        assert!(!new.definition.contains("slot") && !new.definition.contains("freshet:vm"), "{new:?}");
        let less = refresh(&new.definition, Some(&changed), &vm(8192, MADE, EXPORT, OTHER_CARD)).unwrap().new.unwrap();
        assert_eq!(less.shape.nics.iter().map(|nic| nic.network.as_str()).collect::<Vec<_>>(), ["dmz"]);
        // What else was changed here stays here.
        let other = refresh(&kept, Some(&made), &made.replace("type='kvm'", "type='qemu'")).unwrap();
        assert_eq!(other, Refresh { new: None, remember: true });
    }

    #[test]
    fn the_same_is_the_same_however_it_is_written() {
        let canonical = |text: &str| canonical(&Element::parse(text).unwrap());
        assert_eq!(
            canonical("<a x='1' y='2'><b/> <c>t</c></a>"),
            canonical("<a y='2' x='1'><!-- n --><c> t </c><b></b></a>")
        );
        assert_ne!(canonical("<a><b n='1'/><b n='2'/></a>"), canonical("<a><b n='2'/><b n='1'/></a>"));
        assert_ne!(canonical("<a>t</a>"), canonical("<a><t/></a>"));
    }
}
