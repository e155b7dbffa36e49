//! Starting where the kernel gives less: no io_uring, little locked memory, many slots; and settings out of bounds.
//!
//! The refusals are real: a seccomp filter and a dropped capability, both of one thread and those it starts.

use std::fs;
use std::sync::Arc;

use super::{SLOT, pattern};
use crate::datastore::{Access, DiskEngine, EngineKind, EngineOptions, Slab, start};
use crate::error::ErrorKind;

/// Writes, syncs and reads a file, so that what was started is known to work.
fn works(engine: &dyn DiskEngine) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, b"").unwrap();
    let file = engine.open(&path, Access::Write).unwrap();
    engine.write_all_blocking(file, 0, &pattern(1, SLOT)).unwrap();
    engine.sync_blocking(file).unwrap();
    let mut bytes = vec![0; SLOT];
    engine.read_blocking(file, 0, &mut bytes).unwrap();
    assert!(bytes == pattern(1, SLOT) && fs::read(&path).unwrap() == bytes);
}

/// Makes io_uring_setup fail with `code` for the calling thread and those it starts.
fn forbid_io_uring(code: i32) {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    let line = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        line(load, 0, 0, 0),
        line(equal, 0, 1, libc::SYS_io_uring_setup as u32),
        line(give, 0, 0, libc::SECCOMP_RET_ERRNO | code as u32),
        line(give, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its lines live through the call, which copies them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
    }
}

#[test]
fn without_io_uring_auto_runs_on_threads_and_says_why() {
    for (code, word) in [(libc::EPERM, "seccomp"), (libc::ENOSYS, "older than 5.1")] {
        let test = || {
            forbid_io_uring(code);
            let slab = Slab::new(4, SLOT).unwrap();
            let error = start(EngineKind::IoUring, Arc::clone(&slab), EngineOptions::default()).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(word), "{error}");
            let engine = start(EngineKind::Auto, slab, EngineOptions::default()).unwrap();
            let info = engine.info();
            assert_eq!((info.kind, info.registered_slots), (EngineKind::Threads, 0));
            assert!(info.fallbacks.len() == 1 && info.fallbacks[0].contains(word), "{info:?}");
            works(&*engine);
        };
        std::thread::scope(|scope| scope.spawn(test).join().unwrap());
    }
}

#[test]
fn with_io_uring_auto_registers_the_whole_slab_and_has_nothing_to_say() {
    let slab = Slab::new(4, SLOT).unwrap();
    let engine = start(EngineKind::Auto, slab, EngineOptions::default()).unwrap();
    let info = engine.info();
    assert_eq!((info.kind, info.registered_slots, info.queue_depth), (EngineKind::IoUring, 4, 64));
    assert!(info.fallbacks.is_empty(), "{info:?}");
    works(&*engine);
}

#[test]
fn plain_threads_that_were_asked_for_are_no_fall_back() {
    let engine = start(EngineKind::Threads, Slab::new(4, SLOT).unwrap(), EngineOptions::default()).unwrap();
    assert_eq!(engine.info().kind, EngineKind::Threads);
    assert!(engine.info().fallbacks.is_empty());
}

#[test]
fn with_little_locked_memory_buffers_stay_unregistered_and_the_numbers_are_told() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let few = 8 << 20;
    let limit = getrlimit(Resource::Memlock);
    if limit.current.is_none_or(|current| current > few) {
        // Of the whole process; no other test is harmed, as with the capability the limit does not count, and
        // without it registering falls back.
        setrlimit(Resource::Memlock, Rlimit { current: Some(few), maximum: limit.maximum }).unwrap();
    }
    let test = || {
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::IPC_LOCK);
        set_capabilities(None, sets).unwrap();
        let slab = Slab::new(64, SLOT).unwrap();
        let engine = start(EngineKind::IoUring, slab, EngineOptions::default()).unwrap();
        let info = engine.info();
        assert_eq!(info.registered_slots, 0);
        let needed = (64 * SLOT).to_string();
        assert!(info.fallbacks.len() == 1 && info.fallbacks[0].contains("memlock"), "{info:?}");
        assert!(info.fallbacks[0].contains(&needed) && info.fallbacks[0].contains("bytes and"), "{info:?}");
        works(&*engine);
    };
    std::thread::scope(|scope| scope.spawn(test).join().unwrap());
}

#[test]
fn more_slots_than_one_registration_takes_work_and_are_told() {
    let slab = Slab::new(1030, 4096).unwrap();
    let engine = start(EngineKind::IoUring, Arc::clone(&slab), EngineOptions::default()).unwrap();
    let info = engine.info();
    assert_eq!(info.registered_slots, 1024);
    assert!(info.fallbacks[0].contains("1024 of 1030"), "{info:?}");
    // All slots at once, so that those past the registration are used too.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, b"").unwrap();
    let file = engine.open(&path, Access::Write).unwrap();
    let mut slots: Vec<_> = std::iter::from_fn(|| slab.try_take()).collect();
    assert_eq!(slots.len(), 1030);
    slots.sort_by_key(|slot| slot.index());
    for mut slot in slots {
        let n = slot.index() as u64;
        slot.copy_from_slice(&pattern(n, 4096));
        engine.write_slot_blocking(file, n * 4096, slot, 0..4096).unwrap();
    }
    let contents = fs::read(&path).unwrap();
    for n in 0..1030 {
        assert!(contents[n * 4096..][..4096] == pattern(n as u64, 4096), "slot {n}");
    }
}

#[test]
fn settings_out_of_bounds_are_refused_by_name() {
    let good = EngineOptions::default;
    let cases = [
        ("queue_depth", EngineOptions { queue_depth: 0, ..good() }),
        ("queue_depth", EngineOptions { queue_depth: 4097, ..good() }),
        ("ring_threads", EngineOptions { ring_threads: 17, ..good() }),
        ("worker_threads", EngineOptions { worker_threads: 0, ..good() }),
        ("helper_threads", EngineOptions { helper_threads: 65, ..good() }),
        ("min_alignment", EngineOptions { min_alignment: 3000, ..good() }),
        ("min_alignment", EngineOptions { min_alignment: 2 << 20, ..good() }),
    ];
    for (name, options) in cases {
        for kind in [EngineKind::Auto, EngineKind::Threads] {
            let slab = Slab::new(1, SLOT).unwrap();
            let error = start(kind, slab, options.clone()).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
