//! The store's clock, learned from the `Date` of its answers.
//!
//! `Date` has whole seconds, so one answer bounds the difference between the two clocks to a second plus the time of
//! the round trip; the bounds of many answers together are narrower. When a clock was set, the bounds contradict each
//! other and learning starts again from the newest answer.
//!
//! Pure: this machine's time is passed in.

use crate::ids::Time;

/// What is known about the difference between the store's clock and this machine's.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StoreClock {
    /// Bounds of store minus machine in milliseconds, low not above high; `None` before the first answer.
    bounds: Option<(i64, i64)>,
}

impl StoreClock {
    /// Learns from an answer whose `Date` is `date`, to a request sent and answered at these times of this machine.
    pub(super) fn observe(&mut self, date: Time, sent: Time, answered: Time) {
        let (date, sent, answered) = (signed(date), signed(sent), signed(answered));
        // The store read its clock somewhere between the two times, at or up to a second after what it says.
        let new = (date.saturating_sub(answered.max(sent)), date.saturating_add(999).saturating_sub(sent));
        let both = self.bounds.map_or(new, |(low, high)| (low.max(new.0), high.min(new.1)));
        self.bounds = Some(if both.0 <= both.1 { both } else { new });
    }

    /// The store's time when this machine's is `now`; `now` itself before the first answer.
    pub(super) fn at(&self, now: Time) -> Time {
        let Some((low, high)) = self.bounds else { return now };
        let offset = low.saturating_add(high.saturating_sub(low) / 2);
        Time::from_millis(u64::try_from(signed(now).saturating_add(offset)).unwrap_or(0))
    }
}

fn signed(time: Time) -> i64 {
    i64::try_from(time.millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    /// An answer from a store whose clock is `ahead` milliseconds ahead.
    fn answer(clock: &mut StoreClock, now: u64, trip: u64, ahead: i64) {
        let store = (now + trip / 2).saturating_add_signed(ahead);
        clock.observe(t(store / 1000 * 1000), t(now), t(now + trip));
    }

    #[test]
    fn many_answers_are_sharper_than_one() {
        let mut clock = StoreClock::default();
        assert_eq!(clock.at(t(5)), t(5));
        answer(&mut clock, 1_000_000, 40, 90_300);
        assert!(clock.at(t(1_000_000)).millis().abs_diff(1_090_300) <= 540);
        for i in 1..100 {
            answer(&mut clock, 1_000_000 + i * 137, 40, 90_300);
        }
        assert!(clock.at(t(1_000_000)).millis().abs_diff(1_090_300) <= 40, "{:?}", clock);
    }

    #[test]
    fn a_clock_that_was_set_is_learned_again() {
        let mut clock = StoreClock::default();
        (0..50).for_each(|i| answer(&mut clock, 10_000_000 + i * 99, 10, 0));
        answer(&mut clock, 10_010_000, 10, -3_600_000);
        assert!(clock.at(t(10_010_000)).millis().abs_diff(10_010_000 - 3_600_000) <= 510);
    }

    #[test]
    fn odd_times_do_no_harm() {
        let mut clock = StoreClock::default();
        clock.observe(t(u64::MAX), t(7), t(3));
        clock.at(t(u64::MAX));
        clock.observe(t(0), t(u64::MAX), t(0));
        clock.at(t(0));
    }
}
