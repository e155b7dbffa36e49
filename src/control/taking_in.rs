//! VMs that the hypervisor runs already: their disks are moved onto exports to be protected.
//!
//! ```text
//! look at the VM -> images for what cannot be served as it is -> written down -> served -> the hypervisor moves the disks
//!    runs: empty images, filled by its hypervisor's copy; no point covers it until that is done
//!    is off: raw images and devices are served as they are, others are converted first; then its definition is changed
//! ```
//!
//! Owns the order, and what becomes of a move that does not come to its end: one that failed is undone unless disks have
//! moved already; one that a kill cut off is gone on with at the next start, see `moving_on`. Invariants: the images of a
//! move that is not done hold no moment of the guest, and no point covers it; a guest has its old disks or all it wrote on
//! the new ones.

use std::path::Path;
use std::sync::Arc;

use super::appliance::Appliance;
use super::catalog::{self, DomainRecord, Moving};
use super::change_over::ChangeOver;
use super::doubt::Doubt;
use super::letting_go::LettingGo;
use super::moves::{Direction, ShownMove};
use super::new_images::{Conversion, Made, convert, make_empty, remove_files, seen};
use crate::capture::{DiskSource, VmDefinition, VmSource};
use crate::error::{Error, ErrorKind, Result};
use crate::hypervisor::{DiskPlace, DiskSpec, FoundDisk, FoundVm, GuestDisks, Hypervisor, PowerState};
use crate::ids::Name;

/// What a call about a VM goes by.
pub(crate) struct TakingIn<'a> {
    app: &'a Arc<Appliance>,
    record: &'a DomainRecord,
    vm: &'a Name,
}

