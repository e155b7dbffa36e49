//! Opening a log: made anew, or found, judged and recovered.
//!
//! A new log is made under another name and renamed when its superblock is durable, so that a file with the log's name
//! always has one. An existing log is read ([`super::recover`]), what lies after the superblock's head is written again
//! and synced before it counts as landed, and a superblock with a new epoch is made durable before anything is appended.
//!
//! Writing the end region again is what makes reopening after a failed sync safe: a later sync reports success whether
//! or not the earlier data reached the disk, so nothing since the last good sync is trusted, though it reads well.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::datastore::{Access, DiskEngine, sync_dir};
use crate::error::{Error, ErrorKind, IoResultExt, Result, ResultExt};
use crate::format::{
    DatastoreId, LOG_BLOCK, LogId, LogSuperblock, MAX_LOG_LEN, MAX_SEGMENT_LEN, log_record_len, min_log_len,
};
use crate::ids::{DomainId, Generation, Name, SegmentNo, SegmentRef};

use super::file::{Locked, LogFile};
use super::recover::{Scan, scan};
use super::ring::{RecordState, Ring};
use super::superblock::{Identity, Slots, load};

/// What a log is opened for. All sizes in bytes.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// Domain whose segments it holds; the log of another one is refused.
    pub domain: DomainId,
    /// Datastore that it feeds; the log of another one is refused.
    pub datastore: DatastoreId,
    /// Size of the file, a multiple of 4096. An existing log is resized only when it holds nothing.
    pub size: u64,
    /// Longest segment that must fit, at most [`MAX_SEGMENT_LEN`].
    pub largest_segment: u64,
    /// Whether the payloads of all records are verified now, which reads the whole log. When not, damage is found when
    /// a segment is read; what a crash may have torn is verified in any case.
    pub verify_payloads: bool,
}

impl LogOptions {
    /// A log of `size` bytes that holds segments of any length, verified when it is opened.
    pub fn new(domain: DomainId, datastore: DatastoreId, size: u64) -> LogOptions {
        LogOptions { domain, datastore, size, largest_segment: MAX_SEGMENT_LEN, verify_payloads: true }
    }

    fn validate(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::new(ErrorKind::Invalid, text));
        if !(1..=MAX_SEGMENT_LEN).contains(&self.largest_segment) {
            return invalid(format!("largest segment of {} bytes: 1 to {MAX_SEGMENT_LEN}", self.largest_segment));
        }
        let need = min_log_len(self.largest_segment);
        if self.size < need {
            return invalid(format!(
                "log smaller than a segment: the log would have {} bytes, a segment of {} bytes needs {need}",
                self.size, self.largest_segment
            ));
        }
        if !self.size.is_multiple_of(LOG_BLOCK) || self.size > MAX_LOG_LEN {
            return invalid(format!(
                "log of {} bytes: must be a multiple of {LOG_BLOCK}, at most {MAX_LOG_LEN}",
                self.size
            ));
        }
        Ok(())
    }
}

/// A segment that the log promised and does not have whole any more: fetch it again from the storage site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuarantinedSegment {
    /// Its number.
    pub segment: SegmentNo,
    /// Its generation, where the record's header can be read.
    pub generation: Option<Generation>,
}

/// What opening a log found.
#[derive(Debug, Clone, Default)]
pub struct LogRecovery {
    /// The log was made now.
    pub created: bool,
    /// Segments that must be fetched again, in order.
    pub quarantined: Vec<QuarantinedSegment>,
    /// Segments after the last superblock that were accepted: written before an unclean stop.
    pub accepted_after_head: u64,
    /// Label of the decision that ended the log, see the decision table.
    pub ended_by: Option<&'static str>,
    /// For the operator, in words: what is not as was asked for.
    pub notes: Vec<String>,
}

/// All that the threads of a log start from.
pub(super) struct Opened {
    pub(super) file: LogFile,
    pub(super) slots: Slots,
    pub(super) ring: Ring,
    pub(super) recovery: LogRecovery,
}

/// Path of the log of domain `name`.
pub(crate) fn log_path(log_store: &Path, name: &Name) -> PathBuf {
    log_store.join(format!("{}.log", name.key()))
}

