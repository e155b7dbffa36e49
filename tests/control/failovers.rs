//! Two sites that have nothing in common but the storage site, with a hypervisor each, and every mode in turn. Content is
//! checked at the disks, through the exports that guests get.

use freshet::control::proto::DeleteKeptCopyRequest;
use serde_json::Value;

use super::appliance::{MIB, PATIENCE, Place};
use super::figures::{options_file, page, value};
use crate::support::site;
use freshet::s3_server::{Fault, Options, Rule, S3Server, Verb};

/// A site of a place that a test has.
pub(super) type Site<'p> = site::Site<&'p Place>;

/// Settings of a site that asks soon about guests that do not shut down.
pub(super) const IMPATIENT: &str = "[failover]\nshutdown_limit = \"2s\"\n";

/// A domain with one running VM at the first site, which the second has imported.
pub(super) fn two_sites(place: &Place) -> (Site<'_>, Site<'_>) {
    protected(Site::start(place, "first"), Site::start(place, "second"))
}

pub(super) fn protected<'p>(first: Site<'p>, second: Site<'p>) -> (Site<'p>, Site<'p>) {
    first.add_store();
    second.add_store();
    begin(&first, &second);
    (first, second)
}

/// Makes the domain, and imports it, where both have the storage site.
pub(super) fn begin(first: &Site<'_>, second: &Site<'_>) {
    first.ask(&["domain", "create", "d", "--store", "s"]);
    first.ask(&["vm", "protect", "d", "web", "--disk", &format!("root={}", first.place.image("root").display())]);
    first.switch("web", "running");
    first.appliance.until_recoverable("d");
    second.ask(&["domain", "import", "d", "--store", "s"]);
}

/// A place whose storage site is an S3 server, which a test can trouble.
pub(super) fn place_with_s3() -> (Place, S3Server) {
    let mut place = Place::new();
    let server = S3Server::start(&place.path("objects"), Options::default()).unwrap();
    let options = options_file(&place, &server);
    for site in ["first", "second"] {
        std::fs::copy(&options, place.store_options(site)).unwrap();
    }
    place.store = Some(server.url("site"));
    (place, server)
}

/// A number of an answer, which JSON of the API may have as text.
pub(super) fn number(value: &Value) -> Option<u64> {
    value.as_str().map_or_else(|| value.as_u64(), |text| text.parse().ok())
}

pub(super) fn write(site: &Site<'_>, at: u64, byte: u8) {
    let mut guest = site.guest();
    guest.write(at, &[byte; 4096]).unwrap();
    guest.flush().unwrap();
}

pub(super) fn read(site: &Site<'_>, at: u64) -> u8 {
    let bytes = site.guest().read(at, 4096).unwrap();
    assert!(bytes.iter().all(|b| *b == bytes[0]));
    bytes[0]
}

#[test]
fn a_forced_failover_runs_at_the_other_site_and_the_old_one_is_fenced_and_comes_back_in_place() {
    let place = Place::new();
    let (first, second) = two_sites(&place);
    write(&first, 2 * MIB, 9);
    first.ask(&["domain", "point", "d"]);
    let datastore = second.datastore();
    second.task(&["failover", "start", "d", "--datastore", &datastore, "--log-size", "256MiB", "--yes", "d"]);
    second.runs("DOMAIN_MODE_RUNNING_IN_FAILOVER");
    assert_eq!((read(&second, 2 * MIB), read(&second, MIB)), (9, 7));
    let log = value(&page(&second.appliance), "freshet_domain_log_size_bytes{domain=\"d\"}");
    // Less its two superblocks.
    assert_eq!(log, Some((256 * MIB - 8192) as f64), "of the plan's size, which is more than the setting's");
    // The old site writes on, and nobody believes it.
    write(&first, 3 * MIB, 5);
    first.until_mode("DOMAIN_MODE_FENCED");
    write(&second, 3 * MIB, 6);
    second.ask(&["domain", "point", "d"]);
    assert_eq!(read(&second, 3 * MIB), 6);

    // It follows onto the disks that it has, and nothing that diverged is overwritten unless that is said.
    let back = first.datastore();
    let mut follow = vec!["failback", "continuous", "d", "--datastore", &back, "--in-place", "--log-size", "256MiB"];
    let refused = first.appliance.ask(&follow).bad(4);
    assert!(refused.contains("diverge"), "{refused}");
    // Said, and not confirmed by whoever has seen what that is.
    let accepted = [&follow[..], &["--accept-divergence"]].concat();
    let asked = first.appliance.ask(&accepted);
    assert!(asked.code != Some(0) && asked.stderr.contains("would be overwritten: this site wrote"), "{asked:?}");
    follow.extend(["--yes", "d"]);
    assert_eq!(first.guest().read(3 * MIB, 4096).unwrap(), [5; 4096], "it has what it wrote");
    follow.push("--accept-divergence");
    std::fs::write(first.hypervisor("vm-web"), "off\n").unwrap();
    first.task(&follow);
    first.until_mode("DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS");
    first.task(&["failover", "complete", "d", "--planned", "--yes", "d"]);
    first.runs("DOMAIN_MODE_PROTECTED");
    assert_eq!((read(&first, 2 * MIB), read(&first, 3 * MIB), read(&first, MIB)), (9, 6, 7));
}

