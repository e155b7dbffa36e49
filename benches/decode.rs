//! What a decode worker does with a frame (verify, zstd, verify) beside bare libzstd over the same payloads.
//!
//! `cargo bench --bench decode`. Bytes are raw ones. The frames hold this machine's own files; those that zstd does not
//! make smaller are stored raw, and both sides copy them.

mod support;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use freshet::format::{
    Codec, FRAME_HEADER_LEN, FrameBody, FrameDecoder, FrameEncoder, FrameHeader, FrameId, VerifiedFrame,
};
use freshet::ids::{DiskId, DomainId, Generation, SegmentNo, SegmentRef};

/// Raw bytes of a pass: more than the processor's caches hold.
const RAW: usize = 64 << 20;
const FRAME_KIB: [usize; 3] = [64, 256, 1024];

/// A frame as a segment holds it.
struct Stored {
    id: FrameId,
    body: FrameBody,
    bytes: Vec<u8>,
}

fn frames(data: &[u8], len: usize) -> Vec<Stored> {
    let mut encoder = FrameEncoder::new(1).expect("zstd");
    let segment = SegmentRef::new(Generation::new(1), SegmentNo::new(1));
    let mut offset = 0;
    let frame = |raw: &[u8]| {
        let (domain, disk) = (DomainId::from_bytes([1; 16]), DiskId::from_bytes([2; 16]));
        let id = FrameId { domain, segment, disk, offset };
        offset += raw.len() as u64;
        let mut payload = Vec::new();
        let body = encoder.encode(raw, None, &mut payload).expect("a frame");
        Stored { id, body, bytes: [&FrameHeader::new(&id, &body).encode()[..], &payload].concat() }
    };
    data.chunks(len).map(frame).collect()
}

fn decode(decoder: &mut FrameDecoder, frames: &[Stored], out: &mut [u8]) {
    for frame in frames {
        let verified = VerifiedFrame::open(&frame.bytes, &frame.id, &frame.body).expect("a sound frame");
        let out = &mut out[..frame.body.raw_len as usize];
        decoder.decode_into(&verified, out).expect("a sound frame");
        black_box(out);
    }
}

fn libzstd(zstd: &mut zstd::bulk::Decompressor<'_>, frames: &[Stored], out: &mut [u8]) {
    for frame in frames {
        let payload = &frame.bytes[FRAME_HEADER_LEN..];
        let out = &mut out[..frame.body.raw_len as usize];
        match frame.body.codec {
            Codec::Zstd => drop(zstd.decompress_to_buffer(payload, out).expect("a sound payload")),
            Codec::Plain => out.copy_from_slice(payload),
        }
        black_box(out);
    }
}

fn benches(c: &mut Criterion) {
    let data = support::file_data(RAW);
    let mut decoder = FrameDecoder::new().expect("zstd");
    let mut bare = zstd::bulk::Decompressor::new().expect("zstd");
    let mut out = vec![0; 1 << 20];
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Bytes(RAW as u64));
    for kib in FRAME_KIB {
        let frames = frames(&data, kib << 10);
        group.bench_function(BenchmarkId::new("verify, decode, verify", format!("{kib} KiB")), |b| {
            b.iter(|| decode(&mut decoder, &frames, &mut out));
        });
        group.bench_function(BenchmarkId::new("libzstd alone", format!("{kib} KiB")), |b| {
            b.iter(|| libzstd(&mut bare, &frames, &mut out));
        });
        let mut second = vec![0; 1 << 20];
        support::by_turns(
            &format!("decode of frames of {kib} KiB, beside libzstd alone"),
            || support::time(|| decode(&mut decoder, &frames, &mut out)),
            || support::time(|| libzstd(&mut bare, &frames, &mut second)),
        );
    }
    group.finish();
}

criterion_group! { name = decoding; config = support::criterion(); targets = benches }
criterion_main!(decoding);
