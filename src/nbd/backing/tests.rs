//! The disk behind an export, in both cache modes, on real files and with failing ones.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::datastore::{Call, Faults, Verdict};
use crate::nbd::{ImageOptions, Share};

const MIB: u64 = 1 << 20;
const MODES: [CacheMode; 2] = [CacheMode::Direct, CacheMode::WriteBack];

struct Rig {
    _dir: tempfile::TempDir,
    path: PathBuf,
    share: Share,
    disk: Arc<BackingDisk>,
}

fn rig(cache: CacheMode, len: u64, faults: Option<Arc<dyn Faults>>) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    File::create(&path).unwrap().set_len(len).unwrap();
    let buffers = Buffers::new(16 << 20, 2).unwrap();
    let options = EngineOptions { direct: cache == CacheMode::Direct, faults, ..Default::default() };
    let engine = start(EngineKind::Threads, Arc::clone(buffers.slab()), options).unwrap();
    let image = Image::open(&path, ImageOptions::default()).unwrap();
    let disk = BackingDisk::open(engine, image, cache).unwrap();
    Rig { _dir: dir, path, share: buffers.share().unwrap(), disk }
}

impl Rig {
    async fn write(&self, offset: u64, bytes: &[u8]) -> Outcome<()> {
        let mut data = self.share.take(offset, bytes.len()).await.unwrap();
        data.copy_from_slice(bytes);
        let back = self.disk.write_from(offset, data).await?;
        assert!(*back == *bytes, "the data that comes back is what was written");
        Ok(())
    }

    async fn read(&self, offset: u64, len: usize) -> Outcome<Vec<u8>> {
        let mut into = self.share.take(offset, len).await.unwrap();
        into.fill(0xee);
        Ok(self.disk.read_into(offset, into).await?.to_vec())
    }
}

fn blocks(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap()) * 512
}

#[tokio::test]
async fn what_is_written_is_read_at_any_offset_and_lies_in_the_file() {
    for cache in MODES {
        let len = 4 * MIB + 777;
        let rig = rig(cache, len, None);
        let mut model = vec![0; len as usize];
        let ranges = [(0, 4096), (5, 1), (4095, 2), (8192, 65_536), (MIB - 3, 100_000), (len - 777, 777), (len - 1, 1)];
        for (n, (offset, size)) in ranges.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..size).map(|i| (i * 7 + n) as u8 | 1).collect();
            rig.write(offset, &bytes).await.unwrap();
            model[offset as usize..][..size].copy_from_slice(&bytes);
            assert!(rig.read(offset, size).await.unwrap() == bytes, "{cache:?} {size} at {offset}");
        }
        rig.disk.sync_data().await.unwrap();
        for at in (0..len).step_by(MIB as usize) {
            let size = (len - at).min(MIB) as usize;
            assert!(rig.read(at, size).await.unwrap() == model[at as usize..][..size], "{cache:?} at {at}");
        }
        assert!(std::fs::read(&rig.path).unwrap() == model);
    }
}

#[tokio::test]
async fn zeros_are_exact_and_keep_or_free_space_as_asked() {
    for cache in MODES {
        let rig = rig(cache, 8 * MIB, None);
        let data = vec![0xab; MIB as usize];
        for n in 0..8 {
            rig.write(n * MIB, &data).await.unwrap();
        }
        rig.disk.sync_data().await.unwrap();
        let full = blocks(&rig.path);
        let keep = ZeroMode { no_hole: true, fast: false };
        rig.disk.zero(100, 2 * MIB, keep).await.unwrap();
        assert_eq!(blocks(&rig.path), full, "{cache:?}: space was given away");
        rig.disk.punch(4 * MIB + 1, 2 * MIB).await.unwrap();
        assert!(blocks(&rig.path) < full, "{cache:?}: no space was freed");
        let now = std::fs::read(&rig.path).unwrap();
        for (at, byte) in now.iter().enumerate() {
            let zero = (100..100 + 2 * MIB as usize).contains(&at)
                || (4 * MIB as usize + 1..6 * MIB as usize + 1).contains(&at);
            assert_eq!(*byte == 0, zero, "{cache:?}: byte {at}");
        }
        let parts = rig.disk.allocation(0, 8 * MIB, false).unwrap();
        assert!(parts.iter().any(|part| part.hole) && parts.iter().any(|part| !part.hole));
        assert_eq!(parts.iter().map(|part| part.len).sum::<u64>(), 8 * MIB);
    }
}

/// Lets nothing but reads and writes through.
#[derive(Debug)]
struct NoHoles;

