//! Applying landed segments: the disks move from one point to a later one by what the segments between them changed.
//!
//! ```text
//! indexes of the segments -> changes, the last one wins -> durably mark what is touched
//!                         -> zeros punched, frames from the log -> pipeline -> sync -> commit -> trim the log
//! ```
//!
//! It is idempotent: after a crash the same segments are applied again. Where the log must be emptied before a point has
//! landed, the disks run ahead of their point; the hydration map says so, and reconciling leads back.

use std::collections::BTreeMap;
use std::sync::Arc;

use roaring::RoaringBitmap;
use tokio::sync::mpsc;

use crate::error::{Error, ErrorKind, Result};
use crate::format::{Catalogue, Extent, FrameRef, Index, Point, PointFlags, Segment};
use crate::ids::{DiskId, SegmentNo, SegmentRef};
use crate::map::{Change, last_wins};
use crate::store::PointInfo;

use super::diff::granule_ranges;
use super::disks::DiskSet;
use super::reconcile::make_zero;
use super::session::Session;
use super::source::{FrameSource, read_log};
use super::work::{by_frame, one_per_segment};

/// Most segments that are applied at once: bounds the memory for their indexes.
const BATCH: u64 = 64;

/// What some segments change.
#[derive(Default)]
struct Delta {
    changes: BTreeMap<DiskId, Vec<Change>>,
    catalogue: Option<Catalogue>,
    points: u64,
    last: SegmentRef,
    last_point: Option<Point>,
}

impl Delta {
    fn add(&mut self, index: &Index) {
        for (i, disk) in index.disks.iter().enumerate() {
            let entries = index.entries.iter().filter(|e| e.disk as usize == i);
            let changes = entries.map(|e| Change {
                offset: e.offset,
                len: e.len,
                frame: e.frame.map(|(pos, body)| FrameRef { segment: index.segment, pos, start: e.offset, body }),
            });
            self.changes.entry(disk.id).or_default().extend(changes);
        }
        if let Some(catalogue) = &index.catalogue {
            self.catalogue = Some(catalogue.clone());
        }
        self.points += u64::from(index.point.is_some());
        self.last = index.segment;
        self.last_point = index.point.clone();
    }
}

impl Session {
    /// Applies all segments after what is applied, up to `to`, which have landed.
    pub(super) async fn apply_through(&mut self, to: SegmentNo) -> Result<()> {
        while self.tracker().state().applied().segment < to {
            self.apply_batch(to).await?;
        }
        Ok(())
    }

    /// Applies the next of them, as many as are taken at once.
    pub(super) async fn apply_batch(&mut self, to: SegmentNo) -> Result<()> {
        let from = self.tracker().state().applied();
        self.cancel.check()?;
        let last = SegmentNo::new((from.segment.get() + BATCH).min(to.get()));
        let delta = self.delta(from.segment, last).await?;
        self.apply(delta).await
    }

    async fn delta(&self, from: SegmentNo, to: SegmentNo) -> Result<Delta> {
        let mut delta = Delta::default();
        for n in from.get() + 1..=to.get() {
            let n = SegmentNo::new(n);
            let segment = self.domain().locate(n).ok_or_else(|| {
                Error::new(ErrorKind::Internal, format!("segment {n} landed but is not part of the chain"))
            })?;
            let index = self.landed_index(segment).await?;
            delta.add(&index);
        }
        Ok(delta)
    }

    /// The index of a segment: from when it landed, from the log, or where that does not have it whole, from the storage
    /// site.
    pub(super) async fn landed_index(&self, segment: SegmentRef) -> Result<Arc<Index>> {
        if let Some(index) = self.indexes.get(segment) {
            return Ok(index);
        }
        if let Some(bytes) = read_log(&self.log, segment).await?
            && let Ok(landed) = Segment::open(&bytes, self.domain().id(), segment)
        {
            return Ok(Arc::new(landed.index));
        }
        Ok(Arc::new(self.domain().index(segment).await?.1))
    }

