//! The local disk: buffers, the engine that moves them to and from files and block devices, and who else uses those.
//!
//! ```text
//!  worker: slab.take() -> fill slot -> engine.submit(Write) --bounded queue--> ring or worker thread
//!                                                                                 |  aligned middle: O_DIRECT
//!                                                                                 |  odd head, tail: page cache
//!  slot comes back in the Completion  <------------- done(completion) <-----------+
//! ```
//!
//! Limits: slots of the slab bound the memory, the engine's queue depth bounds the requests queued and in flight.
//! Nothing here knows what the bytes mean.

mod blocking;
mod dir;
mod dir_lock;
mod engine;
mod faults;
mod file;
mod file_lock;
mod gate;
mod job;
mod occupants;
mod probe;
mod slab;
mod stamp;
mod table;
#[cfg(test)]
mod tests;
mod threads;
mod transfer;
mod two_slot;
mod uring;
mod workers;

pub use blocking::SLOT_WAIT;
pub(crate) use dir::sync_dir;
pub use dir_lock::DirLock;
pub use engine::{
    Access, Alignment, Completion, DiskEngine, Done, DrivenWork, EngineInfo, EngineKind, EngineOptions, FileId,
    FileInfo, Op, Request, drive_plainly, start,
};
pub use faults::{Call, Faults, Verdict};
pub(crate) use file_lock::{FileLock, take_lock};
pub(crate) use occupants::{ImageKey, Occupants, Suspect, claim_from_qemu, find as find_occupants};
pub use slab::{DEFAULT_SLOT_BYTES, SLOT_ALIGN, Slab, Slot};
pub(crate) use stamp::stamp;
pub use two_slot::{Loaded, TwoSlot};
