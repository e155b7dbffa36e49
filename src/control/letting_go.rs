//! VMs that are protected no longer: a guest that runs goes back to where its disks were, and its exports end.
//!
//! ```text
//! written down: it leaves -> copied back -> a last point, and no point covers it any more -> its disks change over
//!   -> their exports end, what was captured is shipped -> the definition of one that is off names the images -> forgotten
//! ```
//!
//! Owns the order, and what becomes of it where it does not come to its end. While all disks are on their exports it may
//! fail, and the VM is protected as before; once one is not, it is gone on with until all are back, by whoever lives.
//! Invariant: a VM with a disk that is back is shown as recoverable by no point of now.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::appliance::Appliance;
use super::catalog::{self, DomainRecord, Moving};
use super::change_over::ChangeOver;
use super::doubt::Doubt;
use super::moves::{Direction, MovePhase, ShownMove};
use super::moving_on;
use super::new_images::{Made, make_empty, remove_files};
use super::reach::Reach;
use super::taking_in::TakingIn;
use crate::capture::{DiskSource, VmSource};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::hypervisor::{GuestDisks, LIBVIRT_XML, PowerState};
use crate::ids::Name;

/// What an operator should know of it.
#[derive(Debug, Clone)]
pub(crate) struct LetGo {
    /// All that was captured is part of the domain.
    pub(crate) all_shipped: bool,
    pub(crate) notes: Vec<String>,
}

/// See the module.
pub(crate) struct LettingGo<'a> {
    app: &'a Arc<Appliance>,
    record: &'a DomainRecord,
    vm: &'a VmSource,
    at: TakingIn<'a>,
}

