//! Who may write a domain and which objects count: the one pure fold over its ownership log.
//!
//! ```text
//! records 1, 2, 3, ... --apply--> generations with their bases --acceptance--> does this object count?
//!
//! base(g) < n <= every later settled base        Settled   it counts
//! beyond the last settled base of generation g:
//!     g is the newest claim                      Open      it counts once the next record is known not to exist
//!     a newer claim was read                     Sealed    nobody can say yet: that claim's base will
//! anything else                                  Never     a stale writer's, or cut off by a take-over
//! ```
//!
//! No I/O, no clock. The fold is total: every record takes effect or is void, with a reason, and all readers of the same
//! records agree. Invariants: a number belongs to at most one generation; bases name segments that were part of the
//! chain; no base is below the floor; only the newest claim's own writer settles its base, once.
//! The second half of acceptance, reading the next record after the segments were seen, is
//! [`Horizon`](super::Horizon).

use std::fmt;

use crate::format::{Author, Digest, OwnerKind, OwnerRecord};
use crate::ids::{DomainId, Generation, Name, SegmentNo, SegmentRef, Time};

/// What a generation inherits, settled by its writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// Last inherited segment; zero for nothing.
    pub last: SegmentRef,
    /// Digest of that segment's index; zero for nothing or unknown.
    pub digest: Digest,
    /// When it was settled.
    pub at: Time,
}

/// One generation, as its claim opened it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationInfo {
    /// Its number.
    pub generation: Generation,
    /// Who claimed it.
    pub author: Author,
    /// When.
    pub claimed: Time,
    /// Taken without the consent of the site that owned the domain before.
    pub take_over: bool,
    /// Number of the claim's record.
    pub record: u64,
    /// What it inherits; `None` while its writer has not settled it.
    pub base: Option<Base>,
    /// When its writer released the domain, unless that was withdrawn.
    pub released: Option<Time>,
}

/// How far a hand-over is, as the ownership log says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum HandOver {
    /// Nobody has asked since the newest claim.
    #[default]
    None,
    /// A site asks, and waits for an answer.
    Asked(Asked),
    /// A site asked, and the owner goes on, since then.
    TurnedDown(Asked, Time),
    /// The owner gave the domain up, and nobody has claimed it yet; with the site that asked, if one did.
    Released(Time, Option<Asked>),
}

/// Who asks for a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The site.
    pub site: Name,
    /// When, by the store's clock.
    pub at: Time,
}

/// Whether a record changed anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It took effect.
    Applied,
    /// It changed nothing.
    Void(Void),
}

/// Why a record changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Void {
    /// Its number is not the next one.
    OutOfSequence,
    /// It belongs to another domain.
    ForeignDomain,
    /// Nothing was claimed before it.
    NothingClaimed,
    /// It opens a generation that is not the one after the newest.
    NotTheNextGeneration,
    /// Another site owns the domain, and has not released it.
    OwnedByAnotherSite,
    /// Its own site released the domain.
    Released,
    /// It is about a generation that is not the newest.
    NotTheNewest,
    /// Its author did not claim that generation.
    NotItsWriter,
    /// The base of that generation is settled already.
    BaseSettledBefore,
    /// The base of that generation is not settled yet.
    BaseNotSettled,
    /// The base names a segment that is not part of the chain.
    BaseOffTheChain,
    /// The base is below what is recoverable, or the floor is not above the one before.
    BelowTheFloor,
    /// Its site asks for what it owns.
    OwnedAlready,
    /// There is no release to withdraw, and no request to turn down.
    NotReleased,
}

impl fmt::Display for Void {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Void::OutOfSequence => "its number is not the next one",
            Void::ForeignDomain => "it belongs to another domain",
            Void::NothingClaimed => "nothing was claimed before it",
            Void::NotTheNextGeneration => "it does not open the next generation",
            Void::OwnedByAnotherSite => "another site owns the domain",
            Void::Released => "its site released the domain",
            Void::NotTheNewest => "its generation is not the newest",
            Void::NotItsWriter => "its author did not claim the generation",
            Void::BaseSettledBefore => "the generation has a base already",
            Void::BaseNotSettled => "the generation has no base yet",
            Void::BaseOffTheChain => "it names a segment that is not part of the chain",
            Void::BelowTheFloor => "it is below the floor",
            Void::OwnedAlready => "its site owns the domain",
            Void::NotReleased => "there is no release to withdraw, and no request to turn down",
        })
    }
}

