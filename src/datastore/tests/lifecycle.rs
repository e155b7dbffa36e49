//! Opening, closing and ending: ids, waiting for what is under way, and callbacks that misbehave.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::{Rig, Variant, on_every_engine, pattern};
use crate::datastore::{Access, Call, Completion, DiskEngine, Faults, FileId, Op, Request, Verdict};
use crate::error::ErrorKind;

on_every_engine!(
    a_closed_file_is_refused_and_its_id_is_not_used_again,
    close_waits_for_what_is_under_way,
    closing_gives_the_descriptors_back,
    dropping_the_engine_completes_what_was_submitted,
    the_last_handle_may_be_dropped_in_a_callback,
    a_callback_that_panics_harms_nobody,
    what_is_not_a_disk_is_refused,
    a_file_for_reading_is_read_only,
);

/// Holds every write until it is opened.
#[derive(Debug, Default)]
struct Barrier {
    open: Mutex<bool>,
    changed: Condvar,
    arrived: AtomicUsize,
}

impl Barrier {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn wait_for_arrival(&self) {
        while self.arrived.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
    }
}

impl Faults for Barrier {
    fn judge(&self, _: &Path, call: Call) -> Verdict {
        if matches!(call, Call::Write { .. }) {
            self.arrived.fetch_add(1, Ordering::SeqCst);
            drop(self.changed.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap());
        }
        Verdict::Pass
    }
}

fn held(variant: Variant) -> (Rig, Arc<Barrier>) {
    let barrier = Arc::new(Barrier::default());
    let rig = Rig::with(variant, |options| options.faults = Some(barrier.clone()));
    (rig, barrier)
}

fn write(rig: &Rig, engine: &dyn DiskEngine, file: FileId, n: usize, done: impl FnOnce(Completion) + Send + 'static) {
    let mut slot = rig.slab.take();
    slot[..8192].copy_from_slice(&pattern(n as u64, 8192));
    let op = Op::Write { offset: n as u64 * 8192, slot, range: 0..8192 };
    engine.submit(Request { file, op, done: Box::new(done) });
}

fn a_closed_file_is_refused_and_its_id_is_not_used_again(variant: Variant) {
    let rig = Rig::new(variant);
    let file = rig.file("disk", &pattern(1, 4096));
    rig.engine.close(file).unwrap();
    let again = rig.engine.open(&rig.path("disk"), Access::Write).unwrap();
    assert_ne!(again, file);
    let slot = rig.slab.take();
    let completion = rig.engine.execute(file, Op::Write { offset: 0, slot, range: 0..4096 });
    let error = completion.result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("closed"), "{error}");
    assert!(completion.slot.is_some(), "the slot comes back");
    assert_eq!(rig.engine.sync_blocking(file).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(rig.engine.close(file).unwrap_err().kind(), ErrorKind::Invalid);
    assert!(rig.engine.file_info(file).is_err());
    assert!(rig.contents("disk") == pattern(1, 4096));
    rig.engine.sync_blocking(again).unwrap();
}

fn close_waits_for_what_is_under_way(variant: Variant) {
    let (rig, barrier) = held(variant);
    let file = rig.file("disk", b"");
    let told = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&told);
    write(&rig, &*rig.engine, file, 0, move |completion| {
        completion.result.unwrap();
        tell.store(true, Ordering::SeqCst);
    });
    barrier.wait_for_arrival();
    std::thread::scope(|scope| {
        let closer = scope.spawn(|| {
            rig.engine.close(file).unwrap();
            told.load(Ordering::SeqCst)
        });
        // Gives a close that does not wait the time to be caught; one that waits passes whatever the timing.
        std::thread::sleep(std::time::Duration::from_millis(30));
        barrier.open();
        assert!(closer.join().unwrap(), "close returned before the write was told");
    });
    assert!(rig.contents("disk") == pattern(0, 8192));
}

fn closing_gives_the_descriptors_back(variant: Variant) {
    let rig = Rig::new(variant);
    let path = rig.path("disk");
    let open_now = || {
        let links = fs::read_dir("/proc/self/fd").unwrap();
        links.filter(|link| fs::read_link(link.as_ref().unwrap().path()).is_ok_and(|to| to == path)).count()
    };
    for _ in 0..3 {
        let file = rig.file("disk", b"");
        for n in 0..4 {
            rig.engine.write_all_blocking(file, n * 8192, &pattern(n, 8192)).unwrap();
        }
        assert!(open_now() > 0);
        rig.engine.close(file).unwrap();
        assert_eq!(open_now(), 0);
    }
}

