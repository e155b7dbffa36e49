//! What the criterion benches share: data like that of real files, and two sides measured by turns.
//!
//! Criterion measures one side after the other, and on a busy machine the two then see different machines. [`by_turns`]
//! therefore prints a ratio of its own, of passes that alternate. It measures and asserts nothing.
#![allow(clippy::print_stdout, reason = "the ratio is what it is for")]
#![allow(dead_code, reason = "each bench uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::Criterion;

/// Passes of each side, beside the first one, which only warms up.
const ROUNDS: usize = 9;
/// Where files are taken from, each as far as a third of what is wanted.
const TREES: [&str; 3] = ["/usr/bin", "/usr/lib", "/usr/share"];
/// Longest file that is taken: no single one should make the result.
const LARGEST_FILE: u64 = 4 << 20;
/// Files begin at multiples of this, as they do on a disk.
const BLOCK: usize = 4096;

/// `len` bytes of this machine's own files one behind the other, filled up with words where it has not enough.
pub(crate) fn file_data(len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len);
    for (n, root) in TREES.iter().enumerate() {
        gather(Path::new(root), len / TREES.len() * (n + 1), &mut out);
    }
    let mut n = 0_u32;
    while out.len() < len {
        n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        out.extend_from_slice(format!("word{} ", n >> 20).as_bytes());
    }
    out.truncate(len);
    out
}

/// One MiB that compresses by half and is like no other.
pub(crate) fn half(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let words = (0..(1 << 20) / 16).flat_map(|_| [random.u64(..).to_le_bytes(), *b"freshet "]);
    words.flatten().collect()
}

fn gather(dir: &Path, until: usize, out: &mut Vec<u8>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if out.len() >= until {
            return;
        }
        let (Ok(kind), Ok(meta)) = (entry.file_type(), entry.metadata()) else { continue };
        if kind.is_dir() {
            gather(&entry.path(), until, out);
        } else if kind.is_file() && meta.len() <= LARGEST_FILE {
            out.extend_from_slice(&fs::read(entry.path()).unwrap_or_default());
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
    }
}

/// Few samples and short ones: each is a pass over many megabytes, and `cargo bench` has many benches.
pub(crate) fn criterion() -> Criterion {
    Criterion::default().sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3))
}

/// A directory on a disk: below `FRESHET_BENCH_DIR`, or else below the target directory.
pub(crate) fn disk_dir() -> tempfile::TempDir {
    let parent =
        std::env::var_os("FRESHET_BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    tempfile::tempdir_in(parent).expect("a directory for the bench")
}

/// Runs `ours` and `peer`, which do the same work and tell how long it took, by turns, and prints how fast ours is in
/// parts of the peer's speed: the median of the rounds, with the least and the most.
pub(crate) fn by_turns(what: &str, mut ours: impl FnMut() -> Duration, mut peer: impl FnMut() -> Duration) {
    // `cargo test --benches` only wants to know that it runs.
    if std::env::args().any(|arg| arg == "--test" || arg == "--list") {
        return;
    }
    let mut ratio = || peer().as_secs_f64() / ours().as_secs_f64();
    ratio();
    let mut ratios: Vec<f64> = (0..ROUNDS).map(|_| ratio()).collect();
    ratios.sort_by(f64::total_cmp);
    println!("{what}: {:.2} of the peer's speed ({:.2} to {:.2})", ratios[ROUNDS / 2], ratios[0], ratios[ROUNDS - 1]);
}

/// How long `work` takes.
pub(crate) fn time(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}
