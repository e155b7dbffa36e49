//! Segments built of raw data, as a worker of `replicate` builds them, beside bare zstd of level 1 over the same data.
//!
//! `cargo bench --bench segment_build`. Bytes are raw ones, of this machine's own files, in frames of 256 KiB as
//! `replicate` makes them. Both sides use their buffers again. What ours does beyond compressing: a checksum of the raw
//! bytes and of the stored ones, headers, the index, and the segment's seal.

mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use freshet::format::{Digest, FrameEncoder, IndexDisk, Seal, SegmentBuilder};
use freshet::ids::{DiskId, DomainId, Generation, SegmentNo, SegmentRef, Time, VmId, WriterId};

/// Raw bytes of a pass: more than the processor's caches hold.
const RAW: usize = 64 << 20;
const FRAME: usize = 256 << 10;
/// Stored bytes at which a segment is cut.
const SEGMENT: usize = 16 << 20;
const LEVEL: i32 = 1;

fn seal(n: u64) -> Seal {
    let id = |n| SegmentRef::new(Generation::new(1), SegmentNo::new(n));
    Seal {
        domain: DomainId::from_bytes([1; 16]),
        id: id(n),
        parent: if n == 1 { SegmentRef::default() } else { id(n - 1) },
        parent_digest: Digest::default(),
        writer: WriterId::from_bytes([3; 16]),
        created: Time::from_millis(1),
        point: None,
        catalogue: None,
    }
}

/// Builds segments of all of `data`; `buffer` is the memory of each of them in turn.
fn segments(encoder: &mut FrameEncoder, data: &[u8], buffer: &mut Vec<u8>) {
    let disk = IndexDisk { id: DiskId::from_bytes([5; 16]), vm: VmId::from_bytes([6; 16]), size: RAW as u64 };
    let mut chunks = data.chunks(FRAME).enumerate().peekable();
    let mut number = 0;
    while chunks.peek().is_some() {
        let mut builder = SegmentBuilder::new(std::mem::take(buffer));
        while builder.len() < SEGMENT {
            let Some((n, raw)) = chunks.next() else { break };
            builder.push_data(&disk, (n * FRAME) as u64, raw, None, encoder).expect("a frame");
        }
        number += 1;
        *buffer = black_box(builder.seal(seal(number)).expect("a segment")).bytes;
    }
}

/// Payloads alone, with their checksums.
fn frames(encoder: &mut FrameEncoder, data: &[u8], buffer: &mut Vec<u8>) {
    for raw in data.chunks(FRAME) {
        buffer.clear();
        black_box(encoder.encode(raw, None, buffer).expect("a frame"));
    }
}

fn bare(zstd: &mut zstd::bulk::Compressor<'_>, data: &[u8], buffer: &mut [u8]) {
    for raw in data.chunks(FRAME) {
        black_box(zstd.compress_to_buffer(raw, buffer).expect("room"));
    }
}

fn benches(c: &mut Criterion) {
    let data = support::file_data(RAW);
    let mut encoder = FrameEncoder::new(LEVEL).expect("zstd");
    let mut zstd = zstd::bulk::Compressor::new(LEVEL).expect("zstd");
    let mut buffer = Vec::with_capacity(SEGMENT + (1 << 20));
    let mut bound = vec![0; zstd::zstd_safe::compress_bound(FRAME)];
    let mut group = c.benchmark_group("segment_build");
    group.throughput(Throughput::Bytes(RAW as u64));
    group.bench_function("segments of 16 MiB", |b| b.iter(|| segments(&mut encoder, &data, &mut buffer)));
    group.bench_function("frames alone", |b| b.iter(|| frames(&mut encoder, &data, &mut buffer)));
    group.bench_function("zstd alone", |b| b.iter(|| bare(&mut zstd, &data, &mut bound)));
    group.finish();
    support::by_turns(
        "building segments, beside zstd alone",
        || support::time(|| segments(&mut encoder, &data, &mut buffer)),
        || support::time(|| bare(&mut zstd, &data, &mut bound)),
    );
}

criterion_group! { name = building; config = support::criterion(); targets = benches }
criterion_main!(building);
