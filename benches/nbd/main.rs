//! The NBD server with capture off beside other people's, over the same image with the same client, in one run.
//!
//! `cargo bench --bench nbd [-- --dir DIR --mib 2048 --rounds 3 --seconds 5 --cache direct,write-back --case randread,...]`
//!
//! The client is fio with its nbd engine over a Unix socket. Each round runs every server once in each case, in turn,
//! on an image full of random bytes; tables show medians over the rounds, and the median of the ratios within a round
//! to the better of the peers. It measures and asserts nothing; figures are in `docs/nbd.md`.
#![allow(clippy::print_stdout, reason = "the tables are what it is for")]

mod servers;

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Parser, ValueEnum};
use servers::{Kind, Running};

/// Seconds of a run before it counts.
const RAMP: u64 = 1;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Whether the page cache is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cache {
    Direct,
    WriteBack,
}

/// What the client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    Randread,
    Randwrite,
    Read,
    Write,
}

impl Case {
    fn name(self) -> &'static str {
        match self {
            Case::Randread => "4 KiB random read, 16 in flight",
            Case::Randwrite => "4 KiB random write, 16 in flight",
            Case::Read => "1 MiB sequential read, 8 in flight",
            Case::Write => "1 MiB sequential write, 8 in flight",
        }
    }

    fn fio(self) -> [&'static str; 3] {
        match self {
            Case::Randread => ["--rw=randread", "--bs=4k", "--iodepth=16"],
            Case::Randwrite => ["--rw=randwrite", "--bs=4k", "--iodepth=16"],
            Case::Read => ["--rw=read", "--bs=1m", "--iodepth=8"],
            Case::Write => ["--rw=write", "--bs=1m", "--iodepth=8"],
        }
    }

    fn reads(self) -> bool {
        matches!(self, Case::Randread | Case::Read)
    }

    fn is_small(self) -> bool {
        matches!(self, Case::Randread | Case::Randwrite)
    }
}

/// The NBD server beside other people's.
#[derive(Debug, Parser)]
struct Arguments {
    /// Directory for the image and the sockets.
    #[arg(long, default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/nbd"))]
    dir: PathBuf,
    /// Size of the image.
    #[arg(long, default_value_t = 2048)]
    mib: u64,
    /// Runs of each; medians are shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of one run.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Cache modes; both unless given.
    #[arg(long, value_delimiter = ',')]
    cache: Vec<Cache>,
    /// Cases; all unless given.
    #[arg(long, value_delimiter = ',')]
    case: Vec<Case>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one run gave.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    iops: f64,
    bytes_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// CPU seconds of the server for a second of the run.
    cpu: f64,
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    if Command::new("fio").arg("--version").output().is_err() {
        println!("fio is not installed: nothing was measured");
        return Ok(());
    }
    std::fs::create_dir_all(&arguments.dir)?;
    let image = arguments.dir.join("image");
    fill(&image, arguments.mib)?;
    let kinds: Vec<Kind> = [Kind::Freshet, Kind::QemuNbd, Kind::Nbdkit].into_iter().filter(|k| k.is_here()).collect();
    for kind in [Kind::QemuNbd, Kind::Nbdkit].iter().filter(|k| !kinds.contains(k)) {
        println!("{} is not installed: left out", kind.name());
    }
    let caches = if arguments.cache.is_empty() { Cache::value_variants() } else { &arguments.cache };
    let cases = if arguments.case.is_empty() { Case::value_variants() } else { &arguments.case };
    for &cache in caches {
        for &case in cases {
            measure(&arguments, &image, &kinds, cache, case)?;
        }
    }
    std::fs::remove_dir_all(&arguments.dir)?;
    Ok(())
}

