//! Replication end to end over a directory: images go in, and what the storage site then says of them is read back by a
//! reader of its own and compared byte for byte.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/replica.rs"]
mod replica;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use freshet::cancel::Cancel;
use freshet::capture::{DiskSource, ReplicateReport, ReplicateRequest, VmSource, replicate};
use freshet::error::{ErrorKind, Result};
use freshet::ids::Name;
use freshet::progress::Progress;
use freshet::store::{StorageSite, StoreOptions, keys};

const MIB: u64 = 1 << 20;
const GRID: u64 = 256 << 10;

/// A storage site and images in one directory.
struct Place {
    dir: tempfile::TempDir,
    site: StorageSite,
}

impl Place {
    async fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/site", dir.path().display());
        let site = StorageSite::open(&url, &StoreOptions::default()).await.unwrap();
        Place { dir, site }
    }

    /// A sparse image of `len` bytes with noise at the given ranges.
    fn image(&self, name: &str, len: u64, data: &[(u64, u64)]) -> PathBuf {
        let path = self.dir.path().join(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        for (at, len) in data {
            write(&path, *at, &noise(*at + 1, *len));
        }
        path
    }

    async fn replicate(&self, vms: Vec<VmSource>) -> Result<ReplicateReport> {
        self.replicate_with(vms, |_| ()).await
    }

    async fn replicate_with(
        &self,
        vms: Vec<VmSource>,
        change: impl FnOnce(&mut ReplicateRequest),
    ) -> Result<ReplicateReport> {
        let mut request = ReplicateRequest::new(name("dom/ain ☃"), name("here"), vms);
        change(&mut request);
        let progress = Arc::new(Progress::new());
        let report = replicate(&self.site, request, progress.clone(), Cancel::new()).await?;
        let end = progress.snapshot();
        assert_eq!(end.done, end.total, "progress ends at its total");
        Ok(report)
    }

    /// What the storage site says of each disk is what its image holds.
    async fn assert_equal(&self, disks: &[(&str, &Path)]) {
        let stored = replica::disks(&self.site, "dom/ain ☃").await;
        for (label, path) in disks {
            let image = std::fs::read(path).unwrap();
            let stored = &stored[*label];
            assert_eq!(stored.len(), image.len(), "{label}");
            let first = stored.iter().zip(&image).position(|(a, b)| a != b);
            assert_eq!(first, None, "{label}: first byte that differs");
        }
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn vm(vm: &str, disks: &[(&str, &Path)]) -> VmSource {
    let disks =
        disks.iter().map(|(n, path)| DiskSource { name: name(n), path: path.to_path_buf(), size: None }).collect();
    VmSource { name: name(vm), disks, definition: None }
}

fn write(path: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// Bytes that compress by about half and differ from place to place.
fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as u8
    };
    (0..len).map(|i| if i % 2 == 0 { next() } else { b'x' }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_any_size_come_back_and_holes_and_zeros_are_not_shipped() {
    let place = Place::new().await;
    let odd = 5 * MIB + 12_345;
    let root = place.image("root", odd, &[(4096, 300_000), (3 * MIB + 7, 1), (odd - 1, 1)]);
    let data = place.image("da ta", 2100 * MIB, &[(0, 512), (1024 * MIB - 10, 20), (2099 * MIB, MIB)]);
    let empty = place.image("empty", 0, &[]);
    let one = place.image("one", 1, &[(0, 1)]);
    write(&root, MIB, &vec![0; MIB as usize]);
    let vms = vec![vm("w/eb ü", &[("..", &root), ("data", &data)]), vm("b", &[("empty", &empty), ("one", &one)])];
    let report = place.replicate(vms).await.unwrap();
    assert_eq!((report.covered.len(), report.disks.len(), report.fuzzy), (2, 4, false));
    assert_eq!(report.logical, odd + 2100 * MIB + 1);
    assert!(report.read < 8 * MIB, "holes were read: {} bytes", report.read);
    assert!(report.shipped < 2 * MIB && report.shipped == report.live, "{report:?}");
    assert!(report.stored < report.shipped, "{report:?}");
    assert_eq!(report.manifest, Some(report.point), "{report:?}");
    place.assert_equal(&[("w/eb ü/..", &root), ("w/eb ü/data", &data), ("b/empty", &empty), ("b/one", &one)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_run_ships_nothing_and_a_change_ships_its_blocks() {
    let place = Place::new().await;
    let path = place.image("disk", 40 * MIB + 100, &[(0, 12 * MIB), (20 * MIB, 5 * MIB + 4096), (40 * MIB, 100)]);
    let disk = || vec![vm("a", &[("root", &path)])];
    let first = place.replicate(disk()).await.unwrap();
    let again = place.replicate(disk()).await.unwrap();
    assert_eq!((again.frames, again.shipped, again.zeroed, again.segments), (0, 0, 0, 1), "{again:?}");
    assert_eq!((again.read, again.live), (first.read, first.live));
    assert_eq!(again.point.segment.get(), first.point.segment.get() + again.segments);
    assert!(again.point.generation > first.point.generation && again.point_time > first.point_time);
    assert_eq!(again.manifest, None, "nothing changed: the manifest before still serves");

    write(&path, 3 * MIB + 5, b"changed");
    write(&path, 30 * MIB + 8192, b"new");
    write(&path, 40 * MIB + 99, b"!");
    write(&path, 21 * MIB, &vec![0; MIB as usize]);
    let changed = place.replicate(disk()).await.unwrap();
    assert_eq!((changed.frames, changed.shipped, changed.zeroed), (3, GRID + 4096 + 100, MIB), "{changed:?}");
    assert_eq!(changed.live, first.live + 4096 - MIB);
    place.assert_equal(&[("a/root", &path)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_segment_whose_header_is_damaged_is_told_and_gone_on_from() {
    let place = Place::new().await;
    let path = place.image("disk", 4 * MIB, &[(0, 4 * MIB)]);
    let first = place.replicate(vec![vm("a", &[("root", &path)])]).await.unwrap();
    assert_eq!(first.manifest, Some(first.point), "the map does not hang on the segment's index");
    let segment = keys::segment(&name("dom/ain ☃"), first.point);
    let object = place.dir.path().join("site").join(&segment);
    write(&object, 40, &[0xff; 8]);
    write(&path, MIB, b"changed");
    let second = place.replicate(vec![vm("a", &[("root", &path)])]).await.unwrap();
    assert!(second.notes.iter().any(|note| note.contains(&segment)), "{:?}", second.notes);
    assert_eq!(second.frames, 1, "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_became_a_hole_is_told_as_zeros() {
    let place = Place::new().await;
    let path = place.image("disk", 1100 * MIB, &[(0, 3 * MIB), (8 * MIB, 2 * MIB), (1030 * MIB, MIB)]);
    let disk = || vec![vm("a", &[("root", &path)])];
    place.replicate(disk()).await.unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    use rustix::fs::FallocateFlags as F;
    for (at, len) in [(MIB + 4096, MIB), (8 * MIB, 2 * MIB), (1030 * MIB, MIB)] {
        rustix::fs::fallocate(&file, F::PUNCH_HOLE | F::KEEP_SIZE, at, len).unwrap();
    }
    drop(file);
    let report = place.replicate_with(disk(), |r| r.manifest_every = 0).await.unwrap();
    assert_eq!(report.live, 2 * MIB);
    assert_eq!(report.zeroed, 4 * MIB);
    assert!(report.shipped <= 2 * GRID, "{report:?}");
    assert_eq!(report.manifest, Some(report.point), "{report:?}");
    place.assert_equal(&[("a/root", &path)]).await;
    let (domain, _) = replica::open(&place.site, "dom/ain ☃").await;
    let manifest = domain.manifest(report.point).await.unwrap();
    assert_eq!((manifest.pages.len(), manifest.live_bytes()), (1, 2 * MIB), "the empty page is gone");
    assert_eq!(report.domain, domain.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_grow_join_and_shrink_only_with_leave() {
    let place = Place::new().await;
    let a = place.image("a", 3 * MIB + 1, &[(0, 3 * MIB + 1)]);
    let b = place.image("b", MIB, &[(0, MIB)]);
    let first = place.replicate(vec![vm("a", &[("root", &a)])]).await.unwrap();
    File::options().write(true).open(&a).unwrap().set_len(6 * MIB).unwrap();
    write(&a, 5 * MIB, b"grown");
    let grown = place.replicate(vec![vm("a", &[("root", &a)]), vm("b", &[("root", &b)])]).await.unwrap();
    assert_eq!((grown.disks[0].joined, grown.disks[1].joined), (false, true));
    assert_eq!(grown.disks[0].disk, first.disks[0].disk);
    place.assert_equal(&[("a/root", &a), ("b/root", &b)]).await;
    File::options().write(true).open(&a).unwrap().set_len(MIB + 1000).unwrap();
    let error = place.replicate(vec![vm("a", &[("root", &a)])]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let shrunk = place.replicate_with(vec![vm("a", &[("root", &a)])], |r| r.allow_shrink = true).await.unwrap();
    assert_eq!(shrunk.covered, [name("a")], "b was not read");
    place.assert_equal(&[("a/root", &a), ("b/root", &b)]).await;
    File::options().write(true).open(&a).unwrap().set_len(6 * MIB).unwrap();
    place.replicate(vec![vm("a", &[("root", &a)])]).await.unwrap();
    place.assert_equal(&[("a/root", &a)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_open_for_writing_is_refused_or_its_point_fuzzy() {
    let place = Place::new().await;
    let path = place.image("disk", MIB, &[(0, 1000)]);
    let writer = File::options().write(true).open(&path).unwrap();
    let disk = || vec![vm("a", &[("root", &path)])];
    let error = place.replicate(disk()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains(&format!("(process {})", std::process::id())), "{error}");
    let fuzzy = place.replicate_with(disk(), |r| r.allow_fuzzy = true).await.unwrap();
    assert!(fuzzy.fuzzy && !fuzzy.notes.is_empty());
    drop(writer);
    let clean = place.replicate_with(disk(), |r| r.allow_fuzzy = true).await.unwrap();
    assert!(!clean.fuzzy);
    let link = place.dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let error = place.replicate(vec![vm("a", &[("root", &path), ("twice", &link)])]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("two disks"), "{error}");
}

/// Replicates in small segments and stops once some of them are accepted; returns the bytes that were done.
async fn interrupted(place: &Place, vms: Vec<VmSource>) -> u64 {
    let mut request = ReplicateRequest::new(name("dom/ain ☃"), name("here"), vms);
    request.segment_bytes = 64 << 10;
    let (progress, cancel) = (Arc::new(Progress::new()), Cancel::new());
    let site = place.site.clone();
    let running = tokio::spawn({
        let (progress, cancel) = (progress.clone(), cancel.clone());
        async move { replicate(&site, request, progress, cancel).await }
    });
    while progress.snapshot().done < 2 * MIB && !running.is_finished() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    cancel.cancel();
    assert_eq!(running.await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    let end = progress.snapshot();
    assert!(end.done < end.total, "{end:?}");
    end.done
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_initial_sync_goes_on_where_it_was() {
    let place = Place::new().await;
    let path = place.image("disk", 64 * MIB, &[(0, 64 * MIB)]);
    let disk = || vec![vm("a", &[("root", &path)])];
    let done = interrupted(&place, disk()).await;
    let (domain, tip) = replica::open(&place.site, "dom/ain ☃").await;
    assert!(tip.segment.get() > 1);
    assert!(domain.points().await.unwrap().all().is_empty(), "nothing is a point yet");
    let rest = place.replicate(disk()).await.unwrap();
    assert!(rest.shipped <= 64 * MIB - done, "{} after {done}", rest.shipped);
    assert!(!rest.disks[0].joined, "the disk kept its identity");
    place.assert_equal(&[("a/root", &path)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_second_run_leaves_the_point_before_as_it_was() {
    let place = Place::new().await;
    let path = place.image("disk", 64 * MIB, &[(0, 64 * MIB)]);
    let disk = || vec![vm("a", &[("root", &path)])];
    let first = place.replicate(disk()).await.unwrap();
    write(&path, 0, &noise(77, 64 * MIB));
    interrupted(&place, disk()).await;
    let (domain, tip) = replica::open(&place.site, "dom/ain ☃").await;
    assert!(tip.segment > first.point.segment);
    assert_eq!(domain.points().await.unwrap().newest().unwrap().at, first.point);
    place.replicate(disk()).await.unwrap();
    place.assert_equal(&[("a/root", &path)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_changes_while_it_is_read_becomes_no_point() {
    let place = Place::new().await;
    let path = place.image("disk", 64 * MIB, &[(0, 64 * MIB)]);
    for (what, word) in [("write", "was written to"), ("cut", "cut while it was read")] {
        let mut request = ReplicateRequest::new(name("dom/ain ☃"), name("here"), vec![vm("a", &[("root", &path)])]);
        request.segment_bytes = 64 << 10;
        let progress = Arc::new(Progress::new());
        let running = tokio::spawn({
            let (site, progress) = (place.site.clone(), progress.clone());
            async move { replicate(&site, request, progress, Cancel::new()).await }
        });
        while progress.snapshot().stage != "replicating" && !running.is_finished() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        match what {
            "write" => write(&path, 63 * MIB, b"other"),
            _ => File::options().write(true).open(&path).unwrap().set_len(MIB).unwrap(),
        }
        let error = running.await.unwrap().unwrap_err();
        let text = error.to_string();
        assert!(text.contains(word) || text.contains("its length went"), "{what}: {error}");
        let (domain, _) = replica::open(&place.site, "dom/ain ☃").await;
        assert!(domain.points().await.unwrap().all().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_points_carry_a_manifest_when_it_is_due_and_all_points_are_listed() {
    let place = Place::new().await;
    let path = place.image("disk", 8 * MIB, &[(0, 4 * MIB)]);
    let mut manifests = Vec::new();
    for i in 0..5_u64 {
        write(&path, i * MIB, &noise(i + 100, 2 * MIB));
        let every = |r: &mut ReplicateRequest| r.manifest_every = 2 * MIB;
        let report = place.replicate_with(vec![vm("a", &[("root", &path)])], every).await.unwrap();
        manifests.push(report.manifest.is_some());
    }
    assert_eq!(manifests, [true, false, true, false, true]);
    let (domain, tip) = replica::open(&place.site, "dom/ain ☃").await;
    assert_eq!(domain.manifests().await.unwrap().len(), 3);
    let points = domain.points().await.unwrap();
    assert_eq!(points.all().len(), 5);
    assert_eq!(points.newest().unwrap().at, tip);
    place.assert_equal(&[("a/root", &path)]).await;
}

/// A loop device over `path`, where this machine lets us have one.
fn loop_device(path: &Path) -> Option<PathBuf> {
    let out = std::process::Command::new("losetup").args(["-f", "--show"]).arg(path).output().ok()?;
    out.status.success().then(|| PathBuf::from(String::from_utf8(out.stdout).unwrap().trim()))
}

struct Detach(PathBuf);

impl Drop for Detach {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_device_is_read_and_its_backing_file_is_in_use() {
    let place = Place::new().await;
    let path = place.image("disk", 8 * MIB, &[(MIB, 3 * MIB), (7 * MIB, 100)]);
    let Some(device) = loop_device(&path).map(Detach) else { return eprintln!("skipped: no loop devices here") };
    let error = place.replicate(vec![vm("a", &[("file", &path)])]).await.unwrap_err();
    assert!(error.to_string().contains("loop device"), "{error}");
    let disk = || vec![vm("a", &[("root", &device.0)])];
    let report = place.replicate(disk()).await.unwrap();
    assert_eq!((report.read, report.live), (8 * MIB, 3 * MIB + 4096));
    assert_eq!(place.replicate(disk()).await.unwrap().frames, 0);
    let holder = File::options().write(true).open(&device.0).unwrap();
    assert_eq!(place.replicate(disk()).await.unwrap_err().kind(), ErrorKind::Refused);
    drop(holder);
    place.assert_equal(&[("a/root", &path)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_comes_back_as_it_was() {
    let place = Place::new().await;
    let path = place.dir.path().join("ext4");
    File::create(&path).unwrap().set_len(96 * MIB).unwrap();
    let tree = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let made = std::process::Command::new("mke2fs").args(["-q", "-t", "ext4", "-d", tree]).arg(&path).status();
    if !made.is_ok_and(|status| status.success()) {
        return eprintln!("skipped: no mke2fs here");
    }
    let report = place.replicate(vec![vm("a", &[("root", &path)])]).await.unwrap();
    assert!(report.live < 32 * MIB, "{report:?}");
    place.assert_equal(&[("a/root", &path)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_every_kind_give_the_same_disks() {
    let place = Place::new().await;
    // Whole pieces first, then pieces with holes, so that these are read into buffers that are not fresh.
    let sparse = (40..80).map(|n| (n * MIB + GRID, 4096));
    let data: Vec<(u64, u64)> = [(0, 9 * MIB), (15 * MIB, 22 * MIB)].into_iter().chain(sparse).collect();
    let path = place.image("disk", 90 * MIB + 5, &data);
    for (workers, memory, segment, engine) in [
        (1, 96 * MIB, 64 << 10, freshet::datastore::EngineKind::Threads),
        (7, 200 * MIB, 1 << 20, freshet::datastore::EngineKind::Auto),
    ] {
        write(&path, 0, &noise(workers as u64, 9 * MIB));
        let change = |r: &mut ReplicateRequest| {
            (r.workers, r.memory, r.segment_bytes, r.engine) = (workers, memory, segment, engine);
        };
        let report = place.replicate_with(vec![vm("a", &[("root", &path)])], change).await.unwrap();
        assert!(report.segments >= 4, "{report:?}");
        place.assert_equal(&[("a/root", &path)]).await;
    }
}

/// Starts a replication and waits until it reads.
async fn started(place: &Place, site: &str, path: &Path) -> tokio::task::JoinHandle<Result<ReplicateReport>> {
    let mut request = ReplicateRequest::new(name("dom/ain ☃"), name(site), vec![vm("a", &[("root", path)])]);
    (request.segment_bytes, request.level) = (64 << 10, 9);
    let progress = Arc::new(Progress::new());
    let running = tokio::spawn({
        let (site, progress) = (place.site.clone(), progress.clone());
        async move { replicate(&site, request, progress, Cancel::new()).await }
    });
    while progress.snapshot().moved < MIB && !running.is_finished() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_writer_is_refused_while_the_first_one_works() {
    let place = Place::new().await;
    let path = place.image("disk", 48 * MIB, &[(0, 48 * MIB)]);
    let other = place.image("other", MIB, &[(0, 100)]);
    let first = started(&place, "here", &path).await;
    let error = place.replicate(vec![vm("b", &[("root", &other)])]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    first.await.unwrap().unwrap();
    place.replicate(vec![vm("b", &[("root", &other)])]).await.unwrap();
    place.assert_equal(&[("a/root", &path), ("b/root", &other)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_cut_off_reports_no_point() {
    let place = Place::new().await;
    let path = place.image("disk", 48 * MIB, &[(0, 48 * MIB)]);
    let copy = place.dir.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    let first = started(&place, "there", &path).await;
    let disk = || vec![vm("a", &[("root", &copy)])];
    let error = place.replicate(disk()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "another site owns it: {error}");
    let taken = place.replicate_with(disk(), |r| r.take_ownership = true).await.unwrap();
    let error = first.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Fenced, "{error}");
    let (domain, _) = replica::open(&place.site, "dom/ain ☃").await;
    let points = domain.points().await.unwrap();
    assert_eq!(points.all().iter().map(|p| p.at).collect::<Vec<_>>(), [taken.point]);
    place.assert_equal(&[("a/root", &copy)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_is_gone_on_with() {
    let place = Place::new().await;
    let path = place.image("disk", 160 * MIB, &[(0, 160 * MIB)]);
    let segments = place.dir.path().join("site/dom%2Fain%20%E2%98%83/segments/000000000001");
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_freshet"))
        .args(["replicate", "--site", "here", "--domain", "dom/ain ☃", "--vm", "a", "--disk"])
        .arg(format!("root={}", path.display()))
        .args(["--store", place.site.url()])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let stored = || (1..=2).all(|n| segments.join(format!("{n:012}")).exists());
    while !stored() && run.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    let rest = place.replicate(vec![vm("a", &[("root", &path)])]).await.unwrap();
    assert!(rest.shipped < 150 * MIB && !rest.disks[0].joined, "{rest:?}");
    place.assert_equal(&[("a/root", &path)]).await;
}
