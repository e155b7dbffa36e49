//! Work that an engine drives: who carries its requests, and that it neither ends early nor holds others up.

use std::fs;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Rig, Variant, on_every_engine, pattern};
use crate::datastore::{Access, Completion, DiskEngine, DrivenWork, EngineKind, FileId, Op, Request, Slab};
use crate::error::ErrorKind;

on_every_engine!(
    small_requests_are_carried_on_the_thread_itself,
    bytes_of_any_shape_arrive_and_come_back,
    work_is_over_only_when_its_requests_are,
    more_requests_than_a_thread_carries_all_complete,
    a_file_is_closed_while_its_user_is_driven,
    driven_threads_close_files_of_one_another,
    work_that_panics_leaves_the_engine_whole,
    a_file_that_is_not_open_is_refused_there_too,
);

/// Longest wait for what happens soon.
const SOON: Duration = Duration::from_secs(60);

fn work<F: Future<Output = ()> + 'static>(make: impl FnOnce() -> F + Send + 'static) -> DrivenWork {
    Box::new(move || Box::pin(make()) as Pin<Box<dyn Future<Output = ()>>>)
}

/// Submits, and answers with the completion and the thread that told it.
async fn ask(engine: &Arc<dyn DiskEngine>, file: FileId, op: Op) -> (Completion, ThreadId) {
    let (sender, receiver) = oneshot::channel();
    let done = Box::new(move |completion| drop(sender.send((completion, std::thread::current().id()))));
    engine.submit(Request { file, op, done });
    receiver.await.unwrap()
}

/// How many descriptors of this process are open on `path`.
fn descriptors(path: &Path) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap();
    links.filter(|link| fs::read_link(link.as_ref().unwrap().path()).is_ok_and(|to| to == path)).count()
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn small_requests_are_carried_on_the_thread_itself(variant: Variant) {
    let rig = Rig::new(variant);
    let file = rig.file("disk", &pattern(1, 1 << 20));
    let (engine, slab) = (Arc::clone(&rig.engine), Arc::clone(&rig.slab));
    let ring = variant.kind() == EngineKind::IoUring;
    let body = work(move || async move {
        let here = std::thread::current().id();
        let mut slot = Some(slab.take());
        for (len, is_small) in [(4096, true), (128 << 10, true), ((128 << 10) + 4096, false), (256 << 10, false)] {
            for write in [true, false] {
                let (slot_now, range) = (slot.take().unwrap(), 0..len);
                let op = match write {
                    true => Op::Write { offset: 0, slot: slot_now, range },
                    false => Op::Read { offset: 0, slot: slot_now, range },
                };
                let (completion, told_by) = ask(&engine, file, op).await;
                assert_eq!(completion.result.unwrap(), len);
                slot = completion.slot;
                assert_eq!(told_by == here, is_small && ring, "{len} bytes, write: {write}");
            }
        }
        let (synced, told_by) = ask(&engine, file, Op::SyncData).await;
        synced.result.unwrap();
        assert_ne!(told_by, here, "a sync would stop everything else that this thread does");
    });
    rig.engine.drive(body).unwrap();
}

