//! Following a domain through what seldom happens: lost segments, a log too small for what has no point, take-overs,
//! a clock that steps back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/world.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod world;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use freshet::cancel::Cancel;
use freshet::capture::{ReplicateReport, ReplicateRequest, replicate};
use freshet::clock::Clock;
use freshet::error::{ErrorKind, Result};
use freshet::ids::{Name, SegmentNo, Time};
use freshet::progress::{Progress, Snapshot};
use freshet::rehydrate::{Mode, RehydrateReport, RehydrateRequest, Target, rehydrate};
use freshet::store::{DomainWriter, StartOptions};
use world::{LOG, World};

const MIB: u64 = 1 << 20;
const NEVER: u64 = 1 << 40;
/// Longest wait for anything here; nothing is asserted about time.
const PATIENCE: Duration = Duration::from_secs(120);

/// A continuous rehydration in the background.
struct Follower {
    progress: Arc<Progress>,
    cancel: Cancel,
    run: tokio::task::JoinHandle<Result<RehydrateReport>>,
    notes: Vec<String>,
}

impl Follower {
    fn start(world: &World, until: Option<SegmentNo>) -> Follower {
        let (progress, cancel) = (Arc::new(Progress::new()), Cancel::new());
        let request = RehydrateRequest { mode: Mode::Continuous { until }, ..world.request() };
        let (site, its, ours) = (world.site.clone(), Arc::clone(&progress), cancel.clone());
        let run = tokio::spawn(async move { rehydrate(&site, request, its, ours).await });
        Follower { progress, cancel, run, notes: Vec::new() }
    }

    async fn wait(&mut self, what: &str, done: impl Fn(&Snapshot, &[String]) -> bool) {
        let waiting = async {
            loop {
                self.notes.extend(self.progress.take_notes());
                if done(&self.progress.snapshot(), &self.notes) {
                    return;
                }
                assert!(!self.run.is_finished(), "it ended while waiting for {what}; notes: {:?}", self.notes);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("waited in vain for {what}: {:?}; notes: {:?}", self.progress.snapshot(), self.notes);
        }
    }

    async fn wait_applied(&mut self, report: &ReplicateReport) {
        let point = report.point.segment;
        self.wait(&format!("point {point}"), |s, _| s.applied.is_some_and(|a| a.point == point)).await;
    }

    async fn end(self) -> RehydrateReport {
        self.cancel.cancel();
        tokio::time::timeout(PATIENCE, self.run).await.unwrap().unwrap().unwrap()
    }
}

/// One disk with some data, replicated and rehydrated.
async fn one_disk() -> (World, ReplicateReport) {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 64 * MIB, &[(0, 4 * MIB)]);
    let first = world.replicate(0).await;
    (world, first)
}

/// Where a segment of a file:// site stands.
fn segment_of(world: &World, report: &ReplicateReport) -> PathBuf {
    let key = freshet::store::keys::segment(&world.domain, report.point);
    world.dir.path().join("site").join(key)
}

fn aside(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".aside");
    aside.into()
}

/// Takes an object out of the store; `put_back` undoes it.
fn lose(path: &Path) {
    std::fs::rename(path, aside(path)).unwrap();
}

