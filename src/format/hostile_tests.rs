//! Bytes with valid checksums that no writer makes: each invariant of the decoders, broken alone.

use super::index::{DiskRow, EntryRow, IndexHeader};
use super::manifest::ManifestHeader;
use super::map_page::{ExtentRow, PageHeader};
use super::*;
use crate::ids::*;

const DOMAIN: DomainId = DomainId::from_bytes([1; 16]);
const DISK: DiskId = DiskId::from_bytes([2; 16]);

fn at(generation: u64, segment: u64) -> SegmentRef {
    SegmentRef::new(Generation::new(generation), SegmentNo::new(segment))
}

fn refused<T: std::fmt::Debug>(result: DecodeResult<T>, why: &str) {
    let error = result.unwrap_err().to_string();
    assert!(error.contains(why), "{error:?} does not say {why:?}");
}

fn row(offset: u32) -> ExtentRow {
    ExtentRow {
        offset,
        len: 512,
        source: 0,
        frame_offset: 0,
        frame_pos: 256,
        stored_len: 512,
        raw_len: 512,
        codec: 0,
        stored_sum: 3,
        raw_digest: Digest([4; 16]),
    }
}

fn page_bytes(page: u64, sources: &[SegmentRef], rows: &[[u8; 64]]) -> Vec<u8> {
    let mut body = Vec::new();
    for s in sources {
        body.extend_from_slice(&s.generation.get().to_le_bytes());
        body.extend_from_slice(&s.segment.get().to_le_bytes());
    }
    rows.iter().for_each(|r| body.extend_from_slice(r));
    let header = PageHeader {
        extent_count: rows.len() as u32,
        domain: DOMAIN,
        disk: DISK,
        page,
        generation: Generation::new(2),
        segment: SegmentNo::new(9),
        source_count: sources.len() as u32,
        live_bytes: rows.len() as u64 * 512,
        body_digest: xxh3_128(&body),
    };
    [&header.encode()[..], &body].concat()
}

#[test]
fn extents_at_the_end_of_the_address_space_do_not_overflow() {
    let last = u64::MAX / PAGE_SPAN - 1;
    refused(MapPage::decode_any(&page_bytes(last, &[at(1, 1)], &[row(u32::MAX - 511).encode()])), "of the span");
    refused(MapPage::decode_any(&page_bytes(last + 1, &[at(1, 1)], &[row(0).encode()])), "page number");
    refused(MapPage::decode_any(&page_bytes(u64::MAX, &[], &[])), "page number");
    let page = MapPage::decode_any(&page_bytes(last, &[at(1, 1)], &[row(0).encode()])).unwrap();
    refused(MapPage { page: u64::MAX, ..page.clone() }.encode(), "page number");
    let mut far = page;
    far.extents[0].offset = u64::MAX;
    refused(far.encode(), "out of place");
}

#[test]
fn pages_of_later_segments_or_with_loose_sources_are_refused() {
    let rows = [row(0).encode()];
    assert!(MapPage::decode_any(&page_bytes(0, &[at(2, 9)], &rows)).is_ok());
    refused(MapPage::decode_any(&page_bytes(0, &[at(2, 10)], &rows)), "cut at g2/s9");
    refused(MapPage::decode_any(&page_bytes(0, &[at(3, 9)], &rows)), "cut at g2/s9");
    refused(MapPage::decode_any(&page_bytes(0, &[at(1, 1), at(1, 2)], &rows)), "sources");
    let second = ExtentRow { source: 1, ..row(512) }.encode();
    assert!(MapPage::decode_any(&page_bytes(0, &[at(1, 1), at(1, 2)], &[rows[0], second])).is_ok());
    refused(MapPage::decode_any(&page_bytes(0, &[at(1, 2), at(1, 1)], &[rows[0], second])), "sources");
    let mut outside = row(0);
    outside.frame_pos = MAX_SEGMENT_LEN;
    refused(MapPage::decode_any(&page_bytes(0, &[at(1, 1)], &[outside.encode()])), "of its segment");
    outside.frame_pos = u64::MAX;
    refused(MapPage::decode_any(&page_bytes(0, &[at(1, 1)], &[outside.encode()])), "of its segment");
}

