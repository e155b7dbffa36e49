//! A site: its appliance, a hypervisor behind the `exec` driver whose VMs are files, and its directories.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::appliance::{Appliance, PATIENCE, Place};
use super::nbd_client::NbdClient;

/// VMs as files that hold their state, in the directory that the driver is in.
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

/// States of a task that nothing follows.
const ENDS: [&str; 3] = ["TASK_STATE_DONE", "TASK_STATE_FAILED", "TASK_STATE_CANCELLED"];
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// See the module. Its place is borrowed or shared.
pub(crate) struct Site<P = Arc<Place>> {
    pub(crate) place: P,
    pub(crate) name: &'static str,
    pub(crate) appliance: Appliance,
}

impl<P: Deref<Target = Place> + Clone> Site<P> {
    /// Starts its appliance; makes the rest where it is not there.
    pub(crate) fn start(place: P, name: &'static str) -> Site<P> {
        Site::start_by(place, name, Place::serve_with)
    }

    /// The same, by a function of its place.
    pub(crate) fn start_by(
        place: P,
        name: &'static str,
        serve: impl FnOnce(&Place, &str, &str) -> Appliance,
    ) -> Site<P> {
        use std::os::unix::fs::PermissionsExt;
        let dir = place.path(&format!("{name}-hypervisor"));
        if std::fs::create_dir(&dir).is_ok() {
            std::fs::write(dir.join("driver"), HYPERVISOR).unwrap();
            std::fs::set_permissions(dir.join("driver"), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let driver = dir.join("driver");
        let more =
            format!("metrics = \"127.0.0.1:0\"\n[hypervisor]\ncommand = \"{}\"\npoll = \"20ms\"\n", driver.display());
        Site::with(place, name, &more, serve)
    }

    /// One whose settings end with `more`, and whose appliance is started by `serve`.
    pub(crate) fn with(
        place: P,
        name: &'static str,
        more: &str,
        serve: impl FnOnce(&Place, &str, &str) -> Appliance,
    ) -> Site<P> {
        let _ = std::fs::create_dir(place.path(&format!("{name}-disks")));
        let appliance = serve(&place, name, more);
        Site { place, name, appliance }
    }

    /// Kills its appliance; guests run on.
    pub(crate) fn crash(&mut self) {
        self.appliance.crash();
    }

    /// Starts its appliance anew; one that runs is killed.
    pub(crate) fn restart(&mut self) {
        self.crash();
        *self = Site::start(self.place.clone(), self.name);
    }

    /// A file of the hypervisor.
    pub(crate) fn hypervisor(&self, file: &str) -> PathBuf {
        self.place.path(&format!("{}-hypervisor/{file}", self.name))
    }

    pub(crate) fn datastore(&self) -> String {
        self.place.path(&format!("{}-disks", self.name)).display().to_string()
    }

    /// The state of a VM at its hypervisor; empty where there is none.
    pub(crate) fn power_of(&self, vm: &str) -> String {
        std::fs::read_to_string(self.hypervisor(&format!("vm-{vm}"))).unwrap_or_default().trim().to_owned()
    }

    /// The state of VM `web`.
    pub(crate) fn power(&self) -> String {
        self.power_of("web")
    }

    /// Switches a VM, as its operator does.
    pub(crate) fn switch(&self, vm: &str, state: &str) {
        let new = self.hypervisor(&format!("new-by-hand-{vm}"));
        std::fs::write(&new, format!("{state}\n")).unwrap();
        std::fs::rename(new, self.hypervisor(&format!("vm-{vm}"))).unwrap();
    }

    /// Adds the storage site under the name `s`.
    pub(crate) fn add_store(&self) {
        let (url, options) = (self.place.store_url(), self.place.store_options(self.name).display().to_string());
        let mut args = vec!["store", "add", "s", "--url", &url];
        if self.place.store_options(self.name).exists() {
            args.extend(["--options-file", &options]);
        }
        self.ask(&args);
    }

    pub(crate) fn ask(&self, args: &[&str]) -> Value {
        self.appliance.ask(args).good()
    }

    /// Starts a task; its identity.
    pub(crate) fn begin(&self, args: &[&str]) -> String {
        let begun = self.ask(args);
        begun["task"]["id"].as_str().or(begun["id"].as_str()).unwrap_or_else(|| panic!("{begun:#}")).to_owned()
    }

    /// Starts a task, and waits until it has ended well.
    pub(crate) fn task(&self, args: &[&str]) -> Value {
        self.ended(&self.begin(args), "TASK_STATE_DONE")
    }

    /// Waits until a task has ended, or waits, as it must.
    pub(crate) fn ended(&self, id: &str, state: &str) -> Value {
        let began = Instant::now();
        loop {
            let shown = self.ask(&["task", "show", id]);
            if shown["state"] == state {
                return shown;
            }
            let ended = ENDS.iter().any(|end| shown["state"] == *end);
            assert!(!ended && began.elapsed() < PATIENCE * 3, "{}: not {state}: {shown:#}", self.name);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until a task is over, however it ended.
    pub(crate) fn over(&self, id: &str) -> Value {
        let began = Instant::now();
        loop {
            let shown = self.ask(&["task", "show", id]);
            if ENDS.iter().any(|end| shown["state"] == *end) {
                return shown;
            }
            assert!(began.elapsed() < PATIENCE, "{}: never over: {shown:#}", self.name);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until a step of a task runs.
    pub(crate) fn until_step(&self, id: &str, step: &str) {
        let began = Instant::now();
        loop {
            let shown = self.ask(&["task", "show", id]);
            let steps = shown["steps"].as_array().into_iter().flatten();
            if steps.into_iter().any(|one| one["name"] == step && one["state"] == "running") {
                return;
            }
            assert!(began.elapsed() < PATIENCE * 3, "{}: {step} never runs: {shown:#}", self.name);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until a task of the domain asks something here; that task.
    pub(crate) fn asked(&self, domain: &str) -> Value {
        let began = Instant::now();
        loop {
            let running = self.ask(&["task", "list", "--domain", domain, "--running"]);
            let asking = running["tasks"].as_array().and_then(|all| all.iter().find(|t| t["question"].is_object()));
            if let Some(task) = asking {
                return task.clone();
            }
            assert!(began.elapsed() < PATIENCE, "{}: nothing is asked: {running:#}", self.name);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until nothing works on the domain here.
    pub(crate) fn until_idle(&self) {
        let began = Instant::now();
        loop {
            let tasks = self.ask(&["task", "list", "--domain", "d", "--running"]);
            if tasks["tasks"].as_array().is_none_or(Vec::is_empty) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{}: a task does not end: {tasks:#}", self.name);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    pub(crate) fn until_mode(&self, mode: &str) -> Value {
        self.appliance.until("d", mode, |shown| shown["mode"] == mode)
    }

    /// Waits until the domain is in this mode and recoverable; it must be this site's, and run here by then.
    pub(crate) fn runs(&self, mode: &str) {
        self.recovers(mode);
        assert_eq!(self.power(), "running", "{}", self.name);
    }

    /// The same where somebody may have to start the guest first.
    pub(crate) fn comes_to_run(&self, mode: &str) {
        self.recovers(mode);
        let began = Instant::now();
        while self.power() != "running" {
            assert!(began.elapsed() < PATIENCE, "{}: web does not run", self.name);
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn recovers(&self, mode: &str) {
        let shown = self.until_mode(mode);
        self.appliance.until_recoverable("d");
        assert_eq!(shown["owner_site"], self.name, "{shown:#}");
    }

    /// A guest of the disk `web/root`.
    pub(crate) fn guest(&self) -> NbdClient {
        self.appliance.guest(&self.place, self.name)
    }
}
