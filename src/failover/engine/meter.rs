//! Rate and time left of what runs, such as a step, and of each of its disks, from what was measured. No clock of its own.
//!
//! Invariant: time left is told only where there is something to tell it by: a total, and bytes that moved in the last half
//! minute; or where nothing is left.

use std::collections::{BTreeMap, VecDeque};

use crate::failover::task::{DiskProgress, TaskProgress};
use crate::ids::Time;
use crate::progress::Snapshot;

/// Milliseconds over which a rate is measured.
const WINDOW_MILLIS: u64 = 30_000;
/// Most samples that are kept of each.
const MAX_SAMPLES: usize = 128;

/// What was done, and when.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    all: Samples,
    /// Of the disks of the newest snapshot, and no others.
    disks: BTreeMap<String, Samples>,
}

#[derive(Debug, Default)]
struct Samples(VecDeque<(Time, u64)>);

/// What samples come to.
struct Measured {
    bytes_per_second: f64,
    eta_seconds: Option<f64>,
    millis: u64,
}

impl Samples {
    /// `done` of `total` bytes at `now`.
    fn take(&mut self, now: Time, done: u64, total: u64) -> Measured {
        while self.0.len() >= MAX_SAMPLES || self.0.front().is_some_and(|(at, _)| now.millis_since(*at) > WINDOW_MILLIS)
        {
            self.0.pop_front();
        }
        self.0.push_back((now, done));
        let (millis, bytes) =
            self.0.front().map_or((0, 0), |(at, before)| (now.millis_since(*at), done.saturating_sub(*before)));
        let rate = if millis == 0 { 0.0 } else { bytes as f64 * 1000.0 / millis as f64 };
        let left = total.saturating_sub(done);
        let known = total > 0 && (rate > 0.0 || left == 0);
        let eta_seconds = known.then(|| if left == 0 { 0.0 } else { left as f64 / rate });
        Measured { bytes_per_second: rate, eta_seconds, millis }
    }
}

impl Meter {
    /// Where it stands at `now`.
    pub(crate) fn take(&mut self, now: Time, snapshot: Snapshot) -> TaskProgress {
        let all = self.all.take(now, snapshot.done, snapshot.total);
        let mut before = std::mem::take(&mut self.disks);
        let mut disks = Vec::with_capacity(snapshot.disks.len());
        for of in snapshot.disks {
            let mut samples = before.remove(&of.disk).unwrap_or_default();
            let measured = samples.take(now, of.done, of.total);
            self.disks.insert(of.disk.clone(), samples);
            disks.push(DiskProgress {
                disk: of.disk,
                done_bytes: of.done,
                total_bytes: of.total,
                bytes_per_second: measured.bytes_per_second,
                eta_seconds: measured.eta_seconds,
            });
        }
        TaskProgress {
            stage: snapshot.stage,
            done_bytes: snapshot.done,
            total_bytes: snapshot.total,
            bytes_per_second: all.bytes_per_second,
            eta_seconds: all.eta_seconds,
            measured_seconds: all.millis as f64 / 1000.0,
            disks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::DiskBytes;

    fn at(total: u64, done: u64) -> Snapshot {
        Snapshot { total, done, ..Snapshot::default() }
    }

    #[test]
    fn time_left_is_what_is_left_at_the_rate_of_the_last_half_minute() {
        let mut meter = Meter::default();
        let t = Time::from_millis;
        assert_eq!(meter.take(t(0), at(0, 0)).eta_seconds, None);
        assert_eq!(meter.take(t(1_000), at(1000, 0)).eta_seconds, None, "nothing moved yet");
        let p = meter.take(t(2_000), at(1000, 200));
        assert_eq!((p.bytes_per_second, p.eta_seconds, p.measured_seconds), (100.0, Some(8.0), 2.0));
        let p = meter.take(t(62_000), at(1000, 200));
        assert_eq!(p.eta_seconds, None, "what was fast a minute ago says nothing");
        assert_eq!(meter.take(t(63_000), at(1000, 1000)).eta_seconds, Some(0.0));
        let p = meter.take(t(10), at(1000, 1000));
        assert_eq!(p.bytes_per_second, 0.0, "a clock that went back");
    }

    #[test]
    fn each_disk_has_its_own_rate_and_time_left() {
        let mut meter = Meter::default();
        let mut take = |millis, disks: &[(&str, u64, u64)]| {
            let disks = disks.iter().map(|(disk, done, total)| DiskBytes {
                disk: (*disk).to_owned(),
                done: *done,
                total: *total,
            });
            meter.take(Time::from_millis(millis), Snapshot { disks: disks.collect(), ..at(400, 0) }).disks
        };
        take(0, &[("a", 0, 100), ("b", 0, 300)]);
        let disks = take(2_000, &[("a", 50, 100), ("b", 0, 300), ("c", 5, 10)]);
        let told: Vec<_> = disks.iter().map(|d| (d.disk.as_str(), d.bytes_per_second, d.eta_seconds)).collect();
        assert_eq!(told, [("a", 25.0, Some(2.0)), ("b", 0.0, None), ("c", 0.0, None)], "no basis, no time");
        let disks = take(4_000, &[("a", 100, 100), ("b", 40, 300)]);
        let told: Vec<_> = disks.iter().map(|d| (d.disk.as_str(), d.eta_seconds)).collect();
        assert_eq!(told, [("a", Some(0.0)), ("b", Some(26.0))], "a disk that left is not told");
    }
}
