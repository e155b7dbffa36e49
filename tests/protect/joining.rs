//! VMs and disks that join and leave while another site follows: the followed disks are those of the domain, and a copy of
//! what left is kept until it is deleted by its name.

use freshet::capture::{DiskSource, VmSource};
use freshet::error::ErrorKind;
use freshet::ids::SegmentNo;
use freshet::rehydrate::{Completion, DetachedDisk, Following, RehydrateRequest, delete_detached, detached};

use super::stores::random;
use super::*;
use crate::world::assert_same_files;

/// One disk as a request to protect it.
fn disk_of(vm: &str, disk: &str, image: PathBuf) -> Vec<VmSource> {
    let source = DiskSource { name: Name::new(disk).unwrap(), path: image, size: None };
    vec![VmSource { name: Name::new(vm).unwrap(), disks: vec![source], definition: None }]
}

async fn start_following(world: &World) -> Following {
    Following::start(&world.site, world.request()).await.unwrap()
}

/// Cuts a point and waits until the follower is there.
async fn catch_up(protection: &Protection, following: &Following) -> SegmentNo {
    let point = SegmentNo::new(protection.cut_point(PATIENCE).await.unwrap());
    let mut state = following.watch();
    let there = tokio::time::timeout(PATIENCE, async {
        state.wait_for(|s| s.applied.is_some_and(|a| a.point >= point)).await.map(|s| s.clone())
    });
    let there = there.await;
    assert!(matches!(there, Ok(Ok(_))), "{there:?}: {:?}", following.state());
    point
}

async fn write(world: &World, vm: &str, disk: &str, at: u64, seed: u64) {
    let mut client = client(world, vm, disk);
    blocking(move || {
        client.write(at, &random(seed, 300_000)).unwrap();
        client.flush().unwrap();
    })
    .await;
}

