//! How fast initial sync and resync get on, measured over the last while.
//!
//! Owns the count of bytes that were brought into the chain, or found to be there. Never guesses: where nothing got on
//! lately there is no rate. Pure: the time is passed in. Holds [`MARKS`] marks at most.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time over which a rate is measured.
const WINDOW: Duration = Duration::from_secs(30);
/// Least time between two marks, and least time that a rate is measured over.
const APART: Duration = Duration::from_secs(1);
/// Most marks: those of one window.
const MARKS: usize = 31;

#[derive(Debug, Default)]
struct State {
    done: u64,
    /// What was done when, oldest first.
    marks: VecDeque<(Instant, u64)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    state: Mutex<State>,
}

impl Pace {
    /// So many more bytes are synced.
    pub(crate) fn add(&self, bytes: u64, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.marks.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= APART) {
            let done = state.done;
            state.marks.push_back((now, done));
        }
        if state.marks.len() > MARKS {
            state.marks.pop_front();
        }
        state.done += bytes;
    }

    /// Bytes in a second; `None` where nothing got on within the window, or it is too soon to say.
    pub(crate) fn rate(&self, now: Instant) -> Option<u64> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, before) = state.marks.iter().find(|(at, _)| now.saturating_duration_since(*at) <= WINDOW)?;
        let (took, done) = (now.saturating_duration_since(*since), state.done - before);
        (took >= APART && done > 0).then(|| (done as f64 / took.as_secs_f64()) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_while_and_gone_when_nothing_gets_on() {
        let (pace, start) = (Pace::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(pace.rate(start), None);
        // 1000 bytes each 100 ms for two minutes, then five times as fast for one.
        (0..1200).for_each(|i| pace.add(1000, at(i * 100)));
        let slow = pace.rate(at(120_000)).unwrap();
        assert!((9_500..=10_500).contains(&slow), "{slow}");
        (1200..1800).for_each(|i| pace.add(5000, at(i * 100)));
        let fast = pace.rate(at(180_000)).unwrap();
        assert!((48_000..=52_000).contains(&fast), "{fast}");
        assert!(pace.rate(at(195_000)).unwrap() < fast, "it stands still");
        assert_eq!(pace.rate(at(215_000)), None, "it has stood still for long");
        assert!(pace.state.lock().unwrap().marks.len() <= MARKS);
        let young = Pace::default();
        young.add(1, start);
        assert_eq!(young.rate(at(500)), None, "too soon to say");
    }
}
