//! Points with the guests' file systems frozen: marked where they were, and every guest thawed whatever happens.

use std::time::{Duration, Instant};

use super::appliance::{Appliance, PATIENCE, Place};

/// A hypervisor with one VM that runs, whose agent does what files beside it say.
const HYPERVISOR: &str = r#"#!/bin/sh
dir=$(dirname "$0")
cat > /dev/null
echo "$1" >> "$dir/calls"
case $1 in
    state) echo '{"state":"running"}';;
    freeze) [ -e "$dir/none" ] && exit 69
        [ -e "$dir/hangs" ] && sleep 60
        echo frozen > "$dir/guest"; echo '{"frozen":true}';;
    thaw) [ -e "$dir/deaf" ] && exit 7
        echo thawed > "$dir/guest";;
    *) exit 69;;
esac
"#;

struct Site {
    place: Place,
}

impl Site {
    fn new() -> Site {
        use std::os::unix::fs::PermissionsExt;
        let place = Place::new();
        std::fs::create_dir(place.path("hv")).unwrap();
        std::fs::write(place.path("hv/driver"), HYPERVISOR).unwrap();
        std::fs::set_permissions(place.path("hv/driver"), std::fs::Permissions::from_mode(0o755)).unwrap();
        Site { place }
    }

    fn start(&self, protect: &str) -> Appliance {
        let more = format!("[hypervisor]\ncommand = \"{}\"\n", self.place.path("hv/driver").display());
        let settings = self.place.settings("first", &more);
        let text = std::fs::read_to_string(&settings).unwrap();
        std::fs::write(&settings, text.replace("[protect]\n", &format!("[protect]\n{protect}\n"))).unwrap();
        Appliance::start(&settings, &self.place.path("first-api.sock")).unwrap()
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.place.path("hv").join(name)).unwrap_or_default()
    }

    fn say(&self, name: &str) {
        std::fs::write(self.place.path("hv").join(name), "").unwrap();
    }

    fn unsay(&self, name: &str) {
        std::fs::remove_file(self.place.path("hv").join(name)).unwrap();
    }

    /// The verbs after the first `from` ones that are about freezing.
    fn freezing(&self) -> Vec<String> {
        self.file("calls").lines().filter(|v| ["freeze", "thaw"].contains(v)).map(str::to_owned).collect()
    }

    /// Whether the point of this number carries the mark, as anybody reads it in the storage site.
    fn is_marked(&self, point: u64) -> bool {
        let mut command = super::appliance::freshet();
        command.args(["--json", "points", "--store", &self.place.store_url(), "--domain", "d"]);
        let points = super::appliance::Ran::of(&mut command).good();
        let list = points["points"].as_array().unwrap_or_else(|| panic!("{points:#}"));
        let of_number = |p: &&serde_json::Value| p["point"] == point;
        list.iter().find(of_number).unwrap_or_else(|| panic!("no {point} in {points:#}"))["quiesced"] == true
    }
}

impl Site {
    /// Processes that stand by to thaw guests of this site.
    fn guards(&self) -> Vec<rustix::process::Pid> {
        let (flag, place) = ("--thaw-when-alone", self.place.path("first.toml").display().to_string());
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter(|pid| {
            let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments).into_owned();
            arguments.contains(flag) && arguments.contains(&place)
        });
        pids.filter_map(rustix::process::Pid::from_raw).collect()
    }

    /// Kills them; how many there were.
    fn kill_guards(&self) -> usize {
        let guards = self.guards();
        for guard in &guards {
            let _ = rustix::process::kill_process(*guard, rustix::process::Signal::KILL);
        }
        until("their end", || self.guards().is_empty());
        guards.len()
    }

    fn nobody_is_noted(&self) -> bool {
        std::fs::read_dir(self.place.path("first-state/frozen")).unwrap().next().is_none()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for guard in self.guards() {
            let _ = rustix::process::kill_process(guard, rustix::process::Signal::KILL);
        }
    }
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < PATIENCE, "{what} never came");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn point_of(cut: &serde_json::Value) -> u64 {
    cut["point"].as_str().and_then(|n| n.parse().ok()).or(cut["point"].as_u64()).unwrap_or_else(|| panic!("{cut:#}"))
}