fn put_back(path: &Path) {
    std::fs::rename(aside(path), path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_segment_is_bridged_at_the_next_manifest() {
    let (world, first) = one_disk().await;
    world.rehydrate().await;
    let at_first = world.images();
    world.change("web", "root", 8 * MIB, 300_000, 41);
    let second = world.replicate(NEVER).await;
    // Another point, so that the second is inherited and counts, lost or not.
    world.change("web", "root", 12 * MIB, 300_000, 42);
    world.replicate(NEVER).await;
    let lost = segment_of(&world, &second);
    lose(&lost);

    // As needed: refused by name, and the disks stay at the point that they equal.
    let refused = world.run(world.request()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Damaged, "{refused}");
    let name = lost.file_name().unwrap().to_str().unwrap();
    assert!(refused.to_string().contains(name) && refused.to_string().contains("missing"), "{refused}");
    world.assert_disks(&at_first);

    let mut follower = Follower::start(&world, None);
    follower.wait("the note that it waits", |_, n| n.iter().any(|n| n.contains("next manifest to bridge it"))).await;
    // The writer needs it once more; the follower does not go back to it.
    put_back(&lost);
    world.change("web", "root", 8 * MIB, 300_000, 43);
    let fourth = world.replicate(0).await;
    assert!(fourth.manifest.is_some());
    lose(&lost);
    follower.wait_applied(&fourth).await;
    world.change("web", "root", 16 * MIB, 300_000, 44);
    let fifth = world.replicate(NEVER).await;
    follower.wait_applied(&fifth).await;
    let report = follower.end().await;
    assert_eq!((report.point, report.between_points), (fifth.point, false));
    assert!(report.damage.is_empty() && report.passed_over.is_empty(), "{report:?}");
    world.assert_disks(&world.images());

    // Another segment is lost while what it holds is live: bridged too, and what is lost is named.
    world.change("web", "root", 20 * MIB, MIB, 45);
    let sixth = world.replicate(NEVER).await;
    let kept = world.images();
    world.change("web", "root", 24 * MIB, 300_000, 46);
    let seventh = world.replicate(0).await;
    lose(&segment_of(&world, &sixth));
    let mut follower = Follower::start(&world, Some(seventh.point.segment));
    follower.wait_applied(&seventh).await;
    let report = follower.end().await;
    assert_eq!(report.damage.iter().map(|d| d.len).sum::<u64>(), MIB, "{:?}", report.damage);
    assert!(report.damage.iter().all(|d| (20 * MIB..21 * MIB).contains(&d.offset)), "{:?}", report.damage);
    put_back(&segment_of(&world, &sixth));
    put_back(&lost);
    world.rehydrate_to(sixth.point.segment).await;
    world.assert_disks(&kept);
    world.rehydrate_to(first.point.segment).await;
    world.assert_disks(&at_first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_full_of_segments_without_a_point_lets_the_disks_run_ahead_and_a_point_is_reached_again() {
    let world = World::new(&[("web", "root"), ("web", "data")]).await;
    world.make("web", "root", 512 * MIB, &[(0, 4 * MIB)]);
    world.make("web", "data", 8 * MIB, &[(MIB, MIB)]);
    let first = world.replicate(0).await;
    let mut follower = Follower::start(&world, None);
    follower.wait("the first point", |s, _| s.applied.is_some()).await;
    let before = world.images();
    // More than the log holds becomes one point.
    incompressible(&world.image("web", "root"), 2 * MIB, LOG + 64 * MIB);
    world.change("web", "data", 0, 2 * MIB, 5);
    let second = world.replicate(NEVER).await;
    assert!(second.stored > LOG + 32 * MIB && second.manifest.is_none(), "{second:?}");
    follower.wait_applied(&second).await;
    assert!(!follower.end().await.between_points);
    world.assert_disks(&world.images());

    // The same once more, but the segment with the point is not there yet.
    let at_second = world.images();
    incompressible(&world.image("web", "root"), 3 * MIB, LOG + 64 * MIB);
    let third = world.replicate(NEVER).await;
    let last = segment_of(&world, &third);
    lose(&last);
    let mut follower = Follower::start(&world, None);
    follower.wait("the second point", |s, _| s.applied.is_some_and(|a| a.point == second.point.segment)).await;
    let target = world.target("web", "root");
    let changed = || head(&target) != head(&at_second[0]);
    let begun = std::time::Instant::now();
    while !changed() {
        assert!(begun.elapsed() < PATIENCE, "the disks never ran ahead");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let report = follower.end().await;
    assert_eq!(report.point, second.point);
    assert!(report.between_points, "the disks equal no point, and the report does not say so: {report:?}");
    assert!(report.notes.iter().any(|n| n.contains("ahead")), "{:?}", report.notes);

    // Back to the newest point that there is, to an older one, and ahead again once the point is there.
    assert_eq!(world.rehydrate().await.point, second.point);
    world.assert_disks(&at_second);
    let mut follower = Follower::start(&world, None);
    follower.wait("the second point", |s, _| s.applied.is_some()).await;
    while !changed() {
        assert!(begun.elapsed() < 2 * PATIENCE, "the disks never ran ahead again");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    put_back(&last);
    follower.wait_applied(&third).await;
    assert!(!follower.end().await.between_points);
    world.assert_disks(&world.images());
    world.rehydrate_to(first.point.segment).await;
    world.assert_disks(&before);
}

/// The first bytes of a file: what is shipped and applied first.
fn head(path: &Path) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path).unwrap().take(8 * MIB).read_to_end(&mut bytes).unwrap();
    bytes
}

fn incompressible(image: &Path, at: u64, len: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(image).unwrap();
    let mut random = fastrand::Rng::with_seed(at);
    let mut bytes = vec![0; MIB as usize];
    for offset in (0..len).step_by(MIB as usize) {
        random.fill(&mut bytes);
        file.write_all_at(&bytes, at + offset).unwrap();
    }
}

/// Another site takes the domain over and ships the images as a point of its own.
async fn take_over(world: &World, site: &str) -> ReplicateReport {
    let mut request = world.replicate_request();
    (request.site, request.take_ownership, request.manifest_every) = (Name::new(site).unwrap(), true, NEVER);
    replicate(&world.site, request, Arc::new(Progress::new()), Cancel::new()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_goes_back_when_a_take_over_cuts_off_what_it_landed() {
    let (world, _) = one_disk().await;
    world.change("web", "root", 30 * MIB, 2 * MIB, 61);
    world.replicate(NEVER).await;
    world.change("web", "root", 40 * MIB, 2 * MIB, 62);
    world.replicate(NEVER).await;
    world.change("web", "root", 44 * MIB, 3 * MIB, 63);
    let request = ReplicateRequest { segment_bytes: 64 << 10, manifest_every: NEVER, ..world.replicate_request() };
    let cut_off = replicate(&world.site, request, Arc::new(Progress::new()), Cancel::new()).await.unwrap();
    assert!(cut_off.segments > 3, "{cut_off:?}");
    let mut follower = Follower::start(&world, None);
    follower.wait_applied(&cut_off).await;
    world.assert_disks(&world.images());

    // The point's segment goes, as if its upload had never ended; then site two takes over from the point before.
    std::fs::remove_file(segment_of(&world, &cut_off)).unwrap();
    world.change("web", "root", 30 * MIB, MIB, 64);
    world.change("web", "root", 44 * MIB, MIB, 65);
    let taken = take_over(&world, "second site").await;
    assert!(taken.point.segment <= cut_off.point.segment, "nothing was cut off: {taken:?}");
    follower.wait("the note", |_, n| n.iter().any(|n| n.contains("taken over"))).await;
    follower.wait_applied(&taken).await;
    world.change("web", "root", 50 * MIB, MIB, 66);
    let next = take_over(&world, "second site").await;
    follower.wait_applied(&next).await;
    let report = follower.end().await;
    assert_eq!((report.point, report.between_points), (next.point, false));
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    world.assert_disks(&world.images());
    assert_eq!(world.rehydrate().await.written, 0);
}

/// A clock that shows what it is told.
#[derive(Debug, Default)]
struct Shown(AtomicU64);

impl Clock for Shown {
    fn now(&self) -> Time {
        Time::from_millis(self.0.load(Relaxed))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn points_stay_in_order_and_at_is_honest_when_the_clock_steps_back() {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 8 * MIB, &[(0, MIB)]);
    let clock = Arc::new(Shown::default());
    let mut states = Vec::new();
    // Two hours back, then on.
    for (now, expected) in
        [(10_000_000, 10_000_000), (2_800_000, 10_000_001), (2_900_000, 10_000_002), (10_500_000, 10_500_000)]
    {
        clock.0.store(now, Relaxed);
        world.change("web", "root", MIB, 300_000, now);
        let request = ReplicateRequest { clock: clock.clone(), manifest_every: NEVER, ..world.replicate_request() };
        let done = replicate(&world.site, request, Arc::new(Progress::new()), Cancel::new()).await.unwrap();
        assert_eq!(done.point_time, Time::from_millis(expected), "the clock shows {now}");
        states.push((expected, done.point, world.images()));
    }
    for (time, point, images) in &states {
        let target = Target::At(Time::from_millis(*time));
        let report = world.run(RehydrateRequest { target, ..world.request() }).await.unwrap();
        assert_eq!(report.point, *point);
        world.assert_disks(images);
    }
    // What the stepped-back clock showed names no point: none was known to exist then.
    let target = Target::At(Time::from_millis(2_950_000));
    let none = world.run(RehydrateRequest { target, ..world.request() }).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound, "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_without_a_base_takes_nothing_back_and_what_it_hides_is_told() {
    let (world, first) = one_disk().await;
    let at_first = world.images();
    world.change("web", "root", 30 * MIB, MIB, 91);
    let second = world.replicate(NEVER).await;
    // One that had the second point, and one that comes anew.
    world.rehydrate().await;
    let owner = world.replicate_request().site;
    let writer = DomainWriter::start(&world.site, &world.domain, &owner, StartOptions::default()).await.unwrap();
    let records = writer.view().await.ownership().records();
    writer.finish().await.unwrap();
    // As if it had died between claim and base.
    let base = world.dir.path().join("site").join(freshet::store::keys::owner(&world.domain, records));
    let kept = world.dir.path().join("kept-record");
    std::fs::rename(&base, &kept).unwrap();
    for continuous in [false, true] {
        let report = match continuous {
            false => world.rehydrate().await,
            true => Follower::start(&world, Some(second.point.segment)).run.await.unwrap().unwrap(),
        };
        assert_eq!((report.point, report.written), (second.point, 0));
        assert!(report.passed_over.iter().any(|p| p.contains("claimed generation")), "{:?}", report.passed_over);
        world.assert_disks(&world.images());
    }
    let anew = |dir: &str| {
        let dir = world.dir.path().join(dir);
        std::fs::create_dir_all(&dir).unwrap();
        world.run(RehydrateRequest { datastore: dir.clone(), log_store: dir, ..world.request() })
    };
    let report = anew("anew").await.unwrap();
    assert_eq!(report.point, first.point);
    assert!(report.passed_over.iter().any(|p| p.contains("freshet replicate")), "{:?}", report.passed_over);
    let disk = world.target("web", "root");
    let there = world.dir.path().join("anew").join(disk.strip_prefix(world.dir.path().join("datastore")).unwrap());
    world::assert_same_files(&there, &at_first[0]);
    std::fs::rename(&kept, &base).unwrap();
    let report = anew("anew").await.unwrap();
    assert_eq!((report.point, report.passed_over.len()), (second.point, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn until_a_number_that_is_no_point_ends_at_the_first_point_after_it() {
    let (world, first) = one_disk().await;
    let inside = SegmentNo::new(first.point.segment.get() + 2);
    let mut follower = Follower::start(&world, Some(inside));
    follower.wait_applied(&first).await;
    world.change("web", "root", 30 * MIB, 3 * MIB, 71);
    let request = ReplicateRequest { segment_bytes: 64 << 10, manifest_every: NEVER, ..world.replicate_request() };
    let next = replicate(&world.site, request, Arc::new(Progress::new()), Cancel::new()).await.unwrap();
    assert!(next.point.segment > inside, "{next:?}");
    let images = world.images();
    world.change("web", "root", 40 * MIB, MIB, 81);
    world.replicate(NEVER).await;
    let report = tokio::time::timeout(PATIENCE, follower.run).await.unwrap().unwrap().unwrap();
    assert_eq!((report.point, report.between_points), (next.point, false));
    world.assert_disks(&images);
}

/// A continuous rehydration as a process.
fn start(world: &World, until: Option<SegmentNo>) -> std::process::Child {
    let path = |sub: &str| world.dir.path().join(sub);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_freshet"));
    command.args(["rehydrate", "--continuous", "--store", world.site.url(), "--domain", world.domain.as_str()]);
    command.arg("--datastore").arg(path("datastore")).arg("--log-store").arg(path("log"));
    command.args(["--log-size", &LOG.to_string()]);
    if let Some(until) = until {
        command.args(["--until", &until.get().to_string()]);
    }
    let quiet = std::process::Stdio::null;
    command.stdin(quiet()).stdout(quiet()).spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_killed_again_and_again_comes_to_the_same_bytes() {
    let seed = std::env::var("FRESHET_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("FRESHET_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let world = World::new(&[("web", "root"), ("db", "data")]).await;
    world.make("web", "root", 64 * MIB, &[(0, 20 * MIB)]);
    world.make("db", "data", 16 * MIB + 7, &[(MIB, 3 * MIB)]);
    let mut last = world.replicate(0).await;
    for round in 0..8 {
        let mut follower = start(&world, None);
        for _ in 0..3 {
            world.change("web", "root", random.u64(0..60) * MIB, random.u64(1..4 * MIB), random.u64(1..1 << 30));
            world.change("db", "data", random.u64(0..16 * MIB), 7, random.u64(1..1 << 30));
            last = world.replicate(if round == 5 { 0 } else { NEVER }).await;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(0..400))).await;
        assert!(follower.try_wait().unwrap().is_none(), "it ended by itself");
        follower.kill().unwrap();
        follower.wait().unwrap();
    }
    let status = start(&world, Some(last.point.segment)).wait().unwrap();
    assert!(status.success(), "{status}");
    world.assert_disks(&world.images());
    assert_eq!(world.rehydrate().await.written, 0);
}
