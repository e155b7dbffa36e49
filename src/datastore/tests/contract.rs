//! What a healthy file does: bytes, lengths, holes, and which way they go to the disk.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::{Rig, SLOT, Variant, on_every_engine, pattern};
use crate::datastore::{Access, Op, Request, Slab};
use crate::error::ErrorKind;

on_every_engine!(
    odd_offsets_and_lengths_are_written_and_read_back,
    more_requests_than_the_queue_holds_all_complete,
    reads_are_short_only_at_the_end_of_the_file,
    the_tail_of_a_file_of_odd_size_is_written_without_changing_its_size,
    writes_past_the_end_grow_the_file,
    a_hole_reads_as_zeros_and_keeps_the_size,
    lengths_are_set_and_space_is_reserved,
    aligned_bytes_do_not_go_through_the_page_cache,
    wrong_ranges_are_refused_and_give_the_slot_back,
    slots_of_another_slab_work,
    what_is_known_of_a_file_is_told,
);

/// Around the edges of 512, of a page, and of the large blocks of one variant.
const EDGES: [usize; 13] = [0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 12_289, 16_383, 16_384, 33_000];

fn odd_offsets_and_lengths_are_written_and_read_back(variant: Variant) {
    let rig = Rig::new(variant);
    let mut model = pattern(1, 100_000);
    let file = rig.file("disk", &model);
    let mut slot = rig.slab.take();
    for (n, (offset, len)) in EDGES.iter().flat_map(|o| EDGES.map(|l| (*o, l))).enumerate() {
        // A start in the slot that fits the offset (so that the middle can go directly), and one that does not.
        let start = if n % 3 == 0 { 100 } else { offset % 4096 };
        let bytes = pattern(n as u64 + 2, len);
        slot[start..start + len].copy_from_slice(&bytes);
        model[offset..offset + len].copy_from_slice(&bytes);
        slot = rig.engine.write_slot_blocking(file, offset as u64, slot, start..start + len).unwrap();

        slot.fill(0xee);
        let read;
        (read, slot) = rig.engine.read_slot_blocking(file, offset as u64, slot, start..start + len).unwrap();
        assert_eq!(read, len);
        assert!(slot[start..start + len] == bytes[..], "read back {len} at {offset}");
        assert!(slot[..start].iter().chain(&slot[start + len..]).all(|&b| b == 0xee), "read outside its range");
        if n % 13 == 0 {
            assert!(rig.contents("disk") == model, "after {len} at {offset}");
        }
    }
    assert!(rig.contents("disk") == model);
}

fn more_requests_than_the_queue_holds_all_complete(variant: Variant) {
    let rig = Rig::with(variant, |options| options.queue_depth = 3);
    let block = 16 << 10;
    let file = rig.file("disk", &vec![0; 120 * block]);
    let (sender, results) = crossbeam::channel::bounded(120);
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (rig, sender) = (&rig, sender.clone());
            scope.spawn(move || {
                for n in part * 30..(part + 1) * 30 {
                    let mut slot = rig.slab.take();
                    slot[..block].copy_from_slice(&pattern(n as u64, block));
                    let sender = sender.clone();
                    let done = Box::new(move |completion: crate::datastore::Completion| {
                        sender.send(completion.result).unwrap();
                    });
                    let op = Op::Write { offset: (n * block) as u64, slot, range: 0..block };
                    rig.engine.submit(Request { file, op, done });
                }
            });
        }
    });
    for _ in 0..120 {
        assert_eq!(results.recv().unwrap().unwrap(), block);
    }
    rig.engine.close(file).unwrap();
    assert_eq!(rig.slab.in_use(), 0);
    let contents = rig.contents("disk");
    for n in 0..120 {
        assert!(contents[n * block..(n + 1) * block] == pattern(n as u64, block), "block {n}");
    }
}