/// Whether an object of a generation and number counts, as far as the records read so far tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// It counts: its generation wrote that number of the chain, and every later base inherits it.
    Settled,
    /// Its generation is the newest claim, and the number beyond every settled base: it counts once the whole prefix up
    /// to it was seen and a read of the next record that began after that found none.
    Open,
    /// As `Open`, but a newer claim seals its generation; whether it counts is settled with that claim's base.
    Sealed {
        /// The newest claim.
        by: Generation,
    },
    /// It does not count.
    Never,
    /// Its generation has no claim or base among the records read so far.
    Unknown,
}

/// Segments of one generation that are part of the chain: those after `after`, up to `up_to` where that is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    generation: Generation,
    after: SegmentNo,
    up_to: Option<SegmentNo>,
}

impl Stretch {
    fn holds(&self, n: SegmentNo) -> bool {
        self.after < n && self.up_to.is_none_or(|end| n <= end)
    }
}

/// What an ownership log says, folded up to some record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    records: u64,
    domain: Option<DomainId>,
    /// Generation g at position g - 1.
    generations: Vec<GenerationInfo>,
    /// One for each settled base, ascending; all but the last have an end.
    stretches: Vec<Stretch>,
    request: Option<(Name, Time)>,
    /// The last request that was turned down since the newest claim, and when.
    turned_down: Option<(Name, Time, Time)>,
    /// The same, since the domain changed hands.
    refusal: Option<(Name, Time, Time)>,
    /// When a release was last taken back by its owner, since the domain changed hands and nobody has asked anew.
    taken_back: Option<Time>,
    /// Who took its request back last, and when, since the domain changed hands and nobody has asked anew.
    unwanted: Option<(Name, Time)>,
    floor: SegmentNo,
    voids: Vec<(u64, Void)>,
}

impl Ownership {
    /// Folds records from the first one on.
    pub fn fold(records: &[OwnerRecord]) -> Ownership {
        let mut ownership = Ownership::default();
        for record in records {
            ownership.apply(record);
        }
        ownership
    }

    /// Folds one more record.
    pub fn apply(&mut self, record: &OwnerRecord) -> Effect {
        if record.n != self.records + 1 {
            return Effect::Void(Void::OutOfSequence);
        }
        self.records = record.n;
        let effect = match self.domain.is_some_and(|d| d != record.domain) {
            true => Err(Void::ForeignDomain),
            false => self.act(record),
        };
        match effect {
            Ok(()) => {
                self.domain = Some(record.domain);
                Effect::Applied
            }
            Err(void) => {
                self.voids.push((record.n, void));
                Effect::Void(void)
            }
        }
    }

    /// What `record` would do as the next one, without folding it.
    pub fn would(&self, record: &OwnerRecord) -> Effect {
        self.clone().apply(record)
    }

    fn act(&mut self, record: &OwnerRecord) -> Result<(), Void> {
        match record.kind {
            OwnerKind::Claim { generation, take_over } => self.claim(record, generation, take_over),
            OwnerKind::Base { generation, last, digest } => {
                self.base(record, generation, Base { last, digest, at: record.at })
            }
            OwnerKind::Request { generation } => {
                let newest = self.about_newest(generation)?;
                if newest.author.site == record.author.site {
                    return Err(Void::OwnedAlready);
                }
                self.request = Some((record.author.site.clone(), record.at));
                (self.turned_down, self.refusal, self.taken_back, self.unwanted) = (None, None, None, None);
                Ok(())
            }
            OwnerKind::Release { generation, .. } => {
                let newest = self.by_its_writer(record, generation)?;
                newest.base.ok_or(Void::BaseNotSettled)?;
                newest.released = Some(record.at);
                Ok(())
            }
            OwnerKind::Resume { generation } => self.resume(record, generation),
            OwnerKind::Floor { segment } => self.raise_floor(record, segment),
        }
    }