fn bytes_of_any_shape_arrive_and_come_back(variant: Variant) {
    let rig = Rig::new(variant);
    let file = rig.file("disk", &pattern(1, 300_000));
    let (engine, slab) = (Arc::clone(&rig.engine), Arc::clone(&rig.slab));
    let mut expected = pattern(1, 300_000);
    let shapes =
        [(0, 4096), (4096, 131_072), (1, 1), (511, 4098), (8192, 65_536 + 3), (200_000, 100_000), (299_999, 1)];
    for (n, (offset, len)) in shapes.into_iter().enumerate() {
        expected[offset..offset + len].copy_from_slice(&pattern(n as u64 + 7, len));
    }
    let wanted = expected.clone();
    let body = work(move || async move {
        for (n, (offset, len)) in shapes.into_iter().enumerate() {
            let mut slot = slab.take();
            slot[..len].copy_from_slice(&pattern(n as u64 + 7, len));
            let (completion, _) = ask(&engine, file, Op::Write { offset: offset as u64, slot, range: 0..len }).await;
            assert_eq!(completion.result.unwrap(), len);
        }
        for (offset, len) in shapes {
            let slot = slab.take();
            let op = Op::Read { offset: offset as u64, slot, range: 5..5 + len };
            let (completion, _) = ask(&engine, file, op).await;
            assert_eq!(completion.result.unwrap(), len);
            assert!(completion.slot.unwrap()[5..5 + len] == wanted[offset..offset + len], "{len} bytes at {offset}");
        }
        // Short at the end of the file, as anywhere.
        let (end, _) = ask(&engine, file, Op::Read { offset: 299_000, slot: slab.take(), range: 0..4096 }).await;
        assert_eq!(end.result.unwrap(), 1000);
    });
    rig.engine.drive(body).unwrap();
    assert!(rig.contents("disk") == expected);
}

fn work_is_over_only_when_its_requests_are(variant: Variant) {
    let rig = Rig::new(variant);
    let file = rig.file("disk", b"");
    let told = Arc::new(AtomicUsize::new(0));
    let (engine, slab, tell) = (Arc::clone(&rig.engine), Arc::clone(&rig.slab), Arc::clone(&told));
    let body = work(move || async move {
        for n in 0..8 {
            let mut slot = slab.take();
            slot[..4096].copy_from_slice(&pattern(n, 4096));
            let tell = Arc::clone(&tell);
            let done = Box::new(move |completion: Completion| {
                completion.result.unwrap();
                tell.fetch_add(1, Ordering::SeqCst);
            });
            engine.submit(Request { file, op: Op::Write { offset: n * 4096, slot, range: 0..4096 }, done });
        }
    });
    rig.engine.drive(body).unwrap();
    if variant.kind() == EngineKind::IoUring {
        assert_eq!(told.load(Ordering::SeqCst), 8, "what the thread carries is done when it is");
    }
    rig.engine.close(file).unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 8);
    let whole: Vec<u8> = (0..8).flat_map(|n| pattern(n, 4096)).collect();
    assert!(rig.contents("disk") == whole);
}

fn more_requests_than_a_thread_carries_all_complete(variant: Variant) {
    const REQUESTS: u64 = 400;
    let rig = Rig::new(variant);
    let file = rig.file("disk", &vec![0; REQUESTS as usize * 4096]);
    let (engine, many) = (Arc::clone(&rig.engine), Slab::new(REQUESTS as usize, 4096).unwrap());
    let body = work(move || async move {
        let asked = (0..REQUESTS).map(|n| {
            let mut slot = many.take();
            slot.copy_from_slice(&pattern(n, 4096));
            ask(&engine, file, Op::Write { offset: n * 4096, slot, range: 0..4096 })
        });
        for (completion, _) in futures::future::join_all(asked).await {
            assert_eq!(completion.result.unwrap(), 4096);
        }
    });
    rig.engine.drive(body).unwrap();
    let whole: Vec<u8> = (0..REQUESTS).flat_map(|n| pattern(n, 4096)).collect();
    assert!(rig.contents("disk") == whole);
}

/// Drives a thread that has read a block of each file and then waits until it is told to end.
fn driven(rig: &Rig, files: Vec<FileId>) -> (std::thread::JoinHandle<()>, oneshot::Sender<()>) {
    let (engine, slab) = (Arc::clone(&rig.engine), Arc::clone(&rig.slab));
    let (stop, stopped) = oneshot::channel();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let body = work(move || async move {
        for file in files {
            let (completion, _) = ask(&engine, file, Op::Read { offset: 0, slot: slab.take(), range: 0..4096 }).await;
            completion.result.unwrap();
        }
        ready.send(()).unwrap();
        let _ = stopped.await;
    });
    let engine = Arc::clone(&rig.engine);
    let thread = std::thread::spawn(move || engine.drive(body).unwrap());
    is_ready.recv_timeout(SOON).unwrap();
    (thread, stop)
}