#[test]
fn reserved_bytes_of_headers_and_rows_must_be_zero() {
    let mut extent = row(0).encode();
    extent[36] = 1;
    refused(MapPage::decode_any(&page_bytes(0, &[at(1, 1)], &[extent])), "reserved");
    let mut bytes = page_bytes(0, &[], &[]);
    assert!(MapPage::decode_any(&bytes).is_ok());
    bytes[119] = 1;
    let sum = xxh3_64(&bytes[..120]);
    bytes[120..128].copy_from_slice(&sum.to_le_bytes());
    refused(MapPage::decode_any(&bytes), "reserved");
}

/// A segment of one plain frame of 512 bytes and 512 bytes of zeros, with the parts changed by the caller.
fn segment_with(change: impl FnOnce(&mut SegmentHeader, &mut Vec<DiskRow>, &mut Vec<EntryRow>)) -> DecodeResult<Index> {
    let disk_row = |n: u8| DiskRow { disk: DiskId::from_bytes([n; 16]), vm: VmId::from_bytes([7; 16]), size: 1 << 30 };
    let mut disks = vec![disk_row(1), disk_row(2)];
    let data = EntryRow {
        disk: 0,
        kind: 0,
        codec: 0,
        offset: 0,
        len: 512,
        frame_pos: 256,
        stored_len: 512,
        stored_sum: 9,
        raw_digest: Digest([9; 16]),
    };
    let nothing = EntryRow { stored_len: 0, stored_sum: 0, raw_digest: Digest::default(), ..data.clone() };
    let zeros = EntryRow { kind: 1, disk: 1, frame_pos: 0, ..nothing };
    let mut entries = vec![data, zeros];
    let index_len = (IndexHeader::LEN + 2 * DiskRow::LEN + 2 * EntryRow::LEN) as u32;
    let mut header = SegmentHeader {
        frame_count: 1,
        domain: DOMAIN,
        generation: Generation::new(2),
        segment: SegmentNo::new(9),
        parent_generation: Generation::new(2),
        parent_segment: SegmentNo::new(8),
        parent_digest: Digest([5; 16]),
        writer: WriterId::from_bytes([6; 16]),
        created: Time::from_millis(1),
        total_len: 256 + 640 + u64::from(index_len) + 64,
        index_pos: 256 + 640,
        index_len,
        key_id: 0,
        index_digest: Digest::default(),
        raw_bytes: 512,
        nonce: [0; 12],
    };
    change(&mut header, &mut disks, &mut entries);
    let head = IndexHeader {
        disk_count: disks.len() as u32,
        domain: header.domain,
        generation: header.generation,
        segment: header.segment,
        parent_generation: header.parent_generation,
        parent_segment: header.parent_segment,
        parent_digest: header.parent_digest,
        entry_count: entries.len() as u32,
        point_len: 0,
        catalogue_len: 0,
    };
    let mut bytes = head.encode().to_vec();
    disks.iter().for_each(|d| bytes.extend_from_slice(&d.encode()));
    entries.iter().for_each(|e| bytes.extend_from_slice(&e.encode()));
    header.index_digest = xxh3_128(&bytes);
    header.check()?;
    Index::decode(&bytes, &header)
}