impl<'a> TakingIn<'a> {
    pub(crate) fn new(app: &'a Arc<Appliance>, record: &'a DomainRecord, vm: &'a Name) -> TakingIn<'a> {
        TakingIn { app, record, vm }
    }

    /// The VM as the hypervisor has it; `None` where the hypervisor cannot tell, or does not know it.
    ///
    /// # Errors
    /// `Refused` where it cannot be recovered elsewhere; `Unreachable`.
    pub(crate) async fn look(&self) -> Result<Option<FoundVm>> {
        let hypervisor = self.app.world.hypervisor_here();
        match hypervisor.guest_disks() {
            Some(guests) => guests.look(self.vm).await,
            None => Ok(None),
        }
    }

    /// Protects the VM that was found, with the disks that it has, or goes on with that.
    ///
    /// # Errors
    /// What looking, opening and moving say. It is as it was then, unless the error says that disks have moved.
    pub(crate) async fn protect(&self, found: &FoundVm) -> Result<()> {
        let (vm, conversions) = self.plan(found)?;
        let shown = self.show(&vm);
        let made = self.make_images(&vm, found, &conversions).await?;
        let begun = self.serve(&vm, found.running).await;
        if let Err(error) = begun {
            remove_files(&made).await;
            return Err(error);
        }
        let unchanged =
            conversions.iter().zip(&made.seen).try_for_each(|(one, before)| match seen(&one.from)? == *before {
                true => Ok(()),
                false => {
                    Err(Error::new(ErrorKind::Refused, format!("{} was written to meanwhile", one.from.display())))
                }
            });
        let moved = match unchanged {
            Ok(()) => self.finish_shown(&vm, Trust::Images, &shown).await,
            Err(error) => Err(error),
        };
        match moved {
            Ok(()) => Ok(()),
            // The appliance is told to end, which ends the exports: the next start goes on.
            Err(error) if self.app.closing.is_cancelled() => Err(error),
            Err(error) if self.has_moved(&vm).await || self.may_have_pivoted().await => {
                let why = "some of its disks have moved, or may have, and are protected; protect it again to go on";
                self.app.moves.trouble(&self.record.name, self.vm, Some(format!("{why}: {error}")));
                Err(error.while_doing(why))
            }
            Err(error) => {
                if let Err(also) = self.undo(&vm).await {
                    return Err(error.while_doing(format!("and it could not be undone ({also})")));
                }
                remove_files(&made).await;
                Err(error)
            }
        }
    }

    /// Whether the guest was told to use an export: what it wrote since may be there and nowhere else, whatever is known now
    /// of where its disks are.
    async fn may_have_pivoted(&self) -> bool {
        let domain = self.record.name.clone();
        match self.app.catalog.call(move |db| Moving::of(db, &domain)).await {
            Ok(moving) => moving.iter().any(|one| one.vm == *self.vm && one.pivots),
            Err(_) => true,
        }
    }

    /// Disks of the VM as they are to be served, and what is converted for that.
    fn plan(&self, found: &FoundVm) -> Result<(VmSource, Vec<Conversion>)> {
        let (mut disks, mut conversions) = (Vec::new(), Vec::new());
        for FoundDisk { name, place, size } in &found.disks {
            let fresh = self.app.settings.new_image(&self.record.name, self.vm, name);
            let (path, size) = match place {
                DiskPlace::Export { name: export, .. } => {
                    let why = format!("disk {name} of VM {} is on the NBD export {export} already", self.vm);
                    let advice = "name its image with --disk, or move it to a file first";
                    return Err(Error::new(ErrorKind::Refused, format!("{why}; {advice}")));
                }
                DiskPlace::Raw(path) if !found.running => (path.clone(), None),
                DiskPlace::Image { path, format } if !found.running => {
                    conversions.push(Conversion { from: path.clone(), format: format.clone(), to: fresh.clone() });
                    (fresh, Some(*size))
                }
                DiskPlace::Raw(_) | DiskPlace::Image { .. } => (fresh, Some(*size)),
            };
            disks.push(DiskSource { name: name.clone(), path, size });
        }
        let definition = VmDefinition {
            kind: found.definition_kind.clone(),
            text: found.definition.clone(),
            shape: found.shape.clone(),
        };
        Ok((VmSource { name: self.vm.clone(), disks, definition: Some(definition) }, conversions))
    }

    /// Makes the images that are not there yet: empty ones for a guest that runs, converted ones for one that is off.
    async fn make_images(&self, vm: &VmSource, found: &FoundVm, conversions: &[Conversion]) -> Result<Made> {
        let mut made = Made::default();
        let done = async {
            for conversion in conversions {
                made.seen.push(seen(&conversion.from)?);
                convert(conversion).await?;
                // Not before: what was there already is not ours to remove.
                made.files.push(conversion.to.clone());
            }
            if found.running {
                for disk in &vm.disks {
                    make_empty(&disk.path, disk.size.unwrap_or_default())?;
                    made.files.push(disk.path.clone());
                }
            }
            Ok(())
        };
        match done.await {
            Ok(()) => Ok(made),
            Err(error) => {
                remove_files(&made).await;
                Err(error)
            }
        }
    }

    /// Writes it down, and serves its disks.
    async fn serve(&self, vm: &VmSource, fills: bool) -> Result<()> {
        let (domain, written) = (self.record.name.clone(), vm.clone());
        let name = vm.name.clone();
        let write = move |db: &rusqlite::Connection| {
            // Served from now on, whatever a recovery that came to nothing left.
            catalog::unpark(db, &domain)?;
            catalog::protect(db, &domain, &written)?;
            Moving::begin(db, &domain, &name, fills)
        };
        self.app.catalog.call(write).await?;
        let begin = |filling: &crate::protect::Filling| {
            vm.disks.iter().filter(|_| fills).for_each(|disk| filling.begin(&vm.name, &disk.name));
        };
        let vms = std::slice::from_ref(vm);
        let served = match self.app.hosting.get(&self.record.name) {
            Some(hosted) => {
                begin(hosted.filling());
                let added = hosted.add(vms).await;
                if added.is_err() {
                    hosted.filling().end(&vm.name);
                }
                added
            }
            None => {
                let request = self.app.settings.protect_request(self.record.name.clone(), vms.to_vec());
                begin(&request.filling);
                self.app.hosting.start(&self.app.stores, &self.record.store, request).await
            }
        };
        if served.is_err() {
            self.forget().await?;
        }
        served
    }

    async fn forget(&self) -> Result<()> {
        let (domain, vm) = (self.record.name.clone(), self.vm.clone());
        self.app.catalog.call(move |db| catalog::unprotect(db, &domain, &vm)).await
    }

    /// The exports of a VM's disks.
    pub(super) fn specs(&self, vm: &VmSource) -> Vec<DiskSpec> {
        let socket = crate::nbd::Address::Unix(self.app.settings.export_socket(&self.record.name));
        let spec = |disk: &DiskSource| DiskSpec {
            name: disk.name.clone(),
            uri: socket.uri(&crate::protect::export_name(&vm.name, &disk.name), false),
            size: disk.size.unwrap_or_default(),
        };
        vm.disks.iter().map(spec).collect()
    }

    /// Shows that its disks are on their way.
    fn show<'b>(&'b self, vm: &'b VmSource) -> ShownMove<'b> {
        self.app.moves.begin(&self.record.name, self.vm, Direction::Onto, vm.disks.iter().map(|disk| &disk.name))
    }

    /// Has the hypervisor use the exports of a VM that is served. May be asked again.
    ///
    /// # Errors
    /// What moving says; `Refused` where its guest was switched off or on meanwhile, so that it cannot go on.
    pub(crate) async fn finish(&self, vm: &VmSource, trust: Trust) -> Result<()> {
        self.finish_shown(vm, trust, &self.show(vm)).await
    }

    /// Protects a VM on that was to leave: its guest's disks go onto the exports again that they have left.
    ///
    /// # Errors
    /// As [`TakingIn::finish`].
    pub(crate) async fn stay(&self, vm: &VmSource) -> Result<()> {
        let leaving = LettingGo::new(self.app, self.record, vm);
        if leaving.stay_if_all_are_here().await? {
            return Ok(());
        }
        leaving.refuse_doubt(false).await?;
        let (domain, name) = (self.record.name.clone(), self.vm.clone());
        self.app.catalog.call(move |db| Moving::begin(db, &domain, &name, true)).await?;
        if let Some(hosted) = self.app.hosting.get(&self.record.name) {
            vm.disks.iter().for_each(|disk| hosted.filling().begin(self.vm, &disk.name));
        }
        self.finish(vm, Trust::Nothing).await
    }

    /// Points the definition of a VM that is off, and whose guest ran on other disks, at its exports again. One that does not
    /// stray stays as it is.
    ///
    /// # Errors
    /// `Refused` where it runs; what pointing it says.
    pub(crate) async fn bring_home(&self, vm: &VmSource) -> Result<()> {
        let Some(why) = self.app.astray.of(&self.record.name, self.vm) else { return Ok(()) };
        let hypervisor = self.app.world.hypervisor_here();
        if hypervisor.state(self.vm).await? == PowerState::Running && self.on_exports(vm).await? < vm.disks.len() {
            return Err(Error::new(ErrorKind::Refused, format!("VM {}: {why}", self.vm)));
        }
        if hypervisor.state(self.vm).await? == PowerState::Off {
            able(&*hypervisor)?.attach(self.vm, &self.specs(vm)).await?;
        }
        self.app.astray.look_soon();
        Ok(())
    }

    async fn finish_shown(&self, vm: &VmSource, trust: Trust, shown: &ShownMove<'_>) -> Result<()> {
        let hypervisor = self.app.world.hypervisor_here();
        let guests = able(&*hypervisor)?;
        let specs = self.specs(vm);
        let (domain, name) = (self.record.name.clone(), self.vm.clone());
        let moving = self.app.catalog.call(move |db| Moving::get(db, &domain, &name)).await?;
        let fills = moving.as_ref().is_some_and(|moving| moving.fills);
        let found = self.look().await?;
        let (on, all) = (self.count_on_exports(vm, found.as_ref()), vm.disks.len());
        if let Some(moving) = moving.filter(|moving| moving.fills) {
            self.refuse_doubt(vm, Doubt::of(&moving, found.as_ref(), on, all)).await?;
        }
        let refused = |why: &str| Err(Error::new(ErrorKind::Refused, format!("VM {} {why}", self.vm)));
        match hypervisor.state(self.vm).await? {
            PowerState::Running if !fills && on == 0 => {
                return refused("was started on its old disks before it was moved: protect it again");
            }
            PowerState::Running => {
                let (app, domain, direction) = (self.app, &self.record.name, Direction::Onto);
                let watcher = ChangeOver { app, domain, vm, direction, shown };
                guests.move_onto(self.vm, &specs, &watcher).await?;
            }
            // A definition names an export only once the guest has moved there.
            PowerState::Off if on == all => {}
            PowerState::Off if fills && on > 0 => {
                return refused(
                    "was switched off while some of its disks had moved: start it, and that is gone on with",
                );
            }
            PowerState::Off if fills => {
                return refused(
                    "was switched off while its disks were copied: what they hold is nothing whole; protect it again",
                );
            }
            PowerState::Off if trust == Trust::Nothing && vm.disks.iter().any(|disk| self.is_new(&disk.path)) => {
                return refused(
                    "has images that were converted before the appliance ended, and may have run since; protect it again",
                );
            }
            PowerState::Off => guests.attach(self.vm, &specs).await?,
            PowerState::Absent => {
                let why = format!("VM {} is not known to {} any more", self.vm, hypervisor.describe());
                return Err(Error::new(ErrorKind::NotFound, why));
            }
        }
        if let Some(hosted) = self.app.hosting.get(&self.record.name) {
            hosted.filled(self.vm).await;
        }
        self.app.moves.trouble(&self.record.name, self.vm, None);
        let (domain, vm) = (self.record.name.clone(), self.vm.clone());
        self.app.catalog.call(move |db| Moving::end(db, &domain, &vm)).await
    }

    /// Whether an image was made for a move.
    pub(super) fn is_new(&self, image: &Path) -> bool {
        image.starts_with(&self.app.settings.protect.new_images)
    }

    /// How many of its exports the hypervisor uses.
    pub(super) async fn on_exports(&self, vm: &VmSource) -> Result<usize> {
        Ok(self.count_on_exports(vm, self.look().await?.as_ref()))
    }

    /// The same, of what was found.
    pub(super) fn count_on_exports(&self, vm: &VmSource, found: Option<&FoundVm>) -> usize {
        let socket = self.app.settings.export_socket(&self.record.name);
        let ours = |disk: &&FoundDisk| match &disk.place {
            DiskPlace::Export { name, socket: Some(there) } => {
                *there == socket && vm.disks.iter().any(|d| *name == crate::protect::export_name(&vm.name, &d.name))
            }
            _ => false,
        };
        found.map_or(0, |found| found.disks.iter().filter(ours).count())
    }

    /// Fails where it is not certain what the guest wrote last; that an operator is told is written down.
    ///
    /// # Errors
    /// `Refused` with what there is to decide.
    pub(super) async fn refuse_doubt(&self, vm: &VmSource, doubt: Doubt) -> Result<()> {
        if doubt == Doubt::None {
            return Ok(());
        }
        if doubt == Doubt::Off {
            let (domain, name) = (self.record.name.clone(), self.vm.clone());
            self.app.catalog.call(move |db| Moving::told(db, &domain, &name)).await?;
        }
        let images: Vec<_> = vm.disks.iter().map(|disk| disk.path.display().to_string()).collect();
        Err(Error::new(ErrorKind::Refused, format!("VM {} {}", self.vm, doubt.words(&images.join(", ")))))
    }

    /// Whether the hypervisor uses some of the exports already, or cannot be asked.
    pub(super) async fn has_moved(&self, vm: &VmSource) -> bool {
        self.on_exports(vm).await.map_or(true, |on| on > 0)
    }

    /// Ends what was begun: the guest has its old disks, and nothing of it is protected.
    pub(super) async fn undo(&self, vm: &VmSource) -> Result<()> {
        let hypervisor = self.app.world.hypervisor_here();
        able(&*hypervisor)?.abandon_moves(self.vm).await?;
        let domain = &self.record.name;
        let which = domain.clone();
        let others = self.app.catalog.call(move |db| catalog::protected(db, &which)).await?;
        if let Some(hosted) = self.app.hosting.get(domain) {
            match others.iter().any(|other| other.name != vm.name) {
                true => {
                    for disk in &vm.disks {
                        match hosted.remove(&vm.name, &disk.name).await {
                            // A try before this one did.
                            Err(e) if e.kind() == ErrorKind::NotFound => {}
                            other => other?,
                        }
                    }
                    hosted.filling().end(&vm.name);
                }
                false => drop(self.app.hosting.end(domain).await),
            }
        }
        self.forget().await
    }
}

/// What is known of the images of a VM that is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// They were made just now, of disks that nobody wrote to since.
    Images,
    /// They are of a run before this one.
    Nothing,
}

fn able(hypervisor: &dyn Hypervisor) -> Result<&dyn GuestDisks> {
    let what = || format!("{} cannot move disks of its VMs", hypervisor.describe());
    hypervisor.guest_disks().ok_or_else(|| Error::new(ErrorKind::Unsupported, what()))
}
