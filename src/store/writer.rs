//! The one writer of a domain: how it starts, what it may believe of its own segments, how it notices that it is not the
//! writer any more.
//!
//! ```text
//! may it start? -> claim -> look for the tip -> settle the base -> beat ... accept_up_to ... -> finish
//!   Refused         '-- lost the number: decide anew      '-- superseded: Fenced
//! ```
//!
//! Every start claims, restarts included, so that objects still in flight from a dead process never become visible. The
//! tip is looked at only after the claim landed. Nothing is believed by the writer that a reader could not believe.
//!
//! What the writer's user must keep: segments of generation [`DomainWriter::generation`], numbered from
//! [`DomainWriter::first`] without gaps; `accept_up_to(n)` only once the creates of all segments up to n have returned;
//! **a manifest or map page cut at n only after n was accepted**; nothing reported, trimmed or cleared before that.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::liveness::{self, live_writer, name_writer};
use super::owner_log::{self, Appended, Draft};
use super::process::{self, LocalWriter};
use super::seat::Seat;
use super::{Asked, BaseChoice, Domain, Effect, GenerationInfo, Horizon, StorageSite, prefix};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Author, Digest, OwnerKind, ProcessIdentity};
use crate::ids::{DomainId, Generation, Name, SegmentRef, Time, WriterId};

/// Most times that a writer decides anew because another record won the number.
const MAX_RACES: usize = 32;

/// How a writer starts.
#[derive(Clone)]
pub struct StartOptions {
    /// Take the domain over, whoever owns it, and go on from there. `None`: start only what is ours.
    pub take_ownership: Option<BaseChoice>,
    /// Clock of records and heartbeats; the store's unless told.
    pub clock: Option<Arc<dyn Clock>>,
    /// Take it over only with the consent of its owner: where that has released it, and not taken that back.
    pub only_released: bool,
    /// Time between heartbeats; 5 s unless told. Other hosts think a writer dead after 30 s of silence.
    pub beat_every: Duration,
    /// Time between two looks for who asks for the domain; 2.5 s unless told. A writer that ships looks anyway; an idle one
    /// pays 24 GETs a minute by default, besides its heartbeats.
    pub look_every: Duration,
    /// The process that starts; this one unless told.
    pub process: Option<ProcessIdentity>,
}

impl Default for StartOptions {
    fn default() -> StartOptions {
        StartOptions {
            take_ownership: None,
            clock: None,
            only_released: false,
            beat_every: Duration::from_secs(5),
            look_every: Duration::from_millis(2500),
            process: None,
        }
    }
}

/// The store's clock as a [`Clock`].
struct StoreTime(StorageSite);

impl std::fmt::Debug for StoreTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the clock of {}", self.0.url())
    }
}

impl Clock for StoreTime {
    fn now(&self) -> Time {
        self.0.now()
    }
}

/// The right to write a domain, from a claim until it is superseded or finished. Dropping it stops the heartbeat.
pub struct DomainWriter {
    domain: Domain,
    generation: Generation,
    base: SegmentRef,
    base_digest: Digest,
    warnings: Vec<String>,
    seat: Arc<Seat>,
    heartbeat: tokio::task::JoinHandle<()>,
    _registered: LocalWriter,
}

impl DomainWriter {
    /// Claims domain `name` for the site `site_name` and settles what the new generation inherits. The first claim of a
    /// name makes the domain. Starts the heartbeat on the current tokio runtime.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] where another site owns it, it was released, or another writer of this site lives, each
    /// saying who, since when, and what a take-over would cut off; [`ErrorKind::Fenced`] where another claim came between.
    pub async fn start(
        site: &StorageSite,
        name: &Name,
        site_name: &Name,
        options: StartOptions,
    ) -> Result<DomainWriter> {
        let clock = options.clock.clone().unwrap_or_else(|| Arc::new(StoreTime(site.clone())));
        let process = options.process.clone().unwrap_or_else(process::current);
        let author = Author { site: site_name.clone(), writer: WriterId::random(), process };
        let registered = LocalWriter::register(author.writer);
        let mut start = Start { site, name, author, clock, options: &options, horizon: Horizon::default() };
        let domain_id = start.claim().await?;
        let settled = start.settle(domain_id).await?;
        let Start { author, clock, horizon, .. } = start;
        let generation = horizon.ownership().newest_generation();
        let domain = Domain::with(site, name, domain_id, horizon.clone());
        let seat = Arc::new(Seat::new(site, name, domain_id, author, generation, clock, horizon));
        seat.beat().await?;
        Ok(DomainWriter {
            domain,
            generation,
            base: settled.base,
            base_digest: settled.digest,
            warnings: settled.warnings,
            heartbeat: crate::log_context::spawn(seat.clone().keep_beating(options.beat_every, options.look_every)),
            seat,
            _registered: registered,
        })
    }

