//! What whoever follows a domain asks of the run that does it: to leave the disks alone for a while, or to come to an end
//! at a point.
//!
//! A wish replaces the one before; completion is the last one. Pure but for the waiting.

use std::sync::Arc;

use tokio::sync::watch;

use crate::ids::SegmentNo;

/// At which point following is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Completion {
    /// The newest one that has landed: nothing is fetched any more.
    #[default]
    Landed,
    /// The point of this number. What of it has not landed is fetched; where the disks are past it, they go back.
    Point(SegmentNo),
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Wish {
    #[default]
    Follow,
    Hold,
    Complete(Completion),
}

/// See the module. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Steer(Arc<watch::Sender<Wish>>);

impl Default for Steer {
    fn default() -> Steer {
        Steer(Arc::new(watch::Sender::new(Wish::Follow)))
    }
}

impl Steer {
    /// Whether the disks are to be left as they are; what lands waits in the log. No more once completion is asked for.
    pub(super) fn hold(&self, hold: bool) {
        self.ask(if hold { Wish::Hold } else { Wish::Follow });
    }

    /// Asks to end at a point. Nothing is asked after that.
    pub(super) fn complete(&self, at: Completion) {
        self.ask(Wish::Complete(at));
    }

    fn ask(&self, wish: Wish) {
        self.0.send_if_modified(|now| {
            let changes = !matches!(now, Wish::Complete(_)) && *now != wish;
            if changes {
                *now = wish;
            }
            changes
        });
    }

    /// What is asked from now on, for who acts on it.
    pub(super) fn wishes(&self) -> Wishes {
        Wishes(self.0.subscribe())
    }

    /// Whether the disks are to be left as they are.
    pub(super) fn is_held(&self) -> bool {
        *self.0.borrow() == Wish::Hold
    }

    /// Where to end, if that was asked.
    pub(super) fn completion(&self) -> Option<Completion> {
        match *self.0.borrow() {
            Wish::Complete(at) => Some(at),
            Wish::Follow | Wish::Hold => None,
        }
    }

    /// Waits until the end is asked for.
    pub(super) async fn completing(&self) {
        let _ = self.0.subscribe().wait_for(|wish| matches!(wish, Wish::Complete(_))).await;
    }
}

/// See [`Steer::wishes`]. No wish is missed between a look and the waiting after it.
pub(super) struct Wishes(watch::Receiver<Wish>);

impl Wishes {
    /// What is asked now: where to end, and whether the disks are to be left as they are.
    pub(super) fn look(&mut self) -> (Option<Completion>, bool) {
        match *self.0.borrow_and_update() {
            Wish::Follow => (None, false),
            Wish::Hold => (None, true),
            Wish::Complete(at) => (Some(at), false),
        }
    }

    /// Waits until something else is asked than at the last look.
    pub(super) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody is left to ask for anything.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_wish_counts_and_completion_is_the_last() {
        let steer = Steer::default();
        assert!(!steer.is_held() && steer.completion().is_none());
        steer.hold(true);
        assert!(steer.is_held());
        steer.hold(false);
        assert!(!steer.is_held());
        // Asked between a look and the waiting, it is not missed.
        let mut wishes = steer.wishes();
        assert_eq!(wishes.look(), (None, false));
        steer.hold(true);
        wishes.changed().await;
        assert_eq!(wishes.look(), (None, true));
        let (waits, its) = (steer.clone(), steer.clone());
        let waiting = tokio::spawn(async move { waits.completing().await });
        steer.hold(true);
        its.complete(Completion::Point(SegmentNo::new(3)));
        waiting.await.unwrap();
        its.complete(Completion::Landed);
        its.hold(true);
        assert_eq!(steer.completion(), Some(Completion::Point(SegmentNo::new(3))));
        assert!(!steer.is_held());
    }
}
