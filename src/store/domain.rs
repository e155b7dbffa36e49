//! One domain in a storage site, as a reader sees it: who owns it, which segments and manifests count, what they say.
//!
//! ```text
//! open --> ownership log --+-- tip         newest accepted segment, by listing; for one-time work
//!                          +-- next_after  the segment after one, by known keys; for followers
//!                          '-- manifests, index, points: only of what was accepted
//! ```
//!
//! Invariant: no object is handed out that is not accepted, see [`Ownership`] and [`Horizon`]. A `Domain` is a view that
//! moves only forward, by `refresh`, `tip` and `next_after`; clones move independently. It never writes.

use futures::{StreamExt, TryStreamExt};

use super::keys::{self, ObjectKey};
use super::recovery_settings::KnownSettings;
use super::{Horizon, Ownership, StorageSite, owner_log, prefix, reread};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Index, MAX_MANIFEST_LEN, Manifest, SEGMENT_HEADER_LEN, STATUS_LEN, SegmentHeader, Status};
use crate::ids::{DomainId, Name, SegmentNo, SegmentRef};

/// Most turns of a loop in which another record appeared each time.
const MAX_TURNS: usize = 1000;
/// Most keys that a follower looks at ahead of itself.
const MAX_WINDOW: u64 = 64;

/// A domain and what was read of its ownership so far.
#[derive(Clone)]
pub struct Domain {
    site: StorageSite,
    name: Name,
    id: DomainId,
    horizon: Horizon,
    window: u64,
    /// Shared by all clones.
    pub(super) settings: KnownSettings,
}

/// What comes after a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This one; it exists and counts.
    Segment(SegmentRef),
    /// Nothing yet: ask again later.
    NotYet,
    /// The segment that was asked from does not count any more, since a take-over cut it off: go back to this one.
    Rewound {
        /// The last segment that the follower's history and the chain share; zero for none.
        to: SegmentRef,
    },
}

/// The newest manifest that could be read, and what was wrong with newer ones.
#[derive(Debug, Clone, Default)]
pub struct FoundManifest {
    /// The manifest; `None` where there is none.
    pub manifest: Option<Manifest>,
    /// One text for each newer manifest that is damaged or missing.
    pub warnings: Vec<String>,
}

impl Domain {
    /// Opens a domain by reading its ownership log.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where there is no such domain, [`ErrorKind::Damaged`] where its log cannot be read.
    pub async fn open(site: &StorageSite, name: &Name) -> Result<Domain> {
        let ownership = owner_log::read_all(site, name).await?;
        let Some(id) = ownership.domain() else {
            let why = format!("storage site {}: there is no domain {name}", site.url());
            let advice = "`freshet scan` shows the domains that there are";
            return Err(Error::new(ErrorKind::NotFound, format!("{why}; {advice}")));
        };
        Ok(Domain::with(site, name, id, Horizon::new(ownership)))
    }

    pub(super) fn with(site: &StorageSite, name: &Name, id: DomainId, horizon: Horizon) -> Domain {
        let settings = KnownSettings::default();
        Domain { site: site.clone(), name: name.clone(), id, horizon, window: 1, settings }
    }

    /// Its identity.
    pub fn id(&self) -> DomainId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Where it is.
    pub fn site(&self) -> &StorageSite {
        &self.site
    }

    pub(super) fn horizon_mut(&mut self) -> &mut Horizon {
        &mut self.horizon
    }

    /// What its ownership log says, as far as it was read.
    pub fn ownership(&self) -> &Ownership {
        self.horizon.ownership()
    }

    /// Reads what was appended to the ownership log; whether there was anything.
    pub async fn refresh(&mut self) -> Result<bool> {
        Ok(owner_log::refresh(&self.site, &self.name, &mut self.horizon).await? > 0)
    }

    /// The newest segment that counts, after looking; zero for none. While a claim has not settled its base, nothing
    /// beyond the last settled one can be accepted: see [`Ownership::unsettled`].
    pub async fn tip(&mut self) -> Result<SegmentRef> {
        self.refresh().await?;
        for _ in 0..MAX_TURNS {
            let Some(open) = self.ownership().newest().filter(|g| g.base.is_some()) else { break };
            let (generation, after) = (open.generation, self.horizon.tip().segment);
            let last = prefix::by_listing(&self.site, &self.name, generation, after).await?;
            let Some(seen) = self.horizon.seen(SegmentRef::new(generation, last)) else { break };
            if !owner_log::advance(&self.site, &self.name, &mut self.horizon).await? {
                self.horizon.accept(&seen);
                break;
            }
            self.refresh().await?;
        }
        Ok(self.horizon.tip())
    }

