//! The checkpoint at a point: the map pages that changed, then the manifest that names all pages.
//!
//! Owns when a manifest is due and what is written for it. Works page by page: what it holds at once is the changed
//! pages that are under way, [`PARALLEL`] of them. Invariant: a manifest is written after every page that it names, so
//! whoever reads the manifest finds them.

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::halt::Halt;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Manifest, MapPage, PageRef, Point, xxh3_128};
use crate::ids::SegmentRef;
use crate::map::{PageKey, PointMap};
use crate::store::{Domain, Settled, keys};

/// Changed pages that are read, encoded and stored side by side.
const PARALLEL: usize = 4;
/// Segments after which a manifest is due however short they are: a recovery reads the index of each.
const MAX_SEGMENTS: u64 = 64;

/// What was written.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    /// The point at which it was cut.
    pub(crate) at: SegmentRef,
    /// Pages written; the others were named again.
    pub(crate) pages: u64,
    /// The manifest.
    pub(crate) manifest: Manifest,
}

/// Whether a manifest is due at the point where `map` stands; `every` is in bytes of segments.
pub(crate) fn is_due(map: &PointMap, every: u64) -> bool {
    let Some(last) = map.manifest() else { return true };
    last.catalogue != *map.catalogue()
        || map.bytes_since_manifest() >= every
        || map.segments_since_manifest() >= MAX_SEGMENTS
}

/// Writes the checkpoint at the point where `map` stands. `points` are those since the last manifest, this one last.
/// The caller has what was written accepted before it is reported.
///
/// # Errors
/// `Fenced` where somebody else wrote in this writer's generation; what the store says; `Cancelled`.
pub(crate) async fn write(
    domain: &Domain,
    map: &PointMap,
    points: Vec<(SegmentRef, Point)>,
    halt: &Halt,
) -> Result<Checkpoint> {
    let keys = map.pages();
    let changed: Vec<PageKey> = keys.iter().copied().filter(|key| map.unchanged(*key).is_none()).collect();
    let written = stream::iter(changed)
        .map(|key| write_page(domain, map, key, halt))
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<_>>()
        .await?;
    let mut pages: Vec<PageRef> = written.into_iter().flatten().collect();
    let count = pages.len() as u64;
    for key in keys {
        if let (Some(kept), Some(disk)) = (map.unchanged(key), position(map, key)) {
            pages.push(PageRef { disk, ..*kept });
        }
    }
    pages.sort_unstable_by_key(|p| (p.disk, p.page));
    let before = map.manifest();
    let manifest = Manifest {
        domain: domain.id(),
        cut: map.at(),
        index_digest: map.index_digest(),
        previous: before.map_or_else(SegmentRef::default, |m| m.cut),
        chain_bytes: before.map_or(0, |m| m.chain_bytes).saturating_add(map.bytes_since_manifest()),
        catalogue: map.catalogue().clone(),
        points,
        pages,
    };
    let key = keys::manifest(domain.name(), map.at());
    let bytes = manifest.encode().map_err(|e| e.at(&key))?;
    create(domain, &key, bytes.into()).await?;
    Ok(Checkpoint { at: map.at(), pages: count, manifest })
}

/// Stores one page that changed; `None` where nothing is left in it.
async fn write_page(domain: &Domain, map: &PointMap, key: PageKey, halt: &Halt) -> Result<Option<PageRef>> {
    halt.check()?;
    let extents = map.page(domain.site(), domain, key).await?;
    let Some(disk) = position(map, key).filter(|_| !extents.is_empty()) else { return Ok(None) };
    let page = MapPage { domain: domain.id(), disk: key.disk, page: key.page, cut: map.at(), extents };
    let object = keys::map_page(domain.name(), key.disk, key.page, map.at());
    let bytes: Bytes = page.encode().map_err(|e| e.at(&object))?.into();
    let reference = PageRef {
        disk,
        page: key.page,
        cut: map.at(),
        extents: u32::try_from(page.extents.len()).unwrap_or(u32::MAX),
        len: bytes.len() as u64,
        live_bytes: page.live_bytes(),
        digest: xxh3_128(&bytes),
    };
    create(domain, &object, bytes).await?;
    Ok(Some(reference))
}

fn position(map: &PointMap, key: PageKey) -> Option<u32> {
    let at = map.catalogue().disks.iter().position(|d| d.id == key.disk)?;
    u32::try_from(at).ok()
}

async fn create(domain: &Domain, key: &str, bytes: Bytes) -> Result<()> {
    match domain.site().create_settled(key, vec![bytes]).await? {
        Settled::New | Settled::Ours => Ok(()),
        Settled::Theirs => {
            let why = "is there already, and is not ours: somebody else writes in this writer's generation";
            Err(Error::new(ErrorKind::Fenced, format!("{}: {key} {why}", domain.site().url())))
        }
    }
}
