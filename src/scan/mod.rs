//! What a storage site holds: its domains, who owns them, what is in them, how old their newest points are.
//!
//! ```text
//! LIST of the site -> domains, many at once: ownership log, tip, newest manifest, segments after it, status
//! ```
//!
//! It writes nothing. A domain costs a fixed number of requests and two for each segment after its newest manifest,
//! however long its chain is. A domain that cannot be read is listed with the reason and does not stop the others.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Catalogue;
use crate::ids::{DomainId, Generation, Name, SegmentNo, SegmentRef, Time, VmId};
use crate::store::{Domain, LastSign, StorageSite, list_domains};

/// Domains that are read at once.
const DOMAINS: usize = 32;
/// Indexes of one domain that are read at once.
const INDEXES: usize = 8;

/// The newest point of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewestPoint {
    /// The segment that ends at it.
    pub at: SegmentRef,
    /// Its time.
    pub time: Time,
    /// Milliseconds since, by the store's clock.
    pub age_ms: u64,
    /// Whether a disk was open for writing while it was read.
    pub fuzzy: bool,
    /// Whether guests' file systems were frozen while it was cut.
    pub quiesced: bool,
}

/// What a readable domain is.
#[derive(Debug, Clone)]
pub struct DomainSummary {
    /// Identity.
    pub id: DomainId,
    /// Site that owns it.
    pub owner: Name,
    /// Host of the last writer.
    pub host: String,
    /// Newest generation.
    pub generation: Generation,
    /// When the owner released it, if it did.
    pub released: Option<Time>,
    /// The last sign of the writer.
    pub last_sign: LastSign,
    /// VMs and disks, as of the newest segment.
    pub catalogue: Catalogue,
    /// Bytes of all disks.
    pub logical: u64,
    /// Live bytes as of the newest manifest; `None` where there is none.
    pub live: Option<u64>,
    /// Bytes of all accepted segments.
    pub stored: u64,
    /// Newest accepted segment; zero for none.
    pub tip: SegmentRef,
    /// Newest point; `None` where there is none.
    pub point: Option<NewestPoint>,
    /// The newest point that covers each VM, of those that were looked at: of the newest manifest and after it. A VM that
    /// none of them covers is not in it.
    pub covered_by: BTreeMap<VmId, NewestPoint>,
    /// What could not be read.
    pub warnings: Vec<String>,
}

impl DomainSummary {
    /// Whether the newest point covers a VM.
    pub fn covers(&self, vm: VmId) -> bool {
        let newest = self.point.as_ref().map(|point| point.at);
        newest.is_some() && self.covered_by.get(&vm).map(|point| point.at) == newest
    }
}

/// A domain, or why it cannot be read.
#[derive(Debug)]
pub struct Scanned {
    /// Name.
    pub name: Name,
    /// What it is.
    pub summary: Result<DomainSummary>,
}

/// Reads what `site` holds, sorted by name.
///
/// # Errors
/// What the store says where it does not answer; a damaged domain is no error, see [`Scanned`].
pub async fn scan(site: &StorageSite, cancel: &Cancel) -> Result<Vec<Scanned>> {
    let mut reads = futures::stream::iter(list_domains(site).await?)
        .map(|(name, opened)| async move {
            cancel.check()?;
            let read = match opened {
                Ok(domain) => summarise(domain).await,
                Err(e) => Err(e),
            };
            match read {
                Err(e) if e.kind() == ErrorKind::Damaged => Ok(Scanned { name, summary: Err(e) }),
                Err(e) => Err(e.while_doing(format!("domain {name}"))),
                Ok(summary) => Ok(Scanned { name, summary: Ok(summary) }),
            }
        })
        .buffer_unordered(DOMAINS);
    let mut found = Vec::new();
    while let Some(read) = reads.try_next().await? {
        found.push(read);
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Reads one domain.
///
/// # Errors
/// What the store says; `Damaged` where the domain cannot be read.
pub async fn summarise(mut domain: Domain) -> Result<DomainSummary> {
    let tip = domain.tip().await?;
    let status = domain.status().await?;
    let now = domain.site().now();
    let owner = domain.ownership().newest().cloned();
    let owner = owner.ok_or_else(|| Error::new(ErrorKind::Internal, "nobody claimed it"))?;
    let own = status.filter(|s| s.generation == owner.generation && s.author.writer == owner.author.writer);
    let seen = own.as_ref().map_or(owner.claimed, |s| s.at.max(owner.claimed));
    let mut summary = DomainSummary {
        id: domain.id(),
        owner: owner.author.site.clone(),
        host: owner.author.process.host_name.clone(),
        generation: owner.generation,
        released: owner.released,
        last_sign: LastSign { mode: own.map(|s| s.mode), age_ms: now.millis_since(seen) },
        catalogue: Catalogue::default(),
        logical: 0,
        live: None,
        stored: 0,
        tip,
        point: None,
        covered_by: BTreeMap::new(),
        warnings: Vec::new(),
    };
    fill(&domain, now, &mut summary).await?;
    summary.logical = summary.catalogue.disks.iter().map(|d| d.size).sum();
    Ok(summary)
}

/// Catalogue, sizes and newest point: from the newest manifest, and the segments after it.
async fn fill(domain: &Domain, now: Time, summary: &mut DomainSummary) -> Result<()> {
    let point = |at: SegmentRef, p: &crate::format::Point| NewestPoint {
        at,
        time: p.time,
        age_ms: now.millis_since(p.time),
        fuzzy: p.flags.fuzzy,
        quiesced: p.flags.quiesced,
    };
    let found = domain.manifest_at_or_before(summary.tip.segment).await?;
    summary.warnings = found.warnings;
    let mut first = 1;
    if let Some(manifest) = found.manifest {
        first = manifest.cut.segment.get() + 1;
        for (at, p) in &manifest.points {
            summary.covered_by.extend(p.vms.iter().map(|vm| (*vm, point(*at, p))));
        }
        summary.point = manifest.point().map(|p| point(manifest.cut, p));
        summary.live = Some(manifest.live_bytes());
        summary.stored = manifest.chain_bytes;
        summary.catalogue = manifest.catalogue;
    }
    let after = (first..=summary.tip.segment.get()).filter_map(|n| domain.locate(SegmentNo::new(n)));
    let mut indexes = futures::stream::iter(after).map(|at| async move { domain.index(at).await }).buffered(INDEXES);
    while let Some(read) = indexes.next().await {
        match read {
            Ok((header, index)) => {
                summary.stored += header.total_len;
                if let Some(p) = &index.point {
                    summary.point = Some(point(index.segment, p));
                    summary.covered_by.extend(p.vms.iter().map(|vm| (*vm, point(index.segment, p))));
                }
                summary.catalogue = index.catalogue.unwrap_or(std::mem::take(&mut summary.catalogue));
            }
            Err(e) if e.kind() == ErrorKind::Damaged => summary.warnings.push(e.to_string()),
            Err(e) => return Err(e),
        }
    }
    let floor = domain.ownership().floor();
    summary.covered_by.retain(|_, point| point.at.segment >= floor);
    Ok(())
}
