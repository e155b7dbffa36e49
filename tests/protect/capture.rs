//! Writes, discards and zeros of guests; initial sync beside them; a clean end and the next start.

use super::*;
use crate::world::noise;

#[tokio::test(flavor = "multi_thread")]
async fn what_guests_write_during_initial_sync_and_after_comes_back_byte_for_byte() {
    let world = World::new(&[("web", "root"), ("web", "data"), ("db", "odd")]).await;
    world.make("web", "root", 96 * MIB, &[(0, 3 * MIB), (40 * MIB + 4096, 30 * MIB)]);
    world.make("web", "data", 64 * MIB, &[(10 * MIB, 40 * MIB)]);
    world.make("db", "odd", 5 * MIB + 1234, &[(4 * MIB, MIB + 1234)]);
    let protection = start(&world, request(&world)).await;
    let sockets = (client(&world, "web", "root"), client(&world, "web", "data"), client(&world, "db", "odd"));
    blocking(move || {
        let (mut root, mut data, mut odd) = sockets;
        assert_eq!((root.size, odd.size), (96 * MIB, 5 * MIB + 1234));
        let mut random = fastrand::Rng::with_seed(7);
        for i in 0..600 {
            let (client, size) = if i % 2 == 0 { (&mut root, 96 * MIB) } else { (&mut data, 64 * MIB) };
            let len = random.u64(1..16) * 4096;
            let at = random.u64(0..(size - len) / 4096) * 4096;
            match i % 10 {
                8 => client.trim(at, len as u32).unwrap(),
                9 => client.zero(at, len as u32).unwrap(),
                _ => client.write(at, &noise(i, len)).unwrap(),
            }
        }
        // Parts of sectors, and the odd end of a disk.
        odd.write(5 * MIB + 1000, &noise(5, 234)).unwrap();
        odd.write(700, &noise(6, 5)).unwrap();
        odd.write(1500, &noise(8, 1000)).unwrap();
        odd.zero(4 * MIB + 3, 2000).unwrap();
        odd.trim(4 * MIB + 8192 + 7, 100).unwrap();
        assert_eq!(odd.read(1500, 1000).unwrap(), noise(8, 1000));
        assert_eq!(odd.read(4 * MIB + 3, 2000).unwrap(), vec![0; 2000]);
        root.flush().unwrap();
    })
    .await;
    let status = until_recoverable(&protection).await;
    assert_eq!(status.mode, "normal");
    assert!(status.problems.is_empty(), "{status:#?}");
    let report = stop_and_compare(&world, protection).await;
    assert!(report.stored > 0 && report.written > 0 && report.manifests > 0, "{report:#?}");
}

/// Blocks that are read back for initial sync and written by guests at the same time: without the range lock, the old
/// content would be shipped after the new.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_read_back_never_undoes_a_write_to_it() {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 64 * MIB, &[(0, 64 * MIB)]);
    let protection = start(&world, request(&world)).await;
    let guests: Vec<_> = (0..4_u64)
        .map(|guest| {
            let mut client = client(&world, "web", "root");
            std::thread::spawn(move || {
                let mut random = fastrand::Rng::with_seed(guest);
                let until = Instant::now() + Duration::from_secs(2);
                // Each guest has the blocks of its own remainder, so that nobody's last write is another's.
                while Instant::now() < until {
                    let block = random.u64(0..64 * MIB / 4096 / 4) * 4 + guest;
                    client.write(block * 4096, &noise(random.u64(..1 << 20), 4096)).unwrap();
                }
            })
        })
        .collect();
    blocking(move || guests.into_iter().for_each(|guest| guest.join().unwrap())).await;
    until_recoverable(&protection).await;
    stop_and_compare(&world, protection).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_clean_end_nothing_is_read_back_and_after_a_change_from_outside_all_of_it() {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 32 * MIB, &[(0, 20 * MIB)]);
    let protection = start(&world, request(&world)).await;
    until_recoverable(&protection).await;
    stop_and_compare(&world, protection).await;

    let protection = start(&world, request(&world)).await;
    let status = until_recoverable(&protection).await;
    assert_eq!(status.vms[0].disks[0].dirty, 0, "{status:#?}");
    let mut guest = client(&world, "web", "root");
    blocking(move || guest.write(MIB, &noise(3, 8192)).unwrap()).await;
    let report = stop_and_compare(&world, protection).await;
    assert!(report.stored < MIB, "only the write was shipped: {report:#?}");

    world.change("web", "root", 9 * MIB, 4096, 99);
    let protection = start(&world, request(&world)).await;
    assert!(protection.notes().iter().any(|note| note.contains("changed while it was not protected")));
    until_recoverable(&protection).await;
    let report = stop_and_compare(&world, protection).await;
    assert!(report.stored < MIB, "all was compared, and only the change shipped: {report:#?}");
}