fn dropping_the_engine_completes_what_was_submitted(variant: Variant) {
    let (mut rig, barrier) = held(variant);
    let file = rig.file("disk", b"");
    let told = Arc::new(AtomicUsize::new(0));
    for n in 0..8 {
        let told = Arc::clone(&told);
        write(&rig, &*rig.engine, file, n, move |completion| {
            assert_eq!(completion.result.unwrap(), 8192);
            told.fetch_add(1, Ordering::SeqCst);
        });
    }
    assert_eq!(rig.slab.in_use(), 8, "the slots stay with the engine");
    let other = super::start(crate::datastore::EngineKind::Threads, rig.slab.clone(), variant.options()).unwrap();
    let engine = std::mem::replace(&mut rig.engine, other);
    let dropping = std::thread::spawn(move || drop(engine));
    barrier.open();
    dropping.join().unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 8);
    assert_eq!(rig.slab.in_use(), 0);
    let contents = rig.contents("disk");
    for n in 0..8 {
        assert!(contents[n * 8192..][..8192] == pattern(n as u64, 8192), "block {n}");
    }
}

fn the_last_handle_may_be_dropped_in_a_callback(variant: Variant) {
    let (rig, barrier) = held(variant);
    let file = rig.file("disk", b"");
    let (sender, receiver) = crossbeam::channel::bounded(2);
    for n in 0..2 {
        let (engine, sender) = (Arc::clone(&rig.engine), sender.clone());
        write(&rig, &*rig.engine, file, n, move |completion| {
            drop(engine);
            sender.send(completion.result.is_ok()).unwrap();
        });
    }
    let Rig { engine, dir: _dir, .. } = rig;
    drop(engine);
    barrier.open();
    for _ in 0..2 {
        // A limit, because an engine that waits for its own thread would never answer.
        assert_eq!(receiver.recv_timeout(std::time::Duration::from_secs(60)), Ok(true));
    }
}

fn a_callback_that_panics_harms_nobody(variant: Variant) {
    let rig = Rig::new(variant);
    let file = rig.file("disk", b"");
    for n in 0..20 {
        write(&rig, &*rig.engine, file, n, |_| std::panic::resume_unwind(Box::new("from a test")));
    }
    // Also one that is refused before it reaches a worker.
    let closed = rig.file("closed", b"");
    rig.engine.close(closed).unwrap();
    for n in 0..20 {
        write(&rig, &*rig.engine, closed, n, |_| std::panic::resume_unwind(Box::new("from a test")));
    }
    rig.engine.write_all_blocking(file, 0, &pattern(99, 8192)).unwrap();
    rig.engine.close(file).unwrap();
    // Each worker gives its slot back when it has borne the panic, which may be after the last write of another one.
    let all: Vec<_> = (0..16).map(|_| rig.slab.take_timeout(std::time::Duration::from_secs(60))).collect();
    assert!(all.iter().all(Option::is_some), "a slot is lost");
    assert!(rig.contents("disk")[..8192] == pattern(99, 8192));
}

fn what_is_not_a_disk_is_refused(variant: Variant) {
    let rig = Rig::new(variant);
    let pipe = rig.path("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for (path, kind) in
        [(rig.dir.path(), ErrorKind::Invalid), (&pipe, ErrorKind::Invalid), (&rig.path("none"), ErrorKind::NotFound)]
    {
        let error = rig.engine.open(path, Access::Read).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

fn a_file_for_reading_is_read_only(variant: Variant) {
    let rig = Rig::new(variant);
    let contents = pattern(2, 10_000);
    fs::write(rig.path("disk"), &contents).unwrap();
    let file = rig.engine.open(&rig.path("disk"), Access::Read).unwrap();
    let slot = rig.slab.take();
    let write = Op::Write { offset: 0, slot, range: 0..4096 };
    for op in [
        write,
        Op::SyncData,
        Op::PunchHole { offset: 0, len: 1 },
        Op::ZeroRange { offset: 0, len: 1 },
        Op::Allocate { offset: 0, len: 1 << 20 },
        Op::SetLen(0),
    ] {
        let error = rig.engine.execute(file, op).result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("reading only"), "{error}");
    }
    let mut bytes = vec![0; 10_000];
    assert_eq!(rig.engine.read_blocking(file, 0, &mut bytes).unwrap(), 10_000);
    assert!(bytes == contents && rig.contents("disk") == contents);
}
