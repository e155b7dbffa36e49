//! Flipped bytes in each region of the file: named, refused or dropped as the decision table says, and never handed out.

use std::fs::File;

use futures::executor::block_on;

use super::super::ReplicationLog;
use super::made::*;
use super::support::*;
use crate::error::ErrorKind;
use crate::format::LOG_BLOCK;
use crate::ids::*;

/// All of the log but `bad` reads; `bad` is named, and refused when it is read.
fn quarantined(log: &ReplicationLog, bad: &[u64]) {
    let named: Vec<u64> = log.recovery().quarantined.iter().map(|q| q.segment.get()).collect();
    assert_eq!(named, bad);
    assert_eq!(log.held().landed, id(5));
    for n in 1..=5 {
        match bad.contains(&n) {
            true => {
                let error = log.read(SegmentNo::new(n), &mut Vec::new()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
            }
            false => check_segment(log, id(n), RAW),
        }
    }
}

#[test]
fn damage_in_the_durable_region_is_named_and_the_rest_goes_on() {
    for n in 1..=5_usize {
        for at in [0, 60, 4088, LOG_BLOCK, LOG_BLOCK + 30_000] {
            let made = made();
            made.flip(made.starts[n - 1] + at);
            quarantined(&made.open().unwrap(), &[n as u64]);
            // Opening it again, after a trim of what is before, says the same.
            let log = made.open().unwrap();
            quarantined(&log, &[n as u64]);
            log.trim(SegmentNo::new(n as u64 - 1)).unwrap();
            log.close().unwrap();
            let log = made.open().unwrap();
            assert_eq!(log.recovery().quarantined.len(), 1);
            // Fetched again and applied from elsewhere: then it is trimmed as any other.
            log.trim(SegmentNo::new(n as u64)).unwrap();
            block_on(append(&log, id(6), RAW)).unwrap();
            log.close().unwrap();
            let log = made.open().unwrap();
            assert_eq!((log.held().first.get(), log.recovery().quarantined.len()), (n as u64 + 1, 0));
            check_segment(&log, id(6), RAW);
        }
    }
}

#[test]
fn headers_lost_in_a_row_are_counted_and_trimmed_one_by_one() {
    let made = made();
    for n in [1, 2, 3] {
        made.flip(made.starts[n] + 100);
    }
    let log = made.open().unwrap();
    quarantined(&log, &[2, 3, 4]);
    log.trim(SegmentNo::new(3)).unwrap();
    log.close().unwrap();
    let log = made.open().unwrap();
    assert_eq!(log.held().first.get(), 4);
    assert_eq!(log.recovery().quarantined.len(), 1);
    check_segment(&log, id(5), RAW);
}

#[test]
fn flipped_bytes_between_and_after_the_records_change_nothing() {
    let made = made();
    let padding = made.starts[1] - 1;
    assert_eq!(made.block(padding + 1 - LOG_BLOCK)[LOG_BLOCK as usize - 1], 0, "no padding there");
    made.flip(padding);
    made.flip(made.starts[5] + 10 * LOG_BLOCK);
    quarantined(&made.open().unwrap(), &[]);
}

#[test]
fn payloads_that_are_not_verified_at_opening_are_when_they_are_read() {
    let made = made();
    made.flip(made.starts[2] + LOG_BLOCK + 5000);
    let mut options = options(SIZE);
    options.verify_payloads = false;
    let log = ReplicationLog::open(&made.engine, made.dir.path(), &name(), &options).unwrap();
    assert!(log.recovery().quarantined.is_empty());
    let mut cursor = log.cursor();
    let mut damaged = vec![];
    let mut sound = 0;
    while let Some((n, read)) = cursor.next() {
        match read {
            Ok(bytes) => sound += usize::from(bytes == segment(id(n.get()), RAW).bytes),
            Err(e) => damaged.push((n.get(), e.kind())),
        }
    }
    assert_eq!((damaged, sound), (vec![(3, ErrorKind::Damaged)], 4));
}

#[test]
fn one_bad_superblock_is_survived_and_two_are_refused() {
    for byte in [0, 9, 20, 70, 100, 4000, 4090] {
        let made = made();
        made.flip(made.newest() * LOG_BLOCK + byte);
        let opened = made.open();
        // A flipped version cannot be told from a newer one.
        if byte == 9 {
            assert_eq!(opened.unwrap_err().kind(), ErrorKind::Unsupported);
            continue;
        }
        let log = opened.unwrap();
        quarantined(&log, &[]);
        log.close().unwrap();
        for slot in [0, 1] {
            made.flip(slot * LOG_BLOCK + byte);
        }
        let before = std::fs::read(made.path()).unwrap();
        assert_eq!(made.open().unwrap_err().kind(), ErrorKind::Damaged, "byte {byte}");
        assert!(before == std::fs::read(made.path()).unwrap(), "a refused log was changed");
    }
}

#[test]
fn a_file_that_was_cut_is_refused_and_kept() {
    let made = made();
    File::options().write(true).open(made.path()).unwrap().set_len(SIZE - 4096).unwrap();
    assert_eq!(made.open().unwrap_err().kind(), ErrorKind::Damaged);
    assert_eq!(std::fs::metadata(made.path()).unwrap().len(), SIZE - 4096);
}
