//! The transmission phase: every request and flag, their replies byte by byte, and their errors.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::client::*;
use super::rig::{Healthy, MIB, Rig};
use freshet::datastore::EngineKind;
use freshet::nbd::{
    Answer, BackingDisk, BlockStatus, CacheMode, Errno, Export, ExportError, ExportInfo, Image, ImageOptions, Payload,
    ServerOptions, ZeroMode, start_engine,
};

fn modes() -> [Rig; 2] {
    [CacheMode::Direct, CacheMode::WriteBack].map(|cache| Rig::new(cache, ServerOptions::default()))
}

#[test]
fn writes_are_read_back_and_lie_in_the_image() {
    for rig in modes() {
        let mut simple = Client::open_simple(&rig.tcp, "disk");
        let mut client = Client::open(&rig.unix, "disk");
        let mut model = vec![0; 16 << 20];
        let ranges =
            [(0, 1), (511, 2), (4096, 4096), (MIB, 65_536), (2 * MIB - 1, MIB as usize + 2), (4 * MIB, 8 << 20)];
        for (n, (at, len)) in ranges.into_iter().enumerate() {
            let data: Vec<u8> = (0..len).map(|i| (i * 31 + n) as u8 | 1).collect();
            let writer = if n % 2 == 0 { &mut client } else { &mut simple };
            assert_eq!(writer.write(at, &data), 0);
            model[at as usize..][..len].copy_from_slice(&data);
            assert!(client.read(at, len).unwrap() == data, "{len} at {at}");
            assert!(simple.read(at, len).unwrap() == data, "{len} at {at}");
        }
        assert!(client.read(0, 16 << 20).unwrap() == model, "one read in many chunks");
        assert!(simple.read(0, 16 << 20).unwrap() == model, "one read in one simple reply");
        assert_eq!(client.ask(FLUSH, 0, 0, 0, &[]), 0);
        assert!(std::fs::read(rig.image()).unwrap() == model);
        rig.stop();
    }
}

#[test]
fn zeros_come_as_holes_and_whole_when_that_is_asked_for() {
    for rig in modes() {
        let mut client = Client::open(&rig.unix, "disk");
        assert_eq!(client.write(512 << 10, &[5; 4096]), 0);
        client.send(READ, 0, 0, MIB as u32, &[]);
        let chunks = client.reply(0).unwrap();
        assert_eq!(chunks.iter().map(|chunk| chunk.kind).collect::<Vec<_>>(), [HOLE, DATA, HOLE]);
        assert_eq!(chunks.iter().filter(|chunk| chunk.done).count(), 1);
        assert!(assemble(0, MIB as usize, &chunks)[(512 << 10)..][..4096] == [5; 4096]);
        client.send(READ, DF, 0, MIB as u32, &[]);
        let chunks = client.reply(0).unwrap();
        assert_eq!((chunks.len(), chunks[0].kind, chunks[0].body.len()), (1, DATA, 8 + (1 << 20)));
        assert_eq!(client.ask(READ, DF, 0, 2 << 20, &[]), EOVERFLOW);
        client.send(READ, DF, 1, 65_536, &[]);
        assert_eq!(client.reply(0).unwrap()[0].kind, DATA, "64 KiB must always go in one");
        rig.stop();
    }
}

