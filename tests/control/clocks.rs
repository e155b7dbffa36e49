//! Sites whose clocks are wrong, and are set while tasks run. The appliances are real ones whose wall clock `libfaketime`
//! moves.
//!
//! Nothing may wait for hours, or be given up at once, since a clock was set. Ages are true where the store has a clock of
//! its own; a directory has none, and there the clocks of both sites must agree for that.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::appliance::{Appliance, MIB, PATIENCE, Place};
use super::failovers::{IMPATIENT, Site, begin, number, place_with_s3, protected, read, write};
use crate::support::skipped;

/// A task that waits looks each second whether its limit is over. Where it does so later, this shows less, and fails nothing.
const THREE_LOOKS: Duration = Duration::from_secs(3);
/// Milliseconds that no age can have here, unless a wrong clock is in it.
const TEN_MINUTES: u64 = 600_000;

/// The library that moves clocks, where there is one.
fn library() -> Option<PathBuf> {
    let dirs = std::fs::read_dir("/usr/lib").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    dirs.map(|dir| dir.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}

/// Sets the clock of a site, as `+7h` or `-30m` from what is right.
fn set_clock(place: &Place, site: &str, by: &str) {
    let new = place.path(&format!("{site}.clock-new"));
    std::fs::write(&new, by).unwrap();
    std::fs::rename(new, place.path(&format!("{site}.clock"))).unwrap();
}

/// Starts the appliance of a site by the clock that was set.
fn serve(place: &Place, site: &str, more: &str) -> Appliance {
    let settings = place.settings(site, &format!("{more}{IMPATIENT}"));
    let library = library().expect("looked for before");
    let started = Appliance::start_by(&settings, &place.path(&format!("{site}-api.sock")), |command| {
        command.env("LD_PRELOAD", &library).env("FAKETIME_TIMESTAMP_FILE", place.path(&format!("{site}.clock")));
        // Read at each look, and only wall time moved.
        for name in ["FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC", "DONT_FAKE_MONOTONIC", "NO_FAKE_STAT"] {
            command.env(name, "1");
        }
        command.spawn()
    });
    started.unwrap_or_else(|ran| panic!("it does not start: {ran:?}"))
}

/// Whether there is what moves clocks; if not that is said.
fn clocks_can_be_set(test: &str) -> bool {
    let there = library().is_some();
    if !there {
        skipped(test, "libfaketime is not installed");
    }
    there
}

/// Cuts a point, as soon as that can be done; its number.
fn until_point(site: &Site<'_>) -> u64 {
    let began = Instant::now();
    loop {
        let cut = site.appliance.ask(&["domain", "point", "d"]);
        match cut.code {
            Some(0) => return number(&cut.json["point"]).unwrap(),
            _ => assert!(began.elapsed() < PATIENCE, "{}: {cut:?}", site.name),
        }
    }
}

fn is_following(site: &Site<'_>, least: u64) -> Value {
    site.appliance.until("d", "its disks follow", |shown| {
        let applied = &shown["follow"]["applied"]["number"];
        shown["follow"]["running"] == true && applied.as_u64().is_some_and(|n| n >= least)
    })
}

#[test]
fn tasks_wait_as_long_as_they_must_though_clocks_are_wrong_by_hours_and_are_set_meanwhile() {
    let test = "tasks_wait_as_long_as_they_must_though_clocks_are_wrong_by_hours_and_are_set_meanwhile";
    if !clocks_can_be_set(test) {
        return;
    }
    let place = Place::new();
    set_clock(&place, "first", "+7h");
    set_clock(&place, "second", "-5h");
    let start = |name| Site::start_by(&place, name, serve);
    let (first, second) = protected(start("first"), start("second"));
    write(&first, 2 * MIB, 9);
    first.ask(&["domain", "point", "d"]);
    let there = second.datastore();
    second.task(&["failover", "continuous", "d", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"]);
    second.until_mode("DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS");

    // As planned, while the first site's guest does not shut down, and the clock of who waits is set.
    std::fs::write(first.hypervisor("hangs"), "").unwrap();
    let id = second.begin(&["failover", "complete", "d", "--planned", "--yes", "d"]);
    let asked = first.asked("d");
    second.until_step(&id, "await-release");
    for by in ["+40h", "-60h"] {
        set_clock(&place, "second", by);
        std::thread::sleep(THREE_LOOKS);
        let waits = second.ask(&["task", "show", &id]);
        assert_eq!(waits["state"], "TASK_STATE_RUNNING", "{by}: {waits:#}");
    }
    std::fs::remove_file(first.hypervisor("hangs")).unwrap();
    first.ask(&["task", "answer", asked["id"].as_str().unwrap(), &asked["question"]["number"].to_string(), "wait"]);
    second.ended(&id, "TASK_STATE_DONE");
    second.runs("DOMAIN_MODE_RUNNING_IN_FAILOVER");
    assert_eq!((read(&second, 2 * MIB), read(&second, MIB)), (9, 7));

    // Back, with a delay during which the clock goes back by a day: it is waited for as long as it is.
    write(&second, 3 * MIB, 4);
    first.until_idle();
    let runbook = place.path("runbook.toml");
    std::fs::write(&runbook, "[[groups]]\nname = \"all\"\ndelay_seconds = 3\nvms = [{ vm = \"web\" }]\n").unwrap();
    first.ask(&["runbook", "set", "d", "failback", &runbook.display().to_string()]);
    let back = first.datastore();
    let mut args = vec!["failback", "start", "d", "--planned", "--datastore", &back, "--in-place"];
    args.extend(["--log-size", "256MiB", "--yes", "d"]);
    let id = first.begin(&args);
    first.until_step(&id, "delay");
    set_clock(&place, "first", "-17h");
    first.ended(&id, "TASK_STATE_DONE");
    first.runs("DOMAIN_MODE_PROTECTED");
    assert_eq!((read(&first, 2 * MIB), read(&first, 3 * MIB)), (9, 4));

    // By force, against clocks that are days apart; the old site is fenced.
    write(&first, 2 * MIB, 6);
    first.ask(&["domain", "point", "d"]);
    second.until_idle();
    let start = ["failover", "start", "d", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"];
    second.task(&[&start[..], &["--in-place", "--accept-divergence"]].concat());
    second.runs("DOMAIN_MODE_RUNNING_IN_FAILOVER");
    assert_eq!(read(&second, 2 * MIB), 6);
    first.until_mode("DOMAIN_MODE_FENCED");
}

#[test]
fn ages_are_true_where_a_store_has_a_clock_and_one_that_is_too_far_off_is_named_and_borne() {
    let test = "ages_are_true_where_a_store_has_a_clock_and_one_that_is_too_far_off_is_named_and_borne";
    if !clocks_can_be_set(test) {
        return;
    }
    let (place, server) = place_with_s3();
    // As far apart as signatures bear.
    set_clock(&place, "first", "+12m");
    set_clock(&place, "second", "-5h");
    let (first, second) = (Site::start_by(&place, "first", serve), Site::start_by(&place, "second", serve));
    first.add_store();
    let (url, options) = (server.url("site"), place.store_options("second").display().to_string());
    let refused = second.appliance.ask(&["store", "add", "s", "--url", &url, "--options-file", &options]).bad(8);
    assert!(refused.contains("set this machine's clock"), "{refused}");
    set_clock(&place, "second", "-12m");
    second.add_store();
    begin(&first, &second);
    let there = second.datastore();
    second.task(&["failover", "continuous", "d", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"]);
    is_following(&second, 0);
    for site in [&first, &second] {
        let shown = site.ask(&["domain", "show", "d", "--fresh"]);
        assert!(number(&shown["rpo_ms"]).unwrap() < TEN_MINUTES, "{}: {shown:#}", site.name);
    }

    // Set wrong while its disks follow, and while the other one protects: told, and all goes on once it is set right.
    for (site, right) in [(&second, "-12m"), (&first, "+12m")] {
        set_clock(&place, site.name, "+9h");
        write(&first, 2 * MIB, 9);
        site.appliance.until("d", "the clock is named", |shown| shown.to_string().contains("set this machine's clock"));
        set_clock(&place, site.name, right);
        let point = until_point(&first);
        is_following(&second, point);
    }
    let shown = second.ask(&["domain", "show", "d", "--fresh"]);
    assert!(number(&shown["rpo_ms"]).unwrap() < TEN_MINUTES, "{shown:#}");
}
