//! What cannot be taken in from libvirt, and what would not come up under it at the other site: all of it is said before
//! anything is done, with what to change, and nothing is half done.

use super::appliance::{MIB, Place};
use crate::support::libvirt::missing;
use crate::support::libvirt_guest::file_disk;
use crate::support::libvirt_site::LibvirtSite;
use crate::support::real_images::{run, tool};
use crate::support::skipped;

const UUID: &str = "f533f2eb-2309-4183-9f90-9761e03d3c25";
const MAC: &str = "52:54:00:11:22:33";
/// One with a feature that software emulation lacks.
const CPU: &str = "<cpu mode='custom' match='exact' check='partial'><model>qemu64</model>\
                   <feature policy='require' name='avx512f'/></cpu>";

/// A guest that nothing boots in: it stands in its firmware.
fn vm(name: &str, uuid: Option<&str>, devices: &str) -> String {
    let uuid = uuid.map(|uuid| format!("<uuid>{uuid}</uuid>")).unwrap_or_default();
    format!(
        "<domain type='qemu'><name>{name}</name>{uuid}<memory unit='MiB'>64</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64'>hvm</type></os><features><acpi/></features><devices>{devices}</devices></domain>"
    )
}

fn card(mac: &str) -> String {
    format!("<interface type='user'><mac address='{mac}'/></interface>")
}

