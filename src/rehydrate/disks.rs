//! The recovered disks: their files in the datastore, open for writing.
//!
//! Files are created empty, at their full length, as holes. A file that this domain's rehydration did not make is never
//! written, unless it is to be overwritten, and then it is replaced by a new one; or unless it is followed onto in place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::datastore::{Access, DiskEngine, FileId, Op, stamp};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::{Catalogue, DiskInfo, FileStamp};
use crate::ids::DiskId;
use crate::nbd::{Image, ImageOptions};

use super::detached;
use super::places::Places;
use super::request::RehydrateRequest;

/// One recovered disk.
#[derive(Debug, Clone)]
pub(super) struct TargetDisk {
    /// Identity.
    pub(super) id: DiskId,
    /// `vm/disk`, for people.
    pub(super) label: String,
    /// VM that it belongs to.
    pub(super) vm: String,
    /// Name within the VM.
    pub(super) name: String,
    /// Its file.
    pub(super) path: PathBuf,
    /// Where its copy is kept once it leaves.
    kept: PathBuf,
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
    /// Nothing; but the copy of this very disk is kept from when it left the domain.
    Detached,
}

/// The disks of a domain in the order in which they were opened; positions stay.
pub(super) struct DiskSet {
    engine: Arc<dyn DiskEngine>,
    places: Places,
    /// The disks are files that others may have open: they are locked.
    in_place: bool,
    disks: RwLock<Opened>,
}

/// By position.
#[derive(Default)]
struct Opened {
    disks: Vec<Arc<TargetDisk>>,
    /// Positions of disks that left.
    left: BTreeSet<u32>,
    /// Locks of disks that are followed onto in place.
    locked: BTreeMap<DiskId, Image>,
}

impl Opened {
    fn here(&self) -> impl DoubleEndedIterator<Item = (u32, &Arc<TargetDisk>)> {
        // There are fewer than 2^32 disks.
        self.disks.iter().enumerate().map(|(i, d)| (i as u32, d)).filter(|(i, _)| !self.left.contains(i))
    }
}

impl DiskSet {
    /// The disks of a domain where `request` has them; none is open yet.
    pub(super) fn new(engine: Arc<dyn DiskEngine>, request: &RehydrateRequest) -> DiskSet {
        let (places, in_place) = (Places::of_request(request), request.protected.is_some());
        DiskSet { engine, places, in_place, disks: RwLock::default() }
    }

    /// Where they stand.
    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    /// Where the file of a disk stands.
    pub(super) fn path(&self, catalogue: &Catalogue, disk: &DiskInfo) -> Result<PathBuf> {
        self.places.of(catalogue, disk)
    }

    /// What stands at a disk's place; changes nothing. `known` tells that this domain's rehydration made it earlier.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] where something else stands there that is not to be overwritten.
    pub(super) fn look(&self, catalogue: &Catalogue, disk: &DiskInfo, known: bool, overwrite: bool) -> Result<Place> {
        let path = self.path(catalogue, disk)?;
        let is_placed = self.places.has(catalogue, disk)?;
        let meta = if is_placed { std::fs::metadata(&path) } else { std::fs::symlink_metadata(&path) };
        let exists = match meta {
            Ok(meta) if meta.is_file() => true,
            Ok(meta) if is_placed && meta.file_type().is_block_device() => true,
            Ok(_) => {
                let why = format!("{} exists and is not a plain file: move it away", path.display());
                return Err(Error::new(ErrorKind::Refused, why));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) => return Err(Error::io(format!("look at {}", path.display()), e)),
        };
        let is_kept = || Ok::<_, Error>(self.places.kept(catalogue, disk)?.is_file());
        match (exists, known) {
            (false, _) if is_kept()? => Ok(Place::Detached),
            (true, true) => Ok(Place::Ours),
            (true, false) if !overwrite => {
                let why = "exists and was not made by a rehydration of this domain";
                let advice = "move it away, choose another datastore, or replace it with --overwrite; if it was protected here, \
                              follow onto it with --protected";
                Err(Error::new(ErrorKind::Refused, format!("{} {why}: {advice}", path.display())))
            }
            _ => Ok(Place::Free),
        }
    }