#[test]
fn zeroes_trim_and_status_agree() {
    for rig in modes() {
        let mut client = Client::open(&rig.unix, "disk");
        for at in (0..16).map(|n| n * MIB) {
            assert_eq!(client.write(at, &vec![9; MIB as usize]), 0);
        }
        // Delayed allocation would blur what is told.
        assert_eq!(client.ask(FLUSH, 0, 0, 0, &[]), 0);
        let flags = client.flags;
        assert!([1 << 2, 1 << 3, 1 << 5, 1 << 6, 1 << 8, 1 << 10, 1 << 11].iter().all(|bit| flags & bit != 0));
        assert_eq!(client.ask(ZEROES, 0, MIB, MIB as u32, &[]), 0);
        assert_eq!(client.ask(ZEROES, NO_HOLE, 3 * MIB, MIB as u32, &[]), 0);
        assert_eq!(client.ask(ZEROES, FAST_ZERO, 5 * MIB, MIB as u32, &[]), 0);
        assert_eq!(client.ask(ZEROES, FAST_ZERO | NO_HOLE | FUA, 7 * MIB, MIB as u32, &[]), 0);
        assert_eq!(client.ask(TRIM, FUA, 9 * MIB, MIB as u32, &[]), 0);
        assert_eq!(client.ask(ZEROES, 0, 11 * MIB + 1, 5000, &[]), 0);
        assert_eq!(client.ask(CACHE, 0, 0, 16 << 20, &[]), 0);
        for at in [1, 3, 5, 7, 9] {
            assert!(client.read(at * MIB, MIB as usize).unwrap().iter().all(|&b| b == 0), "{at}");
            assert!(client.read((at + 1) * MIB, 4096).unwrap() == [9; 4096], "{at}");
        }
        let odd = client.read(11 * MIB, 8192).unwrap();
        assert!(odd.iter().enumerate().all(|(i, &b)| (b == 0) == (1..5001).contains(&i)));
        let parts = client.status(0, 0, 16 << 20);
        assert_eq!(parts.iter().map(|(len, _)| u64::from(*len)).sum::<u64>(), 16 * MIB);
        let at = |wanted: u64| {
            let mut end = 0;
            parts
                .iter()
                .find(|(len, _)| {
                    end += u64::from(*len);
                    end > wanted
                })
                .unwrap()
                .1
        };
        assert_eq!([0, 1, 5, 9].map(|n| at(n * MIB)), [0, 3, 3, 3], "{parts:?}");
        let one = client.status(REQ_ONE, MIB, 8 << 20);
        assert_eq!(one, [(1 << 20, 3)]);
        assert_eq!(client.status(REQ_ONE, MIB + 4096, 4096), [(4096, 3)]);
        rig.stop();
    }
}

#[test]
fn space_stays_with_no_hole_and_goes_without() {
    use std::os::unix::fs::MetadataExt;
    let rig = Rig::plain();
    let mut client = Client::open(&rig.unix, "disk");
    assert_eq!(client.write(0, &vec![9; 8 << 20]), 0);
    assert_eq!(client.ask(FLUSH, 0, 0, 0, &[]), 0);
    let blocks = || rig.image().metadata().unwrap().blocks() * 512;
    let full = blocks();
    assert!(full >= 8 * MIB);
    assert_eq!(client.ask(ZEROES, NO_HOLE, 0, 4 << 20, &[]), 0);
    assert!(blocks() >= 8 * MIB);
    assert_eq!(client.ask(ZEROES, 0, 0, 2 << 20, &[]), 0);
    assert!(blocks() <= full - 2 * MIB);
    assert_eq!(client.ask(TRIM, 0, 6 * MIB, 2 << 20, &[]), 0);
    assert!(blocks() <= full - 4 * MIB);
    rig.stop();
}

#[test]
fn wrong_requests_are_refused_and_the_next_one_is_read() {
    let rig = Rig::plain();
    let healthy = Healthy::start(&rig);
    let end = 16 * MIB;
    for structured in [true, false] {
        let open = if structured { Client::open } else { Client::open_simple };
        let mut client = open(&rig.unix, "disk");
        for (errno, command, flags, at, len) in [
            (EINVAL, READ, 0, end, 1),
            (EINVAL, READ, 0, end - 1, 2),
            (EINVAL, READ, 0, u64::MAX, 1),
            (EINVAL, READ, NO_HOLE, 0, 1),
            (EINVAL, READ, 1 << 15, 0, 1),
            (EINVAL, TRIM, 0, end - 1, 2),
            (EINVAL, CACHE, 0, end - 1, 2),
            (EINVAL, CACHE, REQ_ONE, 0, 1),
            (EINVAL, STATUS, 0, end, 1),
            (EINVAL, STATUS, 0, 0, 0),
            (ENOSPC, ZEROES, 0, end - 1, 2),
            (ENOSPC, ZEROES, 0, u64::MAX - 5, 10),
            (EINVAL, FLUSH, 0, 1, 0),
            (EINVAL, FLUSH, 0, 0, 1),
            (EINVAL, 8, 0, 0, 0),
            (EINVAL, 65_535, 0, 0, 0),
            (0, READ, 0, 5, 0),
            (0, TRIM, FUA, 5, 0),
            (0, FLUSH, FUA, 0, 0),
        ] {
            assert_eq!(client.ask(command, flags, at, len, &[]), errno, "command {command} at {at}");
        }
        // The data of a refused write is taken off the socket.
        for (errno, flags, at) in [(ENOSPC, 0, end - 4095), (ENOSPC, 0, u64::MAX), (EINVAL, DF, 0)] {
            assert_eq!(client.ask(WRITE, flags, at, 4096, &[1; 4096]), errno);
        }
        assert_eq!(client.ask(WRITE, 0, 0, (32 << 20) + 512, &vec![1; (32 << 20) + 512]), ENOSPC);
        assert_eq!(client.write(0, &[structured as u8; 512]), 0);
        assert!(client.read(0, 512).unwrap() == [structured as u8; 512]);
    }
    let mut client = Client::open(&rig.unix, "disk");
    client.send(READ, 0, end, 1, &[]);
    let chunks = client.reply(0).unwrap();
    let text = String::from_utf8(chunks[0].body[6..].to_vec()).unwrap();
    assert_eq!((chunks[0].kind, usize::from(chunks[0].body[5])), (ERROR, text.len()));
    assert!(text.contains("past the end"), "{text}");
    healthy.finish();
    rig.stop();
}

