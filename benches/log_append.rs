//! Segments appended to the replication log on a disk, until they are durable, beside the same bytes written in order
//! by the disk engine with nothing around them: the limit of the disk, taken in the same run.
//!
//! `cargo bench --bench log_append`; `FRESHET_BENCH_DIR` names another directory than that of the target, which must
//! be on a disk. The other side writes blocks that are ready and syncs once, at the end; the log copies and digests what
//! it is given, writes a header to each segment, syncs as often as it likes, trims, and keeps its superblock. Both go
//! round and round in a file whose blocks have been written before.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use freshet::datastore::{
    Access, Completion, DiskEngine, EngineKind, EngineOptions, FileId, Op, Request, Slab, Slot, start,
};
use freshet::format::{
    DatastoreId, Digest, FrameEncoder, IndexDisk, Seal, SealedSegment, SegmentBuilder, SegmentHeader,
};
use freshet::ids::{DiskId, DomainId, Generation, Name, SegmentNo, SegmentRef, Time, VmId, WriterId};
use freshet::log::{LogOptions, ReplicationLog};
use futures::executor::block_on;

const DOMAIN: DomainId = DomainId::from_bytes([1; 16]);
/// Buffers, and the unit of a large write.
const SLOT: usize = 1 << 20;
const SLOTS: usize = 32;
/// Bytes of the log, and of the file that is written beside it.
const FILE: u64 = 1 << 30;
/// Pieces in which a segment comes from the network.
const PART: usize = 256 << 10;
/// Length of a segment, and how many of them make one pass: so many that the last sync, which waits for the one that is
/// under way, does not make the result.
const CASES: [(&str, usize, u64); 2] = [("16 MiB", 16 << 20, 64), ("64 KiB", 64 << 10, 4096)];

/// A segment of about `len` bytes that do not compress.
fn segment(len: usize) -> SealedSegment {
    let mut builder = SegmentBuilder::new(Vec::new());
    let disk = IndexDisk { id: DiskId::from_bytes([5; 16]), vm: VmId::from_bytes([6; 16]), size: 1 << 40 };
    let mut encoder = FrameEncoder::new(1).expect("zstd");
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let frame = (len - 2048).min(SLOT / 2);
    for n in 0..len / frame {
        let noise = std::iter::repeat_with(|| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.to_le_bytes()
        });
        let raw: Vec<u8> = noise.take(frame / 8).flatten().collect();
        builder.push_data(&disk, (n as u64) << 20, &raw, None, &mut encoder).expect("a frame");
    }
    let seal = Seal {
        domain: DOMAIN,
        id: SegmentRef::new(Generation::new(1), SegmentNo::new(1)),
        parent: SegmentRef::default(),
        parent_digest: Digest::default(),
        writer: WriterId::from_bytes([3; 16]),
        created: Time::from_millis(1),
        point: None,
        catalogue: None,
    };
    builder.seal(seal).expect("a segment")
}

/// The log, and the one segment that goes into it under ever new numbers.
struct OurSide {
    log: ReplicationLog,
    header: SegmentHeader,
    body: Bytes,
    next: u64,
}

impl OurSide {
    /// Appends `count` segments and waits until the last one is durable, trimming what is.
    fn append(&mut self, count: u64) {
        let landed = self.log.landed().expect("a log");
        block_on(async {
            for _ in 0..count {
                let (segment, parent_segment) = (SegmentNo::new(self.next), SegmentNo::new(self.next - 1));
                let header = SegmentHeader { segment, parent_segment, ..self.header.clone() };
                let mut parts = vec![Bytes::copy_from_slice(&header.encode())];
                let mut left = self.body.clone();
                while !left.is_empty() {
                    parts.push(left.split_to(PART.min(left.len())));
                }
                self.log.append(&header, &parts).await.expect("an append");
                let durable = landed.borrow().segment;
                self.log.trim(durable).expect("a trim");
                self.next += 1;
            }
            self.log.wait_landed(SegmentNo::new(self.next - 1)).await.expect("a landing");
        });
    }
}

