//! When a failed request is tried again, and after which pause.
//!
//! Pure: time and chance are passed in. Limits hold together: tries, total time, and fewer tries while a store that
//! has never answered cannot be connected to, so that a wrong endpoint is told in seconds.

use std::time::Duration;

use super::RetryLimits;
use super::failure::Class;

/// The tries of one request.
#[derive(Debug)]
pub(super) struct Tries<'a> {
    limits: &'a RetryLimits,
    failed: u32,
}

impl<'a> Tries<'a> {
    /// Before the first try.
    pub(super) fn new(limits: &'a RetryLimits) -> Tries<'a> {
        Tries { limits, failed: 0 }
    }

    /// Tries that failed.
    pub(super) fn failed(&self) -> u32 {
        self.failed
    }

    /// A try failed, `elapsed` after the first one began: the pause before the next one, or `None` to give up.
    ///
    /// `answered` tells that this store has answered before; `retry_after` is what it asks for, taken up to the
    /// longest pause; `roll`, from 0 to 1, is chance.
    pub(super) fn pause(
        &mut self,
        class: Class,
        answered: bool,
        elapsed: Duration,
        retry_after: Option<Duration>,
        roll: f64,
    ) -> Option<Duration> {
        self.failed += 1;
        let tries = match class {
            Class::Transient => self.limits.tries,
            Class::Connect if answered => self.limits.tries,
            Class::Connect => self.limits.connect_tries.min(self.limits.tries),
            _ => return None,
        };
        if self.failed >= tries {
            return None;
        }
        let doubled = self.limits.pause.saturating_mul(1 << (self.failed - 1).min(20));
        let full = doubled.min(self.limits.pause_max);
        let drawn = full.mul_f64(0.5 + 0.5 * roll.clamp(0.0, 1.0));
        let pause = drawn.max(retry_after.unwrap_or_default().min(self.limits.pause_max));
        (elapsed + pause <= self.limits.total).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> RetryLimits {
        RetryLimits {
            tries: 6,
            total: Duration::from_secs(60),
            connect_tries: 3,
            pause: Duration::from_millis(100),
            pause_max: Duration::from_millis(500),
        }
    }

    /// All pauses until it gives up.
    fn pauses(class: Class, answered: bool, roll: f64, after: Option<Duration>, each: Duration) -> Vec<u128> {
        let limits = limits();
        let mut tries = Tries::new(&limits);
        let mut elapsed = each;
        let mut all = Vec::new();
        while let Some(pause) = tries.pause(class, answered, elapsed, after, roll) {
            all.push(pause.as_millis());
            elapsed += pause + each;
            assert!(all.len() < 100, "no limit");
        }
        assert_eq!(tries.failed() as usize, all.len() + 1);
        all
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_are_drawn_from_their_upper_half() {
        let quick = Duration::ZERO;
        assert_eq!(pauses(Class::Transient, true, 1.0, None, quick), [100, 200, 400, 500, 500]);
        assert_eq!(pauses(Class::Transient, false, 0.0, None, quick), [50, 100, 200, 250, 250]);
        assert_eq!(pauses(Class::Transient, true, 0.0, Some(Duration::from_millis(300)), quick)[0], 300);
        assert_eq!(pauses(Class::Transient, true, 0.0, Some(Duration::from_secs(900)), quick)[0], 500);
    }

    #[test]
    fn an_unknown_store_is_given_up_sooner_than_a_known_one() {
        assert_eq!(pauses(Class::Connect, false, 1.0, None, Duration::ZERO).len(), 2);
        assert_eq!(pauses(Class::Connect, true, 1.0, None, Duration::ZERO).len(), 5);
    }

    #[test]
    fn total_time_ends_it_as_well() {
        assert_eq!(pauses(Class::Transient, true, 1.0, None, Duration::from_secs(25)).len(), 2);
    }

    #[test]
    fn what_cannot_get_better_is_not_tried_again() {
        for class in [
            Class::Denied,
            Class::ClockOff,
            Class::NoBucket,
            Class::Exists,
            Class::Invalid,
            Class::Unsupported,
            Class::Full,
        ] {
            assert_eq!(pauses(class, true, 1.0, None, Duration::ZERO), [0; 0], "{class:?}");
        }
    }
}