/// Bits that are clear speak of one chain, one file, and the time that somebody watched the disk.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_elsewhere_or_unwatched_is_compared_in_whole() {
    let world = World::new(&[("web", "root"), ("db", "data")]).await;
    for (vm, disk) in [("web", "root"), ("db", "data")] {
        world.make(vm, disk, 16 * MIB, &[(0, 8 * MIB)]);
    }
    let protection = start(&world, request(&world)).await;
    until_recoverable(&protection).await;
    stop_and_compare(&world, protection).await;

    // Another chain: somebody replicated other content under the same names.
    let images = world.images();
    let mut other = world.replicate_request();
    for (vm, image) in other.vms.iter_mut().zip(&images) {
        vm.disks[0].path = image.clone();
        let file = std::fs::File::options().write(true).open(image).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &noise(77, MIB), 2 * MIB).unwrap();
    }
    freshet::capture::replicate(&world.site, other, Arc::new(Progress::new()), Cancel::new()).await.unwrap();
    let protection = start(&world, request(&world)).await;
    assert!(protection.notes().iter().any(|note| note.contains("not the one")), "{:?}", protection.notes());
    until_recoverable(&protection).await;
    stop_and_compare(&world, protection).await;

    // Another file at an unclean end.
    let protection = start(&world, request(&world)).await;
    until_recoverable(&protection).await;
    drop(protection);
    let path = world.image("web", "root");
    std::fs::rename(&path, path.with_extension("old")).unwrap();
    std::fs::copy(path.with_extension("old"), &path).unwrap();
    world.change("web", "root", 5 * MIB, 4096, 9);
    let protection = start_late(&world, request(&world)).await;
    until_recoverable(&protection).await;
    stop_and_compare(&world, protection).await;

    // A VM that was left out of a run.
    let mut without = request(&world);
    without.vms.pop();
    let protection = start(&world, without).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(protection.stop().await.unwrap().all_shipped);
    world.change("db", "data", 6 * MIB, 4096, 10);
    let protection = start(&world, request(&world)).await;
    until_recoverable(&protection).await;
    stop_and_compare(&world, protection).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_is_cut_when_asked_and_disks_join_and_leave() {
    let world = World::new(&[("web", "root"), ("web", "data"), ("db", "root")]).await;
    for (vm, disk) in [("web", "root"), ("web", "data"), ("db", "root")] {
        world.make(vm, disk, 8 * MIB, &[(MIB, 2 * MIB)]);
    }
    let mut request = request(&world);
    let later: Vec<_> = request.vms.drain(1..).collect();
    let mut protection = start(&world, request).await;
    until_recoverable(&protection).await;
    let point = protection.cut_point(Duration::from_secs(30)).await.unwrap();
    assert_eq!(protection.status().await.shipped, point);

    protection.add(&later).await.unwrap();
    let again = protection.add(&later).await.unwrap_err();
    assert!(again.to_string().contains("protected already"), "{again}");
    let status = until_recoverable(&protection).await;
    assert_eq!(status.vms.len(), 2);
    let mut guest = client(&world, "db", "root");
    blocking(move || guest.write(0, &noise(4, 4096)).unwrap()).await;
    protection.cut_point(Duration::from_secs(30)).await.unwrap();
    recover(&world).await;
    world.assert_disks(&world.images());

    let (vm, disk) = (Name::new("db").unwrap(), Name::new("root").unwrap());
    protection.remove(&vm, &disk).await.unwrap();
    assert!(protection.remove(&vm, &disk).await.is_err());
    assert!(NbdClient::try_connect(&socket(&world), "db/root").is_err(), "its export is gone");
    protection.cut_point(Duration::from_secs(30)).await.unwrap();
    let status = protection.status().await;
    assert_eq!((status.vms.len(), status.status.as_str()), (1, "Recoverable"));
    assert!(protection.stop().await.unwrap().all_shipped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_before_the_first_manifest_can_be_gone_back_to() {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 32 * MIB, &[(0, 2 * MIB)]);
    // No manifest can be written for now.
    let manifests = world.dir.path().join("site").join(world.domain.key()).join("manifests");
    std::fs::create_dir_all(manifests.parent().unwrap()).unwrap();
    std::fs::write(&manifests, "no directory").unwrap();
    let protection = start(&world, request(&world)).await;
    until_recoverable(&protection).await;
    let point = protection.cut_point(Duration::from_secs(30)).await.unwrap();
    let before = world.images();
    let mut guest = client(&world, "web", "root");
    blocking(move || {
        guest.write(MIB, &noise(1, MIB)).unwrap();
        guest.write(20 * MIB, &noise(2, MIB)).unwrap();
    })
    .await;
    std::fs::remove_file(&manifests).unwrap();
    stop_and_compare(&world, protection).await;
    world.rehydrate_to(freshet::ids::SegmentNo::new(point)).await;
    world.assert_disks(&before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_data_is_recoverable_as_soon_as_it_is_synced() {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 64 * MIB, &[]);
    // No point comes of idleness while the test runs.
    let request = ProtectRequest { idle_point: Duration::from_secs(3600), ..request(&world) };
    let protection = start(&world, request).await;
    until_recoverable(&protection).await;
    stop_and_compare(&world, protection).await;
}
