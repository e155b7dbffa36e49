//! Planning of a rehydration: map pages into range requests, for a disk of 256 GiB that is full, a million extents.
//!
//! `cargo bench --bench planning`. Bytes are those of the disk that is planned, so that the rate can be held against
//! what a disk takes: planning goes on while data is fetched, and must be far ahead of it. Windows of pages bound the
//! memory, as they do in the product.

mod support;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use freshet::format::{Codec, Digest, Extent, FRAME_HEADER_LEN, FrameBody, FrameRef, MapPage, PAGE_SPAN};
use freshet::ids::{DiskId, DomainId, Generation, SegmentNo, SegmentRef};
use freshet::map::{Change, overlay};
use freshet::rehydrate::{MAX_RANGE, RangeWork, by_frame, coalesce};

const DOMAIN: DomainId = DomainId::from_bytes([1; 16]);
const DISK: DiskId = DiskId::from_bytes([2; 16]);
const PAGES: u64 = 256;
/// Pages that are planned together.
const WINDOW: usize = 16;
/// Every frame of the base: 4096 of them fill a page.
const FRAME: u32 = 256 << 10;
const STORED: u32 = 110_000;
/// A segment of about 16 MiB.
const FRAMES_PER_SEGMENT: u64 = 150;
/// The base is one generation, what changed since then the next.
const CUT: u64 = PAGES * (PAGE_SPAN / FRAME as u64) / FRAMES_PER_SEGMENT + 1;

fn frame(n: u64, generation: u64, start: u64, raw_len: u32, stored_len: u32) -> FrameRef {
    let stored = u64::from(stored_len) + FRAME_HEADER_LEN as u64;
    let number = (generation - 1) * CUT + n / FRAMES_PER_SEGMENT + 1;
    let body = FrameBody { codec: Codec::Zstd, raw_len, stored_len, stored_sum: n, raw_digest: Digest([n as u8; 16]) };
    let segment = SegmentRef::new(Generation::new(generation), SegmentNo::new(number));
    FrameRef { segment, pos: 256 + n % FRAMES_PER_SEGMENT * stored, start, body }
}

/// The objects of all pages, as a manifest names them.
fn pages() -> Vec<Vec<u8>> {
    let per_page = PAGE_SPAN / u64::from(FRAME);
    let extent = |n: u64| {
        let offset = n * u64::from(FRAME);
        Extent { offset, len: FRAME, frame: frame(n, 1, offset, FRAME, STORED) }
    };
    let page = |page: u64| {
        let extents = (page * per_page..(page + 1) * per_page).map(extent).collect();
        let cut = SegmentRef::new(Generation::new(1), SegmentNo::new(CUT));
        MapPage { domain: DOMAIN, disk: DISK, page, cut, extents }.encode().expect("a page")
    };
    (0..PAGES).map(page).collect()
}

/// What segments after the manifest changed in a page: 8 KiB in each tenth frame, in no order, and some zeros.
fn changes(page: u64) -> Vec<Change> {
    let each = 10 * u64::from(FRAME);
    let count = PAGE_SPAN / each;
    let change = |i: u64| {
        // 7 and the count have no common factor, so that each place comes once.
        let offset = page * PAGE_SPAN + i * 7 % count * each + 64 * 1024;
        match i % 16 {
            0 => Change { offset, len: 64 << 10, frame: None },
            _ => Change { offset, len: 8192, frame: Some(frame(page * count + i, 2, offset, 8192, 4000)) },
        }
    };
    (0..count).map(change).collect()
}

fn decode(page: u64, bytes: &[u8]) -> Vec<Extent> {
    let cut = SegmentRef::new(Generation::new(1), SegmentNo::new(CUT));
    MapPage::decode(bytes, DOMAIN, DISK, page, cut).expect("a page").extents
}

fn in_store_order(extents: Vec<(u32, Extent)>) -> Vec<RangeWork> {
    coalesce(by_frame(extents), MAX_RANGE)
}

fn benches(c: &mut Criterion) {
    let pages = pages();
    let changed: Vec<Vec<Change>> = (0..PAGES).map(changes).collect();
    let windows = || (0..PAGES).collect::<Vec<_>>();
    let mut group = c.benchmark_group("planning");
    group.throughput(Throughput::Bytes(PAGES * PAGE_SPAN));
    group.bench_function("all: decode, overlay, by frame, coalesce", |b| {
        b.iter(|| {
            for window in windows().chunks(WINDOW) {
                let page = |&n: &u64| overlay(&decode(n, &pages[n as usize]), &changed[n as usize]);
                black_box(in_store_order(window.iter().flat_map(page).map(|e| (0, e)).collect()));
            }
        });
    });
    group.bench_function("decode of map pages", |b| {
        b.iter(|| (0..PAGES).for_each(|n| drop(black_box(decode(n, &pages[n as usize])))));
    });
    let base: Vec<Vec<Extent>> = (0..PAGES).map(|n| decode(n, &pages[n as usize])).collect();
    group.bench_function("overlay of changes", |b| {
        b.iter(|| base.iter().zip(&changed).for_each(|(page, changes)| drop(black_box(overlay(page, changes)))));
    });
    let live: Vec<Vec<(u32, Extent)>> =
        base.chunks(WINDOW).map(|window| window.iter().flatten().map(|e| (0, *e)).collect()).collect();
    group.bench_function("by frame, coalesce", |b| {
        let all = |windows: Vec<Vec<(u32, Extent)>>| windows.into_iter().map(in_store_order).collect::<Vec<_>>();
        b.iter_batched(|| live.clone(), all, BatchSize::LargeInput);
    });
    group.finish();
}

criterion_group! { name = plan; config = support::criterion(); targets = benches }
criterion_main!(plan);
