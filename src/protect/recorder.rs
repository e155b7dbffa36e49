//! Sequence at capture: every write joins the open segment before it is acknowledged, and segments are cut whole.
//!
//! Owns the numbers of segments until they are sealed, the decision when one is cut, and the point that each ends at.
//! What a point covers is decided under the lock under which writes join, so that no later write slips in before it.
//! Compresses nothing and asks no store. Bounded by the arenas: a write waits for one; where none comes in
//! time, capturing pauses.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, TrySendError};
use tokio::sync::Notify;

use super::arena::ArenaPool;
use super::batch::Batch;
use crate::clock::{Clock, next_point_time};
use crate::format::{IndexDisk, Point, PointFlags};
use crate::ids::{SegmentNo, Time, VmId};

/// Cuts without data that may wait to be packed.
pub(crate) const MAX_EMPTY_CUTS: usize = 16;

/// Which VMs a point covers that is cut now. Asked under the recorder's lock: it must be quick and must not call back.
pub(crate) trait Coverage: Send + Sync {
    /// Those of whose disks the chain has everything that was acknowledged.
    fn covered(&self) -> Vec<VmId>;
}

/// A segment that was cut and is to be packed.
#[derive(Debug)]
pub(crate) struct Cut {
    /// What was written.
    pub(crate) batch: Batch,
    /// The point that the segment ends at.
    pub(crate) point: Point,
    /// When that was, by a clock that never jumps.
    pub(crate) at: Instant,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It joined this segment.
    Captured(SegmentNo),
    /// Nothing is captured now, or there was no room in time.
    Not,
}

/// What changes a range of a disk.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Written<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// So many zeros.
    Zeros(u64),
}

struct State {
    open: Option<Batch>,
    next: SegmentNo,
    capturing: bool,
    coverage: Arc<dyn Coverage>,
    last_point: Option<Time>,
    last_cut: Instant,
    cuts: Option<Sender<Cut>>,
}

/// See the module.
pub(crate) struct Recorder {
    pool: Arc<ArenaPool>,
    clock: Arc<dyn Clock>,
    wait: Duration,
    state: Mutex<State>,
    /// Told when a write found no room in time.
    overrun: Notify,
}

