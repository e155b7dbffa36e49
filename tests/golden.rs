//! Golden files: what was once written stays readable, and today's writer writes the same.
//!
//! `FRESHET_WRITE_GOLDEN=1 cargo test --test golden` writes them anew; that is right only for a format that is new, since
//! a change to an old one needs a version.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "each test binary uses a part of it")]
#[path = "support/formats.rs"]
mod formats;

use formats::*;
use freshet::format::*;

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/{name}.bin", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("FRESHET_WRITE_GOLDEN").is_some() {
        let all = pinned().into_iter().chain(compressed());
        let (_, bytes) = all.into_iter().find(|(n, _)| *n == name).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn encoders_still_write_what_they_once_wrote() {
    for (name, bytes) in pinned() {
        assert!(golden(name) == bytes, "{name}: today's bytes differ from tests/golden/{name}.bin");
        assert!(recode(&bytes).unwrap() == bytes, "{name} is not encoded as it was decoded");
    }
}

#[test]
fn decoders_still_read_what_was_once_written() {
    assert_eq!(MapPage::decode(&golden("map-page"), DOMAIN, DISK, 1, at(2, 7)).unwrap(), map_page());
    assert_eq!(Manifest::decode(&golden("manifest"), DOMAIN, at(2, 7)).unwrap(), manifest());
    assert_eq!(OwnerRecord::decode(&golden("owner-claim"), Some(DOMAIN), 7).unwrap(), claim());
    assert_eq!(OwnerRecord::decode(&golden("owner-base"), Some(DOMAIN), 7).unwrap(), base());
    assert_eq!(Status::decode(&golden("status")).unwrap(), status());
    assert_eq!(LogSuperblock::open(&golden("log-superblock"), 1).unwrap(), superblock());
    assert_eq!(LogRecord::open(&golden("log-record")).unwrap(), log_record());
    assert_eq!(HydrationMap::decode(&golden("hydration")).unwrap(), hydration());
    assert_eq!(golden("intent"), intent());
    assert_eq!(Watermark::decode(&golden("watermark")).unwrap(), watermark());
    assert_eq!(ProtectionRecord::decode(&golden("protection")).unwrap(), protection());
    assert_eq!(RecoverySettings::decode(&golden("recovery-settings"), DOMAIN, 2).unwrap(), recovery_settings());
}

#[test]
fn frames_of_both_codecs_still_decode() {
    for (name, codec, raw) in
        [("segment-plain", Codec::Plain, noise(5000)), ("segment-zstd", Codec::Zstd, vec![7; 70_000])]
    {
        let bytes = golden(name);
        let segment = Segment::open(&bytes, DOMAIN, at(2, 7)).unwrap();
        assert_eq!(segment.index.point, Some(point()));
        assert_eq!(segment.index.catalogue, Some(catalogue()));
        let [data, zeros] = &segment.index.entries[..] else { panic!("{:?}", segment.index.entries) };
        assert_eq!((zeros.offset, zeros.len, zeros.frame), (1 << 30, 2 << 30, None));
        assert_eq!(data.frame.unwrap().1.codec, codec);
        let frame = segment.frame(data).unwrap().unwrap();
        let mut out = vec![0; raw.len()];
        FrameDecoder::new().unwrap().decode_into(&frame, &mut out).unwrap();
        assert_eq!(out, raw);
    }
    for name in ["frame-plain", "frame-zstd"] {
        assert!(recode(&golden(name)).unwrap() == golden(name), "{name}");
    }
}
