//! Write-intent bitmap: which regions of a protected disk may differ from what the chain holds.
//!
//! A file is a header page and bitmap pages of 4096 bytes, each verified by itself, since pages are overwritten in place
//! and one by one: a torn page must not take the others with it, and means that all of its regions are set. A bit too
//! many costs a resync of its region, a bit too few would lose writes in silence; every reader errs to the former.

use std::ops::Range;

use crate::ids::{DiskId, DomainId, uuid_id};

use super::decode_error::{DecodeError, DecodeResult};
use super::layout::layout;
use super::magic;

uuid_id!(drawn
    /// Identity of one write-intent file, drawn when it is made: a page that another file left behind is told by it.
    IntentId
);

/// Bytes of the header and of each bitmap page.
pub const INTENT_PAGE: usize = 4096;
/// Bytes of bits in one bitmap page.
pub const INTENT_BITS_LEN: usize = 4032;
/// Regions of one bitmap page.
pub const INTENT_PAGE_REGIONS: u32 = (INTENT_BITS_LEN * 8) as u32;
/// Bytes of the smallest region.
pub const INTENT_MIN_REGION_LEN: u64 = 1 << MIN_SHIFT;
/// Most bitmap pages of one disk.
pub const MAX_INTENT_PAGES: u32 = 256;
/// Most bytes of a write-intent file.
pub const MAX_INTENT_LEN: u64 = (1 + MAX_INTENT_PAGES as u64) * INTENT_PAGE as u64;
const MIN_SHIFT: u32 = 20;
const MAX_SHIFT: u32 = 62;
const WHAT: &str = "write-intent header";
const PAGE: &str = "write-intent page";

layout! { header magic::INTENT;
    /// First page of a write-intent file.
    pub struct IntentHeader: 4096 {
        /// Binary logarithm of the bytes of a region.
        12 => region_shift: u32,
        /// The file.
        16 => file: IntentId,
        /// Domain of the disk.
        32 => domain: DomainId,
        /// Disk.
        48 => disk: DiskId,
        /// Bytes of the disk.
        64 => size: u64,
        /// Bitmap pages after this one.
        72 => page_count: u32,
    }
}

layout! { header magic::INTENT_PAGE;
    /// One bitmap page.
    pub struct IntentPage: 4096 {
        /// Its number, from 0.
        12 => page: u32,
        /// The file that it is part of.
        16 => file: IntentId,
        /// Disk.
        32 => disk: DiskId,
        /// Region `page x 32256 + n` is bit `n mod 8` of byte `n / 8`; 1 is set. Zero past the disk's last region.
        56 => bits: [u8; INTENT_BITS_LEN],
    }
}

/// How a disk is cut into regions and its regions into pages. Pure arithmetic; the last region may be short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntentShape {
    size: u64,
    shift: u32,
}

impl IntentShape {
    /// For a disk of `size` bytes: the smallest regions that fit the limit of pages. `None` for no bytes at all.
    pub fn of(size: u64) -> Option<IntentShape> {
        (MIN_SHIFT..=MAX_SHIFT).find_map(|shift| IntentShape::with_shift(size, shift))
    }

