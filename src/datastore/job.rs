//! An admitted request: the file it uses, what is left to do, and the reply it owes.
//!
//! Owns the permit of the request, if it needed one, until the reply is given. Invariant: every job replies exactly once, on a thread of
//! the engine, also when the code that carried it panicked or was dropped; the file is in use until after the reply.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::engine::{Completion, Done, Op, Request};
use super::gate::{Gate, Permit};
use super::slab::Slot;
use super::table::{Files, InUse};
use super::transfer::Transfer;
use crate::error::{Error, ErrorKind};

/// See the module's head.
pub(super) enum Job {
    /// A read or write.
    Transfer(Transfer, Reply),
    /// Anything else.
    Control(InUse, Control, Reply),
    /// Nothing to do but to say why.
    Refused(Error, Option<Slot>, Reply),
}

/// An [`Op`] without a buffer.
#[derive(Debug)]
pub(super) enum Control {
    Sync,
    PunchHole { offset: u64, len: u64 },
    ZeroRange { offset: u64, len: u64 },
    Allocate { offset: u64, len: u64 },
    SetLen(u64),
}

/// The reply that a job owes, and its room behind the gate where it came through it.
pub(super) struct Reply {
    done: Option<Done>,
    _permit: Option<Permit>,
}

impl Job {
    /// Waits for room, then makes a job of a request.
    pub(super) fn admit(gate: &Arc<Gate>, files: &Files, request: Request) -> Job {
        Job::new(Some(gate.enter()), files, request)
    }

    /// Makes a job of a request whose number is bounded elsewhere.
    pub(super) fn without_gate(files: &Files, request: Request) -> Job {
        Job::new(None, files, request)
    }

    fn new(permit: Option<Permit>, files: &Files, request: Request) -> Job {
        let reply = Reply { _permit: permit, done: Some(request.done) };
        let file = match files.enter(request.file) {
            Ok(file) => file,
            Err(error) => return Job::Refused(error, request.op.into_slot(), reply),
        };
        let control = match request.op {
            Op::Write { offset, slot, range } => {
                return Job::Transfer(Transfer::new(file, true, offset, slot, range), reply);
            }
            Op::Read { offset, slot, range } => {
                return Job::Transfer(Transfer::new(file, false, offset, slot, range), reply);
            }
            Op::SyncData => Control::Sync,
            Op::PunchHole { offset, len } => Control::PunchHole { offset, len },
            Op::ZeroRange { offset, len } => Control::ZeroRange { offset, len },
            Op::Allocate { offset, len } => Control::Allocate { offset, len },
            Op::SetLen(len) => Control::SetLen(len),
        };
        Job::Control(file, control, reply)
    }

    /// Does it with blocking calls and replies.
    pub(super) fn run(self) {
        match self {
            Job::Transfer(mut transfer, reply) => {
                let result = transfer.run();
                let (completion, _in_use) = transfer.finish(result);
                reply.send(completion);
            }
            Job::Control(file, control, reply) => {
                let result = match control {
                    Control::Sync => file.sync_data(),
                    Control::PunchHole { offset, len } => file.punch_hole(offset, len),
                    Control::ZeroRange { offset, len } => file.zero_range(offset, len),
                    Control::Allocate { offset, len } => file.allocate(offset, len),
                    Control::SetLen(len) => file.set_len(len),
                };
                reply.send(Completion { result: result.map(|()| 0), slot: None });
            }
            Job::Refused(error, slot, reply) => reply.send(Completion { result: Err(error), slot }),
        }
    }
}

impl Op {
    fn into_slot(self) -> Option<Slot> {
        match self {
            Op::Write { slot, .. } | Op::Read { slot, .. } => Some(slot),
            _ => None,
        }
    }
}

impl Reply {
    /// Tells the requester; a panic of its callback is reported and goes no further.
    pub(super) fn send(mut self, completion: Completion) {
        self.tell(completion);
    }

    fn tell(&mut self, completion: Completion) {
        if let Some(done) = self.done.take()
            && catch_unwind(AssertUnwindSafe(|| done(completion))).is_err()
        {
            tracing::error!("the callback of a disk request panicked");
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let error = Error::new(ErrorKind::Internal, "the disk engine failed while it carried a request");
        self.tell(Completion { result: Err(error), slot: None });
    }
}
