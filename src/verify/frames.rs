//! The data of a point: every live frame is fetched once, in store order, and decoded.
//!
//! Pages are read one after another and gathered into batches, each batch is put into store order and coalesced into
//! ranges. Since no frame crosses a page, no frame is in two batches. What is fetched and not yet checked is bounded by
//! the number of ranges under way; a batch by [`BATCH`].

use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use futures::{StreamExt, TryStreamExt};

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{DecodeError, DiskInfo, Extent, FrameDecoder, PAGE_SPAN, Parts, VerifiedFrame};
use crate::ids::{DomainId, SegmentRef};
use crate::map::{PageKey, PointMap};
use crate::progress::Progress;
use crate::rehydrate::{MAX_RANGE, PlannedFrame, RangeWork, by_frame, coalesce};
use crate::store::{Domain, keys};

use super::VerifyRequest;
use super::report::{BadRange, VerifyReport};

/// Extents that are put into store order together: about 8 GiB of disk at 256 KiB a frame, and 5 MiB of memory.
const BATCH: usize = 32_768;
/// Ranges under way at most, whatever the budget.
const MAX_RANGES: u64 = 64;
/// Further fetches of what does not verify, since the network may have changed it.
const REFETCHES: u32 = 2;

/// A frame that is damaged, and why.
type BadFrame = (PlannedFrame, String);

/// What the checks share.
struct Checker {
    domain: Domain,
    disks: Vec<DiskInfo>,
    tools: ArrayQueue<Tools>,
    progress: Arc<Progress>,
}

/// What one check needs, kept for the next.
struct Tools {
    decoder: FrameDecoder,
    raw: Vec<u8>,
    scratch: Vec<u8>,
}

/// What became of one range.
struct Checked {
    segment: SegmentRef,
    frames: u64,
    live: u64,
    fetched: u64,
    bad: Vec<BadFrame>,
}

/// Reads the pages of `map` and, unless the request is for structure only, every frame that they name.
pub(super) async fn check(
    domain: &Domain,
    map: &PointMap,
    request: &VerifyRequest,
    report: &mut VerifyReport,
    progress: &Arc<Progress>,
    cancel: &Cancel,
) -> Result<()> {
    let ranges = usize::try_from((request.memory / (2 * MAX_RANGE)).clamp(2, MAX_RANGES)).unwrap_or(2);
    let checker = Arc::new(Checker {
        domain: domain.clone(),
        disks: map.catalogue().disks.clone(),
        tools: ArrayQueue::new(ranges),
        progress: Arc::clone(progress),
    });
    if !request.quick {
        progress.stage("read every live frame");
    }
    if let Some(manifest) = map.manifest() {
        progress.add_total(if request.quick { 0 } else { manifest.live_bytes() });
    }
    let mut batch: Vec<(u32, Extent)> = Vec::new();
    for key in map.pages() {
        cancel.check()?;
        let Some(position) = checker.disks.iter().position(|d| d.id == key.disk) else { continue };
        match map.page(domain.site(), domain, key).await {
            Ok(extents) => {
                report.pages += 1;
                let position = u32::try_from(position).unwrap_or(u32::MAX);
                batch.extend(extents.into_iter().map(|e| (position, e)));
            }
            Err(e) if e.kind() == ErrorKind::Damaged => {
                bad_page(&checker.disks[position], map, key, &e, domain, report)
            }
            Err(e) => return Err(e),
        }
        if request.quick {
            batch.clear();
        } else if batch.len() >= BATCH {
            run(&checker, std::mem::take(&mut batch), ranges, map, report, cancel).await?;
        }
    }
    run(&checker, batch, ranges, map, report, cancel).await
}

/// A page that cannot be read leaves the whole of its span unknown.
fn bad_page(disk: &DiskInfo, map: &PointMap, key: PageKey, e: &Error, domain: &Domain, report: &mut VerifyReport) {
    let offset = key.page * PAGE_SPAN;
    let object = match map.manifest().and_then(|m| m.pages.iter().find(|p| is_page(m, p, key))) {
        Some(page) => keys::map_page(domain.name(), key.disk, key.page, page.cut),
        None => String::new(),
    };
    report.bad_object(object.clone(), e.to_string());
    let len = disk.size.saturating_sub(offset).min(PAGE_SPAN);
    let vm = vm_name(map, disk);
    let why = "its map page cannot be read".to_owned();
    report.bad_range(BadRange { vm, disk: disk.name.to_string(), disk_id: disk.id, offset, len, object, why });
}

fn is_page(manifest: &crate::format::Manifest, page: &crate::format::PageRef, key: PageKey) -> bool {
    let disk = manifest.catalogue.disks.get(page.disk as usize);
    page.page == key.page && disk.is_some_and(|d| d.id == key.disk)
}

fn vm_name(map: &PointMap, disk: &DiskInfo) -> String {
    map.catalogue().vm(disk.vm).map_or_else(|| disk.vm.to_string(), |v| v.name.to_string())
}