    fn with_shift(size: u64, shift: u32) -> Option<IntentShape> {
        let valid = size > 0 && (MIN_SHIFT..=MAX_SHIFT).contains(&shift);
        let most = u64::from(MAX_INTENT_PAGES) * u64::from(INTENT_PAGE_REGIONS);
        (valid && size.div_ceil(1 << shift) <= most).then_some(IntentShape { size, shift })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a region.
    pub fn region_bytes(&self) -> u64 {
        1 << self.shift
    }

    /// Regions of the disk.
    pub fn regions(&self) -> u32 {
        u32::try_from(self.size.div_ceil(self.region_bytes())).expect("bounded by the limit of pages")
    }

    /// Bitmap pages.
    pub fn pages(&self) -> u32 {
        self.regions().div_ceil(INTENT_PAGE_REGIONS)
    }

    /// Regions that bitmap page `page` stands for.
    pub fn page_regions(&self, page: u32) -> Range<u32> {
        let first = page.saturating_mul(INTENT_PAGE_REGIONS);
        first.min(self.regions())..first.saturating_add(INTENT_PAGE_REGIONS).min(self.regions())
    }

    /// Bytes of the disk that `region` stands for; empty past the end.
    pub fn range_of(&self, region: u32) -> Range<u64> {
        let start = u64::from(region).saturating_mul(self.region_bytes());
        start.min(self.size)..start.saturating_add(self.region_bytes()).min(self.size)
    }

    /// Regions that `range`, which is not empty and within the disk, touches; `None` otherwise.
    pub fn regions_of(&self, range: &Range<u64>) -> Option<Range<u32>> {
        if range.is_empty() || range.end > self.size {
            return None;
        }
        let first = u32::try_from(range.start >> self.shift).ok()?;
        let last = u32::try_from((range.end - 1) >> self.shift).ok()?;
        Some(first..last + 1)
    }
}

impl IntentHeader {
    /// The header of a file for `disk`, which is cut as `shape` says.
    pub fn new(file: IntentId, domain: DomainId, disk: DiskId, shape: &IntentShape) -> IntentHeader {
        IntentHeader { region_shift: shape.shift, file, domain, disk, size: shape.size, page_count: shape.pages() }
    }

    /// From the first page of a file, after a check that a writer can have made it.
    pub fn open(bytes: &[u8]) -> DecodeResult<IntentHeader> {
        let header = IntentHeader::decode(bytes)?;
        match header.try_shape() {
            Some(shape) if shape.pages() == header.page_count => Ok(header),
            _ => {
                let IntentHeader { size, region_shift, page_count, .. } = header;
                let why = format!("{page_count} pages of regions of 2^{region_shift} bytes for a disk of {size} bytes");
                Err(DecodeError::value(WHAT, why))
            }
        }
    }

    fn try_shape(&self) -> Option<IntentShape> {
        IntentShape::with_shift(self.size, self.region_shift)
    }

    /// How the disk is cut. A header that was opened has one.
    pub fn shape(&self) -> DecodeResult<IntentShape> {
        self.try_shape().ok_or_else(|| DecodeError::value(WHAT, "no such cut of a disk"))
    }

    /// Bitmap page `page` of this file from its bytes; fails where it is another one's or has bits past the disk's end.
    pub fn open_page(&self, page: u32, bytes: &[u8]) -> DecodeResult<IntentPage> {
        let found = IntentPage::decode(bytes)?;
        if found.file != self.file || found.disk != self.disk || found.page != page {
            let name = |file, disk, page| format!("page {page} of file {file} of disk {disk}");
            let theirs = name(found.file, found.disk, found.page);
            return Err(DecodeError::identity(PAGE, theirs, name(self.file, self.disk, page)));
        }
        let regions = self.shape()?.page_regions(page).len();
        let past = |n: &usize| found.bits[n / 8] >> (n % 8) & 1 != 0;
        match (regions..INTENT_PAGE_REGIONS as usize).find(past) {
            None => Ok(found),
            Some(n) => Err(DecodeError::value(PAGE, format!("bit {n} of {regions} regions is set"))),
        }
    }

