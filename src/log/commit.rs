//! Making records durable: one thread that syncs, publishes what landed, writes superblocks and frees trimmed space.
//!
//! Group commit: while one sync runs, records complete, and the next sync covers them all. Many disks write nothing while
//! they sync; so that records complete on those too, a sync is followed by a rest as long as it took, [`MOST_REST`] at
//! most, unless [`ENOUGH`] waits. Syncs then take half of the time, and a segment lands one rest later. Each round:
//!
//! 1. note which records are written, then sync: they are durable, and so is the superblock of the round before;
//! 2. publish them as landed; free what that superblock no longer holds;
//! 3. write the next superblock, with the new head and tail. It is made durable by the sync of the next round, which
//!    comes after the rest when nothing else is to do.
//!
//! So `landed` waits for one sync only, and there is never more than one superblock that a crash could tear.

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::format::LogSuperblock;
use crate::ids::SegmentNo;

use super::file::LogFile;
use super::ring::{Mark, Ring};
use super::shared::{RewindTo, Shared};
use super::superblock::Slots;

/// Longest rest between two syncs.
const MOST_REST: Duration = Duration::from_millis(100);
/// Bytes that wait for a sync no longer.
const ENOUGH: u64 = 64 << 20;

/// What to do next.
enum Job {
    /// Sync, and then write the next superblock if it differs.
    Commit(Mark),
    /// Rewind a log in which everything is durable.
    Rewind,
    /// Nothing, for ever.
    End,
}

/// The thread: until the log is closing and all is durable, or poisoned.
pub(super) fn run(shared: &Shared, file: &LogFile, mut slots: Slots) {
    let _guard = shared.guard();
    let mut rest_until = Instant::now();
    loop {
        let done = match next_job(shared, &slots, rest_until) {
            Job::End => return,
            Job::Commit(mark) => {
                let begun = Instant::now();
                let done = commit(shared, file, &mut slots, mark);
                rest_until = Instant::now() + begun.elapsed().min(MOST_REST);
                done
            }
            Job::Rewind => rewind(shared, file, &mut slots),
        };
        if let Err(e) = done {
            shared.poison(&e);
        }
    }
}

fn next_job(shared: &Shared, slots: &Slots, rest_until: Instant) -> Job {
    let mut state = shared.peek();
    loop {
        if state.is_poisoned() {
            return Job::End;
        }
        let ring = &state.ring;
        let unsynced = ring.ready().position > ring.synced().position;
        if unsynced || slots.is_pending() || describe(slots.newest(), ring, state.epoch) != *slots.newest() {
            let waits = ring.ready().position - ring.synced().position;
            let rest = rest_until.saturating_duration_since(Instant::now());
            if rest.is_zero() || waits >= ENOUGH || state.closing || state.rewind.is_some() {
                return Job::Commit(ring.ready());
            }
            state = shared.wait_for(state, rest);
            continue;
        }
        let settled = ring.synced().position == ring.head().position;
        if settled && state.rewind.is_some() {
            return Job::Rewind;
        }
        if settled && state.closing {
            return Job::End;
        }
        state = shared.wait(state);
    }
}

fn commit(shared: &Shared, file: &LogFile, slots: &mut Slots, mark: Mark) -> Result<()> {
    let head = shared.peek().ring.synced();
    if mark.position > head.position || slots.is_pending() {
        file.sync()?;
        let was_pending = slots.is_pending();
        slots.synced();
        let mut state = shared.lock()?;
        state.ring.synced_to(mark);
        if was_pending {
            state.ring.free_to(slots.newest().tail);
        }
        state.publish();
        drop(state);
        shared.signal();
    }
    let next = {
        let state = shared.lock()?;
        describe(slots.newest(), &state.ring, state.epoch)
    };
    match next != *slots.newest() {
        true => slots.write(file, next),
        false => Ok(()),
    }
}

fn rewind(shared: &Shared, file: &LogFile, slots: &mut Slots) -> Result<()> {
    let next = {
        let mut state = shared.lock()?;
        let Some(to) = state.rewind.as_ref().map(|r| r.to) else { return Ok(()) };
        let done = match to {
            RewindTo::After(at) => state.ring.rewind(at),
            RewindTo::Reset(last) => state.ring.reset(last),
        };
        if let Err(e) = done {
            if let Some(request) = state.rewind.take() {
                let _ = request.reply.send(Err(e));
            }
            drop(state);
            shared.signal();
            return Ok(());
        }
        state.epoch += 1;
        describe(slots.newest(), &state.ring, state.epoch)
    };
    tracing::info!(log = %shared.path(), last = %next.last(), epoch = next.epoch, "log rewound");
    // Appends wait as long as the request stands: no record of the new epoch comes before this superblock.
    slots.write(file, next)?;
    file.sync()?;
    slots.synced();
    let mut state = shared.lock()?;
    state.ring.free_to(slots.newest().tail);
    state.publish();
    let request = state.rewind.take().ok_or_else(|| Error::new(ErrorKind::Internal, "a rewind got lost"))?;
    let _ = request.reply.send(Ok(()));
    drop(state);
    shared.signal();
    Ok(())
}

/// The superblock that follows `newest` and describes `ring`.
pub(super) fn describe(newest: &LogSuperblock, ring: &Ring, epoch: u64) -> LogSuperblock {
    let (synced, tail) = (ring.synced(), ring.tail());
    let first = if tail == synced.position { SegmentNo::ZERO } else { ring.first() };
    LogSuperblock {
        epoch,
        tail,
        head: synced.position,
        first,
        last_generation: synced.last.generation,
        last_segment: synced.last.segment,
        ..newest.clone()
    }
}