    /// The domain as it was inherited: its known tip is the base.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Generation of its segments.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// This run.
    pub fn writer(&self) -> WriterId {
        self.seat.author().writer
    }

    /// The last inherited segment, parent of the first own one; zero for nothing.
    pub fn base(&self) -> SegmentRef {
        self.base
    }

    /// Digest of the index of that segment; zero for nothing, or where it is damaged.
    pub fn base_digest(&self) -> Digest {
        self.base_digest
    }

    /// The first own segment.
    pub fn first(&self) -> SegmentRef {
        SegmentRef::new(self.generation, self.base.segment.next())
    }

    /// What was found damaged on the way and passed over.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Accepts all own segments up to `at`, whose creates must all have returned before the call: reads the next
    /// ownership record, and only where there is none are they part of the domain.
    ///
    /// # Errors
    /// [`ErrorKind::Fenced`] where another claim superseded this writer: what was not accepted is not part of the
    /// domain, unless the new owner inherits it.
    pub async fn accept_up_to(&self, at: SegmentRef) -> Result<()> {
        if at.generation != self.generation {
            let why = format!("{at} is not a segment of generation {}", self.generation);
            return Err(Error::new(ErrorKind::Internal, why));
        }
        match at.segment > self.base.segment {
            true => self.seat.accept(at).await,
            false => Ok(()),
        }
    }

    /// The newest own segment that was accepted; the base before that.
    pub async fn accepted(&self) -> SegmentRef {
        self.seat.tip().await
    }

    /// The domain as this writer knows it now: its known tip is what was accepted.
    pub async fn view(&self) -> Domain {
        let horizon = self.seat.horizon().await;
        Domain::with(self.domain.site(), self.domain.name(), self.domain.id(), horizon)
    }

    /// Fails with [`ErrorKind::Fenced`] once it is known that this writer is superseded; asks nobody.
    pub fn check(&self) -> Result<()> {
        self.seat.check()
    }

    /// Told of who asks for the domain, within [`StartOptions::look_every`].
    pub fn asked(&self) -> watch::Receiver<Option<Asked>> {
        self.seat.asked()
    }

    /// Gives the domain up, up to what was accepted, and answers when that was. Whoever writes it must have seen to it that
    /// nothing comes after that. Giving up twice is giving up once.
    ///
    /// # Errors
    /// `Fenced`; what the storage site says: then the release may be there all the same, or come to be there, until
    /// [`DomainWriter::release`] or [`DomainWriter::go_on`] has succeeded.
    pub async fn release(&self) -> Result<Time> {
        self.seat.release().await
    }

    /// Goes on with the domain: turns down who asks for it, or takes a release back. Once it has succeeded, no release that
    /// was tried before stands, or comes to.
    ///
    /// # Errors
    /// `Fenced` where another site has claimed it; what the storage site says.
    pub async fn go_on(&self, release_tried: bool) -> Result<()> {
        self.seat.resume(release_tried).await
    }

    /// Tells the newest accepted point, for the next heartbeat.
    pub fn report_point(&self, at: SegmentRef, time: Time) {
        self.seat.report_point(at, time);
    }

    /// Ends the writer: the status says idle, and the next one may start at once.
    pub async fn finish(self) -> Result<()> {
        self.heartbeat.abort();
        self.seat.end().await
    }
}

impl Drop for DomainWriter {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

/// What the new generation inherits.
struct Settled {
    base: SegmentRef,
    digest: Digest,
    warnings: Vec<String>,
}

/// A start under way.
struct Start<'a> {
    site: &'a StorageSite,
    name: &'a Name,
    author: Author,
    clock: Arc<dyn Clock>,
    options: &'a StartOptions,
    horizon: Horizon,
}