    /// An earlier run of this reader accepted `at`, which this type or a clone of it gave out: see [`Horizon::remember`].
    pub fn remember(&mut self, at: SegmentRef) {
        self.horizon.remember(at);
    }

    /// Why segments may exist that do not count yet, and what ends that; `None` where nothing waits.
    pub fn hidden(&self) -> Option<String> {
        let claim = self.ownership().unsettled()?;
        let age = super::liveness::age(self.site.now().millis_since(claim.claimed));
        let (who, generation) = (&claim.author.site, claim.generation);
        let why = format!("site {who} claimed generation {generation} {age} ago and has not said what it goes on from");
        Some(format!(
            "{why}: segments after {} wait for that, and the next `freshet replicate` says it",
            self.known_tip()
        ))
    }

    /// The newest segment known to count, without looking.
    pub fn known_tip(&self) -> SegmentRef {
        self.horizon.tip()
    }

    /// Which generation's object is segment `n`; `None` for zero and beyond the known tip.
    pub fn locate(&self, n: SegmentNo) -> Option<SegmentRef> {
        self.horizon.locate(n)
    }

    /// Whether the object of this generation and number counts, as far as the view reaches.
    pub fn accepts(&self, at: SegmentRef) -> bool {
        self.horizon.accepts(at)
    }

    /// For followers: what comes after `at`, which this function or `tip` gave out before, be it to an earlier run;
    /// zero at the beginning. By known keys only: about two requests where there is nothing new, and less than one for
    /// each segment when catching up.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where `at` never was part of the chain.
    pub async fn next_after(&mut self, at: SegmentRef) -> Result<Next> {
        for _ in 0..MAX_TURNS {
            let common = self.ownership().common(at);
            if let Some(to) = common.filter(|to| *to != at) {
                return Ok(Next::Rewound { to });
            }
            if common.is_some()
                && let Some(next) = self.locate(at.segment.next())
            {
                return Ok(Next::Segment(next));
            }
            let seen = match common {
                Some(_) => self.look_ahead(at).await?,
                None => None,
            };
            if owner_log::advance(&self.site, &self.name, &mut self.horizon).await? {
                continue;
            }
            if common.is_none() {
                let why = format!("{at} never was a segment of domain {}", self.name);
                return Err(Error::new(ErrorKind::Invalid, format!("storage site {}: {why}", self.site.url())));
            }
            let Some(seen) = seen else { return Ok(Next::NotYet) };
            self.horizon.accept(&seen);
            if self.locate(at.segment.next()).is_none() {
                return Ok(Next::NotYet);
            }
        }
        Err(self.restless())
    }

    /// Looks for segments after `at`, by known keys, twice as many as the last time while all of them exist.
    async fn look_ahead(&mut self, at: SegmentRef) -> Result<Option<super::Seen>> {
        let Some(open) = self.ownership().newest().filter(|g| g.base.is_some()) else { return Ok(None) };
        let first = SegmentRef::new(open.generation, at.segment.next());
        let last = prefix::by_keys(&self.site, &self.name, first, self.window).await?;
        let found = last.map_or(0, |last| last.segment.get() - at.segment.get());
        self.window = match found == self.window {
            true => (self.window * 2).min(MAX_WINDOW),
            false => found.max(1),
        };
        Ok(self.horizon.seen(last.unwrap_or(at)))
    }

    fn restless(&self) -> Error {
        let why = format!("the ownership log of domain {} changed at each of {MAX_TURNS} looks", self.name);
        Error::new(ErrorKind::Unreachable, format!("storage site {}: {why}", self.site.url()))
    }

    /// Accepted manifests up to the known tip, ascending, by listing.
    pub async fn manifests(&self) -> Result<Vec<SegmentRef>> {
        let mut found = Vec::new();
        let mut listing = self.site.list(&keys::manifest_prefix(&self.name), None);
        while let Some(object) = listing.try_next().await? {
            match ObjectKey::parse(&object.key) {
                Some((_, ObjectKey::Manifest(cut))) if self.accepts(cut) => found.push(cut),
                _ => {}
            }
        }
        found.sort_by_key(|cut| cut.segment);
        Ok(found)
    }

    /// An accepted manifest.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] where it is damaged or missing, [`ErrorKind::Invalid`] where it does not count.
    pub async fn manifest(&self, at: SegmentRef) -> Result<Manifest> {
        self.must_count("manifest", at)?;
        let key = keys::manifest(&self.name, at);
        reread(|| async {
            let Some(bytes) = self.site.get(&key, MAX_MANIFEST_LEN).await? else { return Err(self.missing(&key)) };
            Manifest::decode(&bytes, self.id, at).map_err(|e| e.at(self.place(&key)))
        })
        .await
    }

