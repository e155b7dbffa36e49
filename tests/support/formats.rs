//! One sample of every format, the same on every run.

use freshet::format::*;
use freshet::ids::*;

pub(crate) const DOMAIN: DomainId = DomainId::from_bytes([0xd0; 16]);
pub(crate) const DISK: DiskId = DiskId::from_bytes([0xd1; 16]);
pub(crate) const VM: VmId = VmId::from_bytes([0xe0; 16]);

pub(crate) fn at(generation: u64, segment: u64) -> SegmentRef {
    SegmentRef::new(Generation::new(generation), SegmentNo::new(segment))
}

/// Bytes that do not compress.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    (0..len as u64 / 8 + 1).flat_map(|i| xxh3_64(&i.to_le_bytes()).to_le_bytes()).take(len).collect()
}

pub(crate) fn catalogue() -> Catalogue {
    let nic = Nic { mac: "52:54:00:00:00:01".into(), network: "default".into(), model: "virtio".into() };
    let shape = VmShape { cpus: 2, memory_bytes: 1 << 31, firmware: "uefi".into(), nics: vec![nic] };
    let vm = VmInfo {
        id: VM,
        name: Name::new("web ☃").unwrap(),
        definition_kind: "libvirt-xml".into(),
        definition: "<domain/>".into(),
        shape,
    };
    Catalogue {
        vms: vec![vm],
        disks: vec![DiskInfo { id: DISK, vm: VM, name: Name::new("root").unwrap(), size: 3 << 30 }],
    }
}

pub(crate) fn point() -> Point {
    Point::new(Time::from_millis(1_700_000_000_123), PointFlags { fuzzy: true, quiesced: false }, [VM])
}

/// A segment of one frame of `raw`, and of zeros; with point and catalogue.
pub(crate) fn segment(raw: &[u8]) -> SealedSegment {
    let disk = IndexDisk { id: DISK, vm: VM, size: 3 << 30 };
    let mut builder = SegmentBuilder::new(Vec::new());
    builder.push_data(&disk, 1 << 20, raw, None, &mut FrameEncoder::new(1).unwrap()).unwrap();
    builder.push_zeros(&disk, 1 << 30, 2 << 30);
    let seal = Seal {
        domain: DOMAIN,
        id: at(2, 7),
        parent: at(1, 6),
        parent_digest: Digest([8; 16]),
        writer: WriterId::from_bytes([3; 16]),
        created: Time::from_millis(1_700_000_000_456),
        point: Some(point()),
        catalogue: Some(catalogue()),
    };
    builder.seal(seal).unwrap()
}

/// The one frame of [`segment`], with its header.
pub(crate) fn frame(raw: &[u8]) -> Vec<u8> {
    let sealed = segment(raw);
    let (pos, body) = sealed.index.entries[0].frame.unwrap();
    sealed.bytes[pos as usize..(pos + body.len_with_header()) as usize].to_vec()
}

pub(crate) fn map_page() -> MapPage {
    let (_, body) = segment(&noise(5000)).index.entries[0].frame.unwrap();
    let start = (1 << 30) + (1 << 20);
    let extent = |segment, offset, len| Extent { offset, len, frame: FrameRef { segment, pos: 256, start, body } };
    let extents = vec![extent(at(2, 7), start, 512), extent(at(1, 3), start + 512, 4488)];
    MapPage { domain: DOMAIN, disk: DISK, page: 1, cut: at(2, 7), extents }
}

pub(crate) fn manifest() -> Manifest {
    let bytes = map_page().encode().unwrap();
    let page = PageRef {
        disk: 0,
        page: 1,
        cut: at(2, 7),
        extents: 2,
        len: bytes.len() as u64,
        live_bytes: 5000,
        digest: xxh3_128(&bytes),
    };
    let other = Point::new(Time::from_millis(1_700_000_000_000), PointFlags::default(), []);
    Manifest {
        domain: DOMAIN,
        cut: at(2, 7),
        index_digest: Digest([2; 16]),
        previous: at(1, 5),
        chain_bytes: 123_456,
        catalogue: catalogue(),
        points: vec![(at(1, 6), other), (at(2, 7), point())],
        pages: vec![page],
    }
}

fn author() -> Author {
    let process = ProcessIdentity { host: [6; 16], host_name: "höst".into(), pid: 4711, started: 99 };
    Author { site: Name::new("Zürich 1").unwrap(), writer: WriterId::from_bytes([3; 16]), process }
}

pub(crate) fn owner(kind: OwnerKind) -> OwnerRecord {
    OwnerRecord { n: 7, domain: DOMAIN, at: Time::from_millis(1000), author: author(), nonce: [9; 16], kind }
}

pub(crate) fn claim() -> OwnerRecord {
    owner(OwnerKind::Claim { generation: Generation::new(4), take_over: true })
}

