//! A daemon that goes away in the middle: of disks that are moved, of a guest's shutdown, of a start. What was begun is gone on
//! with. By the way, on the same guests: an agent that hangs, scripts that hang or fail, and a guest that panics.

use std::time::Duration;

use freshet::hypervisor::Hypervisor;
use freshet::ids::Name;

use super::appliance::{Place, Ran, freshet};
use crate::support::libvirt::User;
use crate::support::libvirt_guest::{LibvirtGuest, file_disk, raw_image};
use crate::support::libvirt_site::{LibvirtSite, with_a_guest};
use crate::support::real_images::{run, tool};

/// Bytes of a disk that take a while to be copied.
const BALLAST: usize = 160 << 20;

/// The guest that panics is started first; a delay leaves time for what the test does to the daemon.
const RUNBOOK: &str = r#"
[[groups]]
name = "front"

[[groups.vms]]
vm = "bad"
scripts_before = [{ command = ["/bin/sleep", "600"], limit_seconds = 1, on_failure = "continue" }]

[[groups]]
name = "back"
after = ["front"]
delay_seconds = 3

[[groups.vms]]
vm = "web"
scripts_after = [{ command = ["/bin/sh", "-c", "echo no such row >&2; exit 3"], limit_seconds = 60, on_failure = "ask" }]
"#;

