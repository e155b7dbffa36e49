//! The map of a domain at one point.
//!
//! Invariant: every segment index that is laid over the manifest continues the chain: it names its parent and carries the
//! digest of the parent's index. A map with a gap cannot be built.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::format::{
    Catalogue, Digest, Extent, FrameRef, Index, Manifest, MapPage, PAGE_SPAN, PageRef, Point, xxh3_128,
};
use crate::ids::{DiskId, DomainId, SegmentNo, SegmentRef};
use crate::store::{Domain, StorageSite, keys, reread};

use super::overlay::{Change, overlay};

/// Requests for indexes that are under way at once.
const INDEX_FETCHES: usize = 32;

/// One page of one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageKey {
    /// Disk.
    pub disk: DiskId,
    /// Number of the page: its first byte, divided by [`PAGE_SPAN`].
    pub page: u64,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct PointMap {
    domain: DomainId,
    at: SegmentRef,
    /// Digest of the index of segment `at`.
    digest: Digest,
    catalogue: Catalogue,
    manifest: Option<Manifest>,
    references: BTreeMap<PageKey, PageRef>,
    changes: BTreeMap<PageKey, Vec<Change>>,
    segments_since: u64,
    bytes_since: u64,
    points_since: Vec<(SegmentRef, Point)>,
}

impl PointMap {
    /// The map of a domain that has no segment yet.
    pub fn empty(domain: DomainId) -> PointMap {
        PointMap {
            domain,
            at: SegmentRef::default(),
            digest: Digest::default(),
            catalogue: Catalogue::default(),
            manifest: None,
            references: BTreeMap::new(),
            changes: BTreeMap::new(),
            segments_since: 0,
            bytes_since: 0,
            points_since: Vec::new(),
        }
    }

    /// The map at a manifest, without any segment after it.
    pub fn of_manifest(manifest: Manifest) -> PointMap {
        let disk = |p: &PageRef| manifest.catalogue.disks[p.disk as usize].id;
        let references = manifest.pages.iter().map(|p| (PageKey { disk: disk(p), page: p.page }, *p)).collect();
        PointMap {
            at: manifest.cut,
            digest: manifest.index_digest,
            catalogue: manifest.catalogue.clone(),
            references,
            manifest: Some(manifest.clone()),
            ..PointMap::empty(manifest.domain)
        }
    }

    /// The map at accepted segment `at`: from the newest readable manifest at or before it, and the indexes after that.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] where an index on the way is missing or damaged, naming the segment.
    pub async fn load(domain: &Domain, at: SegmentRef) -> Result<PointMap> {
        let mut manifests = domain.manifests().await?;
        manifests.retain(|m| m.segment <= at.segment);
        let mut map = PointMap::empty(domain.id());
        for cut in manifests.into_iter().rev() {
            match domain.manifest(cut).await {
                Ok(manifest) => {
                    map = PointMap::of_manifest(manifest);
                    break;
                }
                Err(e) if matches!(e.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                    tracing::warn!(%cut, error = %e, "manifest not usable, taking the one before");
                }
                Err(e) => return Err(e),
            }
        }
        map.advance(domain, at).await?;
        Ok(map)
    }

    /// Lays the indexes of all segments after this map's own, up to `at`, over it.
    pub async fn advance(&mut self, domain: &Domain, at: SegmentRef) -> Result<()> {
        let numbers = self.at.segment.get() + 1..=at.segment.get();
        let mut indexes = stream::iter(numbers)
            .map(|n| async move {
                let n = SegmentNo::new(n);
                let Some(segment) = domain.locate(n) else {
                    let why = format!("domain {}: segment {n} is not part of the accepted chain", domain.name());
                    return Err(Error::new(ErrorKind::Damaged, why));
                };
                domain.index(segment).await
            })
            .buffered(INDEX_FETCHES);
        while let Some((header, index)) = indexes.try_next().await? {
            self.apply(&index, header.index_digest, header.total_len)
                .while_doing(|| format!("domain {}", domain.name()))?;
        }
        match self.at == at {
            true => Ok(()),
            false => {
                let why = format!("domain {}: the chain leads to {}, not to {at}", domain.name(), self.at);
                Err(Error::new(ErrorKind::Damaged, why))
            }
        }
    }

    /// Lays one more segment over the map: its index, the digest of that, and the segment's length in bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] where the segment does not continue the chain.
    pub fn apply(&mut self, index: &Index, digest: Digest, segment_len: u64) -> Result<()> {
        if index.parent != self.at || index.parent_digest != self.digest || index.domain != self.domain {
            let (segment, parent) = (index.segment, index.parent);
            let why = format!("segment {segment} continues {parent}, but the chain stands at {}", self.at);
            return Err(Error::new(ErrorKind::Damaged, why));
        }
        if let Some(catalogue) = &index.catalogue {
            self.take_catalogue(catalogue.clone());
        }
        for (i, disk) in index.disks.iter().enumerate() {
            let entries = index.entries.iter().filter(|e| e.disk as usize == i);
            for e in entries {
                let frame = e.frame.map(|(pos, body)| FrameRef { segment: index.segment, pos, start: e.offset, body });
                self.change(disk.id, Change { offset: e.offset, len: e.len, frame });
            }
        }
        if let Some(point) = &index.point {
            self.points_since.push((index.segment, point.clone()));
        }
        self.at = index.segment;
        self.digest = digest;
        self.segments_since += 1;
        self.bytes_since += segment_len;
        Ok(())
    }

