//! Guests that start anew by themselves, again and again: one that panics and was told to boot then, or whose boot loader
//! fails, looks as if it ran.
//!
//! Pure. Owns how often is too often, and when it is over. Bounded: of each guest only its newest starts are kept, of guests
//! only those that started anew lately.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::ids::Name;

/// Times within [`WITHIN`] from which on a guest is told of: an installation or an update takes one or two.
const TOO_OFTEN: usize = 4;
/// See [`TOO_OFTEN`].
const WITHIN: Duration = Duration::from_secs(600);
/// How long it must have stayed up to be told of no more.
const STAYED_UP: Duration = Duration::from_secs(300);
/// Most times that are kept of a guest.
const KEPT: usize = 64;
/// Most guests that are kept.
const GUESTS: usize = 4096;

/// When guests started anew.
#[derive(Debug, Default)]
pub(super) struct Restarts(BTreeMap<Name, VecDeque<Instant>>);

impl Restarts {
    /// A guest starts anew, without having been off.
    pub(super) fn note(&mut self, vm: &Name, now: Instant) {
        let is_old = |at: &Instant| now.duration_since(*at) > WITHIN;
        self.0.retain(|_, times| times.back().is_some_and(|newest| !is_old(newest)));
        if self.0.len() >= GUESTS && !self.0.contains_key(vm) {
            return;
        }
        let times = self.0.entry(vm.clone()).or_default();
        times.push_back(now);
        while times.len() > KEPT || times.front().is_some_and(is_old) {
            times.pop_front();
        }
    }

    /// A guest was started or is off: what it did before says nothing any more.
    pub(super) fn forget(&mut self, vm: &Name) {
        self.0.remove(vm);
    }

    /// What is wrong with a guest, in words.
    pub(super) fn trouble(&self, vm: &Name, now: Instant) -> Option<String> {
        let times = self.0.get(vm)?;
        let mut lately = times.iter().filter(|at| now.duration_since(**at) <= WITHIN);
        let (first, count) = (lately.next()?, lately.count() + 1);
        let newest = times.back().filter(|newest| now.duration_since(**newest) < STAYED_UP)?;
        let seconds = newest.duration_since(*first).as_secs().max(1);
        let why =
            format!("its guest has started anew by itself {count} times within {seconds} s, and does not stay up");
        (count >= TOO_OFTEN).then_some(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::samples;

    #[test]
    fn a_guest_that_starts_anew_too_often_is_told_until_it_stays_up() {
        let (began, web) = (Instant::now(), samples::name("web"));
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut restarts = Restarts::default();
        for seconds in [0, 100, 200] {
            restarts.note(&web, at(seconds));
            assert_eq!(restarts.trouble(&web, at(seconds)), None, "an update may");
        }
        restarts.note(&web, at(300));
        let told = restarts.trouble(&web, at(300)).unwrap();
        assert!(told.contains("4 times within 300 s"), "{told}");
        assert!(restarts.trouble(&web, at(599)).is_some() && restarts.trouble(&web, at(600)).is_none());
        assert_eq!(restarts.trouble(&samples::name("db"), at(300)), None);
        // Of the four only three are lately.
        restarts.note(&web, at(750));
        assert_eq!(restarts.trouble(&web, at(750)), None);
        for seconds in 751..760 {
            restarts.note(&web, at(seconds));
        }
        assert!(restarts.trouble(&web, at(760)).is_some());
        restarts.forget(&web);
        assert_eq!(restarts.trouble(&web, at(760)), None);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (began, web) = (Instant::now(), samples::name("web"));
        let mut restarts = Restarts::default();
        for n in 0..10_000_u64 {
            restarts.note(&web, began + Duration::from_millis(n * 100));
        }
        assert_eq!(restarts.0[&web].len(), KEPT);
        let told = restarts.trouble(&web, began + Duration::from_secs(1000)).unwrap();
        assert!(told.contains("64 times within 6 s"), "{told}");
        for n in 0..GUESTS + 10 {
            restarts.note(&samples::name(&format!("vm{n}")), began + Duration::from_secs(1000));
        }
        assert_eq!(restarts.0.len(), GUESTS);
        restarts.note(&web, began + Duration::from_secs(2000));
        assert_eq!(restarts.0.len(), 1, "the others were long ago");
    }
}
