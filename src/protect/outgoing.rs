//! What is on its way into the chain, told also while a protection ends.
//!
//! Invariants: what it tells to be done never falls; it keeps nothing open and delays nothing.

use std::sync::{Arc, Weak};

use tokio::sync::watch;

use super::backlog::Backlog;
use super::shipper::Shipped;
use crate::progress::Progress;

/// See the module. Made by [`super::Protection::outgoing`], and counts from then on.
pub(crate) struct Outgoing {
    backlog: Weak<Backlog>,
    shipped: watch::Receiver<Shipped>,
    /// Bytes of segments that were accepted before.
    from: u64,
    /// What was told last.
    total: u64,
    done: u64,
}

impl Outgoing {
    pub(super) fn new(backlog: &Arc<Backlog>, shipped: watch::Receiver<Shipped>) -> Outgoing {
        let from = shipped.borrow().stored;
        Outgoing { backlog: Arc::downgrade(backlog), shipped, from, total: 0, done: 0 }
    }

    /// Tells how far it is: bytes of segments. What is cut meanwhile makes the whole grow.
    pub(crate) fn tell(&mut self, progress: &Progress) {
        // Read first: what is accepted in between is then not counted twice.
        let waiting = self.backlog.upgrade().map_or(0, |backlog| backlog.waiting().bytes);
        let done = self.shipped.borrow().stored.saturating_sub(self.from).max(self.done);
        let total = (done + waiting).max(self.total);
        progress.add_total(total - self.total);
        progress.add_done(done - self.done);
        (self.total, self.done) = (total, done);
    }
}
