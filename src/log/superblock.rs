//! The two superblock slots: which one counts, and writing the next one.
//!
//! A superblock is written into the slot that does not hold the newest one, and the next is written only after a sync
//! made this one durable, so a crash tears at most one slot and the other is valid. [`Slots::is_pending`] tells whether
//! a sync is due; nothing that a pending superblock says may be relied upon.

use crate::error::{Error, Result};
use crate::format::{DatastoreId, DecodeError, LOG_BLOCK, LogSuperblock};
use crate::ids::DomainId;

use super::file::{BLOCK, LogFile};
use super::table::{Action, Finding, Region, decide};

/// Whose log it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    /// Domain.
    pub(super) domain: DomainId,
    /// Datastore.
    pub(super) datastore: DatastoreId,
}

type Decoded = Result<LogSuperblock, DecodeError>;

/// What two slots mean together. Pure.
pub(super) fn judge(
    slots: &[[u8; BLOCK]; 2],
    file_len: u64,
    expect: Option<&Identity>,
) -> (Finding, Option<LogSuperblock>) {
    let decoded: [Decoded; 2] = [LogSuperblock::open(&slots[0], 0), LogSuperblock::open(&slots[1], 1)];
    let newer = |d: &Decoded| matches!(d, Err(DecodeError::Version { .. }));
    if decoded.iter().any(newer) {
        return (Finding::NewerVersion, None);
    }
    let blank = slots.iter().any(|s| s.iter().all(|b| *b == 0));
    let (finding, newest) = match decoded {
        // Equal numbers would stand in the same slot, so one is always newer.
        [Ok(a), Ok(b)] if a.log != b.log || a.sequence.abs_diff(b.sequence) != 1 => return (Finding::Mixed, None),
        [Ok(a), Ok(b)] => (Finding::BothValid, if a.sequence > b.sequence { a } else { b }),
        [Ok(one), Err(_)] | [Err(_), Ok(one)] => (if blank { Finding::OneBlank } else { Finding::OneBad }, one),
        [Err(_), Err(_)] => return (Finding::NoneValid, None),
    };
    let finding = match expect {
        Some(e) if newest.domain != e.domain => Finding::OtherDomain,
        Some(e) if newest.datastore != e.datastore => Finding::OtherDatastore,
        _ if newest.file_len != file_len => Finding::WrongLength,
        _ => finding,
    };
    (finding, Some(newest))
}

/// Reads both slots and decides which one counts.
///
/// # Errors
/// As the decision table says.
pub(super) fn load(file: &LogFile, file_len: u64, expect: Option<&Identity>) -> Result<LogSuperblock> {
    // A slot that cannot be read is as good as a torn one.
    let slot = |n: u64| file.read_block(n * LOG_BLOCK).unwrap_or([0xff; BLOCK]);
    let (finding, superblock) = judge(&[slot(0), slot(1)], file_len, expect);
    let path = file.path().display();
    let rule = decide(Region::Slots, finding, path);
    let found = superblock.as_ref().map(|s| (s.domain, s.file_len));
    match (rule.action, superblock) {
        (Action::UseNewest, Some(superblock)) => Ok(superblock),
        (Action::Refuse(kind), _) => Err(Error::new(kind, refusal(file, finding, found, file_len, expect, rule.label))),
        (action, _) => unreachable!("{action:?} is no answer to {finding:?}: the table is constant"),
    }
}

fn refusal(
    file: &LogFile,
    finding: Finding,
    found: Option<(DomainId, u64)>,
    file_len: u64,
    expect: Option<&Identity>,
    label: &str,
) -> String {
    let (domain, said_len) = found.unwrap_or_default();
    let why = match finding {
        Finding::NewerVersion => "was written by a newer freshet: use that one".to_owned(),
        Finding::OtherDomain => {
            let ours = expect.map(|e| e.domain).unwrap_or_default();
            format!("holds segments of domain {domain}, not of {ours}: give this domain another log store")
        }
        Finding::OtherDatastore => {
            "belongs to another recovery datastore: give each datastore a log store of its own".to_owned()
        }
        Finding::WrongLength => format!("has {file_len} bytes but was made with {said_len}: it was cut or replaced"),
        Finding::Mixed => {
            "has superblocks that contradict each other: move it away, its segments come again".to_owned()
        }
        _ => "has no valid superblock: if it is a log, move it away, and its segments are fetched again".to_owned(),
    };
    format!("replication log {} {why} [{label}]", file.path().display())
}

