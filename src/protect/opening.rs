//! Opening: images, their bitmaps, and the protected disks made of both.
//!
//! Owns the disk engine and the buffers of requests, and which image serves which disk. Invariants: an image is open
//! exclusively for as long as it is known here; a disk whose file was changed since the last clean end is compared in
//! whole before any point covers it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::clearer::QUIET_ROUNDS;
use super::disk::{FencedPolicy, ProtectedDisk};
use super::filling::Filling;
use super::health::Health;
use super::memory::SiteMemory;
use super::protection::export_name;
use super::request::ProtectRequest;
use super::unwatched;
use crate::capture::{DiskSource, VmSource};
use crate::datastore::{DiskEngine, stamp};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Catalogue, FileStamp, IndexDisk};
use crate::ids::{DiskId, DomainId, Name};
use crate::intent::{Found, Intent, IntentIdentity, IntentOptions};
use crate::nbd::{BackingDisk, Buffers, CacheMode, Image, ImageOptions, Share, start_engine};

/// A disk that is ready to be served.
pub(crate) struct OpenedDisk {
    pub(crate) export: String,
    pub(crate) disk: Arc<ProtectedDisk>,
}

/// What is known of disks besides their bitmaps and the protection record.
#[derive(Debug, Default)]
pub(crate) struct Doubts {
    /// Those that hold exactly what the chain has.
    pub(crate) proved: HashSet<DiskId>,
    /// Those that may hold anything, and why.
    pub(crate) doubted: HashMap<DiskId, String>,
}

impl Doubts {
    /// Whether anything is known of this disk.
    pub(crate) fn speak_of(&self, disk: DiskId) -> bool {
        self.proved.contains(&disk) || self.doubted.contains_key(&disk)
    }
}

/// What an image looks like before it is served.
pub(crate) struct Look {
    pub(crate) stamp: FileStamp,
    /// It is noted on it that it was written to unwatched.
    pub(crate) unwatched: bool,
}

/// See the module.
pub(crate) struct Opener {
    cache: CacheMode,
    engine: Arc<dyn DiskEngine>,
    buffers: Arc<Buffers>,
    /// For reading back, of all disks.
    share: Arc<Share>,
    health: Arc<Health>,
    policy: FencedPolicy,
    filling: Filling,
    images: BTreeMap<(Name, Name), Arc<BackingDisk>>,
}

impl Opener {
    /// With `memory` bytes of buffers for all requests.
    pub(crate) fn new(request: &ProtectRequest, memory: u64, health: Arc<Health>) -> Result<Opener> {
        // One more, for reading back.
        let buffers = Buffers::new(memory, request.connections + 1)?;
        let share = buffers.share().ok_or_else(|| Error::new(ErrorKind::Internal, "no buffers for reading back"))?;
        let engine = start_engine(request.engine, request.cache, &buffers)?;
        let images = BTreeMap::new();
        let (share, filling) = (Arc::new(share), request.filling.clone());
        Ok(Opener { cache: request.cache, engine, buffers, share, health, policy: request.fenced, filling, images })
    }

    /// Engine of all images.
    pub(crate) fn engine(&self) -> &Arc<dyn DiskEngine> {
        &self.engine
    }

    /// Buffers of all requests.
    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// Opens the images of disks that are not open yet; all of them or none.
    ///
    /// # Errors
    /// What opening says; `Refused` for a disk that has one already.
    pub(crate) fn open_images(&mut self, vms: &[VmSource]) -> Result<()> {
        self.refuse_known(vms)?;
        let mut opened = BTreeMap::new();
        for vm in vms {
            for disk in &vm.disks {
                let key = (vm.name.clone(), disk.name.clone());
                let options = ImageOptions { size: disk.size, ..ImageOptions::default() };
                let image = Image::open(&disk.path, options)?;
                opened.insert(key, BackingDisk::open(Arc::clone(&self.engine), image, self.cache)?);
            }
        }
        self.images.append(&mut opened);
        Ok(())
    }

    /// Refuses disks that have an open image.
    ///
    /// # Errors
    /// `Refused`, naming the first.
    pub(crate) fn refuse_known(&self, vms: &[VmSource]) -> Result<()> {
        let mut disks = vms.iter().flat_map(|vm| vm.disks.iter().map(move |disk| (&vm.name, &disk.name)));
        match disks.find(|(vm, disk)| self.image(vm, disk).is_ok()) {
            Some((vm, disk)) => {
                let why = format!("disk {} is protected already", export_name(vm, disk));
                Err(Error::new(ErrorKind::Refused, why))
            }
            None => Ok(()),
        }
    }

    /// Closes the image of a disk that is not protected any more.
    pub(crate) fn forget(&mut self, vm: &Name, disk: &Name) {
        self.images.remove(&(vm.clone(), disk.clone()));
    }

