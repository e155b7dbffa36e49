//! Manifests: a checkpoint of a domain cut at a point. VMs, disks, every map page with its digest, and the points since
//! the last manifest, so that points can be listed without reading segments.

use std::collections::{HashMap, HashSet};

use crate::ids::{DomainId, Generation, SegmentNo, SegmentRef, Time, VmId};

use super::catalogue::{Catalogue, MAX_CATALOGUE_LEN};
use super::checksum::{Digest, xxh3_128};
use super::decode_error::{DecodeError, DecodeResult};
use super::layout::layout;
use super::magic;
use super::map_page::{MAX_PAGE_LEN, PAGE_SPAN, min_page_len};
use super::point::{Point, PointFlags, check_vms, put_vms, take_vms};
use super::wire::{Reader, Writer};

/// Most bytes of a manifest.
pub const MAX_MANIFEST_LEN: u64 = 512 << 20;
pub(crate) const MAX_POINTS: usize = 1_000_000;
const WHAT: &str = "manifest";
const POINTS: &str = "manifest points";

layout! { header magic::MANIFEST;
    /// First bytes of a manifest.
    pub(crate) struct ManifestHeader: 160 {
        /// Bytes of the catalogue, which follows this header.
        12 => catalogue_len: u32,
        /// Domain.
        16 => domain: DomainId,
        /// Generation of the point at which it was cut.
        32 => generation: Generation,
        /// Segment of the point at which it was cut.
        40 => segment: SegmentNo,
        /// Digest of that segment's index.
        48 => index_digest: Digest,
        /// Generation of the manifest before it; zero for the first.
        64 => previous_generation: Generation,
        /// Segment of the manifest before it; zero for the first.
        72 => previous_segment: SegmentNo,
        /// Bytes of the part with the points.
        80 => points_len: u32,
        /// Rows in the table of pages.
        84 => page_count: u32,
        /// Sum of the live bytes of its pages.
        88 => live_bytes: u64,
        /// Bytes of all segments of the chain up to it.
        96 => chain_bytes: u64,
        /// xxh3-128 of all bytes after this header.
        104 => body_digest: Digest,
    }
}

layout! { row;
    /// One map page.
    pub(crate) struct PageRow: 64 {
        /// Position of the disk in the catalogue.
        0 => disk: u32,
        /// Extents in the page.
        4 => extents: u32,
        /// Number of the page.
        8 => page: u64,
        /// Generation at which the page was cut.
        16 => generation: Generation,
        /// Segment at which the page was cut.
        24 => segment: SegmentNo,
        /// Bytes of the page object.
        32 => len: u64,
        /// Sum of the lengths of its extents.
        40 => live_bytes: u64,
        /// xxh3-128 of the page object.
        48 => digest: Digest,
    }
}

/// A map page and how to recognise it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRef {
    /// Position of the disk in the catalogue.
    pub disk: u32,
    /// Number of the page.
    pub page: u64,
    /// Point at which it was cut.
    pub cut: SegmentRef,
    /// Extents in it.
    pub extents: u32,
    /// Bytes of the object.
    pub len: u64,
    /// Sum of the lengths of its extents.
    pub live_bytes: u64,
    /// xxh3-128 of the object.
    pub digest: Digest,
}

/// A manifest, decoded and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Domain.
    pub domain: DomainId,
    /// Segment of the point at which it was cut.
    pub cut: SegmentRef,
    /// Digest of that segment's index.
    pub index_digest: Digest,
    /// The manifest before it; zero for the first.
    pub previous: SegmentRef,
    /// Bytes of all segments of the chain up to it.
    pub chain_bytes: u64,
    /// VMs and disks.
    pub catalogue: Catalogue,
    /// Points after the previous manifest, the last of them its own.
    pub points: Vec<(SegmentRef, Point)>,
    /// Pages, sorted by disk and number; a span without a page is all zero.
    pub pages: Vec<PageRef>,
}

impl Manifest {
    /// Sum of the live bytes of its pages.
    pub fn live_bytes(&self) -> u64 {
        self.pages.iter().map(|p| p.live_bytes).sum()
    }

    /// The point at which it was cut.
    pub fn point(&self) -> Option<&Point> {
        self.points.last().map(|(_, p)| p)
    }

