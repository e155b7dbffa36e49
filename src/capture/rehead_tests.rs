//! What a taken over segment holds is what the old one held; what cannot be verified or does not follow is not taken.

use proptest::prelude::*;

use super::*;
use crate::format::*;
use crate::ids::*;

const DOMAIN: DomainId = DomainId::from_bytes([1; 16]);
const VM: VmId = VmId::from_bytes([2; 16]);

fn at(generation: u64, segment: u64) -> SegmentRef {
    SegmentRef::new(Generation::new(generation), SegmentNo::new(segment))
}

fn end(generation: u64, tip: SegmentRef, digest: Digest, writer: u8) -> ChainEnd {
    let (generation, writer) = (Generation::new(generation), WriterId::from_bytes([writer; 16]));
    ChainEnd { domain: DOMAIN, generation, writer, tip, digest }
}

/// What one segment is made of: frames (disk, MiB, bytes, compressible), zeros, a point's time, whether a catalogue.
#[derive(Debug, Clone)]
struct Content {
    frames: Vec<(u8, u64, usize, bool)>,
    zeros: Option<u64>,
    point: Option<u64>,
    catalogue: bool,
}

fn content() -> impl Strategy<Value = Content> {
    let frame = (0..3_u8, 0..40_u64, 1..4000_usize, any::<bool>());
    let frames = prop::collection::vec(frame, 0..6);
    (frames, prop::option::of(1..1_000_000_u64), prop::option::of(0..50_u64), any::<bool>())
        .prop_map(|(frames, zeros, point, catalogue)| Content { frames, zeros, point, catalogue })
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    (seed..).flat_map(|i| xxh3_64(&i.to_le_bytes()).to_le_bytes()).take(len).collect()
}

/// The old chain of `contents`, after `from`.
fn chain(from: ChainEnd, contents: &[Content]) -> Vec<SealedSegment> {
    let (mut tip, mut digest) = (from.tip, from.digest);
    let mut encoder = FrameEncoder::new(1).unwrap();
    let mut seal = |content: &Content| {
        let mut builder = SegmentBuilder::new(Vec::new());
        let disk = |n| IndexDisk { id: DiskId::from_bytes([n; 16]), vm: VM, size: 1 << 40 };
        let mut places = std::collections::HashSet::new();
        for (n, mib, len, flat) in content.frames.iter().filter(|f| places.insert((f.0, f.1))) {
            let raw = if *flat { vec![9; *len] } else { noise(*mib, *len) };
            builder.push_data(&disk(*n), mib << 20, &raw, None, &mut encoder).unwrap();
        }
        if let Some(len) = content.zeros {
            builder.push_zeros(&disk(7), 1 << 39, len);
        }
        let id = SegmentRef::new(from.generation, tip.segment.next());
        let seal = Seal {
            domain: DOMAIN,
            id,
            parent: tip,
            parent_digest: digest,
            writer: from.writer,
            created: Time::from_millis(5),
            point: content.point.map(|t| Point::new(Time::from_millis(t), PointFlags::default(), [VM])),
            catalogue: content.catalogue.then(Catalogue::default),
        };
        let sealed = builder.seal(seal).unwrap();
        (tip, digest) = (id, sealed.header.index_digest);
        sealed
    };
    contents.iter().map(&mut seal).collect()
}

/// Every frame as raw bytes, and every range of zeros as none.
fn raw(segment: &Segment<'_>) -> Vec<Option<Vec<u8>>> {
    let mut decoder = FrameDecoder::new().unwrap();
    let mut decode = |entry: &IndexEntry| {
        segment.frame(entry).unwrap().map(|frame| {
            let mut out = vec![0; frame.body().raw_len as usize];
            decoder.decode_into(&frame, &mut out).unwrap();
            out
        })
    };
    segment.index.entries.iter().map(&mut decode).collect()
}

