//! The ring against a model that paints every block of it with the segment whose bytes stand there.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;

use super::super::ring::{Mark, Ring};
use crate::format::{LOG_BLOCK, log_record_len};
use crate::ids::{Generation, SegmentNo, SegmentRef};

const BLOCKS: u64 = 24;

#[derive(Debug, Clone)]
enum Action {
    Reserve(u64),
    Written(usize),
    Sync,
    Trim(u64),
    Free,
    Rewind(u64),
    Reset(u64),
}

// The weights keep the ring mostly full, where its rules matter.
fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (1_u64..40_000).prop_map(Action::Reserve),
        6 => (0_usize..8).prop_map(Action::Written),
        4 => Just(Action::Sync),
        3 => (0_u64..6).prop_map(Action::Trim),
        3 => Just(Action::Free),
        1 => (0_u64..6).prop_map(Action::Rewind),
        1 => (0_u64..1000).prop_map(Action::Reset),
    ]
}

/// What must hold, kept in the most naive way.
#[derive(Default)]
struct Model {
    /// Segment in each block of the ring that may not be written over.
    paint: HashMap<u64, u64>,
    /// Segments: number, position, length, written.
    held: VecDeque<(u64, u64, u64, bool)>,
    durable: u64,
    /// Trimmed, and waiting for the superblock.
    leaving: Vec<u64>,
}

impl Model {
    fn reserve(&mut self, n: u64, position: u64, len: u64) {
        for block in position / LOG_BLOCK..(position + len) / LOG_BLOCK {
            let before = self.paint.insert(block % BLOCKS, n);
            assert_eq!(before, None, "segment {n} overwrites one that is held");
        }
        self.held.push_back((n, position, len, false));
    }

    fn drop_paint(&mut self, n: u64) {
        self.paint.retain(|_, owner| *owner != n);
    }

    fn ready(&self) -> u64 {
        let mut ready = self.durable;
        for (n, .., written) in &self.held {
            match (*n > self.durable, written) {
                (false, _) => {}
                (true, true) => ready = *n,
                (true, false) => break,
            }
        }
        ready
    }
}

fn run(actions: Vec<Action>) {
    let generation = Generation::new(1);
    let id = |n| SegmentRef::new(generation, SegmentNo::new(n));
    let start = Mark { position: 7 * LOG_BLOCK, last: id(4) };
    let mut ring = Ring::new(BLOCKS * LOG_BLOCK, start.position, SegmentNo::ZERO, VecDeque::new(), start);
    let mut model = Model { durable: 4, ..Model::default() };
    let mut last = 4;
    for action in actions {
        match action {
            Action::Reserve(payload) => {
                assert!(ring.reserve(id(last + 2), payload).is_err(), "a gap was accepted");
                let len = log_record_len(payload);
                match ring.reserve(id(last + 1), payload).unwrap() {
                    Some(position) => {
                        last += 1;
                        model.reserve(last, position, len);
                    }
                    None => assert!(
                        model.paint.len() as u64 * LOG_BLOCK + len > BLOCKS * LOG_BLOCK,
                        "refused though there is space"
                    ),
                }
            }
            Action::Written(nth) => {
                if let Some(record) = model.held.iter_mut().filter(|r| !r.3).nth(nth) {
                    record.3 = true;
                    ring.written(record.1);
                }
            }
            Action::Sync => {
                ring.synced_to(ring.ready());
                model.durable = model.ready();
            }
            Action::Trim(count) => {
                let first = model.held.front().map_or(last + 1, |r| r.0);
                let up_to = first + count - 1;
                let trimmed = ring.trim(SegmentNo::new(up_to));
                assert_eq!(trimmed.is_err(), up_to > model.durable, "trim to {up_to}, durable {}", model.durable);
                while trimmed.is_ok() && model.held.front().is_some_and(|r| r.0 <= up_to) {
                    model.leaving.push(model.held.pop_front().unwrap().0);
                }
            }
            Action::Free => {
                ring.free_to(ring.tail());
                for n in std::mem::take(&mut model.leaving) {
                    model.drop_paint(n);
                }
            }
            Action::Rewind(back) => {
                let to = last.saturating_sub(back);
                let first = model.held.front().map_or(last + 1, |r| r.0);
                let quiet = model.durable == last;
                let done = ring.rewind(id(to));
                assert_eq!(done.is_ok(), quiet && to + 1 >= first, "rewind to {to}, first {first}");
                while done.is_ok() && last > to {
                    let (n, ..) = model.held.pop_back().unwrap();
                    model.drop_paint(n);
                    last -= 1;
                }
                model.durable = model.durable.min(last);
            }
            Action::Reset(to) => {
                if ring.reset(id(to)).is_ok() {
                    assert_eq!(model.durable, last, "reset of a log that is being written");
                    model.held.drain(..).for_each(|r| model.leaving.push(r.0));
                    // Numbers may come again: what is left of the old ones gets a paint of its own.
                    model.paint.values_mut().for_each(|owner| *owner = u64::MAX);
                    model.leaving = if model.paint.is_empty() { vec![] } else { vec![u64::MAX] };
                    (last, model.durable) = (to, to);
                }
            }
        }
        check(&ring, &model, last);
    }
}

fn check(ring: &Ring, model: &Model, last: u64) {
    assert_eq!(ring.head().last.segment.get(), last);
    assert_eq!(ring.synced().last.segment.get(), model.durable);
    assert_eq!(ring.ready().last.segment.get(), model.ready());
    assert_eq!(ring.first().get(), model.held.front().map_or(0, |r| r.0));
    assert_eq!(ring.records().count(), model.held.len());
    for (n, position, len, _) in &model.held {
        let record = ring.find(SegmentNo::new(*n)).unwrap();
        assert_eq!((record.position, record.len), (*position, *len));
    }
    assert!(ring.find(SegmentNo::new(last + 1)).is_none());
    assert!(ring.tail() <= ring.synced().position && ring.ready().position <= ring.head().position);
    assert!(ring.used() <= ring.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_ring_is_what_the_model_says(actions in prop::collection::vec(action(), 1..120)) {
        run(actions);
    }
}

#[test]
fn a_segment_that_fills_the_ring_goes_round_many_times() {
    let id = |n| SegmentRef::new(Generation::new(1), SegmentNo::new(n));
    let mut ring = Ring::new(BLOCKS * LOG_BLOCK, 0, SegmentNo::ZERO, VecDeque::new(), Mark::default());
    let whole = (BLOCKS - 1) * LOG_BLOCK;
    assert!(ring.reserve(id(1), whole + 1).is_err());
    for n in 1..100 {
        let position = ring.reserve(id(n), whole).unwrap().unwrap();
        assert_eq!(position, (n - 1) * BLOCKS * LOG_BLOCK);
        assert_eq!(ring.reserve(id(n + 1), 1).unwrap(), None);
        ring.written(position);
        ring.synced_to(ring.ready());
        ring.trim(SegmentNo::new(n)).unwrap();
        assert_eq!(ring.reserve(id(n + 1), 1).unwrap(), None, "free before the superblock is durable");
        ring.free_to(ring.tail());
    }
}
