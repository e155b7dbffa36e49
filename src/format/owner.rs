//! Ownership records: the numbered, create-only objects that say who may write a domain.
//!
//! Bytes only. What a sequence of records means is decided by one fold elsewhere. Invariants: a record repeats its own
//! number and its domain, so that a misplaced one is noticed; fields that a kind does not use are zero; a kind that this
//! program does not know is an error and never skipped, since it may change who owns the domain.

use crate::ids::{DomainId, Generation, SegmentNo, SegmentRef, Time, WriterId};

use super::author::Author;
use super::checksum::Digest;
use super::decode_error::{DecodeError, DecodeResult};
use super::layout::layout;
use super::magic;

/// Bytes of an ownership record.
pub const OWNER_RECORD_LEN: usize = OwnerFields::LEN;
const WHAT: &str = "ownership record";

layout! { header magic::OWNER;
    /// One ownership record, the whole object.
    pub(crate) struct OwnerFields: 512 {
        /// 1 claim, 2 base, 3 request, 4 release, 5 resume, 6 floor.
        10 => kind: u8,
        /// Bit 0, claims only: taken over without a release.
        11 => flags: u8,
        /// Bytes of the site's name.
        12 => site_len: u16,
        /// Bytes of the host's name.
        14 => host_name_len: u16,
        /// Domain.
        16 => domain: DomainId,
        /// Number of the record; the first is 1.
        32 => n: u64,
        /// When it was written, by the store's clock as far as the writer knew it.
        40 => at: Time,
        /// Run of the writer.
        48 => writer: WriterId,
        /// Drawn for this record: tells it from any other that was meant for the same number.
        64 => nonce: [u8; 16],
        /// Generation that it is about.
        80 => generation: Generation,
        /// Generation of the segment that it names; zero where there is none.
        88 => last_generation: Generation,
        /// Number of the segment that it names; zero where there is none.
        96 => last_segment: SegmentNo,
        /// Bases only: digest of that segment's index; zero where it is not known.
        104 => last_digest: Digest,
        /// Hash of the writer's host.
        120 => host: [u8; 16],
        /// Process of the writer.
        136 => pid: u32,
        /// Hash of the time at which that process started.
        144 => process_started: u64,
        /// Site that wrote it.
        152 => site: [u8; 256],
        /// Host that wrote it, for messages.
        408 => host_name: [u8; 64],
    }
}

const TAKE_OVER: u8 = 1;

/// What an ownership record does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerKind {
    /// Opens `generation` and seals the one before it.
    Claim {
        /// The generation that it opens.
        generation: Generation,
        /// Taken from another site, or after a release, without that site's consent.
        take_over: bool,
    },
    /// Settles what `generation` inherits.
    Base {
        /// The generation that inherits.
        generation: Generation,
        /// Last inherited segment; zero for nothing.
        last: SegmentRef,
        /// Digest of that segment's index, so that the next segment can name it; zero for nothing or unknown.
        digest: Digest,
    },
    /// Another site asks for the domain.
    Request {
        /// Newest generation when it asked.
        generation: Generation,
    },
    /// The owner gives the domain up.
    Release {
        /// The generation that ends.
        generation: Generation,
        /// Its last segment.
        last: SegmentRef,
    },
    /// The owner withdraws its release.
    Resume {
        /// The generation that goes on.
        generation: Generation,
    },
    /// Nothing below is recoverable any more.
    Floor {
        /// First point that stays recoverable.
        segment: SegmentNo,
    },
}

