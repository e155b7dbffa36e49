//! What an unhealthy disk does: failed syncs, failed and short I/O, and no space.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Rig, SLOT, Variant, on_every_engine, pattern};
use crate::datastore::{Access, Call, EngineKind, Faults, Op, Slab, Verdict, start};
use crate::error::ErrorKind;

on_every_engine!(
    a_failed_sync_poisons_the_file_until_it_is_opened_again,
    a_sync_beside_a_failing_one_does_not_succeed,
    a_failed_write_does_not_poison,
    short_transfers_are_continued,
    a_write_without_progress_is_an_error,
    a_failure_in_the_middle_fails_the_whole,
    a_full_file_system_is_told_by_its_kind,
);

/// What becomes of the n-th call (from 0) that `concerns` it; all others pass.
struct Plan {
    seen: AtomicUsize,
    concerns: fn(Call) -> bool,
    verdict: fn(usize) -> Verdict,
}

impl Plan {
    fn new(concerns: fn(Call) -> bool, verdict: fn(usize) -> Verdict) -> Arc<Plan> {
        Arc::new(Plan { seen: AtomicUsize::new(0), concerns, verdict })
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

impl Faults for Plan {
    fn judge(&self, _: &Path, call: Call) -> Verdict {
        if !(self.concerns)(call) {
            return Verdict::Pass;
        }
        (self.verdict)(self.seen.fetch_add(1, Ordering::SeqCst))
    }
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plan({} seen)", self.seen())
    }
}

fn failure(code: i32) -> Verdict {
    Verdict::Fail(io::Error::from_raw_os_error(code))
}

fn is_write(call: Call) -> bool {
    matches!(call, Call::Write { .. })
}

fn a_failed_sync_poisons_the_file_until_it_is_opened_again(variant: Variant) {
    // Only the second sync fails: a third one that reached the disk would succeed.
    let plan = Plan::new(|call| call == Call::Sync, |n| if n == 1 { failure(libc::EIO) } else { Verdict::Pass });
    let rig = Rig::with(variant, |options| options.faults = Some(plan.clone()));
    let (file, other) = (rig.file("disk", b""), rig.file("other", b""));
    rig.engine.write_all_blocking(file, 0, &pattern(1, 10_000)).unwrap();
    rig.engine.sync_blocking(file).unwrap();
    let error = rig.engine.sync_blocking(file).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("disk"), "{error}");

    let slots = [rig.slab.take(), rig.slab.take(), rig.slab.take(), rig.slab.take()];
    let [aligned, odd, read, odd_read] = slots;
    for op in [
        Op::SyncData,
        Op::Write { offset: 0, slot: aligned, range: 0..65_536 },
        Op::Write { offset: 0, slot: odd, range: 0..100 },
        Op::Read { offset: 0, slot: read, range: 0..65_536 },
        Op::Read { offset: 1, slot: odd_read, range: 0..100 },
        Op::PunchHole { offset: 0, len: 4096 },
        Op::ZeroRange { offset: 0, len: 4096 },
        Op::Allocate { offset: 0, len: 1 << 20 },
        Op::SetLen(0),
    ] {
        let transfer = matches!(op, Op::Write { .. } | Op::Read { .. });
        let completion = rig.engine.execute(file, op);
        let error = completion.result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("poisoned"), "{error}");
        assert!(error.to_string().contains("Input/output error"), "the first failure is told: {error}");
        assert_eq!(completion.slot.is_some(), transfer);
    }
    assert_eq!(plan.seen(), 2, "no sync after the failed one reached the disk");
    assert!(rig.contents("disk") == pattern(1, 10_000), "nothing after the failed sync reached the disk");

    rig.engine.sync_blocking(other).unwrap();
    rig.engine.close(file).unwrap();
    let again = rig.engine.open(&rig.path("disk"), Access::Write).unwrap();
    rig.engine.write_all_blocking(again, 0, &pattern(2, 5000)).unwrap();
    rig.engine.sync_blocking(again).unwrap();
}

/// Fails the first sync, late enough for a second one to overtake it if it can.
#[derive(Debug, Default)]
struct SlowFailure(AtomicUsize);

