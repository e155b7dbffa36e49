//! How soon to look again for a next segment where there was none: often while guests write, seldom while they rest.
//!
//! A look costs two requests, and storage sites charge for them. Owns when guests were last seen to write; shared by its
//! clones. Pure but for the clock and the waiting.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cancel::Cancel;

use super::steer::Steer;

/// Least time between two looks.
const LEAST: Duration = Duration::from_millis(500);
/// Most time between two looks.
const MOST: Duration = Duration::from_secs(4);
/// A pause is this part of the time since guests were last seen to write, so that what comes late was waited for anyway.
const PART: u32 = 8;

/// See the module.
#[derive(Clone)]
pub(super) struct Pace {
    wrote: Arc<Mutex<Instant>>,
    steer: Steer,
    cancel: Cancel,
}

impl Pace {
    /// A pace that begins quick. It ends a pause when following is to complete or stop.
    pub(super) fn new(steer: Steer, cancel: Cancel) -> Pace {
        Pace { wrote: Arc::new(Mutex::new(Instant::now())), steer, cancel }
    }

    /// A segment came in which guests had written.
    pub(super) fn wrote(&self) {
        *self.wrote.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until the next look.
    pub(super) async fn wait(&self) {
        let awaited = self.steer.completion().is_some();
        tokio::select! {
            () = tokio::time::sleep(self.pause()) => {}
            () = self.steer.completing(), if !awaited => {}
            () = self.cancel.cancelled() => {}
        }
    }

    fn pause(&self) -> Duration {
        match self.steer.completion() {
            // Somebody waits for the disks.
            Some(_) => LEAST,
            None => pause_after(self.wrote.lock().unwrap_or_else(PoisonError::into_inner).elapsed()),
        }
    }
}

/// The pause where guests were quiet for this long.
fn pause_after(quiet: Duration) -> Duration {
    (quiet / PART).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::super::steer::Completion;
    use super::*;

    #[test]
    fn pauses_grow_with_the_quiet_and_have_bounds() {
        let after = |seconds| pause_after(Duration::from_secs(seconds));
        assert_eq!((after(0), after(4)), (LEAST, LEAST));
        assert_eq!(after(16), Duration::from_secs(2));
        assert_eq!((after(32), after(u64::MAX / 2)), (MOST, MOST));
    }

    #[tokio::test]
    async fn completing_ends_a_pause_and_keeps_the_next_ones_short() {
        let steer = Steer::default();
        let pace = Pace::new(steer.clone(), Cancel::new());
        *pace.wrote.lock().unwrap() = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        assert_eq!(pace.pause(), MOST);
        let mut waiting = std::pin::pin!(pace.wait());
        assert!(futures::poll!(&mut waiting).is_pending());
        steer.complete(Completion::Landed);
        assert!(futures::poll!(&mut waiting).is_ready());
        assert_eq!(pace.pause(), LEAST);
    }

    #[test]
    fn what_guests_write_makes_it_quick_again() {
        let pace = Pace::new(Steer::default(), Cancel::new());
        *pace.wrote.lock().unwrap() = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
        pace.clone().wrote();
        assert_eq!(pace.pause(), LEAST);
    }
}
