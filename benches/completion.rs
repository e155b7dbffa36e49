//! Completing a continuous failover: from the command to disks that are ready, with 256 MiB landed and not applied.
//!
//! `cargo bench --bench completion [-- --rounds 10 --mib 256]`, for a disk of 1 GiB and for a sparse one of 1 TiB. Each
//! round ships that many stored bytes (twice as many of the disk) while the disks are held, waits until all have landed, and
//! then measures `complete_at`: landing stopped, all of it applied and synced, watermark durable, everything closed. The
//! last round's disk is compared with the image. Images, storage site, log and disks share one disk.

#![allow(clippy::print_stdout, reason = "the table is what it is for")]

mod support;

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use freshet::capture::{DiskSource, ReplicateRequest, VmSource, replicate};
use freshet::ids::{Name, SegmentNo};
use freshet::rehydrate::{Completion, FollowState, Following, RehydrateRequest};
use freshet::store::{StorageSite, StoreOptions};

const MIB: u64 = 1 << 20;
/// Where a disk of 1 TiB has its bytes: spread over it.
const STEP: u64 = 7;

/// One domain of one disk, and where it is recovered.
struct Site {
    dir: tempfile::TempDir,
    store: StorageSite,
    image: PathBuf,
    size: u64,
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

impl Site {
    async fn new(size: u64) -> Site {
        let dir = support::disk_dir();
        for sub in ["site", "datastore"] {
            std::fs::create_dir(dir.path().join(sub)).expect("a directory");
        }
        let url = format!("file://{}/site", dir.path().display());
        let store = StorageSite::open(&url, &StoreOptions::default()).await.expect("a storage site");
        let image = dir.path().join("image");
        File::create(&image).and_then(|file| file.set_len(size)).expect("an image");
        Site { dir, store, image, size }
    }

    /// Writes `mib` MiB of bytes that compress by half, other ones in each round, and ships them; the point.
    async fn ship(&self, mib: u64, round: u64) -> SegmentNo {
        let file = File::options().write(true).open(&self.image).expect("the image");
        let places = self.size / MIB;
        for i in 0..mib {
            let at = i * STEP * (places / (mib * STEP)).max(1) % places;
            file.write_all_at(&support::half(round << 32 | i), at * MIB).expect("a write to the image");
        }
        // An image that is written meanwhile is refused.
        drop(file);
        let disk = DiskSource { name: name("root"), path: self.image.clone(), size: None };
        let vms = vec![VmSource { name: name("vm"), disks: vec![disk], definition: None }];
        let request =
            ReplicateRequest { manifest_every: 1 << 40, ..ReplicateRequest::new(name("bench"), name("here"), vms) };
        let done = replicate(&self.store, request, Default::default(), Default::default()).await.expect("replicated");
        done.point.segment
    }

    async fn follow(&self) -> Following {
        let datastore = self.dir.path().join("datastore");
        let request = RehydrateRequest::new(name("bench"), datastore.clone(), datastore);
        Following::start(&self.store, request).await.expect("followed")
    }

    fn compare(&self) {
        let recovered = self.dir.path().join("datastore/bench/vm/root.raw");
        let (a, b) = (File::open(&self.image).expect("the image"), File::open(recovered).expect("the disk"));
        let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut at = 0;
        while let Ok(data) = rustix::fs::seek(&a, rustix::fs::SeekFrom::Data(at)) {
            at = data / MIB * MIB;
            a.read_exact_at(&mut left, at).expect("the image");
            b.read_exact_at(&mut right, at).expect("the disk");
            assert!(left == right, "the disk differs within the MiB at {at}");
            at += MIB;
            if at >= self.size {
                break;
            }
        }
    }
}

async fn until(following: &Following, is: impl Fn(&FollowState) -> bool) -> FollowState {
    let mut state = following.watch();
    let reached = state.wait_for(|s| is(s)).await.map(|s| s.clone());
    reached.unwrap_or_else(|_| panic!("following ended: {:?}", following.state()))
}

/// Seconds that `mib` MiB take to be written directly, one after the other, over a file that has its space, and synced.
fn bare_writes(dir: &std::path::Path, mib: u64) -> f64 {
    let direct = rustix::fs::OFlags::DIRECT.bits();
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(direct.cast_signed())
        .open(dir.join("bare"));
    let file = file.expect("a file for direct writes");
    let buffer = vec![7_u8; 2 * MIB as usize];
    let aligned = buffer.as_ptr().align_offset(4096);
    let begun = Instant::now();
    for i in 0..mib {
        file.write_all_at(&buffer[aligned..aligned + MIB as usize], i * MIB).expect("a direct write");
    }
    file.sync_data().expect("a sync");
    begun.elapsed().as_secs_f64()
}

/// What the rounds came to.
struct Measured {
    /// Seconds of each completion.
    seconds: Vec<f64>,
    /// Seconds of as many bare writes, beside each.
    limits: Vec<f64>,
    /// Bytes that stood in the log at least.
    landed: u64,
}

async fn measure(size: u64, rounds: u64, mib: u64) -> Measured {
    let site = Site::new(size).await;
    let mut at = site.ship(mib.min(16), 1 << 20).await;
    let mut measured = Measured { seconds: Vec::new(), limits: Vec::new(), landed: u64::MAX };
    for round in 0..=rounds {
        let following = site.follow().await;
        until(&following, |s| s.applied.is_some_and(|a| a.point == at) && s.stage == "following").await;
        following.hold(true);
        at = site.ship(2 * mib, round).await;
        let state = until(&following, |s| s.landed.is_some_and(|l| l.point == at)).await;
        // What the writes before it left to be written back is not what is measured.
        rustix::fs::sync();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let begun = Instant::now();
        let report = following.complete_at(Completion::Landed).await.expect("completed");
        let took = begun.elapsed().as_secs_f64();
        assert_eq!((report.point.segment, report.between_points), (at, false));
        // The first one warms up.
        let bare = bare_writes(site.dir.path(), 2 * mib);
        if round > 0 {
            measured.seconds.push(took);
            measured.limits.push(bare);
            measured.landed = measured.landed.min(state.unapplied);
        }
    }
    site.compare();
    measured
}

fn number(args: &[String], flag: &str, default: u64) -> u64 {
    let value = args.iter().position(|arg| arg == flag).and_then(|at| args.get(at + 1));
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{flag} {value}: not a number")))
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.iter().any(|arg| arg == "--list") {
        return;
    }
    let is_test = args.iter().any(|arg| arg == "--test");
    let (rounds, mib) = match is_test {
        true => (1, 4),
        false => (number(&args, "--rounds", 10), number(&args, "--mib", 256)),
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for (what, size) in [("1 GiB", 1 << 30), ("1 TiB sparse", 1_u64 << 40)] {
        let Measured { mut seconds, mut limits, landed } = runtime.block_on(measure(size, rounds, mib));
        seconds.sort_by(f64::total_cmp);
        limits.sort_by(f64::total_cmp);
        let (least, median, most) = (seconds[0], seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
        let limit = limits[limits.len() / 2];
        println!(
            "{what}: {median:.2} s ({least:.2} to {most:.2}, {} rounds), {} MiB landed and not applied; bare writes of {} MiB: \
             {limit:.2} s, which is {:.2} of it",
            seconds.len(),
            landed / MIB,
            2 * mib,
            limit / median
        );
    }
}