fn reads_are_short_only_at_the_end_of_the_file(variant: Variant) {
    let rig = Rig::new(variant);
    for len in [0usize, 1, 511, 4096, 10_001, 12_288] {
        let contents = pattern(3, len);
        let file = rig.file("disk", &contents);
        for offset in [0usize, 1, 4096, 9_999, 12_288, 1 << 20] {
            let mut bytes = vec![0xee; 20_000];
            let read = rig.engine.read_blocking(file, offset as u64, &mut bytes).unwrap();
            assert_eq!(read, len.saturating_sub(offset), "{len} bytes, read at {offset}");
            assert!(bytes[..read] == contents[offset.min(len)..], "{len} bytes, read at {offset}");
        }
        rig.engine.close(file).unwrap();
    }
}

fn the_tail_of_a_file_of_odd_size_is_written_without_changing_its_size(variant: Variant) {
    let rig = Rig::new(variant);
    for len in [1usize, 700, 4097, 50_001] {
        let file = rig.file("disk", &vec![0; len]);
        let bytes = pattern(4, len);
        rig.engine.write_all_blocking(file, 0, &bytes).unwrap();
        rig.engine.sync_blocking(file).unwrap();
        assert!(rig.contents("disk") == bytes, "{len} bytes");
        rig.engine.close(file).unwrap();
    }
}

fn writes_past_the_end_grow_the_file(variant: Variant) {
    let rig = Rig::new(variant);
    let file = rig.file("disk", b"");
    rig.engine.write_all_blocking(file, 5000, &pattern(5, 9000)).unwrap();
    let contents = rig.contents("disk");
    assert_eq!(contents.len(), 14_000);
    assert!(contents[..5000].iter().all(|&b| b == 0));
    assert!(contents[5000..] == pattern(5, 9000));
}

fn a_hole_reads_as_zeros_and_keeps_the_size(variant: Variant) {
    let rig = Rig::new(variant);
    let size = 300_000;
    let mut model = pattern(6, size);
    let file = rig.file("disk", &model);
    File::open(rig.path("disk")).unwrap().sync_all().unwrap();
    let before = fs::metadata(rig.path("disk")).unwrap().blocks();
    for (offset, len) in [(65_536, 131_072), (4097, 1), (200_000, 4096), (299_000, 100_000), (0, 0)] {
        rig.engine.punch_hole_blocking(file, offset as u64, len as u64).unwrap();
        let end = (offset + len).min(size);
        model[offset..end].fill(0);
    }
    assert!(rig.contents("disk") == model);
    let after = fs::metadata(rig.path("disk")).unwrap().blocks();
    assert!(after + 200 <= before, "128 KiB are free again: {before} before, {after} after");
}

fn lengths_are_set_and_space_is_reserved(variant: Variant) {
    let rig = Rig::new(variant);
    let file = rig.file("disk", &pattern(7, 5000));
    rig.engine.set_len_blocking(file, 1 << 30).unwrap();
    let sparse = fs::metadata(rig.path("disk")).unwrap();
    assert_eq!(sparse.len(), 1 << 30);
    assert!(sparse.blocks() < 1000, "a longer file stays sparse");
    rig.engine.set_len_blocking(file, 777).unwrap();
    assert!(rig.contents("disk") == pattern(7, 777));
    rig.engine.allocate_blocking(file, 0, 1 << 20).unwrap();
    let reserved = fs::metadata(rig.path("disk")).unwrap();
    assert_eq!(reserved.len(), 1 << 20);
    assert!(reserved.blocks() >= 2048, "space for a MiB is reserved");
    assert!(rig.contents("disk")[777..].iter().all(|&b| b == 0));
}

/// Pages of the file that are in the page cache.
fn cached_pages(path: &std::path::Path) -> usize {
    let file = File::open(path).unwrap();
    let len = file.metadata().unwrap().len() as usize;
    let mut pages = vec![0u8; len.div_ceil(4096)];
    // SAFETY: a new mapping at an address of the kernel's choice, read by nobody, and unmapped below.
    unsafe {
        use rustix::mm::{MapFlags, ProtFlags};
        let map = rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, &file, 0).unwrap();
        assert_eq!(libc::mincore(map, len, pages.as_mut_ptr()), 0);
        rustix::mm::munmap(map, len).unwrap();
    }
    pages.iter().filter(|&&page| page & 1 == 1).count()
}

