//! VMs that the hypervisor runs already: their disks are moved onto exports to be protected, and back to be let go.
//!
//! ```text
//! look at the VM -> images for what cannot be served as it is -> written down -> served -> the hypervisor moves the disks
//!    runs: empty images, filled by its hypervisor's copy; no point covers it until that is done
//!    is off: raw images and devices are served as they are, others are converted first; then its definition is changed
//! ```
//!
//! Owns the order, and what becomes of a move that does not come to its end: one that failed is undone unless disks have
//! moved already; one that a kill cut off is gone on with at the next start. Invariants: the images of a move that is not
//! done hold no moment of the guest, and no point covers it; a guest has its old disks or all it wrote on the new ones.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::appliance::Appliance;
use super::catalog::{self, DomainRecord, Moving};
use crate::capture::{DiskSource, VmDefinition, VmSource};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::hypervisor::{DiskPlace, DiskSpec, FoundDisk, FoundVm, GuestDisks, Hypervisor, PowerState, RunCommand};
use crate::ids::Name;

/// Longest time that an image may take to be converted.
const CONVERSION: Duration = Duration::from_secs(24 * 3600);
/// Most bytes of a converter's errors that are shown.
const MAX_ERRORS: usize = 4096;
/// Pauses between two tries to go on with a move after a start.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// What a call about a VM goes by.
pub(crate) struct TakingIn<'a> {
    app: &'a Arc<Appliance>,
    record: &'a DomainRecord,
    vm: &'a Name,
}

/// A file as it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    len: u64,
    changed: (i64, i64),
}

fn seen(path: &Path) -> Result<Seen> {
    let there = std::fs::metadata(path).io_context(|| format!("disk image {}", path.display()))?;
    Ok(Seen { len: there.len(), changed: (there.mtime(), there.mtime_nsec()) })
}