impl Faults for NoHoles {
    fn judge(&self, _: &Path, call: Call) -> Verdict {
        match call {
            Call::PunchHole { .. } | Call::ZeroRange { .. } => {
                Verdict::Fail(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
            }
            _ => Verdict::Pass,
        }
    }
}

#[tokio::test]
async fn zeros_are_written_where_there_are_no_holes_and_fast_ones_refused_unchanged() {
    for cache in MODES {
        let rig = rig(cache, 4 * MIB, Some(Arc::new(NoHoles)));
        for n in 0..4 {
            rig.write(n * MIB, &vec![9; MIB as usize]).await.unwrap();
        }
        for no_hole in [false, true] {
            let refused = rig.disk.zero(0, MIB, ZeroMode { no_hole, fast: true }).await.unwrap_err();
            assert_eq!(refused.errno, Errno::NotSup);
        }
        assert_eq!(rig.read(0, 1).await.unwrap(), [9]);
        // A trim is only a hint.
        Export::trim(Arc::clone(&rig.disk) as Arc<dyn Export>, 0, MIB, false).await.unwrap();
        let (from, len) = (12_345, 2 * MIB + 5);
        rig.disk.zero(from, len, ZeroMode::default()).await.unwrap();
        rig.disk.sync_data().await.unwrap();
        let now = std::fs::read(&rig.path).unwrap();
        let zeros = from as usize..(from + len) as usize;
        assert!(now[zeros.clone()].iter().all(|&b| b == 0));
        assert!(now[..zeros.start].iter().chain(&now[zeros.end..]).all(|&b| b == 9));
    }
}

#[tokio::test]
async fn a_cut_image_gives_errors_and_is_never_put_back_to_its_length() {
    for cache in MODES {
        let rig = rig(cache, 4 * MIB, None);
        rig.write(0, &vec![5; MIB as usize]).await.unwrap();
        let other = OpenOptions::new().write(true).open(&rig.path).unwrap();
        other.set_len(2 * MIB).unwrap();
        let read = rig.read(2 * MIB - 4096, 8192).await.unwrap_err();
        assert_eq!(read.errno, Errno::Io, "{cache:?}");
        assert!(read.text.contains("cut"), "{read}");
        // For good, also where the file still has its bytes, and when it is long again.
        other.set_len(4 * MIB).unwrap();
        for at in [0, 3 * MIB] {
            assert_eq!(rig.read(at, 4096).await.unwrap_err().errno, Errno::Io);
            assert_eq!(rig.write(at, &[1; 4096]).await.unwrap_err().errno, Errno::Io);
        }
        assert_eq!(rig.disk.sync_data().await.unwrap_err().errno, Errno::Io);
        assert!(rig.disk.failure().unwrap().contains("cut"));
    }
}

#[tokio::test]
async fn a_write_to_a_cut_image_does_not_extend_it() {
    for cache in MODES {
        let rig = rig(cache, 4 * MIB, None);
        OpenOptions::new().write(true).open(&rig.path).unwrap().set_len(MIB).unwrap();
        assert_eq!(rig.write(3 * MIB, &[1; 4096]).await.unwrap_err().errno, Errno::Io);
        assert_eq!(rig.path.metadata().unwrap().len(), MIB, "{cache:?}");
    }
}

/// Counts syncs and fails them when told to.
#[derive(Debug, Default)]
struct Syncs {
    count: AtomicUsize,
    fail: AtomicBool,
}

impl Faults for Syncs {
    fn judge(&self, _: &Path, call: Call) -> Verdict {
        if call == Call::Sync {
            self.count.fetch_add(1, Ordering::SeqCst);
            if self.fail.load(Ordering::SeqCst) {
                return Verdict::Fail(io::Error::from_raw_os_error(libc::EIO));
            }
        }
        Verdict::Pass
    }
}

#[tokio::test]
async fn fua_and_flush_sync_plain_writes_do_not_and_a_failed_sync_is_the_end() {
    for cache in MODES {
        let syncs = Arc::new(Syncs::default());
        let rig = rig(cache, MIB, Some(syncs.clone()));
        let disk = || Arc::clone(&rig.disk) as Arc<dyn Export>;
        let data = || rig.share.try_take(0, 4096).unwrap();
        disk().write(0, data(), false).await.unwrap();
        disk().write_zeroes(0, 4096, ZeroMode::default(), false).await.unwrap();
        disk().trim(0, 4096, false).await.unwrap();
        assert_eq!(syncs.count.load(Ordering::SeqCst), 0, "{cache:?}");
        disk().write(0, data(), true).await.unwrap();
        disk().write_zeroes(0, 4096, ZeroMode::default(), true).await.unwrap();
        disk().trim(0, 4096, true).await.unwrap();
        disk().flush().await.unwrap();
        assert_eq!(syncs.count.load(Ordering::SeqCst), 4, "{cache:?}");
        syncs.fail.store(true, Ordering::SeqCst);
        assert_eq!(disk().flush().await.unwrap_err().errno, Errno::Io);
        syncs.fail.store(false, Ordering::SeqCst);
        assert_eq!(disk().flush().await.unwrap_err().errno, Errno::Io, "a second sync proves nothing");
        assert_eq!(disk().write(0, data(), false).await.unwrap_err().errno, Errno::Io);
        assert_eq!(disk().read(0, data()).await.unwrap_err().errno, Errno::Io);
        assert_eq!(syncs.count.load(Ordering::SeqCst), 5);
    }
}

#[tokio::test]
async fn the_engine_must_fit_the_cache_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::write(&path, [0; 4096]).unwrap();
    let buffers = Buffers::new(16 << 20, 1).unwrap();
    let engine = start_engine(EngineKind::Threads, CacheMode::Direct, &buffers).unwrap();
    let image = Image::open(&path, ImageOptions::default()).unwrap();
    let error = BackingDisk::open(engine, image, CacheMode::WriteBack).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn buffers_are_whole_again_when_nobody_waits_for_the_answer() {
    let rig = rig(CacheMode::Direct, MIB, None);
    for n in 0..50 {
        let mut into = Box::pin(rig.disk.read_into(n * 4096, rig.share.take(n * 4096, 4096).await.unwrap()));
        let _ = into.as_mut().now_or_never();
    }
    rig.disk.sync_data().await.unwrap();
    let path = rig.path.clone();
    // Dropping the disk waits for what is in flight.
    drop(rig.disk);
    assert!(Image::open(&path, ImageOptions::default()).is_ok());
}