impl OwnerKind {
    /// One word, for messages.
    pub fn word(&self) -> &'static str {
        match self {
            OwnerKind::Claim { .. } => "claim",
            OwnerKind::Base { .. } => "base",
            OwnerKind::Request { .. } => "request",
            OwnerKind::Release { .. } => "release",
            OwnerKind::Resume { .. } => "resume",
            OwnerKind::Floor { .. } => "floor",
        }
    }

    /// Number, flags, generation, segment and digest, as they stand in the record.
    fn fields(&self) -> (u8, u8, Generation, SegmentRef, Digest) {
        let (none, zero) = (SegmentRef::default(), Digest::default());
        match *self {
            OwnerKind::Claim { generation, take_over } => {
                (1, if take_over { TAKE_OVER } else { 0 }, generation, none, zero)
            }
            OwnerKind::Base { generation, last, digest } => (2, 0, generation, last, digest),
            OwnerKind::Request { generation } => (3, 0, generation, none, zero),
            OwnerKind::Release { generation, last } => (4, 0, generation, last, zero),
            OwnerKind::Resume { generation } => (5, 0, generation, none, zero),
            OwnerKind::Floor { segment } => (6, 0, Generation::ZERO, SegmentRef::new(Generation::ZERO, segment), zero),
        }
    }

    /// From the fields; refused where they are not what [`OwnerKind::fields`] makes of the same kind.
    fn from_fields(f: &OwnerFields) -> DecodeResult<OwnerKind> {
        let generation = f.generation;
        let last = SegmentRef::new(f.last_generation, f.last_segment);
        let kind = match f.kind {
            1 => OwnerKind::Claim { generation, take_over: f.flags & TAKE_OVER != 0 },
            2 => OwnerKind::Base { generation, last, digest: f.last_digest },
            3 => OwnerKind::Request { generation },
            4 => OwnerKind::Release { generation, last },
            5 => OwnerKind::Resume { generation },
            6 => OwnerKind::Floor { segment: last.segment },
            other => return Err(DecodeError::value(WHAT, format!("kind {other}: use a newer freshet"))),
        };
        match kind.fields() == (f.kind, f.flags, f.generation, last, f.last_digest) {
            true => Ok(kind),
            false => Err(DecodeError::value(WHAT, format!("a {} with fields of another kind", kind.word()))),
        }
    }
}

/// One ownership record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerRecord {
    /// Its number in the log; the first is 1.
    pub n: u64,
    /// Domain. Drawn with the first claim, repeated by every record.
    pub domain: DomainId,
    /// When it was written, by the store's clock as far as the writer knew it.
    pub at: Time,
    /// Who wrote it.
    pub author: Author,
    /// Drawn for this record: tells it from any other that was meant for the same number.
    pub nonce: [u8; 16],
    /// What it does.
    pub kind: OwnerKind,
}

impl OwnerRecord {
    /// The object's bytes.
    pub fn encode(&self) -> [u8; OWNER_RECORD_LEN] {
        let ((site, site_len), (host_name, host_name_len)) = self.author.texts();
        let (kind, flags, generation, last, last_digest) = self.kind.fields();
        let fields = OwnerFields {
            kind,
            flags,
            site_len,
            host_name_len,
            domain: self.domain,
            n: self.n,
            at: self.at,
            writer: self.author.writer,
            nonce: self.nonce,
            generation,
            last_generation: last.generation,
            last_segment: last.segment,
            last_digest,
            host: self.author.process.host,
            pid: self.author.process.pid,
            process_started: self.author.process.started,
            site,
            host_name,
        };
        fields.encode()
    }

    /// Decodes whatever record stands there, for offline inspection.
    pub fn decode_any(bytes: &[u8]) -> DecodeResult<OwnerRecord> {
        let f = OwnerFields::decode(bytes)?;
        if bytes.len() != OWNER_RECORD_LEN {
            return Err(DecodeError::value(WHAT, format!("{} bytes, must be {OWNER_RECORD_LEN}", bytes.len())));
        }
        let process = (f.host, f.pid, f.process_started);
        let (site, host) = ((&f.site, f.site_len), (&f.host_name, f.host_name_len));
        let author = Author::from_fields(WHAT, site, host, f.writer, process)?;
        let kind = OwnerKind::from_fields(&f)?;
        Ok(OwnerRecord { n: f.n, domain: f.domain, at: f.at, author, nonce: f.nonce, kind })
    }

