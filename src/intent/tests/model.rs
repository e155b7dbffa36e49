//! A guest, its disk, a chain and a file that forgets, around a real bitmap; and what the rule promises, checked after
//! every step against everything that a power cut at that moment could leave in the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::FutureExt;

use crate::error::{Error, ErrorKind, Result};
use crate::format::*;
use crate::ids::SegmentNo;

use super::super::bits::Bits;
use super::super::commit::Round;
use super::super::open::{IntentIdentity, judge, rewrite};
use super::super::page::Page;
use super::super::rule::Rule;
use super::super::shared::Shared;
use super::super::{Intent, WriteMark};
use super::memory_file::*;

/// Two pages, the second with a few regions.
pub(super) const SIZE: u64 = (INTENT_PAGE_REGIONS as u64 + 3) << 20;
const IDENTITY: IntentIdentity = IntentIdentity { domain: DOMAIN, disk: DISK, size: SIZE };

/// What a guest's write touches: regions on both sides of the border between the pages, one or two at a time.
pub(super) const PLACES: [(u32, u32); 6] = {
    let border = INTENT_PAGE_REGIONS;
    [(0, 1), (1, 1), (0, 2), (border - 1, 1), (border, 1), (border - 1, 2)]
};

/// One step.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// A write to a place begins.
    Begin(usize),
    /// One that waits looks again.
    Look(usize),
    /// One that waits is given up.
    GiveUp(usize),
    /// One that was let through ends: captured, on the disk only, or failed.
    Captured(usize),
    Uncaptured(usize),
    Failed(usize),
    /// A region is read back and captured, if it is unsynced.
    Resync(usize),
    /// The open segment is sealed, and the next one opened.
    Cut,
    /// One more sealed segment is accepted.
    Accept,
    /// What is not accepted is given up.
    Lose,
    /// The commit goes one step further: begin, write, sync, finish.
    Commit,
    /// The next write or sync of the file fails.
    FailCommit(bool),
    /// The guest's disk is synced for somebody else, well or badly.
    Flush(bool),
    /// Accepted segments clear bits; while the disk is synced, well or badly, other things happen.
    Clear(Vec<Op>, bool),
    /// Power is lost, and each page of the file is one of those that it may be; or only the process dies.
    PowerCut(u64),
    Kill,
}

/// A write, failed or not, of which it is not yet proved that the chain has it.
#[derive(Debug)]
struct Unproved {
    id: u64,
    /// When it was over.
    over: Option<u64>,
    /// Captured in, itself or what was read back after it.
    segment: Option<SegmentNo>,
    /// A sync that began after it was over has succeeded.
    synced: bool,
    /// A sync that should have covered it failed: no later one proves anything.
    lost: bool,
}

type Waiting = Pin<Box<dyn Future<Output = Result<WriteMark>>>>;

pub(super) struct World {
    rule: Rule,
    shared: Arc<Shared>,
    intent: Arc<Intent>,
    file: MemoryFile,
    round: Option<(Round, u32)>,
    waiting: Vec<((u32, u32), Waiting)>,
    in_flight: Vec<(u64, (u32, u32), WriteMark)>,
    unproved: BTreeMap<u32, Vec<Unproved>>,
    now: u64,
    open: u64,
    accepted: u64,
}

impl World {
    /// A disk that the chain has wholly.
    pub(super) fn new(rule: Rule) -> World {
        let shape = IntentShape::of(SIZE).unwrap();
        let set: Vec<Bits> = (0..shape.pages()).map(|n| Bits::none(shape.page_regions(n).len() as u32)).collect();
        let header = IntentHeader::new(IntentId::from_bytes([3; 16]), DOMAIN, DISK, &shape);
        let file = MemoryFile::new(header.clone(), &set);
        let (shared, intent) = over(header, set, rule);
        World {
            rule,
            shared,
            intent,
            file,
            round: None,
            waiting: Vec::new(),
            in_flight: Vec::new(),
            unproved: BTreeMap::new(),
            now: 0,
            open: 1,
            accepted: 0,
        }
    }

