//! Whole objects, damaged and misplaced ones, logs with a wrap, and what is none of ours.

use std::path::Path;

use super::*;
use crate::format::*;
use crate::ids::*;

fn golden(name: &str) -> String {
    format!("{}/tests/golden/{name}.bin", env!("CARGO_MANIFEST_DIR"))
}

async fn inspect(path: impl AsRef<Path>) -> InspectReport {
    let options = InspectOptions { frames: true, ..InspectOptions::default() };
    run(path.as_ref().to_str().unwrap(), options).await.unwrap()
}

#[tokio::test]
async fn a_vm_of_the_qemu_driver_is_shown_and_a_changed_letter_noticed() {
    let kept = include_str!("../hypervisor/qemu/golden_v1.json");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.json");
    std::fs::write(&path, kept).unwrap();
    let report = inspect(&path).await;
    let json = report.to_json();
    assert!(report.is_intact() && report.kind() == guest::KIND, "{json}");
    assert_eq!((&json["facts"]["vm"], &json["facts"]["domain"]), (&"web".into(), &"shop".into()), "{json}");
    assert_eq!(json["entries"][0]["size"], 1 << 30, "{json}");
    std::fs::write(&path, kept.replace("\"system\"", "\"sustem\"")).unwrap();
    let report = inspect(&path).await;
    assert!(!report.is_intact() && report.to_text().contains("checksum"), "{}", report.to_text());
}

#[tokio::test]
async fn every_golden_object_is_recognised_and_intact() {
    for (name, kind) in [
        ("segment-plain", magic::SEGMENT),
        ("segment-zstd", magic::SEGMENT),
        ("frame-plain", magic::FRAME),
        ("frame-zstd", magic::FRAME),
        ("map-page", magic::MAP_PAGE),
        ("manifest", magic::MANIFEST),
        ("owner-claim", magic::OWNER),
        ("owner-base", magic::OWNER),
        ("status", magic::STATUS),
        ("hydration", magic::HYDRATION),
        ("watermark", magic::WATERMARK),
        ("intent", magic::INTENT),
        ("protection", magic::PROTECTION),
    ] {
        let report = inspect(golden(name)).await;
        assert!(report.is_intact(), "{name}: {}", report.to_text());
        assert_eq!(report.kind(), kind.what);
        let json = report.to_json();
        assert!(json["facts"]["domain"].is_string() && json["intact"] == true, "{json}");
        assert!(report.to_text().contains("intact: every checksum"), "{name}");
    }
}

#[tokio::test]
async fn any_flipped_byte_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("object");
    let whole = ["map-page", "manifest", "owner-base", "status", "watermark", "intent", "protection"];
    for name in ["segment-zstd", "frame-zstd"].into_iter().chain(whole) {
        let bytes = std::fs::read(golden(name)).unwrap();
        // Every byte of what is small and of headers, and one of each few of what comes after.
        for at in (8..bytes.len()).filter(|at| *at < 1024 || at % 11 == 0) {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            std::fs::write(&path, bad).unwrap();
            assert!(!inspect(&path).await.is_intact(), "{name}: byte {at}");
        }
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(!inspect(&path).await.is_intact(), "{name}: cut");
    }
    let mut bad = std::fs::read(golden("segment-plain")).unwrap();
    bad[1000] ^= 1;
    std::fs::write(&path, bad).unwrap();
    let report = inspect(&path).await;
    let [problem] = report.problems() else { panic!("{report:?}") };
    assert!(problem.place.contains("bytes 1048576+5000") && problem.what.contains("payload"), "{problem:?}");
}

#[tokio::test]
async fn an_object_at_another_objects_key_is_named_as_path_and_as_url() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("prod/segments/000000000002");
    std::fs::create_dir_all(&folder).unwrap();
    for (key, intact) in [("000000000007", true), ("000000000008", false)] {
        let path = folder.join(key);
        std::fs::copy(golden("segment-plain"), &path).unwrap();
        assert_eq!(inspect(&path).await.is_intact(), intact, "{key}");
        let url = format!("file://{}", path.display());
        assert_eq!(inspect(url).await.is_intact(), intact, "{key}");
    }
    let none = run(&format!("file://{}/x", folder.display()), InspectOptions::default()).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound);
}

/// A log whose last record goes around the end of the ring.
fn log_file() -> Vec<u8> {
    let payload = |n: u64| vec![n as u8; 5000];
    let ring = 5 * LOG_BLOCK;
    let mut file = vec![0; (LOG_RING_START + ring) as usize];
    let (log, domain) = (LogId::from_bytes([1; 16]), DomainId::from_bytes([2; 16]));
    let superblock = LogSuperblock {
        log,
        domain,
        datastore: DatastoreId::from_bytes([3; 16]),
        sequence: 3,
        file_len: file.len() as u64,
        epoch: 2,
        tail: 3 * LOG_BLOCK,
        head: 6 * LOG_BLOCK,
        first: SegmentNo::new(2),
        last_generation: Generation::new(1),
        last_segment: SegmentNo::new(2),
    };
    file[LOG_BLOCK as usize..2 * LOG_BLOCK as usize].copy_from_slice(&superblock.encode());
    let bytes = payload(2);
    let record = LogRecord {
        log,
        domain,
        position: 3 * LOG_BLOCK,
        epoch: 1,
        generation: Generation::new(1),
        segment: SegmentNo::new(2),
        payload_len: bytes.len() as u64,
        payload_digest: xxh3_128(&bytes),
    };
    let place = (LOG_RING_START + 3 * LOG_BLOCK) as usize;
    file[place..place + 4096].copy_from_slice(&record.encode());
    file[place + 4096..].copy_from_slice(&bytes[..4096]);
    file[LOG_RING_START as usize..][..5000 - 4096].copy_from_slice(&bytes[4096..]);
    file
}

#[tokio::test]
async fn logs_are_walked_around_the_end_and_damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, log_file()).unwrap();
    let report = inspect(&path).await;
    assert!(report.is_intact(), "{}", report.to_text());
    assert_eq!(report.value("records"), Some(&1.into()));
    for (at, place) in [
        (LOG_RING_START as usize + 100, "g1/s2"),
        (LOG_RING_START as usize + 3 * 4096 + 20, "record at byte"),
        (4096 + 20, "superblock slot 1"),
    ] {
        let mut bad = log_file();
        bad[at] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let report = inspect(&path).await;
        assert!(report.to_text().contains(&format!("DAMAGED {place}")), "{}", report.to_text());
    }
    let mut cut = log_file();
    cut.truncate(cut.len() - 4096);
    std::fs::write(&path, cut).unwrap();
    assert!(!inspect(&path).await.is_intact());
}

#[tokio::test]
async fn what_is_not_ours_is_refused_and_large_lies_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    for bytes in [&b""[..], b"PK\x03\x04 something else", &[0; 10_000]] {
        std::fs::write(&path, bytes).unwrap();
        let error = run(path.to_str().unwrap(), InspectOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    // A sparse file of a terabyte that begins like each format.
    for magic in magic::ALL {
        std::fs::write(&path, magic.bytes).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(!inspect(&path).await.is_intact(), "{magic:?}");
    }
    let missing = run("/no/such/file", InspectOptions::default()).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}
