//! Protection record: what a protecting site must remember of a domain between two runs: which chain its write-intent
//! bitmaps speak of, whether the last run ended cleanly, and who the disks are.
//!
//! A bit that is clear in a bitmap says that the chain has that region as it is on the local disk. That holds only for
//! chains that contain the segment `relied_on`, and nothing of other writers after it; this record is made durable before
//! bits are cleared because of it.

use crate::ids::{DomainId, Generation, SegmentNo, SegmentRef};

use super::catalogue::{Catalogue, MAX_CATALOGUE_LEN};
use super::checksum::{Digest, xxh3_128};
use super::decode_error::{DecodeError, DecodeResult};
use super::layout::layout;
use super::magic;
use super::watermark::{FileStamp, MAX_STAMPS, STAMP_LEN, decode_stamps, encode_stamps};
use super::wire::Reader;

/// Most bytes of a protection record.
pub const MAX_PROTECTION_LEN: u64 =
    ProtectionHeader::LEN as u64 + (STAMP_LEN as u64) * MAX_STAMPS as u64 + MAX_CATALOGUE_LEN as u64;
const WHAT: &str = "protection record";

layout! { header magic::PROTECTION;
    /// First bytes of a protection record.
    pub(crate) struct ProtectionHeader: 128 {
        /// Rows in the table of stamps: the disks that are protected.
        12 => stamp_count: u32,
        /// Domain.
        16 => domain: DomainId,
        /// Bumped at each commit: the newest of the two files counts.
        32 => sequence: u64,
        /// Generation of the newest accepted segment that clear bits rely on.
        40 => generation: Generation,
        /// Number of that segment; zero for none.
        48 => segment: SegmentNo,
        /// Generation in which this site wrote: its segments after that one are of these disks too.
        56 => own_generation: Generation,
        /// Boot of the host at which the record was written.
        64 => boot: [u8; 16],
        /// Bytes of the catalogue, which follows the stamps.
        80 => catalogue_len: u32,
        /// xxh3-128 of all bytes after this header.
        88 => body_digest: Digest,
    }
}

/// A protection record, decoded and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtectionRecord {
    /// Domain.
    pub domain: DomainId,
    /// Bumped at each commit.
    pub sequence: u64,
    /// Newest accepted segment that clear bits rely on; zero for none.
    pub relied_on: SegmentRef,
    /// Generation in which this site wrote.
    pub own_generation: Generation,
    /// Boot of the host.
    pub boot: [u8; 16],
    /// What the files of the protected disks look like. A time of change of zero says that the disk is, or was at an
    /// unclean end, open for writing: then only inode and length count.
    pub stamps: Vec<FileStamp>,
    /// VMs and disks that were protected.
    pub catalogue: Catalogue,
}

impl ProtectionRecord {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = encode_stamps(&self.stamps);
        let catalogue = self.catalogue.encode();
        body.extend_from_slice(&catalogue);
        let header = ProtectionHeader {
            stamp_count: u32::try_from(self.stamps.len()).expect("bounded by the domain"),
            domain: self.domain,
            sequence: self.sequence,
            generation: self.relied_on.generation,
            segment: self.relied_on.segment,
            own_generation: self.own_generation,
            boot: self.boot,
            catalogue_len: u32::try_from(catalogue.len()).expect("bounded by the catalogue"),
            body_digest: xxh3_128(&body),
        };
        let mut out = header.encode().to_vec();
        out.extend_from_slice(&body);
        out
    }

    /// From the file's bytes; what follows it (an older, longer one) is ignored.
    pub fn decode(bytes: &[u8]) -> DecodeResult<ProtectionRecord> {
        let head = ProtectionHeader::decode(bytes)?;
        let mut from = Reader::new(WHAT, &bytes[ProtectionHeader::LEN..]);
        let catalogue_len = head.catalogue_len as usize;
        if head.stamp_count > MAX_STAMPS || catalogue_len > MAX_CATALOGUE_LEN {
            let why = format!("{} stamps and a catalogue of {catalogue_len} bytes", head.stamp_count);
            return Err(DecodeError::value(WHAT, why));
        }
        let stamps_len = head.stamp_count as usize * STAMP_LEN;
        let body = from.raw(stamps_len + catalogue_len)?;
        if xxh3_128(body) != head.body_digest {
            return Err(DecodeError::Checksum { what: WHAT });
        }
        let (stamps, catalogue) = body.split_at(stamps_len);
        Ok(ProtectionRecord {
            domain: head.domain,
            sequence: head.sequence,
            relied_on: SegmentRef::new(head.generation, head.segment),
            own_generation: head.own_generation,
            boot: head.boot,
            stamps: decode_stamps(stamps, WHAT)?,
            catalogue: Catalogue::decode(catalogue)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::DiskId;

    #[test]
    fn round_trip_and_every_damaged_byte_is_noticed() {
        let stamp = FileStamp { disk: DiskId::from_bytes([4; 16]), inode: 5, changed: (6, 7), len: 8 };
        let record = ProtectionRecord {
            domain: DomainId::from_bytes([1; 16]),
            sequence: 2,
            relied_on: SegmentRef::new(Generation::new(3), SegmentNo::new(4)),
            own_generation: Generation::new(5),
            boot: [6; 16],
            stamps: vec![stamp],
            catalogue: Catalogue::default(),
        };
        let bytes = record.encode();
        assert_eq!(ProtectionRecord::decode(&bytes).unwrap(), record);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(ProtectionRecord::decode(&bad).is_err(), "byte {at}");
            assert!(ProtectionRecord::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        let twice = ProtectionRecord { stamps: vec![stamp; 2], ..record };
        assert!(ProtectionRecord::decode(&twice.encode()).is_err());
    }
}
