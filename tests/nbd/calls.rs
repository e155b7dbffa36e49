//! What an export is asked for: each request with its flags reaches it once, and durability is asked of it last.

use std::sync::{Arc, Mutex};

use super::client::*;
use super::rig::{MIB, Rig};
use freshet::nbd::{Answer, BlockStatus, Export, ExportInfo, Payload, ZeroMode};

/// A disk that does nothing but to note what it was asked for.
#[derive(Default)]
struct Noting(Mutex<Vec<String>>);

impl Noting {
    fn note(&self, call: String) {
        self.0.lock().unwrap().push(call);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
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
        Box::pin(async { Ok(into) })
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
