//! Running a command as users run it, and what it cost: wall and CPU seconds, peak memory.
//!
//! Invariants: a failed command is an error that shows what it said; page cache of the given files is dropped before
//! the clock starts; output files are compared by the caller, not believed.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::Advice;

use crate::Outcome;

/// What one run took.
#[derive(Debug, Clone, Default)]
pub(crate) struct Run {
    /// Seconds by the clock on the wall.
    pub(crate) wall: f64,
    /// User and system seconds of the process and the children it waited for.
    pub(crate) cpu: f64,
    /// Processor seconds that the hypervisor gave to others meanwhile.
    pub(crate) stolen: f64,
    /// Largest resident set in bytes.
    pub(crate) peak: u64,
    /// What it printed.
    pub(crate) out: String,
}

impl Run {
    /// Two commands, one after the other.
    pub(crate) fn then(self, next: Run) -> Run {
        Run {
            wall: self.wall + next.wall,
            cpu: self.cpu + next.cpu,
            stolen: self.stolen + next.stolen,
            peak: self.peak.max(next.peak),
            out: next.out,
        }
    }

    /// Its output as JSON; some programs print a line before it.
    pub(crate) fn json(&self) -> Outcome<serde_json::Value> {
        let start = self.out.find('{').ok_or_else(|| format!("no JSON in {:?}", self.out))?;
        Ok(serde_json::from_str(&self.out[start..])?)
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Outcome<Run> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let (begun, stolen) = (Instant::now(), stolen_so_far());
    let mut child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
    let pid = i32::try_from(child.id())?;
    let watch = Peak::watch(child.id());
    let mut out = String::new();
    child.stdout.take().ok_or("no output")?.read_to_string(&mut out)?;
    let mut status = 0;
    // SAFETY: `rusage` is plain numbers, for which zeros are valid; `wait4` fills what it is given. The child is ours
    // and was not waited for; its handle is dropped without waiting.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::wait4(pid, &raw mut status, 0, &raw mut usage) != pid {
            return Err(std::io::Error::last_os_error().into());
        }
        usage
    };
    let wall = begun.elapsed().as_secs_f64();
    let peak = watch.end();
    match ExitStatus::from_raw(status) {
        status if status.success() => {
            Ok(Run { wall, cpu: cpu_of(&usage), stolen: stolen_so_far() - stolen, peak, out })
        }
        status => Err(format!("{command:?} ended with {status}; it printed {out:?}").into()),
    }
}

/// Looks at the largest resident set of a process, which the kernel keeps, every few milliseconds until it ends. What
/// `wait4` tells of it is no use: it begins with that of the process that forked it.
struct Peak {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Peak {
    fn watch(pid: u32) -> Peak {
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let mut peak = 0;
            while !end.load(Relaxed) {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
                peak = kib.map_or(peak, |kib| kib << 10);
                std::thread::sleep(Duration::from_millis(5));
            }
            peak
        });
        Peak { ended, thread }
    }

    /// Bytes; 0 of a process that ended before the first look.
    fn end(self) -> u64 {
        self.ended.store(true, Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

/// User and system seconds of this process.
pub(crate) fn own_cpu() -> f64 {
    // SAFETY: as above; `getrusage` fills what it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    cpu_of(&usage)
}

/// Processor seconds since the start of the machine that a hypervisor gave to others; 0 where that is not told.
pub(crate) fn stolen_so_far() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    // The first line sums all processors: "cpu", then user, nice, system, idle, iowait, irq, softirq, steal.
    let ticks = stat.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse().ok()).unwrap_or(0.0);
    ticks / rustix::param::clock_ticks_per_second() as f64
}

fn cpu_of(usage: &libc::rusage) -> f64 {
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Makes the next reader of a file, or of all files below a directory, read the disk.
pub(crate) fn drop_cache(path: &Path) -> Outcome<()> {
    for file in files_below(path)? {
        let file = File::open(&file)?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// All files below a directory, or the file itself, by name.
pub(crate) fn files_below(path: &Path) -> Outcome<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        files.extend(files_below(&entry?.path())?);
    }
    files.sort();
    Ok(files)
}

/// Removes what a former run left, and makes the directory anew.
pub(crate) fn fresh_dir(path: &Path) -> Outcome<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(std::fs::create_dir_all(path)?),
    }
}

/// Fails unless both files are equal, byte for byte.
pub(crate) fn same(expected: &Path, found: &Path) -> Outcome<()> {
    let status = Command::new("cmp").arg("--").args([expected, found]).status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{} is not equal to {}", found.display(), expected.display()).into()),
    }
}

/// Whether a program is installed.
pub(crate) fn is_here(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|dir| dir.join(program).is_file())
}