fn a_file_is_closed_while_its_user_is_driven(variant: Variant) {
    let rig = Rig::new(variant);
    let (one, other) = (rig.file("one", &pattern(1, 4096)), rig.file("other", &pattern(2, 4096)));
    let (thread, stop) = driven(&rig, vec![one, other]);
    assert!(descriptors(&rig.path("one")) > 0);
    rig.engine.close(one).unwrap();
    assert_eq!(descriptors(&rig.path("one")), 0, "close is done when every descriptor is closed");
    stop.send(()).unwrap();
    thread.join().unwrap();
    rig.engine.close(other).unwrap();
    assert_eq!(descriptors(&rig.path("other")), 0);
}

fn driven_threads_close_files_of_one_another(variant: Variant) {
    let rig = Rig::new(variant);
    let names = ["a", "b"];
    let files = names.map(|name| rig.file(name, &pattern(1, 4096)));
    let both_have_read = Arc::new(Barrier::new(2));
    let threads = files.map(|mine| {
        let (engine, slab, both) = (Arc::clone(&rig.engine), Arc::clone(&rig.slab), Arc::clone(&both_have_read));
        let body = work(move || async move {
            for file in files {
                let op = Op::Read { offset: 0, slot: slab.take(), range: 0..4096 };
                ask(&engine, file, op).await.0.result.unwrap();
            }
            both.wait();
            engine.close(mine).unwrap();
            // Time in which what is asked of this thread is done.
            tokio::time::sleep(Duration::from_millis(20)).await;
        });
        let engine = Arc::clone(&rig.engine);
        std::thread::spawn(move || engine.drive(body).unwrap())
    });
    until("the threads wait for one another", || threads.iter().all(|thread| thread.is_finished()));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let paths: Vec<PathBuf> = names.iter().map(|name| rig.path(name)).collect();
    until("files that were closed stay open", || paths.iter().all(|path| descriptors(path) == 0));
    for file in files {
        assert_eq!(rig.engine.close(file).unwrap_err().kind(), ErrorKind::Invalid);
    }
}

fn work_that_panics_leaves_the_engine_whole(variant: Variant) {
    let rig = Rig::new(variant);
    let file = rig.file("disk", &pattern(1, 8192));
    let (engine, slab) = (Arc::clone(&rig.engine), Arc::clone(&rig.slab));
    let body = work(move || async move {
        ask(&engine, file, Op::Read { offset: 0, slot: slab.take(), range: 0..4096 }).await.0.result.unwrap();
        panic!("as asked");
    });
    assert!(catch_unwind(AssertUnwindSafe(|| rig.engine.drive(body))).is_err());
    // The same thread is as any other again: this waits for another one to carry it.
    rig.engine.write_all_blocking(file, 0, &pattern(2, 8192)).unwrap();
    rig.engine.close(file).unwrap();
    until("a descriptor is left", || descriptors(&rig.path("disk")) == 0);
    assert!(rig.contents("disk") == pattern(2, 8192));
}

fn a_file_that_is_not_open_is_refused_there_too(variant: Variant) {
    let rig = Rig::new(variant);
    let file = rig.file("disk", &pattern(1, 4096));
    rig.engine.close(file).unwrap();
    let (engine, slab) = (Arc::clone(&rig.engine), Arc::clone(&rig.slab));
    let body = work(move || async move {
        let (completion, _) = ask(&engine, file, Op::Read { offset: 0, slot: slab.take(), range: 0..4096 }).await;
        assert_eq!(completion.result.unwrap_err().kind(), ErrorKind::Invalid);
        assert!(completion.slot.is_some(), "the slot comes back");
    });
    rig.engine.drive(body).unwrap();
    assert!(rig.engine.open(&rig.path("disk"), Access::Read).is_ok());
}