proptest! {
    #[test]
    fn the_new_chain_holds_what_the_old_one_held(
        contents in prop::collection::vec(content(), 1..6),
        from_nothing in any::<bool>(),
        before in prop::option::of(0..60_u64),
    ) {
        let (tip, digest) = if from_nothing { (SegmentRef::default(), Digest::default()) } else { (at(2, 7), Digest([5; 16])) };
        let old = chain(end(3, tip, digest, 1), &contents);
        let mut rehead = Rehead::new(end(5, tip, digest, 9), before.map(Time::from_millis));
        let (mut parent, mut last) = ((tip, digest), before);
        for old in &old {
            let now = Time::from_millis(77);
            let new = rehead.next(old.header.id(), &old.bytes, now).unwrap();
            let id = SegmentRef::new(Generation::new(5), old.header.segment);
            let opened = Segment::open(&new.bytes, DOMAIN, id).unwrap();
            prop_assert_eq!((opened.header.parent(), opened.header.parent_digest), parent);
            prop_assert_eq!((opened.header.writer, opened.header.created), (WriterId::from_bytes([9; 16]), now));
            let theirs = Segment::open_any(&old.bytes).unwrap();
            prop_assert_eq!(&opened.index.entries, &theirs.index.entries);
            prop_assert_eq!(&opened.index.disks, &theirs.index.disks);
            prop_assert_eq!(&opened.index.catalogue, &theirs.index.catalogue);
            prop_assert!(raw(&opened) == raw(&theirs));
            prop_assert_eq!(opened.header.raw_bytes, theirs.header.raw_bytes);
            prop_assert!(recode(&new.bytes).unwrap() == new.bytes);
            // Points stay, in order.
            let (mine, before) = (opened.index.point.as_ref(), theirs.index.point.as_ref());
            prop_assert_eq!(mine.map(|p| (&p.vms, p.flags)), before.map(|p| (&p.vms, p.flags)));
            if let (Some(mine), Some(before)) = (mine, before) {
                let least = last.map_or(0, |last| last + 1);
                prop_assert_eq!(mine.time.millis(), before.time.millis().max(least));
                last = Some(mine.time.millis());
            }
            parent = (id, opened.header.index_digest);
            prop_assert_eq!((rehead.end().tip, rehead.end().digest), parent);
        }
        prop_assert_eq!(rehead.point().map(Time::millis), last);
    }
}

fn sample() -> Vec<SealedSegment> {
    let content = Content {
        frames: vec![(1, 3, 3000, true), (2, 5, 600, false)],
        zeros: Some(512),
        point: Some(4),
        catalogue: true,
    };
    chain(end(3, at(2, 7), Digest([5; 16]), 1), &[content.clone(), content.clone(), content])
}

fn rehead() -> Rehead {
    Rehead::new(end(5, at(2, 7), Digest([5; 16]), 9), None)
}

#[test]
fn a_segment_with_any_damaged_byte_is_not_passed_on_and_ends_the_chain() {
    let old = sample();
    let id = old[0].header.id();
    for byte in 0..old[0].bytes.len() {
        let mut bad = old[0].bytes.clone();
        bad[byte] ^= 0x10;
        let mut chain = rehead();
        let error = chain.next(id, &bad, Time::from_millis(1)).unwrap_err();
        // Any part of it may seem to be of a newer version.
        assert!(matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported), "byte {byte}: {error}");
        assert!(error.to_string().contains("g3/s8"), "{error}");
        let after = chain.next(id, &old[0].bytes, Time::from_millis(1)).unwrap_err();
        assert_eq!(after.kind(), ErrorKind::Refused, "{after}");
        assert_eq!(chain.end().tip, at(2, 7));
    }
    let cut = &old[0].bytes[..old[0].bytes.len() - 1];
    assert_eq!(rehead().next(id, cut, Time::from_millis(1)).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn only_what_follows_in_the_old_chain_is_taken() {
    let old = sample();
    let next = |chain: &mut Rehead, n: usize| chain.next(old[n].header.id(), &old[n].bytes, Time::from_millis(1));
    let refused = |result: Result<SealedSegment>, why: &str| {
        let error = result.map(|s| s.header.id()).unwrap_err();
        assert!(error.kind() == ErrorKind::Refused && error.to_string().contains(why), "{error}");
    };
    refused(next(&mut rehead(), 1), "follows g3/s8");
    let mut chain = rehead();
    next(&mut chain, 0).unwrap();
    refused(next(&mut chain, 2), "follows g3/s9");
    let mut chain = rehead();
    next(&mut chain, 0).unwrap();
    refused(next(&mut chain, 0), "follows g2/s7");
    // The same number from another base, or after a segment that holds something else.
    refused(next(&mut Rehead::new(end(5, at(1, 7), Digest([5; 16]), 9), None), 0), "not g1/s7");
    refused(next(&mut Rehead::new(end(5, at(2, 7), Digest([6; 16]), 9), None), 0), "follows g2/s7");
    refused(next(&mut Rehead::new(end(3, at(2, 7), Digest([5; 16]), 9), None), 0), "generation before g3");
    // Bytes of another segment than the one that was asked for.
    let error = rehead().next(old[1].header.id(), &old[0].bytes, Time::from_millis(1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}
