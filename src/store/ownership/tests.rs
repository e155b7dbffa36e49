//! Each rule of the fold, and the invariants over random logs.

use proptest::prelude::*;

use super::*;
use crate::format::ProcessIdentity;
use crate::ids::WriterId;

pub(crate) fn at(generation: u64, segment: u64) -> SegmentRef {
    SegmentRef::new(Generation::new(generation), SegmentNo::new(segment))
}

/// A log under construction; the writer of generation g is called g.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    pub(crate) records: Vec<OwnerRecord>,
}

impl Log {
    pub(crate) fn new() -> Log {
        Log::default()
    }

    pub(crate) fn push(mut self, site: &str, writer: u64, kind: OwnerKind) -> Log {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&writer.to_le_bytes());
        let author = Author {
            site: Name::new(site).unwrap(),
            writer: WriterId::from_bytes(id),
            process: ProcessIdentity::default(),
        };
        let n = self.records.len() as u64 + 1;
        let domain = DomainId::from_bytes([1; 16]);
        self.records.push(OwnerRecord { n, domain, at: Time::from_millis(n), author, nonce: [0; 16], kind });
        self
    }

    pub(crate) fn claim(self, site: &str, generation: u64) -> Log {
        self.push(site, generation, OwnerKind::Claim { generation: Generation::new(generation), take_over: false })
    }

    pub(crate) fn take_over(self, site: &str, generation: u64) -> Log {
        self.push(site, generation, OwnerKind::Claim { generation: Generation::new(generation), take_over: true })
    }

    pub(crate) fn base(self, generation: u64, last: SegmentRef) -> Log {
        let kind = OwnerKind::Base { generation: Generation::new(generation), last, digest: Digest::default() };
        self.push("any", generation, kind)
    }

    fn release(self, generation: u64) -> Log {
        self.push("P", generation, OwnerKind::Release { generation: Generation::new(generation), last: at(1, 1) })
    }

    fn resume(self, site: &str, generation: u64) -> Log {
        self.push(site, 99, OwnerKind::Resume { generation: Generation::new(generation) })
    }

    fn request(self, site: &str, generation: u64) -> Log {
        self.push(site, 99, OwnerKind::Request { generation: Generation::new(generation) })
    }

    fn floor(self, writer: u64, segment: u64) -> Log {
        self.push("P", writer, OwnerKind::Floor { segment: SegmentNo::new(segment) })
    }

    pub(crate) fn last(&self) -> &OwnerRecord {
        self.records.last().unwrap()
    }

    pub(crate) fn fold(&self) -> Ownership {
        Ownership::fold(&self.records)
    }

    /// Why the last record is void; `None` where it takes effect. All before it must take effect.
    fn void(&self) -> Option<Void> {
        let before = Ownership::fold(&self.records[..self.records.len() - 1]);
        assert_eq!(before.voids(), [], "a step before the last");
        match before.would(self.last()) {
            Effect::Applied => None,
            Effect::Void(why) => Some(why),
        }
    }
}

/// Generation 1 of site P, from nothing; its segments 1.. are open.
fn one() -> Log {
    Log::new().claim("P", 1).base(1, at(0, 0))
}

/// Generation 2 of the same site inherits up to 10.
fn two() -> Log {
    one().claim("P", 2).base(2, at(1, 10))
}

fn acceptances(log: &Log, refs: &[SegmentRef]) -> Vec<Acceptance> {
    refs.iter().map(|r| log.fold().acceptance(*r)).collect()
}

#[test]
fn segments_count_after_their_base_and_up_to_the_next() {
    use Acceptance::*;
    let refs = [at(1, 1), at(1, 10), at(1, 11), at(2, 10), at(2, 11), at(2, 500), at(3, 11)];
    assert_eq!(acceptances(&two(), &refs), [Settled, Settled, Never, Never, Open, Open, Unknown]);
    let ownership = two().fold();
    assert_eq!(ownership.locate(SegmentNo::new(10)), Some(at(1, 10)));
    assert_eq!(ownership.locate(SegmentNo::new(11)), None);
    assert_eq!(ownership.locate(SegmentNo::ZERO), None);
    assert_eq!(ownership.settled_tip(), at(1, 10));
}

#[test]
fn a_claim_seals_before_its_base_is_settled() {
    let log = two().claim("P", 3);
    let by = Generation::new(3);
    let refs = [at(1, 10), at(2, 11), at(3, 11)];
    let expected = [Acceptance::Settled, Acceptance::Sealed { by }, Acceptance::Unknown];
    assert_eq!(acceptances(&log, &refs), expected);
    assert_eq!(log.fold().unsettled().unwrap().generation, by);
}

