//! Exhaustive search of small histories: two sites that claim, crash and write, objects that land late or never, and a
//! follower that reads behind. Every decision is taken by the crate's own fold and horizon.
//!
//! Checked in every state: whatever the follower or a writer accepted is inherited by every later base. The search is
//! shown to be able to fail: with one rule weakened, here and not in the crate, it finds a violation each time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use freshet::format::{Author, Digest, OwnerKind, OwnerRecord, ProcessIdentity};
use freshet::ids::{DomainId, Generation, Name, SegmentNo, SegmentRef, Time, WriterId};
use freshet::store::{Effect, Horizon, Ownership, Seen};

const GENERATIONS: u64 = 3;
const SEGMENTS: u64 = 1;
const MOST_STATES: usize = 3_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rules {
    AsTheyAre,
    /// The tip is looked at before the claim.
    LookBeforeClaim,
    /// A writer believes what it has put.
    AcceptWithoutReading,
    /// A follower believes a sealed generation until the next base is settled.
    SealOnlyWithBase,
    /// A follower believes what it saw before it read a record.
    KeepSeenOverRecords,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Rec {
    Claim { site: u8 },
    Base { generation: u64, last: SegmentRef },
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum Writer {
    Gone,
    Chosen { last: SegmentRef },
    Claimed { generation: u64, records: usize },
    Probed { generation: u64, records: usize, last: SegmentRef },
    Active { generation: u64, records: usize, base: u64, next: u64, seen: Option<Seen>, up_to: u64 },
}

/// Objects by generation and number, as bits.
type Objects = u64;

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    log: Vec<Rec>,
    there: Objects,
    in_flight: Objects,
    writers: [Writer; 2],
    read: usize,
    seen: Option<(Seen, SegmentRef)>,
    accepted: Objects,
}

fn at(generation: u64, segment: u64) -> SegmentRef {
    SegmentRef::new(Generation::new(generation), SegmentNo::new(segment))
}

fn bit(at: SegmentRef) -> Objects {
    1 << (at.generation.get() * 16 + at.segment.get())
}

fn refs(objects: Objects) -> impl Iterator<Item = SegmentRef> {
    (0..64).filter(move |i| objects >> i & 1 == 1).map(|i| at(i / 16, i % 16))
}

fn claims(log: &[Rec]) -> u64 {
    log.iter().filter(|r| matches!(r, Rec::Claim { .. })).count() as u64
}

/// The real records of a history.
fn records(log: &[Rec]) -> Vec<OwnerRecord> {
    let (mut sites, mut out) = (Vec::new(), Vec::new());
    for (i, rec) in log.iter().enumerate() {
        let (generation, kind) = match rec {
            Rec::Claim { site } => {
                sites.push(*site);
                let generation = sites.len() as u64;
                (generation, OwnerKind::Claim { generation: Generation::new(generation), take_over: true })
            }
            Rec::Base { generation, last } => {
                let kind = OwnerKind::Base {
                    generation: Generation::new(*generation),
                    last: *last,
                    digest: Digest::default(),
                };
                (*generation, kind)
            }
        };
        let author = Author {
            site: Name::new(["P", "R"][usize::from(sites[generation as usize - 1])]).unwrap(),
            writer: WriterId::from_bytes([generation as u8; 16]),
            process: ProcessIdentity::default(),
        };
        let domain = DomainId::from_bytes([1; 16]);
        out.push(OwnerRecord { n: i as u64 + 1, domain, at: Time::default(), author, nonce: [0; 16], kind });
    }
    out
}

struct Search {
    rules: Rules,
    folds: HashMap<Vec<Rec>, Rc<Ownership>>,
}

impl Search {
    fn fold(&mut self, log: &[Rec]) -> Rc<Ownership> {
        if let Some(known) = self.folds.get(log) {
            return known.clone();
        }
        let ownership = Rc::new(Ownership::fold(&records(log)));
        assert_eq!(ownership.voids(), [], "every record of the search takes effect");
        self.folds.insert(log.to_vec(), ownership.clone());
        ownership
    }

    fn takes_effect(&mut self, log: &[Rec], next: &Rec) -> bool {
        let whole = [log, std::slice::from_ref(next)].concat();
        self.fold(log).would(records(&whole).last().unwrap()) == Effect::Applied
    }

    /// What the newest claim of `log`, or the next, would inherit.
    fn tip(&mut self, log: &[Rec], there: Objects) -> SegmentRef {
        let ownership = self.fold(log);
        let settled = ownership.settled_tip();
        let Some(newest) = ownership.newest_with_base() else { return settled };
        let mut n = settled.segment.get();
        while there & bit(SegmentRef::new(newest.generation, SegmentNo::new(n + 1))) != 0 {
            n += 1;
        }
        if n > settled.segment.get() { SegmentRef::new(newest.generation, SegmentNo::new(n)) } else { settled }
    }

    fn next_states(&mut self, s: &State) -> Vec<State> {
        let mut out = Vec::new();
        for object in refs(s.in_flight) {
            let in_flight = s.in_flight & !bit(object);
            out.push(State { there: s.there | bit(object), in_flight, ..s.clone() });
            out.push(State { in_flight, ..s.clone() });
        }
        for site in 0..2 {
            self.writer_steps(s, site, &mut out);
        }
        self.follower_steps(s, &mut out);
        out
    }

    fn writer_steps(&mut self, s: &State, site: usize, out: &mut Vec<State>) {
        let with = |writer: Writer| {
            let mut next = s.clone();
            next.writers[site] = writer;
            next
        };
        let generation = claims(&s.log) + 1;
        let claim = Rec::Claim { site: site as u8 };
        match s.writers[site].clone() {
            Writer::Gone if generation > GENERATIONS => return,
            Writer::Gone if self.rules == Rules::LookBeforeClaim => {
                out.push(with(Writer::Chosen { last: self.tip(&s.log, s.there) }));
            }
            Writer::Gone => {
                assert!(self.takes_effect(&s.log, &claim));
                let mut next = with(Writer::Claimed { generation, records: s.log.len() + 1 });
                next.log.push(claim);
                out.push(next);
            }
            Writer::Chosen { last } if generation <= GENERATIONS => {
                let mut next = with(Writer::Probed { generation, records: s.log.len() + 1, last });
                next.log.push(claim);
                out.push(next);
            }
            Writer::Chosen { .. } => {}
            Writer::Claimed { generation, records } => {
                let last = self.tip(&s.log[..records], s.there);
                out.push(with(Writer::Probed { generation, records, last }));
            }
            Writer::Probed { generation, records, last } => {
                let base = Rec::Base { generation, last };
                // Create-only: whoever wrote this number since has won it.
                if s.log.len() == records && self.takes_effect(&s.log, &base) {
                    let base_no = last.segment.get();
                    let (records, next_no) = (records + 1, base_no + 1);
                    let active =
                        Writer::Active { generation, records, base: base_no, next: next_no, seen: None, up_to: 0 };
                    let mut next = with(active);
                    next.log.push(base);
                    out.push(next);
                }
            }
            Writer::Active { .. } => self.active_steps(s, site, out),
        }
        if s.writers[site] != Writer::Gone {
            out.push(with(Writer::Gone));
        }
    }

    fn active_steps(&mut self, s: &State, site: usize, out: &mut Vec<State>) {
        let Writer::Active { generation, records, base, next, seen, up_to } = s.writers[site].clone() else { return };
        let with = |writer: Writer| {
            let mut state = s.clone();
            state.writers[site] = writer;
            state
        };
        if next <= base + SEGMENTS {
            let active = Writer::Active { generation, records, base, next: next + 1, seen: seen.clone(), up_to };
            out.push(State { in_flight: s.in_flight | bit(at(generation, next)), ..with(active) });
        }
        let mut tip = base;
        while s.there & bit(at(generation, tip + 1)) != 0 {
            tip += 1;
        }
        let mut horizon = Horizon::new((*self.fold(&s.log[..records])).clone());
        if tip > base && tip > up_to {
            if self.rules == Rules::AcceptWithoutReading {
                out.push(State { accepted: s.accepted | bit(at(generation, tip)), ..s.clone() });
            }
            let now = horizon.seen(at(generation, tip));
            assert!(now.is_some(), "a writer that has read nothing newer than its base");
            out.push(with(Writer::Active { generation, records, base, next, seen: now, up_to: tip }));
        }
        if let Some(seen) = seen
            && s.log.len() == records
            && horizon.accept(&seen)
        {
            assert!(horizon.accepts(at(generation, up_to)));
            out.push(State { accepted: s.accepted | bit(at(generation, up_to)), ..s.clone() });
        }
    }

    fn follower_steps(&mut self, s: &State, out: &mut Vec<State>) {
        if s.read < s.log.len() {
            out.push(State { read: s.read + 1, ..s.clone() });
        }
        let ownership = self.fold(&s.log[..s.read]);
        let tip = self.tip(&s.log[..s.read], s.there);
        let mut horizon = Horizon::new((*ownership).clone());
        if let Some(seen) = horizon.seen(tip) {
            let seen = Some((seen, tip));
            if seen != s.seen {
                out.push(State { seen, ..s.clone() });
            }
        }
        let none_follows = s.read == s.log.len();
        if let Some((seen, up_to)) = &s.seen
            && none_follows
            && (horizon.accept(seen) || self.rules == Rules::KeepSeenOverRecords)
        {
            out.push(State { accepted: s.accepted | bit(*up_to), ..s.clone() });
        }
        let sealed = ownership.unsettled().is_some() && tip.segment > ownership.settled_tip().segment;
        if self.rules == Rules::SealOnlyWithBase && none_follows && sealed {
            out.push(State { accepted: s.accepted | bit(tip), ..s.clone() });
        }
    }

    /// Number of states, or the first state found in which something accepted is not inherited.
    fn run(rules: Rules) -> Result<usize, String> {
        let mut search = Search { rules, folds: HashMap::new() };
        let start = State {
            log: Vec::new(),
            there: 0,
            in_flight: 0,
            writers: [Writer::Gone, Writer::Gone],
            read: 0,
            seen: None,
            accepted: 0,
        };
        let mut known = HashSet::from([start.clone()]);
        let mut queue = VecDeque::from([start]);
        while let Some(state) = queue.pop_front() {
            for next in search.next_states(&state) {
                if known.contains(&next) {
                    continue;
                }
                if let Some(lost) = not_inherited(&next) {
                    return Err(format!("{lost} was accepted and is not inherited, after {} states", known.len()));
                }
                assert!(known.len() < MOST_STATES, "the bound is too large for a test");
                known.insert(next.clone());
                queue.push_back(next);
            }
        }
        Ok(known.len())
    }
}

/// Written without the crate's fold: an accepted segment beyond a later generation's base.
fn not_inherited(s: &State) -> Option<SegmentRef> {
    let beyond = |r: SegmentRef| {
        s.log.iter().any(|rec| match rec {
            Rec::Base { generation, last } => *generation > r.generation.get() && last.segment < r.segment,
            Rec::Claim { .. } => false,
        })
    };
    refs(s.accepted).find(|r| beyond(*r))
}

#[test]
fn nothing_that_anybody_accepted_is_ever_lost() {
    let states = Search::run(Rules::AsTheyAre).unwrap();
    assert!(states > 10_000, "a search of {states} states looks at nothing");
}

#[test]
fn each_rule_is_needed() {
    let weakened =
        [Rules::LookBeforeClaim, Rules::AcceptWithoutReading, Rules::SealOnlyWithBase, Rules::KeepSeenOverRecords];
    for rules in weakened {
        assert!(Search::run(rules).is_err(), "{rules:?} does no harm");
    }
}
