//! Progress on a terminal: a bar with rate and ETA, taken from what was measured. Nothing where output is piped.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;

use super::output::{self, Output};
use crate::progress::{Progress, Snapshot};

/// Time between two looks at the counts.
const TICK: Duration = Duration::from_millis(200);
const KNOWN: &str = "{msg:<22} {wide_bar} {bytes:>11}/{total_bytes:<11} {bytes_per_sec:>13} ETA {eta:<6} {prefix}";
const UNKNOWN: &str = "{msg:<22} {spinner} {bytes} {bytes_per_sec} {prefix}";

/// Shows an operation's progress until it is dropped.
pub(super) struct ProgressView {
    bar: ProgressBar,
    task: JoinHandle<()>,
}

impl ProgressView {
    /// Starts to show `progress`, on a terminal and without `--json`.
    pub(super) fn start(progress: Arc<Progress>, output: &Output) -> ProgressView {
        let shown = !output.is_json() && output::is_interactive();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style(UNKNOWN));
        let task = match shown {
            true => tokio::spawn(follow(progress, bar.clone())),
            false => tokio::spawn(async {}),
        };
        ProgressView { bar, task }
    }
}

impl Drop for ProgressView {
    fn drop(&mut self) {
        self.task.abort();
        self.bar.finish_and_clear();
    }
}

async fn follow(progress: Arc<Progress>, bar: ProgressBar) {
    let mut last = Snapshot::default();
    loop {
        let now = progress.snapshot();
        update(&bar, &last, &now);
        for note in progress.take_notes() {
            bar.println(note);
        }
        last = now;
        tokio::time::sleep(TICK).await;
    }
}

fn update(bar: &ProgressBar, last: &Snapshot, now: &Snapshot) {
    if now.stage != last.stage {
        bar.set_message(now.stage);
        // What was there before the stage began says nothing about its rate.
        bar.reset_eta();
    }
    if now.total != last.total && now.total > 0 {
        bar.set_length(now.total);
        bar.set_style(style(KNOWN));
    }
    bar.set_position(now.done);
    if now.moved != last.moved {
        bar.set_prefix(format!("moved {}", super::units::bytes(now.moved)));
    }
    bar.tick();
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_can_be_read() {
        for template in [KNOWN, UNKNOWN] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }

    #[test]
    fn the_bar_stands_where_the_counts_stand() {
        let bar = ProgressBar::hidden();
        let progress = Progress::new();
        progress.stage("fetch");
        progress.add_total(100);
        progress.add_done(40);
        update(&bar, &Snapshot::default(), &progress.snapshot());
        assert_eq!((bar.position(), bar.length(), bar.message().as_str()), (40, Some(100), "fetch"));
    }
}
