//! The catalog lost, newer, in use; domains imported twice, and one's own; a runbook out of it and in again.

use std::process::Command;

use super::appliance::{Appliance, Place, freshet};

#[test]
fn a_domain_is_imported_once_and_one_s_own_is_not() {
    let place = Place::new();
    let image = place.image("root");
    let first = place.serve("first");
    first.protect(&place, &image);
    first.until_recoverable("d");
    let own = first.ask(&["domain", "import", "d", "--store", "s"]).bad(4);
    assert!(own.contains("is this site's own") && own.contains("nothing was changed"), "{own}");
    assert_eq!(first.ask(&["domain", "import", "no", "--store", "s"]).code, Some(9));
    assert_eq!(first.ask(&["domain", "import", "x", "--store", "no"]).code, Some(9));
    // What is in the store under that name already is not made anew.
    let second = place.serve("second");
    second.ask(&["store", "add", "s", "--url", &place.store_url()]).good();
    let taken = second.ask(&["domain", "create", "d", "--store", "s"]).bad(4);
    assert!(taken.contains("owned by site first") && taken.contains("import it"), "{taken}");
    second.ask(&["domain", "import", "d", "--store", "s"]).good();
    let twice = second.ask(&["domain", "import", "d", "--store", "s"]).bad(4);
    assert!(twice.contains("was imported before"), "{twice}");
    let all = second.ask(&["domain", "import", "--all", "--store", "s"]).good();
    assert_eq!((&all["imported"], &all["known"]), (&serde_json::json!([]), &serde_json::json!(["d"])));
    let removed = second.ask(&["store", "remove", "s", "--yes", "s"]).bad(4);
    assert!(removed.contains("1 domains"), "{removed}");
}

#[test]
fn a_runbook_that_is_shown_is_set_again_as_it_was() {
    let place = Place::new();
    let site = place.serve("here");
    site.ask(&["store", "add", "s", "--url", &place.store_url()]).good();
    site.ask(&["domain", "create", "d", "--store", "s"]).good();
    let show = || {
        let mut command = freshet();
        let out = command.args(["runbook", "show", "d", "failover", "--socket"]).arg(&site.socket).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let file = place.path("runbook");
    let set = |text: &str| {
        std::fs::write(&file, text).unwrap();
        site.ask(&["runbook", "set", "d", "failover", file.to_str().unwrap()]).good()
    };
    assert_eq!(show(), (String::new(), "d has no such runbook\n".to_owned()));
    // Its end is its own, too: a line that is not ended, and empty ones.
    for (revision, text) in
        ["# ours\nothers = \"leave-off\"", "\n# ours\nothers = \"start\"\n\n"].into_iter().enumerate()
    {
        set(text);
        let shown = show();
        assert_eq!(shown, (text.to_owned(), format!("revision {}\n", revision + 1)));
        let again = set(&shown.0);
        assert_eq!((&again["text"], show().0.as_str()), (&text.into(), text), "{again:#}");
    }
    set("");
    assert_eq!(show(), (String::new(), "d has no such runbook any more: it was removed by revision 3\n".to_owned()));
}

#[test]
fn a_lost_catalog_is_rebuilt_by_scan_and_import() {
    let place = Place::new();
    let image = place.image("root");
    let first = place.serve("first");
    first.protect(&place, &image);
    let before = first.until_recoverable("d");
    let id = first.ask(&["site", "show"]).good()["catalog_id"].clone();
    assert!(first.stop().success());
    std::fs::remove_dir_all(place.path("first-state/catalog")).unwrap();

    let again = place.serve("first");
    assert_ne!(again.ask(&["site", "show"]).good()["catalog_id"], id);
    assert_eq!(again.ask(&["domain", "list"]).good()["domains"], serde_json::json!([]));
    again.ask(&["store", "add", "s", "--url", &place.store_url()]).good();
    let imported = again.ask(&["domain", "import", "d", "--store", "s"]).good();
    assert_eq!((&imported["mode"], &imported["domain_id"]), (&"DOMAIN_MODE_PROTECTED".into(), &before["domain_id"]));
    again.ask(&["vm", "protect", "d", "web", "--disk", &format!("root={}", image.display())]).good();
    let after = again.until_recoverable("d");
    assert_eq!(after["vms"].as_array().unwrap().len(), 1, "{after:#}");
    assert!(after["newest_point"]["number"].as_u64() >= before["newest_point"]["number"].as_u64());
    assert!(again.stop().success());
}

#[test]
fn a_store_that_was_swapped_is_noticed() {
    let place = Place::new();
    let image = place.image("root");
    let first = place.serve("first");
    first.protect(&place, &image);
    first.until_recoverable("d");
    let second = place.serve("second");
    second.ask(&["store", "add", "s", "--url", &place.store_url()]).good();
    second.ask(&["domain", "import", "d", "--store", "s"]).good();
    assert!(first.stop().success());
    // Another domain of the same name at the same address.
    std::fs::remove_dir_all(place.path("store/d")).unwrap();
    let disk = format!("root={}", image.display());
    let made = super::appliance::freshet()
        .args([
            "replicate",
            "--store",
            &place.store_url(),
            "--domain",
            "d",
            "--site",
            "third",
            "--vm",
            "x",
            "--disk",
            &disk,
        ])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let fresh = second.ask(&["domain", "show", "d", "--fresh"]).bad(6);
    assert!(fresh.contains("holds another domain d"), "{fresh}");
    let shown = second.until("d", "the reason", |d| d["status"] == "PROTECTION_STATUS_ERROR");
    assert!(shown["problems"][0].as_str().unwrap().contains("holds another domain"), "{shown:#}");
}

#[test]
fn one_instance_serves_a_catalog_and_a_socket_and_a_newer_catalog_is_refused() {
    let place = Place::new();
    let first = place.serve("first");
    let settings = place.path("first.toml");
    let second = Appliance::start(&settings, &first.socket).err().expect("it must not start");
    assert!(second.bad(4).contains("in use by another freshet"));
    // Another catalog, the same socket.
    let text = std::fs::read_to_string(&settings).unwrap();
    let other = place.path("other.toml");
    std::fs::write(&other, text.replace("first-state", "other-state")).unwrap();
    let third = Appliance::start(&other, &first.socket).err().expect("it must not start");
    assert!(third.bad(4).contains("another server listens there"));
    first.ask(&["site", "show"]).good();
    assert!(first.stop().success());
    assert!(!place.path("first-api.sock").exists());

    let catalog = place.path("first-state/catalog/catalog.sqlite3");
    // The header of SQLite's file format keeps the version at byte 60.
    let sqlite = Command::new("python3")
        .args(["-c", "import sqlite3,sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA user_version = 99')"])
        .arg(&catalog)
        .status();
    if !sqlite.is_ok_and(|status| status.success()) {
        crate::support::skipped("a newer catalog", "python3 with sqlite3 is not installed");
        return;
    }
    let newer = Appliance::start(&settings, &place.path("first-api.sock")).err().expect("it must not start");
    assert!(newer.bad(1).contains("version 99"));
}
