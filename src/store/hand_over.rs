//! Handing a domain over: the records by which a site asks for it, its owner gives it up, and either goes on as before.
//!
//! ```text
//! request --> the owner drains --> release --> claim of the site that asked          it is handed over
//!    |                                |
//!    '-> resume: the owner turns it   '-> resume: the owner takes it back, as long as nobody has claimed
//!        down, or who asked takes it back
//! ```
//!
//! Owns what each step appends, decided anew from the log as it stands whenever another record won the number. Invariants:
//! a step that the log shows as done is not appended again; a release is only its writer's; nobody owns the domain because
//! of any of these: that takes a claim. It moves no data: what a release promises is for who writes it to make true.

use super::owner_log::{self, Appended, Draft};
use super::{Asked, Domain, Effect, GenerationInfo, HandOver, Horizon, Ownership, StorageSite, process};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Author, OwnerKind};
use crate::ids::{DomainId, Name, Time, WriterId};

/// Most times that a step is decided anew because another record won the number.
const MAX_RACES: usize = 32;

/// Who appends.
pub(super) struct Hand<'a> {
    pub(super) site: &'a StorageSite,
    pub(super) name: &'a Name,
    pub(super) domain: DomainId,
    pub(super) author: Author,
}

impl Hand<'_> {
    /// Appends what `decide` makes of the log as it stands; `None` where there is nothing to do. Answers whether a record
    /// of this call took effect.
    ///
    /// # Errors
    /// What `decide` says; `Refused` where the record has no effect; what the storage site says: then it may be there all the
    /// same, and may come to be there.
    pub(super) async fn append(
        &self,
        horizon: &mut Horizon,
        now: impl Fn() -> Time,
        decide: impl Fn(&Ownership) -> Result<Option<OwnerKind>>,
    ) -> Result<bool> {
        let Hand { site, name, domain, author } = self;
        for _ in 0..MAX_RACES {
            let Some(kind) = decide(horizon.ownership())? else { return Ok(false) };
            let draft = Draft { domain: *domain, at: now(), author: author.clone(), kind };
            match owner_log::append(site, name, horizon, &draft).await? {
                Appended::Written(Effect::Applied) => return Ok(true),
                Appended::Written(Effect::Void(why)) => {
                    let why = format!("domain {name}: the {} has no effect, since {why}", kind.word());
                    return Err(Error::new(ErrorKind::Refused, format!("storage site {}: {why}", site.url())));
                }
                Appended::Lost => {}
            }
        }
        let why = format!("domain {name}: another record came first {MAX_RACES} times in a row");
        Err(Error::new(ErrorKind::Refused, format!("storage site {}: {why}", site.url())))
    }
}

impl Domain {
    /// Asks the owner, in the name of site `by`, to hand the domain over. Asking twice is asking once. Answers how it stands.
    ///
    /// # Errors
    /// `Refused` where `by` owns the domain, or another site asks already.
    pub async fn request_hand_over(&mut self, by: &Name) -> Result<HandOver> {
        self.hand(by, |name, ownership| {
            let Some(newest) = ownership.newest() else { return Ok(None) };
            let generation = newest.generation;
            match ownership.hand_over() {
                _ if newest.author.site == *by => Err(refuse(format!("domain {name} is owned by site {by} already"))),
                HandOver::Released(..) => Ok(None),
                HandOver::Asked(other) if other.site != *by => {
                    let why = format!("site {} has asked for domain {name} at {}", other.site, other.at);
                    Err(refuse(format!("{why}: it must take that back, or be turned down, first")))
                }
                HandOver::Asked(_) => Ok(None),
                HandOver::None | HandOver::TurnedDown(..) => Ok(Some(OwnerKind::Request { generation })),
            }
        })
        .await
    }

    /// Takes back, in the name of site `by`, what [`Domain::request_hand_over`] asked; nothing to do where it does not ask.
    /// A release that came meanwhile stands: its owner takes it back. That it need not wait for `by` is told, too, where its
    /// own claims have ended the request.
    pub async fn withdraw_request(&mut self, by: &Name) -> Result<HandOver> {
        // Only who asks can take that back: so it asks once more, for a moment.
        self.hand(by, |_, ownership| {
            let unasked = matches!(ownership.hand_over(), HandOver::Released(_, None));
            let told = ownership.unwanted().is_some_and(|(site, _)| site == by);
            let theirs = ownership.newest().is_some_and(|newest| newest.author.site != *by);
            let generation = ownership.newest_generation();
            Ok((unasked && theirs && !told).then_some(OwnerKind::Request { generation }))
        })
        .await?;
        self.hand(by, |_, ownership| {
            let asks = ownership.request().is_some_and(|(site, _)| site == by);
            let generation = ownership.newest_generation();
            Ok(asks.then_some(OwnerKind::Resume { generation }))
        })
        .await
    }

    /// Goes on as before, in the name of the owning site `by`: takes its release back, or turns down who asks; nothing to do
    /// where there is neither.
    ///
    /// # Errors
    /// `Fenced` where another site owns the domain by now: of a claim and this, one wins.
    pub async fn resume(&mut self, by: &Name) -> Result<HandOver> {
        self.hand(by, |name, ownership| {
            let Some(newest) = ownership.newest() else { return Ok(None) };
            if newest.author.site != *by {
                return Err(lost(name, newest, by));
            }
            Ok(may_resume(ownership).then_some(OwnerKind::Resume { generation: newest.generation }))
        })
        .await
    }

    /// Whether this very request stands, as of the last look.
    pub fn is_asked(&self, asked: &Asked) -> bool {
        matches!(self.ownership().hand_over(), HandOver::Asked(standing) if standing == *asked)
    }

    /// Turns down this very request, in the name of the owning site `by`; nothing to do where it does not stand any more.
    ///
    /// # Errors
    /// As [`Domain::resume`].
    pub async fn turn_down(&mut self, by: &Name, asked: &Asked) -> Result<HandOver> {
        self.hand(by, |name, ownership| {
            let Some(newest) = ownership.newest() else { return Ok(None) };
            if newest.author.site != *by {
                return Err(lost(name, newest, by));
            }
            let stands = matches!(ownership.hand_over(), HandOver::Asked(standing) if standing == *asked);
            Ok(stands.then_some(OwnerKind::Resume { generation: newest.generation }))
        })
        .await
    }

    async fn hand(
        &mut self,
        by: &Name,
        decide: impl Fn(&Name, &Ownership) -> Result<Option<OwnerKind>>,
    ) -> Result<HandOver> {
        self.refresh().await?;
        let (site, name) = (self.site().clone(), self.name().clone());
        let author = Author { site: by.clone(), writer: WriterId::random(), process: process::current() };
        let hand = Hand { site: &site, name: &name, domain: self.id(), author };
        let horizon = self.horizon_mut();
        hand.append(horizon, || site.now(), |ownership| decide(&name, ownership)).await?;
        Ok(horizon.ownership().hand_over())
    }
}

/// Whether there is anything that a resume of the owner ends.
pub(super) fn may_resume(ownership: &Ownership) -> bool {
    matches!(ownership.hand_over(), HandOver::Asked(_) | HandOver::Released(..))
}

fn lost(name: &Name, newest: &GenerationInfo, by: &Name) -> Error {
    let why = format!("domain {name} is owned by site {} since {}", newest.author.site, newest.claimed);
    Error::new(ErrorKind::Fenced, format!("{why}: site {by} cannot go on with it"))
}

fn refuse(why: String) -> Error {
    Error::new(ErrorKind::Refused, why)
}