/// The superblock on disk, and whether the last write of it is durable.
#[derive(Debug)]
pub(super) struct Slots {
    newest: LogSuperblock,
    pending: bool,
}

impl Slots {
    /// `newest` is durable.
    pub(super) fn new(newest: LogSuperblock) -> Slots {
        Slots { newest, pending: false }
    }

    /// What the newest superblock says.
    pub(super) fn newest(&self) -> &LogSuperblock {
        &self.newest
    }

    /// Whether it still has to be synced.
    pub(super) fn is_pending(&self) -> bool {
        self.pending
    }

    /// Writes `next`, which gets the next number, into the other slot.
    ///
    /// # Errors
    /// Those of the write; the log is to be poisoned then.
    pub(super) fn write(&mut self, file: &LogFile, mut next: LogSuperblock) -> Result<()> {
        assert!(!self.pending, "two superblocks in flight could tear both slots");
        next.sequence = self.newest.sequence + 1;
        self.pending = true;
        file.write_block((next.sequence % 2) * LOG_BLOCK, &next.encode())?;
        self.newest = next;
        Ok(())
    }

    /// A sync that began after the write has succeeded.
    pub(super) fn synced(&mut self) {
        self.pending = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::LogId;
    use crate::ids::{Generation, SegmentNo};

    fn superblock(sequence: u64) -> LogSuperblock {
        LogSuperblock {
            log: LogId::from_bytes([1; 16]),
            domain: DomainId::from_bytes([2; 16]),
            datastore: DatastoreId::from_bytes([3; 16]),
            sequence,
            file_len: 1 << 20,
            epoch: 1,
            tail: 0,
            head: 0,
            first: SegmentNo::ZERO,
            last_generation: Generation::ZERO,
            last_segment: SegmentNo::ZERO,
        }
    }

    fn judged(a: [u8; BLOCK], b: [u8; BLOCK], len: u64) -> (Finding, Option<u64>) {
        let expect = Identity { domain: DomainId::from_bytes([2; 16]), datastore: DatastoreId::from_bytes([3; 16]) };
        let (finding, newest) = judge(&[a, b], len, Some(&expect));
        (finding, newest.map(|s| s.sequence))
    }

    #[test]
    fn the_newest_valid_slot_counts() {
        let (five, six, len) = (superblock(5).encode(), superblock(6).encode(), 1 << 20);
        let (zero, torn) = ([0; BLOCK], [9; BLOCK]);
        assert_eq!(judged(six, five, len), (Finding::BothValid, Some(6)));
        assert_eq!(judged(superblock(4).encode(), five, len), (Finding::BothValid, Some(5)));
        assert_eq!(judged(torn, five, len), (Finding::OneBad, Some(5)));
        assert_eq!(judged(six, torn, len), (Finding::OneBad, Some(6)));
        assert_eq!(judged(zero, superblock(1).encode(), len), (Finding::OneBlank, Some(1)));
        assert_eq!(judged(zero, zero, len), (Finding::NoneValid, None));
        assert_eq!(judged(five, six, len), (Finding::NoneValid, None), "each in the other's slot");
    }

    #[test]
    fn what_no_crash_makes_is_refused() {
        let five = superblock(5);
        let len = five.file_len;
        let judged_with = |change: fn(&mut LogSuperblock)| {
            let mut six = superblock(6);
            change(&mut six);
            judged(six.encode(), five.encode(), len).0
        };
        assert_eq!(judged_with(|_| ()), Finding::BothValid);
        assert_eq!(judged_with(|s| s.log = LogId::from_bytes([9; 16])), Finding::Mixed);
        assert_eq!(judged_with(|s| s.sequence = 8), Finding::Mixed);
        assert_eq!(judged_with(|s| s.domain = DomainId::from_bytes([9; 16])), Finding::OtherDomain);
        assert_eq!(judged_with(|s| s.datastore = DatastoreId::from_bytes([9; 16])), Finding::OtherDatastore);
        assert_eq!(judged(superblock(6).encode(), five.encode(), len + 4096).0, Finding::WrongLength);
        let mut newer = superblock(6).encode();
        newer[8] = 0xff;
        assert_eq!(judged(newer, five.encode(), len), (Finding::NewerVersion, None));
    }
}
