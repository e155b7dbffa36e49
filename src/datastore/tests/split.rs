//! How a request is cut: in order, without gaps, directly only what is aligned, and no more through the cache than
//! the edges.

use std::fs;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::datastore::engine::EngineOptions;
use crate::datastore::file::{FileOptions, OpenFile, Piece};
use crate::datastore::{Access, Alignment};

fn open(dir: &tempfile::TempDir, options: &EngineOptions) -> (OpenFile, Alignment) {
    let path = dir.path().join("disk");
    fs::write(&path, b"").unwrap();
    let file = OpenFile::open(&path, Access::Write, &FileOptions::from(options)).unwrap();
    let alignment = file.info().unwrap().alignment;
    (file, alignment)
}

fn pieces(file: &OpenFile, offset: u64, address: usize, len: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut done = 0;
    while done < len {
        let piece = file.piece(offset + done as u64, address + done, len - done);
        assert!(piece.len > 0 && pieces.len() < 4, "{piece:?} after {pieces:?}");
        done += piece.len;
        pieces.push(piece);
    }
    pieces
}

fn number() -> impl Strategy<Value = usize> {
    prop_oneof![0..200_000usize, (0..400usize).prop_map(|n| n * 512), (0..50usize).prop_map(|n| n * 4096)]
}

#[test]
fn pieces_are_in_order_without_gaps_and_direct_only_where_aligned() {
    let dir = tempfile::tempdir().unwrap();
    for min_alignment in [1, 4096, 16 << 10] {
        let (file, alignment) = open(&dir, &EngineOptions { min_alignment, ..Default::default() });
        assert!(file.direct().is_some(), "the tests' directory must be on a file system with direct I/O");
        let unit = u64::from(alignment.offset);
        let run = |(offset, address, len): (usize, usize, usize)| {
            let pieces = pieces(&file, offset as u64, address, len);
            let mut at = offset as u64;
            for piece in &pieces {
                prop_assert_eq!(piece.offset, at);
                if piece.direct {
                    prop_assert!(at.is_multiple_of(unit) && (piece.len as u64).is_multiple_of(unit));
                    let address = address + (at - offset as u64) as usize;
                    prop_assert!(address.is_multiple_of(alignment.memory as usize));
                }
                at += piece.len as u64;
            }
            prop_assert_eq!(at, (offset + len) as u64);
            let through_cache: usize = pieces.iter().filter(|piece| !piece.direct).map(|piece| piece.len).sum();
            if (address % 4096) == offset % 4096 {
                prop_assert!(through_cache as u64 <= 2 * (unit - 1), "{} bytes: {:?}", through_cache, pieces);
            }
            Ok(())
        };
        let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
        TestRunner::new(config).run(&(number(), number(), number()), run).unwrap();
    }
}

#[test]
fn a_head_a_middle_and_a_tail() {
    let dir = tempfile::tempdir().unwrap();
    let (file, alignment) = open(&dir, &EngineOptions { min_alignment: 8192, ..Default::default() });
    assert_eq!(alignment.offset, 8192);
    let piece = |direct, offset, len| Piece { direct, offset, len };
    let expected = [piece(false, 8000, 192), piece(true, 8192, 16_384), piece(false, 24_576, 5)];
    assert_eq!(pieces(&file, 8000, (1 << 20) + 8000, 16_581), expected);
    // Memory that does not fit: all of it in one call.
    assert_eq!(pieces(&file, 8000, (1 << 20) + 8001, 16_581), [piece(false, 8000, 16_581)]);
    assert_eq!(pieces(&file, 8192, 1 << 20, 8192), [piece(true, 8192, 8192)]);
    assert_eq!(pieces(&file, 8193, 1 << 20, 8190), [piece(false, 8193, 8190)]);
}
