//! How far the segments of one generation exist without a gap.
//!
//! Uploads run in parallel, so there can be segments beyond a gap; they are no part of any prefix. A manifest is written
//! only after its writer accepted the segment at which it was cut, so everything up to it existed: looking begins there
//! and costs about one listing however long the chain is. It never decides whether what it finds counts.

use futures::{StreamExt, TryStreamExt};

use super::keys::{self, ObjectKey};
use super::{Ownership, StorageSite};
use crate::error::Result;
use crate::ids::{Generation, Name, SegmentNo, SegmentRef};

/// Keys looked for at a time.
const PARALLEL: usize = 32;

/// The last segment of the prefix of `generation` that begins after `after`, by listing; `after` where it is empty.
pub(super) async fn by_listing(
    site: &StorageSite,
    name: &Name,
    generation: Generation,
    after: SegmentNo,
) -> Result<SegmentNo> {
    let mut tip = after;
    let mut listing = site.list(&keys::manifest_generation_prefix(name, generation), None);
    while let Some(object) = listing.try_next().await? {
        if let Some((_, ObjectKey::Manifest(cut))) = ObjectKey::parse(&object.key) {
            tip = tip.max(cut.segment);
        }
    }
    let from = keys::segment(name, SegmentRef::new(generation, tip));
    let mut listing = site.list(&keys::segment_prefix(name, generation), Some(&from));
    while let Some(object) = listing.try_next().await? {
        match ObjectKey::parse(&object.key) {
            Some((_, ObjectKey::Segment(at))) if at.segment == tip.next() => tip = at.segment,
            Some((_, ObjectKey::Segment(at))) if at.segment > tip => break,
            _ => {}
        }
    }
    Ok(tip)
}

/// The tip that the newest claim, or the next one, inherits: of the newest generation that has a base. Zero for nothing.
pub(super) async fn inheritable(site: &StorageSite, name: &Name, ownership: &Ownership) -> Result<SegmentRef> {
    let settled = ownership.settled_tip();
    let Some(newest) = ownership.newest_with_base() else { return Ok(settled) };
    let tip = by_listing(site, name, newest.generation, settled.segment).await?;
    match tip > settled.segment {
        true => Ok(SegmentRef::new(newest.generation, tip)),
        false => Ok(settled),
    }
}

/// The last segment of the prefix that begins with `first`, looking at no more than `most` known keys; `None` where
/// `first` does not exist.
pub(super) async fn by_keys(
    site: &StorageSite,
    name: &Name,
    first: SegmentRef,
    most: u64,
) -> Result<Option<SegmentRef>> {
    let numbers = (0..most).map(|i| SegmentNo::new(first.segment.get().saturating_add(i)));
    let refs = numbers.map(|n| SegmentRef::new(first.generation, n));
    let mut looks = futures::stream::iter(refs)
        .map(|at| async move { Ok((at, site.head(&keys::segment(name, at)).await?.is_some())) })
        .buffered(PARALLEL);
    let mut last = None;
    while let Some((at, exists)) = looks.try_next().await? {
        if !exists {
            break;
        }
        last = Some(at);
    }
    Ok(last)
}
