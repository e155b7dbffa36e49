//! Hydration map: which granules (256 KiB) of a domain's disks are local and valid, and for which target.
//!
//! The state that it describes: a granule in `valid` and not in `touched` holds the bytes of `target`. A granule in
//! both holds the bytes of `target`, overlaid by all segments after `target` up to `applied`, and possibly by parts of
//! segments after that. Any other granule holds nothing that may be used. Granules in a quarantined range are never
//! valid.

use std::collections::HashSet;

use roaring::RoaringBitmap;

use crate::ids::{DiskId, DomainId, Generation, SegmentNo, SegmentRef};

use super::catalogue::MAX_DISKS;
use super::checksum::{Digest, xxh3_128};
use super::decode_error::{DecodeError, DecodeResult};
use super::layout::layout;
use super::magic;
use super::wire::{Reader, Writer};

/// Bytes of disk for which one bit stands.
pub const GRANULE: u64 = 256 << 10;
/// Most bytes of a hydration map.
pub const MAX_HYDRATION_LEN: u64 = 512 << 20;
pub(crate) const MAX_QUARANTINED: usize = 10_000_000;
pub(crate) const MAX_WHY_LEN: usize = 4096;
const WHAT: &str = "hydration map";

layout! { header magic::HYDRATION;
    /// First bytes of a hydration map.
    pub(crate) struct HydrationHeader: 128 {
        /// Disks in it.
        12 => disk_count: u32,
        /// Domain.
        16 => domain: DomainId,
        /// Bumped at each commit: the newest of the two files counts.
        32 => sequence: u64,
        /// Generation of the point that the valid granules equal.
        40 => target_generation: Generation,
        /// Segment of the point that the valid granules equal.
        48 => target_segment: SegmentNo,
        /// Generation of the last segment that is wholly applied.
        56 => applied_generation: Generation,
        /// Last segment that is wholly applied; the target's own where nothing is applied on top.
        64 => applied_segment: SegmentNo,
        /// Quarantined ranges, which follow the disks.
        72 => quarantine_count: u32,
        /// Bytes after this header.
        80 => body_len: u64,
        /// xxh3-128 of all bytes after this header.
        88 => body_digest: Digest,
    }
}

/// One disk of a hydration map.
#[derive(Debug, Clone, PartialEq)]
pub struct HydrationDisk {
    /// Identity.
    pub disk: DiskId,
    /// Bytes of the disk.
    pub size: u64,
    /// Nothing but bytes of `target` was ever written to its file since it was created empty: what is not valid and
    /// not live is a hole.
    pub pristine: bool,
    /// Granules that hold the target's bytes.
    pub valid: RoaringBitmap,
    /// Granules that segments after the target were, or are being, applied to.
    pub touched: RoaringBitmap,
}

/// A range that could not be had, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Disk.
    pub disk: DiskId,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Why, for people; no more than 4096 bytes of it are kept.
    pub why: String,
}

/// A hydration map, decoded and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct HydrationMap {
    /// Domain.
    pub domain: DomainId,
    /// Bumped at each commit.
    pub sequence: u64,
    /// The point that valid granules equal.
    pub target: SegmentRef,
    /// Last segment that is wholly applied on top of the target.
    pub applied: SegmentRef,
    /// The disks, each once.
    pub disks: Vec<HydrationDisk>,
    /// Ranges that could not be had.
    pub quarantined: Vec<Quarantined>,
}

impl HydrationMap {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Writer::new();
        for d in &self.disks {
            body.put(&d.disk).put(&d.size).put(&u8::from(d.pristine));
            put_bitmap(&mut body, &d.valid);
            put_bitmap(&mut body, &d.touched);
        }
        for q in &self.quarantined {
            body.put(&q.disk).put(&q.offset).put(&q.len).text(shortened(&q.why));
        }
        let body = body.finish();
        let bounded = |n: usize| u32::try_from(n).expect("bounded by the domain");
        let header = HydrationHeader {
            disk_count: bounded(self.disks.len()),
            domain: self.domain,
            sequence: self.sequence,
            target_generation: self.target.generation,
            target_segment: self.target.segment,
            applied_generation: self.applied.generation,
            applied_segment: self.applied.segment,
            quarantine_count: bounded(self.quarantined.len()),
            body_len: body.len() as u64,
            body_digest: xxh3_128(&body),
        };
        let mut out = header.encode().to_vec();
        out.extend_from_slice(&body);
        out
    }

    /// From the file's bytes; what follows the map (an older, longer one) is ignored.
    pub fn decode(bytes: &[u8]) -> DecodeResult<HydrationMap> {
        let head = HydrationHeader::decode(bytes)?;
        let have = bytes.len() as u64;
        let end = (HydrationHeader::LEN as u64).checked_add(head.body_len).filter(|end| *end <= have);
        let Some(end) = end else {
            let need = head.body_len.saturating_add(HydrationHeader::LEN as u64);
            return Err(DecodeError::Short { what: WHAT, need, have });
        };
        let body = &bytes[HydrationHeader::LEN..usize::try_from(end).expect("within the slice")];
        if xxh3_128(body) != head.body_digest {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        let mut from = Reader::new(WHAT, body);
        if head.disk_count as usize > MAX_DISKS || head.quarantine_count as usize > MAX_QUARANTINED {
            return Err(DecodeError::value(WHAT, format!("{} disks", head.disk_count)));
        }
        let (mut disks, mut ids) = (Vec::new(), HashSet::new());
        for _ in 0..head.disk_count {
            let (disk, size) = (from.take()?, from.take()?);
            let pristine = match from.take::<u8>()? {
                0 => false,
                1 => true,
                n => return Err(DecodeError::value(WHAT, format!("flags {n:#x} of disk {disk}: use a newer freshet"))),
            };
            if !ids.insert(disk) {
                return Err(DecodeError::value(WHAT, format!("disk {disk} twice")));
            }
            let (valid, touched) = (take_bitmap(&mut from, size)?, take_bitmap(&mut from, size)?);
            disks.push(HydrationDisk { disk, size, pristine, valid, touched });
        }
        let mut quarantined = Vec::new();
        for _ in 0..head.quarantine_count {
            let (disk, offset, len) = (from.take()?, from.take::<u64>()?, from.take()?);
            if offset.checked_add(len).is_none() {
                return Err(DecodeError::value(WHAT, format!("quarantined range {offset}+{len}")));
            }
            quarantined.push(Quarantined { disk, offset, len, why: from.text(MAX_WHY_LEN)?.to_owned() });
        }
        from.finish()?;
        Ok(HydrationMap {
            domain: head.domain,
            sequence: head.sequence,
            target: SegmentRef::new(head.target_generation, head.target_segment),
            applied: SegmentRef::new(head.applied_generation, head.applied_segment),
            disks,
            quarantined,
        })
    }
}