    /// The bytes of bitmap page `page` of this file.
    pub fn encode_page(&self, page: u32, bits: [u8; INTENT_BITS_LEN]) -> [u8; INTENT_PAGE] {
        IntentPage { page, file: self.file, disk: self.disk, bits }.encode()
    }
}

/// A whole file, strictly: for `freshet inspect`, property tests and fuzzing.
pub(super) fn recode(bytes: &[u8]) -> DecodeResult<Vec<u8>> {
    let header = IntentHeader::open(bytes)?;
    let len = (1 + header.page_count as usize) * INTENT_PAGE;
    if bytes.len() != len {
        return match bytes.len() < len {
            true => Err(DecodeError::Short { what: PAGE, need: len as u64, have: bytes.len() as u64 }),
            false => Err(DecodeError::value(PAGE, format!("{} bytes left over at the end", bytes.len() - len))),
        };
    }
    let mut out = header.encode().to_vec();
    for (page, bytes) in (0..header.page_count).zip(bytes[INTENT_PAGE..].chunks(INTENT_PAGE)) {
        out.extend_from_slice(&header.open_page(page, bytes)?.encode());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(size: u64) -> IntentHeader {
        let shape = IntentShape::of(size).unwrap();
        IntentHeader::new(
            IntentId::from_bytes([1; 16]),
            DomainId::from_bytes([2; 16]),
            DiskId::from_bytes([3; 16]),
            &shape,
        )
    }

    #[test]
    fn regions_grow_with_the_disk_and_the_bitmap_does_not() {
        assert_eq!(IntentShape::of(0), None);
        let most = u64::from(MAX_INTENT_PAGES * INTENT_PAGE_REGIONS);
        for (size, region, regions) in [
            (1, 1 << 20, 1),
            ((1 << 20) + 1, 1 << 20, 2),
            (most << 20, 1 << 20, most),
            ((most << 20) + 1, 2 << 20, most / 2 + 1),
            (u64::MAX, 1 << 42, 1 << 22),
        ] {
            let shape = IntentShape::of(size).unwrap();
            assert_eq!((shape.region_bytes(), u64::from(shape.regions())), (region, regions), "{size}");
            assert!(shape.pages() <= MAX_INTENT_PAGES);
            assert_eq!(shape.range_of(shape.regions() - 1).end, size);
            assert_eq!(shape.range_of(shape.regions()), size..size);
            assert_eq!(shape.regions_of(&(size - 1..size)), Some(shape.regions() - 1..shape.regions()));
            assert_eq!(shape.regions_of(&(size - 1..size.saturating_add(1))).is_some(), size == u64::MAX);
            let covered: usize = (0..=shape.pages()).map(|p| shape.page_regions(p).len()).sum();
            assert_eq!(covered as u64, regions);
        }
        let shape = IntentShape::of(10 << 20).unwrap();
        assert_eq!(shape.regions_of(&(5 << 20..7 << 20)), Some(5..7));
        assert_eq!(shape.regions_of(&((5 << 20) - 1..(7 << 20) + 1)), Some(4..8));
        assert_eq!(shape.regions_of(&(5..5)), None);
    }

    #[test]
    fn what_no_writer_makes_is_refused() {
        let good = header(40_000 << 20);
        assert_eq!(IntentHeader::open(&good.encode()).unwrap(), good);
        for bad in [
            IntentHeader { region_shift: 19, ..good.clone() },
            IntentHeader { region_shift: 63, ..good.clone() },
            IntentHeader { region_shift: u32::MAX, ..good.clone() },
            IntentHeader { page_count: 1, ..good.clone() },
            IntentHeader { page_count: u32::MAX, ..good.clone() },
            IntentHeader { size: 0, page_count: 0, ..good.clone() },
            IntentHeader { size: u64::MAX, ..good.clone() },
        ] {
            assert!(IntentHeader::open(&bad.encode()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pages_of_others_and_bits_past_the_end_are_refused() {
        let head = header(40_000 << 20);
        let mut bits = [0; INTENT_BITS_LEN];
        let last = (40_000 - INTENT_PAGE_REGIONS) as usize;
        bits[(last - 1) / 8] |= 1 << ((last - 1) % 8);
        let bytes = head.encode_page(1, bits);
        assert_eq!(head.open_page(1, &bytes).unwrap().bits, bits);
        assert!(matches!(head.open_page(0, &bytes), Err(DecodeError::Identity { .. })));
        for other in [
            IntentHeader { file: IntentId::from_bytes([9; 16]), ..head.clone() },
            IntentHeader { disk: DiskId::from_bytes([9; 16]), ..head.clone() },
        ] {
            assert!(matches!(other.open_page(1, &bytes), Err(DecodeError::Identity { .. })));
        }
        bits[last / 8] |= 1 << (last % 8);
        assert!(matches!(head.open_page(1, &head.encode_page(1, bits)), Err(DecodeError::Value { .. })));
    }
}
