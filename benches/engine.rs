//! Direct sequential writes of both disk engines beside fio's, on the same preallocated file, in the same run.
//!
//! `cargo bench --bench engine [-- DIR [GIB [ROUNDS]]]` (default: the target directory, 1 GiB, 5 rounds). All take
//! turns within a round, so that a busy machine slows all of them; the table shows medians with the slowest and the
//! fastest pass, and CPU seconds per GiB. Without fio in the PATH there is no ratio. It measures and asserts nothing.
//!
//! fio (io_uring, direct, registered buffers, same block size and depth) runs twice: as it comes, and with its
//! buffers in huge pages like our slab. The ratio is to the faster of the two. Against fio as it comes it would say
//! little about the engine: where a disk takes few segments in a request, scattered 4 KiB pages are what limits it.
#![allow(clippy::print_stdout, reason = "the table is what it is for")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use freshet::datastore::{Access, DiskEngine, EngineKind, EngineOptions, Op, Request, Slab, Slot, start};

/// Requests in flight.
const DEPTH: usize = 32;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// One measured pass over the file.
#[derive(Clone, Copy)]
struct Pass {
    bytes_per_second: f64,
    cpu_seconds: f64,
}

fn main() -> Outcome<()> {
    // Cargo adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let dir = args.first().map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let gib: u64 = args.get(1).map_or(Ok(1), |text| text.parse())?;
    let rounds: usize = args.get(2).map_or(Ok(5), |text| text.parse())?;
    let path = dir.join("engine-bench.disk");
    let bytes = gib << 30;
    let outcome = prepare(&path, bytes).and_then(|()| compare(&path, bytes, rounds));
    fs::remove_file(&path)?;
    outcome
}

/// Writes the whole file once, so that no pass allocates space or converts what is unwritten.
fn prepare(path: &Path, bytes: u64) -> Outcome<()> {
    fs::File::create(path)?.set_len(bytes)?;
    engine_pass(EngineKind::Threads, path, bytes, 1 << 20)?;
    Ok(())
}

fn compare(path: &Path, bytes: u64, rounds: usize) -> Outcome<()> {
    println!("sequential direct writes, depth {DEPTH}, {} GiB, median of {rounds} rounds in turns", bytes >> 30);
    println!("{:>9}  {:<10} {:>8} {:>11} {:>9}  {:>12}", "block", "engine", "MB/s", "spread", "of fio", "CPU s / GiB");
    for block in [1usize << 20, 256 << 10] {
        let mut passes: [Vec<Pass>; 4] = Default::default();
        for _ in 0..rounds {
            passes[0].extend(fio_pass(path, bytes, block, false)?);
            passes[1].extend(fio_pass(path, bytes, block, true)?);
            passes[2].push(engine_pass(EngineKind::IoUring, path, bytes, block)?);
            passes[3].push(engine_pass(EngineKind::Threads, path, bytes, block)?);
        }
        let speeds = passes[..2].iter().filter_map(|passes| median(passes, |pass| pass.bytes_per_second));
        let fio = speeds.reduce(f64::max);
        for (name, passes) in ["fio", "fio, huge", "io_uring", "threads"].iter().zip(&passes) {
            let Some(speed) = median(passes, |pass| pass.bytes_per_second) else { continue };
            let ratio = fio.map_or("-".to_owned(), |fio| format!("{:.2}", speed / fio));
            let cpu = median(passes, |pass| pass.cpu_seconds).unwrap_or_default() / (bytes >> 30) as f64;
            let all = || passes.iter().map(|pass| pass.bytes_per_second / 1e6);
            let (least, most) = (all().fold(f64::MAX, f64::min), all().fold(0.0, f64::max));
            let spread = format!("{least:.0}-{most:.0}");
            println!("{:>5} KiB  {name:<10} {:>8.0} {spread:>11} {ratio:>9}  {cpu:>12.2}", block >> 10, speed / 1e6);
        }
    }
    Ok(())
}

fn median(passes: &[Pass], of: impl Fn(&Pass) -> f64) -> Option<f64> {
    let mut values: Vec<f64> = passes.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// fio over the same file, with its buffers in huge pages or as it comes; none where it is not installed.
fn fio_pass(path: &Path, bytes: u64, block: usize, huge: bool) -> Outcome<Option<Pass>> {
    let run = Command::new("fio")
        // glibc then asks for huge pages for what fio allocates.
        .env("GLIBC_TUNABLES", if huge { "glibc.malloc.hugetlb=1" } else { "" })
        .args(["--name=w", "--ioengine=io_uring", "--fixedbufs=1", "--direct=1", "--rw=write", "--thread=1"])
        .args(["--output-format=json", "--fallocate=none", "--overwrite=1"])
        .arg(format!("--bs={block}"))
        .arg(format!("--iodepth={DEPTH}"))
        .arg(format!("--size={bytes}"))
        .arg(format!("--filename={}", path.display()))
        .output();
    let Ok(run) = run else { return Ok(None) };
    let text = String::from_utf8(run.stdout)?;
    // It prints a line before its JSON.
    let report: serde_json::Value = serde_json::from_str(&text[text.find('{').ok_or("no report from fio")?..])?;
    let job = &report["jobs"][0];
    let number = |value: &serde_json::Value| value.as_f64().ok_or("a number is missing in fio's report");
    let seconds = number(&job["write"]["runtime"])? / 1e3;
    let busy = (number(&job["usr_cpu"])? + number(&job["sys_cpu"])?) / 100.0;
    Ok(Some(Pass { bytes_per_second: number(&job["write"]["bw_bytes"])?, cpu_seconds: busy * seconds }))
}

/// One of ours over the same file. Slots are filled once, as fio's buffers are.
fn engine_pass(kind: EngineKind, path: &Path, bytes: u64, block: usize) -> Outcome<Pass> {
    let slab = Slab::new(DEPTH, block)?;
    let options = EngineOptions { queue_depth: DEPTH, worker_threads: DEPTH, ..EngineOptions::default() };
    let engine: Arc<dyn DiskEngine> = start(kind, Arc::clone(&slab), options)?;
    for why in engine.info().fallbacks {
        println!("note: {why}");
    }
    let file = engine.open(path, Access::Write)?;
    let (sender, free) = crossbeam::channel::bounded::<Slot>(DEPTH);
    while let Some(mut slot) = slab.try_take() {
        slot.fill(0x5a);
        sender.send(slot)?;
    }
    let failed = Arc::new(AtomicBool::new(false));
    let (cpu, begun) = (cpu_seconds(), Instant::now());
    for n in 0..bytes / block as u64 {
        let slot = free.recv()?;
        let sender = sender.clone();
        let failed = Arc::clone(&failed);
        let done = Box::new(move |completion: freshet::datastore::Completion| {
            if completion.result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            // There is room for every slot; without its receiver the pass has ended with an error.
            let _ = completion.slot.map(|slot| sender.send(slot));
        });
        engine.submit(Request { file, op: Op::Write { offset: n * block as u64, slot, range: 0..block }, done });
    }
    engine.close(file)?;
    let seconds = begun.elapsed().as_secs_f64();
    if failed.load(Ordering::Relaxed) {
        return Err("a write failed".into());
    }
    Ok(Pass { bytes_per_second: bytes as f64 / seconds, cpu_seconds: cpu_seconds() - cpu })
}

/// User and system time of this process in seconds.
fn cpu_seconds() -> f64 {
    // SAFETY: getrusage fills the structure that it is given, for which all zeros are valid.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    [usage.ru_utime, usage.ru_stime].iter().map(|time| time.tv_sec as f64 + time.tv_usec as f64 / 1e6).sum()
}