fn kept(world: &World) -> Vec<DetachedDisk> {
    detached(&world.dir.path().join("datastore"), &world.domain).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_join_and_leave_and_are_back_in_an_older_point_while_another_site_follows() {
    let world = World::new(&[("web", "root"), ("db", "data")]).await;
    world.make("web", "root", 16 * MIB, &[(0, 3 * MIB)]);
    world.make("db", "data", 12 * MIB, &[(MIB, 2 * MIB)]);
    world.make("web", "extra", 8 * MIB, &[(0, MIB)]);
    world.make("app", "disk", 8 * MIB, &[(2 * MIB, MIB)]);
    let mut protection = start(&world, request(&world)).await;
    until_recoverable(&protection).await;
    let following = start_following(&world).await;
    catch_up(&protection, &following).await;

    // A disk of a VM that is there, and a VM.
    for (vm, disk) in [("web", "extra"), ("app", "disk")] {
        protection.add(&disk_of(vm, disk, world.image(vm, disk))).await.unwrap();
    }
    until_recoverable(&protection).await;
    for (n, (vm, disk)) in [("web", "extra"), ("app", "disk"), ("web", "root"), ("db", "data")].into_iter().enumerate()
    {
        write(&world, vm, disk, 4 * MIB + 512, n as u64).await;
    }
    let all_there = catch_up(&protection, &following).await;
    let all = [("web", "root"), ("db", "data"), ("web", "extra"), ("app", "disk")];
    for (vm, disk) in all {
        assert_same_files(&world.target(vm, disk), &world.image(vm, disk));
    }
    let at_all: Vec<PathBuf> = all.iter().map(|(vm, disk)| copy(&world, &world.image(vm, disk))).collect();
    assert_eq!(kept(&world), []);

    // One leaves, and its VM with it; the copy is as it was at the last point with it.
    let (db, data) = (Name::new("db").unwrap(), Name::new("data").unwrap());
    protection.remove(&db, &data).await.unwrap();
    catch_up(&protection, &following).await;
    let left = kept(&world);
    assert_eq!(left.iter().map(|d| d.label.as_str()).collect::<Vec<_>>(), ["db/data"]);
    assert_same_files(&left[0].path, &world.image("db", "data"));
    assert!(!world.target("db", "data").exists(), "its place is free");

    // Another disk of that name, smaller and with other bytes: a stranger to the copy.
    let other = world.image("db", "other");
    world.make("db", "other", 6 * MIB, &[(0, 2 * MIB)]);
    protection.add(&disk_of("db", "data", other.clone())).await.unwrap();
    until_recoverable(&protection).await;
    write(&world, "db", "data", MIB, 77).await;
    catch_up(&protection, &following).await;
    assert_same_files(&world.target("db", "data"), &other);
    assert_same_files(&left[0].path, &world.image("db", "data"));
    let report = following.stop().await.unwrap();
    assert_eq!(report.detached, left, "the report names it");
    assert_eq!(report.disks.len(), 4, "{:?}", report.disks);

    // One that leaves while nobody follows.
    protection.remove(&Name::new("web").unwrap(), &Name::new("extra").unwrap()).await.unwrap();
    let following = start_following(&world).await;
    let newest = catch_up(&protection, &following).await;
    let left = kept(&world);
    assert_eq!(left.iter().map(|d| d.label.as_str()).collect::<Vec<_>>(), ["db/data", "web/extra"]);
    assert_same_files(&left[1].path, &world.image("web", "extra"));

    // At a point at which they were there, they are back; and the one that was not there then is put aside.
    let report = following.complete_at(Completion::Point(all_there)).await.unwrap();
    assert_eq!(report.point.segment, all_there);
    for ((vm, disk), image) in all.iter().zip(&at_all) {
        assert_same_files(&world.target(vm, disk), image);
    }
    assert_eq!(report.detached.iter().map(|d| d.label.as_str()).collect::<Vec<_>>(), ["db/data"]);
    assert_eq!(report.detached[0].size, 6 * MIB);

    // And on again.
    let following = start_following(&world).await;
    catch_up(&protection, &following).await;
    let report = following.stop().await.unwrap();
    assert!(report.point.segment >= newest);
    for (vm, disk, image) in [
        ("web", "root", world.image("web", "root")),
        ("db", "data", other),
        ("app", "disk", world.image("app", "disk")),
    ] {
        assert_same_files(&world.target(vm, disk), &image);
    }
    let left = kept(&world);
    assert_eq!(left.iter().map(|d| d.label.as_str()).collect::<Vec<_>>(), ["db/data", "web/extra"]);

    // Deleted by its name, and only so.
    let datastore = world.dir.path().join("datastore");
    let gone = delete_detached(&datastore, &world.domain, left[0].disk).unwrap();
    assert!(!gone.exists() && kept(&world) == left[1..]);
    let request = RehydrateRequest { delete_detached: vec![left[0].disk], ..world.request() };
    let error = world.run(request).await.unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("web/extra"), "{error}");
    let request = RehydrateRequest { delete_detached: vec![left[1].disk], ..world.request() };
    assert_eq!(world.run(request).await.unwrap().detached, []);
    protection.stop().await.unwrap();
}

fn copy(world: &World, image: &std::path::Path) -> PathBuf {
    let to = world.dir.path().join("images").join(uuid::Uuid::new_v4().to_string());
    std::fs::copy(image, &to).unwrap();
    to
}

/// Following a selection of VMs, one of which leaves: the others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_selected_vm_that_leaves_does_not_end_the_others() {
    let world = World::new(&[("web", "root"), ("db", "data")]).await;
    world.make("web", "root", 8 * MIB, &[(0, MIB)]);
    world.make("db", "data", 8 * MIB, &[(0, MIB)]);
    let mut protection = start(&world, request(&world)).await;
    until_recoverable(&protection).await;
    let vms = ["web", "db"].map(|n| Name::new(n).unwrap()).to_vec();
    let selected = RehydrateRequest { vms: vms.clone(), ..world.request() };
    let following = Following::start(&world.site, selected).await.unwrap();
    catch_up(&protection, &following).await;
    protection.remove(&vms[1], &Name::new("data").unwrap()).await.unwrap();
    write(&world, "web", "root", 2 * MIB, 5).await;
    catch_up(&protection, &following).await;
    following.stop().await.unwrap();
    assert_same_files(&world.target("web", "root"), &world.image("web", "root"));
    assert_eq!(kept(&world).len(), 1);
    protection.stop().await.unwrap();
}