#[test]
fn a_claim_that_died_before_its_base_inherits_nothing_and_the_next_settles_from_the_last_with_one() {
    let log = two().claim("P", 3).claim("P", 4);
    assert_eq!(log.fold().newest_with_base().unwrap().generation, Generation::new(2));
    let log = log.base(4, at(2, 15));
    let refs = [at(2, 15), at(2, 16), at(3, 16), at(4, 16)];
    use Acceptance::*;
    assert_eq!(acceptances(&log, &refs), [Settled, Never, Unknown, Open]);
    assert_eq!(two().claim("P", 3).claim("P", 4).base(3, at(2, 15)).void(), Some(Void::NotTheNewest));
}

#[test]
fn a_forced_base_cuts_every_generation_before_it() {
    let log = two().take_over("R", 3).base(3, at(1, 5));
    let refs = [at(1, 5), at(1, 6), at(2, 11), at(3, 6)];
    use Acceptance::*;
    assert_eq!(acceptances(&log, &refs), [Settled, Never, Never, Open]);
    let ownership = log.fold();
    assert_eq!(ownership.locate(SegmentNo::new(6)), None);
    assert_eq!(ownership.common(at(2, 12)), Some(at(1, 5)));
    assert_eq!(ownership.common(at(1, 8)), Some(at(1, 5)));
    assert_eq!(ownership.common(at(1, 4)), Some(at(1, 4)));
    assert_eq!(ownership.common(at(3, 9)), Some(at(3, 9)));
    assert_eq!(ownership.common(at(2, 8)), None, "generation 2 never had a segment 8");
    assert_eq!(ownership.common(at(0, 0)), Some(at(0, 0)));
}

#[test]
fn a_base_names_a_segment_of_the_chain() {
    for off in [at(2, 10), at(1, 0), at(0, 3), at(3, 11), at(9, 1)] {
        assert_eq!(two().claim("P", 3).base(3, off).void(), Some(Void::BaseOffTheChain), "{off}");
    }
    let cut_off = two().take_over("R", 3).base(3, at(1, 5)).claim("R", 4);
    assert_eq!(cut_off.clone().base(4, at(1, 6)).void(), Some(Void::BaseOffTheChain));
    assert_eq!(cut_off.base(4, at(3, 6)).void(), None);
    assert_eq!(two().claim("P", 3).base(3, at(0, 0)).void(), None, "nothing is inherited");
}

#[test]
fn only_the_newest_claims_writer_settles_its_base_and_once() {
    let kind = OwnerKind::Base { generation: Generation::new(3), last: at(2, 11), digest: Digest::default() };
    assert_eq!(two().claim("P", 3).push("P", 2, kind).void(), Some(Void::NotItsWriter));
    assert_eq!(two().base(1, at(1, 3)).void(), Some(Void::NotTheNewest));
    assert_eq!(two().base(2, at(1, 3)).void(), Some(Void::BaseSettledBefore));
    assert_eq!(Log::new().base(1, at(0, 0)).void(), Some(Void::NothingClaimed));
}

#[test]
fn only_the_owning_site_claims_unless_released_or_forced() {
    assert_eq!(one().claim("P", 2).void(), None);
    assert_eq!(one().claim("R", 2).void(), Some(Void::OwnedByAnotherSite));
    assert_eq!(one().take_over("R", 2).void(), None);
    assert_eq!(one().release(1).claim("P", 2).void(), Some(Void::Released));
    assert_eq!(one().release(1).claim("R", 2).void(), None);
    assert_eq!(one().release(1).resume("P", 1).claim("P", 2).void(), None);
    assert_eq!(one().release(1).resume("P", 1).claim("R", 2).void(), Some(Void::OwnedByAnotherSite));
    for generation in [0, 1, 3] {
        let log = one().claim("P", generation);
        assert_eq!(log.void(), Some(Void::NotTheNextGeneration), "{generation}");
    }
    assert_eq!(Log::new().claim("P", 2).void(), Some(Void::NotTheNextGeneration));
}

#[test]
fn hand_over_is_asked_for_by_others_and_given_by_the_writer() {
    assert_eq!(one().request("P", 1).void(), Some(Void::OwnedAlready));
    assert_eq!(two().request("R", 1).void(), Some(Void::NotTheNewest));
    let asked = one().request("R", 1);
    assert_eq!(asked.fold().request().unwrap().0.as_str(), "R");
    assert_eq!(asked.release(1).claim("R", 2).fold().request(), None);
    let release = OwnerKind::Release { generation: Generation::new(1), last: at(1, 1) };
    assert_eq!(one().push("R", 5, release).void(), Some(Void::NotItsWriter));
    assert_eq!(Log::new().claim("P", 1).release(1).void(), Some(Void::BaseNotSettled));
    assert_eq!(one().resume("P", 1).void(), Some(Void::NotReleased));
    assert_eq!(one().release(1).resume("R", 1).void(), Some(Void::OwnedByAnotherSite));
    assert_eq!(one().release(1).claim("R", 2).resume("P", 1).void(), Some(Void::NotTheNewest));
}

