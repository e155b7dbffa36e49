//! Two sites that have nothing in common but the storage site, with a hypervisor each, and every mode in turn. Content is
//! checked at the disks, through the exports that guests get.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::Value;

use super::appliance::{Appliance, MIB, PATIENCE, Place};
use crate::support::nbd_client::NbdClient;

/// VMs as files that hold their state, in the directory that its name is in.
const HYPERVISOR: &str = r#"#!/bin/sh
set -eu
dir=$(dirname "$0")
input=$(cat)
vm=$(printf %s "$input" | sed -n 's/.*"vm":"\([^"]*\)".*/\1/p')
file="$dir/vm-$vm"
set_state() { echo "$1" > "$dir/new-$vm"; mv "$dir/new-$vm" "$file"; }
echo "$1 $vm" >> "$dir/calls"
case $1 in
    inventory) printf '{"vms":['; sep=
        for f in "$dir"/vm-*; do [ -e "$f" ] || continue
            printf '%s{"name":"%s","state":"%s"}' "$sep" "${f##*/vm-}" "$(cat "$f")"; sep=,; done; echo ']}';;
    networks) echo '{"networks":["lan"]}';;
    define) printf %s "$input" > "$dir/spec-$vm"; set_state off;;
    undefine) [ -e "$file" ] || exit 9; rm "$file";;
    start) [ -e "$file" ] || exit 9; set_state running;;
    shutdown) if [ -e "$dir/hangs" ]; then echo '{"off":false}'; else set_state off; echo '{"off":true}'; fi;;
    power-off) set_state off;;
    state) [ -e "$file" ] || exit 9; echo "{\"state\":\"$(cat "$file")\"}";;
    off-evidence) if [ ! -e "$file" ] || [ "$(cat "$file")" = off ]; then echo '{"off":true,"because":"it is off"}'
        else echo '{"off":false,"because":"it runs"}'; fi;;
esac
"#;

/// One site: its appliance, its hypervisor, its directories.
struct Site<'p> {
    place: &'p Place,
    name: &'static str,
    appliance: Appliance,
}

impl<'p> Site<'p> {
    fn start(place: &'p Place, name: &'static str) -> Site<'p> {
        use std::os::unix::fs::PermissionsExt;
        let dir = place.path(&format!("{name}-hypervisor"));
        if std::fs::create_dir(&dir).is_ok() {
            std::fs::write(dir.join("driver"), HYPERVISOR).unwrap();
            std::fs::set_permissions(dir.join("driver"), std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::create_dir(place.path(&format!("{name}-disks"))).unwrap();
        }
        let driver = dir.join("driver");
        let more = format!("[hypervisor]\ncommand = \"{}\"\npoll = \"20ms\"\n", driver.display());
        Site { place, name, appliance: place.serve_with(name, &more) }
    }

    fn hypervisor(&self, file: &str) -> PathBuf {
        self.place.path(&format!("{}-hypervisor/{file}", self.name))
    }

    fn datastore(&self) -> String {
        self.place.path(&format!("{}-disks", self.name)).display().to_string()
    }

    /// The state of VM `web` at its hypervisor.
    fn power(&self) -> String {
        std::fs::read_to_string(self.hypervisor("vm-web")).unwrap_or_default().trim().to_owned()
    }

    fn ask(&self, args: &[&str]) -> Value {
        self.appliance.ask(args).good()
    }

    /// Starts a task, and waits until it has ended well.
    fn task(&self, args: &[&str]) -> Value {
        let begun = self.ask(args);
        let id =
            begun["task"]["id"].as_str().or(begun["id"].as_str()).unwrap_or_else(|| panic!("{begun:#}")).to_owned();
        self.ended(&id, "TASK_STATE_DONE")
    }

    /// Waits until a task has ended, or waits, as it must.
    fn ended(&self, id: &str, state: &str) -> Value {
        let began = Instant::now();
        loop {
            let shown = self.ask(&["task", "show", id]);
            if shown["state"] == state {
                return shown;
            }
            let ended =
                ["TASK_STATE_DONE", "TASK_STATE_FAILED", "TASK_STATE_CANCELLED"].iter().any(|s| shown["state"] == *s);
            assert!(!ended && began.elapsed() < PATIENCE, "{}: not {state}: {shown:#}", self.name);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// Waits until nothing works on the domain here.
    fn until_idle(&self) {
        let began = Instant::now();
        while !self.ask(&["task", "list", "--domain", "d", "--running"])["tasks"].as_array().is_none_or(Vec::is_empty) {
            assert!(began.elapsed() < PATIENCE, "{}: a task does not end", self.name);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    fn until_mode(&self, mode: &str) -> Value {
        self.appliance.until("d", mode, |shown| shown["mode"] == mode)
    }

    fn runs(&self, mode: &str) {
        let shown = self.until_mode(mode);
        self.appliance.until_recoverable("d");
        assert_eq!(shown["owner_site"], self.name, "{shown:#}");
        assert_eq!(self.power(), "running", "{}", self.name);
    }

    fn guest(&self) -> NbdClient {
        self.appliance.guest(self.place, self.name)
    }
}

/// A domain with one running VM at the first site, which the second has imported.
fn two_sites(place: &Place) -> (Site<'_>, Site<'_>) {
    let (first, second) = (Site::start(place, "first"), Site::start(place, "second"));
    let image = place.image("root");
    first.appliance.protect(place, &image);
    std::fs::write(first.hypervisor("vm-web"), "running\n").unwrap();
    first.appliance.until_recoverable("d");
    second.ask(&["store", "add", "s", "--url", &place.store_url()]);
    second.ask(&["domain", "import", "d", "--store", "s"]);
    (first, second)
}

fn write(site: &Site<'_>, at: u64, byte: u8) {
    let mut guest = site.guest();
    guest.write(at, &[byte; 4096]).unwrap();
    guest.flush().unwrap();
}

fn read(site: &Site<'_>, at: u64) -> u8 {
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
    // The old site writes on, and nobody believes it.
    write(&first, 3 * MIB, 5);
    first.until_mode("DOMAIN_MODE_FENCED");
    write(&second, 3 * MIB, 6);
    second.ask(&["domain", "point", "d"]);
    assert_eq!(read(&second, 3 * MIB), 6);

    // It follows onto the disks that it has, and nothing that diverged is overwritten unless that is said.
    let back = first.datastore();
    let mut follow = vec!["failback", "continuous", "d", "--datastore", &back, "--in-place", "--log-size", "256MiB"];
    follow.extend(["--yes", "d"]);
    let refused = first.appliance.ask(&follow).bad(4);
    assert!(refused.contains("diverge"), "{refused}");
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
    assert!(ended.to_string().contains("turned down"), "{ended:#}");
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
    let (first, second) = two_sites(&place);
    write(&first, 2 * MIB, 9);
    let there = second.datastore();
    second.task(&["failover", "continuous", "d", "--datastore", &there, "--log-size", "256MiB", "--yes", "d"]);
    second.until_mode("DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS");
    write(&first, 3 * MIB, 8);
    second.task(&["failover", "complete", "d", "--planned", "--yes", "d"]);
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
}