impl Start<'_> {
    fn draft(&self, domain: DomainId, kind: OwnerKind) -> Draft {
        Draft { domain, at: self.clock.now(), author: self.author.clone(), kind }
    }

    fn view(&self, domain: DomainId) -> Domain {
        Domain::with(self.site, self.name, domain, self.horizon.clone())
    }

    /// Writes the claim, once it may; the identity of the domain.
    async fn claim(&mut self) -> Result<DomainId> {
        self.horizon = Horizon::new(owner_log::read_all(self.site, self.name).await?);
        for _ in 0..MAX_RACES {
            let take_over = self.may_start().await?;
            let ownership = self.horizon.ownership();
            let domain = ownership.domain().unwrap_or_else(DomainId::random);
            let kind = OwnerKind::Claim { generation: ownership.newest_generation().next(), take_over };
            let draft = self.draft(domain, kind);
            match owner_log::append(self.site, self.name, &mut self.horizon, &draft).await? {
                Appended::Written(Effect::Applied) => return Ok(domain),
                Appended::Written(Effect::Void(why)) => return Err(self.void("claim", why)),
                Appended::Lost => {}
            }
        }
        Err(self.too_many_races())
    }

    /// Decides whether to claim, and whether that takes the domain from another site.
    async fn may_start(&self) -> Result<bool> {
        let ownership = self.horizon.ownership();
        let (Some(newest), Some(id)) = (ownership.newest(), ownership.domain()) else { return Ok(false) };
        let own = newest.author.site == self.author.site;
        if self.options.only_released && !own && newest.released.is_none() {
            let why =
                format!("domain {} is owned by site {}, which has not released it", self.name, newest.author.site);
            return Err(self.refuse(format!("{why}, or has taken that back; nothing was claimed")));
        }
        if own && let Some(released) = newest.released.filter(|_| !self.takes_back()) {
            return Err(self.handed_over(newest, released));
        }
        if self.options.take_ownership.is_some() {
            let freely_given = newest.released.is_some() && !own;
            let still_ours = newest.released.is_none() && own;
            return Ok(!freely_given && !still_ours);
        }
        let view = self.view(id);
        if !own || newest.released.is_some() {
            let preview = match view.preview_take_over(BaseChoice::default()).await {
                Ok(preview) => preview.to_string(),
                Err(error) => format!("domain {} is owned by site {}; {error}", self.name, newest.author.site),
            };
            let advice = format!("--take-ownership makes site {} its owner", self.author.site);
            return Err(self.refuse(format!("{preview}. {advice}")));
        }
        let status = view.status().await?;
        match live_writer(newest, status.as_ref(), self.clock.now(), &self.author.process) {
            None => Ok(false),
            Some(sign) => {
                let who = name_writer(&newest.author);
                let heard = liveness::age(sign.age_ms);
                let why =
                    format!("another writer of site {} is at work: {who}, last heard {heard} ago", self.author.site);
                let advice = "end it, or wait until it is silent for 30 s";
                Err(self.refuse(format!(
                    "domain {}, generation {}: {why}; {advice}",
                    self.name,
                    newest.generation.get()
                )))
            }
        }
    }

    /// Whether a domain that this site released is taken back by force.
    fn takes_back(&self) -> bool {
        self.options.take_ownership.is_some() && !self.options.only_released
    }

    fn handed_over(&self, newest: &GenerationInfo, released: Time) -> Error {
        let (name, site) = (self.name, &self.author.site);
        let age = liveness::age(self.clock.now().millis_since(released));
        let why =
            format!("domain {name} was released by this site, {site}, {age} ago (generation {})", newest.generation);
        let advice = "it writes nothing until it takes that back, which it may while no other site has claimed the domain: \
                      `freshet hand-over --resume`";
        Error::new(ErrorKind::Fenced, format!("storage site {}: {why}; {advice}", self.site.url()))
    }

    /// Looks for what the claim inherits and writes the base.
    async fn settle(&mut self, id: DomainId) -> Result<Settled> {
        let tip = prefix::inheritable(self.site, self.name, self.horizon.ownership()).await?;
        let inherited = self.view(id).as_if_inherited(tip);
        let choice = self.options.take_ownership.unwrap_or(BaseChoice::Tip);
        let (base, _) = inherited.base_for(choice).await?;
        let mut settled = Settled { base, digest: Digest::default(), warnings: Vec::new() };
        if base != SegmentRef::default() {
            match inherited.segment_header(base).await {
                Ok(header) => settled.digest = header.index_digest,
                Err(e) if e.kind() == ErrorKind::Damaged => settled.warnings.push(e.to_string()),
                Err(error) => return Err(error),
            }
        }
        for _ in 0..MAX_RACES {
            let newest = self.horizon.ownership().newest().expect("our claim is there");
            if newest.author.writer != self.author.writer {
                return Err(super::seat::fenced(self.name, newest));
            }
            let kind = OwnerKind::Base { generation: newest.generation, last: base, digest: settled.digest };
            let draft = self.draft(id, kind);
            match owner_log::append(self.site, self.name, &mut self.horizon, &draft).await? {
                Appended::Written(Effect::Applied) => return Ok(settled),
                Appended::Written(Effect::Void(why)) => return Err(self.void("base", why)),
                Appended::Lost => {}
            }
        }
        Err(self.too_many_races())
    }

    fn refuse(&self, why: String) -> Error {
        Error::new(ErrorKind::Refused, format!("storage site {}: {why}", self.site.url()))
    }

    fn void(&self, what: &str, why: super::Void) -> Error {
        self.refuse(format!("domain {}: the {what} has no effect, since {why}", self.name))
    }

    fn too_many_races(&self) -> Error {
        let why = format!("domain {}: another record came first {MAX_RACES} times in a row", self.name);
        self.refuse(format!("{why}; find out which writers start all the time"))
    }
}
