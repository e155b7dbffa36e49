//! The range lock: overlapping holders never coexist, whatever the interleaving, and nobody is overtaken.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proptest::prelude::*;

use super::super::{RangeGuard, RangeLock};

/// What never takes long is given up after this, so that a broken lock fails and does not hang.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn threads_never_hold_a_byte_together() {
    const BYTES: u64 = 64;
    let lock = RangeLock::new();
    let holders: Arc<Vec<AtomicU32>> = Arc::new((0..BYTES).map(|_| AtomicU32::new(0)).collect());
    let tasks = (0..16_u64).map(|seed| {
        let (lock, holders) = (lock.clone(), Arc::clone(&holders));
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            for _ in 0..500 {
                let start = random.u64(0..BYTES);
                let range = start..random.u64(start + 1..=BYTES.min(start + 8));
                let guard = tokio::time::timeout(LONG, lock.lock(range.clone())).await.expect("nobody woke it up");
                let mine = || range.clone().map(|at| &holders[at as usize]);
                assert!(mine().all(|n| n.fetch_add(1, SeqCst) == 0), "{:?} held twice", guard.range());
                tokio::task::yield_now().await;
                mine().for_each(|n| assert_eq!(n.fetch_sub(1, SeqCst), 1));
                drop(guard);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert!(lock.try_lock(0..BYTES).is_some(), "something stayed locked");
}

type Locking = Pin<Box<dyn Future<Output = RangeGuard>>>;

enum State {
    Waits(Locking),
    Holds(#[allow(dead_code, reason = "held")] RangeGuard),
    Gone,
}

fn look(state: &mut State) {
    if let State::Waits(future) = state
        && let Poll::Ready(guard) = future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    {
        *state = State::Holds(guard);
    }
}

proptest! {
    /// Granted is exactly who has nobody left before him that he overlaps: so overlapping ones go first come, first
    /// served, disjoint ones never wait, and whoever gives up is in nobody's way.
    #[test]
    fn who_is_granted_is_told_by_who_came_before(
        ops in prop::collection::vec((0..3_u8, 0..40_u64, 0..12_u64, any::<prop::sample::Index>()), 1..80),
    ) {
        let lock = RangeLock::new();
        let mut all: Vec<(std::ops::Range<u64>, State)> = Vec::new();
        for (op, start, len, which) in ops {
            match op {
                0 | 1 => {
                    let (lock, range) = (lock.clone(), start..start + len);
                    let its = range.clone();
                    all.push((range, State::Waits(Box::pin(async move { lock.lock(its).await }))));
                }
                _ if !all.is_empty() => {
                    let at = which.index(all.len());
                    all[at].1 = State::Gone;
                }
                _ => {}
            }
            all.iter_mut().for_each(|(_, state)| look(state));
            for (n, (range, state)) in all.iter().enumerate() {
                let left = |s: &State| !matches!(s, State::Gone);
                let common = |other: &std::ops::Range<u64>| range.clone().any(|at| other.contains(&at));
                let free = !all[..n].iter().any(|(other, s)| left(s) && common(other));
                prop_assert_eq!(matches!(state, State::Holds(_)), left(state) && free, "request {} of {:?}", n, range);
            }
        }
    }
}
