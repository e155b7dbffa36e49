//! How far one reader, or the writer itself, may believe segments: the pure half of the acceptance rule that depends on
//! the order of reads.
//!
//! ```text
//! whole prefix up to n exists --seen--> Seen --(a read of the next owner record begins now)--> none --accept--> n counts
//!                                                                                          '-> one  --record--> look again
//! ```
//!
//! A claim lands before its author looks for the tip that it inherits. So a segment that existed before a read found no
//! further claim exists when the next claim's author looks, and is inherited. No I/O: the callers read, in the order that
//! [`Seen`] forces on them. What was accepted stays so until a settled base cuts it off.

use crate::format::OwnerRecord;
use crate::ids::{SegmentNo, SegmentRef};

use super::ownership::{Acceptance, Effect, Ownership};

/// That a whole prefix exists, seen before the next owner record was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[must_use = "nothing is accepted before the next owner record is known not to exist"]
pub struct Seen {
    up_to: SegmentRef,
    records: u64,
}

/// An ownership log as far as it was read, and the segments beyond its bases that were accepted under it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Horizon {
    ownership: Ownership,
    accepted: SegmentRef,
}

impl Horizon {
    /// Nothing accepted yet beyond the settled bases of `ownership`.
    pub fn new(ownership: Ownership) -> Horizon {
        Horizon { ownership, accepted: SegmentRef::default() }
    }

    /// What the records read so far say.
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Notes that every segment from the last settled base to `up_to` exists. `None` where that cannot make `up_to`
    /// count: its generation is not the newest claim, or it is not beyond the bases.
    pub fn seen(&self, up_to: SegmentRef) -> Option<Seen> {
        let open = self.ownership.acceptance(up_to) == Acceptance::Open;
        open.then_some(Seen { up_to, records: self.ownership.records() })
    }

    /// A read of the next owner record, begun after `seen` was made, found none. Answers whether the prefix counts now;
    /// not so where a record was folded since.
    pub fn accept(&mut self, seen: &Seen) -> bool {
        if seen.records != self.ownership.records() {
            return false;
        }
        if seen.up_to.generation != self.accepted.generation || seen.up_to.segment > self.accepted.segment {
            self.accepted = seen.up_to;
        }
        true
    }

    /// An earlier run accepted `at`, by this rule: it counts on until a settled base cuts it off. So a claim whose author
    /// died before it settled one takes nothing back from who was there before.
    pub fn remember(&mut self, at: SegmentRef) {
        let stands = matches!(self.ownership.acceptance(at), Acceptance::Open | Acceptance::Sealed { .. });
        if stands && at.segment > self.tip().segment {
            self.accepted = at;
        }
    }

    /// The next owner record exists.
    pub fn record(&mut self, record: &OwnerRecord) -> Effect {
        self.ownership.apply(record)
    }

    /// Newest segment that counts; zero for none.
    pub fn tip(&self) -> SegmentRef {
        let settled = self.ownership.settled_tip();
        match self.ownership.acceptance(self.accepted) {
            Acceptance::Open | Acceptance::Sealed { .. } => self.accepted,
            Acceptance::Settled | Acceptance::Never | Acceptance::Unknown => settled,
        }
    }

    /// Which generation's object is segment `n`; `None` for zero and beyond the tip.
    pub fn locate(&self, n: SegmentNo) -> Option<SegmentRef> {
        let tip = self.tip();
        match n > self.ownership.settled_tip().segment {
            true if n <= tip.segment => Some(SegmentRef::new(tip.generation, n)),
            true => None,
            false => self.ownership.locate(n),
        }
    }

    /// Whether the object of this generation and number counts.
    pub fn accepts(&self, at: SegmentRef) -> bool {
        self.locate(at.segment) == Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ownership::tests::{Log, at};
    use super::*;

    #[test]
    fn a_segment_counts_only_after_a_later_read_found_no_record() {
        let log = Log::new().claim("P", 1).base(1, at(0, 0));
        let mut horizon = Horizon::new(log.fold());
        assert_eq!((horizon.tip(), horizon.locate(SegmentNo::new(1))), (at(0, 0), None));
        let seen = horizon.seen(at(1, 2)).unwrap();
        assert!(!horizon.accepts(at(1, 2)), "not by having seen it");
        assert!(horizon.accept(&seen));
        assert_eq!((horizon.tip(), horizon.locate(SegmentNo::new(1))), (at(1, 2), Some(at(1, 1))));
        assert!(horizon.accepts(at(1, 2)) && !horizon.accepts(at(1, 3)) && !horizon.accepts(at(2, 2)));
    }

    #[test]
    fn what_was_seen_before_a_record_is_not_accepted_after_it() {
        let log = Log::new().claim("P", 1).base(1, at(0, 0));
        let mut horizon = Horizon::new(log.fold());
        let seen = horizon.seen(at(1, 2)).unwrap();
        let log = log.claim("P", 2);
        assert_eq!(horizon.record(log.last()), Effect::Applied);
        assert!(!horizon.accept(&seen));
        assert_eq!(horizon.tip(), at(0, 0));
        assert_eq!(horizon.seen(at(1, 2)), None, "a claim seals the generation before its base is settled");
    }

    #[test]
    fn what_was_accepted_stays_through_a_claim_and_goes_only_with_a_lower_base() {
        let log = Log::new().claim("P", 1).base(1, at(0, 0));
        let mut horizon = Horizon::new(log.fold());
        let seen = horizon.seen(at(1, 5)).unwrap();
        assert!(horizon.accept(&seen));
        let log = log.take_over("R", 2);
        horizon.record(log.last());
        assert_eq!(horizon.tip(), at(1, 5));
        let (mut inherited, mut cut) = (horizon.clone(), horizon);
        inherited.record(log.clone().base(2, at(1, 6)).last());
        assert_eq!(inherited.tip(), at(1, 6));
        cut.record(log.base(2, at(1, 3)).last());
        assert_eq!((cut.tip(), cut.locate(SegmentNo::new(4))), (at(1, 3), None));
        assert_eq!(cut.locate(SegmentNo::new(3)), Some(at(1, 3)));
    }

    #[test]
    fn what_an_earlier_run_accepted_counts_until_a_base_cuts_it_off() {
        let sealed = Log::new().claim("P", 1).base(1, at(0, 0)).take_over("R", 2);
        let mut horizon = Horizon::new(sealed.fold());
        assert_eq!(horizon.tip(), at(0, 0));
        horizon.remember(at(1, 5));
        horizon.remember(at(1, 2));
        assert_eq!((horizon.tip(), horizon.locate(SegmentNo::new(4))), (at(1, 5), Some(at(1, 4))));
        horizon.record(sealed.clone().base(2, at(1, 3)).last());
        assert_eq!(horizon.tip(), at(1, 3));
        horizon.remember(at(1, 5));
        assert_eq!(horizon.tip(), at(1, 3), "cut off for ever");
        horizon.remember(at(7, 9));
        assert_eq!(horizon.tip(), at(1, 3), "of no generation that there is");
    }

    #[test]
    fn accepting_less_than_before_takes_nothing_back() {
        let log = Log::new().claim("P", 1).base(1, at(0, 0));
        let mut horizon = Horizon::new(log.fold());
        let (late, early) = (horizon.seen(at(1, 5)).unwrap(), horizon.seen(at(1, 2)).unwrap());
        assert!(horizon.accept(&late) && horizon.accept(&early));
        assert_eq!(horizon.tip(), at(1, 5));
    }
}