    /// Makes one step and checks the promise.
    pub(super) fn step(&mut self, op: &Op) -> Result<(), String> {
        self.now += 1;
        match op {
            Op::Begin(place) => self.begin(PLACES[place % PLACES.len()]),
            Op::Look(n) => self.look(*n),
            Op::GiveUp(n) => drop(take(&mut self.waiting, *n)),
            Op::Captured(n) => self.end(*n, |mark, open| mark.captured(open), true),
            Op::Uncaptured(n) => self.end(*n, |mark, _| mark.uncaptured(), false),
            Op::Failed(n) => self.end(*n, |mark, _| mark.failed(), false),
            Op::Resync(n) => self.resync(PLACES[n % PLACES.len()].0),
            Op::Cut => self.open += 1,
            Op::Accept => self.accepted = (self.accepted + 1).min(self.open - 1),
            Op::Lose => self.lose(),
            Op::Commit => self.commit(),
            Op::FailCommit(write) => match write {
                true => self.file.fail_write = true,
                false => self.file.fail_sync = true,
            },
            Op::Flush(good) => self.flush(self.now, *good),
            Op::Clear(meanwhile, good) => self.clear(meanwhile, *good)?,
            Op::PowerCut(random) => {
                let mut picks = *random | 1;
                self.file.cut_power(|n| {
                    picks = picks.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
                    picks as usize % n
                });
                self.restart();
            }
            Op::Kill => self.restart(),
        }
        self.check(op)
    }

    fn begin(&mut self, place: (u32, u32)) {
        let intent = Arc::clone(&self.intent);
        let range = u64::from(place.0) << 20..u64::from(place.0 + place.1) << 20;
        self.waiting.push((place, Box::pin(async move { intent.begin_write(range).await })));
        self.look(self.waiting.len() - 1);
    }

