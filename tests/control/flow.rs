//! What an operator does on a good day, and what a restart leaves of it.

use std::path::Path;

use freshet::format::ProtectionRecord;

use super::appliance::{MIB, Place};

/// Makes the newest protection record in a state directory one of another boot of the host, as after a reboot.
fn forge_reboot(dir: &Path) {
    let read = |slot: usize| {
        let path = dir.join(format!("protection.{slot}"));
        let record = std::fs::read(&path).ok().and_then(|bytes| ProtectionRecord::decode(&bytes).ok());
        record.map(|record| (record, path))
    };
    let (newest, _) = [0, 1].into_iter().filter_map(read).max_by_key(|(record, _)| record.sequence).unwrap();
    // Both: whichever is newer, it is of another boot.
    for slot in [0, 1] {
        let sequence = newest.sequence + 1 + slot as u64;
        let forged = ProtectionRecord { boot: [9; 16], sequence, ..newest.clone() };
        std::fs::write(dir.join(format!("protection.{slot}")), forged.encode()).unwrap();
    }
}

#[test]
fn a_vm_is_protected_seen_by_the_other_site_changed_and_unprotected() {
    let place = Place::new();
    let (image, data) = (place.image("root"), place.image("data"));
    let first = place.serve("first");
    first.protect(&place, &image);
    let domain = first.until_recoverable("d");
    assert_eq!((&domain["mode"], &domain["owner_site"]), (&"DOMAIN_MODE_PROTECTED".into(), &"first".into()));
    let uri = domain["vms"][0]["disks"][0]["export_uri"].as_str().unwrap();
    assert!(uri.starts_with("nbd+unix:///web/root?socket=/"), "{uri}");
    // The same once more changes nothing; other disks are refused.
    let protect = |disk: &str| first.ask(&["vm", "protect", "d", "web", "--disk", disk]);
    let root = format!("root={}", image.display());
    protect(&root).good();
    let other = protect(&format!("root={}", data.display())).bad(4);
    assert!(other.contains("is protected with other disks"), "{other}");
    first.ask(&["domain", "create", "d", "--store", "s"]).good();

    first.guest(&place, "first").write(2 * MIB, &[9; 4096]).unwrap();
    let point = first.ask(&["domain", "point", "d"]).good()["point"].as_u64().unwrap();
    first.ask(&["vm", "add-disk", "d", "web", "--disk", &format!("data={}", data.display())]).good();
    first.until_recoverable("d");

    let second = place.serve("second");
    second.ask(&["store", "add", "away", "--url", &place.store_url()]).good();
    let scanned = second.ask(&["store", "scan", "away"]).good();
    let seen = &scanned["domains"][0];
    assert_eq!((&seen["domain"], &seen["owner_site"], &seen["known_as"]), (&"d".into(), &"first".into(), &"".into()));
    let imported = second.ask(&["domain", "import", "d", "--store", "away"]).good();
    assert_eq!(imported["mode"], "DOMAIN_MODE_IMPORTED");
    let imported = second.until("d", "the second disk", |d| d["vms"][0]["disks"][1]["name"] == "data");
    assert!(imported["newest_point"]["number"].as_u64().unwrap() >= point, "{imported:#}");
    second.until_recoverable("d");
    let again = second.ask(&["store", "scan", "away"]).good();
    assert_eq!(again["domains"][0]["known_as"], "Imported");
    assert!(second.ask(&["vm", "protect", "d", "web", "--disk", &root]).code != Some(0), "it is the other site's");

    first.ask(&["vm", "remove-disk", "d", "web", "data"]).good();
    assert!(first.ask(&["vm", "remove-disk", "d", "web", "data"]).bad(9).contains("is not protected here"));
    assert!(first.ask(&["vm", "remove-disk", "d", "web", "root"]).bad(4).contains("unprotect the VM instead"));
    assert!(first.ask(&["domain", "forget", "d", "--yes", "d"]).bad(4).contains("unprotect them first"));
    let done = first.ask(&["vm", "unprotect", "d", "web"]).good();
    assert_eq!(done["all_shipped"], true);
    assert_eq!(first.ask(&["vm", "unprotect", "d", "web"]).code, Some(9));
    second.ask(&["domain", "forget", "d", "--yes", "d"]).good();
    second.ask(&["store", "remove", "away", "--yes", "away"]).good();

    let events = first.ask(&["event", "list", "--subject", "d"]).good();
    let told: Vec<(&str, &str)> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|e| (e["action"].as_str().unwrap(), e["outcome"].as_str().unwrap()))
        .collect();
    let begin = [("DomainService/CreateDomain", "ok"), ("VmService/ProtectVm", "ok"), ("VmService/ProtectVm", "ok")];
    assert_eq!(told[..3], begin);
    assert!(
        told.contains(&("VmService/ProtectVm", "refused")) && told.contains(&("VmService/RemoveDisk", "not-found"))
    );
    assert!(first.stop().success() && second.stop().success());
}

