//! Following in place: a site that protected its disks and lost or gave away the domain follows it onto the same files.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use freshet::capture::replicate;
use freshet::error::{Error, ErrorKind};
use freshet::ids::{SegmentNo, SegmentRef};
use freshet::rehydrate::{Divergence, Following, Placement, RehydrateReport, RehydrateRequest, divergence};
use freshet::store::{BaseChoice, Domain, DomainWriter, StartOptions, keys};

use super::stores::random;
use super::*;
use crate::world::{assert_same_files, noise};

const NEVER: u64 = 1 << 40;

/// Following onto the images, with what the state directory remembers of them.
fn onto_images(world: &World) -> RehydrateRequest {
    let dir = |sub: &str| {
        let dir = world.dir.path().join(sub);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    };
    let place = |(vm, disk): &(&str, &str)| Placement {
        vm: Name::new(vm).unwrap(),
        disk: Name::new(disk).unwrap(),
        path: world.image(vm, disk),
    };
    RehydrateRequest {
        datastore: dir("here"),
        log_store: dir("here"),
        placements: world.disks.iter().map(place).collect(),
        protected: Some(world.dir.path().join("state")),
        ..world.request()
    }
}

/// Another site ships its copies of the disks; `take` makes it the owner.
async fn other_site(world: &World, images: &[PathBuf], take: bool) -> SegmentRef {
    let mut request = world.replicate_request();
    let mut images = images.iter();
    for disk in request.vms.iter_mut().flat_map(|vm| &mut vm.disks) {
        disk.path = images.next().unwrap().clone();
    }
    (request.site, request.take_ownership, request.manifest_every) = (Name::new("second site").unwrap(), take, NEVER);
    let done = replicate(&world.site, request, Arc::new(Progress::new()), Cancel::new()).await.unwrap();
    done.point
}

/// Another site takes the domain over from a point that is not the newest.
async fn cut_off_after(world: &World, point: SegmentNo) {
    let options = StartOptions { take_ownership: Some(BaseChoice::Point(point)), ..StartOptions::default() };
    let site = Name::new("second site").unwrap();
    let writer = DomainWriter::start(&world.site, &world.domain, &site, options).await.unwrap();
    assert_eq!(writer.base().segment, point);
    writer.finish().await.unwrap();
}

fn change(image: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    std::fs::File::options().write(true).open(image).unwrap().write_all_at(bytes, at).unwrap();
}

fn images(world: &World) -> Vec<PathBuf> {
    world.disks.iter().map(|(vm, disk)| world.image(vm, disk)).collect()
}

fn assert_images(world: &World, expected: &[PathBuf]) {
    images(world).iter().zip(expected).for_each(|(image, expected)| assert_same_files(image, expected));
}

async fn write(world: &World, at: u64, bytes: Vec<u8>) {
    let mut client = client(world, "web", "root");
    blocking(move || {
        client.write(at, &bytes).unwrap();
        client.flush().unwrap();
    })
    .await;
}

/// Tries again while a protection that was dropped lets go of everything.
async fn late<T, F: Future<Output = Result<T, Error>>>(work: impl Fn() -> F) -> Result<T, Error> {
    let began = Instant::now();
    loop {
        match work().await {
            Err(e) if e.to_string().contains("in use") && began.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            done => return done,
        }
    }
}

async fn divergence_of(world: &World) -> Option<Divergence> {
    let request = onto_images(world);
    late(|| divergence(&world.site, &request)).await.unwrap()
}