#[test]
fn an_index_tells_of_every_byte_and_of_each_disk_once() {
    assert!(segment_with(|_, _, _| ()).is_ok());
    refused(segment_with(|_, d, _| d[1].disk = d[0].disk), "twice");
    refused(segment_with(|h, _, _| h.raw_bytes += 1), "raw bytes");
    refused(segment_with(|h, _, _| h.frame_count += 1), "frames");
    refused(segment_with(|_, _, e| e[1].stored_sum = 1), "zeros with a payload");
    refused(segment_with(|_, _, e| e[1].codec = 1), "zeros with a payload");
    refused(segment_with(|_, _, e| e[1].kind = 2), "entry kind 2");
    let gap = |h: &mut SegmentHeader, _: &mut Vec<DiskRow>, _: &mut Vec<EntryRow>| {
        (h.index_pos, h.total_len) = (h.index_pos + 1, h.total_len + 1);
    };
    refused(segment_with(gap), "stored bytes before an index");
    for pos in [0, 255, 257, u64::MAX, u64::MAX - 640] {
        refused(segment_with(|_, _, e| e[0].frame_pos = pos), "outside the data");
    }
    for (offset, len) in [(u64::MAX, 512), (u64::MAX - 511, 512), (0, u64::MAX), (0, 0), (1 << 30, 512)] {
        refused(segment_with(|_, _, e| (e[1].offset, e[1].len) = (offset, len)), "range");
    }
    refused(segment_with(|_, _, e| e[1].disk = 2), "disk 2 of 2");
    refused(segment_with(|_, _, e| e.swap(0, 1)), "out of order");
}

#[test]
fn lengths_and_chain_of_a_segment_header_are_checked() {
    type Change = fn(&mut SegmentHeader);
    let cases: [(Change, &str); 9] = [
        (|h| h.index_len = u32::MAX, "index 896"),
        (|h| h.index_pos = u64::MAX, "index 1844"),
        (|h| h.total_len = u64::MAX, "index 896"),
        (|h| h.index_pos = 0, "index 0"),
        (|h| h.parent_segment = SegmentNo::new(7), "g2/s9 after g2/s7"),
        (|h| h.parent_generation = Generation::new(3), "g2/s9 after g3/s8"),
        (|h| h.parent_generation = Generation::ZERO, "g2/s9 after g0/s8"),
        (|h| (h.segment, h.parent_segment) = (SegmentNo::new(1), SegmentNo::ZERO), "g2/s1 after g2/s0"),
        (|h| h.nonce[3] = 1, "encrypted"),
    ];
    for (change, why) in cases {
        refused(segment_with(|h, _, _| change(h)), why);
    }
}

#[test]
fn entries_that_overflow_are_not_sealed_and_foreign_frames_are_not_read() {
    let disk = IndexDisk { id: DISK, vm: VmId::from_bytes([7; 16]), size: u64::MAX };
    let seal = Seal {
        domain: DOMAIN,
        id: at(1, 1),
        parent: SegmentRef::default(),
        parent_digest: Digest::default(),
        writer: WriterId::from_bytes([6; 16]),
        created: Time::from_millis(1),
        point: None,
        catalogue: None,
    };
    let mut builder = SegmentBuilder::new(Vec::new());
    builder.push_zeros(&disk, u64::MAX - 1, 512);
    builder.push_zeros(&disk, u64::MAX, 512);
    assert!(builder.seal(seal.clone()).is_err());
    let mut builder = SegmentBuilder::new(Vec::new());
    builder.push_data(&disk, 0, &[1; 512], None, &mut FrameEncoder::new(1).unwrap()).unwrap();
    let sealed = builder.seal(seal).unwrap();
    let segment = Segment::open_any(&sealed.bytes).unwrap();
    let mut foreign = segment.index.entries[0];
    for pos in [sealed.bytes.len() as u64, u64::MAX] {
        foreign.frame.as_mut().unwrap().0 = pos;
        refused(segment.frame(&foreign), "another segment");
    }
}

