//! The handle that callers have of an open log.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::datastore::DiskEngine;
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::{DatastoreId, Digest, LogId, LogRecord, Parts, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::ids::{DomainId, Name, SegmentNo, SegmentRef};

use super::append::{self, Command};
use super::commit;
use super::file::LogFile;
use super::open::{LogOptions, LogRecovery, Opened, open};
use super::read::{self, LogCursor};
use super::shared::{Rewind, RewindTo, Shared};

/// Segments that may wait to be copied, beside the one that is.
const COMMANDS: usize = 1;

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogIdentity {
    /// The log file.
    pub log: LogId,
    /// Its domain.
    pub domain: DomainId,
    /// The datastore that it feeds.
    pub datastore: DatastoreId,
}

/// What a log holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// First segment held; zero when none is.
    pub first: SegmentNo,
    /// Last segment that is durable, also after it was trimmed; zero when there never was one.
    pub landed: SegmentRef,
    /// Last segment appended.
    pub appended: SegmentRef,
    /// Bytes of the ring that are in use.
    pub used_bytes: u64,
    /// Bytes of the ring.
    pub ring_bytes: u64,
}

/// An open replication log. See the module's head for what it promises. Dropping it waits for what was appended to
/// become durable, and ends its two threads.
pub struct ReplicationLog {
    shared: Arc<Shared>,
    file: Arc<LogFile>,
    identity: LogIdentity,
    recovery: LogRecovery,
    commands: Option<mpsc::Sender<Command>>,
    threads: Vec<JoinHandle<()>>,
}

impl ReplicationLog {
    /// Opens the log of domain `name` in directory `log_store`, which must exist, or makes it. Blocks: it reads the log.
    ///
    /// # Errors
    /// `Invalid` for a size that is no multiple of 4096 or smaller than a segment; `Refused` when it is in use or is the
    /// log of another domain or datastore; `Damaged` or `Unsupported` as the decision table says; `Full` when its space
    /// cannot be reserved; `Io`. Nothing is overwritten then.
    pub fn open(
        engine: &Arc<dyn DiskEngine>,
        log_store: &Path,
        name: &Name,
        options: &LogOptions,
    ) -> Result<ReplicationLog> {
        let Opened { file, slots, ring, recovery } = open(engine, log_store, name, options)?;
        let superblock = slots.newest();
        let identity = LogIdentity { log: superblock.log, domain: superblock.domain, datastore: superblock.datastore };
        let shared = Arc::new(Shared::new(file.path().to_owned(), ring, superblock.epoch));
        let file = Arc::new(file);
        let (sender, receiver) = mpsc::channel(COMMANDS);
        let mut log = ReplicationLog {
            shared: Arc::clone(&shared),
            file: Arc::clone(&file),
            identity,
            recovery,
            commands: Some(sender),
            threads: Vec::with_capacity(2),
        };
        let (for_append, its_file) = (Arc::clone(&shared), Arc::clone(&file));
        log.spawn("log-append", move || append::run(&for_append, &its_file, receiver))?;
        log.spawn("log-commit", move || commit::run(&shared, &file, slots))?;
        Ok(log)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(crate::log_context::here(run));
        self.threads.push(thread.io_context(|| format!("start thread {name}"))?);
        Ok(())
    }

    /// Whose log it is.
    pub fn identity(&self) -> &LogIdentity {
        &self.identity
    }

    /// What opening found: above all, which segments must be fetched again.
    pub fn recovery(&self) -> &LogRecovery {
        &self.recovery
    }

    /// What it holds now.
    pub fn held(&self) -> Held {
        let state = self.shared.peek();
        let ring = &state.ring;
        Held {
            first: ring.first(),
            landed: ring.synced().last,
            appended: ring.head().last,
            used_bytes: ring.used(),
            ring_bytes: ring.len(),
        }
    }

    /// Appends the segment of `header`, whose verified bytes are `parts`. Waits while the log is full. Returns when the
    /// bytes are copied and `parts` can go; they are durable only when [`ReplicationLog::landed`] says so.
    ///
    /// Segments come in order, one call after the other. Dropping the future before it is done leaves either nothing in
    /// the log or the whole segment; [`ReplicationLog::held`] tells.
    ///
    /// # Errors
    /// `Invalid` when the segment is not the next one, is of another domain, is longer than the log, or when `parts` are
    /// not as long as `header` says or begin with another header; otherwise the log is poisoned.
    pub async fn append(&self, header: &SegmentHeader, parts: &[Bytes]) -> Result<()> {
        self.check(header, parts)?;
        let closed = || Error::new(ErrorKind::Cancelled, "the replication log is closed");
        let commands = self.commands.as_ref().ok_or_else(closed)?;
        let Ok(permit) = commands.reserve().await else {
            drop(self.shared.lock()?);
            return Err(closed());
        };
        let (reply, copied) = oneshot::channel();
        let mut changes = self.shared.changes();
        let record = loop {
            if let Some(record) = self.reserve(header)? {
                break record;
            }
            // The sender lives as long as `self`.
            changes.changed().await.map_err(|_| closed())?;
        };
        // From the reservation to here nothing waits, so a dropped future cannot leave a hole.
        permit.send(Command { record, parts: parts.to_vec(), reply });
        match copied.await {
            Ok(done) => done,
            Err(_) => self.shared.lock().and_then(|_| Err(closed())),
        }
    }

