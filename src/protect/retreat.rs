//! What a claim that failed means for a protection: ask again, serve on unprotected, or end.
//!
//! Decides only; pure. Invariant: where guests already have their disks, nothing that the storage site or a full or
//! broken log store says takes them away again.

use std::time::Duration;

use crate::error::ErrorKind;

/// First wait before the storage site is asked again for the domain, doubled up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(16);

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retreat {
    /// Ask again after a pause.
    Wait,
    /// Serve on; writes are marked only, and the status says why.
    Serve,
    /// End with the error.
    End,
}

/// What is known when a claim fails.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failed {
    /// Kind of the error.
    pub(super) kind: ErrorKind,
    /// The domain was claimed; what failed came after that.
    pub(super) claimed: bool,
    /// Guests have their disks.
    pub(super) serving: bool,
    /// The domain was protected here before.
    pub(super) before: bool,
}

/// Decides. Total.
pub(super) fn decide(failed: Failed) -> Retreat {
    use ErrorKind::{Denied, Fenced, Full, Io, NotFound, Refused, Unreachable};
    match failed {
        Failed { kind: Unreachable, before: true, .. } => Retreat::Wait,
        Failed { kind: Unreachable | Denied, serving: true, .. } => Retreat::Wait,
        // Before the claim all that is asked is the storage site; after it, what is local does not get better by itself.
        Failed { kind: NotFound | Full | Io, serving: true, claimed: false, .. } => Retreat::Wait,
        Failed { kind: Full | Io | Fenced, serving: true, claimed: true, .. } => Retreat::Serve,
        Failed { kind: Refused | Fenced, serving: true, claimed: false, .. } => Retreat::Serve,
        _ => Retreat::End,
    }
}

/// The pause after so many waits.
pub(super) fn pause(waits: u32) -> Duration {
    (MIN_PAUSE * (1 << waits.min(10))).min(MAX_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_that_have_their_disks_keep_them_and_nobody_waits_for_what_stays_wrong() {
        use ErrorKind::{Damaged, Denied, Fenced, Full, Invalid, Io, NotFound, Refused, Unreachable};
        let decide = |kind, claimed, serving, before| decide(Failed { kind, claimed, serving, before });
        for (kind, before_claim, after_claim) in [
            (Unreachable, Retreat::Wait, Retreat::Wait),
            (Denied, Retreat::Wait, Retreat::Wait),
            (NotFound, Retreat::Wait, Retreat::End),
            (Full, Retreat::Wait, Retreat::Serve),
            (Io, Retreat::Wait, Retreat::Serve),
            (Fenced, Retreat::Serve, Retreat::Serve),
            // After the claim: the disks are not those of the domain, and what is marked would speak of others.
            (Refused, Retreat::Serve, Retreat::End),
            (Invalid, Retreat::End, Retreat::End),
            (Damaged, Retreat::End, Retreat::End),
        ] {
            assert_eq!(decide(kind, false, true, true), before_claim, "{kind:?}");
            assert_eq!(decide(kind, true, true, true), after_claim, "{kind:?}");
            // Nobody has a disk: only a store that is away is waited for, and only by who was here before.
            let waits = if kind == Unreachable { Retreat::Wait } else { Retreat::End };
            assert_eq!(decide(kind, false, false, true), waits, "{kind:?}");
            assert_eq!(decide(kind, false, false, false), Retreat::End, "{kind:?}");
        }
        assert_eq!((pause(0), pause(2), pause(60)), (MIN_PAUSE, MIN_PAUSE * 4, MAX_PAUSE));
    }
}