#[test]
fn a_site_that_cannot_hand_over_says_so_once_and_its_guests_go_on() {
    let place = Place::new();
    let (first, second) = two_sites(&place);
    // Its hypervisor answers nothing any more.
    std::fs::write(first.hypervisor("driver"), "#!/bin/sh\nexit 4\n").unwrap();
    let there = second.datastore();
    let start = ["failover", "start", "d", "--planned", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"];
    let begun = second.ask(&start);
    let id = begun["task"]["id"].as_str().or(begun["id"].as_str()).unwrap().to_owned();
    let ended = second.ended(&id, "TASK_STATE_FAILED");
    // With the words of the first site's task.
    let error = ended["error"].as_str().unwrap();
    assert!(error.contains("turned down") && error.contains("hypervisor"), "{ended:#}");
    first.until_idle();
    let tasks = first.ask(&["task", "list", "--domain", "d"]);
    assert_eq!(tasks["tasks"].as_array().unwrap().len(), 1, "{tasks:#}");
    write(&first, 2 * MIB, 4);
    assert_eq!((read(&first, 2 * MIB), first.power()), (4, "running".to_owned()));
    let shown = first.appliance.until_recoverable("d");
    assert_eq!((&shown["mode"], &shown["owner_site"]), (&"DOMAIN_MODE_PROTECTED".into(), &"first".into()));
}

#[test]
fn a_planned_completion_loses_nothing_and_comes_back_the_same_way() {
    let place = Place::new();
    let (first, mut second) = two_sites(&place);
    write(&first, 2 * MIB, 9);
    let there = second.datastore();
    let follow = ["failover", "continuous", "d", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"];
    // What belongs to the completion is told to be of no use here.
    let shown = second.ask(&[&follow[..], &["--planned", "--dry-run"]].concat());
    assert!(shown["findings"].to_string().contains("is decided when this is completed"), "{shown:#}");
    second.task(&follow);
    second.until_mode("DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS");
    nothing_is_left_to_fetch_after_a_restart(&first, &mut second);
    write(&first, 3 * MIB, 8);
    // What was not thought of when following began is said now.
    let vms = place.path("vms.json");
    std::fs::write(&vms, r#"{"vms":[{"vm":"web","cpus":3}]}"#).unwrap();
    let vms = vms.display().to_string();
    let more = ["--placement", "rack=seven", "--vms", &vms, "--release-limit", "900", "--yes", "d"];
    std::fs::write(first.hypervisor("hangs"), "").unwrap();
    let id = second.begin(&[&["failover", "complete", "d", "--planned"], &more[..]].concat());
    // Who waits is told what is done about it, while that is so.
    let began = std::time::Instant::now();
    while second.ask(&["task", "show", &id])["progress"]["stage"] != "the other site shuts guests down" {
        assert!(began.elapsed() < PATIENCE, "{:#}", second.ask(&["task", "show", &id]));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    // The guest ends by itself.
    first.switch("web", "off");
    let done = second.ended(&id, "TASK_STATE_DONE");
    assert!(done.to_string().contains("shuts guests down: guests have 300 s to shut down"), "{done:#}");
    let spec = std::fs::read_to_string(second.hypervisor("spec-web")).unwrap();
    assert!(spec.contains(r#""cpus":3"#) && spec.contains(r#""rack":"seven""#), "{spec}");
    second.runs("DOMAIN_MODE_RUNNING_IN_FAILOVER");
    assert_eq!(first.power(), "off");
    assert_eq!((read(&second, 2 * MIB), read(&second, 3 * MIB), read(&second, MIB)), (9, 8, 7));

    write(&second, 2 * MIB, 3);
    first.until_idle();
    let back = first.datastore();
    first.task(&[
        "failback",
        "continuous",
        "d",
        "--datastore",
        &back,
        "--in-place",
        "--log-size",
        "256MiB",
        "--yes",
        "d",
    ]);
    write(&second, 3 * MIB, 4);
    first.task(&["failover", "complete", "d", "--planned", "--yes", "d"]);
    first.runs("DOMAIN_MODE_PROTECTED");
    assert_eq!(second.power(), "off");
    assert_eq!((read(&first, 2 * MIB), read(&first, 3 * MIB), read(&first, MIB)), (3, 4, 7));

    // What is left at the other site goes when that is said and confirmed, and the store and the first site's disks stay.
    second.until_idle();
    let disks = std::path::Path::new(&there).join("d");
    assert!(disks.is_dir());
    let forget = ["domain", "forget", "d", "--delete-disks"];
    assert!(second.appliance.ask(&forget).code != Some(0) && disks.is_dir(), "not confirmed");
    second.ask(&[&forget[..], &["--yes", "d"]].concat());
    assert!(!disks.exists() && second.power().is_empty(), "{}", second.power());
    assert_eq!(second.ask(&["domain", "list"])["domains"], serde_json::json!([]));
    assert!(first.appliance.ask(&[&forget[..], &["--yes", "d"]].concat()).bad(4).contains("unprotect them first"));
    write(&first, 2 * MIB, 5);
    first.ask(&["domain", "point", "d"]);
}

/// What a completion would fetch is what has not landed, also where following began anew at a point that the disks equal.
fn nothing_is_left_to_fetch_after_a_restart(first: &Site<'_>, second: &mut Site<'_>) {
    let newest = number(&first.ask(&["domain", "point", "d"])["point"]).unwrap();
    let applied = |shown: &Value| number(&shown["follow"]["applied"]["number"]).is_some_and(|n| n >= newest);
    second.appliance.until("d", "the newest point", applied);
    second.restart();
    second.appliance.until("d", "the newest point again", applied);
    let shown = second.ask(&["failover", "complete", "d", "--planned", "--dry-run"]);
    let left = number(&shown["summary"]["fetch_bytes"]).unwrap_or_default();
    assert!(left < 4096, "{left} bytes: {shown:#}");
    let points = second.ask(&["domain", "points", "d", "--most", "2"]);
    let told = &points["points"][0];
    assert!(
        number(&told["point"]["number"]) >= Some(newest) && told["vms"] == serde_json::json!(["web"]),
        "{points:#}"
    );
    assert_eq!(points["points"].as_array().map(Vec::len), Some(2), "{points:#}");
}

#[test]
fn only_vms_that_are_recoverable_take_part_in_a_failover_as_needed() {
    let mut place = Place::new();
    place.protect = "sync_rate = \"1MiB\"\n".to_owned();
    let (first, second) = two_sites(&place);
    let image = place.path("large");
    std::fs::write(&image, vec![3; 128 * MIB as usize]).unwrap();
    first.ask(&["vm", "protect", "d", "db", "--disk", &format!("root={}", image.display())]);
    first.ask(&["domain", "point", "d"]);
    let of = |shown: &Value, vm: &str| {
        let vms = shown["vms"].as_array().cloned().unwrap_or_default();
        vms.iter().find(|of| of["name"] == vm).map(|of| of["status"].as_str().unwrap().to_owned())
    };
    second
        .appliance
        .until("d", "both VMs", |shown| of(shown, "db").as_deref() == Some("PROTECTION_STATUS_INITIAL_SYNC"));
    let there = second.datastore();
    let start = ["failover", "start", "d", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"];
    let told = second.ask(&[&start[..], &["--dry-run"]].concat());
    let db = told["summary"]["vms"].as_array().unwrap().iter().find(|of| of["vm"] == "db").unwrap();
    assert!(db["included"] != true && db["note"].to_string().contains("Initial Sync"), "{told:#}");
    second.task(&start);
    second.runs("DOMAIN_MODE_RUNNING_IN_FAILOVER");
    assert_eq!((second.power_of("web"), second.power_of("db")), ("running".to_owned(), String::new()));
    assert_eq!(read(&second, MIB), 7);
    // The one that was left behind keeps nobody from being recoverable, nor the domain from going back.
    let shown = second.appliance.until_recoverable("d");
    assert_eq!(of(&shown, "db").as_deref(), Some("PROTECTION_STATUS_UNPROTECTED"), "{shown:#}");
    assert!(number(&shown["rpo_ms"]).is_some(), "of those that are protected: {shown:#}");
    let back = first.datastore();
    let home = ["failback", "start", "d", "--planned", "--datastore", &back, "--log-size", "256MiB", "--yes", "d"];
    first.until_mode("DOMAIN_MODE_FENCED");
    first.switch("web", "off");
    first.task(&[&home[..], &["--accept-divergence"]].concat());
    first.runs("DOMAIN_MODE_PROTECTED");
    assert_eq!((second.power(), read(&first, MIB)), ("off".to_owned(), 7));
}

#[test]
fn of_two_operators_one_starts_and_who_comes_while_it_runs_or_is_cancelled_is_told() {
    let place = Place::new();
    let (first, second) = two_sites(&place);
    std::fs::write(first.hypervisor("hangs"), "").unwrap();
    let there = second.datastore();
    let continuous = ["failover", "continuous", "d", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"];
    assert!(second.appliance.ask(&["failover", "complete", "d", "--planned", "--yes", "d"]).code != Some(0));
    second.task(&continuous);
    second.until_mode("DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS");
    let complete = ["failover", "complete", "d", "--planned", "--yes", "d"];
    let both: Vec<_> = std::thread::scope(|scope| {
        let ask = || second.appliance.ask(&complete);
        let running: Vec<_> = (0..2).map(|_| scope.spawn(ask)).collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let (good, bad): (Vec<_>, Vec<_>) = both.into_iter().partition(|ran| ran.code == Some(0));
    assert_eq!((good.len(), bad.len()), (1, 1), "{good:?} {bad:?}");
    let id = good[0].json["task"]["id"].as_str().or(good[0].json["id"].as_str()).unwrap().to_owned();
    let told = bad.into_iter().next().unwrap().bad(4);
    assert!(told.contains(&id) || told.contains("starts a complete"), "{told}");

    // While it is cancelled, and as soon as it was: nothing is half done, and what comes next begins anew.
    second.until_step(&id, "await-release");
    let (cancelled, completed) = std::thread::scope(|scope| {
        let cancel = scope.spawn(|| second.appliance.ask(&["failover", "cancel", "d"]));
        let complete = scope.spawn(|| second.appliance.ask(&complete));
        (cancel.join().unwrap(), complete.join().unwrap())
    });
    cancelled.good();
    second.ended(&id, "TASK_STATE_CANCELLED");
    match completed.code {
        Some(0) => {
            let next = completed.json["task"]["id"].as_str().or(completed.json["id"].as_str()).unwrap().to_owned();
            assert_ne!(next, id);
            second.ask(&["failover", "cancel", "d"]);
            second.ended(&next, "TASK_STATE_CANCELLED");
        }
        _ => assert!(completed.bad(4).contains(&id)),
    }
    second.until_mode("DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS");
    std::fs::remove_file(first.hypervisor("hangs")).unwrap();
    // Its operator was asked about the guest that hangs.
    let tasks = first.ask(&["task", "list", "--domain", "d", "--running"]);
    for task in tasks["tasks"].as_array().into_iter().flatten() {
        first.appliance.ask(&[
            "task",
            "answer",
            task["id"].as_str().unwrap(),
            &task["question"]["number"].to_string(),
            "abort",
        ]);
    }
    first.until_idle();
    write(&first, 3 * MIB, 2);
    assert_eq!((read(&first, 3 * MIB), first.power()), (2, "running".to_owned()));
}

#[test]
fn of_two_sites_that_complete_at_the_same_moment_one_has_it_and_the_other_says_who() {
    let place = Place::new();
    let (first, second) = two_sites(&place);
    write(&first, 2 * MIB, 9);
    first.ask(&["domain", "point", "d"]);
    let third = Site::start(&place, "third");
    third.ask(&["store", "add", "s", "--url", &place.store_url()]);
    third.ask(&["domain", "import", "d", "--store", "s"]);
    let both = [&second, &third];
    for site in both {
        let there = site.datastore();
        site.task(&["failover", "continuous", "d", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"]);
    }
    first.appliance.kill();
    let complete = ["failover", "complete", "d", "--yes", "d"];
    let ids: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = both.map(|site| scope.spawn(|| site.appliance.ask(&complete))).into();
        let begun = running.into_iter().map(|one| one.join().unwrap());
        begun
            .map(|ran| ran.json["task"]["id"].as_str().or(ran.json["id"].as_str()).unwrap_or_default().to_owned())
            .collect()
    });
    // One may have come so late that its start was refused; then that said it.
    let ends: Vec<Option<Value>> =
        both.iter().zip(&ids).map(|(site, id)| (!id.is_empty()).then(|| site.over(id))).collect();
    let won: Vec<usize> =
        (0..2).filter(|i| ends[*i].as_ref().is_some_and(|end| end["state"] == "TASK_STATE_DONE")).collect();
    assert_eq!(won.len(), 1, "{ends:#?}");
    let (winner, loser) = (both[won[0]], both[1 - won[0]]);
    if let Some(lost) = &ends[1 - won[0]] {
        assert!(lost["error"].as_str().unwrap().contains(winner.name), "{lost:#}");
    }
    winner.runs("DOMAIN_MODE_RUNNING_IN_FAILOVER");
    assert_eq!((read(winner, 2 * MIB), read(winner, MIB)), (9, 7));
    assert_ne!(loser.power(), "running");
    let shown = loser.ask(&["domain", "show", "d", "--fresh"]);
    assert_eq!(shown["owner_site"], winner.name, "{shown:#}");
}

#[test]
fn progress_is_told_disk_by_disk_while_they_are_filled() {
    let (place, server) = place_with_s3();
    let impatient = |place: &Place, name: &str, more: &str| place.serve_with(name, &format!("{more}{IMPATIENT}"));
    let (first, second) = protected(Site::start_by(&place, "first", impatient), Site::start(&place, "second"));
    // Each read of data takes longer than progress is looked at.
    server.faults().set([Rule::new(Fault::Latency(PATIENCE / 40)).verb(Verb::Get).key("segments/")]);
    let there = second.datastore();
    let begun =
        second.ask(&["failover", "continuous", "d", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"]);
    let id = begun["task"]["id"].as_str().or(begun["id"].as_str()).unwrap();
    let watched = second.appliance.ask(&["task", "watch", id]);
    assert_eq!(watched.code, Some(0), "{watched:?}");
    let told = |line: &str| -> Option<(String, u64)> {
        let task: Value = serde_json::from_str(line).ok()?;
        let disk = task["progress"]["disks"][0].clone();
        Some((disk["disk"].as_str()?.to_owned(), number(&disk["total_bytes"]).unwrap_or_default()))
    };
    let text = watched.json.as_str().unwrap_or_default().to_owned();
    let disks: Vec<(String, u64)> = text.lines().filter_map(told).collect();
    assert!(disks.iter().any(|(disk, total)| disk == "web/root" && *total >= 8192), "{text}");

    // The same of what the first site ships before it lets go: its guest writes to the last.
    std::fs::write(first.hypervisor("hangs"), "").unwrap();
    let id = second.begin(&["failover", "complete", "d", "--planned", "--yes", "d"]);
    let asked = first.asked("d");
    let (hands_over, question) = (asked["id"].as_str().unwrap().to_owned(), asked["question"]["number"].to_string());
    server.faults().set([Rule::new(Fault::Latency(PATIENCE / 20)).verb(Verb::Put).key("segments/")]);
    let written: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(MIB as usize).collect();
    first.guest().write(2 * MIB, &written).unwrap();
    std::fs::remove_file(first.hypervisor("hangs")).unwrap();
    first.ask(&["task", "answer", &hands_over, &question, "wait"]);
    let watched = first.appliance.ask(&["task", "watch", &hands_over]);
    let text = watched.json.as_str().unwrap_or_default().to_owned();
    let shipped = |line: &str| {
        let progress = serde_json::from_str::<Value>(line).ok()?["progress"].clone();
        (progress["stage"] == "shipping").then(|| (number(&progress["done_bytes"]), number(&progress["total_bytes"])))
    };
    let shipped: Vec<_> = text.lines().filter_map(shipped).collect();
    assert!(shipped.iter().any(|(_, total)| total.is_some_and(|total| total >= MIB)), "{text}");
    assert!(shipped.iter().all(|(done, total)| done.unwrap_or_default() <= total.unwrap_or_default()), "{shipped:?}");
    second.ended(&id, "TASK_STATE_DONE");
    assert!(second.guest().read(2 * MIB, MIB as u32).unwrap() == written);
}

#[test]
fn what_a_site_knows_by_itself_is_shown_while_the_store_is_away_and_following_ends_on_request() {
    let (place, server) = place_with_s3();
    let (first, second) = two_sites(&place);
    let there = second.datastore();
    let follow = ["failover", "continuous", "d", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"];
    let planned = second.ask(&[&follow[..2], &follow[2..7], &["--dry-run"]].concat());
    assert!(planned["summary"]["loss"].as_str().is_none_or(str::is_empty), "{planned:#}");
    second.task(&follow);
    second.until_mode("DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS");

    server.set_reachable(false).unwrap();
    let shown = second.appliance.until("d", "an outage", |shown| !shown["problems"].as_array().unwrap().is_empty());
    assert_eq!(shown["mode"], "DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS", "{shown:#}");
    assert!(number(&shown["follow"]["applied"]["number"]).is_some_and(|n| n > 0), "{shown:#}");
    // The rest as of the last look that was answered, with its time; ages go on.
    let shown = second.appliance.until("d", "when it was seen", |shown| shown.to_string().contains("was seen at 20"));
    assert_eq!((&shown["owner_site"], &shown["vms"][0]["name"]), (&"first".into(), &"web".into()), "{shown:#}");
    assert_eq!(shown["vms"][0]["status"], "PROTECTION_STATUS_RECOVERABLE", "{shown:#}");
    let ages = |shown: &Value| {
        let (applied, newest) = (&shown["follow"]["applied"]["age_ms"], &shown["newest_point"]["age_ms"]);
        [number(applied), number(newest), number(&shown["rpo_ms"]), number(&shown["vms"][0]["rpo_ms"])]
    };
    let before = ages(&shown);
    let older = |shown: &Value| ages(shown).iter().zip(&before).all(|(now, then)| then.is_some() && now > then);
    second.appliance.until("d", "ages that go on", older);
    let listed = second.ask(&["domain", "list"]);
    assert_eq!(listed["domains"][0]["mode"], shown["mode"], "{listed:#}");
    assert_eq!(first.ask(&["domain", "show", "d"])["mode"], "DOMAIN_MODE_PROTECTED");
    server.set_reachable(true).unwrap();

    // It can be ended though no task works on it, and begun anew where it was.
    second.ask(&["failover", "cancel", "d"]);
    second.until_mode("DOMAIN_MODE_IMPORTED");
    assert!(second.appliance.ask(&["failover", "cancel", "d"]).bad(9).contains("nothing works on"));
    second.task(&follow);
    // Forgotten, nothing goes on; found again, it is followed where it is said then.
    second.ask(&["domain", "forget", "d", "--yes", "d"]);
    second.ask(&["domain", "import", "d", "--store", "s"]);
    let other = place.path("second-other");
    std::fs::create_dir(&other).unwrap();
    let other = other.display().to_string();
    second.task(&["failover", "continuous", "d", "--datastore", &other, "--log-size", "256MiB", "--yes", "d"]);
    write(&first, 2 * MIB, 9);
    let point = number(&first.ask(&["domain", "point", "d"])["point"]).unwrap();
    second
        .appliance
        .until("d", "the new place", |shown| number(&shown["follow"]["applied"]["number"]).is_some_and(|n| n >= point));
    assert!(std::path::Path::new(&other).join("d/web/root.raw").is_file());
    figures_of_what_follows(&second);
    let kept = a_disk_leaves(&first, &second, &other);
    delete_the_kept_copy(&second, &kept);
    let events = second.ask(&["event", "list"]).to_string();
    assert!(events.contains("task ended"), "{events}");
}

/// Each disk has the figures of what is so of it, and the budgets are told.
fn figures_of_what_follows(second: &Site<'_>) {
    let text = page(&second.appliance);
    let of_disk = |name: &str| value(&text, &format!("{name}{{domain=\"d\",vm=\"web\",disk=\"root\"}}"));
    let of_domain = |name: &str| value(&text, &format!("{name}{{domain=\"d\"}}"));
    for what in ["landed_point", "applied_point"] {
        let own = of_disk(&format!("freshet_disk_{what}"));
        assert!(own > Some(0.0) && own == of_domain(&format!("freshet_domain_{what}")), "{what}: {text}");
    }
    assert!(of_disk("freshet_disk_lag_seconds").is_some(), "{text}");
    let (total, done) = (of_disk("freshet_disk_hydrate_total_bytes"), of_disk("freshet_disk_hydrate_done_bytes"));
    assert!(total >= Some(8192.0) && total == done, "{text}");
    assert_eq!(of_domain("freshet_domain_log_size_bytes"), Some((256 * MIB) as f64));
    for part in ["fetched", "landed", "decoded"] {
        let of = |name: &str| value(&text, &format!("{name}{{domain=\"d\",part=\"{part}\"}}"));
        let (used, size) = (of("freshet_domain_memory_used_bytes"), of("freshet_domain_memory_size_bytes"));
        assert!(size >= Some(MIB as f64) && used <= size && used.is_some(), "{part}: {text}");
    }
    assert_eq!(of_disk("freshet_disk_rpo_seconds"), None, "that is told where it is protected: {text}");
}

/// A disk joins the domain, and leaves it again; the copy of it that is kept.
fn a_disk_leaves(first: &Site<'_>, second: &Site<'_>, datastore: &str) -> std::path::PathBuf {
    let extra = first.place.path("extra");
    std::fs::write(&extra, vec![5; MIB as usize]).unwrap();
    first.ask(&["vm", "add-disk", "d", "web", "--disk", &format!("extra={}", extra.display())]);
    let copy = std::path::Path::new(datastore).join("d/web/extra.raw");
    let began = std::time::Instant::now();
    while std::fs::read(&copy).ok().is_none_or(|bytes| bytes != vec![5; MIB as usize]) {
        assert!(began.elapsed() < PATIENCE, "the disk that joined is not here");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(second.ask(&["domain", "show", "d"])["kept_copies"].as_u64().unwrap_or_default(), 0);
    first.ask(&["vm", "remove-disk", "d", "web", "extra"]);
    let one = |shown: &Value| number(&shown["kept_copies"]) == Some(1);
    second.appliance.until("d", "the copy of the disk that left", one);
    assert!(!copy.exists());
    let told = second.ask(&["domain", "copies", "d"]);
    std::path::PathBuf::from(told["copies"][0]["path"].as_str().unwrap())
}

/// A kept copy is told, and deleted by who names it twice, and by nobody else.
fn delete_the_kept_copy(second: &Site<'_>, path: &std::path::Path) {
    assert!(std::fs::read(path).unwrap() == vec![5; MIB as usize], "{}", path.display());
    let told = second.ask(&["domain", "copies", "d"]);
    let (copy, id) = (&told["copies"][0], told["copies"][0]["disk_id"].as_str().unwrap());
    assert_eq!(told["copies"].as_array().unwrap().len(), 1, "{told:#}");
    assert_eq!((copy["vm"].as_str(), copy["disk"].as_str()), (Some("web"), Some("extra")), "{told:#}");
    assert_eq!(number(&copy["size_bytes"]), Some(MIB), "{told:#}");
    assert!(number(&copy["held_bytes"]) >= Some(MIB) && copy["left"].is_string(), "{told:#}");
    let shown = second.ask(&["domain", "show", "d"]);
    assert_eq!(number(&shown["kept_copy_bytes"]), number(&copy["held_bytes"]), "{shown:#}");

    let delete =
        |id: &str, yes: &[&str]| second.appliance.ask(&[&["domain", "delete-copy", "d", id][..], yes].concat());
    let asked = delete(id, &[]).bad(4);
    assert!(asked.contains("web/extra") && asked.contains(&path.display().to_string()), "{asked}");
    assert!(delete(id, &["--yes", "web/root"]).bad(2).contains("nothing was done"));
    let other = "00000000-0000-4000-8000-000000000000";
    assert!(delete(other, &["--yes", "web/extra"]).bad(9).contains("domain copies"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let unconfirmed = runtime.block_on(async {
        let (domain, disk_id) = ("d".to_owned(), id.to_owned());
        let request = DeleteKeptCopyRequest { domain, disk_id, confirm: "web/root".to_owned() };
        second.appliance.client().await.domains().delete_kept_copy(request).await.unwrap_err()
    });
    assert!(unconfirmed.message().contains("what the disk was called"), "{unconfirmed:?}");
    assert!(path.exists());
    delete(id, &["--yes", "web/extra"]).good();
    assert!(!path.exists());
    delete(id, &["--yes", "web/extra"]).bad(9);
    let events = second.ask(&["event", "list", "--subject", "d"]).to_string();
    assert!(events.contains("kept copy deleted") && events.contains(id), "{events}");
    assert_eq!(number(&second.ask(&["domain", "show", "d"])["kept_copies"]).unwrap_or_default(), 0);
}

#[test]
fn a_vm_that_is_being_synced_keeps_all_guests_running_and_the_runbook_of_now_is_followed() {
    let (place, server) = place_with_s3();
    let (first, second) = two_sites(&place);
    let there = second.datastore();
    second.task(&["failover", "continuous", "d", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"]);
    // Set after following began.
    let (runbook, marks) = (place.path("runbook.toml"), place.path("marks").display().to_string());
    let text = "[[groups]]\nname = \"all\"\n[[groups.vms]]\nvm = \"web\"\nscripts_after = [{ command = [\"touch\", ";
    std::fs::write(&runbook, format!("{text}{marks:?}] }}]\n")).unwrap();
    second.ask(&["runbook", "set", "d", "failover", &runbook.display().to_string()]);

    // A VM joins, and nothing of it is shipped.
    server.faults().set([Rule::new(Fault::Unavailable).verb(Verb::Put).key("segments/")]);
    first.ask(&["vm", "protect", "d", "db", "--disk", &format!("root={}", place.image("db").display())]);
    first.switch("db", "running");
    let id = second.begin(&["failover", "complete", "d", "--planned", "--yes", "d"]);
    let began = std::time::Instant::now();
    loop {
        let told = first.ask(&["task", "list", "--domain", "d", "--running"]).to_string();
        if told.contains("would not cover db") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "nothing keeps it from shutting down: {told}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!((first.power(), first.power_of("db")), ("running".to_owned(), "running".to_owned()));
    server.faults().clear();
    second.ended(&id, "TASK_STATE_DONE");
    second.runs("DOMAIN_MODE_RUNNING_IN_FAILOVER");
    assert_eq!((second.power_of("db"), first.power()), ("running".to_owned(), "off".to_owned()));
    assert!(std::path::Path::new(&marks).exists(), "the runbook that is set now counts");
    let began = std::time::Instant::now();
    while !first.ask(&["event", "list"]).to_string().contains("task ended") {
        assert!(began.elapsed() < PATIENCE, "how its hand-over ended is not written down");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
