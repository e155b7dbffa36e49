//! Medians, spreads and the lines that are printed.

use crate::limit::{Stage, cores};
use crate::process::Run;

/// The middle of some values; 0 of none.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Seconds by the clock of the middle run.
pub(crate) fn wall(runs: &[Run]) -> f64 {
    median(runs.iter().map(|run| run.wall))
}

/// Seconds by the clock of the fastest run.
pub(crate) fn fastest(runs: &[Run]) -> f64 {
    runs.iter().map(|run| run.wall).fold(f64::MAX, f64::min)
}

/// Rounds of the same stages: each stage's medians.
pub(crate) fn medians(rounds: &[Vec<Stage>]) -> Vec<Stage> {
    let first = rounds.first().map(Vec::as_slice).unwrap_or_default();
    let stage = |(i, stage): (usize, &Stage)| Stage {
        wall: median(rounds.iter().map(|round| round[i].wall)),
        cpu: median(rounds.iter().map(|round| round[i].cpu)),
        stolen: median(rounds.iter().map(|round| round[i].stolen)),
        disk: median(rounds.iter().map(|round| round[i].disk)),
        ..*stage
    };
    first.iter().enumerate().map(stage).collect()
}

/// A heading, and what the columns are.
pub(crate) fn heading(title: &str) {
    println!("\n{title}");
    let columns = ("wall s", "CPU s", "stolen", "spread s", "MB/s", "of limit");
    println!(
        "{:<26} {:>7} {:>7} {:>7} {:>13} {:>7} {:>9}",
        "", columns.0, columns.1, columns.2, columns.3, columns.4, columns.5
    );
}

/// The stages alone, and the limit that follows from them.
pub(crate) fn stages(stages: &[Stage], limit: f64) {
    for stage in stages {
        println!("  {:<24} {:>7.2} {:>7.2} {:>7.2}", stage.name, stage.wall, stage.cpu, stage.stolen);
    }
    let cpu: f64 = stages.iter().map(|s| s.cpu).sum();
    let disk: f64 = stages.iter().map(|s| s.disk).sum();
    println!("  {:<24} {limit:>7.2} {cpu:>7.2}   (disk {disk:.2} s, {} cores)", "limit", cores());
}

/// Runs of one command: the middle one, the spread, the rate of `bytes`, and the ratio to the limit.
pub(crate) fn runs(name: &str, runs: &[Run], bytes: f64, limit: Option<f64>) {
    let (least, most) = runs.iter().fold((f64::MAX, 0.0_f64), |(l, m), run| (l.min(run.wall), m.max(run.wall)));
    let wall = wall(runs);
    let cpu = median(runs.iter().map(|run| run.cpu));
    let ratio = limit.map_or_else(String::new, |limit| format!("{:.2}", limit / wall));
    let spread = format!("{least:.2}-{most:.2}");
    let stolen = median(runs.iter().map(|run| run.stolen));
    let rate = bytes / wall / 1e6;
    println!("{name:<26} {wall:>7.2} {cpu:>7.2} {stolen:>7.2} {spread:>13} {rate:>7.0} {ratio:>9}");
}