    /// What lies past the end of a disk that shrank is gone, also if the disk grows again.
    fn take_catalogue(&mut self, catalogue: Catalogue) {
        for old in std::mem::take(&mut self.catalogue).disks {
            let size = catalogue.disk(old.id).map_or(0, |d| d.size);
            if size < old.size {
                self.change(old.id, Change { offset: size, len: old.size - size, frame: None });
            }
        }
        self.catalogue = catalogue;
    }

    fn change(&mut self, disk: DiskId, change: Change) {
        if change.frame.is_some() {
            // A frame never crosses a page.
            let key = PageKey { disk, page: change.offset / PAGE_SPAN };
            self.changes.entry(key).or_default().push(change);
            return;
        }
        // Zeros matter only where something is; a range of zeros may be far longer than what is there.
        let end = change.offset.saturating_add(change.len);
        let first = PageKey { disk, page: change.offset / PAGE_SPAN };
        let last = PageKey { disk, page: end.saturating_sub(1) / PAGE_SPAN };
        let known = self.references.range(first..=last).map(|(k, _)| *k);
        let keys: BTreeSet<PageKey> = known.chain(self.changes.range(first..=last).map(|(k, _)| *k)).collect();
        for key in keys {
            let from = change.offset.max(key.page * PAGE_SPAN);
            let to = end.min((key.page + 1) * PAGE_SPAN);
            self.changes.entry(key).or_default().push(Change { offset: from, len: to - from, frame: None });
        }
    }

    /// The segment whose state this is.
    pub fn at(&self) -> SegmentRef {
        self.at
    }

    /// Digest of the index of that segment: what the next one must name.
    pub fn index_digest(&self) -> Digest {
        self.digest
    }

    /// VMs and disks.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The manifest that it starts from.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// Segments laid over the manifest.
    pub fn segments_since_manifest(&self) -> u64 {
        self.segments_since
    }

    /// Bytes of the segments laid over the manifest.
    pub fn bytes_since_manifest(&self) -> u64 {
        self.bytes_since
    }

    /// Points of the segments laid over the manifest, in order.
    pub fn points_since_manifest(&self) -> &[(SegmentRef, Point)] {
        &self.points_since
    }

    /// The newest point at or before the map's own segment.
    pub fn last_point(&self) -> Option<&Point> {
        let own = self.points_since.last().map(|(_, point)| point);
        own.or_else(|| self.manifest.as_ref().and_then(Manifest::point))
    }

    /// Pages that may hold extents, sorted by disk and number.
    pub fn pages(&self) -> Vec<PageKey> {
        let keys: BTreeSet<PageKey> = self.references.keys().chain(self.changes.keys()).copied().collect();
        keys.into_iter().filter(|k| self.catalogue.disk(k.disk).is_some()).collect()
    }

    /// The reference of a page, unless segments after the manifest changed it.
    pub fn unchanged(&self, key: PageKey) -> Option<&PageRef> {
        self.references.get(&key).filter(|_| !self.changes.contains_key(&key))
    }

    /// The changes that segments after the manifest made to a page, in order.
    pub fn changes(&self, key: PageKey) -> &[Change] {
        self.changes.get(&key).map_or(&[], Vec::as_slice)
    }

    /// Whether a page is surely the same in both maps, told without reading it.
    pub fn same_page(&self, other: &PointMap, key: PageKey) -> bool {
        let plain = |m: &PointMap| !m.changes.contains_key(&key);
        let content = |m: &PointMap| m.references.get(&key).map(|r| r.digest);
        plain(self) && plain(other) && content(self) == content(other)
    }

    /// Upper bound of the bytes that reading a page takes, for budgets.
    pub fn page_cost(&self, key: PageKey) -> u64 {
        let stored = self.references.get(&key).map_or(0, |r| r.len);
        stored + self.changes(key).len() as u64 * 96
    }

    /// The extents of a page, sorted and disjoint.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] where the page object is missing or is not what the manifest says.
    pub async fn page(&self, site: &StorageSite, domain: &Domain, key: PageKey) -> Result<Vec<Extent>> {
        let mut extents = match self.references.get(&key) {
            Some(reference) => reread(|| read_page(site, domain, key, reference)).await?,
            None => Vec::new(),
        };
        let changes = self.changes(key);
        if !changes.is_empty() {
            extents = overlay(&extents, changes);
        }
        Ok(extents)
    }
}

async fn read_page(site: &StorageSite, domain: &Domain, key: PageKey, reference: &PageRef) -> Result<Vec<Extent>> {
    let object = keys::map_page(domain.name(), key.disk, key.page, reference.cut);
    let place = || format!("{}: {object}", site.url());
    let bytes = site.get(&object, reference.len).await?;
    let bytes = bytes.ok_or_else(|| Error::new(ErrorKind::Damaged, format!("{}: map page is missing", place())))?;
    if bytes.len() as u64 != reference.len || xxh3_128(&bytes) != reference.digest {
        return Err(Error::new(ErrorKind::Damaged, format!("{}: not the page that the manifest names", place())));
    }
    let page = MapPage::decode(&bytes, domain.id(), key.disk, key.page, reference.cut).map_err(|e| e.at(place()))?;
    Ok(page.extents)
}
