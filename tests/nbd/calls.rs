//! What an export is asked for: each request with its flags reaches it once, and durability is asked of it last.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::client::*;
use super::rig::{MIB, Rig};
use freshet::nbd::{Answer, BlockStatus, CacheMode, Export, ExportInfo, Payload, ServerOptions, ZeroMode};
use tokio::sync::Semaphore;

/// A disk that does nothing but to note what it was asked for. With a gate its reads wait there.
#[derive(Default)]
struct Noting {
    calls: Mutex<Vec<String>>,
    gate: Option<Semaphore>,
    /// Reads that wait, and the most that ever did.
    waiting: AtomicUsize,
    crowd: AtomicUsize,
}

impl Noting {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

fn word(said: bool, word: &str) -> String {
    if said { format!(" {word}") } else { String::new() }
}

impl Export for Noting {
    fn info(&self) -> ExportInfo {
        ExportInfo::new(64 * MIB)
    }
    fn read(self: Arc<Self>, offset: u64, into: Payload) -> Answer<Payload> {
        self.note(format!("read {offset} {}", into.len()));
        Box::pin(async move {
            if let Some(gate) = &self.gate {
                self.crowd.fetch_max(self.waiting.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                self.waiting.fetch_sub(1, Ordering::SeqCst);
            }
            Ok(into)
        })
    }
    fn write(self: Arc<Self>, offset: u64, data: Payload, fua: bool) -> Answer<()> {
        self.note(format!("write {offset} {}{}", data.len(), word(fua, "fua")));
        Box::pin(async { Ok(()) })
    }
    fn flush(self: Arc<Self>) -> Answer<()> {
        self.note("flush".to_owned());
        Box::pin(async { Ok(()) })
    }
    fn trim(self: Arc<Self>, offset: u64, len: u64, fua: bool) -> Answer<()> {
        self.note(format!("trim {offset} {len}{}", word(fua, "fua")));
        Box::pin(async { Ok(()) })
    }
    fn write_zeroes(self: Arc<Self>, offset: u64, len: u64, mode: ZeroMode, fua: bool) -> Answer<()> {
        let words = [word(mode.no_hole, "no_hole"), word(mode.fast, "fast"), word(fua, "fua")].concat();
        self.note(format!("zeroes {offset} {len}{words}"));
        Box::pin(async { Ok(()) })
    }
    fn cache(self: Arc<Self>, offset: u64, len: u64) -> Answer<()> {
        self.note(format!("cache {offset} {len}"));
        Box::pin(async { Ok(()) })
    }
    fn extents(self: Arc<Self>, offset: u64, len: u64, one: bool) -> Answer<Vec<BlockStatus>> {
        self.note(format!("extents {offset} {len}{}", word(one, "one")));
        Box::pin(async move { Ok(vec![BlockStatus { len, hole: false, zero: false }]) })
    }
}

fn noting(rig: &Rig) -> Arc<Noting> {
    let disk = Arc::new(Noting::default());
    rig.exports.add("noting", Arc::clone(&disk) as Arc<dyn Export>).unwrap();
    disk
}

#[test]
fn every_request_reaches_the_export_once_with_its_flags() {
    let rig = Rig::plain();
    let disk = noting(&rig);
    let mut client = Client::open(&rig.unix, "noting");
    for (command, flags, at, len, call) in [
        (WRITE, 0, 512, 4096, "write 512 4096"),
        (WRITE, FUA, 512, 4096, "write 512 4096 fua"),
        (FLUSH, 0, 0, 0, "flush"),
        (FLUSH, FUA, 0, 0, "flush"),
        (TRIM, 0, 1, 2, "trim 1 2"),
        (TRIM, FUA, 0, 16 << 20, "trim 0 16777216 fua"),
        (ZEROES, 0, 3, 4, "zeroes 3 4"),
        (ZEROES, FUA, 3, 4, "zeroes 3 4 fua"),
        (ZEROES, NO_HOLE, 3, 4, "zeroes 3 4 no_hole"),
        (ZEROES, FAST_ZERO, 3, 4, "zeroes 3 4 fast"),
        (ZEROES, NO_HOLE | FAST_ZERO | FUA, 0, 16 << 20, "zeroes 0 16777216 no_hole fast fua"),
        (CACHE, 0, 5, 6, "cache 5 6"),
        (READ, 0, 7, 8, "read 7 8"),
        (READ, DF, 7, 8, "read 7 8"),
        (STATUS, 0, 9, 10, "extents 9 10"),
        (STATUS, REQ_ONE, 9, 10, "extents 9 10 one"),
    ] {
        let data = vec![1; if command == WRITE { len as usize } else { 0 }];
        assert_eq!(client.ask(command, flags, at, len, &data), 0, "{call}");
        assert_eq!(disk.take(), [call]);
    }
    for command in [READ, WRITE, TRIM, CACHE, ZEROES] {
        client.send(command, 0, 512, 0, &[]);
        let chunks = client.reply(0).unwrap();
        // The answer to a read is a structured one, also without data.
        let kind = if command == READ { NONE } else { SIMPLE };
        assert_eq!((chunks.len(), chunks[0].kind, error_of(&chunks)), (1, kind, 0), "{command}");
    }
    assert_eq!(disk.take(), [""; 0], "there is nothing to do about no bytes");
    rig.stop();
}

#[test]
fn a_long_write_with_fua_is_flushed_when_all_of_it_is_written() {
    let rig = Rig::plain();
    let disk = noting(&rig);
    let mut client = Client::open(&rig.unix, "noting");
    let data = vec![1; 5 << 20];
    for flags in [0, FUA] {
        assert_eq!(client.ask(WRITE, flags, MIB, data.len() as u32, &data), 0);
        let mut calls = disk.take();
        if flags == FUA {
            assert_eq!(calls.pop().unwrap(), "flush", "{calls:?}");
        }
        let pieces = calls.iter().map(|call| call.strip_prefix("write ").unwrap().split_once(' ').unwrap());
        let mut pieces: Vec<(u64, u64)> = pieces.map(|(at, len)| (at.parse().unwrap(), len.parse().unwrap())).collect();
        pieces.sort_unstable();
        let end = pieces.iter().try_fold(MIB, |end, (at, len)| (*at == end).then_some(end + len));
        assert_eq!(end, Some(6 * MIB), "{pieces:?}");
    }
    rig.stop();
}

#[test]
fn more_than_32_mib_of_data_never_reach_the_export() {
    let rig = Rig::plain();
    let disk = noting(&rig);
    let (most, more) = (32 << 20, (32 << 20) + 512);
    for (structured, errno) in [(true, EOVERFLOW), (false, EINVAL)] {
        let open = if structured { Client::open } else { Client::open_simple };
        let mut client = open(&rig.unix, "noting");
        assert_eq!(client.read(0, more), Err(errno));
        assert_eq!(client.ask(WRITE, 0, 0, more as u32, &vec![1; more]), EINVAL);
        assert_eq!(disk.take(), [""; 0]);
        assert!(client.read(0, most).is_ok());
        assert_eq!(client.ask(WRITE, 0, 0, most as u32, &vec![1; most]), 0);
        assert!(disk.take().len() >= 64, "what may be asked for is");
    }
    for (command, call) in [(TRIM, "trim 0 67108864"), (ZEROES, "zeroes 0 67108864"), (CACHE, "cache 0 67108864")] {
        assert_eq!(Client::open(&rig.unix, "noting").ask(command, 0, 0, 64 << 20, &[]), 0);
        assert_eq!(disk.take(), [call], "no data, so no limit");
    }
    rig.stop();
}

#[test]
fn no_more_requests_are_taken_than_may_be_in_flight() {
    let rig = Rig::new(CacheMode::WriteBack, ServerOptions { max_in_flight: 4, ..Default::default() });
    let disk = Arc::new(Noting { gate: Some(Semaphore::new(0)), ..Noting::default() });
    rig.exports.add("noting", Arc::clone(&disk) as Arc<dyn Export>).unwrap();
    let mut client = Client::open(&rig.unix, "noting");
    let cookies: BTreeSet<u64> = (0..40).map(|n| client.send(READ, 0, n * 512, 512, &[])).collect();
    let began = Instant::now();
    while disk.waiting.load(Ordering::SeqCst) < 4 {
        assert!(began.elapsed() < Duration::from_secs(60), "fewer are taken than may be");
        std::thread::sleep(Duration::from_millis(1));
    }
    disk.gate.as_ref().unwrap().add_permits(40);
    let answered: BTreeSet<u64> = (0..40).map(|_| client.reply(0).unwrap()[0].cookie).collect();
    assert_eq!(answered, cookies, "those that had to wait are answered as well");
    assert_eq!(disk.crowd.load(Ordering::SeqCst), 4);
    rig.stop();
}