/// Opens or makes the log.
pub(super) fn open(
    engine: &Arc<dyn DiskEngine>,
    log_store: &Path,
    name: &Name,
    options: &LogOptions,
) -> Result<Opened> {
    options.validate()?;
    let path = log_path(log_store, name);
    let doing = || format!("open replication log {}", path.display());
    let Some(lock) = Locked::open(&path, false, Access::Write)? else {
        let superblock = blank_superblock(options);
        let file = create(engine, &path, &superblock).while_doing(doing)?;
        let mut opened = begin(file, superblock, options)?;
        opened.recovery.created = true;
        return Ok(opened);
    };
    let len = lock.len()?;
    let file = LogFile::open(Arc::clone(engine), &path, lock, len, Access::Write)?;
    let identity = Identity { domain: options.domain, datastore: options.datastore };
    let superblock = load(&file, len, Some(&identity))?;
    let mut opened = begin(file, superblock, options).while_doing(doing)?;
    if len != options.size {
        opened = resize(engine, opened, options, len).while_doing(doing)?;
    }
    let ring = opened.ring.len();
    if ring < log_record_len(options.largest_segment) {
        let need = min_log_len(options.largest_segment);
        let text = format!(
            "replication log {}: log smaller than a segment: it has {len} bytes, a segment of {} bytes needs {need}; it \
             still holds segments, so it was not resized",
            path.display(),
            options.largest_segment
        );
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok(opened)
}

fn blank_superblock(options: &LogOptions) -> LogSuperblock {
    LogSuperblock {
        log: LogId::random(),
        domain: options.domain,
        datastore: options.datastore,
        sequence: 1,
        file_len: options.size,
        epoch: 1,
        tail: 0,
        head: 0,
        first: SegmentNo::ZERO,
        last_generation: Generation::ZERO,
        last_segment: SegmentNo::ZERO,
    }
}

/// Makes the file with its first superblock durable, then gives it its name, and makes that durable.
fn create(engine: &Arc<dyn DiskEngine>, path: &Path, superblock: &LogSuperblock) -> Result<LogFile> {
    let making = path.with_extension("log.new");
    let gone = || Error::new(ErrorKind::Internal, "a file that is created does not exist");
    let lock = Locked::open(&making, true, Access::Write)?.ok_or_else(gone)?;
    lock.clear()?;
    let len = superblock.file_len;
    let file = LogFile::open(Arc::clone(engine), &making, lock, len, Access::Write)?;
    let made = file
        .allocate(len)
        .while_doing(|| format!("reserve {len} bytes for the replication log"))
        .and_then(|()| file.write_block((superblock.sequence % 2) * LOG_BLOCK, &superblock.encode()))
        .and_then(|()| file.sync());
    if let Err(e) = made {
        // Only the half-made file of this call goes; a log that was there before keeps its name.
        let _ = std::fs::remove_file(&making);
        return Err(e);
    }
    let lock = file.into_lock().ok_or_else(gone)?;
    std::fs::rename(&making, path).io_context(|| format!("name the new log {}", path.display()))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))?;
    LogFile::open(Arc::clone(engine), path, lock, len, Access::Write)
}

/// Reads the log, settles what lies after the head, and begins a new epoch.
fn begin(file: LogFile, superblock: LogSuperblock, options: &LogOptions) -> Result<Opened> {
    let found = scan(&file, &superblock, options.verify_payloads)?;
    let recovery = report(&found);
    if found.head.position > found.durable {
        file.rewrite(found.durable, found.head.position - found.durable)?;
    }
    // The superblock may be one that reads well though its sync failed: it is not trusted to stay either. Its slot gets
    // the same bytes, so nothing is at risk.
    file.write_block((superblock.sequence % 2) * LOG_BLOCK, &superblock.encode())?;
    // Buys: what was accepted after the head is durable, and so is the superblock that was found.
    file.sync()?;
    let Scan { records, first, head, epoch, .. } = found;
    let ring = Ring::new(file.ring_len(), superblock.tail, first, records, head);
    let next = super::commit::describe(&superblock, &ring, epoch + 1);
    let mut slots = Slots::new(superblock);
    slots.write(&file, next)?;
    // Buys: no record of an earlier epoch after the head can ever be accepted again.
    file.sync()?;
    slots.synced();
    Ok(Opened { file, slots, ring, recovery })
}

fn report(found: &Scan) -> LogRecovery {
    let mut recovery = LogRecovery { ended_by: found.ended_by, ..LogRecovery::default() };
    for (n, record) in found.records.iter().enumerate() {
        if record.state == RecordState::Damaged {
            let generation = Some(record.generation).filter(|g| *g != Generation::ZERO);
            let segment = SegmentNo::new(found.first.get() + n as u64);
            recovery.quarantined.push(QuarantinedSegment { segment, generation });
        }
    }
    let accepted = found.records.iter().filter(|r| r.len > 0 && r.position >= found.durable).count();
    recovery.accepted_after_head = accepted as u64;
    recovery
}

/// A log of another size than asked for: replaced when it holds nothing, else kept with a note.
fn resize(engine: &Arc<dyn DiskEngine>, opened: Opened, options: &LogOptions, len: u64) -> Result<Opened> {
    let path = opened.file.path().to_owned();
    let asked = options.size;
    if opened.ring.first() != SegmentNo::ZERO {
        let mut opened = opened;
        let note = format!(
            "the replication log keeps its {len} bytes and not the {asked} that were asked for: it holds segments that \
             are not applied yet"
        );
        tracing::warn!(log = %path.display(), "{note}");
        opened.recovery.notes.push(note);
        return Ok(opened);
    }
    let last: SegmentRef = opened.ring.synced().last;
    let superblock =
        LogSuperblock { last_generation: last.generation, last_segment: last.segment, ..blank_superblock(options) };
    // The old file stays locked until the new one has its name.
    let file = create(engine, &path, &superblock)?;
    drop(opened);
    let mut opened = begin(file, superblock, options)?;
    opened.recovery.notes.push(format!("the empty replication log was resized from {len} to {asked} bytes"));
    Ok(opened)
}
