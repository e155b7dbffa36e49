//! The commit thread: how many syncs a burst costs, what a failed one does to those who wait and to the file, and that
//! cleared bits get there.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;

use crate::error::ErrorKind;
use crate::format::*;
use crate::ids::SegmentNo;

use super::super::bits::Bits;
use super::super::commit::{PageFile, run};
use super::super::page::Page;
use super::super::rule::Rule;
use super::super::shared::Shared;
use super::super::*;
use super::memory_file::*;

/// What never takes long is given up after this, so that a broken bitmap fails and does not hang.
const LONG: Duration = Duration::from_secs(60);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("nobody woke it up")
}

/// A file whose syncs wait until the test says how they end.
struct Gated {
    begun: SyncSender<()>,
    end: Receiver<io::Result<()>>,
    written: Vec<(u32, PageBytes)>,
    seen: SyncSender<Vec<(u32, PageBytes)>>,
}

impl PageFile for Gated {
    fn write_page(&mut self, n: u32, bytes: &PageBytes) -> io::Result<()> {
        self.written.push((n, *bytes));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.begun.send(()).unwrap();
        self.end.recv_timeout(LONG).unwrap()
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        let _ = self.seen.send(std::mem::take(&mut self.written));
    }
}

struct Bench {
    intent: Intent,
    shared: Arc<Shared>,
    begun: Receiver<()>,
    end: SyncSender<io::Result<()>>,
    seen: Receiver<Vec<(u32, PageBytes)>>,
    thread: std::thread::JoinHandle<()>,
}

/// A clean disk of `regions`, whose commits the test lets go one by one.
fn bench(regions: u32) -> Bench {
    let shape = IntentShape::of(u64::from(regions) << 20).unwrap();
    let header = IntentHeader::new(IntentId::from_bytes([3; 16]), DOMAIN, DISK, &shape);
    let clean = |n| Page::opened(Bits::none(shape.page_regions(n).len() as u32), Rule::default());
    let pages = (0..shape.pages()).map(clean).collect();
    let shared = Arc::new(Shared::new(Path::new("the-file"), header, shape, pages));
    let ((begun_in, begun), (end, end_out), (seen_in, seen)) = (sync_channel(9), sync_channel(9), sync_channel(9));
    let mut file = Gated { begun: begun_in, end: end_out, written: Vec::new(), seen: seen_in };
    let its = Arc::clone(&shared);
    let thread = std::thread::spawn(move || run(&its, &mut file, Duration::from_millis(1)));
    let intent = Intent::over(Arc::clone(&shared), Rule::default(), 0);
    Bench { intent, shared, begun, end, seen, thread }
}

fn region(n: u64) -> std::ops::Range<u64> {
    n << 20..(n << 20) + 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_first_touches_costs_two_syncs_and_later_writes_none() {
    let bench = bench(100);
    // The first one gets a sync of its own, which is held; all others come meanwhile.
    let mut first = Box::pin(bench.intent.begin_write(region(0)));
    assert!(first.as_mut().now_or_never().is_none());
    bench.begun.recv_timeout(LONG).unwrap();
    let mut others: Vec<_> = (1..65).map(|n| Box::pin(bench.intent.begin_write(region(n)))).collect();
    assert!(others.iter_mut().all(|write| write.as_mut().now_or_never().is_none()), "let through unmarked");
    bench.end.send(Ok(())).unwrap();
    let first = soon(first).await.unwrap();
    bench.begun.recv_timeout(LONG).unwrap();
    assert!(others.iter_mut().all(|write| write.as_mut().now_or_never().is_none()), "let through by another's commit");
    bench.end.send(Ok(())).unwrap();
    for mark in soon(join_all(others)).await {
        mark.unwrap().captured(SegmentNo::new(1));
    }
    first.captured(SegmentNo::new(1));
    assert_eq!(bench.intent.report().syncs, 2);
    // Marked regions never wait, alone or together.
    for n in 0..64 {
        let both = region(n).start..region(n + 1).end;
        bench
            .intent
            .begin_write(both)
            .now_or_never()
            .expect("waited though marked")
            .unwrap()
            .captured(SegmentNo::new(2));
    }
    assert_eq!((bench.intent.report().syncs, bench.intent.report().dirty_bytes), (2, 65 << 20));
    bench.shared.close();
    bench.thread.join().unwrap();
}

#[tokio::test]
async fn a_failed_sync_fails_all_who_wait_and_all_who_come_and_spoils_its_pages() {
    let bench = bench(INTENT_PAGE_REGIONS + 5);
    let mut marked = Box::pin(bench.intent.begin_write(region(0)));
    assert!(marked.as_mut().now_or_never().is_none());
    bench.end.send(Ok(())).unwrap();
    soon(marked).await.unwrap().captured(SegmentNo::new(1));
    bench.begun.recv_timeout(LONG).unwrap();
    let mut waiting: Vec<_> = (1..9).map(|n| Box::pin(bench.intent.begin_write(region(n)))).collect();
    assert!(waiting.iter_mut().all(|write| write.as_mut().now_or_never().is_none()));
    bench.end.send(Err(io::Error::from_raw_os_error(5))).unwrap();
    bench.thread.join().unwrap();
    // Those who came while the first of them was synced are failed by the same word.
    for write in waiting {
        let error = soon(write).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Io && error.to_string().contains("the-file"), "{error}");
    }
    for later in [region(0), region(50)] {
        assert_eq!(bench.intent.begin_write(later).await.unwrap_err().kind(), ErrorKind::Io);
    }
    let refused = bench.intent.clear_accepted(SegmentNo::new(9), || std::future::ready(Ok(()))).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Io);
    let spoiled: Vec<_> = bench.seen.recv_timeout(LONG).unwrap();
    let header = bench.shared.header();
    let (n, last) = spoiled.last().unwrap();
    assert!(*n == 1 && header.open_page(0, last).is_err(), "what failed can still be believed");
    // Whoever goes on without protection is not forgotten.
    bench.intent.begin_unprotected(region(60)).unwrap().captured(SegmentNo::new(1));
    assert!(bench.intent.is_set(60));
    drop(bench.intent.begin_unprotected(region(61)).unwrap());
    assert!(bench.intent.is_unsynced(61));
}