#[test]
fn a_read_only_export_refuses_changes_and_serves_the_rest() {
    let rig = Rig::plain();
    let path = rig.dir.path().join("fixed");
    std::fs::write(&path, vec![3; 100_000]).unwrap();
    let image = Image::open(&path, ImageOptions { read_only: true, ..Default::default() }).unwrap();
    let engine = start_engine(EngineKind::Auto, CacheMode::WriteBack, &rig.buffers).unwrap();
    rig.exports.add("fixed", BackingDisk::open(engine, image, CacheMode::WriteBack).unwrap()).unwrap();
    let mut client = Client::open(&rig.unix, "fixed");
    assert_eq!((client.size, client.flags & 2, client.flags & 1 << 5), (100_000, 2, 0));
    assert_eq!(client.ask(WRITE, 0, 0, 5, b"hello"), EPERM);
    assert_eq!(client.ask(TRIM, 0, 0, 5, &[]), EPERM);
    assert_eq!(client.ask(ZEROES, 0, 0, 5, &[]), EPERM);
    assert_eq!(client.ask(FLUSH, 0, 0, 0, &[]), 0);
    assert!(client.read(99_999, 1).unwrap() == [3]);
    assert_eq!(client.status(0, 0, 100_000), [(100_000, 0)]);
    assert!(std::fs::read(&path).unwrap() == vec![3; 100_000]);
    rig.stop();
}

#[test]
fn an_image_cut_while_it_is_served_gives_errors_and_the_others_go_on() {
    for rig in modes() {
        let healthy = Healthy::start(&rig);
        let mut client = Client::open(&rig.unix, "disk");
        assert_eq!(client.write(0, &vec![7; 1 << 20]), 0);
        std::fs::File::options().write(true).open(rig.image()).unwrap().set_len(MIB).unwrap();
        assert_eq!(client.read(8 * MIB, 4096), Err(EIO));
        assert_eq!(client.write(8 * MIB, &[1; 4096]), EIO);
        assert_eq!(client.ask(FLUSH, 0, 0, 0, &[]), EIO);
        assert_eq!(rig.image().metadata().unwrap().len(), MIB);
        healthy.finish();
        rig.stop();
    }
}

/// A disk of which one block cannot be read, and whose calls wait until they are let go.
struct Trouble {
    bad: u64,
    gate: Option<Arc<tokio::sync::Semaphore>>,
    min_block: u32,
}

