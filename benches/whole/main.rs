//! The whole way, measured end to end: disks into a store and back, beside the machine's limit and beside what people
//! use today, all in one run.
//!
//! `cargo bench --bench whole [-- --dir DIR --gib 4 --rounds 5 --only rehydrate,replicate,...]`
//!
//! The disk is a real ext4 file system with this machine's own files. Every output is compared byte for byte with it,
//! ours and the peers'. Runs take turns within a round, so that a busy machine slows all of them; tables show medians.
//! It measures and asserts nothing but equality; the bars and the figures are in `docs/performance.md`. It needs fio,
//! and compares with those of restic, rclone, qemu-img and nbdcopy that are installed.
#![allow(clippy::print_stdout, reason = "the tables are what it is for")]

mod freshet;
mod image;
mod limit;
mod peers;
mod process;
mod sections;
mod server;
mod table;

use std::error::Error;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Bucket of every S3 server here.
const BUCKET: &str = "freshet";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// `replicate` against its limit, and once more over the unchanged disk.
    Replicate,
    /// `rehydrate` from a directory and from S3 against their limits, and beside the peers.
    Rehydrate,
    /// What 50 ms on every request cost.
    Latency,
    /// Segments into the replication log against its limit.
    Landing,
    /// Bytes fetched twice after a kill at half way.
    Kill,
    /// Peak memory for a small dense and a huge sparse disk.
    Memory,
}

/// Disks into a store and back, beside the machine's limit and other programs.
#[derive(Debug, Parser)]
struct Arguments {
    /// Directory for everything; a few times the image must fit.
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/whole"))]
    dir: PathBuf,
    /// Size of the image.
    #[arg(long, default_value_t = 4)]
    gib: u64,
    /// Runs of each; medians are shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// What to measure; all unless given.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Section>,
    /// Leave the peers out.
    #[arg(long)]
    no_peers: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [first, dir, faults @ ..] = words.as_slice()
        && first == server::SERVE
    {
        return server::serve(dir.as_ref(), faults);
    }
    let arguments = Arguments::parse();
    if !process::is_here("fio") {
        println!("fio is not installed: without it there is no limit to compare with, and nothing was measured");
        return Ok(());
    }
    process::fresh_dir(&arguments.dir)?;
    let outcome = sections::all(&arguments);
    std::fs::remove_dir_all(&arguments.dir)?;
    outcome
}