#[test]
fn a_guest_is_frozen_while_its_point_is_cut_and_only_then_the_point_says_so() {
    let site = Site::new();
    let first = site.start("");
    let image = site.place.image("root");
    first.protect(&site.place, &image);
    first.until_recoverable("d");
    let plain = first.ask(&["domain", "point", "d"]).good();
    assert!(site.freezing().is_empty() && !site.is_marked(point_of(&plain)));
    let cut = first.ask(&["domain", "point", "d", "--quiesce"]).good();
    assert_eq!(cut["quiesced"], true, "{cut:#}");
    assert_eq!((site.freezing(), site.file("guest").trim()), (vec!["freeze".into(), "thaw".into()], "thawed"));
    assert!(site.is_marked(point_of(&cut)));

    // Who joined later is frozen too; who left is not.
    let data = site.place.image("data");
    first.ask(&["vm", "protect", "d", "db", "--disk", &format!("root={}", data.display())]).good();
    first.until_recoverable("d");
    let cut = first.ask(&["domain", "point", "d", "--quiesce"]).good();
    assert_eq!((&cut["quiesced"], site.freezing()[2..].len()), (&true.into(), 4), "{cut:#}");
    first.ask(&["vm", "unprotect", "d", "db"]).good();
    first.ask(&["domain", "point", "d", "--quiesce"]).good();
    assert_eq!(site.freezing()[6..], ["freeze", "thaw"]);

    site.say("none");
    let cut = first.ask(&["domain", "point", "d", "--quiesce"]).good();
    assert_ne!(cut["quiesced"], true, "{cut:#}");
    assert!(
        cut["leftOut"].to_string().contains("no agent") || cut["left_out"].to_string().contains("no agent"),
        "{cut:#}"
    );
    assert!(!site.is_marked(point_of(&cut)));
    // Nothing was asked of it: nothing is to be thawed.
    assert_eq!(site.freezing()[8..], ["freeze"]);
}

#[test]
fn a_guest_that_hangs_is_thawed_and_its_point_is_an_ordinary_one() {
    let site = Site::new();
    let first = site.start("freeze_limit = \"1s\"");
    first.protect(&site.place, &site.place.image("root"));
    first.until_recoverable("d");
    site.say("hangs");
    let cut = first.ask(&["domain", "point", "d", "--quiesce"]).good();
    assert_ne!(cut["quiesced"], true, "{cut:#}");
    assert!(cut.to_string().contains("did not freeze it within"), "{cut:#}");
    assert_eq!((site.freezing(), site.file("guest").trim()), (vec!["freeze".into(), "thaw".into()], "thawed"));
}

#[test]
fn points_are_cut_so_by_themselves_and_who_could_not_be_thawed_is_thawed_after_a_restart() {
    let site = Site::new();
    let first = site.start("quiesce_every = \"1s\"");
    site.say("deaf");
    first.protect(&site.place, &site.place.image("root"));
    until("a frozen guest", || site.file("guest").trim() == "frozen");
    first.kill();
    // Who stands by is killed, too: as where the host lost its power.
    assert_eq!(site.kill_guards(), 1);
    // What it had begun comes to an end.
    let mut calls = String::new();
    until("quiet", || {
        let before = std::mem::replace(&mut calls, site.file("calls"));
        std::thread::sleep(Duration::from_millis(500));
        before == calls
    });
    site.unsay("deaf");
    let before = site.freezing().len();
    let first = site.start("");
    until("a thawed guest", || site.file("guest").trim() == "thawed");
    assert_eq!(site.freezing()[before..], ["thaw"]);
    // Nobody is noted any more.
    until("its note gone", || site.nobody_is_noted());
    assert!(first.stop().success());
}

#[test]
fn an_appliance_that_dies_leaves_no_guest_frozen() {
    let site = Site::new();
    let first = site.start("");
    first.protect(&site.place, &site.place.image("root"));
    first.until_recoverable("d");
    // Nobody is frozen where nobody stands by: who would, finds other settings than the appliance has.
    let settings = site.place.path("first.toml");
    let text = std::fs::read_to_string(&settings).unwrap();
    for changed in [text.replace("state = ", "stat = "), text.replace("first-state", "other-state")] {
        std::fs::write(&settings, changed).unwrap();
        let told = first.ask(&["domain", "point", "d", "--quiesce"]).bad(4);
        assert!(told.contains("nobody stands by to thaw guests") && told.contains("config check"), "{told}");
    }
    assert_eq!((site.freezing(), site.kill_guards()), (Vec::new(), 0));
    std::fs::write(&settings, text).unwrap();
    // Nobody stands by where nobody is frozen.
    first.ask(&["domain", "point", "d", "--quiesce"]).good();
    assert_eq!(site.kill_guards(), 0);
    site.say("deaf");
    first.ask(&["domain", "point", "d", "--quiesce"]).good();
    assert_eq!(site.file("guest").trim(), "frozen");
    first.kill();
    site.unsay("deaf");
    until("a thawed guest", || site.file("guest").trim() == "thawed");
    until("its note gone", || site.nobody_is_noted());
    until("nobody who stands by", || site.guards().is_empty());
}