impl Faults for SlowFailure {
    fn judge(&self, _: &Path, call: Call) -> Verdict {
        if call != Call::Sync || self.0.fetch_add(1, Ordering::SeqCst) > 0 {
            return Verdict::Pass;
        }
        // Ends at once when another sync is let in, which is the failure; else it costs the test this long.
        for _ in 0..50 {
            if self.0.load(Ordering::SeqCst) > 1 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        failure(libc::EIO)
    }
}

fn a_sync_beside_a_failing_one_does_not_succeed(variant: Variant) {
    let faults = Arc::new(SlowFailure::default());
    let rig = Rig::with(variant, |options| options.faults = Some(faults.clone()));
    let file = rig.file("disk", b"");
    let both = std::thread::scope(|scope| {
        let sync = || rig.engine.sync_blocking(file).is_err();
        let threads = [scope.spawn(sync), scope.spawn(sync)];
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(both, [true, true], "a sync overtook the failing one and called it success");
    assert_eq!(faults.0.load(Ordering::SeqCst), 1, "only the failing one reached the disk");
}

fn a_failed_write_does_not_poison(variant: Variant) {
    let plan = Plan::new(is_write, |n| if n == 0 { failure(libc::EIO) } else { Verdict::Pass });
    let rig = Rig::with(variant, |options| options.faults = Some(plan));
    let file = rig.file("disk", b"");
    let mut slot = rig.slab.take();
    slot[..8192].copy_from_slice(&pattern(3, 8192));
    let completion = rig.engine.execute(file, Op::Write { offset: 0, slot, range: 0..8192 });
    let error = completion.result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("8192 bytes at 0") && error.to_string().contains("disk"), "{error}");
    let slot = completion.slot.unwrap();
    drop(rig.engine.write_slot_blocking(file, 0, slot, 0..8192).unwrap());
    rig.engine.sync_blocking(file).unwrap();
    assert!(rig.contents("disk") == pattern(3, 8192));
    assert_eq!(rig.slab.in_use(), 0);
}

fn short_transfers_are_continued(variant: Variant) {
    // Every other call does 20,000 bytes at most, which is not a multiple of any block.
    let plan = Plan::new(|_| true, |n| if n % 2 == 0 { Verdict::Short(20_000) } else { Verdict::Pass });
    let rig = Rig::with(variant, |options| options.faults = Some(plan.clone()));
    let file = rig.file("disk", b"");
    for (offset, len) in [(0, SLOT), (4096, 100_000), (100, 70_000)] {
        let bytes = pattern(len as u64, len);
        let before = plan.seen();
        rig.engine.write_all_blocking(file, offset as u64, &bytes).unwrap();
        assert!(plan.seen() - before >= 2, "the fault was not met");
        assert!(rig.contents("disk")[offset..offset + len] == bytes, "{len} at {offset}");
        let mut read = vec![0; len];
        assert_eq!(rig.engine.read_blocking(file, offset as u64, &mut read).unwrap(), len);
        assert!(read == bytes, "{len} at {offset}");
    }
}

fn a_write_without_progress_is_an_error(variant: Variant) {
    let plan = Plan::new(is_write, |n| if n < 2 { Verdict::Short(32_768 * (1 - n)) } else { Verdict::Pass });
    let rig = Rig::with(variant, |options| options.faults = Some(plan));
    let file = rig.file("disk", b"");
    let slot = rig.slab.take();
    let completion = rig.engine.execute(file, Op::Write { offset: 0, slot, range: 0..65_536 });
    assert_eq!(completion.result.unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(rig.contents("disk").len(), 32_768, "the first call did half");
}

fn a_failure_in_the_middle_fails_the_whole(variant: Variant) {
    let plan = Plan::new(is_write, |n| match n {
        0 => Verdict::Short(32_768),
        1 => failure(libc::ENOSPC),
        _ => Verdict::Pass,
    });
    let rig = Rig::with(variant, |options| options.faults = Some(plan));
    let file = rig.file("disk", b"");
    let error = rig.engine.write_all_blocking(file, 0, &pattern(4, 100_000)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    assert_eq!(rig.slab.in_use(), 0);
}

/// A real one: a MiB of memory as a file system of its own, seen only by the threads of this test.
fn a_full_file_system_is_told_by_its_kind(variant: Variant) {
    let dir = tempfile::tempdir().unwrap();
    let test = || {
        if !super::devices::mount_tmpfs(dir.path(), "size=1m") {
            return;
        }
        let slab = Slab::new(4, SLOT).unwrap();
        let engine = start(variant.kind(), Arc::clone(&slab), variant.options()).unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, b"").unwrap();
        let file = engine.open(&path, Access::Write).unwrap();
        let error = engine.write_all_blocking(file, 0, &pattern(5, 2 << 20)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        let error = engine.allocate_blocking(file, 0, 8 << 20).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
        // Room again, and the same file goes on.
        engine.set_len_blocking(file, 0).unwrap();
        engine.write_all_blocking(file, 0, &pattern(6, 500_000)).unwrap();
        engine.sync_blocking(file).unwrap();
        assert!(std::fs::read(&path).unwrap() == pattern(6, 500_000));
        assert_eq!(slab.in_use(), 0);
        assert_ne!(engine.info().kind, EngineKind::Auto);
    };
    std::thread::scope(|scope| scope.spawn(test).join().unwrap());
}
