//! The replication log: a preallocated ring of segments on local storage, as they came, verified.
//!
//! ```text
//!  segment, verified --append--> space reserved --copy, digest--> buffers --O_DIRECT, several in flight--> ring
//!                                 |  full: waits                                                            |
//!                                 +<-- trim (applied, watermark durable)              one sync for many <---+
//!                                                                                          |
//!                       read(segment), verified again <-- landed: durable up to here <-----+
//! ```
//!
//! # What each sync buys
//!
//! * The sync of a commit: every record that was written before it began survives power loss. Only then `landed` moves.
//! * The next sync: also the superblock that says so, and that says what was trimmed. Only then trimmed space is used
//!   again, so a crash never leaves a superblock that points at overwritten records.
//! * The two syncs of opening: records after the last superblock are durable before they count as landed; and no
//!   record that recovery or a rewind dropped can come back, because the new epoch is durable before the first append.
//! * The sync of a file's directory when a log is made: the log's name survives.
//!
//! # Promises
//!
//! A landed segment is there after a crash, or reported as quarantined when its bytes were damaged, never silently cut
//! ([`RULES`] is the whole of what recovery decides). A record that is not trimmed is never overwritten: a full log
//! makes [`ReplicationLog::append`] wait. After a failed write or sync every operation fails until the log is opened
//! again, and that trusts nothing since the last good sync.
//!
//! Limits: memory is the buffers of the engine's slab plus 40 bytes for each record; one append at a time is copied.

mod append;
mod commit;
mod file;
mod handle;
mod open;
mod read;
mod recover;
mod ring;
mod shared;
mod superblock;
mod table;
#[cfg(test)]
mod tests;

pub use handle::{Held, LogIdentity, ReplicationLog};
pub(crate) use open::log_path;
pub use open::{LogOptions, LogRecovery, QuarantinedSegment};
pub use read::LogCursor;
pub use table::{Action, Finding, RULES, Region, Rule};
