//! Every mode in turn, with guests that write all the time; content is checked at each boot, and in files at the end.

use std::path::PathBuf;

use super::estate::{Estate, FENCED, FIRST, FOLLOWS, HOME, SECOND};
use super::guest::Vm;
use crate::support::site::Site;

/// Commands as they are asked.
fn refs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn the_sites_reach_the_storage_site_and_nothing_else() {
    let Some(estate) = Estate::new("the_sites_reach_the_storage_site_and_nothing_else") else { return };
    let reach = |from: &str, to: &str| {
        let address: std::net::SocketAddr = to.parse().unwrap();
        let connect = || std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_secs(5));
        estate.place.networks[from].within(connect).map(drop).map_err(|error| error.kind())
    };
    // Refused: there is a way, and nobody listens.
    assert_eq!(reach("first", "10.77.0.1:9"), Err(std::io::ErrorKind::ConnectionRefused));
    assert_eq!(reach("first", "10.77.1.2:9"), Err(std::io::ErrorKind::NetworkUnreachable));
    assert_eq!(reach("second", "10.77.0.2:9"), Err(std::io::ErrorKind::NetworkUnreachable));
}

#[test]
fn a_site_that_is_cut_off_is_taken_over_and_comes_back_in_place() {
    let Some(mut estate) = Estate::with_domain("a_site_that_is_cut_off_is_taken_over_and_comes_back_in_place") else {
        return;
    };
    // As needed, by force, while the first site is gone.
    estate.write_on(50);
    assert!(estate.point(FIRST));
    estate.link(FIRST, false);
    estate.write_on(50);
    estate.vms[0].may_lose(true);
    estate.sites[SECOND].task(&refs(&estate.plan(SECOND, &["failover", "start"], &[])));
    estate.runs(SECOND);
    assert!(estate.point(SECOND));
    // It is back, says that it is fenced and what it holds of its own, and its guest writes on, for itself.
    estate.link(FIRST, true);
    let fenced = estate.sites[FIRST].until_mode(FENCED);
    let diverged = fenced["diverged"]["disks"].as_array().cloned().unwrap_or_default();
    assert!(diverged.iter().any(|disk| disk["disk"] == "web/root" && !disk["ranges"].is_null()), "{fenced:#}");
    assert_eq!(estate.sites[FIRST].power(), "running");
    estate.diverge(FIRST);
    // Continuous failback onto its own disks, completed by force with the second site cut off: fenced in its turn.
    estate.sites[FIRST].switch("web", "off");
    estate.follow(FIRST, true);
    estate.follows(FIRST);
    assert!(estate.point(SECOND));
    estate.link(SECOND, false);
    estate.write_on(50);
    estate.vms[0].may_lose(true);
    estate.sites[FIRST].task(&["failover", "complete", "d", "--yes", "d"]);
    estate.runs(FIRST);
    estate.link(SECOND, true);
    estate.sites[SECOND].until_mode(FENCED);
    estate.sites[SECOND].switch("web", "off");
    estate.follow(SECOND, true);
    estate.same_disks(SECOND);
}

