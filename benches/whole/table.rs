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

/// Rounds of the same stages: each stage's medians.
pub(crate) fn medians(rounds: &[Vec<Stage>]) -> Vec<Stage> {
    let first = rounds.first().map(Vec::as_slice).unwrap_or_default();
    let stage = |(i, stage): (usize, &Stage)| Stage {
        wall: median(rounds.iter().map(|round| round[i].wall)),
        cpu: median(rounds.iter().map(|round| round[i].cpu)),
        disk: median(rounds.iter().map(|round| round[i].disk)),
        ..*stage
    };
    first.iter().enumerate().map(stage).collect()
}

/// A heading, and what the columns are.
pub(crate) fn heading(title: &str) {
    println!("\n{title}");
    println!("{:<28} {:>8} {:>8} {:>15} {:>9} {:>9}", "", "wall s", "CPU s", "spread s", "MB/s", "of limit");
}

/// The stages alone, and the limit that follows from them.
pub(crate) fn stages(stages: &[Stage], limit: f64) {
    for stage in stages {
        println!("  {:<26} {:>8.2} {:>8.2}", stage.name, stage.wall, stage.cpu);
    }
    let cpu: f64 = stages.iter().map(|s| s.cpu).sum();
    let disk: f64 = stages.iter().map(|s| s.disk).sum();
    println!("  {:<26} {limit:>8.2} {cpu:>8.2}   (disk {disk:.2} s, {} cores)", "limit", cores());
}

/// Runs of one command: the middle one, the spread, the rate of `bytes`, and the ratio to the limit.
pub(crate) fn runs(name: &str, runs: &[Run], bytes: f64, limit: Option<f64>) {
    let (least, most) = runs.iter().fold((f64::MAX, 0.0_f64), |(l, m), run| (l.min(run.wall), m.max(run.wall)));
    let wall = wall(runs);
    let cpu = median(runs.iter().map(|run| run.cpu));
    let ratio = limit.map_or_else(String::new, |limit| format!("{:.2}", limit / wall));
    let spread = format!("{least:.2}-{most:.2}");
    println!("{name:<28} {wall:>8.2} {cpu:>8.2} {spread:>15} {:>9.0} {ratio:>9}", bytes / wall / 1e6);
}