    /// The object's bytes. Fails where an invariant does not hold.
    pub fn encode(&self) -> DecodeResult<Vec<u8>> {
        self.check()?;
        self.catalogue.check()?;
        let catalogue = self.catalogue.encode();
        if catalogue.len() > MAX_CATALOGUE_LEN {
            return Err(DecodeError::value(WHAT, format!("catalogue of {} bytes", catalogue.len())));
        }
        let points = encode_points(&self.points);
        let bounded = |n: usize| u32::try_from(n).expect("bounded by the limits of a manifest");
        let mut body = Writer::new();
        body.raw(&catalogue).raw(&points);
        for p in &self.pages {
            let row = PageRow {
                disk: p.disk,
                extents: p.extents,
                page: p.page,
                generation: p.cut.generation,
                segment: p.cut.segment,
                len: p.len,
                live_bytes: p.live_bytes,
                digest: p.digest,
            };
            body.raw(&row.encode());
        }
        let body = body.finish();
        let header = ManifestHeader {
            catalogue_len: bounded(catalogue.len()),
            domain: self.domain,
            generation: self.cut.generation,
            segment: self.cut.segment,
            index_digest: self.index_digest,
            previous_generation: self.previous.generation,
            previous_segment: self.previous.segment,
            points_len: bounded(points.len()),
            page_count: bounded(self.pages.len()),
            live_bytes: self.live_bytes(),
            chain_bytes: self.chain_bytes,
            body_digest: xxh3_128(&body),
        };
        let mut out = header.encode().to_vec();
        out.extend_from_slice(&body);
        match out.len() as u64 <= MAX_MANIFEST_LEN {
            true => Ok(out),
            false => Err(DecodeError::value(WHAT, format!("{} bytes, at most {MAX_MANIFEST_LEN}", out.len()))),
        }
    }

