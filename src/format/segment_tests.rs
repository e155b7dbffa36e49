//! Segments as wholes: what is built opens again, and nothing damaged does.

use super::segment::*;
use super::*;
use crate::ids::*;

fn disk() -> IndexDisk {
    IndexDisk { id: DiskId::from_bytes([5; 16]), vm: VmId::from_bytes([6; 16]), size: 10 << 20 }
}

fn seal() -> Seal {
    Seal {
        domain: DomainId::from_bytes([1; 16]),
        id: SegmentRef::new(Generation::new(2), SegmentNo::new(7)),
        parent: SegmentRef::new(Generation::new(1), SegmentNo::new(6)),
        parent_digest: Digest([8; 16]),
        writer: WriterId::from_bytes([3; 16]),
        created: Time::from_millis(1000),
        point: Some(Point {
            time: Time::from_millis(999),
            flags: PointFlags { fuzzy: true, quiesced: false },
            vms: [disk().vm].into(),
        }),
        catalogue: None,
    }
}

fn built() -> SealedSegment {
    let mut builder = SegmentBuilder::new(Vec::new());
    let mut encoder = FrameEncoder::new(1).unwrap();
    builder.push_data(&disk(), 1 << 20, &[9; 4096], None, &mut encoder).unwrap();
    builder.push_data(&disk(), 0, &[7; 70_000], None, &mut encoder).unwrap();
    builder.push_zeros(&disk(), 4 << 20, 6 << 20);
    builder.seal(seal()).unwrap()
}

#[test]
fn what_is_sealed_opens_again_with_the_same_content() {
    let sealed = built();
    let segment = Segment::open(&sealed.bytes, seal().domain, seal().id).unwrap();
    assert_eq!(segment.index, sealed.index);
    assert_eq!(segment.header, sealed.header);
    let parts: Vec<bytes::Bytes> = sealed.bytes.chunks(999).map(bytes::Bytes::copy_from_slice).collect();
    let found = verify_segment(&Parts::new(&parts), seal().domain, seal().id).unwrap();
    assert_eq!((&found.header, &found.index, found.damaged.len()), (&sealed.header, &sealed.index, 0));
    assert!(segment.damaged_frames().is_empty());
    let mut raw = vec![0; 70_000];
    let frame = segment.frame(&segment.index.entries[0]).unwrap().unwrap();
    FrameDecoder::new().unwrap().decode_into(&frame, &mut raw).unwrap();
    assert_eq!(raw, vec![7; 70_000]);
    assert_eq!(segment.index.entries[2].frame, None);
}

#[test]
fn a_builder_takes_over_what_another_holds() {
    let mut encoder = FrameEncoder::new(1).unwrap();
    let other_disk = IndexDisk { id: DiskId::from_bytes([4; 16]), ..disk() };
    let (mut one, mut two) = (SegmentBuilder::new(Vec::new()), SegmentBuilder::new(Vec::new()));
    one.push_data(&disk(), 0, &[1; 5000], None, &mut encoder).unwrap();
    two.push_data(&other_disk, 0, &[2; 6000], None, &mut encoder).unwrap();
    two.push_data(&disk(), 8192, &[3; 7000], None, &mut encoder).unwrap();
    two.push_zeros(&other_disk, 1 << 20, 4096);
    one.absorb(&two);
    assert_eq!(one.raw_bytes(), 18_000);
    let sealed = one.seal(seal()).unwrap();
    let segment = Segment::open(&sealed.bytes, seal().domain, seal().id).unwrap();
    assert!(segment.damaged_frames().is_empty());
    let found = |e: &IndexEntry| (segment.index.disks[e.disk as usize].id, e.offset, e.len, e.frame.is_some());
    let found: Vec<_> = segment.index.entries.iter().map(found).collect();
    let (a, b) = (disk().id, other_disk.id);
    assert_eq!(found, [(a, 0, 5000, true), (a, 8192, 7000, true), (b, 0, 6000, true), (b, 1 << 20, 4096, false)]);
}

#[test]
fn every_flipped_byte_is_noticed_by_opening_or_by_its_frame() {
    let sealed = built();
    for at in 0..sealed.bytes.len() {
        let mut bad = sealed.bytes.clone();
        bad[at] ^= 0x10;
        let noticed = match Segment::open(&bad, seal().domain, seal().id) {
            Err(_) => true,
            Ok(segment) => !segment.damaged_frames().is_empty(),
        };
        let parts: Vec<bytes::Bytes> = bad.chunks(999).map(bytes::Bytes::copy_from_slice).collect();
        let parts_noticed = match verify_segment(&Parts::new(&parts), seal().domain, seal().id) {
            Err(_) => true,
            Ok(found) => !found.damaged.is_empty(),
        };
        assert!(noticed && parts_noticed, "byte {at}");
    }
}

#[test]
fn truncated_or_misplaced_segments_do_not_open() {
    let sealed = built();
    for len in (0..sealed.bytes.len()).step_by(37) {
        assert!(Segment::open(&sealed.bytes[..len], seal().domain, seal().id).is_err(), "{len}");
    }
    let other = SegmentRef::new(Generation::new(2), SegmentNo::new(8));
    assert!(Segment::open(&sealed.bytes, seal().domain, other).is_err());
    assert!(Segment::open(&sealed.bytes, DomainId::from_bytes([2; 16]), seal().id).is_err());
}

#[test]
fn overlapping_entries_and_ranges_outside_the_disk_are_not_sealed() {
    let mut overlapping = SegmentBuilder::new(Vec::new());
    overlapping.push_zeros(&disk(), 0, 8192);
    overlapping.push_zeros(&disk(), 4096, 8192);
    assert!(overlapping.seal(seal()).is_err());
    let mut outside = SegmentBuilder::new(Vec::new());
    outside.push_zeros(&disk(), 9 << 20, 2 << 20);
    assert!(outside.seal(seal()).is_err());
}