fn manifest() -> Manifest {
    let vm = VmInfo {
        id: VmId::from_bytes([7; 16]),
        name: Name::new("vm").unwrap(),
        definition_kind: String::new(),
        definition: String::new(),
        shape: VmShape::default(),
    };
    let disk = DiskInfo { id: DISK, vm: vm.id, name: Name::new("root").unwrap(), size: 1 << 30 };
    let point = Point::new(Time::from_millis(5), PointFlags::default(), [vm.id]);
    let page =
        PageRef { disk: 0, page: 0, cut: at(1, 3), extents: 2, len: 272, live_bytes: 1024, digest: Digest([3; 16]) };
    Manifest {
        domain: DOMAIN,
        cut: at(2, 4),
        index_digest: Digest([2; 16]),
        previous: at(1, 2),
        chain_bytes: 1000,
        catalogue: Catalogue { vms: vec![vm], disks: vec![disk] },
        points: vec![(at(1, 3), point.clone()), (at(2, 4), point)],
        pages: vec![page],
    }
}

#[test]
fn what_a_manifest_decoder_refuses_is_not_encoded_either() {
    assert_eq!(Manifest::decode_any(&manifest().encode().unwrap()).unwrap(), manifest());
    type Change = fn(&mut Manifest);
    let cases: [(Change, &str); 12] = [
        (|m| m.points[0].0 = at(1, 2), "point g1/s2 after g1/s2"),
        (|m| m.points[0].0 = at(3, 3), "point g2/s4 after g3/s3"),
        (|m| m.points.truncate(1), "last point"),
        (|m| m.points[0].1.vms = [VmId::from_bytes([8; 16]), VmId::from_bytes([7; 16])].into(), "sorted set"),
        (|m| m.pages[0].extents = u32::MAX, "out of place"),
        (|m| m.pages[0].len = u64::MAX, "out of place"),
        (|m| m.pages[0].page = u64::MAX, "out of place"),
        (|m| m.pages[0].cut = at(2, 5), "out of place"),
        (|m| m.pages.push(m.pages[0]), "out of place"),
        (|m| m.pages[0].disk = 1, "page of disk 1"),
        (|m| m.catalogue.vms[0].shape.firmware = "x".repeat(1025), "one word"),
        (|m| m.catalogue.vms.push(m.catalogue.vms[0].clone()), "twice"),
    ];
    for (change, why) in cases {
        let mut bad = manifest();
        change(&mut bad);
        refused(bad.encode(), why);
    }
}

#[test]
fn sets_of_vms_in_a_manifest_are_used_unique_and_in_order() {
    let good = manifest().encode().unwrap();
    let head = ManifestHeader::decode(&good).unwrap();
    let catalogue_end = ManifestHeader::LEN + head.catalogue_len as usize;
    let pages = &good[catalogue_end + head.points_len as usize..];
    let with_points = |points: &[u8]| {
        let body = [&good[ManifestHeader::LEN..catalogue_end], points, pages].concat();
        let header = ManifestHeader { points_len: points.len() as u32, body_digest: xxh3_128(&body), ..head.clone() };
        Manifest::decode_any(&[&header.encode()[..], &body].concat())
    };
    let points = |sets: &[u8], set_of: [u32; 2]| {
        let mut out = (sets.len() as u32).to_le_bytes().to_vec();
        for vm in sets {
            out.extend_from_slice(&1_u32.to_le_bytes());
            out.extend_from_slice(&[*vm; 16]);
        }
        out.extend_from_slice(&2_u32.to_le_bytes());
        for (at, set) in [at(1, 3), at(2, 4)].into_iter().zip(set_of) {
            out.extend_from_slice(&at.generation.get().to_le_bytes());
            out.extend_from_slice(&at.segment.get().to_le_bytes());
            out.extend_from_slice(&5_u64.to_le_bytes());
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(&set.to_le_bytes());
        }
        out
    };
    assert_eq!(with_points(&points(&[7], [0, 0])).unwrap(), manifest());
    assert!(with_points(&points(&[7, 8], [0, 1])).is_ok());
    refused(with_points(&points(&[7, 8], [1, 0])), "set 1 before set 0");
    refused(with_points(&points(&[7, 8], [0, 0])), "without a point");
    refused(with_points(&points(&[7, 7], [0, 1])), "twice");
    refused(with_points(&points(&[7], [0, 1])), "set 1 of 1");
}
