//! How old a point is: measured, so that it stays true when the host's clock jumps.
//!
//! Owns nothing. Invariant: an age only grows, whatever the wall clock does; that clock counts only for the time before
//! this run, of which nothing else is known.

use std::time::{Duration, Instant};

use crate::ids::Time;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PointAge {
    /// How old it was at `since`.
    before: Duration,
    since: Instant,
}

impl PointAge {
    /// Of a point that was cut in this run.
    pub(crate) fn cut_at(since: Instant) -> PointAge {
        PointAge { before: Duration::ZERO, since }
    }

    /// Of a point that was found at `since`, when the wall clock said `now`. One in the future is taken for new.
    pub(crate) fn found(time: Time, now: Time, since: Instant) -> PointAge {
        PointAge { before: Duration::from_millis(now.millis_since(time)), since }
    }

    /// At `now`, in milliseconds.
    pub(crate) fn millis(&self, now: Instant) -> u64 {
        let age = self.before + now.saturating_duration_since(self.since);
        u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_grows_with_time_that_passed_and_no_other() {
        let (t, start) = (Time::from_millis, Instant::now());
        let later = start + Duration::from_millis(700);
        assert_eq!(PointAge::cut_at(start).millis(later), 700);
        assert_eq!(PointAge::cut_at(later).millis(start), 0);
        assert_eq!(PointAge::found(t(1000), t(6000), start).millis(later), 5700);
        assert_eq!(PointAge::found(t(6000), t(1000), start).millis(later), 700, "a point of the future");
        PointAge::found(t(0), t(u64::MAX), start).millis(later);
    }
}