/// A disk with an empty file system, and bytes that no copy can leave out.
fn heavy_image(place: &Place) -> std::path::PathBuf {
    let (image, tree) = (place.path("web.img"), place.path("tree"));
    std::fs::create_dir(&tree).unwrap();
    let mut bytes = vec![0; BALLAST];
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for chunk in bytes.chunks_exact_mut(8) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    std::fs::write(tree.join("ballast"), bytes).unwrap();
    std::fs::File::create(&image).unwrap().set_len(BALLAST as u64 + (64 << 20)).unwrap();
    run(tool("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&image));
    std::fs::remove_dir_all(tree).unwrap();
    image
}

/// Begins to protect the guest, and has the copy of its heavy disk get on slowly.
fn protect_slowly(site: &LibvirtSite<'_>, web: &LibvirtGuest) -> std::thread::JoinHandle<Ran> {
    let socket = site.appliance.socket.clone();
    let asking = std::thread::spawn(move || {
        Ran::of(freshet().args(["--json", "vm", "protect", "d", "web", "--socket"]).arg(socket))
    });
    let mirrors = || site.libvirt.virsh(&["dumpxml", "web"]).matches("<mirror").count();
    web.console.wait("a copy", || mirrors() > 0);
    site.libvirt.virsh(&["blockjob", "web", "vda", "--bandwidth", "1"]);
    web.console.wait("the other copy", || mirrors() == 2);
    asking
}

/// Bytes of the heavy disk that are copied.
fn copied(site: &LibvirtSite<'_>) -> u64 {
    let said = site.libvirt.virsh(&["blockjob", "web", "vda", "--raw"]);
    let number = |word: &str| said.lines().find_map(|line| line.trim().strip_prefix(word)?.parse::<u64>().ok());
    let (now, end) = (number("cur=").unwrap(), number("end=").unwrap());
    assert!(now < end, "it was copied before anything could be done to it: {said}");
    now
}

/// One copy ends by another hand: so does the other, and nothing is left of what was begun.
fn fail_to_protect(site: &LibvirtSite<'_>, web: &LibvirtGuest) {
    let asking = protect_slowly(site, web);
    site.libvirt.virsh(&["blockjob", "web", "vda", "--abort"]);
    let ran = asking.join().unwrap();
    let told = ran.json.to_string();
    assert!(ran.code != Some(0) && told.contains("the copy of disk vda of VM web failed"), "{ran:?}");
    let xml = site.libvirt.virsh(&["dumpxml", "web"]);
    assert!(!xml.contains("<mirror") && !xml.contains("name='web/vd"), "{xml}");
    assert_eq!(std::fs::read_dir(site.place.path("first-state/images/d/web")).unwrap().count(), 0);
    assert!(site.ask(&["domain", "show", "d"])["vms"].as_array().is_none_or(Vec::is_empty));
}

/// The daemon ends while disks are copied, and comes back: the copies, which are QEMU's, are waited for, and not begun anew.
fn protect_with_the_daemon_away(site: &mut LibvirtSite<'_>, web: &LibvirtGuest) {
    let asking = protect_slowly(site, web);
    let before = copied(site);
    let blocks = site.libvirt.virsh(&["domblklist", "web"]);
    assert!(!blocks.contains("web/vdb"), "none is used before all are ready: {blocks}");
    site.libvirt.stop();
    web.console.some_more();
    site.libvirt.start_again();
    assert!(copied(site) >= before, "the copy goes on");
    site.libvirt.virsh(&["blockjob", "web", "vda", "--bandwidth", "0"]);
    asking.join().unwrap().good();
    for which in ["--inactive", "--security-info"] {
        let xml = site.libvirt.virsh(&["dumpxml", which, "web"]);
        assert!(xml.contains("name='web/vda'") && xml.contains("name='web/vdb'"), "{which}: {xml}");
    }
}

#[test]
fn a_daemon_that_goes_away_in_the_middle_and_a_guest_that_panics_hold_up_nobody_for_good() {
    with_a_guest("a libvirt daemon that goes away in the middle", |kernel| {
        let place = Place::new();
        let mut web = LibvirtGuest::new(&place, kernel, "web");
        web.disks =
            file_disk("vda", &heavy_image(&place), "raw") + &file_disk("vdb", &raw_image(&place, "b.img"), "raw");
        web.devices = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>".to_owned();
        web.words = "agent=hangs hold=3";
        let mut bad = LibvirtGuest::new(&place, kernel, "bad");
        bad.disks = file_disk("vda", &raw_image(&place, "bad.img"), "raw");
        bad.devices = "<panic model='isa'/>".to_owned();
        (bad.words, bad.on_crash) = ("part=panics", "preserve");
        let mut first = LibvirtSite::start_as(&place, "first", User::Root, "freeze_limit = \"20s\"");
        let mut second = LibvirtSite::start(&place, "second");
        first.libvirt.define(&web.xml());
        first.libvirt.define(&bad.xml());
        first.libvirt.virsh(&["start", "web"]);
        assert_eq!(web.console.boots(1), 0);
        first.make_domain();
        fail_to_protect(&first, &web);
        protect_with_the_daemon_away(&mut first, &web);
        first.ask(&["vm", "protect", "d", "bad"]);
        first.appliance.until_recoverable("d");

        // An agent that hangs: the point is an ordinary one, and nobody has to be thawed.
        let cut = first.ask(&["domain", "point", "d", "--quiesce"]);
        assert_ne!(cut["quiesced"], true, "{cut:#}");
        assert!(cut.to_string().contains("no agent answers in the guest"), "{cut:#}");
        assert!(std::fs::read_dir(place.path("first-state/frozen")).unwrap().next().is_none());

        second.import_domain();
        let runbook = place.path("runbook.toml");
        std::fs::write(&runbook, RUNBOOK).unwrap();
        second.ask(&["runbook", "set", "d", "failover", runbook.to_str().unwrap()]);
        let id = second.begin_planned("failover", &[]);
        // Its agent is asked first, and then its button: in the middle of its shutdown nobody can tell how it is.
        web.console.wait("the button", || web.console.count("asked") > 0);
        first.libvirt.stop();
        web.console.wait("its last line", || web.console.newest("down").is_some());
        first.libvirt.start_again();

        second.until_step(&id, "delay");
        second.libvirt.stop();
        let tried_again = || {
            let shown = second.ask(&["task", "show", &id]);
            let steps = shown["steps"].as_array().unwrap();
            steps.iter().any(|step| step["name"] == "start web" && step["state"] == "retrying")
        };
        web.console.wait("a start that is tried again", tried_again);
        let told = |shown: &serde_json::Value| shown["problems"].to_string().contains("VM web: virsh");
        second.appliance.until("d", "the daemon that is away", told);
        second.libvirt.start_again();
        assert_eq!(web.console.boots(2), web.console.newest("down").unwrap());

        let asked = second.asked("d");
        let log = asked.to_string();
        for part in ["ended with exit code 3", "no such row", "script /bin/sleep was killed after 1 s"] {
            assert!(log.contains(part), "{part}: {asked:#}");
        }
        second.ask(&["task", "answer", &id, &asked["question"]["number"].to_string(), "skip"]);
        second.ended(&id, "TASK_STATE_DONE");

        // The other one goes on, and the domain says what became of this one.
        web.console.some_more();
        let panicked = |shown: &serde_json::Value| {
            let problems = shown["problems"].to_string();
            problems.contains("VM bad: its guest panicked") && !problems.contains("VM web")
        };
        second.appliance.until("d", "the panic", panicked);
        // Written down beside it. Of a panic while the daemon was away no event of libvirt's tells: it is seen by a look.
        web.console.wait("what is written of the panic", || {
            second.ask(&["event", "list", "--subject", "d"]).to_string().contains("guest in trouble")
        });
        // Nobody waits for one that hears nothing.
        let driver = second.libvirt.driver(&place.path("seeds"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(!runtime.block_on(driver.shutdown(&Name::new("bad").unwrap(), Duration::from_secs(3600))).unwrap());
        web.console.assert_no_alarm();
        assert_eq!((first.libvirt.state("web").as_str(), bad.console.count("whole")), ("shut off", 0));
    });
}