    fn image(&self, vm: &Name, disk: &Name) -> Result<&Arc<BackingDisk>> {
        let missing = || Error::new(ErrorKind::Internal, format!("the image of {} is not open", export_name(vm, disk)));
        self.images.get(&(vm.clone(), disk.clone())).ok_or_else(missing)
    }

    /// Bytes of all disks, in the order of the request.
    pub(crate) fn sizes(&self, vms: &[VmSource]) -> Result<Vec<u64>> {
        let disks = vms.iter().flat_map(|vm| vm.disks.iter().map(move |disk| (vm, disk)));
        disks.map(|(vm, disk)| self.image(&vm.name, &disk.name).map(|image| image.size())).collect()
    }

    /// What the images of all disks look like, in the order of the request, which is also that of `ids`.
    pub(crate) fn looks(&self, vms: &[VmSource], ids: &[DiskId]) -> Result<Vec<Look>> {
        let disks = vms.iter().flat_map(|vm| vm.disks.iter().map(move |disk| (vm, disk)));
        let look = |((vm, disk), id): ((&VmSource, &DiskSource), &DiskId)| {
            let path = self.image(&vm.name, &disk.name)?.image().path();
            Ok(Look { stamp: stamp(*id, path)?, unwatched: unwatched::is_noted(path)? })
        };
        disks.zip(ids).map(look).collect()
    }

    /// Makes protected disks of `vms`, whose images are open, with the identities that `catalogue` gives them. What is
    /// known of their content is in `doubts`.
    ///
    /// # Errors
    /// What opening the bitmaps says.
    pub(crate) async fn open_disks(
        &self,
        memory: &mut SiteMemory,
        domain: DomainId,
        catalogue: &Catalogue,
        vms: &[VmSource],
        doubts: &Doubts,
    ) -> Result<Vec<OpenedDisk>> {
        let mut out = Vec::new();
        for vm in vms {
            for disk in &vm.disks {
                let export = export_name(&vm.name, &disk.name);
                let owner = catalogue.vm_named(vm.name.as_str()).map(|v| v.id);
                let info = catalogue.disks.iter().find(|d| Some(d.vm) == owner && d.name == disk.name);
                let missing = || Error::new(ErrorKind::Internal, format!("disk {export} is not in the catalogue"));
                let info = info.ok_or_else(missing)?;
                let backing = Arc::clone(self.image(&vm.name, &disk.name)?);
                let index = IndexDisk { id: info.id, vm: info.vm, size: backing.size() };
                let identity = IntentIdentity { domain, disk: info.id, size: index.size };
                let options = IntentOptions { quiet_calls: QUIET_ROUNDS, ..IntentOptions::default() };
                let proved = doubts.proved.contains(&info.id);
                let (intent, found) = Intent::open(&memory.bitmap(info.id), &identity, &options)?;
                if let Found::Lost(why) = &found
                    && !proved
                {
                    memory
                        .notes
                        .push(format!("the write-intent bitmap of {export} is lost ({why}): all of it is compared"));
                }
                let share = Arc::clone(&self.share);
                let image = backing.image().path().to_owned();
                let unwatched = unwatched::is_noted(&image)?;
                let changed = (self.was_changed(memory, &backing, &index)? && !proved) || unwatched;
                let (health, name) = (Arc::clone(&self.health), &disk.name);
                let disk = ProtectedDisk::new(export.clone(), index, backing, intent, share, health, self.policy);
                disk.watch_filling(&self.filling, &vm.name, name);
                if let Some(why) = doubts.doubted.get(&info.id) {
                    memory.notes.push(format!("all of {export} is compared: {why}"));
                    disk.doubt_all().await?;
                } else if changed && found != Found::New {
                    memory.notes.push(format!(
                        "the image of {export} was changed while it was not protected: all of it is compared"
                    ));
                    disk.doubt_all().await?;
                }
                // One that its guest may write to still, without us, keeps it.
                if unwatched && !self.filling.has(&vm.name, name) {
                    // All of it is marked now, durably.
                    unwatched::clear(&image);
                }
                out.push(OpenedDisk { export, disk: Arc::new(disk) });
            }
        }
        Ok(out)
    }

    /// Whether the image may hold other bytes than the last run left.
    fn was_changed(&self, memory: &SiteMemory, backing: &BackingDisk, index: &IndexDisk) -> Result<bool> {
        let now = stamp(index.id, backing.image().path())?;
        Ok(memory.is_changed(index.id, &now, backing.image().is_block_device()))
    }

    /// What the images of `disks` look like now.
    pub(crate) fn stamps(&self, disks: &[Arc<ProtectedDisk>]) -> Result<Vec<FileStamp>> {
        disks.iter().map(|disk| stamp(disk.index_disk().id, disk.backing().image().path())).collect()
    }
}
