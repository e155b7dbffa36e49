//! Durable write-intent bitmap of one protected disk: which regions the chain may lack, known before they are written.
//!
//! ```text
//!  guest write: lock range -> begin_write -> local disk write -> capture -> mark.captured(segment) -> acknowledge
//!                                |  all regions marked: goes on at once
//!                                |  a clean region: set its bit, wait
//!                                v
//!                  commit thread: changed pages -> write -> one fdatasync for all that wait
//!
//!  segments accepted: clear_accepted -> candidates -> fdatasync of the disk -> check again -> clear in memory
//!                                                        (reaches the file with a later commit)
//! ```
//!
//! # The rule
//! **A bit is never clear on stable storage while a write to its region has been let through and is not proved**, that is:
//! captured (or read back and captured after it), accepted, and covered by a local fdatasync that began after it was done.
//! After a crash the set regions are read back and shipped again, so a bit too many costs a resync of its region and a bit
//! too few would be a silent gap.
//!
//! # Why it holds
//! For each region memory knows *set* (what the file shall say), *marked* (what the file is sure to say, whatever commit
//! is torn or fails), and *unsynced* (its content was written or may have been written and is not in the chain).
//!
//! 1. *A write is let through only while its regions are marked*, and counts as in flight from before that is looked at.
//! 2. *What is marked stays set in the file.* One thread commits. It takes a copy S of a page's set bits, writes it and
//!    syncs; until then the page holds the copy before, S, or a torn mix that no reader takes for anything but all set. A
//!    bit becomes marked only at the end of a commit, where it is in S and still set: then the file says so and no
//!    commit is under way. A bit that is cleared stops being marked in the same step. So at the begin of any commit all
//!    marked bits are set, hence in S, hence in the file before, during and after it, torn or not.
//! 3. *A bit that was cleared and is set again is not marked*, although the file may still hold it set from before: a
//!    commit that clears it may be under way. It waits for the end of one whose S holds it. If S was taken before the
//!    bit was cleared and set again, its end may mark the bit as well: the file holds exactly S then.
//! 4. *A bit is cleared only when all writes to its region are proved.* Candidates have nothing in flight, are not
//!    unsynced, and their last captured segment is accepted. Then the disk is synced, which covers all that was done
//!    before. Then each is looked at again under the lock that [`Intent::begin_write`] takes: if a write began
//!    meanwhile, done or not, it stays. A write that failed, or was done without being captured, makes its region unsynced,
//!    and only reading the region back and capturing that ([`Intent::synced`]) ends it.
//! 5. *A failed sync proves nothing, and neither does the next one.* A failed commit poisons the bitmap: nobody is let
//!    through any more, its pages are overwritten with bytes that no reader believes, and opening writes and syncs every
//!    page before it trusts any, since the page cache may show what the disk lost. A failed sync of the guest's disk
//!    ends clearing until the disk is opened again ([`Intent::disk_sync_failed`]).
//!
//! Limits: one page of 4 KiB for 32,256 regions, 256 pages at most, three bits of memory for each region and some 40 bytes
//! for each that was written and is not cleared yet. Writes in flight are bounded by the callers. Hot regions keep their
//! bits: one is cleared only after it was quiet for some calls of `clear_accepted`.

mod bits;
mod commit;
mod file;
mod handle;
mod mark;
mod open;
mod page;
mod range_lock;
mod rule;
mod shared;
#[cfg(test)]
mod tests;

pub use handle::{Intent, IntentReport};
pub use mark::WriteMark;
pub(crate) use open::look;
pub use open::{Found, IntentIdentity, IntentOptions};
pub use range_lock::{RangeGuard, RangeLock};
