//! What only the inside of a protection can show: the locks and orders that its promises rest on.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;
use crate::capture::DiskSource;
use crate::map::PointMap;
use crate::nbd::Listen;
use crate::protect::Filling;
use crate::protect::recorder::{Taken, Written};
use crate::store::StoreOptions;

const SIZE: u64 = 4 << 20;

async fn protect(dir: &Path) -> Protection {
    protect_with(dir, Filling::default()).await
}

async fn protect_with(dir: &Path, filling: Filling) -> Protection {
    for sub in ["site", "state"] {
        std::fs::create_dir(dir.join(sub)).unwrap();
    }
    let image = dir.join("image");
    std::fs::write(&image, vec![7; SIZE as usize]).unwrap();
    let site = StorageSite::open(&format!("file://{}/site", dir.display()), &StoreOptions::default()).await.unwrap();
    let name = |text: &str| Name::new(text).unwrap();
    let disk = DiskSource { name: name("disk"), path: image, size: None };
    let vms = vec![VmSource { name: name("vm"), disks: vec![disk], definition: None }];
    let listen = vec![Listen::Unix(dir.join("sock"))];
    let request = ProtectRequest {
        memory: 128 << 20,
        connections: 4,
        log_size: 64 << 20,
        segment_age: Duration::from_millis(20),
        filling,
        ..ProtectRequest::new(name("domain"), name("here"), vms, listen, dir.join("state"))
    };
    let mut protection = Protection::open(site, request).await.unwrap();
    protection.claim(&Cancel::new(), |_| ()).await.unwrap();
    protection
}

async fn until(mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(30), "it never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a guest is being copied onto is no moment of it, though all that was written is captured.
#[tokio::test(flavor = "multi_thread")]
async fn no_point_covers_a_disk_that_is_being_filled() {
    let dir = tempfile::tempdir().unwrap();
    let (filling, vm) = (Filling::default(), Name::new("vm").unwrap());
    filling.begin(&vm, &Name::new("disk").unwrap());
    let protection = protect_with(dir.path(), filling).await;
    let disk = Arc::clone(&protection.members.disks()[0]);
    until(|| disk.intent().next_unsynced(0).is_none()).await;
    protection.cut_point(Duration::from_secs(30)).await.unwrap();
    let status = protection.status().await;
    assert_eq!((status.vms[0].status.as_str(), status.vms[0].point), ("Initial Sync", None), "{status:?}");
    protection.filled(&vm);
    protection.cut_point(Duration::from_secs(30)).await.unwrap();
    let status = protection.status().await;
    assert!(status.vms[0].status == "Recoverable" && status.vms[0].point.is_some(), "{status:?}");
    drop(disk);
    assert!(protection.stop().await.unwrap().all_shipped);
}

/// A guest's write holds its range from its local write until it is captured. Resync that read the block before, and
/// captured it after, would put the old content over the new.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_back_waits_for_a_write_that_is_on_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let protection = protect(dir.path()).await;
    let disk = Arc::clone(&protection.members.disks()[0]);
    until(|| disk.is_synced()).await;
    // All is in doubt, and a guest is in the middle of a write to the second region.
    let (at, new) = ((1 << 20) + 4096, vec![9; 4096]);
    let guest = disk.lock().lock(at..at + 4096).await;
    disk.doubt_all().await.unwrap();
    until(|| !disk.intent().is_unsynced(0)).await;
    // Long enough for whoever does not wait.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(disk.intent().is_unsynced(1), "it was read back beside the write");
    let mark = disk.intent().begin_write(at..at + 4096).await.unwrap();
    std::fs::File::options().write(true).open(dir.path().join("image")).unwrap().write_all_at(&new, at).unwrap();
    let recorder = &protection.pipeline.as_ref().unwrap().recorder;
    let Taken::Captured(number) = recorder.record(disk.index_disk(), at, Written::Bytes(&new)).await else {
        panic!("not captured");
    };
    mark.captured(number);
    assert!(disk.intent().is_unsynced(1), "it was read back beside the write");
    drop(guest);
    until(|| disk.is_synced()).await;
    drop(disk);
    assert!(protection.stop().await.unwrap().all_shipped);
}

/// A map that lacks what was captured before a region came into doubt tells nothing about what must be shipped.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_compared_with_a_map_that_is_older_than_the_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let protection = protect(dir.path()).await;
    let disk = Arc::clone(&protection.members.disks()[0]);
    until(|| disk.is_synced()).await;
    let recorder = Arc::clone(&protection.pipeline.as_ref().unwrap().recorder);
    // Nothing of what follows reaches the map before the check: the storage site is away.
    let (site, away) = (dir.path().join("site"), dir.path().join("away"));
    std::fs::rename(&site, &away).unwrap();
    std::fs::write(&site, "no directory").unwrap();
    // A guest's write is captured, then another one fails after it put the disk back to what the map still says.
    let Taken::Captured(_) = recorder.record(disk.index_disk(), 0, Written::Bytes(&[1; 4096])).await else {
        panic!("not captured");
    };
    let mark = disk.intent().begin_write(0..4096).await.unwrap();
    disk.missed(mark);
    assert!(disk.doubt() >= recorder.newest());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(disk.intent().is_unsynced(0), "compared with a map that has not what was captured");
    std::fs::remove_file(&site).unwrap();
    std::fs::rename(&away, &site).unwrap();
    until(|| disk.is_synced()).await;
    drop(disk);
    let report = protection.stop().await.unwrap();
    assert!(report.all_shipped);
    // The captured write is undone in the chain, as it is on the disk.
    let site =
        StorageSite::open(&format!("file://{}/site", dir.path().display()), &StoreOptions::default()).await.unwrap();
    let mut domain = crate::store::Domain::open(&site, &Name::new("domain").unwrap()).await.unwrap();
    let tip = domain.tip().await.unwrap();
    let map = PointMap::load(&domain, tip).await.unwrap();
    let key = map.pages()[0];
    let extents = map.page(&site, &domain, key).await.unwrap();
    let first = extents.iter().find(|e| e.offset == 0).unwrap();
    let raw = vec![7; first.frame.body.raw_len as usize];
    assert_eq!(first.frame.body.raw_digest, crate::format::xxh3_128(&raw), "the chain has what the disk has");
}
