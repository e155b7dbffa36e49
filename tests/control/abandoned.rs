//! A task whose journal cannot be read: it is named, keeps its domain, and is given up by an administrator's word only.

use super::appliance::{Place, Ran, freshet};
use super::failovers::{Site, two_sites};

/// Carries out SQL on the catalog of a site that does not run.
fn spoil(place: &Place, site: &str, sql: &str) {
    let catalog = rusqlite::Connection::open(place.path(&format!("{site}-state/catalog/catalog.sqlite3"))).unwrap();
    catalog.execute(sql, []).unwrap();
}

fn inspect(place: &Place, site: &str) -> Ran {
    let file = place.path(&format!("{site}-state/catalog/catalog.sqlite3"));
    Ran::of(freshet().args(["--json", "inspect", "--frames"]).arg(file))
}

#[test]
fn a_task_with_a_damaged_journal_is_given_up_by_name_and_its_domain_is_free() {
    let place = Place::new();
    let (first, second) = two_sites(&place);
    // The guest of the first site never ends, so that the task waits.
    std::fs::write(first.hypervisor("hangs"), "").unwrap();
    let there = second.datastore();
    let start = ["failover", "start", "d", "--planned", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"];
    let begun = second.ask(&start);
    let id = begun["task"]["id"].as_str().or(begun["id"].as_str()).unwrap().to_owned();
    second.until_step(&id, "await-release");
    let well = second.appliance.ask(&["task", "abandon", &id, "--yes", "d"]).bad(4);
    assert!(well.contains("reads well"), "{well}");
    let intact = inspect(&place, "second").good();
    assert_eq!((&intact["intact"], &intact["facts"]["site"]), (&true.into(), &"second".into()), "{intact:#}");
    second.appliance.kill();
    spoil(&place, "second", "UPDATE journal SET entry = substr(entry, 1, 40) WHERE n = 4");

    let damaged = inspect(&place, "second");
    assert_eq!(damaged.code, Some(3), "{damaged:?}");
    let problem = damaged.json["problems"][0].to_string();
    assert!(problem.contains(&id) && problem.contains("number 4"), "{problem}");
    let listed = damaged.json["entries"].as_array().unwrap();
    assert!(listed.iter().any(|entry| entry["n"] == 5) && listed.iter().any(|entry| entry["unreadable"].is_string()));

    let second = Site::start(&place, "second");
    let shown = second.ask(&["task", "show", &id]);
    assert!(shown["trouble"].as_str().unwrap().contains("freshet task abandon"), "{shown:#}");
    assert!(second.appliance.ask(&start).bad(4).contains(&id), "it keeps its domain");
    let other = second.appliance.ask(&["task", "abandon", &id, "--yes", "e"]).bad(2);
    assert!(other.contains("nothing was done"), "{other}");
    let given_up = second.ask(&["task", "abandon", &id, "--yes", "d"]);
    assert_eq!(given_up["state"], "TASK_STATE_FAILED", "{given_up:#}");
    let events = second.ask(&["event", "list"]).to_string();
    assert!(events.contains("TaskService/AbandonTask"), "{events}");
    assert!(second.appliance.stop().success());

    // For good, and with its entries still there to be looked into.
    let second = Site::start(&place, "second");
    second.ended(&id, "TASK_STATE_FAILED");
    assert!(second.ask(&["task", "list", "--running"])["tasks"].as_array().is_none_or(Vec::is_empty));
    assert_eq!(inspect(&place, "second").json["facts"]["abandoned"], 1);
    std::fs::remove_file(first.hypervisor("hangs")).unwrap();
    let follow = ["failover", "continuous", "d", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"];
    second.task(&follow);
}
