//! A log in use: round trips over many laps, back-pressure, rewinds, refusals.

use std::time::Duration;

use futures::executor::block_on;
use futures::future::{Either, select};

use super::super::ReplicationLog;
use super::support::*;
use crate::datastore::EngineKind;
use crate::error::ErrorKind;
use crate::format::{DatastoreId, min_log_len};
use crate::ids::*;

const SIZE: u64 = 1 << 20;

fn many_laps(kind: EngineKind, min_alignment: u32) {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(kind, min_alignment);
    let mut next = 1;
    for _ in 0..4 {
        let log = open(&engine, dir.path(), SIZE).unwrap();
        assert_eq!(log.held().landed.segment.get(), next - 1);
        for _ in 0..20 {
            block_on(async {
                append(&log, id(next), raw_len(next)).await.unwrap();
                log.wait_landed(SegmentNo::new(next)).await.unwrap();
            });
            let first = log.held().first.get();
            for n in first..=next {
                check_segment(&log, id(n), raw_len(n));
            }
            if next >= first + 3 {
                log.trim(SegmentNo::new(next - 2)).unwrap();
            }
            next += 1;
        }
        log.close().unwrap();
    }
}

#[test]
fn segments_come_back_over_many_laps_and_openings() {
    many_laps(EngineKind::Threads, 1);
    many_laps(EngineKind::Threads, 4096);
}

#[test]
fn also_on_io_uring_where_the_kernel_has_it() {
    many_laps(EngineKind::Auto, 1);
}

#[test]
fn a_full_log_waits_for_trim_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(EngineKind::Threads, 1);
    let log = open(&engine, dir.path(), SIZE).unwrap();
    block_on(async {
        let mut n = 1;
        let blocked = loop {
            let appending = Box::pin(append(&log, id(n), 150_000));
            let limit = Box::pin(async {
                tokio_sleep(Duration::from_millis(200)).await;
            });
            match select(appending, limit).await {
                Either::Left((done, _)) => done.unwrap(),
                Either::Right(_) => break n,
            }
            n += 1;
        };
        assert!((6..8).contains(&blocked), "{blocked}");
        // The waiting append was dropped: nothing of it is there.
        assert_eq!(log.held().appended, id(blocked - 1));
        log.wait_landed(SegmentNo::new(blocked - 1)).await.unwrap();
        log.trim(SegmentNo::new(1)).unwrap();
        append(&log, id(blocked), 150_000).await.unwrap();
        log.wait_landed(SegmentNo::new(blocked)).await.unwrap();
        for n in 2..=blocked {
            check_segment(&log, id(n), 150_000);
        }
        assert_eq!(log.read(SegmentNo::new(1), &mut Vec::new()).unwrap_err().kind(), ErrorKind::NotFound);
    });
}

/// A timer without a runtime: the executor of these tests has none.
async fn tokio_sleep(limit: Duration) {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        std::thread::sleep(limit);
        let _ = sender.send(());
    });
    let _ = receiver.await;
}

#[test]
fn a_rewind_drops_the_end_for_good_and_a_reset_everything() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(EngineKind::Threads, 1);
    let other = |n| SegmentRef::new(Generation::new(2), SegmentNo::new(n));
    let log = open(&engine, dir.path(), SIZE).unwrap();
    block_on(async {
        for n in 1..=5 {
            append(&log, id(n), 100_000).await.unwrap();
        }
        assert!(log.truncate_after(other(3)).await.is_err(), "another generation");
        assert!(log.truncate_after(id(9)).await.is_err());
        log.truncate_after(id(3)).await.unwrap();
        assert_eq!(log.held().landed, id(3));
        // The same length, so that the old segment 5 stands exactly after the new segment 4.
        append(&log, other(4), 100_000).await.unwrap();
        log.wait_landed(SegmentNo::new(4)).await.unwrap();
    });
    drop(log);
    let log = open(&engine, dir.path(), SIZE).unwrap();
    assert_eq!(log.held().landed, other(4), "a dropped segment came back");
    check_segment(&log, other(4), 100_000);
    check_segment(&log, id(3), 100_000);
    block_on(async {
        log.reset(other(40)).await.unwrap();
        assert_eq!(log.held().first, SegmentNo::ZERO);
        assert!(append(&log, other(5), 10).await.is_err());
        append(&log, other(41), 10).await.unwrap();
    });
    log.close().unwrap();
    let log = open(&engine, dir.path(), SIZE).unwrap();
    assert_eq!((log.held().first.get(), log.held().landed), (41, other(41)));
}

