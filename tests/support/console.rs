//! The serial console of a guest, in a file: what the guest says of its boots and of the lines that it keeps on its disks.
//!
//! The guest's script is that of `libvirt_guest`: `whole N` or `torn N` at each boot, `kept N` for each line, `down N` before
//! it is off.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::appliance::PATIENCE;

/// Words on a console that speak of a disk that failed.
const ALARMS: [&str; 5] = ["I/O error", "EXT4-fs error", "EXT4-fs warning", "failed:", "Kernel panic"];

/// The console of the guest, at whatever site.
pub(crate) struct Console(pub(crate) PathBuf);

impl Console {
    /// Whole lines: half a number is another one.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut text = std::fs::read(&self.0).unwrap_or_default();
        text.truncate(text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        String::from_utf8_lossy(&text).lines().map(|line| line.trim().to_owned()).collect()
    }

    /// The newest number that stands behind a word.
    pub(crate) fn newest(&self, word: &str) -> Option<u64> {
        self.lines().iter().rev().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.parse().ok())
    }

    pub(crate) fn count(&self, word: &str) -> usize {
        self.lines().iter().filter(|line| line.starts_with(word)).count()
    }

    pub(crate) fn wait(&self, what: &str, mut is: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is() {
            assert!(began.elapsed() < PATIENCE * 2, "{what} never came: {:#?}", self.lines());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the guest has booted `boots` times in all, with every line there; how many lines it found then.
    pub(crate) fn boots(&self, boots: usize) -> u64 {
        self.wait("a boot", || self.count("whole") + self.count("torn") >= boots);
        assert_eq!((self.count("torn"), self.count("whole")), (0, boots), "{:#?}", self.lines());
        self.newest("whole").unwrap()
    }

    /// Waits until it has written some more.
    pub(crate) fn some_more(&self) -> u64 {
        let now = self.newest("kept").unwrap_or(0);
        self.wait("lines", || self.newest("kept").unwrap_or(0) >= now + 5);
        self.newest("kept").unwrap()
    }

    pub(crate) fn assert_no_alarm(&self) {
        let lines = self.lines();
        let alarm = lines.iter().find(|line| ALARMS.iter().any(|alarm| line.contains(alarm)));
        assert_eq!(alarm, None, "{lines:#?}");
    }
}