/// As much of `why` as a decoder takes, cut between characters.
fn shortened(why: &str) -> &str {
    &why[..why.floor_char_boundary(MAX_WHY_LEN)]
}

/// Granules of a disk of `size` bytes; the last may be short. `None` for a disk too large for a bitmap (over 1 PiB).
pub fn granules(size: u64) -> Option<u32> {
    u32::try_from(size.div_ceil(GRANULE)).ok()
}

fn put_bitmap(out: &mut Writer, bitmap: &RoaringBitmap) {
    let mut bytes = Vec::with_capacity(bitmap.serialized_size());
    bitmap.serialize_into(&mut bytes).expect("writing to memory does not fail");
    out.count(bytes.len()).raw(&bytes);
}

fn take_bitmap(from: &mut Reader<'_>, size: u64) -> DecodeResult<RoaringBitmap> {
    let n = from.count(1, MAX_HYDRATION_LEN as usize)?;
    let mut bytes = from.raw(n)?;
    let bad = |why: String| DecodeError::value(WHAT, why);
    let bitmap = RoaringBitmap::deserialize_from(&mut bytes).map_err(|e| bad(format!("bitmap: {e}")))?;
    let granules = granules(size).ok_or_else(|| bad(format!("disk of {size} bytes")))?;
    match bytes.is_empty() && bitmap.max().is_none_or(|max| max < granules) {
        true => Ok(bitmap),
        false => Err(bad(format!("bitmap reaches past {granules} granules or is longer than it says"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> HydrationMap {
        let at = |g, s| SegmentRef::new(Generation::new(g), SegmentNo::new(s));
        let disk = DiskId::from_bytes([4; 16]);
        HydrationMap {
            domain: DomainId::from_bytes([1; 16]),
            sequence: 7,
            target: at(2, 5),
            applied: at(2, 6),
            disks: vec![HydrationDisk {
                disk,
                size: 100 * GRANULE + 1,
                pristine: true,
                valid: (0..101).collect(),
                touched: [3, 5].into_iter().collect(),
            }],
            quarantined: vec![Quarantined { disk, offset: 4096, len: 512, why: "bad frame".into() }],
        }
    }

    #[test]
    fn round_trip_ignores_what_an_older_map_left_behind() {
        let mut bytes = sample().encode();
        bytes.extend_from_slice(b"left from before");
        assert_eq!(HydrationMap::decode(&bytes).unwrap(), sample());
    }

    #[test]
    fn damage_and_bits_past_the_end_are_refused() {
        let bytes = sample().encode();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(HydrationMap::decode(&bad).is_err(), "byte {at}");
            assert!(HydrationMap::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        let mut past = sample();
        past.disks[0].valid.insert(101);
        assert!(HydrationMap::decode(&past.encode()).is_err());
    }

    #[test]
    fn a_long_reason_is_cut_and_hostile_disks_and_ranges_are_refused() {
        let mut long = sample();
        long.quarantined[0].why = "x".repeat(MAX_WHY_LEN - 1) + "☃☃";
        let back = HydrationMap::decode(&long.encode()).unwrap();
        assert_eq!(back.quarantined[0].why, "x".repeat(MAX_WHY_LEN - 1));
        let mut twice = sample();
        twice.disks.push(twice.disks[0].clone());
        assert!(HydrationMap::decode(&twice.encode()).is_err());
        let mut far = sample();
        far.quarantined[0].offset = u64::MAX;
        assert!(HydrationMap::decode(&far.encode()).is_err());
    }
}
