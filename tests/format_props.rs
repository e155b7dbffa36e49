//! Every decoder on bytes that nobody wrote, and on damaged ones: it answers, sets little aside, and is never fooled.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
#[path = "support/formats.rs"]
mod formats;
#[path = "support/mend.rs"]
mod mend;

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::cell::Cell;

use formats::*;
use freshet::format::*;
use freshet::ids::*;
use mend::mend;
use proptest::prelude::*;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread holds.
struct Counting;

fn count(change: isize) {
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every call is passed on as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: as the trait demands of the caller.
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        count(memory.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(memory) }
    }
    // SAFETY: as the trait demands of the caller.
    unsafe fn dealloc(&self, at: *mut u8, memory: Memory) {
        count(-(memory.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, memory) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Most bytes that decoding `len` bytes may hold: a few structs for each, one frame, and zstd's context.
fn budget(len: usize) -> isize {
    (64 * len + (4 << 20)) as isize
}

/// What the decoder makes of `bytes`, after a check of what it set aside.
fn bounded(bytes: &[u8]) -> DecodeResult<Vec<u8>> {
    let before = LIVE.get();
    PEAK.set(before);
    let result = recode(bytes);
    let held = PEAK.get() - before;
    assert!(held <= budget(bytes.len()), "{held} bytes held for {}", bytes.len());
    result
}

/// What a decoder takes means what its bytes say: it encodes to them again, or (bitmaps) to a fixed point.
fn honest(bytes: &[u8]) {
    let Ok(again) = bounded(bytes) else { return };
    match recognise(bytes).is_some_and(|m| m == magic::HYDRATION) {
        true => assert!(recode(&again).unwrap() == again),
        false => assert!(bytes.starts_with(&again)),
    }
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    pinned().into_iter().chain(compressed()).collect()
}

#[test]
fn no_flipped_bit_and_no_cut_of_any_object_is_taken() {
    for (name, bytes) in samples() {
        assert!(recode(&bytes).is_ok(), "{name}");
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(bounded(&bad).is_err(), "{name}: byte {at}");
        }
        for len in (0..bytes.len()).step_by(7) {
            assert!(bounded(&bytes[..len]).is_err(), "{name}: cut at {len}");
        }
    }
}

/// The sums of a hostile object are right: what is wrong has to be found by what it says.
#[test]
fn each_byte_of_a_header_may_hold_anything() {
    for (name, bytes) in samples() {
        for at in 0..bytes.len().min(600) {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bad = bytes.clone();
                bad[at] = value;
                mend(recognise(&bytes).unwrap(), &mut bad);
                honest(&bad);
            }
        }
        assert!(recode(&bytes).is_ok(), "{name}");
    }
}

#[test]
fn bytes_behind_maps_and_watermarks_are_ignored_and_behind_others_refused() {
    for (name, mut bytes) in samples() {
        bytes.push(0);
        let ignored = ["hydration", "watermark", "protection", "log-superblock", "log-record"].contains(&name);
        assert_eq!(recode(&bytes).is_ok(), ignored, "{name}");
    }
}

fn any_ref() -> impl Strategy<Value = SegmentRef> {
    (1..50_u64, 1..1000_u64).prop_map(|(g, s)| at(g, s))
}