async fn run(
    checker: &Arc<Checker>,
    batch: Vec<(u32, Extent)>,
    ranges: usize,
    map: &PointMap,
    report: &mut VerifyReport,
    cancel: &Cancel,
) -> Result<()> {
    let work = coalesce(by_frame(batch), MAX_RANGE);
    let mut checks = futures::stream::iter(work)
        .map(|range| {
            let checker = Arc::clone(checker);
            async move { checker.range(range).await }
        })
        .buffered(ranges);
    while let Some(done) = checks.try_next().await? {
        cancel.check()?;
        report.frames += done.frames;
        report.live += done.live;
        report.fetched += done.fetched;
        for (planned, why) in done.bad {
            let disk = &checker.disks[planned.disk as usize];
            let object = keys::segment(checker.domain.name(), done.segment);
            for piece in planned.pieces() {
                report.bad_range(BadRange {
                    vm: vm_name(map, disk),
                    disk: disk.name.to_string(),
                    disk_id: disk.id,
                    offset: piece.offset,
                    len: u64::from(piece.len),
                    object: object.clone(),
                    why: why.clone(),
                });
            }
        }
    }
    Ok(())
}

impl Checker {
    async fn range(self: Arc<Checker>, work: RangeWork) -> Result<Checked> {
        let mut out = Checked { segment: work.segment, frames: 0, live: 0, fetched: 0, bad: Vec::new() };
        let mut left = work.frames;
        let mut span = work.start..work.end;
        for attempt in 0..=REFETCHES {
            let fetched = match self.fetch(work.segment, span.clone(), &mut out.fetched).await {
                Ok(parts) => parts,
                Err(e) if e.kind() == ErrorKind::Damaged => {
                    out.bad = left.into_iter().map(|f| (f, e.to_string())).collect();
                    return Ok(out);
                }
                Err(e) => return Err(e),
            };
            let (this, frames, start) = (Arc::clone(&self), left, span.start);
            let decode = tokio::task::spawn_blocking(move || this.decode(&fetched, start, frames));
            let (good, bad) =
                decode.await.map_err(|e| Error::with_source(ErrorKind::Internal, "decode frames", e))??;
            out.frames += good.len() as u64;
            let live: u64 = good.iter().flat_map(PlannedFrame::pieces).map(|p| u64::from(p.len)).sum();
            out.live += live;
            self.progress.add_done(live);
            if bad.is_empty() || attempt == REFETCHES {
                out.bad = bad;
                return Ok(out);
            }
            // Only the stretch that holds what is bad is fetched again.
            span = bad.first().map_or(span.start, |(f, _)| f.frame.pos)
                ..bad.last().map_or(span.end, |(f, _)| f.frame.end_pos());
            left = bad.into_iter().map(|(f, _)| f).collect();
        }
        Ok(out)
    }

    async fn fetch(
        &self,
        segment: SegmentRef,
        range: std::ops::Range<u64>,
        count: &mut u64,
    ) -> Result<Vec<bytes::Bytes>> {
        let key = keys::segment(self.domain.name(), segment);
        let damaged = |why: String| Error::new(ErrorKind::Damaged, why);
        let fetched = self.domain.site().get_range(&key, range.clone()).await?;
        let fetched = fetched.ok_or_else(|| damaged("the segment is missing".to_owned()))?;
        *count += fetched.len;
        self.progress.add_moved(fetched.len);
        match fetched.len == range.end - range.start {
            true => Ok(fetched.parts),
            false => Err(damaged(format!("it has {} bytes, {} are needed", fetched.object_len, range.end))),
        }
    }

    /// The frames that are whole, and those that are not.
    fn decode(
        &self,
        parts: &[bytes::Bytes],
        start: u64,
        frames: Vec<PlannedFrame>,
    ) -> Result<(Vec<PlannedFrame>, Vec<BadFrame>)> {
        let mut tools = match self.tools.pop() {
            Some(tools) => tools,
            None => Tools {
                decoder: FrameDecoder::new().map_err(|e| Error::io("start a decoder", e))?,
                raw: Vec::new(),
                scratch: Vec::new(),
            },
        };
        let parts = Parts::new(parts);
        let (mut good, mut bad) = (Vec::with_capacity(frames.len()), Vec::new());
        for planned in frames {
            match tools.frame(self.domain.id(), &self.disks, &parts, start, &planned) {
                Ok(()) => good.push(planned),
                Err(e) => {
                    let why = format!("frame at byte {}: {e}", planned.frame.pos);
                    bad.push((planned, why));
                }
            }
        }
        // The queue has room for as many as there are ranges under way.
        let _ = self.tools.push(tools);
        Ok((good, bad))
    }
}

impl Tools {
    fn frame(
        &mut self,
        domain: DomainId,
        disks: &[DiskInfo],
        parts: &Parts<'_>,
        start: u64,
        planned: &PlannedFrame,
    ) -> std::result::Result<(), DecodeError> {
        let range = planned.frame.pos - start..planned.frame.end_pos() - start;
        let id = planned.frame.id(domain, disks[planned.disk as usize].id);
        let frame = VerifiedFrame::open(parts.slice(range, &mut self.scratch)?, &id, &planned.frame.body)?;
        self.raw.resize(planned.frame.body.raw_len as usize, 0);
        self.decoder.decode_into(&frame, &mut self.raw)
    }
}
