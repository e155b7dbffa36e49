//! What one way of the guests to the other site cost: rows, seconds, and what the seconds went into.
//!
//! Pure. Nothing is measured here. Invariant: the parts of a time add up to it, as they are shown.

use std::time::Duration;

use serde_json::Value;

use super::rows::RowWatch;
use crate::error::{Error, ErrorKind, Result};

/// One way of the guests to the other site.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recovery {
    /// Newest row that was acknowledged before: by force that the client had seen, planned that the database told at its end.
    pub acknowledged: u64,
    /// Newest row that was acknowledged when a point was cut that was waited for before the site was left.
    pub landed: u64,
    /// Rows that the database had afterwards, whole and in order.
    pub found: u64,
    /// Rows of those acknowledged that were not there.
    pub lost_rows: u64,
    /// Seconds of the client's time in which those were acknowledged.
    pub rpo_seconds: f64,
    /// Boots that the web server's disk counts, this one with them.
    pub boots: u64,
    /// Seconds from the command to both guests serving, to a hundredth, as are all below, which add up to it.
    pub rto_seconds: f64,
    /// Of these, each step of the task that took a tenth or more.
    pub steps: Vec<(String, f64)>,
    /// Its other steps together.
    pub short_seconds: f64,
    /// The rest: what the guests' boots took past the task, and what is between its steps.
    pub boot_seconds: f64,
}

/// What was seen on the way, of which a [`Recovery`] is made.
pub(super) struct Seen<'a> {
    /// Watched where the guests were.
    pub(super) rows: &'a RowWatch,
    pub(super) acknowledged: u64,
    pub(super) landed: u64,
    pub(super) found: u64,
    pub(super) boots: u64,
    pub(super) rto: Duration,
    pub(super) task: &'a Value,
}

impl Recovery {
    /// # Errors
    /// `Unreachable` where no row was seen before: then nothing can be said of what was lost. `Damaged` where one is missing
    /// that had landed.
    pub(super) fn of(seen: &Seen<'_>) -> Result<Recovery> {
        let Seen { rows, acknowledged, landed, found, boots, .. } = *seen;
        if rows.newest() == 0 || acknowledged == 0 {
            return Err(Error::new(ErrorKind::Unreachable, "no row of the database was seen before its site was left"));
        }
        if found < landed {
            let why = format!("{landed} rows had landed at the other site, and {found} are there");
            return Err(Error::new(ErrorKind::Damaged, why));
        }
        let (steps, short_seconds, boot_seconds) = parts(seen.rto.as_secs_f64(), steps(seen.task));
        Ok(Recovery {
            acknowledged,
            landed,
            found,
            lost_rows: acknowledged.saturating_sub(found),
            rpo_seconds: rows.lost_since(found).as_secs_f64(),
            boots,
            rto_seconds: hundredth(seen.rto.as_secs_f64()),
            steps,
            short_seconds,
            boot_seconds,
        })
    }
}

/// Steps of a task, with their seconds.
fn steps(task: &Value) -> Vec<(String, f64)> {
    let time = |value: &Value| value.as_str()?.parse::<jiff::Timestamp>().ok();
    let took = |step: &Value| {
        let seconds = time(&step["ended"])?.duration_since(time(&step["began"])?).as_secs_f64();
        Some((step["name"].as_str()?.to_owned(), seconds))
    };
    task["steps"].as_array().into_iter().flatten().filter_map(took).collect()
}

fn hundredth(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}

/// Parts of `rto` seconds, to a hundredth, which add up to it: steps of a tenth or more, the others together, and the rest.
fn parts(rto: f64, steps: Vec<(String, f64)>) -> (Vec<(String, f64)>, f64, f64) {
    const LEAST: f64 = 0.1;
    let (long, short): (Vec<_>, Vec<_>) = steps.into_iter().partition(|(_, seconds)| *seconds >= LEAST);
    let long: Vec<(String, f64)> = long.into_iter().map(|(name, seconds)| (name, hundredth(seconds))).collect();
    let short = hundredth(short.iter().map(|(_, seconds)| seconds).sum());
    let in_task = short + long.iter().map(|(_, seconds)| seconds).sum::<f64>();
    let rest = hundredth(hundredth(rto) - in_task);
    (long, short, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_recovery_add_up_to_it() {
        let steps = [("check", 0.004), ("claim", 0.096), ("start db", 0.1249), ("finish", 1.0051)];
        let steps = steps.into_iter().map(|(name, seconds)| (name.to_owned(), seconds)).collect();
        let (long, short, rest) = parts(4.456, steps);
        assert_eq!(long, [("start db".to_owned(), 0.12), ("finish".to_owned(), 1.01)]);
        assert_eq!((short, rest), (0.1, 3.23), "of 4.46");
        assert_eq!(parts(0.5, Vec::new()), (Vec::new(), 0.0, 0.5));
    }
}