impl<'a> LettingGo<'a> {
    pub(crate) fn new(app: &'a Arc<Appliance>, record: &'a DomainRecord, vm: &'a VmSource) -> LettingGo<'a> {
        LettingGo { app, record, vm, at: TakingIn::new(app, record, &vm.name) }
    }

    /// Does all of it, or goes on with it.
    ///
    /// # Errors
    /// What moving and ending say. The VM is protected as before, unless the error says that it is gone on with.
    pub(crate) async fn run(&self) -> Result<LetGo> {
        let error = match self.try_once(true).await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let why = match self.stay_if_all_are_here().await {
            Ok(true) => return Err(error),
            Ok(false) => "some of its disks may be back, and no point covers it; it is gone on with".to_owned(),
            Err(also) => format!("where its disks are is not known ({also}); it is gone on with"),
        };
        let error = error.while_doing(why);
        self.app.moves.trouble(&self.record.name, &self.vm.name, Some(error.to_string()));
        moving_on::go_on_with(self.app, self.record, self.vm);
        Err(error)
    }

    /// The same, where whoever asks goes on. An operator who was told that both places are to be compared has decided by
    /// asking.
    ///
    /// # Errors
    /// What moving and ending say.
    pub(super) async fn try_once(&self, is_operator: bool) -> Result<LetGo> {
        let (domain, vm) = (&self.record.name, &self.vm.name);
        let shown = self.app.moves.begin(domain, vm, Direction::Back, self.vm.disks.iter().map(|disk| &disk.name));
        self.refuse_doubt(is_operator).await?;
        let moved = self.move_back(&shown).await?;
        shown.phase(MovePhase::Leaving);
        let (mut done, restart) = self.end_exports().await?;
        done.notes.extend(moved);
        done.notes.extend(self.detach().await?);
        let (which, gone) = (domain.clone(), vm.clone());
        self.app.catalog.call(move |db| catalog::unprotect(db, &which, &gone)).await?;
        if restart {
            let request = self.app.world.protect_request(domain).await?;
            self.app.hosting.restart(&self.app.stores, &self.record.store, request)?;
        }
        Ok(done)
    }

    /// Fails where a move before this one may have left newer bytes where they are not looked for.
    pub(super) async fn refuse_doubt(&self, is_operator: bool) -> Result<()> {
        match self.doubt().await? {
            Doubt::Told if is_operator => Ok(()),
            doubt => self.at.refuse_doubt(self.vm, doubt).await,
        }
    }

    async fn doubt(&self) -> Result<Doubt> {
        let (domain, vm) = (self.record.name.clone(), self.vm.name.clone());
        let moving = self.app.catalog.call(move |db| Moving::get(db, &domain, &vm)).await?;
        let Some(moving) = moving.filter(|moving| moving.pivots) else { return Ok(Doubt::None) };
        let found = self.at.look().await?;
        let on = self.at.count_on_exports(self.vm, found.as_ref());
        Ok(Doubt::of(&moving, found.as_ref(), on, self.vm.disks.len()))
    }

    /// Moves the disks of a VM that runs from exports back onto the images that it had before.
    async fn move_back(&self, shown: &ShownMove<'_>) -> Result<Vec<String>> {
        let hypervisor = self.app.world.hypervisor_here();
        let Some(guests) = hypervisor.guest_disks() else { return Ok(Vec::new()) };
        if hypervisor.state(&self.vm.name).await? != PowerState::Running {
            return Ok(Vec::new());
        }
        let (domain, vm) = (self.record.name.clone(), self.vm.name.clone());
        self.app.catalog.call(move |db| Moving::begin_to_leave(db, &domain, &vm)).await?;
        // One that was begun and cut off is not to be gone on with.
        guests.abandon_moves(&self.vm.name).await?;
        let (domain, vm) = (self.record.name.clone(), self.vm.name.clone());
        let before = self.app.catalog.call(move |db| catalog::before(db, &domain, &vm)).await?;
        let before = before.filter(|definition| definition.kind == LIBVIRT_XML);
        let definition = before.as_ref().map_or("", |definition| &definition.text);
        let images = self.images();
        let exported = self.exported(guests).await?;
        let mut placeless = guests.placeless(definition, &images)?;
        placeless.retain(|disk| exported.contains(disk));
        let made = self.make_places(&placeless).await?;
        let watcher =
            ChangeOver { app: self.app, domain: &self.record.name, vm: self.vm, direction: Direction::Back, shown };
        let places = guests.move_back(&self.vm.name, definition, &images, &made, &watcher).await?;
        let note = |(disk, path): &(Name, PathBuf)| {
            let served = self.vm.disks.iter().find(|d| d.name == *disk).map_or(Path::new(""), |d| &d.path);
            let again = if made.contains_key(disk) { "now, a new image" } else { "again" };
            format!("disk {disk} is at {} {again}; {} is not used any more", path.display(), served.display())
        };
        Ok(places.iter().map(note).collect())
    }

    /// Its disks that are on their exports now, or would be at its next start.
    async fn exported(&self, guests: &dyn GuestDisks) -> Result<Vec<Name>> {
        let (vm, socket) = (&self.vm.name, self.app.settings.export_socket(&self.record.name));
        let seen = guests.whereabouts(std::slice::from_ref(vm)).await?.remove(vm).unwrap_or_default();
        let used = |disk: &&DiskSource| {
            let export = crate::protect::export_name(vm, &disk.name);
            seen.disks
                .iter()
                .any(|seen| seen.export.as_ref().is_some_and(|(name, at)| *name == export && *at == socket))
        };
        Ok(self.vm.disks.iter().filter(used).map(|disk| disk.name.clone()).collect())
    }

    /// Images for disks that have no place to go back to, written down before they are made: whoever goes on with this goes
    /// on with them.
    async fn make_places(&self, placeless: &[Name]) -> Result<BTreeMap<Name, PathBuf>> {
        let (domain, vm) = (self.record.name.clone(), self.vm.name.clone());
        let (which, one) = (domain.clone(), vm.clone());
        let moving = self.app.catalog.call(move |db| Moving::get(db, &which, &one)).await?;
        let mut made = moving.map(|moving| moving.made).unwrap_or_default();
        let new: Vec<&DiskSource> = self
            .vm
            .disks
            .iter()
            .filter(|disk| placeless.contains(&disk.name) && !made.contains_key(&disk.name))
            .collect();
        for disk in new {
            made.insert(disk.name.clone(), self.app.settings.new_image(&domain, &vm, &disk.name));
        }
        let all = made.clone();
        self.app.catalog.call(move |db| Moving::make(db, &domain, &vm, &all)).await?;
        for disk in &self.vm.disks {
            let Some(image) = made.get(&disk.name).filter(|image| !image.exists()) else { continue };
            make_empty(image, length(&disk.path)?)?;
        }
        let images: Vec<PathBuf> = made.values().cloned().collect();
        for note in self.let_in(images).await? {
            tracing::warn!(domain = %self.record.name, vm = %self.vm.name, "{note}");
        }
        Ok(made)
    }

    /// Lets the hypervisor at images that the VM is left with; what is to be known of those that it may not reach.
    async fn let_in(&self, images: Vec<PathBuf>) -> Result<Vec<String>> {
        let recovery = self.app.world.known().recovery(&self.record.name).await?;
        let datastore = recovery.map(|recovery| recovery.plan.failover.datastore.join(self.record.name.key()));
        let settings = &self.app.settings;
        let own = [settings.state.clone(), settings.protect.new_images.clone()].into_iter().chain(datastore).collect();
        let reach = Reach { group: settings.protect.socket_group.clone(), own };
        let done = tokio::task::spawn_blocking(move || reach.open(&images)).await;
        done.map_err(|e| Error::with_source(ErrorKind::Internal, "letting the hypervisor at images", e))?
    }

    /// Whether it is protected as before, since its guest has left none of its exports.
    ///
    /// # Errors
    /// Where that cannot be told, or not be written down.
    pub(crate) async fn stay_if_all_are_here(&self) -> Result<bool> {
        let (domain, vm) = (self.record.name.clone(), self.vm.name.clone());
        let (which, one) = (domain.clone(), vm.clone());
        let Some(moving) = self.app.catalog.call(move |db| Moving::get(db, &which, &one)).await? else {
            return Ok(true);
        };
        // Of one that was on its way onto its exports they need not be there.
        if moving.pivots && self.at.on_exports(self.vm).await? < self.vm.disks.len() {
            return Ok(false);
        }
        if self.doubt().await? != Doubt::None {
            return Ok(false);
        }
        self.app.catalog.call(move |db| Moving::stay(db, &domain, &vm)).await?;
        if moving.leaves && !moving.pivots {
            // No guest ever wrote to them.
            remove_files(&Made { files: moving.made.into_values().collect(), ..Made::default() }).await;
        }
        if let (false, Some(hosted)) = (moving.fills, self.app.hosting.get(&self.record.name)) {
            hosted.filled(&self.vm.name).await;
        }
        Ok(true)
    }

    fn images(&self) -> Vec<(crate::hypervisor::DiskSpec, PathBuf)> {
        let paths = self.vm.disks.iter().map(|disk| disk.path.clone());
        self.at.specs(self.vm).into_iter().zip(paths).collect()
    }

    /// Ends the exports of its disks, and with the last VM the protection. Whether that is to be started again for the
    /// other VMs.
    async fn end_exports(&self) -> Result<(LetGo, bool)> {
        let (domain, vm) = (&self.record.name, &self.vm.name);
        let which = domain.clone();
        let known = self.app.catalog.call(move |db| catalog::protected(db, &which)).await?;
        let others = known.iter().any(|one| one.name != *vm);
        let mut answer = LetGo { all_shipped: true, notes: Vec::new() };
        let hosted = self.app.hosting.get(domain);
        let runs = match &hosted {
            Some(hosted) => hosted.is_running().await,
            None => false,
        };
        if let (Some(hosted), true, true) = (&hosted, runs, others) {
            for disk in &self.vm.disks {
                match hosted.remove(vm, &disk.name).await {
                    // It was removed by a call that did not come to its end.
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    other => other?,
                }
            }
        } else if let Some(ended) = self.app.hosting.end(domain).await {
            match ended {
                Ok(report) => {
                    answer.all_shipped = report.all_shipped || !runs;
                    answer.notes = report.notes;
                }
                Err(error) => answer.notes.push(error.to_string()),
            }
        }
        if let Some(hosted) = &hosted {
            // Its copy, if one was under way, was ended.
            hosted.filling().end(vm);
        }
        // Perhaps it was this VM that kept the others from starting.
        Ok((answer, hosted.is_some() && !runs && others))
    }

    /// Points the definition of a VM that is off, and is not served any more, at the images that were served. What is to be
    /// known of those.
    async fn detach(&self) -> Result<Vec<String>> {
        let hypervisor = self.app.world.hypervisor_here();
        let Some(guests) = hypervisor.guest_disks() else { return Ok(Vec::new()) };
        match hypervisor.state(&self.vm.name).await? {
            PowerState::Off => {}
            PowerState::Running if self.at.on_exports(self.vm).await? > 0 => {
                let why = format!("VM {} was started on exports that are served no more", self.vm.name);
                return Err(Error::new(ErrorKind::Refused, format!("{why}: shut it down, and unprotect it again")));
            }
            PowerState::Running | PowerState::Absent => return Ok(Vec::new()),
        }
        let exported = self.exported(guests).await?;
        if exported.is_empty() {
            // Its definition names other disks already.
            return Ok(Vec::new());
        }
        let left: Vec<&DiskSource> = self.vm.disks.iter().filter(|disk| exported.contains(&disk.name)).collect();
        let behind = self.let_in(left.iter().map(|disk| disk.path.clone()).collect()).await?;
        guests.detach(&self.vm.name, &self.images()).await?;
        let places = left.iter().map(|disk| format!("disk {} is at {}", disk.name, disk.path.display()));
        Ok(places.chain(behind).collect())
    }
}

/// Bytes of an image or a block device.
fn length(image: &Path) -> Result<u64> {
    use std::io::{Seek, SeekFrom};
    let end = std::fs::File::open(image).and_then(|mut file| file.seek(SeekFrom::End(0)));
    end.io_context(|| format!("disk image {}", image.display()))
}