proptest! {
    #[test]
    fn any_bytes_after_any_magic_are_survived(
        which in 0..magic::ALL.len(),
        mut bytes in prop::collection::vec(any::<u8>(), 10..5000),
    ) {
        bytes[..8].copy_from_slice(&magic::ALL[which].bytes);
        bytes[8..10].copy_from_slice(&magic::ALL[which].version.to_le_bytes());
        honest(&bytes);
    }

    #[test]
    fn mended_damage_is_refused_or_means_what_it_says(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let all = samples();
        let (_, sample) = &all[which.index(all.len())];
        let mut bad = sample.clone();
        if let Some(cut) = cut {
            bad.truncate(cut.index(sample.len()) + 1);
        }
        for (at, value) in damage {
            let at = at.index(bad.len());
            bad[at] = value;
        }
        mend(recognise(sample).unwrap(), &mut bad);
        honest(&bad);
    }

    #[test]
    fn map_pages_come_back(page in 0..1000_u64, cut in any_ref(), lens in prop::collection::vec(1..=2048_u32, 0..50)) {
        let body = segment(&noise(5000)).index.entries[0].frame.unwrap().1;
        let body = FrameBody { codec: Codec::Plain, raw_len: 1 << 20, stored_len: 1 << 20, ..body };
        let extents = lens.iter().enumerate().map(|(i, sectors)| {
            let start = page * PAGE_SPAN + ((i as u64) << 20);
            Extent { offset: start + 512, len: (sectors * 512).min((1 << 20) - 512), frame: FrameRef { segment: cut, pos: 256, start, body } }
        });
        let page = MapPage { domain: DOMAIN, disk: DISK, page, cut, extents: extents.collect() };
        let bytes = page.encode().unwrap();
        prop_assert_eq!(MapPage::decode(&bytes, DOMAIN, DISK, page.page, cut).unwrap(), page);
    }

    #[test]
    fn segments_come_back(
        raws in prop::collection::vec((1..5000_usize, any::<bool>()), 0..8),
        zeros in prop::option::of(1..1_000_000_u64),
        has_point in any::<bool>(),
    ) {
        let disk = IndexDisk { id: DISK, vm: VM, size: u64::MAX };
        let mut builder = SegmentBuilder::new(Vec::new());
        let mut encoder = FrameEncoder::new(1).unwrap();
        let content: Vec<Vec<u8>> = raws.iter().map(|(n, flat)| if *flat { vec![5; *n] } else { noise(*n) }).collect();
        for (i, raw) in content.iter().enumerate().rev() {
            builder.push_data(&disk, (i as u64) << 20, raw, None, &mut encoder).unwrap();
        }
        if let Some(len) = zeros {
            builder.push_zeros(&disk, 1 << 40, len);
        }
        let seal = Seal {
            domain: DOMAIN, id: at(1, 1), parent: SegmentRef::default(), parent_digest: Digest::default(),
            writer: WriterId::from_bytes([3; 16]), created: Time::from_millis(1),
            point: has_point.then(point), catalogue: None,
        };
        let sealed = builder.seal(seal).unwrap();
        let opened = Segment::open(&sealed.bytes, DOMAIN, at(1, 1)).unwrap();
        prop_assert_eq!(&opened.index, &sealed.index);
        let mut decoder = FrameDecoder::new().unwrap();
        for (entry, raw) in opened.index.entries.iter().zip(&content) {
            let mut out = vec![0; raw.len()];
            decoder.decode_into(&opened.frame(entry).unwrap().unwrap(), &mut out).unwrap();
            prop_assert_eq!(&out, raw);
        }
        prop_assert!(recode(&sealed.bytes).unwrap() == sealed.bytes);
    }

    #[test]
    fn records_of_every_kind_come_back(n in 1..u64::MAX, g in any::<u64>(), last in any_ref(), pick in 0..6) {
        let generation = Generation::new(g);
        let kind = match pick {
            0 => OwnerKind::Claim { generation, take_over: n % 2 == 0 },
            1 => OwnerKind::Base { generation, last, digest: Digest([n as u8; 16]) },
            2 => OwnerKind::Request { generation },
            3 => OwnerKind::Release { generation, last },
            4 => OwnerKind::Resume { generation },
            _ => OwnerKind::Floor { segment: last.segment },
        };
        let record = OwnerRecord { n, ..owner(kind) };
        prop_assert_eq!(OwnerRecord::decode(&record.encode(), Some(DOMAIN), n).unwrap(), record);
    }

    #[test]
    fn hydration_maps_come_back(bits in prop::collection::btree_set(0..12_288_u32, 0..200), sequence in any::<u64>()) {
        let mut map = HydrationMap { sequence, ..hydration() };
        map.disks[0].valid = bits.into_iter().collect();
        prop_assert_eq!(HydrationMap::decode(&map.encode()).unwrap(), map);
    }
}