#[tokio::test]
async fn what_is_cleared_gets_into_the_file_though_nobody_waits_and_hot_regions_keep_their_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (path, identity) = (dir.path().join("d.intent"), IntentIdentity { domain: DOMAIN, disk: DISK, size: 10 << 20 });
    let options = IntentOptions { quiet_calls: 2, patience: Duration::from_secs(3600) };
    let (intent, found) = Intent::open(&path, &identity, &options).unwrap();
    assert_eq!(found, Found::New);
    (0..10).for_each(|region| intent.synced(region, SegmentNo::new(1)));
    assert_eq!((intent.unsynced_bytes(), intent.dirty_bytes()), (0, 10 << 20));
    let clear = || intent.clear_accepted(SegmentNo::new(1), || std::future::ready(Ok(())));
    assert_eq!(clear().await.unwrap(), 0);
    assert_eq!(clear().await.unwrap(), 0);
    // Written just now, in a segment that is accepted already: quiet begins anew.
    intent.begin_write(region(4)).await.unwrap().captured(SegmentNo::new(1));
    assert_eq!(clear().await.unwrap(), 9);
    assert_eq!((clear().await.unwrap(), clear().await.unwrap()), (0, 1));
    assert_eq!((intent.dirty_bytes(), intent.report().cleared), (0, 10));
    intent.close().unwrap();
    let (intent, found) = Intent::open(&path, &identity, &options).unwrap();
    assert_eq!(found, Found::Kept { set: 0, damaged: vec![], grown_from: None });
    // A region that is set again has to be marked again, and is: in the file before the write is let through.
    let mark = intent.begin_write(region(7)).await.unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let page = IntentHeader::open(&bytes).unwrap().open_page(0, &bytes[INTENT_PAGE..]).unwrap();
    assert_eq!(page.bits[0], 0x80);
    drop(mark);
    assert_eq!((intent.next_unsynced(0), intent.next_unsynced(8), intent.report().syncs), (Some(7), None, 1));
}

#[tokio::test]
async fn ranges_are_checked_and_short_last_regions_counted() {
    let dir = tempfile::tempdir().unwrap();
    let size = (3 << 20) + 512;
    let identity = IntentIdentity { domain: DOMAIN, disk: DISK, size };
    let (intent, _) = Intent::open(&dir.path().join("x"), &identity, &IntentOptions::default()).unwrap();
    assert_eq!(intent.report().unsynced_bytes, size);
    for bad in [5..5, size - 1..size + 1, u64::MAX - 1..u64::MAX] {
        assert_eq!(intent.begin_write(bad.clone()).await.unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        assert_eq!(intent.begin_unprotected(bad).unwrap_err().kind(), ErrorKind::Invalid);
    }
    intent.synced(3, SegmentNo::new(1));
    assert_eq!(intent.unsynced_bytes(), 3 << 20);
    intent.synced(99, SegmentNo::new(1));
    assert_eq!(intent.begin_write(0..size).await.unwrap().regions(), 0..4);
}

#[tokio::test]
async fn nothing_is_cleared_of_what_was_touched_or_not_synced_while_the_disk_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let identity = IntentIdentity { domain: DOMAIN, disk: DISK, size: 4 << 20 };
    let options = IntentOptions { quiet_calls: 0, ..IntentOptions::default() };
    let (intent, _) = Intent::open(&dir.path().join("x"), &identity, &options).unwrap();
    let one = SegmentNo::new(1);
    (0..4).for_each(|region| intent.synced(region, one));
    // Begun and ended meanwhile, and captured in a segment that counts as accepted: the sync need not have seen it.
    let sync = || async {
        intent.begin_write(region(2)).await?.captured(one);
        Ok(())
    };
    assert_eq!(intent.clear_accepted(one, sync).await.unwrap(), 3);
    assert!(intent.is_set(2));
    // Another sync of the disk fails meanwhile, and this one is told that all is well.
    let sync = || {
        intent.disk_sync_failed("of somebody else");
        std::future::ready(Ok(()))
    };
    let error = intent.clear_accepted(one, sync).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("of somebody else"), "{error}");
    assert!(intent.is_set(2));
}