#[test]
fn the_owner_turns_a_request_down_and_who_asks_takes_it_back() {
    let by = |log: &Log, n: usize| Asked { site: log.records[n].author.site.clone(), at: log.records[n].at };
    let asked = one().request("R", 1);
    assert_eq!(one().fold().hand_over(), HandOver::None);
    assert_eq!(asked.fold().hand_over(), HandOver::Asked(by(&asked, 2)));
    let down = asked.clone().resume("P", 1);
    assert_eq!(down.void(), None);
    assert_eq!(down.fold().hand_over(), HandOver::TurnedDown(by(&down, 2), down.last().at));
    assert_eq!(down.fold().request(), None);
    assert_eq!(down.clone().resume("P", 1).void(), Some(Void::NotReleased), "once");
    let again = down.clone().request("R", 1);
    assert_eq!(again.fold().hand_over(), HandOver::Asked(by(&again, 4)));
    assert_eq!(down.clone().claim("P", 2).fold().hand_over(), HandOver::None);
    // Its answer outlives a new start of the owner, and not a new owner, nor a new question.
    let refusal = Some((by(&down, 2), down.last().at));
    let anew = down.clone().claim("P", 2).base(2, at(0, 0));
    assert_eq!((down.fold().refusal(), anew.fold().refusal()), (refusal.clone(), refusal));
    assert_eq!(anew.clone().take_over("R", 3).fold().refusal(), None);
    assert_eq!((anew.request("R", 2).fold().refusal(), again.fold().refusal()), (None, None));
    // A third site has nothing to take back; who asks has, and that neither gives nor takes the domain.
    assert_eq!(asked.clone().resume("X", 1).void(), Some(Void::OwnedByAnotherSite));
    assert_eq!(asked.clone().resume("R", 1).fold().hand_over(), HandOver::None);
    let released = asked.clone().release(1);
    assert_eq!(released.fold().hand_over(), HandOver::Released(released.last().at, Some(by(&released, 2))));
    let unasked = released.clone().resume("R", 1);
    let unwanted = |log: &Log| log.fold().unwanted().map(|(site, at)| (site.to_string(), at));
    assert_eq!(unwanted(&unasked), Some(("R".to_owned(), unasked.last().at)));
    let earlier = asked.clone().resume("R", 1).claim("P", 2).base(2, at(0, 0)).release(2);
    assert_eq!(unwanted(&earlier), Some(("R".to_owned(), Time::from_millis(4))), "the owner's claims change nothing");
    assert_eq!((unwanted(&released), unwanted(&earlier.clone().request("R", 2))), (None, None));
    assert_eq!(unwanted(&earlier.claim("R", 3)), None);
    assert_eq!(unasked.fold().hand_over(), HandOver::Released(released.last().at, None));
    assert_eq!(unasked.claim("X", 2).void(), None);
    // A release that was taken back is an answer too, where the owner's claim ended the request before.
    let anew = asked.claim("P", 2).base(2, at(0, 0)).release(2).resume("P", 2);
    let when = Some(anew.last().at);
    assert_eq!((anew.fold().hand_over(), anew.fold().taken_back()), (HandOver::None, when));
    assert_eq!(anew.clone().claim("P", 3).fold().taken_back(), when);
    assert_eq!(anew.clone().take_over("R", 3).fold().taken_back(), None);
    assert_eq!(anew.request("R", 2).fold().taken_back(), None);
    // The owner's ends both.
    let back = released.resume("P", 1);
    assert!(matches!(back.fold().hand_over(), HandOver::TurnedDown(..)));
    assert_eq!(back.claim("R", 2).void(), Some(Void::OwnedByAnotherSite));
}

#[test]
fn nothing_recovers_below_the_floor() {
    let log = one().floor(1, 8);
    assert_eq!(log.fold().floor(), SegmentNo::new(8));
    assert_eq!(log.clone().floor(1, 8).void(), Some(Void::BelowTheFloor));
    assert_eq!(log.clone().floor(2, 9).void(), Some(Void::NotItsWriter));
    let claimed = log.take_over("R", 2);
    assert_eq!(claimed.clone().base(2, at(1, 7)).void(), Some(Void::BelowTheFloor));
    assert_eq!(claimed.clone().base(2, at(1, 8)).void(), None);
    assert_eq!(claimed.floor(2, 9).void(), Some(Void::BaseNotSettled));
}