impl Export for Trouble {
    fn info(&self) -> ExportInfo {
        ExportInfo { min_block: self.min_block, ..ExportInfo::new(16 * MIB) }
    }
    fn read(self: Arc<Self>, offset: u64, mut into: Payload) -> Answer<Payload> {
        Box::pin(async move {
            if let Some(gate) = &self.gate {
                gate.acquire().await.unwrap().forget();
            }
            if (offset..offset + into.len() as u64).contains(&self.bad) {
                return Err(ExportError::new(Errno::Io, "a bad block"));
            }
            into.fill(1);
            Ok(into)
        })
    }
    fn write(self: Arc<Self>, _: u64, _: Payload, _: bool) -> Answer<()> {
        Box::pin(async move {
            if let Some(gate) = &self.gate {
                gate.acquire().await.unwrap().forget();
            }
            Ok(())
        })
    }
    fn flush(self: Arc<Self>) -> Answer<()> {
        Box::pin(async { Ok(()) })
    }
    fn trim(self: Arc<Self>, _: u64, _: u64, _: bool) -> Answer<()> {
        Box::pin(async { Err(ExportError::new(Errno::NotSup, "no")) })
    }
    fn write_zeroes(self: Arc<Self>, _: u64, _: u64, _: ZeroMode, _: bool) -> Answer<()> {
        Box::pin(async { Err(ExportError::new(Errno::NotSup, "no")) })
    }
    fn extents(self: Arc<Self>, _: u64, _: u64, _: bool) -> Answer<Vec<BlockStatus>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

#[test]
fn errors_of_an_export_reach_the_client_and_end_nothing_but_what_must_end() {
    let rig = Rig::plain();
    let healthy = Healthy::start(&rig);
    rig.exports.add("bad", Arc::new(Trouble { bad: 5 * MIB, gate: None, min_block: 1 })).unwrap();
    for (open, structured) in [(Client::open as fn(&_, &_) -> _, true), (Client::open_simple, false)] {
        let mut client = open(&rig.unix, "bad");
        assert_eq!(client.read(5 * MIB, 4096), Err(EIO));
        assert!(client.read(0, 4096).unwrap() == [1; 4096]);
        assert_eq!(client.ask(ZEROES, FAST_ZERO, 0, 4096, &[]), ENOTSUP);
        assert_eq!(client.ask(ZEROES, 0, 0, 4096, &[]), EINVAL, "not supported is for fast zeros only");
        if structured {
            assert_eq!(client.ask(STATUS, 0, 0, 4096, &[]), EIO, "a status of nothing is not passed on");
            // In many chunks, one of which fails.
            assert_eq!(client.read(0, 8 << 20), Err(EIO));
            assert!(client.read(0, 4096).unwrap() == [1; 4096]);
        } else {
            // Its first piece is on the way with its promise of 8 MiB: only the end of the connection can break it.
            client.send(READ, 0, 0, 8 << 20, &[]);
            assert_eq!(client.chunk(8 << 20).unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
            let mut client = open(&rig.unix, "bad");
            assert_eq!(client.read(5 * MIB, 8 << 20), Err(EIO), "the first piece fails before anything is promised");
            assert!(client.read(0, 4096).unwrap() == [1; 4096]);
        }
    }
    healthy.finish();
    rig.stop();
}

#[test]
fn the_smallest_block_is_told_and_kept_to() {
    let rig = Rig::plain();
    rig.exports.add("blocks", Arc::new(Trouble { bad: u64::MAX, gate: None, min_block: 4096 })).unwrap();
    let mut client = Client::greet(&rig.unix);
    let replies = client.option(OPT_INFO, &info_data("blocks", &[]));
    assert_eq!(be32(&replies[1].1[2..]), 4096, "told although not asked for");
    client.go("blocks");
    assert_eq!(client.ask(READ, 0, 512, 4096, &[]), EINVAL);
    assert_eq!(client.ask(WRITE, 0, 0, 512, &[0; 512]), EINVAL);
    assert!(client.read(4096, 4096).is_ok());
    rig.stop();
}

#[test]
fn requests_are_answered_out_of_order() {
    let rig = Rig::plain();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    rig.exports.add("slow", Arc::new(Trouble { bad: u64::MAX, gate: Some(gate.clone()), min_block: 1 })).unwrap();
    let mut client = Client::open(&rig.unix, "slow");
    let read = client.send(READ, 0, 0, 512, &[]);
    let flush = client.send(FLUSH, 0, 0, 0, &[]);
    assert_eq!(client.chunk(0).unwrap().cookie, flush, "the flush overtakes the read that waits");
    gate.add_permits(1);
    assert_eq!(client.chunk(0).unwrap().cookie, read);
    rig.stop();
}

#[test]
fn a_flush_on_one_connection_covers_writes_of_another() {
    // What reached the disk cannot be seen from outside while the page cache is there; what can be is that the flush
    // comes after the write on the same file and syncs the whole of it, for which the unit tests count the syncs.
    let rig = Rig::new(CacheMode::Direct, ServerOptions::default());
    let (mut one, mut two) = (Client::open(&rig.unix, "disk"), Client::open(&rig.tcp, "disk"));
    assert_ne!(one.flags & two.flags & 1 << 8, 0, "CAN_MULTI_CONN");
    assert_eq!(one.write(0, &[8; 4096]), 0);
    assert!(two.read(0, 4096).unwrap() == [8; 4096], "seen at once");
    assert_eq!(two.ask(FLUSH, 0, 0, 0, &[]), 0);
    assert_eq!(one.ask(WRITE, FUA, 4096, 4096, &[9; 4096]), 0);
    assert!(two.read(4096, 4096).unwrap() == [9; 4096]);
    let file = std::fs::File::open(rig.image()).unwrap();
    let mut bytes = [0; 8192];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..4096] == [8; 4096] && bytes[4096..] == [9; 4096]);
    rig.stop();
}