#[test]
fn guests_have_their_disks_again_after_a_kill_and_a_stop() {
    let place = Place::new();
    let image = place.image("root");
    let first = place.serve("first");
    first.protect(&place, &image);
    first.until_recoverable("d");
    first.guest(&place, "first").write(MIB, &[1; 4096]).unwrap();
    first.kill();

    let again = place.serve("first");
    let mut guest = again.guest(&place, "first");
    assert_eq!(guest.read(MIB, 4096).unwrap(), [1; 4096]);
    guest.write(MIB, &[2; 4096]).unwrap();
    again.until_recoverable("d");
    drop(guest);
    assert!(again.stop().success());

    let third = place.serve("first");
    third.until_recoverable("d");
    assert_eq!(third.guest(&place, "first").read(MIB, 4096).unwrap(), [2; 4096]);
    let generation = |d: &serde_json::Value| d["generation"].as_u64().unwrap();
    assert_eq!(generation(&third.ask(&["domain", "show", "d"]).good()), 3, "every start claims");
    assert!(third.stop().success());
}

#[test]
fn an_image_that_is_gone_keeps_no_other_operator_from_putting_it_right() {
    let place = Place::new();
    let (image, data) = (place.image("root"), place.image("data"));
    let first = place.serve("first");
    first.protect(&place, &image);
    first.ask(&["vm", "protect", "d", "db", "--disk", &format!("data={}", data.display())]).good();
    first.until_recoverable("d");
    assert!(first.stop().success());
    std::fs::rename(&data, place.path("elsewhere")).unwrap();

    let again = place.serve("first");
    let told = again.until("d", "the reason", |d| d["problems"].as_array().is_some_and(|p| !p.is_empty()));
    assert!(told["problems"][0].as_str().unwrap().contains("data"), "{told:#}");
    again.ask(&["vm", "unprotect", "d", "db"]).good();
    again.until("d", "web is served", |d| d["capture"] == "normal" && d["addresses"][0].is_string());
    again.guest(&place, "first").read(MIB, 512).unwrap();
    assert!(again.stop().success());
}

#[test]
fn with_the_store_away_after_a_reboot_disks_open_on_the_operator_s_word_alone() {
    let place = Place::new();
    let image = place.image("root");
    let first = place.serve("first");
    first.protect(&place, &image);
    first.until_recoverable("d");
    assert!(first.stop().success());
    // Another boot, as far as the record tells: what it holds of the boot is not this one's.
    forge_reboot(&place.path("first-state/domains/d"));
    std::fs::rename(place.path("store"), place.path("away")).unwrap();

    let again = place.serve("first");
    let shown = again.until("d", "the reason", |d| d["problems"].as_array().is_some_and(|p| !p.is_empty()));
    assert_eq!((&shown["capture"], &shown["addresses"]), (&"starting".into(), &serde_json::json!([])), "{shown:#}");
    assert_eq!(again.ask(&["vm", "open", "d"]).code, Some(4));
    again.ask(&["vm", "open", "d", "--yes", "d"]).good();
    again.guest(&place, "first").write(MIB, &[5; 4096]).unwrap();
    std::fs::rename(place.path("away"), place.path("store")).unwrap();
    again.until_recoverable("d");
    assert!(again.stop().success());
}
