//! A running guest of two disks on its way onto its exports and back, under real libvirt: how far it is told to be, and
//! kills while it is copied and as its disks change over. Changing over is held by a `virsh` of the test's own.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use freshet::hypervisor::Hypervisor;
use freshet::ids::Name;
use serde_json::Value;

use super::appliance::{Place, Ran, freshet};
use super::libvirt::{SCRIPT, definition};
use crate::support::console::Console;
use crate::support::held_virsh::HeldVirsh;
use crate::support::libvirt_guest::{file_disk, qcow2_image};
use crate::support::libvirt_site::{LibvirtSite, with_a_guest};
use crate::support::mounts::with_own_mounts;

/// Bytes of data of the second disk, by which its copy takes some seconds where it is slow.
const DATA: usize = 24 << 20;

/// The guest and its site.
struct Rig<'p> {
    site: LibvirtSite<'p>,
    console: Console,
    virsh: HeldVirsh,
}

/// A domain as it is shown.
fn shown(site: &LibvirtSite<'_>) -> Value {
    site.ask(&["domain", "show", "d"])
}

fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).or(value.as_u64()).unwrap_or(0)
}

fn phase(shown: &Value) -> &str {
    shown["vms"][0]["move"]["phase"].as_str().unwrap_or("")
}

/// The phases of both disks.
fn disks(shown: &Value) -> [&str; 2] {
    [0, 1].map(|n| shown["vms"][0]["move"]["disks"][n]["phase"].as_str().unwrap_or(""))
}

impl Rig<'_> {
    /// Runs a test with a guest that writes, and a domain that it is to join.
    fn with(what: &str, test: impl FnOnce(&mut Rig<'_>) + Send) {
        with_own_mounts(what, || {
            with_a_guest(what, |kernel| {
                let place = Place::new();
                kernel.pack_with_button(SCRIPT, &place.path("initramfs"));
                let (image, second) = (qcow2_image(&place, "web.qcow2"), place.path("second.raw"));
                std::fs::write(&second, vec![7; DATA]).unwrap();
                let virsh = HeldVirsh::install(&place.path("virsh"));
                let site = LibvirtSite::start(&place, "first");
                let disks = file_disk("vda", &image, "qcow2") + &file_disk("vdb", &second, "raw");
                site.libvirt.define(&definition(&place, kernel, "web", &disks));
                site.libvirt.virsh(&["start", "web"]);
                let console = Console(place.path("console"));
                console.boots(1);
                site.make_domain();
                test(&mut Rig { site, console, virsh });
            });
        });
    }

    /// A command about the VM, side by side.
    fn begin(&self, verb: &'static str) -> JoinHandle<Ran> {
        let socket: PathBuf = self.site.appliance.socket.clone();
        std::thread::spawn(move || Ran::of(freshet().args(["--json", "vm", verb, "d", "web", "--socket"]).arg(socket)))
    }

    fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        self.site.appliance.until("d", what, is)
    }

    fn until_phase(&self, word: &str) -> Value {
        let word = format!("MOVE_PHASE_{word}");
        self.until(&word, |shown| phase(shown) == word)
    }

    /// Waits until there is no copy slower than the disk any more.
    fn hurry(&self) {
        for disk in ["vda", "vdb"] {
            // It has none, or none any more.
            let _ = self.site.libvirt.try_virsh(&["blockjob", "web", disk, "--bandwidth", "1000"]);
        }
    }

    fn kill(&mut self) {
        self.site.crash();
    }

    /// Whether the guest uses this of its disks, now and at its next start.
    fn uses(&self, what: &str) -> bool {
        let of = |which: &[&str]| self.site.libvirt.virsh(&[&["domblklist", "web"], which].concat()).contains(what);
        of(&[]) && of(&["--inactive"])
    }

    /// The guest has never stopped; after its end it finds all it wrote.
    fn ends_with_every_line(&self, boots: usize) {
        self.console.some_more();
        self.console.assert_no_alarm();
        self.site.libvirt.virsh(&["shutdown", "web"]);
        self.console.wait("the end", || self.site.libvirt.state("web") == "shut off");
        self.site.libvirt.virsh(&["start", "web"]);
        assert_eq!(self.console.boots(boots + 1), self.console.newest("down").unwrap());
    }
}

