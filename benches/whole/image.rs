//! The disks: a real ext4 file system filled with this machine's own files, and sparse disks of generated data.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::{SeekFrom, seek};
use xxhash_rust::xxh3::Xxh3;

use crate::Outcome;
use crate::process::run;

/// Where the files come from, as far as they go.
const TREES: [&str; 3] = ["/usr/lib", "/usr/bin", "/usr/share"];
/// Part of the image that is filled, in percent, about as in the pipeline of which the first figures are.
const LIVE_PERCENT: u64 = 35;

/// Builds an ext4 image of `gib` GiB; answers with the bytes that are allocated in it.
pub(crate) fn ext4(path: &Path, scratch: &Path, gib: u64) -> Outcome<u64> {
    let tree = scratch.join("tree");
    let mut left = (gib << 30) * LIVE_PERCENT / 100;
    // Each tree has its share, so that the mix is the same whatever the machine has in the first.
    for (i, root) in TREES.iter().enumerate() {
        let mut share = left / (TREES.len() - i) as u64;
        left -= share;
        gather(Path::new(root), &tree.join(root.trim_start_matches('/')), &mut share)?;
        left += share;
    }
    File::create(path)?.set_len(gib << 30)?;
    let sbin = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    run(Command::new("mke2fs").env("PATH", sbin).args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(path))?;
    fs::remove_dir_all(&tree)?;
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(file.metadata()?.blocks() * 512)
}

/// Copies regular files below `from` as long as they fit into what is `left`.
fn gather(from: &Path, to: &Path, left: &mut u64) -> Outcome<()> {
    fs::create_dir_all(to)?;
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Ok(meta) = entry.metadata() else { continue };
        let target = to.join(entry.file_name());
        if meta.is_dir() && *left > 1 << 20 {
            gather(&entry.path(), &target, left)?;
        } else if meta.is_file() && meta.len() <= *left {
            // A file that may not be read is left out.
            *left -= fs::copy(entry.path(), &target).unwrap_or(0);
        }
    }
    Ok(())
}

/// A sparse disk of `size` bytes with `data` bytes of half-compressible data, in runs of 4 MiB spread evenly.
pub(crate) fn sparse(path: &Path, size: u64, data: u64) -> Outcome<()> {
    const RUN: u64 = 4 << 20;
    let file = File::create(path)?;
    file.set_len(size)?;
    let runs = data / RUN;
    for n in 0..runs {
        // On a multiple of a page, so that the runs do not all stand alike in their map pages.
        let at = ((size / runs) * n) & !4095;
        file.write_all_at(&noise(n, RUN as usize), at)?;
    }
    Ok(file.sync_all()?)
}

/// Bytes of which about half are random, in stretches of 16.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0x20; len];
    bytes.chunks_mut(32).for_each(|chunk| {
        let half = chunk.len() / 2;
        random.fill(&mut chunk[..half]);
    });
    bytes
}

/// Size of the blocks of [`blocks`]: the raw bytes of the frames that `replicate` makes.
pub(crate) const BLOCK: usize = 256 << 10;

/// The blocks of a file that are not zero, with their offsets; holes are not read.
pub(crate) fn blocks(path: &Path, mut each: impl FnMut(u64, &[u8])) -> Outcome<()> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let (mut block, mut at) = (vec![0; BLOCK], 0);
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        let end = seek(&file, SeekFrom::Hole(start))?.next_multiple_of(BLOCK as u64).min(size);
        for from in (start - start % BLOCK as u64..end).step_by(BLOCK) {
            let len = usize::try_from((size - from).min(BLOCK as u64))?;
            file.read_exact_at(&mut block[..len], from)?;
            if block[..len].iter().any(|byte| *byte != 0) {
                each(from, &block[..len]);
            }
        }
        at = end;
    }
    Ok(())
}

/// A digest of a file's size and of the blocks that are not zero.
pub(crate) fn fingerprint(path: &Path) -> Outcome<u128> {
    let mut digest = Xxh3::new();
    blocks(path, |at, block| {
        digest.update(&at.to_le_bytes());
        digest.update(block);
    })?;
    digest.update(&fs::metadata(path)?.len().to_le_bytes());
    Ok(digest.digest128())
}
