//! What was last seen of domains in their stores: looked at now and then, told at once.
//!
//! ```text
//! every stores.look_every: each domain that is not protected here, stores.looks side by side
//!     two requests where nothing happened: the next owner record, the status
//!     else the whole of it: tip, newest manifest, segments after it
//! ```
//!
//! Owns the memory of looks. It writes nothing to a store. A domain whose name now belongs to another one, as when a
//! store was swapped, is told as damaged and never shown as ours.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;

use super::catalog::{Catalog, DomainRecord};
use super::stores::OpenStores;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Status;
use crate::ids::{DomainId, Name, Time};
use crate::scan::{DomainSummary, summarise};
use crate::store::{Domain, Ownership, StorageSite};

/// A look that saw the domain.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    /// When, by the appliance's clock.
    pub(crate) at: Time,
    /// What was seen.
    pub(crate) found: Arc<DomainSummary>,
    /// Site that claimed the domain first.
    pub(crate) home: Option<Name>,
}

/// A look that saw nothing.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    /// When, by the appliance's clock.
    pub(crate) at: Time,
    /// What kind of trouble it was.
    kind: ErrorKind,
    /// Why, in words.
    pub(crate) why: String,
}

impl Failed {
    /// The store did not answer: what was seen before may well be so still. Otherwise it answered that it is not.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self.kind, ErrorKind::Unreachable | ErrorKind::Denied)
    }
}

/// What is known of a domain by looking.
#[derive(Debug, Clone, Default)]
pub(crate) struct Last {
    /// The last look that saw it.
    pub(crate) seen: Option<Look>,
    /// The last look, where that saw nothing.
    pub(crate) failed: Option<Failed>,
}

impl Last {
    /// Site that claimed the domain first.
    pub(crate) fn home(&self) -> Option<&Name> {
        self.seen.as_ref().and_then(|look| look.home.as_ref())
    }
}