/// Blocks that are ready, and where the next one goes.
struct PlainWrites {
    engine: Arc<dyn DiskEngine>,
    file: FileId,
    ready: crossbeam::channel::Receiver<Slot>,
    back: crossbeam::channel::Sender<Slot>,
    at: u64,
}

impl PlainWrites {
    /// Writes `count` times `len` bytes in blocks of at most a slot, then syncs.
    fn write(&mut self, count: u64, len: usize) {
        let block = len.min(SLOT);
        for _ in 0..count * (len / block) as u64 {
            let slot = self.ready.recv().expect("a slot");
            let back = self.back.clone();
            let done = Box::new(move |completion: Completion| {
                completion.result.expect("a write");
                // There is room for every slot.
                let _ = completion.slot.map(|slot| back.send(slot));
            });
            let op = Op::Write { offset: self.at, slot, range: 0..block };
            self.engine.submit(Request { file: self.file, op, done });
            self.at = (self.at + block as u64) % FILE;
        }
        // All slots are back only when all writes are complete.
        let slots: Vec<Slot> = (0..SLOTS).map(|_| self.ready.recv().expect("a slot")).collect();
        self.engine.sync_blocking(self.file).expect("a sync");
        slots.into_iter().for_each(|slot| self.back.send(slot).expect("room"));
    }
}

fn engine() -> Arc<dyn DiskEngine> {
    let slab = Slab::new(SLOTS, SLOT).expect("memory");
    start(EngineKind::Auto, slab, EngineOptions::default()).expect("an engine")
}

fn plain_writes(dir: &std::path::Path) -> PlainWrites {
    let engine = engine();
    let path = dir.join("plain");
    std::fs::File::create(&path).expect("a file");
    let file = engine.open(&path, Access::Write).expect("a file");
    engine.allocate_blocking(file, 0, FILE).expect("space");
    let (back, ready) = crossbeam::channel::bounded(SLOTS);
    while let Some(mut slot) = engine.slab().try_take() {
        slot.fill(0x5a);
        back.send(slot).expect("room");
    }
    PlainWrites { engine, file, ready, back, at: 0 }
}

fn benches(c: &mut Criterion) {
    let dir = support::disk_dir();
    let mut plain = plain_writes(dir.path());
    // Once round, so that no later pass meets blocks that were only reserved.
    plain.write(FILE / SLOT as u64, SLOT);
    let engine = engine();
    let mut group = c.benchmark_group("log_append");
    for (name, len, count) in CASES {
        let made = segment(len);
        let domain = Name::new(name).expect("a name");
        let options = LogOptions { largest_segment: 32 << 20, ..LogOptions::new(DOMAIN, DatastoreId::default(), FILE) };
        let log = ReplicationLog::open(&engine, dir.path(), &domain, &options).expect("a log");
        let body = Bytes::from(made.bytes).slice(freshet::format::SEGMENT_HEADER_LEN..);
        let header = SegmentHeader { parent_generation: Generation::new(1), ..made.header };
        let mut ours = OurSide { log, header, body, next: 2 };
        ours.append(FILE / len as u64 + 1);
        group.throughput(Throughput::Bytes(count * len as u64));
        group.bench_function(BenchmarkId::new("append until durable", name), |b| b.iter(|| ours.append(count)));
        group.bench_function(BenchmarkId::new("plain writes, one sync", name), |b| b.iter(|| plain.write(count, len)));

        support::by_turns(
            &format!("appending segments of {name} until durable, beside plain writes"),
            || support::time(|| ours.append(count)),
            || support::time(|| plain.write(count, len)),
        );
    }
    group.finish();
}

criterion_group! { name = log; config = support::criterion(); targets = benches }
criterion_main!(log);
