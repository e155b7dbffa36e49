//! How far a task is, for people: a line for the whole and one for each disk, with rate and time left; in place on a
//! terminal.
//!
//! It shows what the appliance measured and derives nothing: where there is no time left to tell, a dash stands there.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::appliance_args::seconds;
use super::output::is_interactive;
use super::units::bytes;
use crate::control::proto::TaskProgress;

/// Most disks that are shown each by itself: those with the most left to do. `--json` tells all.
const MOST_DISKS: usize = 16;

/// The whole first, then its disks.
pub(super) fn lines(progress: &TaskProgress) -> Vec<String> {
    let basis = if progress.eta_basis.is_empty() { String::new() } else { format!(" (by {})", progress.eta_basis) };
    let whole = stand(progress.done_bytes, progress.total_bytes, progress.rate_bytes, progress.eta_s);
    let mut out = vec![format!("{}: {whole}{basis}", progress.stage)];
    let mut disks: Vec<_> = progress.disks.iter().collect();
    // Those that are done last; by name where there is as much left.
    disks.sort_by_key(|of| (std::cmp::Reverse(of.total_bytes.saturating_sub(of.done_bytes)), of.disk.clone()));
    let wide = disks.iter().take(MOST_DISKS).map(|of| of.disk.chars().count()).max().unwrap_or_default();
    for of in disks.iter().take(MOST_DISKS) {
        let stand = stand(of.done_bytes, of.total_bytes, of.rate_bytes, of.eta_s);
        out.push(format!("  {:<wide$}  {stand}", of.disk));
    }
    if disks.len() > MOST_DISKS {
        out.push(format!("  and {} disks more, with less to do", disks.len() - MOST_DISKS));
    }
    out
}

fn stand(done: u64, total: u64, rate: Option<u64>, eta: Option<u64>) -> String {
    let share = match total {
        0 => String::new(),
        // Both fit a float closely enough for a whole number of percent, which is rounded down.
        total => format!(" {:>3}%", (done.min(total) as f64 * 100.0 / total as f64) as u64),
    };
    let rate = rate.map_or("-".to_owned(), |rate| format!("{}/s", bytes(rate)));
    let eta = eta.map_or("-".to_owned(), seconds);
    format!("{} of {}{share}  {rate}  ETA {eta}", bytes(done), bytes(total))
}

/// Shows it on a terminal until it is dropped; anywhere else, nothing.
pub(super) struct TaskView {
    all: MultiProgress,
    bars: Vec<ProgressBar>,
}

impl TaskView {
    pub(super) fn new() -> TaskView {
        let target = if is_interactive() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        TaskView { all: MultiProgress::with_draw_target(target), bars: Vec::new() }
    }

    /// How far it is now; `None` where nothing is measured.
    pub(super) fn show(&mut self, progress: Option<&TaskProgress>) {
        let lines = progress.map(lines).unwrap_or_default();
        while self.bars.len() > lines.len() {
            if let Some(bar) = self.bars.pop() {
                self.all.remove(&bar);
            }
        }
        while self.bars.len() < lines.len() {
            let bar = self.all.add(ProgressBar::new_spinner());
            let style = ProgressStyle::with_template("  {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
            bar.set_style(style);
            self.bars.push(bar);
        }
        for (bar, line) in self.bars.iter().zip(lines) {
            bar.set_message(line);
            bar.tick();
        }
    }

    /// Prints something above it.
    pub(super) fn above<T>(&self, print: impl FnOnce() -> T) -> T {
        self.all.suspend(print)
    }
}

impl Drop for TaskView {
    fn drop(&mut self) {
        // A terminal that cannot be cleared keeps the last lines.
        let _ = self.all.clear();
        self.bars.iter().for_each(|bar| bar.disable_steady_tick());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::proto::TaskDiskProgress;

    fn disk(disk: &str, done_bytes: u64, total_bytes: u64, eta_s: Option<u64>) -> TaskDiskProgress {
        let rate_bytes = eta_s.map(|_| 2048);
        TaskDiskProgress { disk: disk.to_owned(), done_bytes, total_bytes, rate_bytes, eta_s }
    }

    #[test]
    fn each_disk_has_a_line_and_an_estimate_says_what_it_is_based_on() {
        let mut progress = TaskProgress {
            stage: "fetching".to_owned(),
            done_bytes: 1 << 20,
            total_bytes: 4 << 20,
            rate_bytes: Some(1 << 19),
            eta_s: Some(6),
            eta_basis: "the rate of the last 2 s".to_owned(),
            disks: vec![disk("db/a", 0, 100, None), disk("web/root", 512, 2048, Some(61))],
        };
        let shown = lines(&progress);
        assert_eq!(
            shown,
            [
                "fetching: 1.0 MiB of 4.0 MiB  25%  512.0 KiB/s  ETA 6s (by the rate of the last 2 s)",
                "  web/root  512 B of 2.0 KiB  25%  2.0 KiB/s  ETA 1m 1s",
                "  db/a      0 B of 100 B   0%  -  ETA -",
            ]
        );
        (progress.eta_s, progress.rate_bytes, progress.eta_basis) = (None, None, String::new());
        assert!(lines(&progress)[0].ends_with("25%  -  ETA -"), "no basis, no estimate");
        progress.disks = (0..20).map(|n| disk(&format!("vm/{n}"), 0, 100 + n, None)).collect();
        let shown = lines(&progress);
        assert_eq!(shown.len(), 2 + MOST_DISKS);
        assert!(shown[1].contains("vm/19") && shown.last().unwrap().contains("4 disks more"), "{shown:#?}");
    }
}
