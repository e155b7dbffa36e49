//! What goes wrong around a protection: a storage site that is away, another writer, images and sites that are not free.

use super::*;
use crate::world::noise;
use freshet::error::ErrorKind;
use freshet::protect::FencedPolicy;

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_site_that_is_away_costs_points_and_no_bytes_and_all_is_well_again_by_itself() {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 256 * MIB, &[(0, 8 * MIB)]);
    let protection = start(&world, request(&world)).await;
    let before = until_recoverable(&protection).await;
    let (here, away) = (world.dir.path().join("site"), world.dir.path().join("away"));
    std::fs::rename(&here, &away).unwrap();
    std::fs::write(&here, "no directory").unwrap();
    let mut guest = client(&world, "web", "root");
    let mut guest = blocking(move || {
        for i in 0..200 {
            guest.write(i * MIB, &noise(i + 1, MIB)).unwrap();
        }
        guest
    })
    .await;
    let status = until(&protection, "bitmap", |status| status.mode == "bitmap").await;
    assert!(status.problems.iter().any(|why| why.contains("storage site")), "{status:#?}");
    assert!(status.log_used > 0 && status.log_used <= status.log_size, "{status:#?}");
    assert_ne!(status.status, "Recoverable", "what was written meanwhile is in no point");
    blocking(move || guest.write(100, &noise(3, 5000)).unwrap()).await;

    std::fs::remove_file(&here).unwrap();
    std::fs::rename(&away, &here).unwrap();
    let status = until_recoverable(&protection).await;
    assert_eq!((status.mode.as_str(), status.problems.len()), ("normal", 0), "{status:#?}");
    assert!(status.shipped > before.shipped);
    stop_and_compare(&world, protection).await;
    // What was the last point before the outage still is one.
    world.rehydrate_to(freshet::ids::SegmentNo::new(before.shipped)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_writer_finds_out_ships_nothing_more_and_keeps_its_data() {
    for policy in [FencedPolicy::Continue, FencedPolicy::Stop] {
        let world = World::new(&[("web", "root")]).await;
        world.make("web", "root", 8 * MIB, &[(0, MIB)]);
        let protection = start(&world, ProtectRequest { fenced: policy, ..request(&world) }).await;
        until_recoverable(&protection).await;
        let copies = world.images();

        let other = ProtectRequest { take_ownership: true, ..request(&world) };
        let mut other = ProtectRequest {
            site: Name::new("second site").unwrap(),
            listen: vec![Listen::Unix(world.dir.path().join("other.sock"))],
            state: world.dir.path().join("other state"),
            ..other
        };
        std::fs::create_dir(&other.state).unwrap();
        other.vms[0].disks[0].path = copies[0].clone();
        let second = start(&world, other).await;

        let mut guest = client(&world, "web", "root");
        let (mut guest, written) = blocking(move || {
            let written = guest.write(4 * MIB, &noise(9, 8192));
            (guest, written)
        })
        .await;
        // It is noticed with the next acceptance or heartbeat at the latest.
        let status = until(&protection, "fenced", |status| status.mode == "fenced").await;
        assert_eq!(status.status, "Fenced");
        assert!(status.problems[0].contains("second site"), "{status:#?}");
        let after = blocking(move || guest.write(5 * MIB, &noise(8, 4096))).await;
        assert_eq!(after.is_ok(), policy == FencedPolicy::Continue, "{after:?}");
        // What is on the disk and not in the domain is told, with its place and its time.
        let diverged = protection.status().await.diverged.unwrap();
        assert_eq!(diverged.segments > 0, diverged.first.is_some(), "{diverged:#?}");
        assert!(diverged.first <= diverged.last, "{diverged:#?}");
        let [disk] = &diverged.disks[..] else { panic!("{diverged:#?}") };
        assert!(disk.disk == "web/root" && disk.more == 0, "{diverged:#?}");
        assert!(disk.ranges.iter().any(|(from, len)| (*from..from + len).contains(&(4 * MIB))), "{diverged:#?}");
        assert_eq!(disk.bytes, disk.ranges.iter().map(|(_, len)| len).sum::<u64>());
        let report = protection.stop().await.unwrap();
        assert!(!report.all_shipped && report.dirty > 0, "{report:#?}");
        let image = std::fs::read(world.image("web", "root")).unwrap();
        assert_eq!(written.is_ok(), image[4 * MIB as usize..][..8192] == noise(9, 8192)[..]);

        until_recoverable(&second).await;
        assert!(second.stop().await.unwrap().all_shipped);
        world.rehydrate().await;
        world.assert_disks(&copies);

        // Not ours any more: it does not open, and says whose it is.
        let error = Protection::open(world.site.clone(), request(&world)).await.unwrap();
        let mut error = error;
        let claimed = error.claim(&Cancel::new(), |_| ()).await;
        assert!(error.is_serving(), "guests that ran here before get their disks back");
        assert_eq!((claimed.is_ok(), error.status().await.status.as_str()), (true, "Fenced"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_protection_is_refused_whatever_it_shares_with_the_first() {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 8 * MIB, &[(0, MIB)]);
    let first = start(&world, request(&world)).await;
    until_recoverable(&first).await;
    let same = Protection::open(world.site.clone(), request(&world)).await.map(drop).unwrap_err();
    assert_eq!(same.kind(), ErrorKind::Refused, "{same}");
    let state = world.dir.path().join("other state");
    std::fs::create_dir(&state).unwrap();
    let listen = vec![Listen::Unix(world.dir.path().join("other.sock"))];
    let image = ProtectRequest { state: state.clone(), listen: listen.clone(), ..request(&world) };
    let error = Protection::open(world.site.clone(), image).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("locked"), "{error}");
    let mut copy = ProtectRequest { state, listen, ..request(&world) };
    copy.vms[0].disks[0].path = world.images()[0].clone();
    let mut domain = Protection::open(world.site.clone(), copy).await.unwrap();
    let error = domain.claim(&Cancel::new(), |_| ()).await.unwrap_err();
    assert!(error.to_string().contains("another writer"), "{error}");
    assert!(!domain.is_serving(), "closed until it is claimed");
    stop_and_compare(&world, first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_served_is_refused_before_anything_is_claimed() {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 8 * MIB, &[(0, MIB)]);
    let refuse = async |change: &dyn Fn(&mut ProtectRequest)| {
        let mut request = request(&world);
        change(&mut request);
        let error = Protection::open(world.site.clone(), request).await.map(drop).unwrap_err();
        error.to_string()
    };
    assert!(refuse(&|r| r.vms[0].disks[0].path = "/nowhere".into()).await.contains("/nowhere"));
    assert!(refuse(&|r| r.vms[0].disks[0].size = Some(16 * MIB)).await.contains("8388608"));
    assert!(refuse(&|r| r.state = "/nowhere".into()).await.contains("/nowhere"));
    assert!(refuse(&|r| r.memory = 1).await.contains("memory"));
    assert!(refuse(&|r| r.log_size = 4096).await.contains("log"));
    assert!(refuse(&|r| r.connections = 9999).await.contains("connections"));
    assert!(freshet::store::Domain::open(&world.site, &world.domain).await.is_err(), "nothing was claimed");
}
