//! Two sites and a storage site in one temporary directory: images at one end, recovered disks at the other.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use freshet::cancel::Cancel;
use freshet::capture::{DiskSource, ReplicateReport, ReplicateRequest, VmSource, replicate};
use freshet::error::Result;
use freshet::ids::{Name, SegmentNo};
use freshet::progress::Progress;
use freshet::rehydrate::{RehydrateReport, RehydrateRequest, Target, rehydrate};
use freshet::store::{StorageSite, StoreOptions};

/// Log size of tests: holds the largest segment.
pub(crate) const LOG: u64 = 160 << 20;

/// See the module.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) site: StorageSite,
    pub(crate) domain: Name,
    pub(crate) disks: Vec<(&'static str, &'static str)>,
}

impl World {
    /// A file:// site, and disks given as (vm, disk).
    pub(crate) async fn new(disks: &[(&'static str, &'static str)]) -> World {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/site", dir.path().display());
        std::fs::create_dir(dir.path().join("site")).unwrap();
        World::at(dir, &url, &StoreOptions::default(), disks).await
    }

    /// As `new`, at another storage site.
    pub(crate) async fn at(
        dir: tempfile::TempDir,
        url: &str,
        options: &StoreOptions,
        disks: &[(&'static str, &'static str)],
    ) -> World {
        let site = StorageSite::open(url, options).await.unwrap();
        for sub in ["images", "datastore", "log"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        World { dir, site, domain: Name::new("shop ☃").unwrap(), disks: disks.to_vec() }
    }

    pub(crate) fn image(&self, vm: &str, disk: &str) -> PathBuf {
        self.dir.path().join("images").join(format!("{vm}-{disk}").replace('/', "_"))
    }

    pub(crate) fn target(&self, vm: &str, disk: &str) -> PathBuf {
        let key = |n: &str| Name::new(n).unwrap().key();
        let dir = self.dir.path().join("datastore").join(self.domain.key());
        dir.join(key(vm)).join(format!("{}.raw", key(disk)))
    }

    /// Makes a sparse image of `len` bytes with data at the given ranges.
    pub(crate) fn make(&self, vm: &str, disk: &str, len: u64, data: &[(u64, u64)]) {
        let path = self.image(vm, disk);
        File::create(&path).unwrap().set_len(len).unwrap();
        data.iter().for_each(|(at, n)| self.change(vm, disk, *at, *n, at + 1));
    }

    /// Writes half-compressible bytes that depend on `seed`.
    pub(crate) fn change(&self, vm: &str, disk: &str, at: u64, len: u64, seed: u64) {
        let file = File::options().write(true).open(self.image(vm, disk)).unwrap();
        file.write_all_at(&noise(seed, len), at).unwrap();
    }

    pub(crate) fn replicate_request(&self) -> ReplicateRequest {
        let mut vms: Vec<VmSource> = Vec::new();
        for (vm, disk) in &self.disks {
            let source = DiskSource { name: Name::new(disk).unwrap(), path: self.image(vm, disk), size: None };
            match vms.iter_mut().find(|v| v.name.as_str() == *vm) {
                Some(v) => v.disks.push(source),
                None => vms.push(VmSource { name: Name::new(vm).unwrap(), disks: vec![source], definition: None }),
            }
        }
        ReplicateRequest::new(self.domain.clone(), Name::new("first site").unwrap(), vms)
    }

    /// Replicates all disks as one point; `manifest_every` as in the request.
    pub(crate) async fn replicate(&self, manifest_every: u64) -> ReplicateReport {
        let request = ReplicateRequest { manifest_every, ..self.replicate_request() };
        replicate(&self.site, request, Arc::new(Progress::new()), Cancel::new()).await.unwrap()
    }

    pub(crate) fn request(&self) -> RehydrateRequest {
        let path = |sub: &str| self.dir.path().join(sub);
        let request = RehydrateRequest::new(self.domain.clone(), path("datastore"), path("log"));
        RehydrateRequest { log_size: LOG, ..request }
    }

    pub(crate) async fn run(&self, request: RehydrateRequest) -> Result<RehydrateReport> {
        rehydrate(&self.site, request, Arc::new(Progress::new()), Cancel::new()).await
    }

    /// Rehydrates to the newest point.
    pub(crate) async fn rehydrate(&self) -> RehydrateReport {
        self.run(self.request()).await.unwrap()
    }

    /// Rehydrates to a point.
    pub(crate) async fn rehydrate_to(&self, point: SegmentNo) -> RehydrateReport {
        self.run(RehydrateRequest { target: Target::Point(point), ..self.request() }).await.unwrap()
    }

    /// Copies of the images as they are now.
    pub(crate) fn images(&self) -> Vec<PathBuf> {
        let keep = self.dir.path().join("images").join(format!("kept-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&keep).unwrap();
        let copy = |(vm, disk): &(&str, &str)| {
            let (from, to) = (self.image(vm, disk), keep.join(self.image(vm, disk).file_name().unwrap()));
            let status = std::process::Command::new("cp").arg("--sparse=always").arg(from).arg(&to).status();
            assert!(status.unwrap().success());
            to
        };
        self.disks.iter().map(copy).collect()
    }

    /// The recovered disks hold exactly what the copies hold.
    pub(crate) fn assert_disks(&self, images: &[PathBuf]) {
        for ((vm, disk), image) in self.disks.iter().zip(images) {
            assert_same_files(&self.target(vm, disk), image);
        }
    }

    /// Paths of the segment objects, ascending. Only of a file:// site.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.dir.path().join("site").join(self.domain.key()).join("segments"), &mut found);
        found.sort();
        found
    }
}

/// Fails at the first byte that differs.
pub(crate) fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let first = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(first, None, "{what}: first byte that differs");
}

/// Fails at the first byte that differs. Holes of both files are not read.
pub(crate) fn assert_same_files(found: &Path, expected: &Path) {
    let open = |path: &Path| File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (a, b) = (open(found), open(expected));
    let len = b.metadata().unwrap().len();
    assert_eq!(a.metadata().unwrap().len(), len, "{}: length", found.display());
    let mut at = 0;
    while let Some(start) = [next_data(&a, at), next_data(&b, at)].into_iter().flatten().min() {
        let n = usize::try_from((len - start).min(1 << 20)).unwrap();
        let (mut left, mut right) = (vec![0; n], vec![0; n]);
        a.read_exact_at(&mut left, start).unwrap();
        b.read_exact_at(&mut right, start).unwrap();
        assert_same(&left, &right, &format!("{} from byte {start}", found.display()));
        at = start + n as u64;
    }
}

fn next_data(file: &File, at: u64) -> Option<u64> {
    rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)).ok()
}

/// Bytes of disk that a file takes.
pub(crate) fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// Bytes that compress by about half and never repeat; none of their 4 KiB blocks is zero.
pub(crate) fn noise(seed: u64, len: u64) -> Vec<u8> {
    let words = (0..len.div_ceil(16)).flat_map(|i| {
        let mut x = (seed << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        x ^= x >> 29;
        [x.wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes(), *b"freshet "]
    });
    words.flatten().take(usize::try_from(len).unwrap()).collect()
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => walk(&path, found),
            false => found.push(path),
        }
    }
}