async fn run(world: &World, request: RehydrateRequest) -> Result<RehydrateReport, Error> {
    late(|| world.run(request.clone())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_that_equal_the_last_point_take_only_what_came_after_it() {
    let world = World::new(&[("web", "root"), ("web", "data")]).await;
    world.make("web", "root", 64 * MIB, &[(0, 20 * MIB)]);
    world.make("web", "data", 16 * MIB + 7, &[(MIB, 4 * MIB)]);
    let protection = start(&world, request(&world)).await;
    until_recoverable(&protection).await;
    write(&world, 30 * MIB, random(1, 1 << 20)).await;
    stop_and_compare(&world, protection).await;

    // Nobody took it: it is still this site's.
    let error = run(&world, onto_images(&world)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Refused && error.to_string().contains("first site owns"), "{error}");

    let theirs = world.images();
    change(&theirs[0], 5 * MIB, &noise(11, 600_000));
    change(&theirs[0], 50 * MIB, &noise(12, MIB));
    change(&theirs[1], 12 * MIB, &noise(13, 4096));
    let taken = other_site(&world, &theirs, true).await;
    let nothing = divergence_of(&world).await.unwrap();
    assert!(nothing.is_empty(), "{nothing}");
    let inodes = || images(&world).iter().map(|i| std::fs::metadata(i).unwrap().ino()).collect::<Vec<_>>();
    let before = inodes();
    let report = run(&world, onto_images(&world)).await.unwrap();
    assert_eq!((report.point, report.between_points), (taken, false));
    assert!(report.damage.is_empty() && report.fetched < 3 * MIB, "{report:?}");
    assert!(report.written < 3 * MIB, "{report:?}");
    assert_images(&world, &theirs);
    assert_eq!(inodes(), before, "the same files");

    // What the protection remembered is given up: it neither serves them early nor speaks of them again.
    assert_eq!(divergence_of(&world).await, None);
    let again = Protection::open(world.site.clone(), request(&world)).await.unwrap();
    assert!(!again.is_serving());
    drop(again);
    assert_eq!(run(&world, onto_images(&world)).await.unwrap().written, 0);

    // And on, with every new point.
    let following = late(|| Following::start(&world.site, onto_images(&world))).await.unwrap();
    change(&theirs[1], 3 * MIB, &noise(14, 100_000));
    let next = other_site(&world, &theirs, false).await;
    let mut state = following.watch();
    let applied = state.wait_for(|s| s.applied.is_some_and(|a| a.point == next.segment));
    tokio::time::timeout(PATIENCE, applied).await.unwrap().unwrap();
    // A protection on the same state, or a writer of an image, is kept away meanwhile.
    let refused = Protection::open(world.site.clone(), request(&world)).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
    assert_eq!(following.stop().await.unwrap().point, next);
    assert_images(&world, &theirs);
}

/// A protection that is killed with writes that reached nobody, and a take-over from a point before the last.
struct Diverged {
    world: World,
    /// What the other site has.
    theirs: Vec<PathBuf>,
    parted: SegmentNo,
}

async fn diverged() -> Diverged {
    let world = World::new(&[("web", "root"), ("web", "data")]).await;
    world.make("web", "root", 96 * MIB, &[(0, 40 * MIB), (60 * MIB, 20 * MIB)]);
    world.make("web", "data", 16 * MIB, &[(MIB, 4 * MIB)]);
    let protection = start(&world, request(&world)).await;
    until_recoverable(&protection).await;
    let parted = SegmentNo::new(protection.cut_point(PATIENCE).await.unwrap());
    let theirs = world.images();
    // Shipped, accepted, and cut off later: long enough ago for its marks to be gone.
    write(&world, 20 * MIB, random(1, 3 << 20)).await;
    protection.cut_point(PATIENCE).await.unwrap();
    until(&protection, "the marks to go", |status| status.vms.iter().all(|vm| vm.disks.iter().all(|d| d.dirty == 0)))
        .await;
    write(&world, 70 * MIB, random(2, 1 << 20)).await;
    protection.cut_point(PATIENCE).await.unwrap();
    // It is there and marked, whether or not it is shipped.
    write(&world, 90 * MIB, random(3, 8192)).await;
    drop(protection);
    cut_off_after(&world, parted).await;
    change(&theirs[0], 8 * MIB, &noise(21, MIB));
    change(&theirs[0], 70 * MIB + 4096, &noise(22, 8192));
    change(&theirs[1], 0, &noise(23, 4096));
    Diverged { world, theirs, parted }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_diverged_is_named_and_overwritten_only_by_that_name() {
    let Diverged { world, theirs, parted } = diverged().await;
    let taken = other_site(&world, &theirs, false).await;
    let ours = world.images();
    let there = divergence_of(&world).await.unwrap();
    assert_eq!(there.parted.segment, parted);
    assert!(there.segments >= 2 && there.times.is_some_and(|(first, last)| first < last), "{there:?}");
    let root = &there.disks[0];
    assert_eq!((there.disks.len(), root.label.as_str()), (1, "web/root"), "{there:?}");
    let holds =
        |ranges: &[std::ops::Range<u64>], from: u64, to: u64| ranges.iter().any(|r| r.start <= from && to <= r.end);
    assert!(holds(&root.unaccepted, 20 * MIB, 23 * MIB) && holds(&root.unaccepted, 70 * MIB, 71 * MIB), "{root:?}");
    assert!(holds(&root.ranges(), 90 * MIB, 90 * MIB + 8192), "{root:?}");
    assert!(!holds(&root.suspect, 20 * MIB, 21 * MIB), "its marks were gone: {root:?}");
    assert!(root.bytes() < 10 * MIB && there.bytes() == root.bytes(), "{root:?}");

    // Not without the word, and not by another one; and nothing is touched.
    for discard in [None, Some("0123456789abcdef".to_owned())] {
        let error = run(&world, RehydrateRequest { discard, ..onto_images(&world) }).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Refused, "{text}");
        for named in
            [there.name(), "web/root".to_owned(), format!("{} bytes", there.bytes()), "segments from".to_owned()]
        {
            assert!(text.contains(&named), "{named}: {text}");
        }
        assert_images(&world, &ours);
        assert_eq!(divergence_of(&world).await.unwrap(), there, "told again, the same");
    }
    let report = run(&world, RehydrateRequest { discard: Some(there.name()), ..onto_images(&world) }).await.unwrap();
    assert_eq!((report.point, report.between_points), (taken, false));
    assert!(report.notes.iter().any(|n| n.contains("given up") && n.contains("web/root")), "{:?}", report.notes);
    assert_images(&world, &theirs);
    assert!(report.fetched < 12 * MIB, "only what differs: {report:?}");
    assert_eq!(divergence_of(&world).await, None);
    assert_eq!(run(&world, onto_images(&world)).await.unwrap().written, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_own_segments_are_lost_nothing_is_believed_and_all_is_hashed() {
    let Diverged { world, theirs, parted } = diverged().await;
    let taken = other_site(&world, &theirs, false).await;
    let dir = world.dir.path().join("site").join(keys::segment_prefix(&world.domain, freshet::ids::Generation::new(1)));
    // One that the clear bits rely on having.
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().and_then(|n| n.to_str()?.parse::<u64>().ok()) == Some(parted.get() + 1) {
            std::fs::remove_file(path).unwrap();
        }
    }
    let there = divergence_of(&world).await.unwrap();
    let doubt = there.disks.iter().find_map(|d| d.in_doubt.clone()).unwrap_or_default();
    assert!(there.disks.len() == 2 && doubt.contains("cannot be told"), "{there:?}");
    let report = run(&world, RehydrateRequest { discard: Some(there.name()), ..onto_images(&world) }).await.unwrap();
    assert_eq!(report.point, taken);
    assert_images(&world, &theirs);
    assert!(report.kept > 30 * MIB, "what is there is found by hashing: {report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_was_changed_from_outside_is_named_and_hashed() {
    let world = World::new(&[("web", "root"), ("web", "data")]).await;
    world.make("web", "root", 32 * MIB, &[(0, 20 * MIB)]);
    world.make("web", "data", 8 * MIB, &[(MIB, 4 * MIB)]);
    let protection = start(&world, request(&world)).await;
    until_recoverable(&protection).await;
    stop_and_compare(&world, protection).await;
    let theirs = world.images();
    change(&theirs[0], 5 * MIB, &noise(11, 600_000));
    let taken = other_site(&world, &theirs, true).await;
    world.change("web", "data", 2 * MIB, 4096, 99);
    let there = divergence_of(&world).await.unwrap();
    assert_eq!(there.disks.iter().map(|d| d.label.as_str()).collect::<Vec<_>>(), ["web/data"], "{there:?}");
    assert!(there.to_string().contains("changed") && there.bytes() == 8 * MIB, "{there}");
    let error = run(&world, onto_images(&world)).await.unwrap_err();
    assert!(error.to_string().contains(&there.name()), "{error}");
    let report = run(&world, RehydrateRequest { discard: Some(there.name()), ..onto_images(&world) }).await.unwrap();
    assert_eq!(report.point, taken);
    assert_images(&world, &theirs);
    assert!(report.fetched < 3 * MIB, "{report:?}");
}

/// Killed at any moment it goes on, and needs no second word.
#[test]
fn killed_again_and_again_it_comes_to_the_same_bytes() {
    let seed = std::env::var("FRESHET_SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("FRESHET_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let Diverged { world, theirs, .. } = runtime.block_on(diverged());
    let mut taken = runtime.block_on(other_site(&world, &theirs, false));
    let name = runtime.block_on(divergence_of(&world)).unwrap().name();
    let onto = onto_images(&world);
    let start = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_freshet"));
        command.args([
            "rehydrate",
            "--store",
            world.site.url(),
            "--domain",
            world.domain.as_str(),
            "--log-size",
            "160MiB",
        ]);
        command.arg("--datastore").arg(&onto.datastore).arg("--protected").arg(onto.protected.as_ref().unwrap());
        for Placement { vm, disk, path } in &onto.placements {
            command.arg("--place").arg(format!("{vm}/{disk}={}", path.display()));
        }
        command.args(["--discard", &name]).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        command.spawn().unwrap()
    };
    for round in 0..12 {
        let mut child = start();
        std::thread::sleep(Duration::from_millis(random.u64(0..120)));
        child.kill().unwrap();
        child.wait().unwrap();
        if round == 6 {
            change(&theirs[0], 30 * MIB, &noise(31, MIB));
            taken = runtime.block_on(other_site(&world, &theirs, false));
        }
    }
    let status = start().wait().unwrap();
    assert!(status.success(), "{status}");
    assert_images(&world, &theirs);
    let mut domain = runtime.block_on(Domain::open(&world.site, &world.domain)).unwrap();
    assert_eq!(runtime.block_on(domain.tip()).unwrap(), taken);
}
