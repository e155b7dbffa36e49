//! Parts of the life of a guest under libvirt: a point for which its file system was frozen, a backup that puts it on an overlay
//! and back, and a guest that somebody starts on other disks than those that are served.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::appliance::{Place, Ran, freshet};
use crate::support::console::Console;
use crate::support::libvirt_guest::file_disk;
use crate::support::libvirt_site::LibvirtSite;
use crate::support::real_images::{run, tool};

/// Disk `vda` of VM `web` as it is at a point of domain `d`; `None` is the newest.
fn disk_at(place: &Place, into: &str, point: Option<u64>) -> PathBuf {
    let datastore = place.path(into);
    std::fs::create_dir(&datastore).unwrap();
    let mut command = freshet();
    command.args(["--json", "rehydrate", "--store", &place.store_url(), "--domain", "d", "--log-size", "256MiB"]);
    command.arg("--datastore").arg(&datastore);
    if let Some(point) = point {
        command.args(["--point", &point.to_string()]);
    }
    Ran::of(&mut command).good();
    datastore.join("d/web/vda.raw")
}

fn point_of(cut: &Value) -> u64 {
    cut["point"].as_str().and_then(|n| n.parse().ok()).or(cut["point"].as_u64()).unwrap_or_else(|| panic!("{cut:#}"))
}

/// Whether the ext4 in an image must replay its journal before it is whole.
pub(super) fn must_recover(image: &Path) -> bool {
    let out = tool("dumpe2fs").arg("-h").arg(image).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && said.contains("Filesystem features"), "{said}");
    said.contains("needs_recovery")
}

/// The real agent freezes the guest's ext4: a point that is cut so holds one that needs nothing to be whole.
pub(super) fn a_frozen_file_system_is_clean(site: &LibvirtSite<'_>, place: &Place, console: &Console) {
    let plain = site.ask(&["domain", "point", "d"]);
    assert!(must_recover(&disk_at(place, "plain", Some(point_of(&plain)))), "it is mounted, and written to");
    console.some_more();
    let cut = site.ask(&["domain", "point", "d", "--quiesce"]);
    assert_eq!(cut["quiesced"], true, "{cut:#}");
    // It was thawed: it writes on.
    console.some_more();
    let image = disk_at(place, "frozen", Some(point_of(&cut)));
    assert!(!must_recover(&image));
    assert_whole(&image);
}

