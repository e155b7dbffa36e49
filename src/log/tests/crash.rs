//! Crash at every write and every sync, failed syncs: what was reported as landed is there, and nothing wrong is.

use std::path::Path;
use std::sync::Arc;

use futures::executor::block_on;

use super::super::ReplicationLog;
use super::crash_disk::{CrashDisk, Trouble};
use super::support::*;
use crate::datastore::DiskEngine;
use crate::error::Result;
use crate::ids::*;

const SIZE: u64 = 512 << 10;
const SEGMENTS: u64 = 14;

/// What the log told its user before it stopped.
#[derive(Debug, Default, Clone, Copy)]
struct Told {
    landed: u64,
    trimmed: u64,
    appended: u64,
}

fn raw(n: u64) -> usize {
    (n as usize * 37_123) % 90_000 + 1
}

fn open_on(disk: &Arc<CrashDisk>, dir: &Path) -> Result<ReplicationLog> {
    let engine: Arc<dyn DiskEngine> = Arc::clone(disk) as _;
    open(&engine, dir, SIZE)
}

/// Appends, waits for pairs to land and trims, until all is done or something fails.
fn work(log: &ReplicationLog, told: &mut Told, from: u64) -> Result<()> {
    block_on(async {
        for n in from..from + SEGMENTS {
            told.appended = n;
            append(log, id(n), raw(n)).await?;
            if n % 2 == 0 {
                log.wait_landed(SegmentNo::new(n)).await?;
                told.landed = n;
                if n > 3 {
                    // From here on it may be gone, whether or not the call comes back.
                    told.trimmed = n - 3;
                    log.trim(SegmentNo::new(n - 3))?;
                }
            }
        }
        Ok(())
    })
}

fn check(log: &ReplicationLog, told: &Told, context: &str) {
    let held = log.held();
    assert!(log.recovery().quarantined.is_empty(), "{context}: {:?}", log.recovery());
    let landed = held.landed.segment.get();
    assert!(landed >= told.landed, "{context}: told {told:?}, has {held:?}");
    assert!(landed <= told.appended, "{context}: told {told:?}, has {held:?}");
    if landed > told.trimmed {
        assert!((1..=told.trimmed + 1).contains(&held.first.get()), "{context}: told {told:?}, has {held:?}");
    }
    for n in told.trimmed.max(held.first.get().saturating_sub(1)) + 1..=landed {
        check_segment(log, id(n), raw(n));
    }
}

/// Goes on after a crash: what was dropped does not come back, and new segments land.
fn go_on(disk: &Arc<CrashDisk>, dir: &Path, context: &str) {
    let log = open_on(disk, dir).unwrap();
    let next = log.held().landed.segment.get() + 1;
    // The same numbers by another generation: a leftover of the old one would be seen at once.
    let later = SegmentRef::new(Generation::new(2), SegmentNo::new(next));
    log.trim(SegmentNo::new(next - 1)).unwrap();
    block_on(append(&log, later, raw(next))).unwrap();
    log.close().unwrap();
    let disk = disk.reboot(true, Trouble::None);
    let log = open_on(&disk, dir).unwrap();
    assert_eq!(log.held().landed, later, "{context}");
    assert_eq!(log.held().first, later.segment, "{context}");
    check_segment(&log, later, raw(next));
}

fn crash_at(event: u64, seed: u64) -> bool {
    let context = format!("crash at event {event}, seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let disk = CrashDisk::new(Trouble::Crash(event), seed);
    let mut told = Told::default();
    let first = open_on(&disk, dir.path());
    let Ok(log) = first else {
        assert!(disk.crashed(), "{context}");
        let disk = disk.reboot(false, Trouble::None);
        // Made whole or not at all: either way it opens.
        check(&open_on(&disk, dir.path()).unwrap(), &told, &context);
        return true;
    };
    let worked = work(&log, &mut told, 1);
    assert!(worked.is_ok() || disk.crashed(), "{context}: {worked:?}");
    drop(log);
    let crashed = disk.crashed();
    // A second crash while recovery writes, then a third opening that must see the same.
    let disk = disk.reboot(false, Trouble::Crash(event % 5 + 1));
    let _ = open_on(&disk, dir.path());
    let disk = disk.reboot(false, Trouble::None);
    let log = open_on(&disk, dir.path()).unwrap();
    check(&log, &told, &context);
    drop(log);
    go_on(&disk, dir.path(), &context);
    crashed
}

#[test]
fn whatever_event_the_machine_stops_at_landed_segments_are_there() {
    let mut event = 1;
    while crash_at(event, event) && crash_at(event, event + 1000) {
        event += 1;
    }
    assert!(event > 60, "only {event} events: the test does not reach what it is for");
}

#[test]
fn after_a_failed_sync_everything_fails_until_reopened_and_reopening_trusts_nothing() {
    // The six events before are those of making the log.
    let (mut event, mut failures) = (7, 0);
    loop {
        let context = format!("sync fails at event {event}");
        let dir = tempfile::tempdir().unwrap();
        let disk = CrashDisk::new(Trouble::FailSync(event), event);
        let log = open_on(&disk, dir.path()).unwrap();
        let mut told = Told::default();
        if work(&log, &mut told, 1).is_ok() {
            break;
        }
        failures += 1;
        let before = disk.events();
        assert!(block_on(append(&log, id(told.appended + 1), 10)).is_err(), "{context}");
        assert!(log.trim(SegmentNo::new(1)).is_err() && log.landed().is_err(), "{context}");
        assert!(block_on(log.truncate_after(id(1))).is_err() && log.close().is_err(), "{context}");
        assert_eq!(disk.events(), before, "{context}: a poisoned log still writes");
        // Reads still show what the failed sync lost; what is reported as landed now must survive all the same.
        let log = open_on(&disk, dir.path()).unwrap();
        check(&log, &told, &context);
        let held = log.held();
        drop(log);
        let disk = disk.reboot(true, Trouble::None);
        let log = open_on(&disk, dir.path()).unwrap();
        told.landed = held.landed.segment.get();
        check(&log, &told, &context);
        event += 1;
    }
    assert!(failures > 30, "{failures}");
}