impl Recorder {
    /// A recorder whose first segment is `first`; cuts go to `cuts`, which has room for [`ArenaPool::count`] and
    /// [`MAX_EMPTY_CUTS`] more. A write waits for room for `wait` at most. Captures nothing until told.
    pub(crate) fn new(
        pool: Arc<ArenaPool>,
        clock: Arc<dyn Clock>,
        wait: Duration,
        first: SegmentNo,
        last_point: Option<Time>,
        coverage: Arc<dyn Coverage>,
        cuts: Sender<Cut>,
    ) -> Recorder {
        let state = State {
            open: None,
            next: first,
            capturing: false,
            coverage,
            last_point,
            last_cut: Instant::now(),
            cuts: Some(cuts),
        };
        Recorder { pool, clock, wait, state: Mutex::new(state), overrun: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Captures what was read back, under its range lock. Answers with the segment that it joined.
    pub(crate) async fn record(&self, disk: &IndexDisk, offset: u64, written: Written<'_>) -> Taken {
        let mut patience = self.wait;
        self.record_within(disk, offset, written, &mut patience).await
    }

    /// Captures a write that is on the local disk, under its range lock. Waits for room for `patience` at most, and takes
    /// off it what it waited: a write of several parts is held no longer than one of a single part.
    pub(crate) async fn record_within(
        &self,
        disk: &IndexDisk,
        offset: u64,
        written: Written<'_>,
        patience: &mut Duration,
    ) -> Taken {
        let mut began = None;
        loop {
            let freed = self.pool.freed();
            tokio::pin!(freed);
            // Registered before it is looked whether one is free, so that none that comes back between is missed.
            freed.as_mut().enable();
            if let Some(taken) = self.try_record(disk, offset, written) {
                let waited = began.map_or(Duration::ZERO, |began: Instant| began.elapsed());
                *patience = patience.saturating_sub(waited);
                return taken;
            }
            let began = *began.get_or_insert_with(Instant::now);
            let left = patience.saturating_sub(began.elapsed());
            if tokio::time::timeout(left, freed).await.is_err() {
                *patience = Duration::ZERO;
                // At once, so that nobody behind this write waits as long again.
                self.pause();
                self.overrun.notify_one();
                return Taken::Not;
            }
        }
    }

    /// `None` where there is no room now.
    fn try_record(&self, disk: &IndexDisk, offset: u64, written: Written<'_>) -> Option<Taken> {
        let mut state = self.lock();
        if !state.capturing {
            return Some(Taken::Not);
        }
        let fits = |batch: &Batch| match written {
            Written::Bytes(bytes) => batch.fits(bytes.len()),
            Written::Zeros(_) => batch.fits_zeros(),
        };
        if state.open.as_ref().is_some_and(|open| !fits(open)) {
            self.cut(&mut state);
        }
        if state.open.is_none() {
            let arena = self.pool.take()?;
            state.open = Some(Batch::new(state.next, Some(arena)));
            state.next = state.next.next();
        }
        let open = state.open.as_mut()?;
        match written {
            Written::Bytes(bytes) => open.put(disk, offset, bytes, Instant::now()),
            Written::Zeros(len) => open.put_zeros(disk, offset, len, Instant::now()),
        }
        Some(Taken::Captured(open.number()))
    }

    /// Cuts the open segment, if there is one; answers whether.
    fn cut(&self, state: &mut State) -> bool {
        let Some(batch) = state.open.take() else { return false };
        self.send(state, batch, PointFlags::default())
    }

    fn send(&self, state: &mut State, batch: Batch, flags: PointFlags) -> bool {
        let Some(cuts) = &state.cuts else { return false };
        let time = next_point_time(self.clock.now(), state.last_point);
        let point = Point::new(time, flags, state.coverage.covered());
        let at = Instant::now();
        match cuts.try_send(Cut { batch, point, at }) {
            Ok(()) => {
                state.last_point = Some(time);
                state.last_cut = at;
                true
            }
            // There is room for all arenas, so this is the end of the packers.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                state.capturing = false;
                state.cuts = None;
                false
            }
        }
    }

    /// Cuts the open segment where its first write is older than `age`; where nothing was written for `idle`, an empty
    /// one, so that idle and dead look different.
    pub(crate) fn cut_if_due(&self, age: Duration, idle: Duration) {
        let mut state = self.lock();
        let old = |batch: &Batch| batch.first_write().is_some_and(|first| first.elapsed() >= age);
        if state.open.as_ref().is_some_and(old) {
            self.cut(&mut state);
        } else if state.capturing && state.open.is_none() && state.last_cut.elapsed() >= idle {
            self.cut_empty(&mut state, PointFlags::default());
        }
    }

    /// Cuts now, an empty segment where nothing was written. Answers with the segment that ends at the point; `None`
    /// where nothing is captured, or too many cuts wait already.
    pub(crate) fn cut_now(&self) -> Option<SegmentNo> {
        self.cut_marked(PointFlags::default())
    }

    /// The same; the point carries these marks.
    pub(crate) fn cut_marked(&self, flags: PointFlags) -> Option<SegmentNo> {
        let mut state = self.lock();
        if !state.capturing {
            return None;
        }
        match state.open.take() {
            Some(batch) => {
                let number = batch.number();
                self.send(&mut state, batch, flags).then_some(number)
            }
            None => self.cut_empty(&mut state, flags),
        }
    }

    fn cut_empty(&self, state: &mut State, flags: PointFlags) -> Option<SegmentNo> {
        let waiting = state.cuts.as_ref().map_or(usize::MAX, Sender::len);
        if waiting >= MAX_EMPTY_CUTS {
            return None;
        }
        let number = state.next;
        state.next = number.next();
        self.send(state, Batch::new(number, None), flags).then_some(number)
    }

    /// Starts to capture. Writes from now on join segments.
    pub(crate) fn resume(&self) {
        let mut state = self.lock();
        state.capturing = state.cuts.is_some();
    }

    /// Stops to capture; what was captured is cut, and ends at the last consistent point.
    pub(crate) fn pause(&self) {
        let mut state = self.lock();
        self.cut(&mut state);
        state.capturing = false;
    }

    /// Whether it captures.
    pub(crate) fn is_capturing(&self) -> bool {
        self.lock().capturing
    }

    /// Ends it: what was captured is cut, and the packers find the end of the cuts.
    pub(crate) fn close(&self) {
        self.pause();
        self.lock().cuts = None;
    }

    /// The last segment that was given a number.
    pub(crate) fn newest(&self) -> SegmentNo {
        SegmentNo::new(self.lock().next.get() - 1)
    }

    /// Bytes of arenas that are in use, and of all.
    pub(crate) fn arena_bytes(&self) -> (u64, u64) {
        self.pool.bytes()
    }

    /// Arenas that are free.
    pub(crate) fn free_arenas(&self) -> usize {
        self.pool.free()
    }

    /// Resolves when a write found no room in time since the last call.
    pub(crate) fn overrun(&self) -> impl Future<Output = ()> + '_ {
        self.overrun.notified()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use crossbeam::channel::{Receiver, bounded};

    use super::*;
    use crate::clock::SystemClock;
    use crate::ids::DiskId;

    struct Switch(AtomicBool);

    impl Coverage for Switch {
        fn covered(&self) -> Vec<VmId> {
            if self.0.load(Ordering::Relaxed) { vec![VmId::from_bytes([1; 16])] } else { Vec::new() }
        }
    }

    fn recorder(arenas: usize, wait: Duration) -> (Recorder, Receiver<Cut>, Arc<Switch>) {
        let (cuts, received) = bounded(arenas + MAX_EMPTY_CUTS);
        let switch = Arc::new(Switch(AtomicBool::new(true)));
        let pool = ArenaPool::new(arenas, 8192);
        let first = SegmentNo::new(5);
        let last = Some(Time::from_millis(u64::MAX / 2));
        let recorder = Recorder::new(pool, Arc::new(SystemClock), wait, first, last, switch.clone(), cuts);
        (recorder, received, switch)
    }

    fn disk() -> IndexDisk {
        IndexDisk { id: DiskId::from_bytes([2; 16]), vm: VmId::from_bytes([1; 16]), size: 1 << 20 }
    }

    #[tokio::test]
    async fn segments_are_cut_by_size_and_wish_and_numbers_have_no_gaps() {
        let (recorder, cuts, covered) = recorder(3, Duration::from_secs(5));
        let put = async |at: u64| recorder.record(&disk(), at, Written::Bytes(&[1; 4096])).await;
        assert_eq!(put(0).await, Taken::Not, "not told to capture");
        recorder.resume();
        let n = SegmentNo::new;
        assert_eq!((put(0).await, put(8192).await), (Taken::Captured(n(5)), Taken::Captured(n(5))));
        assert_eq!(put(65536).await, Taken::Captured(n(6)), "the first was full");
        covered.0.store(false, Ordering::Relaxed);
        let quiesced = PointFlags { quiesced: true, ..PointFlags::default() };
        assert_eq!((recorder.cut_marked(quiesced), recorder.cut_now()), (Some(n(6)), Some(n(7))));
        recorder.pause();
        assert_eq!((recorder.cut_now(), put(0).await, recorder.newest()), (None, Taken::Not, n(7)));
        recorder.close();
        let got: Vec<Cut> = cuts.iter().collect();
        let numbers: Vec<u64> = got.iter().map(|c| c.batch.number().get()).collect();
        assert_eq!((numbers, got[2].batch.is_empty()), (vec![5, 6, 7], true));
        assert!(got.windows(2).all(|w| w[0].point.time < w[1].point.time), "though the clock is far behind");
        assert_eq!(got.iter().map(|c| c.point.vms.len()).collect::<Vec<_>>(), [1, 0, 0]);
        assert_eq!(got.iter().map(|c| c.point.flags.quiesced).collect::<Vec<_>>(), [false, true, false]);
    }

    #[tokio::test]
    async fn a_write_without_room_waits_and_is_then_not_captured() {
        let (recorder, cuts, _) = recorder(1, Duration::from_millis(20));
        recorder.resume();
        let bytes = [1; 8192];
        assert_eq!(recorder.record(&disk(), 0, Written::Bytes(&bytes)).await, Taken::Captured(SegmentNo::new(5)));
        assert_eq!(recorder.record(&disk(), 8192, Written::Bytes(&bytes)).await, Taken::Not);
        recorder.overrun().await;
        drop(cuts.recv().unwrap());
        assert!(!recorder.is_capturing());
        recorder.resume();
        assert_eq!(recorder.record(&disk(), 8192, Written::Bytes(&bytes)).await, Taken::Captured(SegmentNo::new(6)));
    }

    #[tokio::test]
    async fn a_write_of_many_parts_is_held_no_longer_than_one_of_a_single_part() {
        let (recorder, _cuts, _) = recorder(1, Duration::from_secs(5));
        recorder.resume();
        let (bytes, mut patience) = ([1; 8192], Duration::from_millis(20));
        let put =
            async |patience: &mut Duration| recorder.record_within(&disk(), 0, Written::Bytes(&bytes), patience).await;
        put(&mut patience).await;
        assert_eq!(patience, Duration::from_millis(20), "there was room");
        assert_eq!((put(&mut patience).await, patience), (Taken::Not, Duration::ZERO));
        recorder.resume();
        // The next part of the same write: at once, or this would take for ever.
        assert_eq!((put(&mut patience).await, patience), (Taken::Not, Duration::ZERO));
    }

    #[tokio::test]
    async fn age_cuts_what_was_written_and_idleness_an_empty_one() {
        let (recorder, cuts, _) = recorder(2, Duration::from_secs(5));
        recorder.resume();
        let hour = Duration::from_secs(3600);
        recorder.cut_if_due(hour, hour);
        assert!(cuts.is_empty());
        recorder.cut_if_due(hour, Duration::ZERO);
        assert!(cuts.recv().unwrap().batch.is_empty());
        recorder.record(&disk(), 0, Written::Zeros(4096)).await;
        recorder.cut_if_due(hour, Duration::ZERO);
        assert!(cuts.is_empty(), "neither old nor idle");
        recorder.cut_if_due(Duration::ZERO, hour);
        assert_eq!(cuts.recv().unwrap().batch.written(), 4096);
    }
}
