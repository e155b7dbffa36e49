//! Damage of disks that follow: an object of the store that they need is not what it was.

use super::appliance::{MIB, Place};
use super::failovers::{number, read, two_sites};
use super::figures::{page, value};

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// Flips a byte of the one object below `dir` that holds `bytes`.
fn damage_object_with(dir: &std::path::Path, bytes: &[u8]) {
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                dirs.push(entry);
                continue;
            }
            let mut content = std::fs::read(&entry).unwrap();
            if let Some(at) = content.windows(bytes.len()).position(|part| part == bytes) {
                content[at] ^= 1;
                std::fs::remove_file(&entry).unwrap();
                return std::fs::write(&entry, content).unwrap();
            }
        }
    }
    panic!("no object holds the bytes");
}

#[test]
fn damage_of_disks_that_follow_is_told_and_must_be_accepted_until_a_later_point_repairs_it() {
    let place = Place::new();
    let (first, second) = two_sites(&place);
    let written = noise(4096);
    let mut guest = first.guest();
    guest.write(2 * MIB, &written).unwrap();
    first.ask(&["domain", "point", "d"]);
    damage_object_with(&place.path("store/d/segments"), &written[..64]);
    let there = second.datastore();
    // What is accepted now is not what is there when it is completed.
    let follow = ["failover", "continuous", "d", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"];
    second.task(&[&follow[..], &["--accept-damage"]].concat());

    let shown = second.appliance.until("d", "damage", |shown| shown["status"] == "PROTECTION_STATUS_ERROR");
    assert_eq!(shown["vms"][0]["status"], "PROTECTION_STATUS_ERROR", "{shown:#}");
    let damage = &shown["follow"]["damage"][0];
    assert_eq!((&damage["vm"], &damage["disk"]), (&"web".into(), &"root".into()), "{shown:#}");
    let bytes = number(&damage["bytes"]).unwrap();
    assert!((4096..=MIB).contains(&bytes) && number(&damage["ranges"]) == Some(1), "{shown:#}");
    let words = format!("VM web, disk root: {bytes} bytes in one range");
    assert!(shown["problems"].to_string().contains(&words), "{shown:#}");
    let figures = page(&second.appliance);
    let labels = "{domain=\"d\",vm=\"web\",disk=\"root\"}";
    assert_eq!(value(&figures, &format!("freshet_disk_damaged_bytes{labels}")), Some(bytes as f64), "{figures}");
    assert!(value(&figures, "freshet_vm_rpo_seconds{domain=\"d\",vm=\"web\"}").is_some(), "{figures}");

    let complete = ["failover", "complete", "d", "--planned"];
    let planned = second.appliance.ask(&[&complete[..], &["--dry-run"]].concat());
    assert_eq!(planned.code, Some(3), "{planned:?}");
    assert!(planned.json["findings"].to_string().contains("accept_damage"), "{planned:?}");
    assert!(planned.json["summary"]["damage"].to_string().contains(&words), "{planned:?}");
    let refused = second.appliance.ask(&[&complete[..], &["--yes", "d"]].concat()).bad(4);
    assert!(refused.contains(&words), "{refused}");
    let accepted = second.ask(&[&complete[..], &["--accept-damage", "--dry-run"]].concat());
    assert!(accepted["summary"]["damage"].to_string().contains(&words), "{accepted:#}");

    guest.write(2 * MIB, &vec![5; MIB as usize]).unwrap();
    first.ask(&["domain", "point", "d"]);
    let shown = second.appliance.until_recoverable("d");
    assert!(shown["follow"]["damage"].as_array().is_none_or(Vec::is_empty), "{shown:#}");
    assert!(!shown["problems"].to_string().contains("damage"), "{shown:#}");
    drop(guest);
    second.task(&[&complete[..], &["--yes", "d"]].concat());
    second.runs("DOMAIN_MODE_RUNNING_IN_FAILOVER");
    assert_eq!((read(&second, 2 * MIB), read(&second, MIB)), (5, 7));
}