    fn claim(&mut self, record: &OwnerRecord, generation: Generation, take_over: bool) -> Result<(), Void> {
        if generation != self.newest_generation().next() {
            return Err(Void::NotTheNextGeneration);
        }
        let own = self.newest().is_some_and(|newest| newest.author.site == record.author.site);
        if let Some(newest) = self.newest() {
            match (own, newest.released.is_some()) {
                _ if take_over => {}
                (true, false) | (false, true) => {}
                (true, true) => return Err(Void::Released),
                (false, false) => return Err(Void::OwnedByAnotherSite),
            }
        }
        self.generations.push(GenerationInfo {
            generation,
            author: record.author.clone(),
            claimed: record.at,
            take_over,
            record: record.n,
            base: None,
            released: None,
        });
        (self.request, self.turned_down) = (None, None);
        if !own {
            (self.refusal, self.taken_back, self.unwanted) = (None, None, None);
        }
        Ok(())
    }

    /// The generation goes on: its owner takes a release back, or turns down who asks; or who asks takes that back.
    fn resume(&mut self, record: &OwnerRecord, generation: Generation) -> Result<(), Void> {
        let newest = self.about_newest(generation)?;
        let own = newest.author.site == record.author.site;
        let released = if own { newest.released.take() } else { None };
        let asks = self.request.as_ref().is_some_and(|(site, _)| own || *site == record.author.site);
        let request = if asks { self.request.take() } else { None };
        if released.is_some() {
            self.taken_back = Some(record.at);
        }
        match (own, released, request) {
            (true, None, None) => Err(Void::NotReleased),
            (false, _, None) => Err(Void::OwnedByAnotherSite),
            (true, _, Some((site, at))) => {
                self.turned_down = Some((site, at, record.at));
                self.refusal.clone_from(&self.turned_down);
                Ok(())
            }
            (false, _, Some((site, _))) => {
                self.unwanted = Some((site, record.at));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn base(&mut self, record: &OwnerRecord, generation: Generation, base: Base) -> Result<(), Void> {
        let n = base.last.segment;
        let on_chain = match n {
            SegmentNo::ZERO => base.last == SegmentRef::default(),
            _ => self.stretches.iter().any(|s| s.generation == base.last.generation && s.holds(n)),
        };
        let floor = self.floor;
        let newest = self.by_its_writer(record, generation)?;
        if newest.base.is_some() {
            return Err(Void::BaseSettledBefore);
        }
        if !on_chain {
            return Err(Void::BaseOffTheChain);
        }
        if n < floor {
            return Err(Void::BelowTheFloor);
        }
        newest.base = Some(base);
        for stretch in &mut self.stretches {
            stretch.up_to = Some(stretch.up_to.map_or(n, |end| end.min(n)));
        }
        self.stretches.push(Stretch { generation, after: n, up_to: None });
        Ok(())
    }

    fn raise_floor(&mut self, record: &OwnerRecord, segment: SegmentNo) -> Result<(), Void> {
        let newest = self.by_its_writer(record, self.newest_generation())?;
        newest.base.ok_or(Void::BaseNotSettled)?;
        if segment <= self.floor {
            return Err(Void::BelowTheFloor);
        }
        self.floor = segment;
        Ok(())
    }

    fn about_newest(&mut self, generation: Generation) -> Result<&mut GenerationInfo, Void> {
        match self.generations.last_mut() {
            None => Err(Void::NothingClaimed),
            Some(newest) if newest.generation == generation => Ok(newest),
            Some(_) => Err(Void::NotTheNewest),
        }
    }

    fn by_its_writer(&mut self, record: &OwnerRecord, generation: Generation) -> Result<&mut GenerationInfo, Void> {
        let newest = self.about_newest(generation)?;
        match newest.author.writer == record.author.writer {
            true => Ok(newest),
            false => Err(Void::NotItsWriter),
        }
    }

    /// Records folded; the next one is this plus one.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The domain; `None` before the first claim.
    pub fn domain(&self) -> Option<DomainId> {
        self.domain
    }

    /// All generations, ascending.
    pub fn generations(&self) -> &[GenerationInfo] {
        &self.generations
    }

    /// The newest claim: who may write the domain.
    pub fn newest(&self) -> Option<&GenerationInfo> {
        self.generations.last()
    }

    /// Number of the newest claim; zero before the first.
    pub fn newest_generation(&self) -> Generation {
        self.newest().map_or(Generation::ZERO, |g| g.generation)
    }

    /// The newest generation that has a base: the one whose objects may lie beyond all bases, and from whose tip the
    /// next claim settles its own. `None` before the first base.
    pub fn newest_with_base(&self) -> Option<&GenerationInfo> {
        let last = self.stretches.last()?;
        self.generations.iter().rfind(|g| g.generation == last.generation)
    }

    /// The newest claim, if it has no base yet: what lies beyond the last settled base waits for it.
    pub fn unsettled(&self) -> Option<&GenerationInfo> {
        self.newest().filter(|g| g.base.is_none())
    }

    /// Last segment that the newest settled base inherits; zero for nothing.
    pub fn settled_tip(&self) -> SegmentRef {
        self.newest_with_base().and_then(|g| g.base).map_or(SegmentRef::default(), |b| b.last)
    }

    /// The site that asks for the domain, and since when.
    pub fn request(&self) -> Option<(&Name, Time)> {
        self.request.as_ref().map(|(site, at)| (site, *at))
    }

    /// The last request that was turned down since the domain changed hands, and when. Unlike
    /// [`Ownership::hand_over`] it is told, too, after the owner started anew: an owner that turns somebody down often does
    /// that next, and who asked must still read the answer.
    pub fn refusal(&self) -> Option<(Asked, Time)> {
        self.refusal.as_ref().map(|(site, at, since)| (Asked { site: site.clone(), at: *at }, *since))
    }

    /// When the owner last took a release back, since the domain changed hands. Whoever asked for it before is turned down
    /// by that, though the owner's claims ended the request; asking anew ends it.
    pub fn taken_back(&self) -> Option<Time> {
        self.taken_back
    }

    /// The site that took its request back last, and when, since the domain changed hands and nobody has asked anew: an owner
    /// that has released the domain meanwhile need not wait for it.
    pub fn unwanted(&self) -> Option<(&Name, Time)> {
        self.unwanted.as_ref().map(|(site, at)| (site, *at))
    }

    /// How far a hand-over of the newest generation is.
    pub fn hand_over(&self) -> HandOver {
        let asked = |(site, at): &(Name, Time)| Asked { site: site.clone(), at: *at };
        let released = self.newest().and_then(|newest| newest.released);
        match (released, &self.request, &self.turned_down) {
            (Some(at), request, _) => HandOver::Released(at, request.as_ref().map(asked)),
            (None, Some(request), _) => HandOver::Asked(asked(request)),
            (None, None, Some((site, at, since))) => {
                HandOver::TurnedDown(Asked { site: site.clone(), at: *at }, *since)
            }
            (None, None, None) => HandOver::None,
        }
    }

    /// Nothing below this is recoverable; zero where nothing was given up.
    pub fn floor(&self) -> SegmentNo {
        self.floor
    }

    /// Numbers of the records that changed nothing, and why.
    pub fn voids(&self) -> &[(u64, Void)] {
        &self.voids
    }

    /// Whether the object of generation and number `at` counts: a segment, or a manifest or map page cut there.
    pub fn acceptance(&self, at: SegmentRef) -> Acceptance {
        let Some(stretch) = self.stretches.iter().find(|s| s.generation == at.generation) else {
            return Acceptance::Unknown;
        };
        match stretch.up_to {
            _ if !stretch.holds(at.segment) => Acceptance::Never,
            Some(_) => Acceptance::Settled,
            None if at.generation == self.newest_generation() => Acceptance::Open,
            None => Acceptance::Sealed { by: self.newest_generation() },
        }
    }

    /// Which generation's object is segment `n`, within the settled bases. `None` for zero and beyond them.
    pub fn locate(&self, n: SegmentNo) -> Option<SegmentRef> {
        let stretch = self.stretches.iter().find(|s| s.up_to.is_some() && s.holds(n))?;
        Some(SegmentRef::new(stretch.generation, n))
    }

    /// Up to where the history of `at` and the chain are the same: `at` itself where it is or may become part of the
    /// chain, otherwise the last segment before the base that cut it off. `None` where `at` never was part of it.
    pub fn common(&self, at: SegmentRef) -> Option<SegmentRef> {
        if at == SegmentRef::default() {
            return Some(at);
        }
        let stretch = self.stretches.iter().find(|s| s.generation == at.generation)?;
        match stretch.up_to {
            _ if at.segment <= stretch.after => None,
            Some(end) if at.segment > end => Some(self.locate(end).unwrap_or_default()),
            _ => Some(at),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
