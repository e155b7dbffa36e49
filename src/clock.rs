//! Time and randomness, injected: nothing else in the crate asks the system for either where a decision depends on it.
//!
//! Invariant: a point's time is never below the previous point's (see [`next_point_time`]), whatever the clock does.

use std::sync::OnceLock;
use std::time::Instant;

use crate::ids::Time;

/// Where a component takes wall time from.
pub trait Clock: std::fmt::Debug + Send + Sync {
    /// Wall time now.
    fn now(&self) -> Time;

    /// Time that goes on evenly whatever wall time is set to: for measuring how long something takes, and for nothing that is
    /// kept. Only its differences mean anything, and only within a process.
    fn steady(&self) -> Time {
        self.now()
    }
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Time {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Time::from_millis(since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Wall time as it was at the first look, gone on from there.
    fn steady(&self) -> Time {
        static FIRST: OnceLock<(Time, Instant)> = OnceLock::new();
        let (wall, began) = FIRST.get_or_init(|| (self.now(), Instant::now()));
        Time::from_millis(wall.millis().saturating_add(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Time of the next point: now, but at least one millisecond after the previous point, so that points stay in order
/// when the clock goes backwards.
pub fn next_point_time(now: Time, previous: Option<Time>) -> Time {
    match previous {
        Some(p) => now.max(Time::from_millis(p.millis().saturating_add(1))),
        None => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_stay_in_order_when_the_clock_jumps_back() {
        let t = Time::from_millis;
        assert_eq!(next_point_time(t(50), Some(t(100))), t(101));
        assert_eq!(next_point_time(t(500), Some(t(100))), t(500));
        assert_eq!(next_point_time(t(5), None), t(5));
    }
}
