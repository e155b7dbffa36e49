//! Deleting a whole domain: what that would destroy, and doing it.
//!
//! ```text
//! claim (by the caller) -> segments, pages, manifests -> finish the writer -> status -> owner records, last one first
//! ```
//!
//! The only place that deletes a domain's objects. Invariants: whoever deletes owns the domain while its content goes; a
//! crash leaves a domain whose log of owners is whole, so that deleting can be gone on with; objects that are not ours
//! stay.

use futures::{StreamExt, TryStreamExt};

use super::keys::{self, ObjectKey};
use super::{Domain, DomainWriter, StorageSite};
use crate::error::Result;
use crate::ids::Name;

/// Objects listed before they are deleted: keys are held in memory.
const BATCH: usize = 4096;
/// Objects deleted side by side.
const PARALLEL: usize = 16;

/// What a domain has in its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Inventory {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Domain {
    /// Counts the domain's objects, by listing.
    pub async fn inventory(&self) -> Result<Inventory> {
        let mut found = Inventory::default();
        let mut listing = self.site().list(&self.name().key(), None);
        while let Some(object) = listing.try_next().await? {
            if is_of(&object.key, self.name()) {
                found.objects += 1;
                found.bytes += object.len;
            }
        }
        Ok(found)
    }
}

fn is_of(key: &str, name: &Name) -> bool {
    ObjectKey::parse(key).is_some_and(|(domain, _)| domain == *name)
}

/// Deletes all objects of the domain that `writer` has claimed; `deleted` is told how many are gone.
///
/// # Errors
/// What the store says. Then some are gone and a new claim and a new call go on.
pub async fn erase(writer: DomainWriter, mut deleted: impl FnMut(u64) + Send) -> Result<u64> {
    let domain = writer.domain().clone();
    let (site, name) = (domain.site().clone(), domain.name().clone());
    let mut count = 0;
    loop {
        let content = |key: &ObjectKey| !matches!(key, ObjectKey::Owner(_) | ObjectKey::Status);
        let keys = some(&site, &name, content).await?;
        if keys.is_empty() {
            break;
        }
        let delete = |key: String| {
            let site = site.clone();
            async move { site.delete(&key).await }
        };
        let mut gone = futures::stream::iter(keys.into_iter().map(delete)).buffer_unordered(PARALLEL);
        while gone.try_next().await?.is_some() {
            count += 1;
            deleted(count);
        }
    }
    // From here on nothing beats any more, and so nothing writes the status again.
    writer.finish().await?;
    site.delete(&keys::status(&name)).await?;
    loop {
        let mut records = some(&site, &name, |key| matches!(key, ObjectKey::Owner(_))).await?;
        if records.is_empty() {
            break;
        }
        // The last one first: what is left is a log without gaps.
        records.sort_unstable();
        for key in records.iter().rev() {
            site.delete(key).await?;
            count += 1;
            deleted(count);
        }
    }
    Ok(count)
}

/// Some of the domain's keys that `wanted` takes; none where there are none.
async fn some(site: &StorageSite, name: &Name, wanted: impl Fn(&ObjectKey) -> bool) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    let mut listing = site.list(&name.key(), None);
    while let Some(object) = listing.try_next().await? {
        match ObjectKey::parse(&object.key) {
            Some((domain, key)) if domain == *name && wanted(&key) => keys.push(object.key),
            _ => {}
        }
        if keys.len() == BATCH {
            break;
        }
    }
    Ok(keys)
}