    fn check(&self, header: &SegmentHeader, parts: &[Bytes]) -> Result<()> {
        let parts = Parts::new(parts);
        let mut scratch = Vec::new();
        let begins = parts.slice(0..parts.len().min(SEGMENT_HEADER_LEN as u64), &mut scratch);
        let why = if header.domain != self.identity.domain {
            format!("of domain {}", header.domain)
        } else if parts.len() != header.total_len {
            format!("of {} bytes in parts of {}", header.total_len, parts.len())
        } else if !begins.is_ok_and(|b| *b == header.encode()) {
            "with the bytes of another".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Invalid, format!("append to the replication log: segment {} {why}", header.id())))
    }

    fn reserve(&self, header: &SegmentHeader) -> Result<Option<LogRecord>> {
        let mut state = self.shared.lock()?;
        if state.rewind.is_some() {
            return Ok(None);
        }
        let Some(position) = state.ring.reserve(header.id(), header.total_len)? else { return Ok(None) };
        Ok(Some(LogRecord {
            log: self.identity.log,
            domain: self.identity.domain,
            position,
            epoch: state.epoch,
            generation: header.generation,
            segment: header.segment,
            payload_len: header.total_len,
            payload_digest: Digest::default(),
        }))
    }

    /// Follows the last durable segment. The receiver's `changed` fails when the log is poisoned or closed. It goes
    /// backwards only by a rewind or a reset.
    ///
    /// # Errors
    /// When the log is poisoned.
    pub fn landed(&self) -> Result<watch::Receiver<SegmentRef>> {
        self.shared.landed()
    }

    /// Waits until `segment`, which was appended, is durable.
    ///
    /// # Errors
    /// `Invalid` when it was not appended; otherwise the log is poisoned, and it is not known whether it is durable.
    pub async fn wait_landed(&self, segment: SegmentNo) -> Result<()> {
        let mut changes = self.shared.changes();
        loop {
            {
                let state = self.shared.lock()?;
                if state.ring.synced().last.segment >= segment {
                    return Ok(());
                }
                if state.ring.head().last.segment < segment {
                    let text = format!("segment {segment} was not appended to the replication log");
                    return Err(Error::new(ErrorKind::Invalid, text));
                }
            }
            let gone = |_| Error::new(ErrorKind::Cancelled, "the replication log is closed");
            changes.changed().await.map_err(gone)?;
        }
    }

    /// Gives up the segments up to and including `up_to`: they are applied, and the watermark that says so is durable.
    /// Their space comes back a moment later, when a superblock that says so is durable. Earlier ones are no error.
    ///
    /// # Errors
    /// `Invalid` when `up_to` has not landed; otherwise the log is poisoned.
    pub fn trim(&self, up_to: SegmentNo) -> Result<()> {
        let trimmed = self.shared.lock()?.ring.trim(up_to)?;
        if trimmed {
            self.shared.signal();
        }
        Ok(())
    }

    /// Drops all segments after `at`, durably: they are past a base that was settled. First waits until what was
    /// appended has landed; appends wait meanwhile.
    ///
    /// # Errors
    /// `Invalid` when `at` is neither held nor the one before the first, or is held under another generation (then
    /// [`ReplicationLog::reset`]); `Refused` when another rewind is under way; otherwise the log is poisoned.
    pub async fn truncate_after(&self, at: SegmentRef) -> Result<()> {
        self.rewind(RewindTo::After(at)).await
    }

    /// Drops everything, durably: the next segment appended is the one after `last`, or any when `last` is zero.
    ///
    /// # Errors
    /// As [`ReplicationLog::truncate_after`].
    pub async fn reset(&self, last: SegmentRef) -> Result<()> {
        self.rewind(RewindTo::Reset(last)).await
    }

    async fn rewind(&self, to: RewindTo) -> Result<()> {
        let (reply, done) = oneshot::channel();
        {
            let mut state = self.shared.lock()?;
            if state.rewind.is_some() {
                return Err(Error::new(ErrorKind::Refused, "another rewind of the replication log is under way"));
            }
            state.rewind = Some(Rewind { to, reply });
        }
        self.shared.signal();
        match done.await {
            Ok(done) => done,
            Err(_) => {
                drop(self.shared.lock()?);
                Err(Error::new(ErrorKind::Cancelled, "the replication log is closed"))
            }
        }
    }

    /// Reads `segment` into `buffer`, which serves again, and verifies it: record, digest, identity. Blocks.
    ///
    /// # Errors
    /// `NotFound` when it is not held or has not landed; `Damaged` when it must be fetched again; otherwise `Io`, or the
    /// log is poisoned. `buffer` has nothing usable then.
    pub fn read(&self, segment: SegmentNo, buffer: &mut Vec<u8>) -> Result<SegmentHeader> {
        read::read(&self.shared, &self.file, &self.identity, segment, buffer)
    }

    /// Reads all that is held, from the first segment on.
    pub fn cursor(&self) -> LogCursor<'_> {
        LogCursor::new(self, SegmentNo::ZERO)
    }

    /// Waits until all that was appended is durable, then closes it. Blocks.
    ///
    /// # Errors
    /// When the log is poisoned.
    pub fn close(mut self) -> Result<()> {
        self.end();
        self.shared.lock().map(drop)
    }

    fn end(&mut self) {
        self.commands = None;
        let mut threads = self.threads.drain(..);
        if let Some(append) = threads.next() {
            // A panic there has poisoned the log, which is what callers see.
            let _ = append.join();
        }
        self.shared.peek().closing = true;
        self.shared.signal();
        threads.for_each(|t| drop(t.join()));
    }
}

impl Drop for ReplicationLog {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for ReplicationLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.held();
        f.debug_struct("ReplicationLog").field("identity", &self.identity).field("held", &held).finish_non_exhaustive()
    }
}