#[test]
fn records_out_of_sequence_or_of_another_domain_change_nothing() {
    let log = two();
    let mut ownership = log.fold();
    for n in [0, 3, 4, 6] {
        let record = OwnerRecord { n, ..log.clone().claim("P", 3).last().clone() };
        assert_eq!(ownership.apply(&record), Effect::Void(Void::OutOfSequence));
    }
    assert_eq!(ownership, log.fold());
    let foreign = OwnerRecord { domain: DomainId::from_bytes([2; 16]), ..log.claim("P", 3).last().clone() };
    assert_eq!(ownership.apply(&foreign), Effect::Void(Void::ForeignDomain));
    assert_eq!((ownership.records(), ownership.newest_generation()), (5, Generation::new(2)));
}

fn any_kind() -> impl Strategy<Value = OwnerKind> {
    let generation = || (0_u64..6).prop_map(Generation::new);
    let last = || (0_u64..6, 0_u64..12).prop_map(|(g, n)| at(g, n));
    prop_oneof![
        4 => (generation(), any::<bool>()).prop_map(|(generation, take_over)| OwnerKind::Claim { generation, take_over }),
        4 => (generation(), last())
            .prop_map(|(generation, last)| OwnerKind::Base { generation, last, digest: Digest::default() }),
        1 => generation().prop_map(|generation| OwnerKind::Request { generation }),
        1 => (generation(), last()).prop_map(|(generation, last)| OwnerKind::Release { generation, last }),
        1 => generation().prop_map(|generation| OwnerKind::Resume { generation }),
        1 => (0_u64..12).prop_map(|n| OwnerKind::Floor { segment: SegmentNo::new(n) }),
    ]
}

/// A record that usually takes effect: about the newest generation or the one after, by the right writer.
fn step(log: Log, kind: OwnerKind, site: u8, sensible: bool) -> Log {
    let site = if site == 0 { "P" } else { "R" };
    let newest = log.fold().newest_generation();
    let kind = match (sensible, kind) {
        (true, OwnerKind::Claim { .. }) => OwnerKind::Claim { generation: newest.next(), take_over: true },
        (true, OwnerKind::Base { last, digest, .. }) => OwnerKind::Base { generation: newest, last, digest },
        (true, OwnerKind::Release { last, .. }) => OwnerKind::Release { generation: newest, last },
        (_, other) => other,
    };
    let writer = match kind {
        OwnerKind::Claim { generation, .. } => generation,
        _ => newest,
    };
    log.push(site, writer.get(), kind)
}

proptest! {
    #[test]
    fn any_log_folds_to_one_chain(steps in prop::collection::vec((any_kind(), 0_u8..2, prop::bool::weighted(0.8)), 0..24)) {
        let log = steps.into_iter().fold(Log::new(), |log, (kind, site, sensible)| step(log, kind, site, sensible));
        let ownership = log.fold();
        prop_assert_eq!(ownership.records(), log.records.len() as u64);
        let tip = ownership.settled_tip().segment;
        for n in 1..14 {
            let no = SegmentNo::new(n);
            let settled: Vec<_> =
                (0..26).map(|g| at(g, n)).filter(|r| ownership.acceptance(*r) == Acceptance::Settled).collect();
            let located: Vec<_> = ownership.locate(no).into_iter().collect();
            prop_assert_eq!(&settled, &located, "segment {}", n);
            prop_assert_eq!(settled.len(), usize::from(no <= tip), "segment {}", n);
            let open = (0..26).filter(|g| matches!(
                ownership.acceptance(at(*g, n)), Acceptance::Open | Acceptance::Sealed { .. }
            ));
            prop_assert_eq!(open.count(), usize::from(no > tip && ownership.newest_with_base().is_some()));
        }
        // Bases are exactly what the rule says: after one's own, up to every later one.
        for g in ownership.generations() {
            let Some(base) = g.base else { continue };
            let later = ownership.generations().iter().filter(|h| h.generation > g.generation);
            let limit = later.filter_map(|h| h.base).map(|b| b.last.segment).min();
            for n in (0..14).map(SegmentNo::new) {
                let r = SegmentRef::new(g.generation, n);
                let counts = base.last.segment < n && limit.is_some_and(|l| n <= l);
                prop_assert_eq!(ownership.acceptance(r) == Acceptance::Settled, counts, "{} {:?}", r, limit);
            }
        }
    }
}
