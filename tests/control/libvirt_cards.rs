//! A guest with a card under libvirt, and what a runbook and a plan make of it at the other site: told by the guest itself.

use super::appliance::Place;
use crate::support::libvirt_guest::{LibvirtGuest, file_disk, raw_image};
use crate::support::libvirt_site::{LibvirtSite, with_a_guest};
use crate::support::{agent, namespaces, skipped};

const MAC: &str = "52:54:00:0a:0b:0c";
/// Memory at the first site, and at the second, in KiB.
const MEMORY: (u64, u64) = (192 << 10, 288 << 10);

/// What is different at the second site. The script fails once.
fn runbook(place: &Place) -> String {
    let script = format!("echo tried >> {0}; test $(wc -l < {0}) -ge 2", place.path("tries").display());
    format!(
        r#"
[[groups]]
name = "shop"

[[groups.vms]]
vm = "web"
cpus = 2
memory_bytes = {}
wait_for = [{{ probe = {{ guest-agent = {{}} }}, limit_seconds = 120, on_timeout = "stop" }}]
scripts_after = [{{ command = ["/bin/sh", "-c", "{script}"], on_failure = "retry", retries = 3 }}]
confirm = "Does the shop sell?"
"#,
        MEMORY.1 << 10
    )
}

/// UUID of VM `web`.
fn uuid(site: &LibvirtSite<'_>) -> String {
    site.libvirt.virsh(&["domuuid", "web"]).trim().to_owned()
}

/// The address of its card, as the guest told it last.
fn card(web: &LibvirtGuest) -> String {
    let lines = web.console.lines();
    lines.iter().rev().find_map(|line| line.strip_prefix("card ")).unwrap_or_else(|| panic!("{lines:#?}")).to_owned()
}

/// Processors that the guest told last, and that its memory is what it was given, less what its kernel takes.
fn assert_resources(web: &LibvirtGuest, cpus: u64, memory: std::ops::Range<u64>) {
    assert_eq!(web.console.newest("cpus"), Some(cpus), "{:#?}", web.console.lines());
    let told = web.console.newest("memory").unwrap();
    assert!(memory.contains(&told), "{told} KiB of {memory:?}");
}

#[test]
fn a_guest_keeps_its_card_and_has_what_the_runbook_says_and_gets_another_identity_where_that_is_asked_for() {
    let what = "a guest with a card under libvirt";
    with_a_guest(what, |kernel| {
        if !namespaces::can_be_made(what) {
            return;
        }
        let programs = match agent::programs() {
            Ok(programs) => programs,
            Err(why) => return skipped(what, &why),
        };
        let place = Place::new();
        let mut web = LibvirtGuest::with_card(&place, kernel, "web", &programs);
        web.disks = file_disk("vda", &raw_image(&place, "web.img"), "raw");
        web.devices = format!(
            "<interface type='network'><mac address='{MAC}'/><source network='lan-a'/><model type='virtio'/></interface>\
             <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        );
        let first = LibvirtSite::start_networked(&place, "first", "lan-a");
        let second = LibvirtSite::start_networked(&place, "second", "lan-b");
        first.libvirt.define(&web.xml());
        let known = uuid(&first);
        first.make_domain();
        first.ask(&["vm", "protect", "d", "web"]);
        first.libvirt.virsh(&["start", "web"]);
        assert_eq!(web.console.boots(1), 0);
        assert_resources(&web, 1, MEMORY.0 / 2..MEMORY.0);
        assert_eq!(card(&web), MAC);
        first.appliance.until_recoverable("d");

        over_with_a_runbook(&place, &second, &web);
        assert_eq!((card(&web).as_str(), uuid(&second)), (MAC, known.clone()), "it is known by both");
        let cards = second.libvirt.virsh(&["domiflist", "web"]);
        assert!(cards.contains("lan-b") && !cards.contains("lan-a"), "{cards}");
        web.console.some_more();

        // Back onto disks that followed, as another machine: its operator has removed the one that was here.
        first.until_idle();
        first.libvirt.virsh(&["undefine", "web"]);
        first.follow(
            "failback",
            &["--in-place", "--default-network", "lan-a", "--placement", "mac=renew", "--placement", "uuid=renew"],
        );
        first.task(&["failover", "complete", "d", "--planned", "--yes", "d"]);
        assert_eq!(web.console.boots(3), web.console.newest("down").unwrap());
        let (renewed, cards) = (card(&web), first.libvirt.virsh(&["domiflist", "web"]));
        assert!(renewed != MAC && cards.contains(&renewed) && cards.contains("lan-a"), "{renewed}: {cards}");
        assert_ne!(uuid(&first), known);
        web.console.some_more();
        web.console.assert_no_alarm();
    });
}

/// A planned failover with other resources, a wait, a script that fails once, and a question.
fn over_with_a_runbook(place: &Place, second: &LibvirtSite<'_>, web: &LibvirtGuest) {
    second.import_domain();
    let file = place.path("runbook.toml");
    std::fs::write(&file, runbook(place)).unwrap();
    second.ask(&["runbook", "set", "d", "failover", file.to_str().unwrap()]);
    let id = second.begin_planned("failover", &["--network", "lan-a=lan-b"]);
    let asked = second.asked("d");
    // It asks last: the agent has answered by then, and the script has ended well.
    assert!(asked["question"]["text"].as_str().unwrap().contains("Does the shop sell?"), "{asked:#}");
    assert_eq!(web.console.count("card"), 2, "the guest has booted: {:#?}", web.console.lines());
    assert_eq!(std::fs::read_to_string(place.path("tries")).unwrap(), "tried\ntried\n");
    let choices = asked["question"]["choices"].to_string();
    assert!(choices.contains("confirm"), "{asked:#}");
    second.ask(&["task", "answer", &id, &asked["question"]["number"].to_string(), "confirm"]);
    second.ended(&id, "TASK_STATE_DONE");
    assert_eq!(web.console.boots(2), web.console.newest("down").unwrap(), "{:#?}", web.console.lines());
    assert_resources(web, 2, MEMORY.0..MEMORY.1);
}
