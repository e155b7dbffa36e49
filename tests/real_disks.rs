//! Real ext4 and xfs file systems, filled from this machine's own `/usr`, on their way through a storage site and back:
//! identical byte for byte and sound to their own checkers, whatever kills or fails on the way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;
#[path = "support/world.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod world;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use freshet::cancel::Cancel;
use freshet::capture::{ReplicateRequest, replicate};
use freshet::progress::Progress;
use freshet::rehydrate::{COMMIT_BYTES, MIN_MEMORY};
use freshet::s3_server::{Fault, Options, Rule, S3Server, Verb, When};
use freshet::store::StoreOptions;
use support::kills::{Victim, generator};
use support::real_images::{Kind, copy_tree, rewrite_marker};
use support::skipped;
use world::{World, allocated, assert_same_files};

const MIB: u64 = 1 << 20;
const NEVER: u64 = 1 << 40;
/// Bytes of listings that one run reads at most: two keys for each of some tens of segments.
const LISTINGS: u64 = 128 << 10;
/// Bytes of files in each file system.
const FILES: u64 = 120 * MIB;

/// One image of each kind that this machine can make; gone with the last test that holds it.
struct Images {
    dir: tempfile::TempDir,
    kinds: Vec<Kind>,
}

impl Images {
    /// Makes them, or shares those of a test that runs at the same time.
    fn shared() -> Arc<Images> {
        static SHARED: Mutex<Weak<Images>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let images = Arc::new(Images::make());
            *shared = Arc::downgrade(&images);
            images
        })
    }

    fn make() -> Images {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        copy_tree(&tree, FILES);
        let mut kinds = Vec::new();
        for kind in [Kind::Ext4, Kind::Xfs] {
            if let Some(tool) = kind.missing() {
                skipped(&format!("real disks of {kind:?}"), &format!("no {tool} here"));
                continue;
            }
            // An odd number of sectors more than a whole number of MiB, as real disks have.
            kind.make(&dir.path().join(format!("{kind:?}")), 400 * MIB + 512, &tree);
            kinds.push(kind);
        }
        std::fs::remove_dir_all(tree).unwrap();
        Images { dir, kinds }
    }

    fn path(&self, kind: Kind) -> PathBuf {
        self.dir.path().join(format!("{kind:?}"))
    }

    fn disks(&self) -> Vec<(&'static str, &'static str)> {
        let name = |kind: &Kind| if *kind == Kind::Ext4 { ("web", "root") } else { ("db", "data") };
        self.kinds.iter().map(name).collect()
    }

    /// Gives `world` copies of them as its images.
    fn copy_into(&self, world: &World) {
        for (kind, (vm, disk)) in self.kinds.iter().zip(&world.disks) {
            let mut copy = Command::new("cp");
            copy.arg("--sparse=always").arg(self.path(*kind)).arg(world.image(vm, disk));
            assert!(copy.status().unwrap().success());
        }
    }

    /// The recovered disks equal the images, and are sound file systems.
    fn assert_recovered(&self, world: &World) {
        for (kind, (vm, disk)) in self.kinds.iter().zip(&world.disks) {
            assert_same_files(&world.target(vm, disk), &world.image(vm, disk));
            kind.check(&world.target(vm, disk));
        }
    }
}

/// `freshet rehydrate` as a process, to the newest point.
fn start(world: &World, env: &[(String, String)], memory: u64) -> Child {
    let path = |sub: &str| world.dir.path().join(sub);
    let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
    command.args(["rehydrate", "--store", world.site.url(), "--domain", world.domain.as_str()]);
    command.arg("--datastore").arg(path("datastore")).arg("--log-store").arg(path("log"));
    command.args(["--log-size", "160MiB", "--memory", &memory.to_string()]);
    command.arg("--store-options").arg(options_file(world.dir.path()));
    command.envs(env.iter().cloned()).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

/// Pauses that suit a store that fails every tenth time and is well otherwise; and no second requests, so that what is
/// fetched twice was fetched twice because of a kill.
fn options_file(dir: &Path) -> PathBuf {
    let file = dir.join("options");
    if !file.exists() {
        std::fs::write(&file, "RETRY_PAUSE=1ms\nRETRY_PAUSE_MAX=20ms\nHEDGE=off\n").unwrap();
    }
    file
}

fn finish(child: &mut Child) {
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}");
}

/// Kills rehydrations of `world` `kills` times, then lets one come to its end.
fn kill_and_finish(world: &World, env: &[(String, String)], kills: usize, random: &mut fastrand::Rng) {
    let path = |sub: &str| world.dir.path().join(sub);
    let reset = || {
        for sub in ["datastore", "log"] {
            std::fs::remove_dir_all(path(sub)).unwrap();
            std::fs::create_dir(path(sub)).unwrap();
        }
    };
    let bytes = world.disks.iter().map(|(vm, disk)| allocated(&world.image(vm, disk))).sum::<u64>() * 9 / 10;
    let files = world.disks.iter().map(|(vm, disk)| world.target(vm, disk)).collect();
    let victim = Victim { start: &|| start(world, env, MIN_MEMORY), reset: &reset, files, bytes };
    victim.kill(kills, random);
    finish(&mut start(world, env, MIN_MEMORY));
}

