//! A guest with several disks, of which one is a block device, under a hypervisor that runs as a user of its own: all of it
//! goes over and comes back at one moment, and is let go, running and off.

use std::os::unix::fs::PermissionsExt;

use super::appliance::Place;
use crate::support::console::Console;
use crate::support::libvirt::User;
use crate::support::libvirt_guest::{LibvirtGuest, file_disk, qcow2_image, raw_image};
use crate::support::libvirt_site::{LibvirtSite, with_a_guest};
use crate::support::loops::Loop;
use crate::support::skipped;

/// A disk on a block device, or in that file where there is none here.
fn device_or_file(place: &Place) -> (Option<Loop>, String) {
    let raw = raw_image(place, "data.img");
    let Some(device) = Loop::over(&raw) else {
        // All else of the test is looked at.
        skipped("a disk of a guest on a block device", "no block device can be made over a file here");
        return (None, file_disk("vdb", &raw, "raw"));
    };
    let path = device.device.display().to_string();
    let xml = format!(
        "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{path}'/>\
         <target dev='vdb' bus='virtio'/></disk>"
    );
    (Some(device), xml)
}

#[test]
fn two_disks_of_a_guest_of_another_user_go_over_and_back_together() {
    with_a_guest("a guest of two disks of another user", |kernel| {
        let place = Place::new();
        // Another user goes through it.
        std::fs::set_permissions(place.dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let (_device, second_disk) = device_or_file(&place);
        let mut web = LibvirtGuest::new(&place, kernel, "web");
        let first_disk = file_disk("vda", &qcow2_image(&place, "web.qcow2"), "qcow2");
        web.disks = first_disk + &second_disk;
        let console = &web.console;
        let start = |name| LibvirtSite::start_as(&place, name, User::Own, "socket_group = \"kvm\"");
        let (mut first, mut second) = (start("first"), start("second"));
        first.libvirt.define(&web.xml());
        first.libvirt.virsh(&["start", "web"]);
        assert_eq!(console.boots(1), 0);

        first.make_domain();
        first.ask(&["vm", "protect", "d", "web"]);
        let on = |site: &LibvirtSite<'_>| site.libvirt.virsh(&["domblklist", "web"]);
        for disk in ["web/vda", "web/vdb"] {
            assert!(on(&first).contains(disk), "{}", on(&first));
        }
        let runs_as = |site: &LibvirtSite<'_>| {
            use std::os::unix::fs::MetadataExt;
            let pid = std::fs::read_to_string(place.path(&format!("{}/run/qemu/web.pid", site.name))).unwrap();
            std::fs::metadata(format!("/proc/{}", pid.trim())).unwrap().uid()
        };
        assert_ne!(runs_as(&first), 0, "it is no root's");
        first.appliance.until_recoverable("d");
        console.some_more();

        // By force, with the guest in the middle of its writes, from the storage site alone: both disks are of one moment.
        second.import_domain();
        let shipped = console.some_more();
        first.ask(&["domain", "point", "d"]);
        first.power_failure();
        second.take("failover", &[]);
        let found = console.boots(2);
        assert!(found >= shipped, "{found} of {shipped}");
        assert_ne!(runs_as(&second), 0);
        console.some_more();

        // The same the other way, onto disks that followed: what its guest wrote here last is given up.
        first.return_again();
        first.until_mode("DOMAIN_MODE_FENCED");
        first.follow("failback", &["--in-place", "--accept-divergence"]);
        let shipped = console.some_more();
        second.ask(&["domain", "point", "d"]);
        second.power_failure();
        first.task(&["failover", "complete", "d", "--yes", "d"]);
        let found = console.boots(3);
        assert!(found >= shipped, "{found} of {shipped}");
        console.some_more();

        first.appliance.until_recoverable("d");
        console.assert_no_alarm();
        it_is_let_go_running_and_off(&first, console);
        assert_ne!(runs_as(&first), 0);
        console.some_more();
        console.assert_no_alarm();
    });
}

/// The guest is on its exports, and is let go and taken in again, twice.
fn it_is_let_go_running_and_off(first: &LibvirtSite<'_>, console: &Console) {
    let on = |site: &LibvirtSite<'_>| site.libvirt.virsh(&["domblklist", "web"]);
    // It runs, and is let go: onto the images that it had here.
    let let_go = || first.ask(&["vm", "unprotect", "d", "web"])["notes"].to_string();
    let shut_down = || {
        first.libvirt.virsh(&["shutdown", "web"]);
        console.wait("the end", || first.libvirt.state("web") == "shut off");
    };
    let back = let_go();
    assert!(back.contains("web.qcow2 again") && back.matches("again").count() == 2, "{back}");
    console.some_more();
    assert_eq!(console.count("whole"), 3, "it never stopped");
    // One of them is served now: it goes onto another, which its user reaches.
    shut_down();
    first.ask(&["vm", "protect", "d", "web"]);
    assert!(on(first).contains("web/vda") && on(first).contains("web/vdb"), "{}", on(first));
    first.libvirt.virsh(&["start", "web"]);
    assert_eq!(console.boots(4), console.newest("down").unwrap());
    let back = let_go();
    assert!(back.contains("web.qcow2 again") && back.contains("now, a new image"), "{back}");
    assert!(on(first).contains("first-state/images/d/web/vdb"), "{}", on(first));
    console.some_more();
    // And while it is off, onto those that are served.
    shut_down();
    first.ask(&["vm", "protect", "d", "web"]);
    let left = let_go();
    assert!(left.contains("disk vda is at") && !left.contains("closed to others"), "{left}");
    assert_eq!(on(first).matches("first-state/images/d/web").count(), 2, "{}", on(first));
    first.libvirt.virsh(&["start", "web"]);
    assert_eq!(console.boots(5), console.newest("down").unwrap());
}