pub(crate) fn base() -> OwnerRecord {
    owner(OwnerKind::Base { generation: Generation::new(4), last: at(3, 17), digest: Digest([5; 16]) })
}

pub(crate) fn recovery_settings() -> RecoverySettings {
    let text = "{\"failover\":{\"datastore\":\"/srv/recovered\"}}".to_owned();
    let site = Name::new("harbour").unwrap();
    RecoverySettings { domain: DOMAIN, n: 2, site, at: Time::from_millis(1_700_000_000_000), nonce: [6; 16], text }
}

pub(crate) fn status() -> Status {
    Status {
        domain: DOMAIN,
        author: author(),
        generation: Generation::new(4),
        mode: Mode::Replicating,
        point: at(4, 18),
        point_time: Time::from_millis(900),
        beat: 3,
        at: Time::from_millis(1000),
    }
}

pub(crate) fn superblock() -> LogSuperblock {
    LogSuperblock {
        log: LogId::from_bytes([1; 16]),
        domain: DOMAIN,
        datastore: DatastoreId::from_bytes([3; 16]),
        sequence: 7,
        file_len: 1 << 20,
        epoch: 3,
        tail: 8192,
        head: 16384,
        first: SegmentNo::new(7),
        last_generation: Generation::new(2),
        last_segment: SegmentNo::new(7),
    }
}

pub(crate) fn log_record() -> LogRecord {
    let bytes = segment(&noise(1000)).bytes;
    LogRecord {
        log: LogId::from_bytes([1; 16]),
        domain: DOMAIN,
        position: 8192,
        epoch: 3,
        generation: Generation::new(2),
        segment: SegmentNo::new(7),
        payload_len: bytes.len() as u64,
        payload_digest: xxh3_128(&bytes),
    }
}

pub(crate) fn hydration() -> HydrationMap {
    HydrationMap {
        domain: DOMAIN,
        sequence: 7,
        target: at(2, 5),
        applied: at(2, 6),
        disks: vec![HydrationDisk {
            disk: DISK,
            size: 3 << 30,
            pristine: true,
            valid: (0..9000).collect(),
            touched: [3, 5].into_iter().collect(),
        }],
        quarantined: vec![Quarantined { disk: DISK, offset: 4096, len: 512, why: "bad frame".into() }],
    }
}

pub(crate) fn watermark() -> Watermark {
    let stamp = FileStamp { disk: DISK, inode: 5, changed: (6, 7), len: 3 << 30 };
    Watermark { domain: DOMAIN, sequence: 2, point: at(3, 4), point_time: Time::from_millis(5), stamps: vec![stamp] }
}

/// A file of two pages, with the first and the last region of each set.
pub(crate) fn intent() -> Vec<u8> {
    let shape = IntentShape::of((40_000 << 20) - 512).unwrap();
    let header = IntentHeader::new(IntentId::from_bytes([7; 16]), DOMAIN, DISK, &shape);
    let mut bytes = header.encode().to_vec();
    for page in 0..shape.pages() {
        let last = shape.page_regions(page).len() - 1;
        let mut bits = [0; INTENT_BITS_LEN];
        bits[0] = 1;
        bits[last / 8] |= 1 << (last % 8);
        bytes.extend_from_slice(&header.encode_page(page, bits));
    }
    bytes
}

pub(crate) fn protection() -> ProtectionRecord {
    let stamp = FileStamp { disk: DISK, inode: 5, changed: (6, 7), len: 3 << 30 };
    ProtectionRecord {
        domain: DOMAIN,
        sequence: 2,
        relied_on: at(3, 4),
        own_generation: at(5, 4).generation,
        boot: [6; 16],
        stamps: vec![stamp],
        catalogue: catalogue(),
    }
}

/// Everything that is encoded the same by every build, by the name of its golden file.
pub(crate) fn pinned() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("segment-plain", segment(&noise(5000)).bytes),
        ("frame-plain", frame(&noise(5000))),
        ("map-page", map_page().encode().unwrap()),
        ("manifest", manifest().encode().unwrap()),
        ("owner-claim", claim().encode().to_vec()),
        ("owner-base", base().encode().to_vec()),
        ("status", status().encode().to_vec()),
        ("log-superblock", superblock().encode().to_vec()),
        ("log-record", log_record().encode().to_vec()),
        ("hydration", hydration().encode()),
        ("watermark", watermark().encode()),
        ("intent", intent()),
        ("protection", protection().encode()),
        ("recovery-settings", recovery_settings().encode().unwrap()),
    ]
}

/// What zstd makes of it may differ from version to version: only decoding is pinned.
pub(crate) fn compressed() -> Vec<(&'static str, Vec<u8>)> {
    vec![("segment-zstd", segment(&[7; 70_000]).bytes), ("frame-zstd", frame(&[7; 70_000]))]
}