#[test]
fn the_cursor_gives_all_segments_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(EngineKind::Threads, 1);
    let log = open(&engine, dir.path(), SIZE).unwrap();
    block_on(async {
        for n in 58..62 {
            append(&log, id(n), raw_len(n)).await.unwrap();
            log.wait_landed(SegmentNo::new(n)).await.unwrap();
        }
    });
    let mut cursor = log.cursor();
    for n in 58..62 {
        let (no, bytes) = cursor.next().unwrap();
        assert_eq!((no.get(), bytes.unwrap()), (n, segment(id(n), raw_len(n)).bytes.as_slice()));
    }
    assert!(cursor.next().is_none());
}

#[test]
fn what_is_not_ours_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(EngineKind::Threads, 1);
    let log = open(&engine, dir.path(), SIZE).unwrap();
    block_on(append(&log, id(1), 1000)).unwrap();
    let in_use = open(&engine, dir.path(), SIZE).unwrap_err();
    assert_eq!(in_use.kind(), ErrorKind::Refused, "{in_use}");
    log.close().unwrap();
    let try_with = |change: fn(&mut super::super::LogOptions)| {
        let mut options = options(SIZE);
        change(&mut options);
        ReplicationLog::open(&engine, dir.path(), &name(), &options)
    };
    let kind = |change| try_with(change).unwrap_err().kind();
    assert_eq!(kind(|o| o.domain = DomainId::from_bytes([9; 16])), ErrorKind::Refused);
    assert_eq!(kind(|o| o.datastore = DatastoreId::from_bytes([9; 16])), ErrorKind::Refused);
    assert_eq!(kind(|o| o.size += 512), ErrorKind::Invalid);
    let small = try_with(|o| o.size = 4096 * 5).unwrap_err();
    let text = small.to_string();
    let need = min_log_len(LARGEST).to_string();
    assert!(text.contains("log smaller than a segment") && text.contains("20480") && text.contains(&need), "{text}");
    let kept = try_with(|o| o.size *= 2).unwrap();
    assert_eq!(kept.recovery().notes.len(), 1, "a log that holds segments keeps its size");
    check_segment(&kept, id(1), 1000);
    kept.trim(SegmentNo::new(1)).unwrap();
    kept.close().unwrap();
    let resized = try_with(|o| o.size *= 2).unwrap();
    let path = dir.path().join("dom%20one.log");
    assert_eq!(std::fs::metadata(path).unwrap().len(), 2 * SIZE);
    assert_eq!(resized.held().landed, id(1));
    block_on(append(&resized, id(2), 1000)).unwrap();
}

#[test]
fn segments_that_are_not_what_they_say_are_not_appended() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(EngineKind::Threads, 1);
    let log = open(&engine, dir.path(), SIZE).unwrap();
    let sealed = segment(id(1), 5000);
    let kind = |header: &crate::format::SegmentHeader, bytes: &[u8]| {
        let parts = [bytes::Bytes::copy_from_slice(bytes)];
        block_on(log.append(header, &parts)).unwrap_err().kind()
    };
    assert_eq!(kind(&sealed.header, &sealed.bytes[1..]), ErrorKind::Invalid);
    let mut foreign = sealed.header.clone();
    foreign.domain = DomainId::from_bytes([7; 16]);
    assert_eq!(kind(&foreign, &sealed.bytes), ErrorKind::Invalid);
    let mut swapped = sealed.bytes.clone();
    swapped[40] ^= 1;
    assert_eq!(kind(&sealed.header, &swapped), ErrorKind::Invalid);
    let long = segment(id(1), 3 << 20);
    assert_eq!(kind(&long.header, &long.bytes), ErrorKind::Invalid);
    block_on(append(&log, id(1), 5000)).unwrap();
}
