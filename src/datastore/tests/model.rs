//! Random requests against a vector of bytes.
//!
//! A batch is a run of touching ranges, all written at once: they share pages at every seam, which is where writes
//! through the cache and direct ones could harm each other.

use crossbeam::channel;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{Rig, Variant, on_every_engine, pattern};
use crate::datastore::{Op, Request};
use crate::error::ErrorKind;

on_every_engine!(a_file_is_a_vector_of_bytes);

const SIZE: usize = 100_000;

#[derive(Debug, Clone)]
enum Step {
    /// Writes that touch, submitted without waiting: where the first begins, and how long each is.
    Batch(usize, Vec<usize>),
    Read(usize, usize),
    PunchHole(usize, usize),
    ZeroRange(usize, usize),
    SetLen(usize),
    Sync,
}

/// Lengths and offsets, most of them near the edge of a block.
fn position(most: usize) -> impl Strategy<Value = usize> {
    prop_oneof![
        0..most,
        (0..=most / 512).prop_map(|n| n * 512),
        (0..=most / 4096).prop_map(|n| n * 4096),
        (0..=most / 4096, -1isize..=1).prop_map(|(n, by)| (n * 4096).saturating_add_signed(by)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (position(SIZE), prop::collection::vec(position(20_000), 1..8)).prop_map(|(at, lens)| Step::Batch(at, lens)),
        3 => (position(SIZE), position(60_000)).prop_map(|(at, len)| Step::Read(at, len)),
        1 => (position(SIZE), position(30_000)).prop_map(|(at, len)| Step::PunchHole(at, len)),
        1 => (position(SIZE), position(30_000)).prop_map(|(at, len)| Step::ZeroRange(at, len)),
        1 => position(SIZE).prop_map(Step::SetLen),
        1 => Just(Step::Sync),
    ]
}

fn a_file_is_a_vector_of_bytes(variant: Variant) {
    let rig = Rig::new(variant);
    let config = Config { cases: 40, failure_persistence: None, ..Config::default() };
    let steps = prop::collection::vec(step(), 1..12);
    let run = |steps: Vec<Step>| {
        let file = rig.file("disk", &pattern(0, 50_000));
        let mut model = pattern(0, 50_000);
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Batch(at, lens) => batch(&rig, file, &mut model, n as u64, at, &lens),
                Step::Read(at, len) => {
                    let mut bytes = vec![0xee; len];
                    let read = rig.engine.read_blocking(file, at as u64, &mut bytes).unwrap();
                    let end = (at + len).min(model.len());
                    prop_assert_eq!(read, end.saturating_sub(at));
                    prop_assert!(bytes[..read] == model[at.min(end)..end], "read of {} at {}", len, at);
                }
                Step::PunchHole(at, len) => {
                    rig.engine.punch_hole_blocking(file, at as u64, len as u64).unwrap();
                    let end = (at + len).min(model.len());
                    model[at.min(end)..end].fill(0);
                }
                Step::ZeroRange(at, len) => {
                    let op = Op::ZeroRange { offset: at as u64, len: len as u64 };
                    match rig.engine.execute(file, op).result {
                        Ok(_) => {
                            let end = (at + len).min(model.len());
                            model[at.min(end)..end].fill(0);
                        }
                        // Not on every file system; then nothing is changed.
                        Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Unsupported),
                    }
                }
                Step::SetLen(len) => {
                    rig.engine.set_len_blocking(file, len as u64).unwrap();
                    model.resize(len, 0);
                }
                Step::Sync => rig.engine.sync_blocking(file).unwrap(),
            }
        }
        rig.engine.close(file).unwrap();
        prop_assert_eq!(rig.slab.in_use(), 0);
        prop_assert!(rig.contents("disk") == model);
        Ok(())
    };
    TestRunner::new(config).run(&steps, run).unwrap();
}

fn batch(rig: &Rig, file: crate::datastore::FileId, model: &mut Vec<u8>, seed: u64, mut at: usize, lens: &[usize]) {
    let (sender, results) = channel::bounded(lens.len());
    for (n, &len) in lens.iter().enumerate() {
        let bytes = pattern(seed * 100 + n as u64, len);
        if model.len() < at + len && len > 0 {
            model.resize(at + len, 0);
        }
        // An empty write past the end does not grow the file, so it may lie outside the model.
        if len > 0 {
            model[at..at + len].copy_from_slice(&bytes);
        }
        let start = if seed.is_multiple_of(2) { at % 4096 } else { n };
        let mut slot = rig.slab.take();
        slot[start..start + len].copy_from_slice(&bytes);
        let sender = sender.clone();
        let done = Box::new(move |completion: crate::datastore::Completion| {
            sender.send(completion.result.map_err(|error| error.to_string())).unwrap();
        });
        rig.engine.submit(Request { file, op: Op::Write { offset: at as u64, slot, range: start..start + len }, done });
        at += len;
    }
    let mut written: Vec<usize> = lens.iter().map(|_| results.recv().unwrap().unwrap()).collect();
    let mut expected = lens.to_vec();
    written.sort_unstable();
    expected.sort_unstable();
    assert_eq!(written, expected);
}