    fn look(&mut self, n: usize) {
        let Some((place, mut future)) = take(&mut self.waiting, n) else { return };
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => self.waiting.push((place, future)),
            Poll::Ready(Err(_)) => {}
            Poll::Ready(Ok(mark)) => {
                for region in place.0..place.0 + place.1 {
                    let write = Unproved { id: self.now, over: None, segment: None, synced: false, lost: false };
                    self.unproved.entry(region).or_default().push(write);
                }
                self.in_flight.push((self.now, place, mark));
            }
        }
    }

    fn end(&mut self, n: usize, how: fn(WriteMark, SegmentNo), captured: bool) {
        let Some((id, place, mark)) = take(&mut self.in_flight, n) else { return };
        how(mark, SegmentNo::new(self.open));
        for region in place.0..place.0 + place.1 {
            let writes = self.unproved.entry(region).or_default();
            for write in writes.iter_mut().filter(|w| w.id == id) {
                write.over = Some(self.now);
                write.segment = captured.then(|| SegmentNo::new(self.open));
            }
        }
    }

    /// Under the lock of the region's range: nothing that was let through is in flight there.
    fn resync(&mut self, region: u32) {
        let busy = self.in_flight.iter().any(|(_, (first, n), _)| (*first..first + n).contains(&region));
        if busy || !self.intent.is_unsynced(region) {
            return;
        }
        self.intent.synced(region, SegmentNo::new(self.open));
        for write in self.unproved.entry(region).or_default() {
            write.segment = write.segment.or(Some(SegmentNo::new(self.open)));
        }
    }

    fn lose(&mut self) {
        let last = SegmentNo::new(self.accepted);
        self.intent.lost_after(last);
        for write in self.unproved.values_mut().flatten() {
            write.segment = write.segment.filter(|s| *s <= last);
        }
        // As a new generation does; writes in flight are captured in segments that follow.
        self.open = self.accepted + 1;
    }

    fn commit(&mut self) {
        let Some((round, at)) = self.round.take() else {
            self.round = Round::begin(&self.shared).map(|round| (round, 0));
            return;
        };
        let done = match at {
            0 => round.write(&self.shared, &mut self.file),
            1 => round.sync(&self.shared, &mut self.file),
            _ => return round.finish(&self.shared),
        };
        match done {
            Ok(()) => self.round = Some((round, at + 1)),
            Err(e) => round.fail(&self.shared, &mut self.file, &e),
        }
    }

    /// A sync of the guest's disk that began at `begun` ends.
    fn flush(&mut self, begun: u64, good: bool) {
        for write in self.unproved.values_mut().flatten().filter(|w| w.over.is_some_and(|over| over < begun)) {
            write.synced |= good && !write.lost;
            write.lost |= !good && !write.synced;
        }
        if !good {
            self.intent.disk_sync_failed("made to fail");
        }
        self.prove();
    }

    fn clear(&mut self, meanwhile: &[Op], good: bool) -> Result<(), String> {
        let (intent, accepted) = (Arc::clone(&self.intent), SegmentNo::new(self.accepted));
        let mut nested = Ok(());
        let sync = || {
            let begun = self.now;
            nested = meanwhile.iter().try_for_each(|op| self.step(op));
            self.flush(begun, good);
            let failed = || Error::new(ErrorKind::Io, "made to fail");
            std::future::ready(if good { Ok(()) } else { Err(failed()) })
        };
        let _ = intent.clear_accepted(accepted, sync).now_or_never().expect("its sync is ready at once");
        nested
    }

    /// The process starts again on what it can read, which need not be what is durable.
    fn restart(&mut self) {
        let shape = IntentShape::of(SIZE).unwrap();
        let judged = judge(Path::new("intent"), &self.file.bytes(), &IDENTITY, &shape).unwrap();
        let header = judged.header.expect("its header is never written");
        (self.file.fail_write, self.file.fail_sync) = (false, false);
        rewrite(&mut self.file, &header, &judged.set).unwrap();
        (self.round, self.open) = (None, self.accepted + 1);
        self.waiting.clear();
        self.in_flight.clear();
        (self.shared, self.intent) = over(header, judged.set, self.rule);
        // What the disk holds now is what it is; whatever of it the chain has, nobody knows.
        for write in self.unproved.values_mut().flatten() {
            (write.over, write.segment, write.synced, write.lost) = (Some(self.now), None, false, false);
        }
    }

    fn prove(&mut self) {
        let accepted = SegmentNo::new(self.accepted);
        for writes in self.unproved.values_mut() {
            writes.retain(|w| !(w.synced && w.segment.is_some_and(|s| s <= accepted)));
        }
    }

    /// The promise: no image of the file lacks the bit of a region with a write that is not proved.
    fn check(&mut self, after: &Op) -> Result<(), String> {
        self.prove();
        for (region, writes) in &self.unproved {
            let Some(write) = writes.first() else { continue };
            let (page, n) = (region / INTENT_PAGE_REGIONS, (region % INTENT_PAGE_REGIONS) as usize);
            for image in self.file.images(page) {
                let opened = self.shared.header().open_page(page, image);
                if opened.is_ok_and(|p| p.bits[n / 8] >> (n % 8) & 1 == 0) {
                    return Err(format!("after {after:?}: region {region} may be clear, and {write:?}"));
                }
            }
            if !self.intent.is_set(*region) {
                return Err(format!("after {after:?}: region {region} is clear in memory, and {write:?}"));
            }
        }
        Ok(())
    }

    /// Everything ends well: then every bit is cleared, in memory and in the file.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        self.step(&Op::Kill)?;
        let mut from = 0;
        while let Some(region) = self.intent.next_unsynced(from) {
            self.resync(region);
            from = region + 1;
        }
        self.step(&Op::Cut)?;
        self.accepted = self.open - 1;
        self.step(&Op::Clear(vec![], true))?;
        (0..4).try_for_each(|_| self.step(&Op::Commit))?;
        let left = self.intent.report();
        let bytes = self.file.bytes();
        let judged = judge(Path::new("intent"), &bytes, &IDENTITY, self.shared.shape()).map_err(|e| e.to_string())?;
        match left.dirty_bytes == 0 && left.unsynced_bytes == 0 && judged.set.iter().all(|bits| bits.count() == 0) {
            true => Ok(()),
            false => Err(format!("not cleared in the end: {left:?}, file {:?}", judged.found)),
        }
    }
}

fn over(header: IntentHeader, set: Vec<Bits>, rule: Rule) -> (Arc<Shared>, Arc<Intent>) {
    let shape = header.shape().unwrap();
    let pages = set.into_iter().map(|set| Page::opened(set, rule)).collect();
    let shared = Arc::new(Shared::new(Path::new("intent"), header, shape, pages));
    (Arc::clone(&shared), Arc::new(Intent::over(shared, rule, 0)))
}

fn take<T>(from: &mut Vec<T>, n: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.remove(n % from.len()))
}