/// All rounds of one case, and its table.
fn measure(arguments: &Arguments, image: &Path, kinds: &[Kind], cache: Cache, case: Case) -> Outcome<()> {
    let mut figures: Vec<Vec<Figures>> = vec![Vec::new(); kinds.len()];
    for round in 0..arguments.rounds {
        for turn in 0..kinds.len() {
            // Another one begins each round.
            let which = (round + turn) % kinds.len();
            settle(image, cache, case)?;
            let server = Running::start(kinds[which], image, &arguments.dir, cache == Cache::Direct)?;
            let mut run = fio(arguments, case, &server)?;
            run.cpu = server.stop()? / (arguments.seconds + RAMP) as f64;
            figures[which].push(run);
        }
    }
    println!("\n{} ({cache:?}), medians of {} rounds", case.name(), arguments.rounds);
    println!("{:<10} {:>10} {:>10} {:>10} {:>10} {:>8}", "server", "IOPS", "MB/s", "p50 us", "p99 us", "CPU");
    for (kind, runs) in kinds.iter().zip(&figures) {
        let of = |figure: fn(&Figures) -> f64| median(runs.iter().map(figure).collect());
        println!(
            "{:<10} {:>10.0} {:>10.1} {:>10.0} {:>10.0} {:>8.2}",
            kind.name(),
            of(|f| f.iops),
            of(|f| f.bytes_per_second / 1e6),
            of(|f| f.p50_us),
            of(|f| f.p99_us),
            of(|f| f.cpu),
        );
    }
    let rate = |f: &Figures| if case.is_small() { f.iops } else { f.bytes_per_second };
    let ratios: Vec<f64> = (0..arguments.rounds)
        .filter_map(|round| {
            let peers = figures.iter().skip(1).map(|runs| rate(&runs[round])).fold(0.0, f64::max);
            (peers > 0.0).then(|| rate(&figures[0][round]) / peers)
        })
        .collect();
    if !ratios.is_empty() {
        let shown: Vec<String> = ratios.iter().map(|r| format!("{r:.2}")).collect();
        println!("ratio to the better peer: {:.2} (rounds: {})", median(ratios), shown.join(", "));
    }
    Ok(())
}

/// Brings disk and page cache into the state that a run begins with.
fn settle(image: &Path, cache: Cache, case: Case) -> Outcome<()> {
    let file = File::open(image)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    if cache == Cache::WriteBack && case.reads() {
        std::io::copy(&mut &file, &mut std::io::sink())?;
    }
    Ok(())
}

fn fio(arguments: &Arguments, case: Case, server: &Running) -> Outcome<Figures> {
    let mut command = Command::new("fio");
    command.args(["--name=run", "--ioengine=nbd", "--time_based", "--output-format=json"]);
    command.arg(format!("--uri={}", server.uri())).args(case.fio());
    command
        .arg(format!("--ramp_time={RAMP}"))
        .arg(format!("--runtime={}", arguments.seconds))
        .arg(format!("--size={}m", arguments.mib));
    let out = command.arg(format!("--aux-path={}", arguments.dir.display())).output()?;
    if !out.status.success() {
        return Err(format!("fio: {}", String::from_utf8_lossy(&out.stderr)).into());
    }
    let text = String::from_utf8(out.stdout)?;
    // It prints a line before its JSON.
    let start = text.find('{').ok_or("no JSON from fio")?;
    let told: serde_json::Value = serde_json::from_str(&text[start..])?;
    let job = &told["jobs"][0][if case.reads() { "read" } else { "write" }];
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or_default();
    let percentile = |name: &str| number(&job["clat_ns"]["percentile"][name]) / 1000.0;
    Ok(Figures {
        iops: number(&job["iops"]),
        bytes_per_second: number(&job["bw_bytes"]),
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        cpu: 0.0,
    })
}

/// Random bytes, so that no server finds zeros to leave out.
fn fill(path: &Path, mib: u64) -> Outcome<()> {
    let mut file = File::create(path)?;
    let mut random = fastrand::Rng::with_seed(1);
    let mut block = vec![0; 1 << 20];
    for _ in 0..mib {
        random.fill(&mut block);
        file.write_all(&block)?;
    }
    Ok(file.sync_all()?)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