    /// Opens a disk's file where it is ours, and creates it where its place is free. The hydration map must name the disk
    /// durably by then: a kill after the creation would leave a file that nobody knows as ours.
    pub(super) fn open(&self, catalogue: &Catalogue, disk: &DiskInfo, place: Place) -> Result<()> {
        let path = self.path(catalogue, disk)?;
        match place {
            Place::Free => create_empty(&path, disk.size)?,
            Place::Detached => detached::rename(&self.places.kept(catalogue, disk)?, &path)?,
            Place::Ours => {}
        }
        let lock = match self.in_place || self.places.has(catalogue, disk)? {
            true => Some(Image::open(&path, ImageOptions::default())?),
            false => None,
        };
        let file = self.engine.open(&path, Access::Write)?;
        if place != Place::Free && self.engine.file_info(file)?.len != disk.size {
            self.engine.execute(file, Op::SetLen(disk.size)).result?;
        }
        let label = catalogue.disk_label(disk.id);
        let kept = self.places.kept(catalogue, disk)?;
        let vm = catalogue.vm(disk.vm).map_or_else(|| disk.vm.to_string(), |vm| vm.name.to_string());
        let name = disk.name.to_string();
        let target = TargetDisk { id: disk.id, label, vm, name, path, kept, size: disk.size, file };
        let mut opened = self.write();
        opened.locked.extend(lock.map(|lock| (disk.id, lock)));
        opened.disks.push(Arc::new(target));
        Ok(())
    }

    /// Makes all of a disk a hole, durably.
    pub(super) fn empty(&self, id: DiskId) -> Result<()> {
        let position = self.position(id).ok_or_else(|| not_open(id))?;
        let disk = self.get(position);
        for op in [Op::SetLen(0), Op::SetLen(disk.size), Op::SyncData] {
            self.engine.execute(disk.file, op).result?;
        }
        Ok(())
    }

    /// Closes a disk that left, and moves its file out of the way of others; where it is now.
    pub(super) fn detach(&self, id: DiskId) -> Result<PathBuf> {
        let position = self.position(id).ok_or_else(|| not_open(id))?;
        let disk = self.get(position);
        self.engine.close(disk.file)?;
        {
            let mut opened = self.write();
            opened.left.insert(position);
            opened.locked.remove(&id);
        }
        self.move_away(&disk.path, &disk.kept)
    }

    /// As [`DiskSet::detach`], of a disk that is not open; `None` where its file is not there.
    pub(super) fn detach_closed(&self, catalogue: &Catalogue, disk: &DiskInfo) -> Result<Option<PathBuf>> {
        let (path, kept) = (self.path(catalogue, disk)?, self.places.kept(catalogue, disk)?);
        match path.is_file() {
            true => self.move_away(&path, &kept).map(Some),
            false => Ok(None),
        }
    }

    /// A file of ours; one at a place of the operator's own stays.
    fn move_away(&self, path: &Path, kept: &Path) -> Result<PathBuf> {
        if !self.places.is_in_datastore(path) {
            return Ok(path.to_owned());
        }
        detached::rename(path, kept)?;
        Ok(kept.to_owned())
    }

    fn read(&self) -> RwLockReadGuard<'_, Opened> {
        self.disks.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Opened> {
        self.disks.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk at a position, also of one that left.
    pub(super) fn get(&self, position: u32) -> Arc<TargetDisk> {
        Arc::clone(&self.read().disks[position as usize])
    }

    /// All disks that are here, in the order of their positions.
    pub(super) fn all(&self) -> Vec<Arc<TargetDisk>> {
        self.read().here().map(|(_, disk)| Arc::clone(disk)).collect()
    }

    /// The position of a disk that is here.
    pub(super) fn position(&self, id: DiskId) -> Option<u32> {
        self.read().here().rfind(|(_, disk)| disk.id == id).map(|(position, _)| position)
    }

    /// Changes the size of a disk's file, and what is known of it.
    pub(super) fn resize(&self, position: u32, size: u64) -> Result<()> {
        let old = self.get(position);
        self.engine.execute(old.file, Op::SetLen(size)).result?;
        self.write().disks[position as usize] = Arc::new(TargetDisk { size, ..(*old).clone() });
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

fn not_open(id: DiskId) -> Error {
    Error::new(ErrorKind::Internal, format!("disk {id} is not open"))
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