/// A view that was kept, to see at little cost whether anything happened.
#[derive(Clone)]
struct Kept {
    view: Domain,
    status: Option<Status>,
    look: Look,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Looks {
    kept: Mutex<HashMap<Name, Kept>>,
    failed: Mutex<HashMap<Name, Failed>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses a domain of the right name and another identity.
pub(crate) fn check_identity(expected: Option<DomainId>, found: &Domain) -> Result<()> {
    match expected {
        Some(expected) if expected != found.id() => {
            let (name, url, id) = (found.name(), found.site().url(), found.id());
            let why = format!("storage site {url} holds another domain {name}: {id}, not {expected}");
            let advice =
                "the store was swapped or the domain made anew; forget it here and import it again if that is meant";
            Err(Error::new(ErrorKind::Damaged, format!("{why}; {advice}")))
        }
        _ => Ok(()),
    }
}

/// Points that covered VMs then and are older than what is looked at now: they count on, unless they were cut off or
/// given up since.
fn remember_cover(summary: &mut DomainSummary, before: &DomainSummary, ownership: &Ownership) {
    for (vm, point) in &before.covered_by {
        let counts = point.at.segment >= ownership.floor() && ownership.common(point.at) == Some(point.at);
        if counts && summary.catalogue.vm(*vm).is_some() {
            summary.covered_by.entry(*vm).or_insert(*point);
        }
    }
}

impl Looks {
    /// What was last seen.
    pub(crate) fn last(&self, domain: &Name) -> Last {
        let seen = lock(&self.kept).get(domain).map(|kept| kept.look.clone());
        Last { seen, failed: lock(&self.failed).get(domain).cloned() }
    }

    /// Forgets a domain.
    pub(crate) fn forget(&self, domain: &Name) {
        lock(&self.kept).remove(domain);
        lock(&self.failed).remove(domain);
    }

    /// Looks now.
    ///
    /// # Errors
    /// What the store says; it is remembered as the look's result.
    pub(crate) async fn look(&self, stores: &OpenStores, record: &DomainRecord, now: Time) -> Result<Look> {
        self.remember(self.read(stores, record, now).await, record, now)
    }

    /// The same, but where the owner's own word is what it was, what was seen then is taken to be so still. It speaks up
    /// only now and then, so that this may be a little old.
    async fn look_again(&self, stores: &OpenStores, record: &DomainRecord, now: Time) -> Result<Look> {
        self.remember(self.read_if_changed(stores, record, now).await, record, now)
    }

    fn remember(&self, looked: Result<Kept>, record: &DomainRecord, now: Time) -> Result<Look> {
        match looked {
            Ok(kept) => {
                let look = kept.look.clone();
                lock(&self.kept).insert(record.name.clone(), kept);
                lock(&self.failed).remove(&record.name);
                Ok(look)
            }
            Err(error) => {
                let failed = Failed { at: now, kind: error.kind(), why: error.to_string() };
                lock(&self.failed).insert(record.name.clone(), failed);
                Err(error)
            }
        }
    }

    async fn read_if_changed(&self, stores: &OpenStores, record: &DomainRecord, now: Time) -> Result<Kept> {
        let site = stores.open(&record.store).await?;
        if let Some(mut kept) = self.kept_of(record, &site) {
            let grown = kept.view.refresh().await?;
            let status = kept.view.status().await?;
            let quiet =
                |a: &Status, b: &Status| (a.point, a.mode, a.author.writer) == (b.point, b.mode, b.author.writer);
            let is_quiet = match (&status, &kept.status) {
                (Some(now), Some(then)) => quiet(now, then),
                (None, None) => true,
                _ => false,
            };
            if !grown && is_quiet {
                let mut summary = DomainSummary::clone(&kept.look.found);
                let store_now = site.now();
                if let (Some(point), Some(_)) = (&mut summary.point, &status) {
                    point.age_ms = store_now.millis_since(point.time);
                }
                let seen = status.as_ref().map(|status| store_now.millis_since(status.at));
                summary.last_sign.age_ms = seen.unwrap_or(summary.last_sign.age_ms);
                kept.look = Look { at: now, found: Arc::new(summary), home: kept.look.home.clone() };
                kept.status = status;
                return Ok(kept);
            }
        }
        self.read(stores, record, now).await
    }

    async fn read(&self, stores: &OpenStores, record: &DomainRecord, now: Time) -> Result<Kept> {
        let site = stores.open(&record.store).await?;
        let view = Domain::open(&site, &record.name).await?;
        check_identity(record.id, &view)?;
        let home = view.ownership().generations().first().map(|first| first.author.site.clone());
        let status = view.status().await?;
        let mut summary = summarise(view.clone()).await?;
        if let Some(before) = self.kept_of(record, &site) {
            remember_cover(&mut summary, &before.look.found, view.ownership());
        }
        Ok(Kept { view, status, look: Look { at: now, found: Arc::new(summary), home } })
    }

    /// What was kept of this very domain.
    fn kept_of(&self, record: &DomainRecord, site: &StorageSite) -> Option<Kept> {
        let before = lock(&self.kept).get(&record.name).cloned();
        before.filter(|kept| kept.view.site().url() == site.url() && record.id == Some(kept.view.id()))
    }

    /// Looks at all domains that `skip` does not name, `side_by_side` at a time.
    ///
    /// # Errors
    /// What the catalog says; what stores say is remembered with their domains.
    pub(crate) async fn round(
        &self,
        stores: &OpenStores,
        catalog: &Catalog,
        side_by_side: usize,
        skip: impl Fn(&Name) -> bool,
        now: impl Fn() -> Time,
    ) -> Result<usize> {
        let records = catalog.call(|db| DomainRecord::list(db, "", usize::MAX)).await?;
        let due: Vec<DomainRecord> = records.into_iter().filter(|r| r.id.is_some() && !skip(&r.name)).collect();
        let looks = due.iter().map(|record| async {
            let look = async {
                if let Err(error) = self.look_again(stores, record, now()).await {
                    tracing::debug!("look: {error}");
                }
            };
            tracing::Instrument::instrument(look, crate::log_context::domain(&record.name)).await;
        });
        let looks: Vec<_> = looks.collect();
        let count = looks.len();
        futures::stream::iter(looks).buffer_unordered(side_by_side).collect::<Vec<()>>().await;
        Ok(count)
    }
}