/// An image that is read as another one is written.
struct Conversion {
    from: PathBuf,
    format: String,
    to: PathBuf,
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
            Ok(()) => self.finish(&vm, Trust::Images).await,
            Err(error) => Err(error),
        };
        match moved {
            Ok(()) => Ok(()),
            // The appliance is told to end, which ends the exports: the next start goes on.
            Err(error) if self.app.closing.is_cancelled() => Err(error),
            Err(error) if self.has_moved(&vm).await => {
                Err(error.while_doing("some of its disks have moved, and are protected; protect it again to go on"))
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
        let moving = Moving { vm: vm.name.clone(), fills };
        let write = move |db: &rusqlite::Connection| {
            // Served from now on, whatever a recovery that came to nothing left.
            catalog::unpark(db, &domain)?;
            catalog::protect(db, &domain, &written)?;
            moving.begin(db, &domain)
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
    fn specs(&self, vm: &VmSource) -> Vec<DiskSpec> {
        let socket = crate::nbd::Address::Unix(self.app.settings.export_socket(&self.record.name));
        let spec = |disk: &DiskSource| DiskSpec {
            name: disk.name.clone(),
            uri: socket.uri(&crate::protect::export_name(&vm.name, &disk.name), false),
            size: disk.size.unwrap_or_default(),
        };
        vm.disks.iter().map(spec).collect()
    }

    /// Has the hypervisor use the exports of a VM that is served. May be asked again.
    pub(crate) async fn finish(&self, vm: &VmSource, trust: Trust) -> Result<()> {
        let hypervisor = self.app.world.hypervisor_here();
        let guests = able(&*hypervisor)?;
        let specs = self.specs(vm);
        let (domain, name) = (self.record.name.clone(), self.vm.clone());
        let fills = self.app.catalog.call(move |db| Moving::of(db, &domain)).await?;
        let fills = fills.iter().any(|moving| moving.vm == name && moving.fills);
        let (on, all) = (self.on_exports(vm).await?, vm.disks.len());
        let refused = |why: &str| Err(Error::new(ErrorKind::Refused, format!("VM {} {why}", self.vm)));
        match hypervisor.state(self.vm).await? {
            PowerState::Running if !fills && on == 0 => {
                return refused("was started on its old disks before it was moved: protect it again");
            }
            PowerState::Running => {
                let told = |done: u64, total: u64| tracing::debug!(vm = %self.vm, done, total, "its disks are copied");
                guests.move_onto(self.vm, &specs, &told).await?;
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
        let (domain, vm) = (self.record.name.clone(), self.vm.clone());
        self.app.catalog.call(move |db| Moving::end(db, &domain, &vm)).await
    }

    /// Whether an image was made for a move.
    fn is_new(&self, image: &Path) -> bool {
        image.starts_with(&self.app.settings.protect.new_images)
    }

    /// How many of its exports the hypervisor uses.
    async fn on_exports(&self, vm: &VmSource) -> Result<usize> {
        let socket = self.app.settings.export_socket(&self.record.name);
        let Some(found) = self.look().await? else { return Ok(0) };
        let ours = |disk: &&FoundDisk| match &disk.place {
            DiskPlace::Export { name, socket: Some(there) } => {
                *there == socket && vm.disks.iter().any(|d| *name == crate::protect::export_name(&vm.name, &d.name))
            }
            _ => false,
        };
        Ok(found.disks.iter().filter(ours).count())
    }

    /// Whether the hypervisor uses some of the exports already, or cannot be asked.
    async fn has_moved(&self, vm: &VmSource) -> bool {
        self.on_exports(vm).await.map_or(true, |on| on > 0)
    }

    /// Ends what was begun: the guest has its old disks, and nothing of it is protected.
    async fn undo(&self, vm: &VmSource) -> Result<()> {
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

    /// Moves the disks of a VM that runs from exports back onto the images that it had before.
    ///
    /// # Errors
    /// What moving says; then it is protected as before, or some of its disks are back: ask again.
    pub(crate) async fn move_back(&self, vm: &VmSource) -> Result<Vec<String>> {
        let hypervisor = self.app.world.hypervisor_here();
        let Some(guests) = hypervisor.guest_disks() else { return Ok(Vec::new()) };
        if hypervisor.state(self.vm).await? != PowerState::Running {
            return Ok(Vec::new());
        }
        // One that was begun and cut off is not to be gone on with.
        guests.abandon_moves(self.vm).await?;
        let definition = vm.definition.as_ref().map_or("", |definition| &definition.text);
        let images: Vec<_> = self.specs(vm).into_iter().zip(vm.disks.iter().map(|d| d.path.clone())).collect();
        let told = |done: u64, total: u64| tracing::debug!(vm = %self.vm, done, total, "its disks are copied back");
        let places = guests.move_back(self.vm, definition, &images, &told).await?;
        let note = |(disk, path): &(Name, PathBuf)| {
            let served = vm.disks.iter().find(|d| d.name == *disk).map_or(Path::new(""), |d| &d.path);
            format!("disk {disk} is at {} again; {} is not used any more", path.display(), served.display())
        };
        Ok(places.iter().map(note).collect())
    }

    /// Points the definition of a VM that is off, and is not served any more, at the images that were served.
    pub(crate) async fn detach(&self, vm: &VmSource) -> Result<()> {
        let hypervisor = self.app.world.hypervisor_here();
        let Some(guests) = hypervisor.guest_disks() else { return Ok(()) };
        match hypervisor.state(self.vm).await? {
            PowerState::Off => {}
            PowerState::Running if self.on_exports(vm).await? > 0 => {
                let why = format!("VM {} was started on exports that are served no more", self.vm);
                return Err(Error::new(ErrorKind::Refused, format!("{why}: shut it down, and unprotect it again")));
            }
            PowerState::Running | PowerState::Absent => return Ok(()),
        }
        let images: Vec<_> = self.specs(vm).into_iter().zip(vm.disks.iter().map(|d| d.path.clone())).collect();
        guests.detach(self.vm, &images).await
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

/// Files of a move, and the images that they were made from as those were.
#[derive(Debug, Default)]
struct Made {
    files: Vec<PathBuf>,
    seen: Vec<Seen>,
}

fn able(hypervisor: &dyn Hypervisor) -> Result<&dyn GuestDisks> {
    let what = || format!("{} cannot move disks of its VMs", hypervisor.describe());
    hypervisor.guest_disks().ok_or_else(|| Error::new(ErrorKind::Unsupported, what()))
}

/// Goes on with moves that the last run did not end, each until it is done or the appliance closes.
pub(crate) async fn go_on(app: Arc<Appliance>) {
    let found = app.catalog.call(|db| {
        let mut all = Vec::new();
        for domain in Moving::domains(db)? {
            let record = DomainRecord::get(db, &domain)?;
            for moving in Moving::of(db, &domain)? {
                let vm = catalog::protected(db, &domain)?.into_iter().find(|vm| vm.name == moving.vm);
                all.extend(vm.map(|vm| (record.clone(), vm)));
            }
        }
        Ok(all)
    });
    match found.await {
        Ok(all) => {
            for (record, vm) in all {
                tokio::spawn(go_on_with(Arc::clone(&app), record, vm));
            }
        }
        Err(error) => tracing::error!("moves that were under way are not gone on with: {error}"),
    }
}

async fn go_on_with(app: Arc<Appliance>, record: DomainRecord, vm: VmSource) {
    let (mut pause, mut told) = (MIN_PAUSE, String::new());
    let domain = record.name.clone();
    while !app.closing.is_cancelled() {
        let served = match app.hosting.get(&domain) {
            Some(hosted) => hosted.is_running().await,
            None => false,
        };
        let done = match served {
            true => move_again(&app, &record, &vm).await,
            false => Err(Error::new(ErrorKind::Unreachable, "its disks are not served yet")),
        };
        match done {
            Ok(()) => return app.note("appliance", "moved", domain.as_str(), Ok(()), vm.name.as_str()).await,
            Err(error) if error.to_string() == told => {}
            Err(error) => {
                told = error.to_string();
                tracing::warn!(%domain, vm = %vm.name, "moving its disks is tried again: {told}");
                app.note("appliance", "moved", domain.as_str(), Err(error.kind().word()), &told).await;
            }
        }
        tokio::select! { () = tokio::time::sleep(pause) => {} () = app.closing.cancelled() => {} }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// One try, unless somebody has done it, or ended the protection, meanwhile.
async fn move_again(app: &Arc<Appliance>, record: &DomainRecord, vm: &VmSource) -> Result<()> {
    let _turn = app.turns.take(&record.name, &format!("disks of {} are moved", vm.name)).await?;
    if let Some(task) = app.engine.running(&record.name) {
        return Err(Error::new(ErrorKind::Unreachable, format!("task {} works on the domain", task.id)));
    }
    let domain = record.name.clone();
    let under_way = app.catalog.call(move |db| Moving::of(db, &domain)).await?;
    if !under_way.iter().any(|moving| moving.vm == vm.name) {
        return Ok(());
    }
    let taking = TakingIn::new(app, record, &vm.name);
    match taking.finish(vm, Trust::Nothing).await {
        Err(error) if app.closing.is_cancelled() => Err(error),
        // It will not do better: the guest keeps its old disks, and is not protected.
        Err(error) if error.kind() == ErrorKind::Refused && !taking.has_moved(vm).await => {
            tracing::error!(domain = %record.name, vm = %vm.name, "its protection is given up: {error}");
            app.note("appliance", "gave up to protect", record.name.as_str(), Err("refused"), &error.to_string()).await;
            taking.undo(vm).await?;
            // Whether a guest ever wrote to them is not known any more: they are the operator's to remove.
            for disk in vm.disks.iter().filter(|disk| taking.is_new(&disk.path)) {
                tracing::warn!(domain = %record.name, vm = %vm.name, "{} is left, and not used", disk.path.display());
            }
            Ok(())
        }
        done => done,
    }
}

async fn remove_files(made: &Made) {
    for file in &made.files {
        if let Err(error) = tokio::fs::remove_file(file).await
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("{} is left over: {error}", file.display());
        }
    }
}

fn make_room(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .io_context(|| format!("make {}", dir.display()))?;
    match path.exists() {
        false => Ok(()),
        true => {
            let why = format!("{} is there already, from a protection before", path.display());
            Err(Error::new(ErrorKind::Refused, format!("{why}; nothing of it is used: remove it")))
        }
    }
}

/// A new image of `size` bytes that holds nothing.
fn make_empty(path: &Path, size: u64) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    make_room(path)?;
    let what = || format!("make {}", path.display());
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).io_context(what)?;
    file.set_len(size).io_context(what)?;
    file.sync_all().io_context(what)
}

/// Reads an image in another format into a raw one, which has its name only once it is whole and durable.
async fn convert(conversion: &Conversion) -> Result<()> {
    let Conversion { from, format, to } = conversion;
    make_room(to)?;
    let text = |path: &Path| {
        let text = path.to_str().map(str::to_owned);
        text.ok_or_else(|| Error::new(ErrorKind::Invalid, format!("{} is not UTF-8", path.display())))
    };
    let part = PathBuf::from(format!("{}.part", text(to)?));
    let command = ["qemu-img", "convert", "-f", format, "-O", "raw", "--"].map(str::to_owned);
    let run = RunCommand {
        command: command.into_iter().chain([text(from)?, text(&part)?]).collect(),
        environment: [("LC_ALL".to_owned(), "C".to_owned())].into(),
        input: Vec::new(),
        limit: CONVERSION,
        max_output: MAX_ERRORS,
        max_errors: MAX_ERRORS,
    };
    let end = run.run().await.map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::new(ErrorKind::Unsupported, "there is no qemu-img here: install QEMU's tools"),
        _ => e,
    })?;
    if end.code != Some(0) {
        let _ = tokio::fs::remove_file(&part).await;
        let said = String::from_utf8_lossy(&end.errors).trim().to_owned();
        return Err(Error::new(ErrorKind::Io, format!("convert {}: {said}", from.display())));
    }
    let to = to.clone();
    let finish = move || {
        std::fs::File::open(&part)
            .and_then(|file| file.sync_all())
            .io_context(|| format!("sync {}", part.display()))?;
        std::fs::rename(&part, &to).io_context(|| format!("name {}", to.display()))
    };
    let done = tokio::task::spawn_blocking(finish).await;
    done.map_err(|e| Error::with_source(ErrorKind::Internal, "naming an image panicked", e))?
}