fn aligned_bytes_do_not_go_through_the_page_cache(variant: Variant) {
    let rig = Rig::new(variant);
    let size = 8 * SLOT;
    let file = rig.file("disk", b"");
    let info = rig.engine.file_info(file).unwrap();
    let buffered = matches!(variant, Variant::RingBuffered | Variant::ThreadsBuffered);
    assert_eq!(info.not_direct.is_some(), buffered, "the tests' directory must be on a file system with direct I/O");
    rig.engine.write_all_blocking(file, 0, &pattern(8, size)).unwrap();
    rig.engine.read_blocking(file, 0, &mut vec![0; size]).unwrap();
    let cached = cached_pages(&rig.path("disk"));
    assert_eq!(cached, if buffered { size / 4096 } else { 0 });
    // An odd request takes only its edges through the cache. The kernel may read ahead around them.
    rig.engine.write_all_blocking(file, 100, &pattern(9, SLOT - 200)).unwrap();
    if !buffered {
        assert!(cached_pages(&rig.path("disk")) <= 2 * info.alignment.offset as usize / 4096);
    }
}

fn wrong_ranges_are_refused_and_give_the_slot_back(variant: Variant) {
    let rig = Rig::new(variant);
    let contents = pattern(10, 8192);
    let file = rig.file("disk", &contents);
    let mut slot = rig.slab.take();
    slot.fill(1);
    #[allow(clippy::reversed_empty_ranges)]
    let ranges = [0..SLOT + 1, SLOT + 1..SLOT + 2, 4096..0, usize::MAX - 1..usize::MAX];
    for range in ranges {
        let completion = rig.engine.execute(file, Op::Write { offset: 0, slot, range });
        let error = completion.result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("disk"), "{error}");
        slot = completion.slot.unwrap();
    }
    for offset in [u64::MAX, i64::MAX as u64, u64::MAX - 4095] {
        let completion = rig.engine.execute(file, Op::Read { offset, slot, range: 0..4096 });
        assert_eq!(completion.result.unwrap_err().kind(), ErrorKind::Invalid, "{offset}");
        slot = completion.slot.unwrap();
        for op in [
            Op::PunchHole { offset, len: 4096 },
            Op::ZeroRange { offset, len: 1 },
            Op::Allocate { offset, len: 4096 },
            Op::SetLen(u64::MAX),
        ] {
            assert_eq!(rig.engine.execute(file, op).result.unwrap_err().kind(), ErrorKind::Invalid, "{offset}");
        }
    }
    let completion = rig.engine.execute(file, Op::Write { offset: 0, slot, range: 5..5 });
    assert_eq!(completion.result.unwrap(), 0, "an empty range is fine");
    assert!(rig.contents("disk") == contents);
}

fn slots_of_another_slab_work(variant: Variant) {
    let rig = Rig::new(variant);
    let file = rig.file("disk", b"");
    let other = Slab::new(1, 8192).unwrap();
    let mut slot = other.take();
    slot.copy_from_slice(&pattern(11, 8192));
    let mut slot = rig.engine.write_slot_blocking(file, 0, slot, 0..8192).unwrap();
    assert!(rig.contents("disk") == pattern(11, 8192));
    slot.fill(0);
    let (read, slot) = rig.engine.read_slot_blocking(file, 0, slot, 0..8192).unwrap();
    assert_eq!(read, 8192);
    assert!(slot[..] == pattern(11, 8192));
    assert!(Arc::ptr_eq(slot.slab(), &other), "it is the same slot that comes back");
}

fn what_is_known_of_a_file_is_told(variant: Variant) {
    let rig = Rig::new(variant);
    let file = rig.file("disk", &pattern(12, 12_345));
    let info = rig.engine.file_info(file).unwrap();
    assert_eq!((info.len, info.block_device, info.access), (12_345, false, Access::Write));
    assert_eq!(info.path, rig.path("disk"));
    let least = if variant == Variant::RingLargeBlocks { 16 << 10 } else { 4096 };
    assert!(info.alignment.offset >= least && info.alignment.offset.is_power_of_two());
    assert!(info.alignment.device <= info.alignment.offset);
    rig.engine.set_len_blocking(file, 99).unwrap();
    assert_eq!(rig.engine.file_info(file).unwrap().len, 99);
}
