//! One file for each group of cases; what they share is here.

mod capture;
mod clocks;
mod control;
mod databases;
mod faults;
mod guest;
mod hand_over;
mod hostile;
mod images;
mod in_place;
mod joining;
mod kills;
mod logs;
mod order;
mod outside;
mod overload;
mod peers;
mod program;
#[path = "../nbd/client.rs"]
#[allow(dead_code, reason = "shared with the tests of the server")]
mod raw_client;
mod rehydrated;
mod restarts;
mod rivals;
mod round_trips;
mod stores;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use freshet::cancel::Cancel;
use freshet::ids::Name;
use freshet::nbd::Listen;
use freshet::progress::Progress;
use freshet::protect::{ProtectReport, ProtectRequest, ProtectStatus, Protection};
use freshet::rehydrate::rehydrate;

use crate::support::nbd_client::NbdClient;
use crate::world::World;

pub(crate) const MIB: u64 = 1 << 20;

/// Longest wait for a state that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all cases protect with: the world's disks, at a socket in its directory.
pub(crate) fn request(world: &World) -> ProtectRequest {
    let state = world.dir.path().join("state");
    std::fs::create_dir_all(&state).unwrap();
    let vms = world.replicate_request().vms;
    let listen = vec![Listen::Unix(socket(world))];
    ProtectRequest {
        memory: 128 << 20,
        connections: 16,
        log_size: 64 << 20,
        segment_age: Duration::from_millis(50),
        ..ProtectRequest::new(world.domain.clone(), Name::new("first site").unwrap(), vms, listen, state)
    }
}

pub(crate) fn socket(world: &World) -> PathBuf {
    world.dir.path().join("nbd.sock")
}

/// Starts and claims.
pub(crate) async fn start(world: &World, request: ProtectRequest) -> Protection {
    let mut protection = Protection::open(world.site.clone(), request).await.unwrap();
    protection.claim(&Cancel::new(), |error| panic!("must not wait: {error}")).await.unwrap();
    protection
}

/// As [`start`], once a protection that was dropped has let go of everything.
pub(crate) async fn start_late(world: &World, request: ProtectRequest) -> Protection {
    let began = Instant::now();
    loop {
        let failed = match Protection::open(world.site.clone(), request.clone()).await {
            Err(error) => error.to_string(),
            Ok(mut protection) => match protection.claim(&Cancel::new(), |_| ()).await {
                Ok(()) if protection.is_claimed() => return protection,
                other => format!("{other:?}, {:?}", protection.status().await.problems),
            },
        };
        assert!(began.elapsed() < PATIENCE, "{failed}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the status is as it must be.
pub(crate) async fn until(protection: &Protection, what: &str, is: impl Fn(&ProtectStatus) -> bool) -> ProtectStatus {
    let began = Instant::now();
    loop {
        let status = protection.status().await;
        if is(&status) {
            return status;
        }
        assert!(began.elapsed() < PATIENCE, "{what} never came: {status:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn until_recoverable(protection: &Protection) -> ProtectStatus {
    until(protection, "recoverable", |status| status.status == "Recoverable").await
}

/// Runs what blocks, such as a client, beside the runtime.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A client of one disk.
pub(crate) fn client(world: &World, vm: &str, disk: &str) -> NbdClient {
    NbdClient::connect(&socket(world), &format!("{vm}/{disk}")).unwrap()
}

/// Ends it; everything must have been shipped, and the recovered disks must be the images.
pub(crate) async fn stop_and_compare(world: &World, protection: Protection) -> ProtectReport {
    let report = protection.stop().await.unwrap();
    assert!(report.all_shipped, "{report:#?}");
    assert_eq!(report.dirty, 0, "a clean end leaves nothing marked: {report:#?}");
    world.rehydrate().await;
    let images: Vec<PathBuf> = world.disks.iter().map(|(vm, disk)| world.image(vm, disk)).collect();
    world.assert_disks(&images);
    report
}

/// Rehydrates to the newest point.
pub(crate) async fn recover(world: &World) {
    rehydrate(&world.site, world.request(), Arc::new(Progress::new()), Cancel::new()).await.unwrap();
}