#[test]
fn what_cannot_follow_its_disks_is_refused_and_nothing_of_it_is_protected() {
    if let Some(why) = missing() {
        return skipped("VMs that cannot be taken in from libvirt", &why);
    }
    let place = Place::new();
    let site = LibvirtSite::start(&place, "first");
    site.make_domain();
    let image = |name: &str| place.image(name);
    let shared = file_disk("vda", &image("shared"), "raw").replace("</disk>", "<shareable/></disk>");
    let volume = "<disk type='volume' device='disk'><driver name='qemu' type='raw'/><source pool='nowhere' volume='v'/>\
                  <target dev='vda' bus='virtio'/></disk>";
    let usb = "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>";
    let passed = file_disk("vda", &image("passed"), "raw") + usb;
    for (name, devices, why) in [
        ("shared", shared.as_str(), "disk vda is shared with other VMs"),
        ("none", "", "it has no disk"),
        ("pool", volume, "disk vda of VM pool"),
        ("passed", &passed, "a device of its host is passed through (usb)"),
    ] {
        site.libvirt.define(&vm(name, None, devices));
        let ran = site.appliance.ask(&["vm", "protect", "d", name]);
        let told = ran.json.to_string();
        assert!(ran.code != Some(0) && told.contains(why) && told.contains(name), "{name}: {ran:?}");
    }
    let pool = site.appliance.ask(&["vm", "protect", "d", "pool"]).json.to_string();
    assert!(pool.contains("no storage pool with matching name 'nowhere'"), "{pool}");

    // One that runs, with a disk that its next start does not have.
    let disk = file_disk("vda", &image("plug"), "raw");
    site.libvirt.define(&vm("plug", None, &disk));
    site.libvirt.virsh(&["start", "plug"]);
    let more = image("plugged");
    let plug = ["attach-disk", "plug", more.to_str().unwrap(), "vdb", "--live", "--subdriver", "raw"];
    site.libvirt.virsh(&plug);
    let told = site.appliance.ask(&["vm", "protect", "d", "plug"]).bad(4);
    assert!(told.contains("was plugged or unplugged for as long as it runs"), "{told}");
    assert!(!site.libvirt.virsh(&["domblklist", "plug"]).contains("plug/vd"));

    // All of them are told, with what each has and why it would not be taken.
    let listed = site.ask(&["vm", "list"]);
    let of = |name: &str| listed["guests"].as_array().unwrap().iter().find(|of| of["name"] == name).unwrap().clone();
    assert!(of("passed")["not_taken"].to_string().contains("passed through"), "{listed:#}");
    let plug = of("plug");
    assert!(plug["running"] == true && plug["not_taken"].to_string().contains("plugged"), "{plug:#}");

    let shown = site.ask(&["domain", "show", "d"]);
    assert!(shown["vms"].as_array().is_none_or(Vec::is_empty), "{shown:#}");
    assert!(!place.path("first-state/images").exists(), "no image was made for them");

    // A medium in a drive is no reason, and is told.
    let drive = drive(&image("install.iso"));
    site.libvirt.define(&vm("desk", None, &(file_disk("vda", &image("desk"), "raw") + &drive)));
    let desk = site.ask(&["vm", "list"])["guests"].as_array().unwrap().iter().find(|of| of["name"] == "desk").cloned();
    let desk = desk.unwrap();
    assert!(desk["not_taken"].as_str().is_none_or(str::is_empty), "{desk:#}");
    assert_eq!(
        (&desk["cpus"], &desk["disks"][0]["name"], &desk["firmware"]),
        (&1.into(), &"vda".into(), &"bios".into())
    );
    assert!(desk["left_behind"].to_string().contains("cdrom sda"), "{desk:#}");
    site.ask(&["vm", "protect", "d", "desk"]);
    let listed = site.ask(&["vm", "list", "--most", "1000"]).to_string();
    assert!(listed.contains(r#""domains":["d"]"#), "{listed}");
    let events = site.ask(&["event", "list", "--subject", "d"]).to_string();
    assert!(events.contains("VM desk: the medium in cdrom sda stays here"), "{events}");
    a_volume_of_a_pool_is_taken_in(&site, &place);
    site.appliance.until_recoverable("d");
}

/// A drive with a medium in it.
fn drive(iso: &std::path::Path) -> String {
    format!(
        "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='sda' bus='sata'/><readonly/></disk>",
        iso.display()
    )
}

/// A disk that is named by a pool and a volume in it, as other programs that manage libvirt do.
fn a_volume_of_a_pool_is_taken_in(site: &LibvirtSite<'_>, place: &Place) {
    let (pool, raw) = (place.path("pool"), place.image("volume.raw"));
    std::fs::create_dir(&pool).unwrap();
    run(tool("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(pool.join("volume")));
    site.libvirt.virsh(&["pool-create-as", "fast", "dir", "--target", pool.to_str().unwrap()]);
    let volume = "<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='fast' volume='volume'/>\
                  <target dev='vda' bus='virtio'/></disk>";
    site.libvirt.define(&vm("pooled", None, volume));
    site.ask(&["vm", "protect", "d", "pooled"]);
    let on = site.libvirt.virsh(&["domblklist", "--inactive", "pooled"]);
    assert!(on.contains("pooled/vda"), "{on}");
    let shown = site.ask(&["domain", "show", "d"]);
    let vms = shown["vms"].as_array().unwrap();
    let served = &vms.iter().find(|vm| vm["name"] == "pooled").unwrap()["disks"][0]["path"];
    let served = std::fs::read(served.as_str().unwrap()).unwrap();
    assert!(served == std::fs::read(&raw).unwrap(), "what is served is what the volume holds");
}

#[test]
fn what_would_not_come_up_at_the_other_site_is_known_by_its_plan() {
    if let Some(why) = missing() {
        return skipped("plans for VMs that libvirt would not take", &why);
    }
    let place = Place::new();
    let (first, second) = (LibvirtSite::start(&place, "first"), LibvirtSite::start(&place, "second"));
    first.make_domain();
    let drive = drive(&place.image("install.iso"));
    let devices = file_disk("vda", &place.image("web.img"), "raw") + &drive + &card(MAC);
    // It would be defined at the other site, and not start.
    let web = vm("web", Some(UUID), &devices).replace("<features>", &format!("{CPU}<features>"));
    first.libvirt.define(&web);
    first.ask(&["vm", "protect", "d", "web"]);
    first.appliance.until_recoverable("d");
    second.import_domain();
    let lan = place.path("lan.xml");
    std::fs::write(&lan, "<network><name>lan</name><bridge name='freshet-lan'/></network>").unwrap();
    second.libvirt.virsh(&["net-define", lan.to_str().unwrap()]);
    let datastore = second.datastore();
    let plan = |more: &[&str]| {
        let start = ["failover", "start", "d", "--planned", "--datastore", &datastore, "--log-size", "256MiB"];
        second.appliance.ask(&[&start[..], more, &["--yes", "d"]].concat())
    };
    let refused = |more: &[&str], why: &str| {
        let ran = plan(more);
        let told = ran.json.to_string();
        assert!(ran.code != Some(0) && told.contains(why), "{why}: {ran:?}");
    };
    refused(&["--default-network", "nowhere"], "this site has no network \\\"nowhere\\\"");
    refused(&["--default-network", "lan"], "network lan does not run");
    refused(&["--placement", "machine=amiga"], "placement.machine is amiga");
    for (name, uuid, mac, why) in [
        ("other", None, MAC, "is one of VM other here"),
        ("other", Some(UUID), "52:54:00:99:99:99", "is that of VM other here"),
        ("web", None, "52:54:00:99:99:99", "the hypervisor has a VM web that is not of this domain"),
    ] {
        second.libvirt.define(&vm(name, uuid, &card(mac)));
        refused(&[], why);
        if uuid.is_some() {
            let shown = plan(&["--placement", "uuid=renew", "--dry-run"]);
            assert_eq!(shown.code, Some(0), "another identity is drawn where that is said: {shown:?}");
        }
        second.libvirt.virsh(&["undefine", name]);
    }
    assert!(second.ask(&["task", "list", "--domain", "d"])["tasks"].as_array().is_none_or(Vec::is_empty));
    assert_eq!(first.ask(&["domain", "show", "d"])["owner_site"], "first");

    // Without all that it comes up; what it is otherwise here is told before, and by the task.
    let otherwise = "cdrom sda is empty here";
    let shown = plan(&["--dry-run"]).good().to_string();
    assert!(shown.contains(otherwise), "{shown}");
    assert!(shown.contains("required features: avx512f): it gets host-model"), "{shown}");
    let ran = plan(&[]).good();
    let id = ran["task"]["id"].as_str().or(ran["id"].as_str()).unwrap().to_owned();
    let told = second.ended(&id, "TASK_STATE_DONE").to_string();
    assert!(told.contains(&format!("VM web: {otherwise}")), "{told}");
    assert_eq!((first.libvirt.state("web").as_str(), second.libvirt.state("web").as_str()), ("shut off", "running"));
    let xml = second.libvirt.virsh(&["dumpxml", "web"]);
    assert!(xml.contains(UUID) && xml.contains(MAC), "{xml}");
    let next = second.libvirt.virsh(&["dumpxml", "--inactive", "web"]);
    assert!(next.contains("<cpu mode='host-model'") && !next.contains("avx512f"), "{next}");
    let image = std::fs::metadata(place.path("web.img")).unwrap();
    assert_eq!(image.len(), 4 * MIB, "what was left behind is as it was");
}
