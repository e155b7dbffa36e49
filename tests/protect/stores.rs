//! A storage site that is away for long, that refuses to be written, or refuses everything: guests go on, the status says
//! what is wrong, and all is well again by itself.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use freshet::ids::SegmentNo;
use freshet::store::StoreOptions;

use super::outside::Mount;
use super::*;
use crate::support::mounts::{set_read_only, with_own_mounts};
use freshet::s3_server::{Fault, Options, Rule, S3Server};

/// A world whose storage site is a server that fails when it is told.
pub(crate) struct S3World {
    pub(crate) server: S3Server,
    pub(crate) world: World,
}

/// With retries within one request that are soon over: what is tried for ever is tried by the protection.
pub(crate) async fn s3_world(disks: &[(&'static str, &'static str)]) -> S3World {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(&dir.path().join("objects"), Options::default()).unwrap();
    let mut options = StoreOptions::from_vars(server.env());
    for (name, value) in [("RETRY_TRIES", "2"), ("RETRY_PAUSE", "10ms"), ("RETRY_PAUSE_MAX", "100ms")] {
        options.set(name, value).unwrap();
    }
    let world = World::at(dir, &server.url("site"), &options, disks).await;
    S3World { server, world }
}

/// Bytes that do not compress.
pub(crate) fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// A guest that writes without end and takes no error.
pub(crate) struct Guest {
    end: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Guest {
    /// `len` bytes at a time, somewhere on the disk, with a rest between two writes.
    pub(crate) fn start(mut client: NbdClient, len: usize, rest: Duration) -> Guest {
        let (end, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (Arc::clone(&end), Arc::clone(&writes));
        let thread = std::thread::spawn(move || {
            let mut place = fastrand::Rng::with_seed(len as u64);
            while !ends.load(Ordering::Relaxed) {
                let at = place.u64(..client.size / len as u64) * len as u64;
                client.write(at, &random(place.u64(..), len)).unwrap();
                counts.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(rest);
            }
        });
        Guest { end, writes, thread }
    }

    /// Writes that were acknowledged.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Ends it.
    pub(crate) async fn stop(self) {
        self.end.store(true, Ordering::Relaxed);
        blocking(move || self.thread.join().unwrap()).await;
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap()
}

/// The store is out of reach for `length` while guests write more than the log holds.
async fn outage(length: Duration) {
    let S3World { server, world } = s3_world(&[("web", "root"), ("db", "data")]).await;
    for (vm, disk) in [("web", "root"), ("db", "data")] {
        world.make(vm, disk, 96 * MIB, &[(0, 4 * MIB)]);
    }
    let protection = start(&world, request(&world)).await;
    let before = until_recoverable(&protection).await;
    let guest = |vm, disk| Guest::start(client(&world, vm, disk), 256 << 10, Duration::from_millis(10));
    let guests = [guest("web", "root"), guest("db", "data")];

    server.set_reachable(false).unwrap();
    let (gone, mut modes) = (Instant::now(), BTreeSet::new());
    let mut written = 0;
    while gone.elapsed() < length || !modes.contains("bitmap") {
        assert!(gone.elapsed() < length + PATIENCE, "only {modes:?}");
        let since = millis(gone.elapsed());
        let acknowledged: u64 = guests.iter().map(Guest::writes).sum();
        let status = protection.status().await;
        // Nothing was accepted meanwhile, so every VM's newest point is older than the outage.
        assert!(status.rpo_ms.is_some_and(|rpo| rpo >= since), "after {since} ms: {status:#?}");
        if status.mode == "bitmap" {
            if !modes.contains("bitmap") {
                written = guests.iter().map(Guest::writes).sum();
            } else if acknowledged > written + guests.len() as u64 {
                // More than could have been on their way when capturing paused.
                assert_ne!(status.status, "Recoverable", "what was written meanwhile is in no point");
            }
        }
        assert!(status.log_used <= status.log_size, "{status:#?}");
        modes.insert(status.mode);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(modes.iter().map(String::as_str).collect::<Vec<_>>(), ["bitmap", "normal", "throttled"]);
    let status = protection.status().await;
    assert!(status.problems.iter().any(|why| why.contains("storage site")), "{status:#?}");
    // They go on, also where nothing is captured.
    until(&protection, "more writes", |_| guests.iter().map(Guest::writes).sum::<u64>() > written + 10).await;

    let back = Instant::now();
    server.set_reachable(true).unwrap();
    let status = until_recoverable(&protection).await;
    assert_eq!((status.mode.as_str(), status.problems.len()), ("normal", 0), "{status:#?}");
    assert!(status.rpo_ms.is_some_and(|rpo| rpo <= millis(back.elapsed())), "its points are of now: {status:#?}");
    for guest in guests {
        guest.stop().await;
    }
    stop_and_compare(&world, protection).await;
    // What was the last point before the outage still is one.
    world.rehydrate_to(SegmentNo::new(before.shipped)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_for_long_takes_everything_once_it_is_back() {
    outage(Duration::from_secs(8)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes ten minutes, as outages do"]
async fn a_store_that_is_away_for_ten_minutes_takes_everything_once_it_is_back() {
    outage(Duration::from_secs(600)).await;
}

/// As [`start`], with the protection that was dropped still on its way out; not claimed yet.
pub(crate) async fn open_late(world: &World) -> Protection {
    let began = Instant::now();
    loop {
        match Protection::open(world.site.clone(), request(world)).await {
            Ok(protection) => return protection,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_is_named_guests_go_on_and_a_restart_meanwhile_takes_no_disk_away() {
    for revoked in [false, true] {
        let S3World { server, world } = s3_world(&[("web", "root")]).await;
        world.make("web", "root", 16 * MIB, &[(0, 4 * MIB)]);
        let refuse = || match revoked {
            true => server.faults().set([Rule::new(Fault::Deny)]),
            false => server.faults().set_read_only(true),
        };
        let is_named = |status: &ProtectStatus| {
            let named = |why: &String| why.contains("storage site") && why.contains("AccessDenied");
            status.problems.iter().any(named)
        };
        let protection = start(&world, request(&world)).await;
        let before = until_recoverable(&protection).await;
        refuse();
        let mut guest = client(&world, "web", "root");
        let mut guest = blocking(move || {
            (0..20_u64).for_each(|i| guest.write(i * 8192, &random(i, 8192)).unwrap());
            guest
        })
        .await;
        let status = until(&protection, "what is wrong", is_named).await;
        assert_eq!((status.mode.as_str(), status.shipped), ("normal", before.shipped), "{status:#?}");
        until(&protection, "a cut", |status| status.captured > status.shipped && status.waiting_segments > 0).await;
        // By itself, without a restart.
        server.faults().clear();
        let well = |status: &ProtectStatus| status.problems.is_empty() && status.shipped > before.shipped;
        until(&protection, "recovery", well).await;

        refuse();
        blocking(move || guest.write(MIB, &random(99, 8192)).unwrap()).await;
        drop(protection);
        let mut protection = open_late(&world).await;
        assert!(protection.is_serving(), "guests that run get their disks back at once");
        let observer = protection.observer();
        let claiming = tokio::spawn(async move {
            protection.claim(&Cancel::new(), |_| ()).await.unwrap();
            protection
        });
        let mut guest = client(&world, "web", "root");
        blocking(move || guest.write(2 * MIB, &random(98, 8192)).unwrap()).await;
        let began = Instant::now();
        while !is_named(&observer.status().await) {
            assert!(began.elapsed() < PATIENCE && !claiming.is_finished(), "{:#?}", observer.status().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.faults().clear();
        let protection = claiming.await.unwrap();
        until_recoverable(&protection).await;
        stop_and_compare(&world, protection).await;
    }
}

#[test]
fn a_directory_that_turns_read_only_is_named_and_written_again_when_it_can_be() {
    with_own_mounts("a read-only storage site", || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let world = World::new(&[("web", "root")]).await;
            world.make("web", "root", 8 * MIB, &[(0, 2 * MIB)]);
            let site = world.dir.path().join("site");
            let mount = Mount::memory(&site, "size=64m");
            let protection = start(&world, request(&world)).await;
            let before = until_recoverable(&protection).await;
            set_read_only(&site, true);
            let mut guest = client(&world, "web", "root");
            blocking(move || guest.write(MIB, &random(1, 8192)).unwrap()).await;
            let named = |why: &String| why.contains("storage site") && why.contains("Read-only");
            let status = until(&protection, "what is wrong", |status| status.problems.iter().any(named)).await;
            assert_eq!((status.mode.as_str(), status.shipped), ("normal", before.shipped), "{status:#?}");
            set_read_only(&site, false);
            until(&protection, "recovery", |status| status.problems.is_empty() && status.shipped > before.shipped)
                .await;
            stop_and_compare(&world, protection).await;
            mount.unmount();
        });
    });
}