fn its_button_is_pressed_where_its_agent_does_nothing(rig: &Rig<'_>) {
    rig.virsh.have_an_agent_that_does_nothing();
    let driver = rig.site.libvirt.driver(&rig.site.place.path("seeds"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let web = Name::new("web").unwrap();
    // Perhaps it takes longer than that from its button on.
    runtime.block_on(driver.shutdown(&web, Duration::from_secs(6))).unwrap();
    rig.console.wait("the end", || rig.site.libvirt.state("web") == "shut off");
}

/// A guest that is started by hand while no event is heard has clients that connect again all the same.
fn started_unheard_of_it_connects_again(rig: &mut Rig<'_>) {
    rig.virsh.deaf(true);
    // Who heard of events until now does so no more.
    rig.site.libvirt.stop();
    rig.site.libvirt.start_again();
    its_button_is_pressed_where_its_agent_does_nothing(rig);
    rig.site.libvirt.virsh(&["start", "web"]);
    assert_eq!(rig.console.boots(2), rig.console.newest("down").unwrap());
    let nodes = r#"{"execute": "query-named-block-nodes", "arguments": {"flat": true}}"#;
    rig.console.wait("clients that connect again", || {
        // From version 9.5 on libvirt tells them so itself.
        rig.site.libvirt.virsh(&["dumpxml", "web"]).contains("<reconnect")
            || rig.site.libvirt.virsh(&["qemu-monitor-command", "web", nodes]).matches("\"freshet-").count() >= 2
    });
    rig.virsh.deaf(false);
}

#[test]
fn how_far_a_guest_is_on_its_way_onto_its_exports_and_back_is_told_of_each_disk() {
    Rig::with("the way of a running guest's disks", |rig| {
        rig.virsh.slow(true);
        rig.virsh.hold("vdb");
        let asking = rig.begin("protect");
        let measured = |shown: &Value| {
            let moving = &shown["vms"][0]["move"];
            phase(shown) == "MOVE_PHASE_COPYING"
                && number(&moving["done_bytes"]) > 0
                && number(&moving["rate_bytes"]) > 0
                && number(&moving["disks"][1]["eta_s"]) > 0
        };
        let first = rig.until("a measured copy", measured);
        let moving = &first["vms"][0]["move"];
        assert_eq!((disks(&first), moving["back"].as_bool()), (["MOVE_PHASE_COPYING"; 2], Some(false)), "{first:#}");
        assert_eq!(moving["disks"][1]["name"], "vdb");
        let (done, total) = (number(&moving["disks"][1]["done_bytes"]), number(&moving["disks"][1]["total_bytes"]));
        assert!(done < total && total as usize >= DATA, "{done} of {total}");
        assert_ne!(first["status"], "PROTECTION_STATUS_RECOVERABLE");
        let told =
            freshet().args(["domain", "show", "d", "--socket"]).arg(&rig.site.appliance.socket).output().unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        assert!(told.contains("onto its exports, copying: ") && told.contains("vdb (copying)"), "{told}");
        rig.until("it getting on", |shown| {
            number(&shown["vms"][0]["move"]["done_bytes"]) > number(&moving["done_bytes"])
        });

        rig.hurry();
        rig.virsh.slow(false);
        rig.until_phase("PIVOTING");
        rig.until("a disk of two", |shown| disks(shown) == ["MOVE_PHASE_MOVED", "MOVE_PHASE_PIVOTING"]);
        rig.virsh.release("vdb");
        let protected = asking.join().unwrap().good();
        assert!(protected["move"].is_null() && rig.uses("web/vda") && rig.uses("web/vdb"), "{protected:#}");
        assert!(rig.site.appliance.until_recoverable("d")["vms"][0]["move"].is_null());
        started_unheard_of_it_connects_again(rig);

        rig.virsh.slow(true);
        let asking = rig.begin("unprotect");
        let back = rig.until_phase("COPYING");
        assert_eq!(back["vms"][0]["move"]["back"], true);
        // It is still on its exports.
        assert_eq!(back["status"], "PROTECTION_STATUS_RECOVERABLE", "{back:#}");
        rig.hurry();
        asking.join().unwrap().good();
        // What the store still has of it may be shown, and nothing is served.
        assert!(shown(&rig.site)["addresses"].as_array().is_none_or(Vec::is_empty) && rig.uses("second.raw"));
        rig.ends_with_every_line(2);
    });
}

#[test]
fn a_guest_that_goes_back_is_brought_there_though_the_appliance_is_killed_and_is_not_called_recoverable() {
    Rig::with("a kill while a running guest goes back", |rig| {
        rig.site.ask(&["vm", "protect", "d", "web"]);
        rig.site.appliance.until_recoverable("d");
        // While it is copied.
        rig.virsh.slow(true);
        let asking = rig.begin("unprotect");
        rig.until_phase("COPYING");
        rig.console.wait("a copy", || rig.site.libvirt.virsh(&["dumpxml", "web"]).contains("<mirror"));
        rig.kill();
        asking.join().unwrap();
        rig.virsh.slow(false);
        rig.virsh.hold("vdb");
        rig.site.serve_again();
        // As its disks change over: one of two is back.
        rig.virsh.until_held("vdb");
        let half = rig.until("a disk of two", |shown| disks(shown) == ["MOVE_PHASE_MOVED", "MOVE_PHASE_PIVOTING"]);
        assert_ne!(half["status"], "PROTECTION_STATUS_RECOVERABLE", "{half:#}");
        // The last point of it was cut before.
        let last = number(&half["captured"]);
        rig.kill();
        rig.virsh.fail("vdb");
        rig.site.serve_again();
        let stuck = rig.until("what is wrong", |shown| shown["problems"].to_string().contains("not all where"));
        assert_ne!(stuck["status"], "PROTECTION_STATUS_RECOVERABLE", "{stuck:#}");
        assert!(rig.uses("web.qcow2") && rig.uses("web/vdb"));
        // What it writes is no point's, however long it stays so.
        rig.console.some_more();
        let point = number(&rig.site.ask(&["domain", "point", "d"])["point"]);
        let later = rig.until("what is part of the domain", |shown| number(&shown["shipped"]) >= point);
        let covered = number(&later["vms"][0]["point"]);
        assert!(covered <= last && last < point, "{covered} {last} {point}");
        assert_ne!(later["status"], "PROTECTION_STATUS_RECOVERABLE", "{later:#}");

        // By itself.
        rig.virsh.release("vdb");
        let events = || rig.site.ask(&["event", "list", "--subject", "d"]).to_string();
        rig.console.wait("its end", || events().contains("\"unprotected\""));
        assert!(rig.uses("web.qcow2") && rig.uses("second.raw"));
        assert!(!rig.site.libvirt.virsh(&["dumpxml", "web"]).contains("<mirror"));
        assert!(shown(&rig.site)["addresses"].as_array().is_none_or(Vec::is_empty));
        rig.ends_with_every_line(1);
    });
}

#[test]
fn a_guest_that_changed_over_unwritten_and_was_started_anew_keeps_what_it_wrote_in_both_places() {
    Rig::with("a power cut of a guest that had just changed over", |rig| {
        let before = rig.site.libvirt.virsh(&["dumpxml", "--inactive", "web"]);
        rig.virsh.hold("define");
        let asking = rig.begin("protect");
        // Its first disk has changed over.
        rig.virsh.until_held("define");
        rig.console.some_more();
        let on_the_image = rig.console.newest("kept").unwrap();
        rig.kill();
        asking.join().unwrap();
        // With it went what it had started.
        rig.virsh.release("define");
        // A power cut, in which what libvirt had just written of it was lost.
        rig.site.libvirt.virsh(&["destroy", "web"]);
        rig.site.libvirt.define(&before);
        rig.site.libvirt.virsh(&["start", "web"]);
        let found = rig.console.boots(2);
        assert!(found < on_the_image, "{found}: it was not on its old disk");
        rig.site.serve_again();
        let anew = rig.until("what is wrong", |shown| shown["problems"].to_string().contains("was started anew"));
        assert_ne!(anew["status"], "PROTECTION_STATUS_RECOVERABLE");
        rig.console.some_more();
        assert!(!rig.site.libvirt.virsh(&["dumpxml", "web"]).contains("<mirror"), "nothing is copied");
        let refused = rig.site.appliance.ask(&["vm", "unprotect", "d", "web"]).bad(4);
        assert!(refused.contains("compare them"), "{refused}");

        // The operator is told, and chooses the images.
        rig.site.libvirt.virsh(&["shutdown", "web"]);
        rig.console.wait("the end", || rig.site.libvirt.state("web") == "shut off");
        let told = rig
            .until("what there is to decide", |shown| shown["problems"].to_string().contains("copied over the others"));
        let image = told["vms"][0]["disks"][0]["path"].as_str().unwrap().to_owned();
        rig.site.ask(&["vm", "unprotect", "d", "web"]);
        assert!(rig.uses("web.qcow2"), "its definition is as it was");
        let old = rig.site.libvirt.virsh(&["domblklist", "--inactive", "web"]);
        let old = old.split_whitespace().find(|word| word.ends_with("/web.qcow2")).unwrap();
        rig.site.libvirt.define(&before.replace("type='qcow2'", "type='raw'").replace(old, &image));
        rig.site.libvirt.virsh(&["start", "web"]);
        let found = rig.console.boots(3);
        assert!(found >= on_the_image, "{found} of {on_the_image}");
    });
}

#[test]
fn a_guest_half_back_can_be_protected_on_and_one_that_ended_as_it_changed_over_is_not_given_up() {
    Rig::with("a running guest whose move fails", |rig| {
        rig.site.ask(&["vm", "protect", "d", "web"]);
        rig.site.appliance.until_recoverable("d");
        // None has changed over: it is protected as before.
        rig.virsh.fail("vda");
        let failed = rig.site.appliance.ask(&["vm", "unprotect", "d", "web"]).bad(4);
        assert!(failed.contains("it was not to be") && !failed.contains("gone on with"), "{failed}");
        rig.site.appliance.until_recoverable("d");
        rig.virsh.release("vda");
        // One has.
        rig.virsh.fail("vdb");
        let failed = rig.site.appliance.ask(&["vm", "unprotect", "d", "web"]).bad(4);
        assert!(failed.contains("gone on with"), "{failed}");
        assert!(rig.uses("web.qcow2") && rig.uses("web/vdb"));
        assert_ne!(shown(&rig.site)["status"], "PROTECTION_STATUS_RECOVERABLE");
        // The operator has thought better of it.
        rig.console.wait("its turn", || rig.site.appliance.ask(&["vm", "protect", "d", "web"]).code == Some(0));
        rig.virsh.release("vdb");
        assert!(rig.uses("web/vda") && rig.uses("web/vdb"));
        let again = rig.site.appliance.until_recoverable("d");
        assert!(again["problems"].as_array().is_none_or(Vec::is_empty), "{again:#}");
        rig.site.ask(&["vm", "unprotect", "d", "web"]);

        // On its way there: the appliance and the guest end as the first disk is about to change over.
        std::fs::remove_dir_all(rig.site.place.path("first-state/images/d/web")).unwrap();
        rig.virsh.hold("vda");
        let asking = rig.begin("protect");
        rig.virsh.until_held("vda");
        rig.kill();
        asking.join().unwrap();
        rig.virsh.fail("vda");
        rig.site.libvirt.virsh(&["shutdown", "web"]);
        rig.console.wait("the end", || rig.site.libvirt.state("web") == "shut off");
        rig.site.serve_again();
        let told = rig.until("what is wrong", |shown| shown["problems"].to_string().contains("compare them"));
        assert_eq!(told["vms"][0]["name"], "web", "it is not given up");
        rig.virsh.release("vda");
        rig.site.libvirt.virsh(&["start", "web"]);
        rig.until("the disks on their exports", |_| rig.uses("web/vda") && rig.uses("web/vdb"));
        rig.site.appliance.until_recoverable("d");
        rig.ends_with_every_line(2);
    });
}
