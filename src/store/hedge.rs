//! When a slow range request is sent a second time.
//!
//! The delay is twice the 95th percentile of what recent requests of about the same size took, within a floor and a
//! ceiling; until enough are known it is the ceiling. Twice, because at the percentile itself one request in twenty
//! would be sent again on a store that has no slow tail at all. Second requests are paid from an allowance that grows by a
//! share of the requests and is capped, so that a store that turns slow as a whole is not asked twice for everything.
//!
//! Time is passed in; the lock is held for a moment only.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::HedgeLimits;

/// Requests remembered for each size class.
const WINDOW: usize = 128;
/// Requests to know before the percentile is believed.
const ENOUGH: usize = 20;
/// Second requests that the allowance can save up, in hundredths.
const MAX_ALLOWANCE: u32 = 800;
/// Upper bounds of the size classes in bytes; what is longer is in the last one.
const SIZES: [u64; 3] = [64 << 10, 1 << 20, 4 << 20];

/// Latencies and allowance of one site.
pub(super) struct Hedge {
    limits: HedgeLimits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Per size class, the newest latencies in a ring.
    recent: [Window; SIZES.len() + 1],
    /// In hundredths of a request.
    allowance: u32,
}

#[derive(Default)]
struct Window {
    taken: Vec<Duration>,
    next: usize,
}

impl Hedge {
    /// With these limits.
    pub(super) fn new(limits: HedgeLimits) -> Hedge {
        // The first request may be the slow one.
        let state = State { allowance: if limits.share_percent > 0 { 100 } else { 0 }, ..State::default() };
        Hedge { limits, state: Mutex::new(state) }
    }

    /// A request for `len` bytes goes out: how long to wait before a second one; `None` for never.
    pub(super) fn begin(&self, len: u64) -> Option<Duration> {
        if !self.limits.enabled {
            return None;
        }
        let mut state = self.lock();
        state.allowance = (state.allowance + self.limits.share_percent).min(MAX_ALLOWANCE);
        let slow = state.recent[class(len)].percentile_95().map_or(self.limits.ceiling, |p| p * 2);
        Some(slow.clamp(self.limits.floor, self.limits.ceiling))
    }

    /// The delay is over: whether the allowance pays for a second request. Takes it if so.
    pub(super) fn spend(&self) -> bool {
        let mut state = self.lock();
        let pays = state.allowance >= 100;
        if pays {
            state.allowance -= 100;
        }
        pays
    }

    /// A request for `len` bytes, with its second one if there was one, took this long to succeed.
    pub(super) fn took(&self, len: u64, time: Duration) {
        self.lock().recent[class(len)].push(time);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn class(len: u64) -> usize {
    SIZES.iter().position(|&size| len <= size).unwrap_or(SIZES.len())
}

impl Window {
    fn push(&mut self, time: Duration) {
        match self.taken.len() < WINDOW {
            true => self.taken.push(time),
            false => self.taken[self.next] = time,
        }
        self.next = (self.next + 1) % WINDOW;
    }

    fn percentile_95(&self) -> Option<Duration> {
        if self.taken.len() < ENOUGH {
            return None;
        }
        let mut sorted = self.taken.clone();
        let at = (sorted.len() * 95).div_ceil(100) - 1;
        Some(*sorted.select_nth_unstable(at).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn hedge(share_percent: u32) -> Hedge {
        Hedge::new(HedgeLimits { enabled: true, floor: MS(10), ceiling: MS(1000), share_percent })
    }

    #[test]
    fn the_delay_follows_what_requests_of_that_size_take() {
        let hedge = hedge(5);
        assert_eq!(hedge.begin(100), Some(MS(1000)), "nothing known yet");
        (1..=100).for_each(|i| hedge.took(100, MS(i)));
        assert_eq!(hedge.begin(100), Some(MS(190)));
        assert_eq!(hedge.begin(8 << 20), Some(MS(1000)), "another size");
        (0..WINDOW).for_each(|_| hedge.took(100, MS(1)));
        assert_eq!(hedge.begin(100), Some(MS(10)), "floor, and old ones forgotten");
        (0..WINDOW).for_each(|_| hedge.took(100, MS(5000)));
        assert_eq!(hedge.begin(100), Some(MS(1000)), "ceiling");
    }

    #[test]
    fn second_requests_stay_a_small_share() {
        let hedge = hedge(5);
        let mut sent = 0;
        for _ in 0..1000 {
            hedge.begin(1);
            sent += usize::from(hedge.spend());
        }
        assert_eq!(sent, 51);
        for _ in 0..100_000 {
            hedge.begin(1);
        }
        assert_eq!((0..100).filter(|_| hedge.spend()).count(), 8, "what is saved up is capped");
    }

    #[test]
    fn it_can_be_switched_off() {
        let off = Hedge::new(HedgeLimits { enabled: false, floor: MS(1), ceiling: MS(1), share_percent: 5 });
        assert_eq!(off.begin(1), None);
        let none = hedge(0);
        none.begin(1);
        assert!(!none.spend());
    }
}