/// The ext4 in an image is whole as it is.
pub(super) fn assert_whole(image: &Path) {
    let checked = tool("e2fsck").arg("-fn").arg(image).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// Gives libvirt the definition of `web` with one word in the place of another.
fn define_with(site: &LibvirtSite<'_>, word: &str, other: &str) {
    let xml = site.libvirt.virsh(&["dumpxml", "--inactive", "web"]);
    assert!(xml.contains(word), "no {word} in {xml}");
    site.libvirt.define(&xml.replacen(word, other, 1));
}

/// What its operator changes of a VM is known at the other site; what could not go there is a problem, and does not.
pub(super) fn changes_of_its_definition_travel(first: &LibvirtSite<'_>, second: &LibvirtSite<'_>) {
    let memory = |site: &LibvirtSite<'_>| site.ask(&["domain", "show", "d"])["vms"][0]["memory_bytes"].clone();
    let before = memory(second);
    define_with(first, "<memory unit='KiB'>196608<", "<memory unit='KiB'>229376<");
    second.appliance.until("d", "another size of its memory", |shown| {
        let now = &shown["vms"][0]["memory_bytes"];
        *now != before && now.to_string().contains(&(229_376_u64 << 10).to_string())
    });
    let events = first.ask(&["event", "list", "--subject", "d"]).to_string();
    assert!(events.contains("definition changed") && events.contains("memory 229376 KiB (was 196608 KiB)"), "{events}");
    let shared = "<filesystem type='mount'><source dir='/tmp'/><target dir='x'/></filesystem></devices>";
    let is_told = |shown: &Value| shown["problems"].to_string().contains("a directory of its host is shared with it");
    define_with(first, "</devices>", shared);
    first.appliance.until("d", "a problem", is_told);
    let xml = first.libvirt.virsh(&["dumpxml", "--inactive", "web"]);
    let (head, rest) = xml.split_once("<filesystem").unwrap();
    first.libvirt.define(&format!("{head}{}", rest.split_once("</filesystem>").unwrap().1));
    first.appliance.until("d", "no problem", |shown| !is_told(shown));
}

/// The definition of `web` with its disk in a file that is qcow2.
fn on_file(site: &LibvirtSite<'_>, image: &Path) -> String {
    let xml = site.libvirt.virsh(&["dumpxml", "--inactive", "web"]);
    let (before, rest) = xml.split_once("<disk type='network'").unwrap_or_else(|| panic!("{xml}"));
    let (_, after) = rest.split_once("</disk>").unwrap();
    format!("{before}{}{after}", file_disk("vda", image, "qcow2"))
}

/// What a program for backups does every night: an overlay over the export of a guest that runs, the disk below it copied,
/// and the overlay merged into it again. What it writes meanwhile is nobody's until then, and is told so; nothing has to be
/// done for it to be recoverable again.
pub(super) fn a_backup_puts_it_on_an_overlay_and_back(site: &LibvirtSite<'_>, place: &Place, console: &Console) {
    let overlay = place.path("overlay.qcow2");
    let boots = console.count("whole");
    let spec = format!("vda,snapshot=external,file={}", overlay.display());
    site.libvirt.virsh(&["snapshot-create-as", "web", "--disk-only", "--atomic", "--no-metadata", "--diskspec", &spec]);
    let is_astray = |shown: &Value| {
        let told = shown["problems"].to_string();
        shown["vms"][0]["status"] == "PROTECTION_STATUS_ERROR" && told.contains(&format!("vda ({})", overlay.display()))
    };
    site.appliance.until("d", "a guest on an overlay", is_astray);
    let meanwhile = console.some_more();
    let point = point_of(&site.ask(&["domain", "point", "d"]));
    assert_eq!(vms_at(place, point), 0, "no point covers what is in the overlay");

    site.libvirt.virsh(&["blockcommit", "web", "vda", "--active", "--pivot", "--wait"]);
    let shown = site.appliance.until_recoverable("d");
    assert_eq!(shown["problems"].as_array().map_or(0, Vec::len), 0, "{shown:#}");
    console.some_more();
    let cut = site.ask(&["domain", "point", "d", "--quiesce"]);
    assert_eq!(cut["quiesced"], true, "{cut:#}");
    let found = rows_in(&disk_at(place, "committed", Some(point_of(&cut))));
    assert!(found >= meanwhile, "{found} of {meanwhile}, which it wrote into the overlay");
    console.some_more();
    console.assert_no_alarm();
    assert_eq!(console.count("whole"), boots, "it never stopped");
}

/// How many lines the ext4 in an image has, none of them missing.
fn rows_in(image: &Path) -> u64 {
    let out = tool("debugfs").args(["-R", "cat /rows"]).arg(image).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let whole = text.lines().enumerate().all(|(n, row)| row == format!("row {}", n + 1));
    assert!(whole, "a row is missing: {text}");
    text.lines().count() as u64
}

/// How many VMs a point of domain `d` covers.
fn vms_at(place: &Place, point: u64) -> u64 {
    let mut points = freshet();
    points.args(["--json", "points", "--store", &place.store_url(), "--domain", "d"]);
    let points = Ran::of(&mut points).good();
    let all = points["points"].as_array().unwrap();
    let found = all.iter().find(|one| one["point"].as_u64() == Some(point));
    found.and_then(|one| one["vms"].as_u64()).unwrap_or_else(|| panic!("no point {point}: {points:#}"))
}

/// A guest that is protected is started on the image that it had before, and the appliance is restarted meanwhile: it is not
/// recoverable until it is back on its export, and what its operator copied onto the image then is part of the domain. It has
/// booted twice before.
pub(super) fn it_strays_and_comes_back(site: &mut LibvirtSite<'_>, place: &Place, console: &Console) {
    let shut_down = |site: &LibvirtSite<'_>| {
        site.libvirt.virsh(&["shutdown", "web"]);
        console.wait("the end", || site.libvirt.state("web") == "shut off");
    };
    let shown = site.ask(&["domain", "show", "d"]);
    let image = PathBuf::from(shown["vms"][0]["disks"][0]["path"].as_str().unwrap());
    let old = place.path("web.qcow2");
    let is_astray = |shown: &Value| {
        let told = shown["problems"].to_string();
        shown["vms"][0]["status"] == "PROTECTION_STATUS_ERROR"
            && shown["status"] == "PROTECTION_STATUS_ERROR"
            && told.contains(&format!("vda ({})", old.display()))
    };
    shut_down(site);
    site.libvirt.define(&on_file(site, &old));
    site.libvirt.virsh(&["start", "web"]);
    console.boots(3);
    let shown = site.appliance.until("d", "a guest that is not protected", is_astray);
    assert!(shown["problems"].to_string().contains("captured by nobody"), "{shown:#}");
    console.some_more();
    // No point says that it equals what runs there.
    site.ask(&["domain", "point", "d"]);
    let mut points = freshet();
    points.args(["--json", "points", "--store", &place.store_url(), "--domain", "d"]);
    let points = Ran::of(&mut points).good();
    let newest = points["points"].as_array().unwrap().iter().max_by_key(|point| point["point"].as_u64()).unwrap();
    assert_eq!(newest["vms"], 0, "{newest:#}");

    // A restart knows of it before it has looked, and after.
    site.serve_again();
    site.appliance.until("d", "the same after a restart", is_astray);
    let refused = site.appliance.ask(&["vm", "protect", "d", "web"]).bad(4);
    assert!(refused.contains("shut it down and protect it again"), "{refused}");
    shut_down(site);
    let shown =
        site.appliance.until("d", "one that is off", |shown| shown["problems"].to_string().contains("would again"));
    assert!(is_astray(&shown), "{shown:#}");
    // What it wrote there is to be kept: it is written onto the image, without anybody who captures it.
    let copy = place.path("copy.raw");
    run(tool("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]).arg(&old).arg(&copy));
    let mut served = std::fs::File::options().write(true).open(&image).unwrap();
    std::io::copy(&mut std::fs::File::open(&copy).unwrap(), &mut served).unwrap();
    site.ask(&["vm", "protect", "d", "web"]);
    assert!(site.libvirt.virsh(&["domblklist", "web"]).contains("web/vda"));
    let shown = site.appliance.until_recoverable("d");
    assert_eq!(shown["problems"].as_array().map_or(0, Vec::len), 0, "{shown:#}");
    site.ask(&["domain", "point", "d"]);
    let copy = disk_at(place, "after", None);
    assert!(std::fs::read(copy).unwrap() == std::fs::read(&image).unwrap(), "the domain has what it wrote there");
    let events = site.ask(&["event", "list", "--subject", "d"]).to_string();
    assert!(["guest unprotected", "guest protected again"].iter().all(|event| events.contains(event)), "{events}");
    site.libvirt.virsh(&["start", "web"]);
    assert_eq!(console.boots(4), console.newest("down").unwrap());
    console.some_more();
    console.assert_no_alarm();
}
