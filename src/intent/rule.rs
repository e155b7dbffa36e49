//! The clauses of the rule that the module's head gives, each by name, so that a test can take one out and see that it is
//! noticed. Outside tests all of them hold, and nothing can take one out.

/// One clause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only tests name the clauses that they take out"))]
pub(super) enum Clause {
    /// A write is let through only when its regions are marked in the file.
    MarkedFirst,
    /// A bit that is cleared is no longer marked, though the file still has it.
    ClearedIsUnmarked,
    /// The end of a commit marks only what is still set.
    MarkWhatIsSet,
    /// What was captured last is accepted.
    Accepted,
    /// No write is in flight.
    NothingInFlight,
    /// The region is not unsynced.
    NotUnsynced,
    /// The disk was synced after the candidates were chosen.
    SyncedAfter,
    /// Candidates are looked at again after the sync.
    LookedAtAgain,
    /// A write that failed makes its region unsynced.
    FailedStaysSet,
    /// A write that was not captured makes its region unsynced.
    UncapturedStaysSet,
    /// Nothing is cleared after a failed sync.
    SyncFailedEndsClearing,
}

/// The rule: whole, or in tests without one of its clauses.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rule {
    #[cfg(test)]
    without: Option<Clause>,
}

impl Rule {
    /// The rule without `clause`.
    #[cfg(test)]
    pub(super) fn without(clause: Clause) -> Rule {
        Rule { without: Some(clause) }
    }

    /// `holds`, which `clause` demands; true where a test has taken the clause out.
    pub(super) fn demands(&self, clause: Clause, holds: bool) -> bool {
        holds || self.lacks(clause)
    }

    /// Whether a test has taken `clause` out.
    #[cfg(test)]
    pub(super) fn lacks(&self, clause: Clause) -> bool {
        self.without == Some(clause)
    }

    /// No clause is ever out.
    #[cfg(not(test))]
    pub(super) fn lacks(&self, _clause: Clause) -> bool {
        false
    }
}