#[test]
fn every_planned_mode_in_turn_ends_with_the_roles_of_the_start() {
    let Some(mut estate) = Estate::with_domain("every_planned_mode_in_turn_ends_with_the_roles_of_the_start") else {
        return;
    };
    // As needed, and the first site follows by itself from then on: said first, and nothing is done without a yes.
    let mut args = estate.plan(SECOND, &["failover", "start"], &["--planned"]);
    args.extend(estate.remote(SECOND));
    let unsaid: Vec<&str> = args.iter().map(String::as_str).filter(|arg| *arg != "--yes").collect();
    let at = unsaid.iter().rposition(|arg| *arg == "d").unwrap();
    let asked = estate.sites[SECOND].appliance.ask(&[&unsaid[..at], &unsaid[at + 1..]].concat()).bad(4);
    assert!(asked.contains("site first keeps its disks"), "{asked}");
    estate.sites[SECOND].task(&refs(&args));
    estate.runs(SECOND);
    estate.follows(FIRST);
    estate.sites[FIRST].until_idle();
    // Back the same way; the second follows by itself.
    estate.complete_planned(FIRST, true);
    estate.runs(FIRST);
    estate.follows(SECOND);

    // VMs and disks join and leave meanwhile.
    let extra = estate.disk(FIRST, "web", "extra");
    let content: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(1 << 20).collect();
    std::fs::write(&extra, &content).unwrap();
    let disk = format!("extra={}", extra.display());
    estate.sites[FIRST].ask(&["vm", "add-disk", "d", "web", "--disk", &disk]);
    estate.protect(Vm::new("db", &["root"]));
    estate.follows(SECOND);
    let copy = estate.disk(SECOND, "web", "extra");
    assert!(std::fs::read(&copy).unwrap() == content);
    estate.sites[FIRST].ask(&["vm", "remove-disk", "d", "web", "extra"]);
    estate.follows(SECOND);
    assert!(!copy.exists());
    let kept: Vec<PathBuf> = files(&PathBuf::from(estate.sites[SECOND].datastore()).join("d/.detached"));
    assert!(kept.len() == 1 && std::fs::read(&kept[0]).unwrap() == content, "{kept:?}");

    // There with both VMs, without anything that follows afterwards; and back, as needed.
    estate.complete_planned(SECOND, false);
    estate.runs(SECOND);
    estate.sites[FIRST].until_idle();
    let imported = estate.sites[FIRST].until_mode("DOMAIN_MODE_IMPORTED");
    assert!(imported["follow"].is_null(), "nobody asked it to follow this time: {imported:#}");
    estate.sites[FIRST].task(&refs(&estate.plan(FIRST, &["failback", "start"], &["--planned", "--in-place"])));
    estate.runs(FIRST);
    estate.sites[SECOND].until_idle();
    estate.follow(SECOND, true);
    estate.same_disks(SECOND);
    let modes = [FIRST, SECOND].map(|site| estate.sites[site].ask(&["domain", "show", "d"])["mode"].clone());
    assert_eq!(modes, [HOME, FOLLOWS]);
}

/// Whether the task that works on the domain at a site is at this step, in this state.
fn is_at(site: &Site, name: &str, state: &str) -> bool {
    let tasks = site.ask(&["task", "list", "--domain", "d", "--running"]);
    let steps = tasks["tasks"][0]["steps"].as_array().cloned().unwrap_or_default();
    steps.iter().any(|step| step["name"] == name && step["state"] == state)
}

#[test]
fn a_hand_over_that_comes_to_nothing_gives_the_guests_back_once_and_for_all() {
    let test = "a_hand_over_that_comes_to_nothing_gives_the_guests_back_once_and_for_all";
    let Some(mut estate) = Estate::with_domain(test) else { return };
    let complete = ["failover", "complete", "d", "--planned", "--yes", "d"];
    estate.follow(SECOND, false);
    estate.follows(SECOND);
    // The second site stands still once it has asked, and does not want the domain any more when it is released.
    let id = estate.sites[SECOND].begin(&complete);
    estate.until("the second asks", |estate| is_at(&estate.sites[SECOND], "await-release", "running"));
    estate.sites[SECOND].ask(&["failover", "pause", "d"]);
    estate.until("the first waits for it", |estate| is_at(&estate.sites[FIRST], "await-taker", "running"));
    assert_eq!((estate.sites[FIRST].power().as_str(), estate.vms[0].boots()), ("off", 1));
    estate.sites[SECOND].ask(&["failover", "cancel", "d"]);
    estate.sites[SECOND].ended(&id, "TASK_STATE_CANCELLED");
    estate.sites[FIRST].until_idle();
    estate.runs(FIRST);
    assert_eq!(estate.vms[0].boots(), 2, "by itself");

    // It goes down once it has asked; the first gives everything up, nobody comes, and its operator takes that back.
    let id = estate.sites[SECOND].begin(&complete);
    estate.until("the second asks", |estate| is_at(&estate.sites[SECOND], "await-release", "running"));
    estate.sites[SECOND].crash();
    estate.until("the first waits for it", |estate| is_at(&estate.sites[FIRST], "await-taker", "running"));
    estate.sites[FIRST].ask(&["failback", "withdraw", "d"]);
    estate.sites[FIRST].until_idle();
    estate.runs(FIRST);
    // Late, it is told, and the guest runs on.
    estate.sites[SECOND].restart();
    let told = estate.sites[SECOND].ended(&id, "TASK_STATE_FAILED");
    assert!(told.to_string().contains("taken back"), "{told:#}");
    estate.runs(FIRST);
    assert_eq!(estate.vms[0].boots(), 3, "nobody shut it down again");
    estate.same_disks(SECOND);
}

/// Files below a directory.
pub(super) fn files(dir: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}