    async fn apply(&mut self, delta: Delta) -> Result<()> {
        self.begin_changes()?;
        if let Some(catalogue) = &delta.catalogue {
            self.take_catalogue(catalogue, true)?;
        }
        let disks = Arc::clone(&self.reconciler.disks);
        let mut extents = Vec::new();
        let mut zeros = Vec::new();
        {
            let mut state = self.tracker().state();
            for (id, changes) in &delta.changes {
                let (Some(position), Some(entry)) = (disks.position(*id), state.disk_mut(*id)) else { continue };
                let size = disks.get(position).size;
                let mut touched = RoaringBitmap::new();
                for change in last_wins(changes) {
                    // A disk that shrank in a later segment ends earlier than this one thought.
                    let end = (change.offset + change.len).min(size);
                    if change.offset >= end {
                        continue;
                    }
                    touched.extend(granule_ranges(change.offset, end).map(|(g, _, _)| g));
                    match change.frame {
                        // Shorter than a frame, which is at most 1 MiB.
                        Some(frame) => {
                            let len = (end - change.offset) as u32;
                            extents.push((position, Extent { offset: change.offset, len, frame }));
                        }
                        None => zeros.push((position, (change.offset, end))),
                    }
                }
                entry.touched |= touched;
                entry.pristine = false;
            }
            state.seal_quarantined();
            state.commit()?;
        }
        let mut totals: BTreeMap<u32, u64> = BTreeMap::new();
        for (position, extent) in &extents {
            *totals.entry(*position).or_default() += u64::from(extent.len);
        }
        for (position, total) in totals {
            self.progress.add_disk_total(&disks.get(position).label, total);
        }
        // Asked for only where it matters: it costs as much memory as what is to be written.
        let repairs = !self.tracker().state().quarantined().is_empty();
        let written = if repairs { written(&disks, &extents, &zeros) } else { BTreeMap::new() };
        self.write_delta(extents, zeros).await?;
        let (last, is_point) = (delta.last, delta.last_point.is_some());
        {
            let mut state = self.tracker().state();
            state.repair(&written);
            state.set_applied(last, is_point);
            state.commit()?;
        }
        self.tracker().tell_damage();
        if let Some(point) = delta.last_point {
            self.store_watermark(last, point.time, Vec::new())?;
            self.progress.applied(last.segment, point.time);
            let PointFlags { fuzzy, quiesced } = point.flags;
            let info = PointInfo { at: last, time: point.time, fuzzy, quiesced, vms: point.vms };
            self.point = Some(info);
            // Whatever could not be read when an earlier point was chosen, this one is newer.
            self.passed_over.clear();
        }
        self.applied_points += delta.points;
        self.indexes.trim(last.segment);
        self.recent.trim(last.segment);
        // Only what the log still holds can be given up; a batch may have come from the storage site.
        let landed = self.log.held().landed.segment;
        self.log.trim(last.segment.min(landed))
    }

    async fn write_delta(&self, extents: Vec<(u32, Extent)>, zeros: Vec<(u32, (u64, u64))>) -> Result<()> {
        let disks = Arc::clone(&self.reconciler.disks);
        let engine = Arc::clone(&self.reconciler.engine);
        let positions: Vec<u32> = zeros.iter().map(|(p, _)| *p).collect();
        let punch = move || {
            zeros.into_iter().try_for_each(|(position, range)| make_zero(&engine, disks.get(position).file, &[range]))
        };
        let punched = tokio::task::spawn_blocking(punch).await;
        punched.map_err(|e| Error::with_source(ErrorKind::Internal, "punch holes", e))??;
        // Holes need the sync too.
        positions.into_iter().for_each(|p| self.tracker().complete(p, []));
        let (ranges, work) = mpsc::channel(1);
        let (recent, log) = (Arc::clone(&self.recent), Arc::clone(&self.log));
        let source = FrameSource::landed(recent, log, self.domain().clone(), Arc::clone(&self.progress));
        let feed = async move {
            for range in one_per_segment(by_frame(extents)) {
                if ranges.send(range).await.is_err() {
                    break;
                }
            }
        };
        let (placed, ()) = tokio::join!(self.reconciler.pipeline.run(Arc::new(source), work), feed);
        placed
    }
}

/// What is written anew of each disk: ascending and disjoint.
fn written(
    disks: &DiskSet,
    extents: &[(u32, Extent)],
    zeros: &[(u32, (u64, u64))],
) -> BTreeMap<DiskId, Vec<(u64, u64)>> {
    let frames = extents.iter().map(|(position, e)| (*position, (e.offset, e.offset + u64::from(e.len))));
    let mut by_position: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for (position, range) in frames.chain(zeros.iter().copied()) {
        by_position.entry(position).or_default().push(range);
    }
    let sorted = |(position, mut ranges): (u32, Vec<(u64, u64)>)| {
        ranges.sort_unstable();
        (disks.get(position).id, ranges)
    };
    by_position.into_iter().map(sorted).collect()
}
