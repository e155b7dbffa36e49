//! A closed log of five segments whose bytes tests change from outside.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use futures::executor::block_on;

use super::super::ReplicationLog;
use super::support::*;
use crate::datastore::{DiskEngine, EngineKind};
use crate::error::Result;
use crate::format::{LOG_BLOCK, LOG_RING_START, LogRecord, LogSuperblock, log_record_len};

pub(super) const SIZE: u64 = 1 << 20;
/// Raw bytes of each segment.
pub(super) const RAW: usize = 50_000;

pub(super) type Block = [u8; LOG_BLOCK as usize];

/// The log, and where the record of each segment begins in the file; the last one is where a sixth would.
pub(super) struct Made {
    pub(super) dir: tempfile::TempDir,
    pub(super) engine: Arc<dyn DiskEngine>,
    pub(super) starts: Vec<u64>,
}

pub(super) fn made() -> Made {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(EngineKind::Threads, 1);
    let log = open(&engine, dir.path(), SIZE).unwrap();
    let mut starts = vec![LOG_RING_START];
    block_on(async {
        for n in 1..=5 {
            append(&log, id(n), RAW).await.unwrap();
            let len = segment(id(n), RAW).bytes.len() as u64;
            starts.push(starts[starts.len() - 1] + log_record_len(len));
        }
    });
    log.close().unwrap();
    Made { dir, engine, starts }
}

impl Made {
    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("dom%20one.log")
    }

    fn file(&self) -> File {
        File::options().read(true).write(true).open(self.path()).unwrap()
    }

    pub(super) fn flip(&self, at: u64) {
        let mut byte = [0];
        self.file().read_exact_at(&mut byte, at).unwrap();
        self.write(at, &[byte[0] ^ 0x20]);
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        let file = self.file();
        file.write_all_at(bytes, at).unwrap();
        // The log reads past the page cache.
        file.sync_all().unwrap();
    }

    pub(super) fn block(&self, at: u64) -> Block {
        let mut block = [0; LOG_BLOCK as usize];
        self.file().read_exact_at(&mut block, at).unwrap();
        block
    }

    pub(super) fn open(&self) -> Result<ReplicationLog> {
        open(&self.engine, self.dir.path(), SIZE)
    }

    pub(super) fn slot(&self, n: u64) -> LogSuperblock {
        LogSuperblock::open(&self.block(n * LOG_BLOCK), n).unwrap()
    }

    /// Which slot has the newest superblock.
    pub(super) fn newest(&self) -> u64 {
        if self.slot(0).sequence > self.slot(1).sequence { 0 } else { 1 }
    }

    /// Changes what the superblock in slot `n` says.
    pub(super) fn with_slot(&self, n: u64, change: impl FnOnce(&mut LogSuperblock)) {
        let mut superblock = self.slot(n);
        change(&mut superblock);
        self.write(n * LOG_BLOCK, &superblock.encode());
    }

    /// Changes what the header of the record of segment `n` says.
    pub(super) fn with_record(&self, n: usize, change: impl FnOnce(&mut LogRecord)) {
        let at = self.starts[n - 1];
        let mut record = LogRecord::open(&self.block(at)).unwrap();
        change(&mut record);
        self.write(at, &record.encode());
    }
}