    /// Decodes record number `n`, of `domain` where that is known.
    pub fn decode(bytes: &[u8], domain: Option<DomainId>, n: u64) -> DecodeResult<OwnerRecord> {
        let found = OwnerRecord::decode_any(bytes)?;
        let expected = domain.unwrap_or(found.domain);
        match (found.domain, found.n) == (expected, n) {
            true => Ok(found),
            false => {
                let show = |d: DomainId, n: u64| format!("domain {d} record {n}");
                Err(DecodeError::identity(WHAT, show(found.domain, found.n), show(expected, n)))
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::format::ProcessIdentity;
    use crate::ids::Name;
    use proptest::prelude::*;

    pub(crate) fn author() -> Author {
        let process =
            ProcessIdentity { host: [6; 16], host_name: "höst".into(), pid: 4711, started: 0x0123_4567_89ab_cdef };
        Author { site: Name::new("Zürich 1").unwrap(), writer: WriterId::from_bytes([3; 16]), process }
    }

    fn record(kind: OwnerKind) -> OwnerRecord {
        let domain = DomainId::from_bytes([1; 16]);
        OwnerRecord { n: 7, domain, at: Time::from_millis(1000), author: author(), nonce: [9; 16], kind }
    }

    fn kinds() -> [OwnerKind; 7] {
        let generation = Generation::new(4);
        let last = SegmentRef::new(Generation::new(3), SegmentNo::new(17));
        [
            OwnerKind::Claim { generation, take_over: false },
            OwnerKind::Claim { generation, take_over: true },
            OwnerKind::Base { generation, last, digest: Digest([5; 16]) },
            OwnerKind::Request { generation },
            OwnerKind::Release { generation, last },
            OwnerKind::Resume { generation },
            OwnerKind::Floor { segment: last.segment },
        ]
    }

    #[test]
    fn every_kind_comes_back_as_what_it_was() {
        for kind in kinds() {
            let bytes = record(kind).encode();
            assert_eq!(OwnerRecord::decode(&bytes, Some(record(kind).domain), 7).unwrap(), record(kind));
            assert_eq!(OwnerRecord::decode(&bytes, None, 7).unwrap(), record(kind));
        }
    }

    #[test]
    fn misplaced_cut_or_flipped_records_are_refused() {
        let bytes = record(kinds()[2]).encode();
        let wrong_n = OwnerRecord::decode(&bytes, None, 8).unwrap_err();
        assert!(matches!(wrong_n, DecodeError::Identity { .. }), "{wrong_n}");
        let foreign = OwnerRecord::decode(&bytes, Some(DomainId::from_bytes([2; 16])), 7).unwrap_err();
        assert!(matches!(foreign, DecodeError::Identity { .. }), "{foreign}");
        for len in 0..bytes.len() {
            assert!(OwnerRecord::decode_any(&bytes[..len]).is_err(), "{len}");
        }
        assert!(OwnerRecord::decode_any(&[&bytes[..], &[0]].concat()).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(OwnerRecord::decode_any(&bad).is_err(), "bit {bit}");
        }
    }

    /// The same with a checksum that is right: what a program that knows more, or a broken one, may have written.
    #[test]
    fn unknown_kinds_and_fields_of_another_kind_are_refused() {
        let base = OwnerFields::decode(&record(kinds()[0]).encode()).unwrap();
        let changes: [fn(&mut OwnerFields); 6] = [
            |f| f.kind = 0,
            |f| f.kind = 7,
            |f| f.flags = 2,
            |f| f.last_segment = SegmentNo::new(1),
            |f| f.site_len = 0,
            |f| f.host_name[63] = 1,
        ];
        for (i, change) in changes.iter().enumerate() {
            let mut fields = base.clone();
            change(&mut fields);
            assert!(OwnerRecord::decode_any(&fields.encode()).is_err(), "change {i}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = OwnerRecord::decode_any(&bytes);
            if bytes.len() >= 10 {
                bytes[..8].copy_from_slice(&magic::OWNER.bytes);
                bytes[8..10].copy_from_slice(&1_u16.to_le_bytes());
                prop_assert!(OwnerRecord::decode_any(&bytes).is_err());
            }
        }

        /// Past the checksum: a decoder answers, and what it accepts it writes back byte for byte.
        #[test]
        fn fields_of_any_value_are_survived(raw in prop::collection::vec(any::<u8>(), 512), kind in 0_u8..9) {
            let mut bytes: [u8; OWNER_RECORD_LEN] = raw.try_into().unwrap();
            bytes[10] = kind;
            let covered = OWNER_RECORD_LEN - 8;
            bytes[..8].copy_from_slice(&magic::OWNER.bytes);
            bytes[8..10].copy_from_slice(&1_u16.to_le_bytes());
            let sum = crate::format::xxh3_64(&bytes[..covered]);
            bytes[covered..].copy_from_slice(&sum.to_le_bytes());
            if let Ok(record) = OwnerRecord::decode_any(&bytes) {
                prop_assert_eq!(OwnerRecord::decode_any(&record.encode()).unwrap(), record);
            }
        }
    }
}
