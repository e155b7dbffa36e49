//! Rate and time left of the step that runs, from what was measured. No clock of its own.

use std::collections::VecDeque;

use crate::failover::task::TaskProgress;
use crate::ids::Time;
use crate::progress::Snapshot;

/// Milliseconds over which a rate is measured.
const WINDOW_MILLIS: u64 = 30_000;
/// Most samples that are kept.
const MAX_SAMPLES: usize = 256;

/// What was done, and when.
#[derive(Debug, Default)]
pub(super) struct Meter {
    samples: VecDeque<(Time, u64)>,
}

impl Meter {
    /// Where it stands at `now`.
    pub(super) fn take(&mut self, now: Time, snapshot: &Snapshot) -> TaskProgress {
        while self.samples.len() >= MAX_SAMPLES
            || self.samples.front().is_some_and(|(at, _)| now.millis_since(*at) > WINDOW_MILLIS)
        {
            self.samples.pop_front();
        }
        self.samples.push_back((now, snapshot.done));
        let rate = self.samples.front().map_or(0.0, |(at, done)| {
            let millis = now.millis_since(*at);
            let bytes = snapshot.done.saturating_sub(*done);
            if millis == 0 { 0.0 } else { bytes as f64 * 1000.0 / millis as f64 }
        });
        let left = snapshot.total.saturating_sub(snapshot.done);
        let known = snapshot.total > 0 && (rate > 0.0 || left == 0);
        TaskProgress {
            stage: snapshot.stage,
            done_bytes: snapshot.done,
            total_bytes: snapshot.total,
            bytes_per_second: rate,
            eta_seconds: known.then(|| if left == 0 { 0.0 } else { left as f64 / rate }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(total: u64, done: u64) -> Snapshot {
        Snapshot { total, done, ..Snapshot::default() }
    }

    #[test]
    fn time_left_is_what_is_left_at_the_rate_of_the_last_half_minute() {
        let mut meter = Meter::default();
        let t = Time::from_millis;
        assert_eq!(meter.take(t(0), &at(0, 0)).eta_seconds, None);
        assert_eq!(meter.take(t(1_000), &at(1000, 0)).eta_seconds, None, "nothing moved yet");
        let p = meter.take(t(2_000), &at(1000, 200));
        assert_eq!((p.bytes_per_second, p.eta_seconds), (100.0, Some(8.0)));
        let p = meter.take(t(62_000), &at(1000, 200));
        assert_eq!(p.eta_seconds, None, "what was fast a minute ago says nothing");
        assert_eq!(meter.take(t(63_000), &at(1000, 1000)).eta_seconds, Some(0.0));
        let p = meter.take(t(10), &at(1000, 1000));
        assert_eq!(p.bytes_per_second, 0.0, "a clock that went back");
    }
}
