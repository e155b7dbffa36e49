//! A program that is killed again and again, at random moments, and started anew.
//!
//! The moments are drawn over the bytes that its files take on disk, and a little time after that: so they are spread
//! over the whole of its work, whatever the speed of the machine. The seed is printed; `FRESHET_SEED` gives it again.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

/// Longest time that one start may take to reach its moment.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most time between the bytes that are waited for and the kill, in milliseconds.
const AFTER: u64 = 60;
/// Most times that the work is done anew because it ended before all kills.
const WHOLES: usize = 4;

/// The generator of a test; says its seed.
pub(crate) fn generator(test: &str) -> fastrand::Rng {
    let given = std::env::var("FRESHET_SEED").ok().map(|seed| seed.parse().expect("FRESHET_SEED is a number"));
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("{test}: FRESHET_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// What is killed.
pub(crate) struct Victim<'a> {
    /// Starts the program on what is there.
    pub(crate) start: &'a dyn Fn() -> Child,
    /// Throws away what it made, so that it has everything to do again.
    pub(crate) reset: &'a dyn Fn(),
    /// The files that grow while it works.
    pub(crate) files: Vec<PathBuf>,
    /// Bytes that they take when it is done.
    pub(crate) bytes: u64,
}

impl Victim<'_> {
    /// Kills it `kills` times by SIGKILL. What it then has done is left for one more start to finish.
    pub(crate) fn kill(&self, kills: usize, random: &mut fastrand::Rng) {
        let mut killed = 0;
        for _ in 0..WHOLES {
            (self.reset)();
            let mut moments: Vec<u64> = (killed..kills).map(|_| random.u64(0..self.bytes)).collect();
            moments.sort_unstable();
            for moment in moments {
                if !self.killed_at(moment, Duration::from_millis(random.u64(..AFTER))) {
                    break;
                }
                killed += 1;
            }
            if killed == kills {
                return;
            }
        }
        panic!("killed {killed} times of {kills}: it was done too soon");
    }

    /// False where it came to its end before.
    fn killed_at(&self, moment: u64, after: Duration) -> bool {
        let mut child = (self.start)();
        let begun = Instant::now();
        while self.on_disk() < moment {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "it failed by itself: {status}");
                return false;
            }
            if begun.elapsed() > PATIENCE {
                let _ = child.kill();
                panic!("it never reached {moment} of {} bytes", self.bytes);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(after);
        let running = child.try_wait().unwrap().is_none();
        let _ = child.kill();
        child.wait().unwrap();
        running
    }

    /// Bytes that the files take now.
    pub(crate) fn on_disk(&self) -> u64 {
        self.files.iter().map(|f| std::fs::metadata(f).map_or(0, |m| m.blocks() * 512)).sum()
    }
}
