//! The recovered disks: their files in the datastore, open for writing.
//!
//! A disk stands at `<datastore>/<domain>/<vm>/<disk>.raw`, each name escaped. Files are created empty, at their full
//! length, as holes. A file that this domain's rehydration did not make is never written, unless it is to be overwritten,
//! and then it is replaced by a new one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use crate::datastore::{Access, DiskEngine, FileId, Op, stamp};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::{Catalogue, DiskInfo, FileStamp};
use crate::ids::{DiskId, Name};

/// One recovered disk.
#[derive(Debug, Clone)]
pub(super) struct TargetDisk {
    /// Identity.
    pub(super) id: DiskId,
    /// `vm/disk`, for people.
    pub(super) label: String,
    /// Its file.
    pub(super) path: PathBuf,
    /// Bytes of the disk.
    pub(super) size: u64,
    /// The open file.
    pub(super) file: FileId,
}

/// What stands at a disk's place before it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing, or what is to be overwritten: the file is created, all holes.
    Free,
    /// A file that this domain's rehydration made.
    Ours,
}

/// The disks of a domain in the order in which they were opened; positions stay.
pub(super) struct DiskSet {
    engine: Arc<dyn DiskEngine>,
    root: PathBuf,
    disks: RwLock<Vec<Arc<TargetDisk>>>,
}

impl DiskSet {
    /// The disks of `domain` in `datastore`; none is open yet.
    pub(super) fn new(engine: Arc<dyn DiskEngine>, datastore: &Path, domain: &Name) -> DiskSet {
        DiskSet { engine, root: datastore.join(domain.key()), disks: RwLock::new(Vec::new()) }
    }

    /// Where the file of a disk stands.
    pub(super) fn path(&self, catalogue: &Catalogue, disk: &DiskInfo) -> Result<PathBuf> {
        let vm = catalogue.vm(disk.vm).ok_or_else(|| {
            Error::new(ErrorKind::Damaged, format!("disk {} belongs to a VM that the catalogue lacks", disk.id))
        })?;
        Ok(self.root.join(vm.name.key()).join(format!("{}.raw", disk.name.key())))
    }

    /// What stands at a disk's place; changes nothing. `known` tells that this domain's rehydration made it earlier.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] where something else stands there that is not to be overwritten.
    pub(super) fn look(&self, catalogue: &Catalogue, disk: &DiskInfo, known: bool, overwrite: bool) -> Result<Place> {
        let path = self.path(catalogue, disk)?;
        let exists = match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => true,
            Ok(_) => {
                let why = format!("{} exists and is not a plain file: move it away", path.display());
                return Err(Error::new(ErrorKind::Refused, why));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => return Err(Error::io(format!("look at {}", path.display()), e)),
        };
        match (exists, known) {
            (true, true) => Ok(Place::Ours),
            (true, false) if !overwrite => {
                let why = "exists and was not made by a rehydration of this domain";
                let advice = "move it away, choose another datastore, or replace it with --overwrite";
                Err(Error::new(ErrorKind::Refused, format!("{} {why}: {advice}", path.display())))
            }
            _ => Ok(Place::Free),
        }
    }

    /// Opens a disk's file where it is ours, and creates it where its place is free. The hydration map must name the disk
    /// durably by then: a kill after the creation would leave a file that nobody knows as ours.
    pub(super) fn open(&self, catalogue: &Catalogue, disk: &DiskInfo, place: Place) -> Result<()> {
        let path = self.path(catalogue, disk)?;
        if place == Place::Free {
            create_empty(&path, disk.size)?;
        }
        let file = self.engine.open(&path, Access::Write)?;
        if place == Place::Ours && self.engine.file_info(file)?.len != disk.size {
            self.engine.execute(file, Op::SetLen(disk.size)).result?;
        }
        let label = catalogue.disk_label(disk.id);
        let target = TargetDisk { id: disk.id, label, path, size: disk.size, file };
        let mut disks = self.disks.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        disks.push(Arc::new(target));
        Ok(())
    }

    /// The disk at a position.
    pub(super) fn get(&self, position: u32) -> Arc<TargetDisk> {
        Arc::clone(&self.disks.read().unwrap_or_else(std::sync::PoisonError::into_inner)[position as usize])
    }

    /// All disks, by position.
    pub(super) fn all(&self) -> Vec<Arc<TargetDisk>> {
        self.disks.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The newest position of a disk.
    pub(super) fn position(&self, id: DiskId) -> Option<u32> {
        let disks = self.disks.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        disks.iter().rposition(|d| d.id == id).and_then(|i| u32::try_from(i).ok())
    }

    /// Changes the size of a disk's file, and what is known of it.
    pub(super) fn resize(&self, position: u32, size: u64) -> Result<()> {
        let old = self.get(position);
        self.engine.execute(old.file, Op::SetLen(size)).result?;
        let mut disks = self.disks.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        disks[position as usize] = Arc::new(TargetDisk { size, ..(*old).clone() });
        Ok(())
    }

    /// Why disks are written through the page cache, each reason once, with the disks.
    pub(super) fn why_not_direct(&self) -> Result<Vec<String>> {
        let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for disk in self.all() {
            if let Some(why) = self.engine.file_info(disk.file)?.not_direct {
                reasons.entry(why).or_default().push(disk.label.clone());
            }
        }
        let say = |(why, disks): (String, Vec<String>)| format!("{why}: {} through the page cache", disks.join(", "));
        Ok(reasons.into_iter().map(say).collect())
    }

    /// What the files look like now.
    pub(super) fn stamps(&self) -> Result<Vec<FileStamp>> {
        self.all().iter().map(|d| stamp(d.id, &d.path)).collect()
    }
}

/// A new file of `size` bytes, all holes, in place of whatever stood there; durable with its directories.
fn create_empty(path: &Path, size: u64) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    create_dirs_durably(dir)?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(format!("replace {}", path.display()), e));
        }
        _ => {}
    }
    let create = || -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.set_len(size)?;
        file.sync_all()?;
        File::open(dir)?.sync_all()
    };
    create().io_context(|| format!("create {} of {size} bytes", path.display()))
}

/// Creates a directory and those above it; each new entry is durable.
pub(super) fn create_dirs_durably(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let above = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dirs_durably(above)?;
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Error::io(format!("create {}", dir.display()), e));
        }
        _ => {}
    }
    File::open(above).and_then(|d| d.sync_all()).io_context(|| format!("sync {}", above.display()))
}
