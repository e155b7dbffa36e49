//! Protecting a running guest, beside what people do today: `virsh blockcopy --pivot` of the same guest to `nbdkit file`.
//!
//! `cargo bench --bench live [-- --dir DIR --pairs 5]`
//!
//! A guest writes 4 KiB all the time, past its cache and durable, and tells the longest time between the ends of two
//! writes. In each run it is a new one on a new disk of 1 GiB, of which 256 MiB are data; the two ways take turns, through
//! one libvirt daemon and one `freshet serve`. It asserts nothing; bar and figures are in `docs/performance.md`. It needs
//! root, libvirt, QEMU and a guest's kernel (`FRESHET_GUEST_DIR`, as the tests), and nbdkit: what is missing is said.
#![allow(clippy::print_stdout, reason = "the tables are what it is for")]

mod guest;
mod moves;
#[path = "../support/mod.rs"]
mod shared;
#[path = "../../tests/support/mod.rs"]
mod support;
#[allow(dead_code, reason = "a program of its own, compiled by the bench; here it is only checked")]
mod writer;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;

use guest::{DATA, Guest, Made, SIZE, Window};
use moves::{Freshet, Nbdkit};
use shared::file_data;
use support::guest::Kernel;
use support::libvirt::Libvirt;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Windows of the guest before a move, for comparison, and after it: two seconds.
const AROUND: usize = 10;

/// Live protection beside a plain copy.
#[derive(Debug, Parser)]
struct Arguments {
    /// Directory in which everything is made, with a short path: it holds sockets. That for temporary files unless given.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Directory of the storage site: in memory, so that the guest has the disk for itself.
    #[arg(long, default_value = "/dev/shm")]
    store: PathBuf,
    /// Runs of each way.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Who takes the disk over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Ours,
}

/// One run. Times in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Run {
    whole: f64,
    /// Longest waits: before anything was done, while it was, in the two seconds after it.
    before: f64,
    during: f64,
    after: f64,
    /// Writes a second, before and while.
    writes: (f64, f64),
    /// From the end of the command to the first point that covers it.
    covered: Option<f64>,
}

impl Run {
    /// From the command to two seconds after its end.
    fn stall(&self) -> f64 {
        self.during.max(self.after)
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn longest(windows: &[Window]) -> f64 {
    windows.iter().map(|window| window.longest).fold(0.0, f64::max)
}

/// What all runs share.
struct Bench<'a> {
    kernel: &'a Kernel,
    made: Made,
    libvirt: Libvirt,
    freshet: Freshet,
    dir: &'a Path,
}

impl Bench<'_> {
    fn run(&self, way: Way, n: usize) -> Outcome<Run> {
        let (dir, domain) = (self.dir.join("run"), format!("d{n}"));
        std::fs::create_dir(&dir)?;
        let peer = (way == Way::Plain).then(|| Nbdkit::start(&dir)).transpose()?;
        if way == Way::Ours {
            self.freshet.create(&domain);
        }
        let guest = Guest::start(&self.made, self.kernel, &self.libvirt, &dir)?;
        rustix::fs::sync();
        let from = guest.some_more(AROUND)?;
        let took = match &peer {
            Some(nbdkit) => nbdkit.take_over(&self.libvirt)?,
            None => self.freshet.take_over(&domain, &self.libvirt)?,
        };
        // What was under way at the end is told in the next window.
        let to = guest.windows()?.len() + 1;
        guest.some_more(AROUND + 1)?;
        let windows = guest.windows()?;
        let covered = peer.is_none().then(|| millis(took + self.freshet.recoverable(&domain)));
        guest.end();
        if peer.is_none() {
            self.freshet.let_go(&domain)?;
        }
        self.libvirt.virsh(&["undefine", guest::VM]);
        drop(peer);
        std::fs::remove_dir_all(&dir)?;
        let rate = |part: &[Window]| part.iter().map(|w| w.writes).sum::<u64>() as f64 / part.len() as f64 * 5.0;
        let (before, during, after) = (&windows[from - AROUND..from], &windows[from..to], &windows[to..]);
        Ok(Run {
            whole: millis(took),
            before: longest(before),
            during: longest(during),
            after: longest(after),
            writes: (rate(before), rate(during)),
            covered,
        })
    }
}

fn median(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn show(way: &str, runs: &[Run]) {
    let column = |of: fn(&Run) -> f64| {
        let (middle, least, most) = median(runs.iter().map(of));
        format!("{middle:>5.0} ({least:.0} to {most:.0})")
    };
    println!("{way}, milliseconds, median of {} (least to most):", runs.len());
    println!("  whole time             {}", column(|run| run.whole));
    println!("  longest wait before    {}", column(|run| run.before));
    println!("  longest wait during    {}", column(|run| run.during));
    println!("  longest wait after     {}", column(|run| run.after));
    println!("  longest stall          {}", column(Run::stall));
    println!("  writes/s before        {}", column(|run| run.writes.0));
    println!("  writes/s during        {}", column(|run| run.writes.1));
    if runs.iter().all(|run| run.covered.is_some()) {
        println!("  until a point covers   {}", column(|run| run.covered.unwrap_or_default()));
    }
}

fn measure(arguments: &Arguments, kernel: &Kernel, dir: &Path) -> Outcome<()> {
    let store = tempfile::tempdir_in(&arguments.store)?;
    // Places that libvirt keeps sockets at.
    std::fs::create_dir(dir.join("l"))?;
    let libvirt = Libvirt::start(&dir.join("l"));
    let freshet = Freshet::start(dir, store.path(), &libvirt)?;
    let bench = Bench { kernel, made: Made::new(kernel, dir)?, libvirt, freshet, dir };
    println!("disk of {} MiB, {} MiB of it data, {} pairs", SIZE >> 20, DATA >> 20, arguments.pairs);
    let (mut plain, mut ours) = (Vec::new(), Vec::new());
    for n in 0..arguments.pairs {
        let turns = if n % 2 == 0 { [Way::Plain, Way::Ours] } else { [Way::Ours, Way::Plain] };
        for way in turns {
            let run = bench.run(way, n)?;
            println!("pair {n}, {way:?}: {run:.0?}");
            match way {
                Way::Plain => plain.push(run),
                Way::Ours => ours.push(run),
            }
        }
    }
    show("virsh blockcopy --pivot to nbdkit file", &plain);
    show("freshet vm protect", &ours);
    for (what, of) in [("longest stall", Run::stall as fn(&Run) -> f64), ("whole time", |run: &Run| run.whole)] {
        let (middle, least, most) = median(ours.iter().zip(&plain).map(|(ours, plain)| of(ours) / of(plain)));
        println!("{what}, of the plain copy's, median of pairs: {middle:.2} ({least:.2} to {most:.2})");
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    // Under `cargo test --benches` there is nothing to do: it measures.
    if !arguments.bench {
        return Ok(());
    }
    let kernel = match (support::libvirt::missing(), Kernel::find()) {
        (None, Ok(kernel)) => kernel,
        (Some(why), _) | (None, Err(why)) => {
            println!("nothing was measured: {why}");
            return Ok(());
        }
    };
    if support::real_images::find("nbdkit").is_none() {
        println!("nothing was measured: no nbdkit here, install the package nbdkit");
        return Ok(());
    }
    let dir = match &arguments.dir {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    measure(&arguments, &kernel, dir.path())
}