/// Through a directory: a point by its manifest, and one after it that comes through the log; killed on the way.
async fn through_a_directory(kills: usize, random: &mut fastrand::Rng) {
    let images = Images::shared();
    let world = World::new(&images.disks()).await;
    images.copy_into(&world);
    let first = world.replicate(0).await;
    let before = world.images();
    for (vm, disk) in &world.disks {
        rewrite_marker(&world.image(vm, disk));
    }
    let second = world.replicate(NEVER).await;
    assert!(second.shipped > 0 && second.manifest.is_none(), "{second:?}");
    kill_and_finish(&world, &[], kills, random);
    images.assert_recovered(&world);
    world.rehydrate_to(first.point.segment).await;
    world.assert_disks(&before);
}

/// Every tenth read and every tenth write fails, each kind of failure in its turn.
fn every_tenth_request_fails() -> Vec<Rule> {
    let reads = [Fault::SlowDown, Fault::Truncate, Fault::Flip, Fault::Reset, Fault::Unavailable];
    let writes = [Fault::SlowDown, Fault::LostResponse, Fault::Reset, Fault::Unavailable];
    let in_turn = |faults: &[Fault], verb| -> Vec<Rule> {
        let cycle = 10 * faults.len() as u64;
        let rule = |(i, fault): (usize, &Fault)| {
            Rule::new(*fault).verb(verb).when(When::Phase { cycle, at: 10 * (i as u64 + 1) })
        };
        faults.iter().enumerate().map(rule).collect()
    };
    [in_turn(&reads, Verb::Get), in_turn(&writes, Verb::Put)].concat()
}

/// Through S3 that fails: replicated, then killed while it is rehydrated.
async fn through_a_failing_s3(kills: usize, random: &mut fastrand::Rng) {
    let images = Images::shared();
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(&dir.path().join("s3"), Options::default()).unwrap();
    let mut options = StoreOptions::from_vars(server.env());
    options.set("RETRY_PAUSE", "1ms").unwrap();
    let world = World::at(dir, &server.url("site"), &options, &images.disks()).await;
    images.copy_into(&world);
    server.faults().set(every_tenth_request_fails());
    // Short segments make many requests.
    let request = ReplicateRequest { segment_bytes: MIB, ..world.replicate_request() };
    replicate(&world.site, request, Arc::new(Progress::new()), Cancel::new()).await.unwrap();
    let hit = server.counters();
    assert!(hit.faults.contains_key("lost-response") && hit.total_faults() >= 8, "{hit:?}");
    server.reset_counters();
    kill_and_finish(&world, &server.env(), kills, random);
    images.assert_recovered(&world);
    let hit = server.counters();
    for kind in ["slowdown", "truncate", "flip", "reset", "unavailable"] {
        assert!(hit.faults.contains_key(kind), "{kind} never happened: {hit:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_disks_come_back_through_a_directory_after_twenty_kills() {
    through_a_directory(20, &mut generator("through a directory")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn real_disks_come_back_through_s3_that_fails_every_tenth_time_after_kills() {
    through_a_failing_s3(6, &mut generator("through s3")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "many kills take minutes: .ci/long runs it"]
async fn real_disks_come_back_after_many_kills() {
    let mut random = generator("many kills");
    for _ in 0..3 {
        through_a_directory(60, &mut random).await;
        through_a_failing_s3(40, &mut random).await;
    }
}

/// What a kill makes to be fetched twice is what was in flight, which the memory budget bounds, and what was written
/// since the last commit of the hydration map, at most [`COMMIT_BYTES`] beyond that: see `src/rehydrate/budget.rs`, where
/// the sum is derived. The bytes are the server's count of what it sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_half_way_fetches_no_more_twice_than_was_in_flight_or_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(&dir.path().join("s3"), Options::default()).unwrap();
    let options = StoreOptions::from_vars(server.env());
    let world = World::at(dir, &server.url("site"), &options, &[("web", "root")]).await;
    // Bytes that hardly compress, so that stored bytes are many.
    world.make("web", "root", 700 * MIB, &[]);
    incompressible(&world.image("web", "root"), 640 * MIB);
    let stored = world.replicate(0).await.stored;
    assert!(stored > 640 * MIB);
    let all = bytes_below(&world.dir.path().join("s3"));
    server.reset_counters();

    let mut child = start(&world, &server.env(), MIN_MEMORY);
    let begun = Instant::now();
    while server.counters().bytes_out < stored / 2 {
        assert!(child.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    finish(&mut start(&world, &server.env(), MIN_MEMORY));
    world.assert_disks(&[world.image("web", "root")]);

    let twice = server.counters().bytes_out.saturating_sub(stored);
    // Written bytes are counted raw; stored they have a frame header each, less than a 1,024th part.
    let lost = (MIN_MEMORY + COMMIT_BYTES) * 1025 / 1024;
    // Both runs read what is no segment: ownership log, manifest, map pages; and listings.
    let described = 2 * (all - stored + LISTINGS);
    println!("{twice} bytes beyond {stored}; at most {lost} + {described} may be");
    assert!(twice > described, "nothing was in flight: the kill came too late to mean anything");
    assert!(twice <= lost + described, "{twice} bytes fetched twice, at most {lost} + {described} may be");
}

fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
    let bytes = |e: std::fs::DirEntry| {
        if e.file_type().unwrap().is_dir() { bytes_below(&e.path()) } else { e.metadata().unwrap().len() }
    };
    entries.map(bytes).sum()
}

fn incompressible(image: &Path, len: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(image).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes = vec![0; MIB as usize];
    for at in (0..len).step_by(MIB as usize) {
        random.fill(&mut bytes);
        file.write_all_at(&bytes, at).unwrap();
    }
}
