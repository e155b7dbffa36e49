//! A disk that forgets: writes are kept apart from what is durable until a sync, and a crash keeps a random part of
//! them, sector by sector. A failed sync loses its writes though reads still show them and the next sync succeeds.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::datastore::*;
use crate::error::{Error, ErrorKind, Result};

const SECTOR: usize = 512;

/// What happens at a given event; events are writes and syncs, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    None,
    /// The machine stops in the middle of this event.
    Crash(u64),
    /// This event, or the first sync after it, fails.
    FailSync(u64),
}

#[derive(Default, Clone)]
struct Disk {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: BTreeSet<usize>,
}

struct Inner {
    files: Vec<Option<(PathBuf, u64, bool)>>,
    disks: HashMap<u64, Disk>,
    events: u64,
    trouble: Trouble,
    crashed: bool,
    failed: bool,
    random: u64,
}

pub(super) struct CrashDisk {
    slab: Arc<Slab>,
    inner: Mutex<Inner>,
}

impl CrashDisk {
    pub(super) fn new(trouble: Trouble, seed: u64) -> Arc<CrashDisk> {
        CrashDisk::with(HashMap::new(), trouble, seed)
    }

    fn with(disks: HashMap<u64, Disk>, trouble: Trouble, seed: u64) -> Arc<CrashDisk> {
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let inner = Inner { files: vec![], disks, events: 0, trouble, crashed: false, failed: false, random };
        Arc::new(CrashDisk { slab: Slab::new(8, 64 << 10).unwrap(), inner: Mutex::new(inner) })
    }

    /// The machine after power came back: of what was not synced, a random part of the sectors is there (none of it
    /// with `nothing`).
    pub(super) fn reboot(&self, nothing: bool, trouble: Trouble) -> Arc<CrashDisk> {
        let mut inner = self.lock();
        let mut disks = std::mem::take(&mut inner.disks);
        for disk in disks.values_mut() {
            for sector in std::mem::take(&mut disk.unsynced) {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                if !nothing && inner.random().is_multiple_of(2) {
                    disk.durable[range.clone()].copy_from_slice(&disk.current[range]);
                }
            }
            disk.current = disk.durable.clone();
        }
        let seed = inner.random();
        CrashDisk::with(disks, trouble, seed)
    }

    pub(super) fn events(&self) -> u64 {
        self.lock().events
    }

    pub(super) fn crashed(&self) -> bool {
        self.lock().crashed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

fn io(why: &str) -> Error {
    Error::new(ErrorKind::Io, why)
}

impl Inner {
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn event(&mut self) -> bool {
        self.events += 1;
        self.trouble == Trouble::Crash(self.events)
    }

    fn run(&mut self, file: FileId, op: &mut Op) -> Result<usize> {
        if self.crashed {
            return Err(io("the machine has stopped"));
        }
        let Some(Some((path, inode, poisoned))) = self.files.get(file.0 as usize).cloned() else {
            return Err(Error::new(ErrorKind::Invalid, "not open"));
        };
        if poisoned {
            return Err(io("poisoned"));
        }
        let torn = matches!(op, Op::Write { .. } | Op::SyncData) && self.event();
        let keep = self.random() % 129;
        let fail = matches!(self.trouble, Trouble::FailSync(n) if self.events >= n && !self.failed);
        let disk = self.disks.get_mut(&inode).unwrap();
        let done = match op {
            Op::Write { offset, slot, range } => {
                assert!(offset.is_multiple_of(4096) && range.len().is_multiple_of(4096), "unaligned write");
                let at = *offset as usize;
                let len = if torn { range.len().min(keep as usize * SECTOR) } else { range.len() };
                disk.current[at..at + len].copy_from_slice(&slot[range.start..range.start + len]);
                disk.unsynced.extend(at / SECTOR..(at + len) / SECTOR);
                range.len()
            }
            Op::Read { offset, slot, range } => {
                assert!(offset.is_multiple_of(4096) && range.len().is_multiple_of(4096), "unaligned read");
                let at = *offset as usize;
                let len = range.len().min(disk.current.len() - at);
                slot[range.start..range.start + len].copy_from_slice(&disk.current[at..at + len]);
                len
            }
            Op::SyncData if torn => 0,
            Op::SyncData if fail => {
                disk.unsynced.clear();
                self.failed = true;
                self.files[file.0 as usize] = Some((path, inode, true));
                return Err(io("sync failed"));
            }
            Op::SyncData => {
                for sector in std::mem::take(&mut disk.unsynced) {
                    let range = sector * SECTOR..(sector + 1) * SECTOR;
                    disk.durable[range.clone()].copy_from_slice(&disk.current[range]);
                }
                0
            }
            Op::Allocate { offset, len } => {
                let len = *offset + *len;
                std::fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
                disk.current.resize(len as usize, 0);
                disk.durable.resize(len as usize, 0);
                0
            }
            other => panic!("the log does not use {other:?}"),
        };
        match torn {
            true => {
                self.crashed = true;
                Err(io("the machine has stopped"))
            }
            false => Ok(done),
        }
    }
}

impl DiskEngine for CrashDisk {
    fn open(&self, path: &Path, _: Access) -> Result<FileId> {
        let inode = std::fs::metadata(path).unwrap().ino();
        let mut inner = self.lock();
        inner.disks.entry(inode).or_default();
        inner.files.push(Some((path.to_owned(), inode, false)));
        Ok(FileId(inner.files.len() as u32 - 1))
    }

    fn close(&self, file: FileId) -> Result<()> {
        self.lock().files[file.0 as usize] = None;
        Ok(())
    }

    fn submit(&self, request: Request) {
        let Request { file, mut op, done } = request;
        let result = self.lock().run(file, &mut op);
        let slot = match op {
            Op::Write { slot, .. } | Op::Read { slot, .. } => Some(slot),
            _ => None,
        };
        done(Completion { result, slot });
    }

    fn file_info(&self, _: FileId) -> Result<FileInfo> {
        Err(io("not used"))
    }

    fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    fn info(&self) -> EngineInfo {
        EngineInfo { kind: EngineKind::Threads, registered_slots: 0, queue_depth: 1, fallbacks: vec![] }
    }
}
