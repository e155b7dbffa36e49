//! Live protection, measured beside servers that only serve: latency of guests' writes, age of what has landed at the
//! other site, what it costs, and what happens when guests write more than the storage site takes.
//!
//! `cargo bench --bench protect [-- --dir DIR --seconds 20 --rounds 3 --only latency,overload --cache direct]`
//!
//! fio's nbd engine is the guest. Servers take turns within a round; tables show medians, least and most. It asserts
//! nothing; bars and figures are in `docs/performance.md`. It needs fio; of the peers those that are installed.
#![allow(clippy::print_stdout, reason = "the tables are what it is for")]

mod guest;
mod landed;
#[allow(dead_code, reason = "shared with the other benches")]
#[path = "../whole/process.rs"]
mod process;
mod sections;
mod servers;

use std::error::Error;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Latency at a fixed rate beside the peers, age of the newest landed point, cost.
    Latency,
    /// More writes than the storage site takes.
    Overload,
}

/// Whether the page cache stands between guest and disk, in every server alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cache {
    Direct,
    WriteBack,
}

/// Live protection beside servers that only serve.
#[derive(Debug, Parser)]
struct Arguments {
    /// Directory for everything.
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/protect"))]
    dir: PathBuf,
    /// Directory of the storage site of the latencies: in memory, so that guests have the disk for themselves.
    #[arg(long, default_value = "/dev/shm")]
    store: PathBuf,
    /// Seconds of each run.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Runs of each.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// What to measure; all unless given.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Section>,
    /// Cache mode of the latencies.
    #[arg(long, value_enum, default_value = "direct")]
    cache: Cache,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    if !process::is_here("fio") {
        println!("fio is not installed: there is no guest, and nothing was measured");
        return Ok(());
    }
    process::fresh_dir(&arguments.dir)?;
    let wanted = |section| arguments.only.is_empty() || arguments.only.contains(&section);
    let outcome = (|| {
        if wanted(Section::Latency) {
            sections::latency(&arguments)?;
        }
        if wanted(Section::Overload) {
            sections::overload(&arguments)?;
        }
        Ok(())
    })();
    std::fs::remove_dir_all(&arguments.dir)?;
    outcome
}
