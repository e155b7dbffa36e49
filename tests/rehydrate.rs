//! Rehydration end to end over a directory: what went into the storage site comes out on the disks, byte for byte.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/world.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod world;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use freshet::cancel::Cancel;
use freshet::datastore::EngineKind;
use freshet::error::ErrorKind;
use freshet::ids::Name;
use freshet::progress::Progress;
use freshet::rehydrate::{Mode, RehydrateRequest, rehydrate};
use world::{World, allocated};

const MIB: u64 = 1 << 20;
const NEVER: u64 = 1 << 40;

async fn three_disks() -> World {
    let world = World::new(&[("web", "root"), ("web", "data"), ("db/☃", "odd")]).await;
    world.make("web", "root", 64 * MIB, &[(0, 3 * MIB), (20 * MIB + 4096, 5 * MIB), (63 * MIB, MIB)]);
    world.make("web", "data", 2048 * MIB, &[(1024 * MIB - 8192, 16384), (1500 * MIB, 2 * MIB)]);
    world.make("db/☃", "odd", 5 * MIB + 1234, &[(4 * MIB, MIB + 1234)]);
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_come_back_byte_for_byte_and_sparse_on_both_engines() {
    let world = three_disks().await;
    world.replicate(0).await;
    for engine in [EngineKind::Auto, EngineKind::Threads] {
        let report = world.run(RehydrateRequest { engine, ..world.request() }).await.unwrap();
        world.assert_disks(&world.images());
        assert!(report.damage.is_empty());
        assert_eq!(report.logical, 2117 * MIB + 1234);
        assert_eq!(report.written, report.planned, "every live byte is written once");
        let data = allocated(&world.target("web", "data"));
        assert!(data < 4 * MIB, "{data} bytes allocated for 2 MiB and 16 KiB of data");
        std::fs::remove_dir_all(world.dir.path().join("datastore").join(world.domain.key())).unwrap();
        std::fs::remove_file(world.dir.path().join("log").join(format!("{}.log", world.domain.key()))).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_and_older_points_fetch_only_what_differs() {
    let world = three_disks().await;
    let first = world.replicate(0).await;
    let old = world.images();
    world.change("web", "root", 21 * MIB, 300_000, 77);
    world.change("web", "data", 3 * MIB, 5000, 78);
    punch(&world, "web", "root", 0, MIB);
    let second = world.replicate(0).await;
    let new = world.images();
    assert!(second.point.segment > first.point.segment);

    world.rehydrate().await;
    world.assert_disks(&new);
    let back = world.rehydrate_to(first.point.segment).await;
    world.assert_disks(&old);
    assert!(back.written < 3 * MIB, "{} bytes written to go back", back.written);
    let forth = world.rehydrate_to(second.point.segment).await;
    world.assert_disks(&new);
    assert!(forth.written < 2 * MIB, "{} bytes written to go forth", forth.written);
    let again = world.rehydrate().await;
    assert_eq!(again.written, 0, "finished disks need nothing");
    assert_eq!((again.landing.segments, again.plan_seconds), (0, 0.0), "nothing was landed and nothing asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_after_the_manifest_go_through_the_log() {
    let world = three_disks().await;
    world.replicate(0).await;
    world.rehydrate().await;
    let mut states = vec![world.images()];
    for i in 0..3 {
        world.change("web", "root", (30 + i) * MIB, 400_000, 90 + i);
        world.change("db/☃", "odd", 5 * MIB, 1234, 95 + i);
        punch(&world, "web", "data", 1500 * MIB + i * 8192, 8192);
        world.replicate(NEVER).await;
        states.push(world.images());
    }
    let report = world.rehydrate().await;
    assert_eq!(report.landed_segments, 3);
    let landed: u64 = world.segments().iter().rev().take(3).map(|s| s.metadata().unwrap().len()).sum();
    assert_eq!((report.landing.segments, report.landing.bytes), (3, landed));
    assert!(report.landing.seconds > 0.0 && report.landing.seconds <= report.seconds, "{report:?}");
    assert_eq!(report.applied_points, 3);
    world.assert_disks(&states[3]);
    // A fresh datastore takes the base and then the same segments.
    std::fs::remove_dir_all(world.dir.path().join("datastore").join(world.domain.key())).unwrap();
    std::fs::remove_file(world.dir.path().join("log").join(format!("{}.log", world.domain.key()))).unwrap();
    let report = world.rehydrate().await;
    assert_eq!(report.landed_segments, 3);
    world.assert_disks(&states[3]);
    // Back to a point between, by comparing maps.
    world.rehydrate_to(freshet::ids::SegmentNo::new(report.point.segment.get() - 2)).await;
    world.assert_disks(&states[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn continuous_follows_every_new_point_and_ends_at_until() {
    let world = Arc::new(three_disks().await);
    world.replicate(0).await;
    let last = freshet::ids::SegmentNo::new(world.rehydrate().await.point.segment.get() + 4);
    let follower = tokio::spawn({
        let world = Arc::clone(&world);
        async move {
            let mode = Mode::Continuous { until: Some(last) };
            let run = world.run(RehydrateRequest { mode, ..world.request() });
            tokio::time::timeout(Duration::from_secs(60), run).await.unwrap().unwrap()
        }
    });
    for i in 0..4 {
        world.change("web", "root", (40 + i) * MIB, 100_000, 190 + i);
        world.replicate(NEVER).await;
    }
    let report = follower.await.unwrap();
    assert_eq!(report.point.segment, last);
    world.assert_disks(&world.images());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_joins_or_grows_later_is_followed() {
    let mut world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 8 * MIB, &[(0, MIB)]);
    world.replicate(0).await;
    world.rehydrate().await;
    world.disks.push(("web", "extra"));
    world.make("web", "extra", 3 * MIB + 7, &[(MIB, MIB)]);
    File::options().write(true).open(world.image("web", "root")).unwrap().set_len(12 * MIB + 100).unwrap();
    world.change("web", "root", 12 * MIB, 100, 5);
    world.replicate(NEVER).await;
    world.rehydrate().await;
    world.assert_disks(&world.images());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_quarantined_and_named_and_the_rest_goes_on() {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 32 * MIB, &[(0, MIB)]);
    let good = world.replicate(0).await;
    let before = world.images();
    world.change("web", "root", 16 * MIB, 8 * MIB, 9);
    world.replicate(0).await;
    let damaged = world.segments().pop().unwrap();
    let file = File::options().read(true).write(true).open(&damaged).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 1000).unwrap();

    let report = world.rehydrate().await;
    assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
    let bad = &report.damage[0];
    assert_eq!(bad.label, "web/root");
    let found = std::fs::read(world.target("web", "root")).unwrap();
    let image = &std::fs::read(world.image("web", "root")).unwrap();
    let (from, to) = (bad.offset as usize, (bad.offset + bad.len) as usize);
    assert!(from >= 16 << 20 && to <= 24 << 20, "{bad:?}");
    world::assert_same(&found[..from], &image[..from], "before the damage");
    world::assert_same(&found[to..], &image[to..], "after the damage");

    let older = world.rehydrate_to(good.point.segment).await;
    assert!(older.damage.is_empty());
    world.assert_disks(&before);

    std::fs::remove_file(&damaged).unwrap();
    let report = world.rehydrate().await;
    let lost: u64 = report.damage.iter().map(|d| d.len).sum();
    assert_eq!(lost, 8 * MIB, "all of the missing segment is named");
}

#[tokio::test(flavor = "multi_thread")]
async fn local_state_in_doubt_is_hashed_and_only_differences_are_fetched() {
    let world = three_disks().await;
    world.replicate(0).await;
    let full = world.rehydrate().await;
    // Changed by somebody else: noticed by the stamp.
    let target = File::options().write(true).open(world.target("web", "root")).unwrap();
    target.write_all_at(&[0xee; 10_000], 21 * MIB).unwrap();
    target.write_all_at(&[0xee; 10_000], 40 * MIB).unwrap();
    drop(target);
    let healed = world.rehydrate().await;
    world.assert_disks(&world.images());
    assert!(healed.written > 0 && healed.written < full.written / 4, "{} bytes written", healed.written);
    // A lost hydration map.
    let own = world.dir.path().join("datastore").join(world.domain.key()).join(".freshet");
    for slot in ["hydration.0", "hydration.1"] {
        std::fs::write(own.join(slot), b"rubbish").unwrap();
    }
    let lost = world.rehydrate().await;
    world.assert_disks(&world.images());
    assert_eq!(lost.written, 0, "everything was in place");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_files_and_a_second_run_are_refused() {
    let world = three_disks().await;
    world.replicate(0).await;
    let path = world.target("web", "root");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, b"precious").unwrap();
    let refused = world.run(world.request()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let (counted, over) = (Arc::new(Progress::new()), RehydrateRequest { overwrite: true, ..world.request() });
    rehydrate(&world.site, over, Arc::clone(&counted), Cancel::new()).await.unwrap();
    world.assert_disks(&world.images());
    let now = counted.snapshot();
    assert!(now.total > 0 && now.disks.iter().any(|disk| disk.disk == "web/root"), "{now:?}");
    assert!(now.disks.iter().all(|disk| disk.done == disk.total), "all of each disk is there: {now:?}");
    let sums = now.disks.iter().fold((0, 0), |sum, disk| (sum.0 + disk.total, sum.1 + disk.done));
    assert_eq!(sums, (now.total, now.done), "disks are the parts of the whole");

    let cancel = Cancel::new();
    let (progress, request) = (Arc::new(Progress::new()), world.request());
    let mode = Mode::Continuous { until: None };
    let (site, ours, watch) = (world.site.clone(), cancel.clone(), Arc::clone(&progress));
    let first =
        tokio::spawn(async move { rehydrate(&site, RehydrateRequest { mode, ..request }, progress, ours).await });
    while watch.snapshot().stage != "following" {
        assert!(!first.is_finished(), "the first run ended early");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let second = world.run(world.request()).await.unwrap_err();
    assert_eq!(second.kind(), ErrorKind::Refused, "{second}");
    cancel.cancel();
    first.await.unwrap().unwrap();
    world.rehydrate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_whose_file_was_removed_or_replaced_comes_back_whole() {
    let world = three_disks().await;
    world.replicate(0).await;
    world.rehydrate().await;
    for replace in [false, true] {
        let path = world.target("web", "root");
        std::fs::remove_file(&path).unwrap();
        if replace {
            std::fs::write(&path, vec![0xee; 1 << 20]).unwrap();
        }
        world.rehydrate().await;
        world.assert_disks(&world.images());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_vm_of_a_domain_never_leaves_another_at_a_different_point() {
    let world = three_disks().await;
    world.replicate(0).await;
    let one = RehydrateRequest { vms: vec![Name::new("web").unwrap()], ..world.request() };
    let report = world.run(one.clone()).await.unwrap();
    assert_eq!(report.disks.len(), 2);
    assert!(!world.target("db/☃", "odd").exists());
    world.rehydrate().await;
    world.assert_disks(&world.images());
    let refused = world.run(one).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
    let unknown = RehydrateRequest { vms: vec![Name::new("nobody").unwrap()], ..world.request() };
    assert_eq!(world.run(unknown).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_goes_on_and_keeps_what_was_committed() {
    let world = World::new(&[("web", "root"), ("web", "data")]).await;
    world.make("web", "root", 200 * MIB + 77, &[(0, 90 * MIB), (150 * MIB, 50 * MIB + 77)]);
    world.make("web", "data", 64 * MIB, &[(MIB, 60 * MIB)]);
    world.replicate(0).await;
    world.change("web", "data", 2 * MIB, 8 * MIB, 31);
    world.replicate(NEVER).await;
    let mut killed = 0;
    for round in 0..8_u64 {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_freshet"));
        let path = |sub: &str| world.dir.path().join(sub);
        command.args(["rehydrate", "--store", world.site.url(), "--domain", world.domain.as_str()]);
        command.arg("--datastore").arg(path("datastore")).arg("--log-store").arg(path("log"));
        command.args(["--log-size", "160MiB"]);
        let quiet = || std::process::Stdio::null();
        let mut child = command.stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn().unwrap();
        tokio::time::sleep(Duration::from_millis(40 + round * 90)).await;
        // SIGKILL; an error means that it was done already.
        killed += usize::from(child.try_wait().unwrap().is_none() && child.kill().is_ok());
        child.wait().unwrap();
    }
    assert!(killed > 0, "no run was killed before it was done: the disks are too small for this test");
    world.rehydrate().await;
    world.assert_disks(&world.images());
    assert_eq!(world.rehydrate().await.written, 0);
}

fn punch(world: &World, vm: &str, disk: &str, at: u64, len: u64) {
    let file = File::options().write(true).open(world.image(vm, disk)).unwrap();
    use rustix::fs::FallocateFlags;
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len).unwrap();
}