    /// Decodes whatever manifest stands there, for offline inspection.
    pub fn decode_any(bytes: &[u8]) -> DecodeResult<Manifest> {
        let head = ManifestHeader::decode(bytes)?;
        let body = &bytes[ManifestHeader::LEN..];
        if xxh3_128(body) != head.body_digest {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        if head.catalogue_len as usize > MAX_CATALOGUE_LEN {
            return Err(DecodeError::value(WHAT, format!("catalogue of {} bytes", head.catalogue_len)));
        }
        let mut from = Reader::new(WHAT, body);
        let catalogue = Catalogue::decode(from.raw(head.catalogue_len as usize)?)?;
        let points = decode_points(from.raw(head.points_len as usize)?)?;
        if u64::from(head.page_count) * PageRow::LEN as u64 != from.remaining() as u64 {
            return Err(DecodeError::value(WHAT, format!("{} pages in {} bytes", head.page_count, from.remaining())));
        }
        let mut pages = Vec::with_capacity(head.page_count as usize);
        for _ in 0..head.page_count {
            pages.push(page_from(&PageRow::decode(from.array()?)?));
        }
        from.finish()?;
        let manifest = Manifest {
            domain: head.domain,
            cut: SegmentRef::new(head.generation, head.segment),
            index_digest: head.index_digest,
            previous: SegmentRef::new(head.previous_generation, head.previous_segment),
            chain_bytes: head.chain_bytes,
            catalogue,
            points,
            pages,
        };
        manifest.check()?;
        match manifest.live_bytes() == head.live_bytes {
            true => Ok(manifest),
            false => Err(DecodeError::value(WHAT, "live bytes disagree with the pages")),
        }
    }

    /// Decodes the manifest of `domain` cut at `cut`.
    pub fn decode(bytes: &[u8], domain: DomainId, cut: SegmentRef) -> DecodeResult<Manifest> {
        let found = Manifest::decode_any(bytes)?;
        match (found.domain, found.cut) == (domain, cut) {
            true => Ok(found),
            false => {
                let found = format!("domain {} {}", found.domain, found.cut);
                Err(DecodeError::identity(WHAT, found, format!("domain {domain} {cut}")))
            }
        }
    }

    /// Points ascend, begin after the previous manifest, and end with the manifest's own.
    fn check_points(&self) -> DecodeResult<()> {
        if self.points.len() > MAX_POINTS {
            return Err(DecodeError::value(WHAT, format!("{} points, at most {MAX_POINTS}", self.points.len())));
        }
        if self.points.last().map(|(at, _)| *at) != Some(self.cut) {
            return Err(DecodeError::value(WHAT, "its last point is not its own"));
        }
        let mut last = self.previous;
        for (at, point) in &self.points {
            if at.segment <= last.segment || at.generation < last.generation {
                return Err(DecodeError::value(WHAT, format!("point {at} after {last}")));
            }
            check_vms(&point.vms)?;
            last = *at;
        }
        Ok(())
    }

    fn check(&self) -> DecodeResult<()> {
        self.check_points()?;
        let mut last = None;
        for p in &self.pages {
            let Some(disk) = self.catalogue.disks.get(p.disk as usize) else {
                return Err(DecodeError::value(WHAT, format!("page of disk {} of the catalogue", p.disk)));
            };
            let inside = p.page.checked_mul(PAGE_SPAN).is_some_and(|start| start < disk.size);
            // Bounds what a reader sets aside for the page before it has it.
            let rows_fit = p.len <= MAX_PAGE_LEN && p.len >= min_page_len(p.extents) && p.live_bytes <= PAGE_SPAN;
            if !inside || last >= Some((p.disk, p.page)) || !rows_fit || !p.cut.is_within(self.cut) {
                return Err(DecodeError::value(WHAT, format!("page {} of disk {} out of place", p.page, disk.name)));
            }
            last = Some((p.disk, p.page));
        }
        Ok(())
    }
}

fn page_from(row: &PageRow) -> PageRef {
    PageRef {
        disk: row.disk,
        page: row.page,
        cut: SegmentRef::new(row.generation, row.segment),
        extents: row.extents,
        len: row.len,
        live_bytes: row.live_bytes,
        digest: row.digest,
    }
}

/// Points share their sets of VMs, which seldom differ: first the sets, then the points, each with the number of its set.
fn encode_points(points: &[(SegmentRef, Point)]) -> Vec<u8> {
    let (mut sets, mut numbers) = (Vec::<&[VmId]>::new(), HashMap::<&[VmId], u32>::new());
    for (_, point) in points {
        numbers.entry(&point.vms).or_insert_with(|| {
            sets.push(&point.vms);
            u32::try_from(sets.len() - 1).expect("fewer sets than points")
        });
    }
    let mut out = Writer::new();
    out.count(sets.len());
    for set in sets {
        put_vms(&mut out, set);
    }
    out.count(points.len());
    for (at, point) in points {
        let set = numbers[&*point.vms];
        out.put(&at.generation).put(&at.segment).put(&point.time).put(&point.flags.bits()).put(&set);
    }
    out.finish()
}

fn decode_points(bytes: &[u8]) -> DecodeResult<Vec<(SegmentRef, Point)>> {
    let mut from = Reader::new(POINTS, bytes);
    let set_count = from.count(4, MAX_POINTS)?;
    let sets = (0..set_count).map(|_| take_vms(&mut from)).collect::<DecodeResult<Vec<_>>>()?;
    let unique: HashSet<&[VmId]> = sets.iter().map(|s| &s[..]).collect();
    if unique.len() != sets.len() {
        return Err(DecodeError::value(POINTS, "a set of VMs twice"));
    }
    let mut used = 0;
    let point_count = from.count(30, MAX_POINTS)?;
    let mut points = Vec::with_capacity(point_count);
    for _ in 0..point_count {
        let at = SegmentRef::new(from.take()?, from.take()?);
        let time: Time = from.take()?;
        let flags = PointFlags::from_bits(from.take()?)?;
        let set: u32 = from.take()?;
        let Some(vms) = sets.get(set as usize) else {
            return Err(DecodeError::value(POINTS, format!("set {set} of {}", sets.len())));
        };
        // Sets stand in the order of their first use, so that the same points always give the same bytes.
        if set as usize > used {
            return Err(DecodeError::value(POINTS, format!("set {set} before set {used}")));
        }
        used = used.max(set as usize + 1);
        points.push((at, Point { time, flags, vms: vms.clone() }));
    }
    from.finish()?;
    match used == sets.len() {
        true => Ok(points),
        false => Err(DecodeError::value(POINTS, "a set of VMs without a point")),
    }
}
