//! Segments, logs and engines for the tests of the log.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::super::{LogOptions, ReplicationLog};
use crate::datastore::{DiskEngine, EngineKind, EngineOptions, Slab, start};
use crate::error::Result;
use crate::format::{DatastoreId, Digest, FrameEncoder, IndexDisk, SealedSegment, SegmentBuilder};
use crate::ids::*;

pub(super) const DOMAIN: DomainId = DomainId::from_bytes([1; 16]);
pub(super) const DATASTORE: DatastoreId = DatastoreId::from_bytes([2; 16]);
pub(super) const LARGEST: u64 = 256 << 10;

pub(super) fn name() -> Name {
    Name::new("dom one").unwrap()
}

pub(super) fn id(n: u64) -> SegmentRef {
    SegmentRef::new(Generation::new(1), SegmentNo::new(n))
}

/// Segment `at` with about `raw` bytes that do not compress and differ from segment to segment.
pub(super) fn segment(at: SegmentRef, raw: usize) -> SealedSegment {
    let mut builder = SegmentBuilder::new(Vec::new());
    let disk = IndexDisk { id: DiskId::from_bytes([5; 16]), vm: VmId::from_bytes([6; 16]), size: 1 << 40 };
    let mut x = at.segment.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (at.generation.get() << 17) ^ 1;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u8
    })
    .take(raw)
    .collect();
    let mut encoder = FrameEncoder::new(1).unwrap();
    for (n, frame) in noise.chunks(128 << 10).enumerate() {
        builder.push_data(&disk, (n as u64) << 20, frame, None, &mut encoder).unwrap();
    }
    builder
        .seal(crate::format::Seal {
            domain: DOMAIN,
            id: at,
            parent: match at.segment.get() {
                1 => SegmentRef::default(),
                n => SegmentRef::new(Generation::new(1), SegmentNo::new(n - 1)),
            },
            parent_digest: Digest::default(),
            writer: WriterId::from_bytes([3; 16]),
            created: Time::from_millis(1000),
            point: None,
            catalogue: None,
        })
        .unwrap()
}

pub(super) fn options(size: u64) -> LogOptions {
    LogOptions { largest_segment: LARGEST, ..LogOptions::new(DOMAIN, DATASTORE, size) }
}

pub(super) fn engine(kind: EngineKind, min_alignment: u32) -> Arc<dyn DiskEngine> {
    let slab = Slab::new(8, 64 << 10).unwrap();
    start(kind, slab, EngineOptions { min_alignment, worker_threads: 4, ..EngineOptions::default() }).unwrap()
}

pub(super) fn open(engine: &Arc<dyn DiskEngine>, dir: &Path, size: u64) -> Result<ReplicationLog> {
    ReplicationLog::open(engine, dir, &name(), &options(size))
}

/// Appends segment `at` in two parts.
pub(super) async fn append(log: &ReplicationLog, at: SegmentRef, raw: usize) -> Result<()> {
    let sealed = segment(at, raw);
    let cut = sealed.bytes.len() / 3;
    let parts = [Bytes::copy_from_slice(&sealed.bytes[..cut]), Bytes::copy_from_slice(&sealed.bytes[cut..])];
    log.append(&sealed.header, &parts).await
}

/// Raw bytes of segment `n`, different for each, so that records have many lengths.
pub(super) fn raw_len(n: u64) -> usize {
    (n as usize * 37_123) % 200_000 + 1
}

pub(super) fn check_segment(log: &ReplicationLog, at: SegmentRef, raw: usize) {
    let mut buffer = Vec::new();
    let header = log.read(at.segment, &mut buffer).unwrap();
    assert_eq!(header.id(), at);
    assert_eq!(buffer, segment(at, raw).bytes, "segment {at}");
}