    /// The newest accepted manifest cut at or before segment `n` that can be read; damaged ones are passed over and
    /// told of.
    pub async fn manifest_at_or_before(&self, n: SegmentNo) -> Result<FoundManifest> {
        let mut warnings = Vec::new();
        for cut in self.manifests().await?.into_iter().rev().filter(|cut| cut.segment <= n) {
            match self.manifest(cut).await {
                Ok(manifest) => return Ok(FoundManifest { manifest: Some(manifest), warnings }),
                Err(error) if error.kind() == ErrorKind::Damaged => warnings.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        Ok(FoundManifest { manifest: None, warnings })
    }

    /// The first bytes of an accepted segment, verified.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] where it is damaged or missing, [`ErrorKind::Invalid`] where it does not count.
    pub async fn segment_header(&self, at: SegmentRef) -> Result<SegmentHeader> {
        self.must_count("segment", at)?;
        reread(|| self.read_header(at)).await
    }

    async fn read_header(&self, at: SegmentRef) -> Result<SegmentHeader> {
        let key = keys::segment(&self.name, at);
        let Some(head) = self.site.get_range(&key, 0..SEGMENT_HEADER_LEN as u64).await? else {
            return Err(self.missing(&key));
        };
        let object_len = head.object_len;
        let header = SegmentHeader::open(&head.into_bytes(), self.id, at).map_err(|e| e.at(self.place(&key)))?;
        match header.total_len == object_len {
            true => Ok(header),
            false => {
                let why = format!("has {object_len} bytes, its header says {}", header.total_len);
                Err(Error::new(ErrorKind::Damaged, format!("{}: {why}", self.place(&key))))
            }
        }
    }

    /// Header and index of an accepted segment, verified, by two range reads.
    ///
    /// # Errors
    /// As [`Domain::segment_header`].
    pub async fn index(&self, at: SegmentRef) -> Result<(SegmentHeader, Index)> {
        let header = self.segment_header(at).await?;
        let key = keys::segment(&self.name, at);
        let range = header.index_pos..header.index_pos + u64::from(header.index_len);
        let index = reread(|| async {
            let Some(bytes) = self.site.get_range(&key, range.clone()).await? else { return Err(self.missing(&key)) };
            Index::decode(&bytes.into_bytes(), &header).map_err(|e| e.at(self.place(&key)))
        });
        let index = index.await?;
        Ok((header, index))
    }

    /// The writer's latest word. Trusted for nothing: `None` where there is none that can be read.
    pub async fn status(&self) -> Result<Option<Status>> {
        read_status(&self.site, &self.name, self.id).await
    }

    fn must_count(&self, what: &str, at: SegmentRef) -> Result<()> {
        if self.accepts(at) {
            return Ok(());
        }
        let why = format!("{what} {at} is not an accepted part of domain {}", self.name);
        Err(Error::new(ErrorKind::Invalid, format!("storage site {}: {why}", self.site.url())))
    }

    fn missing(&self, key: &str) -> Error {
        Error::new(ErrorKind::Damaged, format!("{} is missing", self.place(key)))
    }

    fn place(&self, key: &str) -> String {
        format!("storage site {}: object {key}", self.site.url())
    }
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "domain {} at {} up to {}", self.name, self.site.url(), self.known_tip())
    }
}

/// The status of a domain; what cannot be read as one, or belongs to another domain, is as good as none.
pub(super) async fn read_status(site: &StorageSite, name: &Name, id: DomainId) -> Result<Option<Status>> {
    let key = keys::status(name);
    let bytes = match site.get(&key, STATUS_LEN as u64).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::Damaged => return Ok(None),
        Err(error) => return Err(error),
    };
    match Status::decode(&bytes) {
        Ok(status) if status.domain == id => Ok(Some(status)),
        Ok(_) => Ok(None),
        Err(error) => {
            tracing::warn!("{key}: {error}; going on without it");
            Ok(None)
        }
    }
}

/// Domains opened at a time.
const PARALLEL_OPENS: usize = 64;

/// All domains of a site, ascending by name, each opened or with the reason why not: one listing of folders, then the
/// ownership logs in parallel. Folders that are not ours and names that were never claimed are left out.
pub async fn list_domains(site: &StorageSite) -> Result<Vec<(Name, Result<Domain>)>> {
    let folders = site.list_dirs("").await?;
    let names: Vec<Name> = folders.iter().filter_map(|folder| Name::from_key(folder)).collect();
    let opens = names.into_iter().map(|name| async move {
        let domain = Domain::open(site, &name).await;
        (name, domain)
    });
    let mut opened = futures::stream::iter(opens).buffer_unordered(PARALLEL_OPENS);
    let mut found = Vec::new();
    while let Some((name, domain)) = opened.next().await {
        match domain {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            domain => found.push((name, domain)),
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}
