//! What a forced completion takes as an operator gives it: from the start of the command's process to disks that are
//! ready, to exports that are served and VMs that are defined, and to the last one started.
//!
//! A domain of its own for each round, of one VM with one disk of 1 GiB, followed by a real appliance from a `file://` site.
//! It is completed at rest, and again right after a point with so many bytes has landed, as far as the disks then are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use freshet::capture::{DiskSource, ReplicateRequest, VmSource, replicate};
use freshet::control::Client;
use freshet::control::proto::{
    AddStoreRequest, Follow, GetDomainRequest, GetTaskRequest, ImportDomainRequest, StartContinuousFailoverRequest,
    Task, TaskState,
};
use freshet::ids::Name;
use freshet::store::{StorageSite, StoreOptions};

use crate::appliance::Appliance;
use crate::idle::plan;
use crate::support::half;

const ROUNDS: usize = 10;
const SIZE: u64 = 1 << 30;
/// Longest time for what must come.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// VMs as files that hold their state.
const HYPERVISOR: &str = r#"#!/bin/sh
vm=$(sed -n 's/.*"vm":"\([^"]*\)".*/\1/p')
file="$0-$vm"
case $1 in
    networks) echo '{"networks":["lan"]}';;
    inventory) echo '{"vms":[]}';;
    define) echo off > "$file";;
    start) echo running > "$file";;
    state) [ -e "$file" ] || exit 9; echo "{\"state\":\"$(cat "$file")\"}";;
    *) exit 1;;
esac
"#;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Seconds from the command to each of these.
struct Took {
    disks: f64,
    defined: f64,
    started: f64,
    /// MiB of the log that were not on the disks a moment before it was given.
    unapplied: f64,
}

struct Rig<'a> {
    dir: &'a Path,
    site: StorageSite,
    appliance: Appliance,
}

impl Rig<'_> {
    fn client(&self) -> &Client {
        self.appliance.client()
    }

    /// Writes so many MiB that compress by half, and ships them as a point; its number.
    async fn ship(&self, domain: &str, mib: u64, seed: u64) -> u64 {
        let path = self.dir.join("image");
        let file = File::options().write(true).create(true).truncate(false).open(&path).unwrap();
        file.set_len(SIZE).unwrap();
        for i in 0..mib {
            file.write_all_at(&half(seed << 32 | i), i << 20).unwrap();
        }
        drop(file);
        let disk = DiskSource { name: name("root"), path, size: None };
        let vms = vec![VmSource { name: name(&format!("vm of {domain}")), disks: vec![disk], definition: None }];
        let request =
            ReplicateRequest { manifest_every: 1 << 40, ..ReplicateRequest::new(name(domain), name("first"), vms) };
        replicate(&self.site, request, Default::default(), Default::default()).await.unwrap().point.segment.get()
    }

    async fn until(&self, domain: &str, is: impl Fn(&Follow) -> bool) -> Follow {
        let began = SystemTime::now();
        loop {
            let request = GetDomainRequest { name: domain.into(), fresh: false };
            let shown = self.client().domains().get_domain(request).await.unwrap().into_inner().domain.unwrap();
            match shown.follow {
                Some(follow) if is(&follow) => return follow,
                follow => assert!(began.elapsed().unwrap() < PATIENCE, "{domain}: {follow:?}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn ended(&self, id: &str) -> Task {
        let began = SystemTime::now();
        loop {
            let task = self.client().tasks().get_task(GetTaskRequest { id: id.into() }).await.unwrap();
            let task = task.into_inner().task.unwrap();
            match task.state() {
                TaskState::Done => return task,
                TaskState::Pending | TaskState::Running => {
                    assert!(began.elapsed().unwrap() < PATIENCE, "{task:?}")
                }
                _ => panic!("{task:?}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// One domain, followed and completed by force; `mib` MiB of it land before.
    async fn round(&self, domain: &str, mib: u64, seed: u64) -> Took {
        let first = self.ship(domain, 16, seed << 8).await;
        let import = ImportDomainRequest { store: "s".into(), name: domain.into() };
        self.client().domains().import_domain(import).await.unwrap();
        let plan = Some(plan(domain, &self.dir.join("disks").display().to_string()));
        let start = StartContinuousFailoverRequest { plan, ..Default::default() };
        let begun = self.client().failover().start_continuous_failover(start).await.unwrap().into_inner().task.unwrap();
        self.ended(&begun.id).await;
        let reached = |at: u64| move |f: &Follow| f.applied.as_ref().is_some_and(|applied| applied.number >= at);
        self.until(domain, reached(first)).await;
        let mut unapplied = 0.0;
        if mib > 0 {
            let newest = self.ship(domain, mib, seed).await;
            let landed = |f: &Follow| f.landed.as_ref().is_some_and(|landed| landed.number >= newest);
            let follow = self.until(domain, landed).await;
            unapplied = follow.log_used_bytes as f64 / f64::from(1 << 20);
        }
        let given = SystemTime::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
        command
            .args(["--json", "failover", "complete", domain, "--yes", domain, "--socket"])
            .arg(self.dir.join("socket"));
        let out = command.stdin(Stdio::null()).output().unwrap();
        let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{out:?}"));
        let id = said["task"]["id"].as_str().or(said["id"].as_str()).unwrap_or_else(|| panic!("{out:?}"));
        let task = self.ended(id).await;
        let at = |step: &str| {
            let ended = task.steps.iter().rfind(|s| s.name.starts_with(step)).and_then(|s| s.ended).unwrap();
            SystemTime::try_from(ended).unwrap().duration_since(given).unwrap().as_secs_f64()
        };
        Took { disks: at("finish"), defined: at("define"), started: at("start"), unapplied }
    }
}

/// Median, least and most.
fn median(of: &[Took], which: impl Fn(&Took) -> f64) -> String {
    let mut all: Vec<f64> = of.iter().map(which).collect();
    all.sort_by(f64::total_cmp);
    format!("{:.2} ({:.2} to {:.2})", all[all.len() / 2], all[0], all[all.len() - 1])
}

pub(crate) async fn measure() {
    let dir = tempfile::tempdir_in(std::env::current_dir().unwrap().join("target")).unwrap();
    for sub in ["site", "disks"] {
        std::fs::create_dir(dir.path().join(sub)).unwrap();
    }
    let driver = dir.path().join("driver");
    std::fs::write(&driver, HYPERVISOR).unwrap();
    std::fs::set_permissions(&driver, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let url = format!("file://{}/site", dir.path().display());
    let site = StorageSite::open(&url, &StoreOptions::default()).await.unwrap();
    let more = format!("log_size = \"256MiB\"\n[hypervisor]\ncommand = \"{}\"\n", driver.display());
    let rig = Rig { dir: dir.path(), site, appliance: Appliance::start(dir.path(), &[], &more).await };
    let add = AddStoreRequest { name: "s".into(), url, options_file: String::new() };
    rig.client().stores().add_store(add).await.unwrap();
    for (what, mib) in [("at rest", 0), ("as 256 MiB have just landed", 512)] {
        let mut took = Vec::new();
        for round in 0..ROUNDS {
            took.push(rig.round(&format!("{what} {round}"), mib, round as u64 + 1).await);
        }
        println!(
            "completed {what}, {ROUNDS} rounds, seconds from the command to disks ready {}, to VMs defined over them {}, to the \
             guest started {}; MiB not applied {}",
            median(&took, |t| t.disks),
            median(&took, |t| t.defined),
            median(&took, |t| t.started),
            median(&took, |t| t.unapplied),
        );
    }
}
