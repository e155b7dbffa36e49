//! The protection of one domain, from start to end: who may write, which disks, and what is served meanwhile.
//!
//! ```text
//! state locked -> images opened -> (same boot: served, marked only) -> claim -> map, roster, lineage -> pipeline
//!   -> served and captured ... -> clients shut out -> drained -> bits cleared -> stamps -> finished
//! ```
//!
//! Owns the order of these steps. Invariants: disks are open for writing only for who owns the domain, or who owned it
//! before on this boot of the host, or by the operator's word; what the bitmaps say is believed only for the chain that
//! they speak of; the writer is finished last.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::coverage::Members;
use super::disk::{Flow, ProtectedDisk};
use super::hand_over::Stage;
use super::health::Health;
use super::memory::SiteMemory;
use super::observer::Observer;
use super::opening::{Doubts, OpenedDisk, Opener};
use super::outgoing::Outgoing;
use super::pipeline::{Foundation, Pipeline};
use super::rehydrated::Rehydrated;
use super::report::{ProtectReport, ProtectStatus};
use super::request::{Origin, ProtectRequest, divide};
use super::retreat::{self, Failed, Retreat};
use super::status;
use super::valve::CaptureMode;
use crate::cancel::Cancel;
use crate::capture::{VmDefinition, VmSource, roster};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Catalogue, PointFlags};
use crate::ids::{DiskId, Name, SegmentNo};
use crate::nbd::{Exports, Server, ServerOptions};
use crate::store::{BaseChoice, Domain, DomainWriter, StartOptions, StorageSite};

/// How long clients' requests in flight are waited for at the end.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// A domain under protection. Dropping it without [`Protection::stop`] is like being killed: the next start reads back
/// what is marked.
pub struct Protection {
    pub(super) site: StorageSite,
    pub(super) request: ProtectRequest,
    pub(super) opener: Opener,
    pub(super) members: Arc<Members>,
    pub(super) health: Arc<Health>,
    pub(super) memory: Arc<Mutex<SiteMemory>>,
    pub(super) exports: Exports,
    pub(super) server: Option<Server>,
    pub(super) pipeline: Option<Pipeline>,
    pub(super) notes: Vec<String>,
    /// The datastore that the disks were rehydrated in, kept from others.
    pub(super) rehydrated: Option<Rehydrated>,
    /// How far a hand-over is.
    pub(super) stage: Stage,
    pub(super) began: Instant,
}

impl Protection {
    /// Opens the images and, where that is right before the domain is claimed, serves them. Blocks nobody: waits for
    /// nothing but the local disk.
    ///
    /// # Errors
    /// `Invalid` for the request; `Refused` for an image or a state directory that is in use; what opening says.
    pub async fn open(site: StorageSite, request: ProtectRequest) -> Result<Protection> {
        request.validate()?;
        let health = Arc::new(Health::default());
        let division = divide(request.memory);
        let mut opener = Opener::new(&request, division.requests, Arc::clone(&health))?;
        let (state, domain) = (request.state.clone(), request.domain.clone());
        let origin = request.origin.clone();
        let (memory, rehydrated) = blocking(move || {
            let memory = SiteMemory::open(&state, &domain)?;
            let rehydrated = match origin {
                Origin::Site => None,
                Origin::Rehydrated { datastore } => Some(Rehydrated::open(&datastore, &domain)?),
            };
            Ok((memory, rehydrated))
        })
        .await?;
        opener.open_images(&request.vms)?;
        let mut protection = Protection {
            site,
            opener,
            members: Arc::new(Members::default()),
            health,
            memory: Arc::new(Mutex::new(memory)),
            exports: Exports::new(),
            server: None,
            pipeline: None,
            notes: Vec::new(),
            rehydrated,
            stage: Stage::default(),
            began: Instant::now(),
            request,
        };
        protection.serve_early().await?;
        Ok(protection)
    }

    pub(super) fn export(&self, opened: &[OpenedDisk]) -> Result<()> {
        opened.iter().try_for_each(|one| self.exports.add(&one.export, one.disk.clone()))
    }

    pub(super) fn listen(&mut self) -> Result<()> {
        if self.server.is_none() {
            let (tls, engine) = (self.request.tls.clone(), Some(Arc::clone(self.opener.engine())));
            let options = ServerOptions { tls, engine, ..ServerOptions::default() };
            let buffers = Arc::clone(self.opener.buffers());
            self.server = Some(Server::start(&self.request.listen, self.exports.clone(), buffers, options)?);
        }
        Ok(())
    }

    /// The domain's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.request.state.join(self.request.domain.key())
    }

    /// Whether the exports are open.
    pub fn is_serving(&self) -> bool {
        self.server.is_some()
    }

    /// Whether writes are captured, or were until another writer took over.
    pub fn is_claimed(&self) -> bool {
        self.pipeline.is_some()
    }

    /// Where clients connect, as it turned out.
    pub fn addresses(&self) -> Vec<String> {
        let addresses = self.server.as_ref().map(Server::addresses).unwrap_or_default();
        addresses.iter().map(ToString::to_string).collect()
    }

    /// Names of the exports.
    pub fn exports(&self) -> Vec<String> {
        self.exports.names()
    }

    /// Claims the domain and starts to capture. A storage site that does not answer is asked again as long as the domain
    /// was protected here before, and one that refuses as long as guests have their disks; `waiting` is told why.
    ///
    /// # Errors
    /// `Refused` where another site or writer owns the domain and nothing is served; where it is, the protection stays
    /// `Fenced` and serves on as the policy says, as it does where the log store fails. `Cancelled`; what the map says.
    pub async fn claim(&mut self, cancel: &Cancel, mut waiting: impl FnMut(&Error)) -> Result<()> {
        let before = self.memory.lock().await.record().is_some();
        let mut waits = 0;
        loop {
            let (error, claimed) = match cancel.or_stop(self.try_claim()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => (error, true),
                Err(error) => (error, false),
            };
            match retreat::decide(Failed { kind: error.kind(), claimed, serving: self.is_serving(), before }) {
                Retreat::Wait => {
                    self.health.store_fails(&error);
                    waiting(&error);
                    let pause = retreat::pause(waits);
                    waits += 1;
                    tokio::select! { () = tokio::time::sleep(pause) => {} () = cancel.cancelled() => {} }
                }
                Retreat::Serve if error.kind() == ErrorKind::Refused => {
                    self.health.fail(&Error::new(ErrorKind::Fenced, error.to_string()));
                    return Ok(());
                }
                Retreat::Serve => {
                    self.health.fail(&error);
                    return Ok(());
                }
                Retreat::End => return Err(error),
            }
        }
    }

    /// The outer error is about who may write, the inner one about what came after that.
    async fn try_claim(&mut self) -> Result<Result<()>> {
        self.must_be_there().await?;
        let options = self.how_to_start().await?;
        let (site, request) = (&self.site, &self.request);
        let writer = DomainWriter::start(site, &request.domain, &request.site, options).await?;
        self.health.store_answers();
        let (map, changed, log) = match self.foundation(&writer).await {
            Ok(foundation) => foundation,
            Err(error) => {
                // Nothing was written: the next one need not wait until this one is thought dead.
                if let Err(end) = writer.finish().await {
                    tracing::warn!("the end of this run could not be told to other writers: {end}");
                }
                return Ok(Err(error));
            }
        };
        let foundation = Foundation {
            writer,
            map,
            changed,
            log,
            members: Arc::clone(&self.members),
            health: Arc::clone(&self.health),
            memory: Arc::clone(&self.memory),
            division: divide(self.request.memory),
        };
        let generation = foundation.writer.generation();
        match Pipeline::start(foundation, &self.request) {
            Ok(pipeline) => self.pipeline = Some(pipeline),
            Err(error) => return Ok(Err(error)),
        }
        let started = self.start_capture().await;
        if started.is_ok() {
            crate::log_context::generation(generation);
        }
        Ok(started)
    }

    /// A domain that was protected here is not made anew where there is none: the storage site is another one than it was,
    /// or nothing is mounted at its place.
    async fn must_be_there(&self) -> Result<()> {
        let Some(known) = self.memory.lock().await.record().map(|record| record.domain) else { return Ok(()) };
        match Domain::open(&self.site, &self.request.domain).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let (url, name) = (self.site.url(), &self.request.domain);
                let why = format!("storage site {url} has no domain {name}, which was protected here as {known}");
                let advice =
                    "is it the right place, and mounted? Where the domain was deleted, remove its state directory";
                let dir = self.state_dir();
                Err(Error::new(ErrorKind::Unreachable, format!("{why}: {advice} {}", dir.display())))
            }
            opened => opened.map(drop),
        }
    }

    /// How the domain is claimed: as ours, or taken over where that is asked for. Over rehydrated disks that is from the point
    /// that they equal; what is ours was taken over before, and is started from its tip; what was released is claimed only
    /// as long as it is.
    ///
    /// # Errors
    /// `Refused` where that point is no point of the domain any more.
    async fn how_to_start(&self) -> Result<StartOptions> {
        let with = |take_ownership| StartOptions { take_ownership, ..StartOptions::default() };
        let point = self.rehydrated.as_ref().and_then(Rehydrated::point);
        let Some(point) = point.filter(|_| self.request.take_ownership) else {
            return Ok(with(self.request.take_ownership.then_some(BaseChoice::NewestPoint)));
        };
        let domain = Domain::open(&self.site, &self.request.domain).await?;
        let owner = domain.ownership().newest();
        let own = owner.is_some_and(|owner| owner.author.site == self.request.site);
        let released = owner.is_some_and(|owner| owner.released.is_some());
        if own && !released {
            return Ok(with(None));
        }
        let choice = BaseChoice::Point(point.segment);
        let there = match domain.preview_take_over(choice).await {
            Ok(preview) => preview.base == point,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        match there {
            true => Ok(StartOptions { only_released: released && !own, ..with(Some(choice)) }),
            false => {
                let why = format!("the disks equal {point}, which is no point of domain {} now", domain.name());
                Err(Error::new(ErrorKind::Refused, format!("{why}: rehydrate them first")))
            }
        }
    }

    /// Attaches the disks, opens the valve, and serves.
    async fn start_capture(&mut self) -> Result<()> {
        let Some(pipeline) = &self.pipeline else { return Ok(()) };
        let base = pipeline.shipped.borrow().at.segment;
        for disk in self.members.disks() {
            disk.attach(self.flow(pipeline), base);
        }
        pipeline.valve.open();
        self.listen()
    }

    fn flow(&self, pipeline: &Pipeline) -> Flow {
        Flow { recorder: Arc::clone(&pipeline.recorder), valve: Arc::clone(&pipeline.valve) }
    }

    /// How it stands now.
    pub async fn status(&self) -> ProtectStatus {
        let seconds = self.began.elapsed().as_secs();
        status::of(&self.request, &self.members, &self.health, self.pipeline.as_ref(), &self.site, seconds).await
    }

    /// Counts what is shipped from now on, also while it ends. `None` where nothing is captured.
    pub(crate) fn outgoing(&self) -> Option<Outgoing> {
        self.pipeline.as_ref().map(|pipeline| Outgoing::new(&pipeline.backlog, pipeline.shipped.clone()))
    }

    /// Tells how it stands while [`Protection::claim`] is under way.
    pub fn observer(&self) -> Observer {
        Observer {
            request: self.request.clone(),
            members: Arc::clone(&self.members),
            health: Arc::clone(&self.health),
            site: self.site.clone(),
            began: self.began,
        }
    }

    /// What the operator should know of how it started.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether another writer took over, or something else ended capture for good.
    pub fn mode(&self) -> CaptureMode {
        status::mode(self.pipeline.as_ref(), &self.health)
    }

    /// Cuts a point now and waits until it is part of the domain; answers with its number.
    ///
    /// # Errors
    /// `Refused` where nothing is captured now; `Unreachable` when it takes longer than `within`; `Fenced`.
    pub async fn cut_point(&self, within: Duration) -> Result<u64> {
        let number = self.cut(PointFlags::default())?;
        self.until_shipped(number, within).await
    }

    /// Cuts a point with these marks and waits for nothing.
    ///
    /// # Errors
    /// `Refused` where nothing is captured now.
    pub fn cut(&self, flags: PointFlags) -> Result<SegmentNo> {
        let nothing = || Error::new(ErrorKind::Refused, "nothing is captured now; see the status");
        let pipeline = self.pipeline.as_ref().ok_or_else(nothing)?;
        pipeline.recorder.cut_marked(flags).ok_or_else(nothing)
    }

    /// Names of the VMs that are protected now.
    pub fn vms(&self) -> Vec<Name> {
        self.request.vms.iter().map(|vm| vm.name.clone()).collect()
    }

    /// Waits until a point that was cut is part of the domain; answers with its number.
    ///
    /// # Errors
    /// As [`cut_point`](Self::cut_point).
    pub fn until_shipped(&self, number: SegmentNo, within: Duration) -> impl Future<Output = Result<u64>> + use<> {
        let shipped = self.pipeline.as_ref().map(|pipeline| pipeline.shipped.clone());
        async move {
            let nothing = || Error::new(ErrorKind::Refused, "nothing is captured now; see the status");
            let mut shipped = shipped.ok_or_else(nothing)?;
            let reached = tokio::time::timeout(within, shipped.wait_for(|shipped| shipped.at.segment >= number)).await;
            match reached {
                Ok(Ok(_)) => Ok(number.get()),
                Ok(Err(_)) => Err(Error::new(ErrorKind::Fenced, "shipping has ended; see the status")),
                Err(_) => {
                    let why = format!("point {} is cut and not part of the domain after {within:?}", number.get());
                    Err(Error::new(ErrorKind::Unreachable, why))
                }
            }
        }
    }

    /// Protects more: new VMs, or new disks of VMs that are protected here. Initial sync begins at once.
    ///
    /// # Errors
    /// `Refused` where nothing is captured now, or a disk of that name is protected already; what opening says.
    pub async fn add(&mut self, vms: &[VmSource]) -> Result<()> {
        let nothing = || Error::new(ErrorKind::Refused, "disks can join only while the domain is captured");
        let pipeline = self.pipeline.as_ref().filter(|p| p.recorder.is_capturing()).ok_or_else(nothing)?;
        self.opener.refuse_known(vms)?;
        let mut all = self.request.vms.clone();
        for vm in vms {
            match all.iter_mut().find(|known| known.name == vm.name) {
                Some(known) => known.disks.extend(vm.disks.iter().cloned()),
                None => all.push(vm.clone()),
            }
        }
        let mut probe =
            crate::capture::ReplicateRequest::new(self.request.domain.clone(), self.request.site.clone(), all.clone());
        probe.memory = self.request.memory;
        probe.validate()?;
        self.opener.open_images(vms)?;
        let joined = async {
            let sizes = self.opener.sizes(&all)?;
            let roster = roster(&self.members.catalogue(), &all, &sizes, false)?;
            let mut memory = self.memory.lock().await;
            let domain = pipeline.writer.domain().id();
            let opened =
                self.opener.open_disks(&mut memory, domain, &roster.catalogue, vms, &Doubts::default()).await?;
            Ok::<_, Error>((roster.catalogue, opened))
        };
        let (catalogue, opened) = match joined.await {
            Ok(joined) => joined,
            Err(error) => {
                let names = vms.iter().flat_map(|vm| vm.disks.iter().map(move |disk| (&vm.name, &disk.name)));
                names.for_each(|(vm, disk)| self.opener.forget(vm, disk));
                return Err(error);
            }
        };
        let base = pipeline.shipped.borrow().at.segment;
        pipeline.chain.set_catalogue(catalogue.clone());
        let mut disks = self.members.disks();
        for one in &opened {
            one.disk.attach(self.flow(pipeline), base);
            disks.push(Arc::clone(&one.disk));
        }
        self.members.replace(disks, catalogue);
        self.note_open(&mut *self.memory.lock().await)?;
        self.export(&opened)?;
        self.request.vms = all;
        pipeline.recorder.cut_now();
        Ok(())
    }

    /// The copies onto all disks of a VM have ended: the next point covers it, and is cut now.
    pub fn filled(&self, vm: &Name) {
        self.request.filling.end(vm);
        if let Some(pipeline) = &self.pipeline {
            pipeline.recorder.cut_now();
        }
    }

    /// Another definition travels with the disks of a VM from now on: with the next segment, which is cut now.
    ///
    /// # Errors
    /// `Refused` where nothing is captured now; `NotFound`.
    pub fn redefine(&mut self, vm: &Name, definition: &VmDefinition) -> Result<()> {
        let nothing = || Error::new(ErrorKind::Refused, "definitions can change only while the domain is captured");
        let pipeline = self.pipeline.as_ref().filter(|p| p.recorder.is_capturing()).ok_or_else(nothing)?;
        let mut catalogue = self.members.catalogue();
        let missing = || Error::new(ErrorKind::NotFound, format!("VM {vm} is not protected here"));
        let known = catalogue.vms.iter_mut().find(|known| known.name == *vm).ok_or_else(missing)?;
        known.definition_kind.clone_from(&definition.kind);
        known.definition.clone_from(&definition.text);
        known.shape.clone_from(&definition.shape);
        self.request.vms.iter_mut().filter(|known| known.name == *vm).for_each(|known| {
            known.definition = Some(definition.clone());
        });
        self.members.replace(self.members.disks(), catalogue.clone());
        pipeline.chain.set_catalogue(catalogue);
        pipeline.recorder.cut_now();
        Ok(())
    }

    /// All of the disks of a VM is compared with the chain before a point covers it again: somebody wrote to the images
    /// without us.
    ///
    /// # Errors
    /// `Refused` where nothing is captured now; what marking says.
    pub async fn doubt(&self, vm: &Name) -> Result<()> {
        let nothing = || Error::new(ErrorKind::Refused, "disks can be compared only while the domain is captured");
        self.pipeline.as_ref().filter(|p| p.recorder.is_capturing()).ok_or_else(nothing)?;
        let owner = self.members.catalogue().vm_named(vm.as_str()).map(|v| v.id);
        for disk in self.members.disks().iter().filter(|disk| Some(disk.index_disk().vm) == owner) {
            disk.doubt_all().await?;
        }
        Ok(())
    }

    /// Protects a disk no longer; a VM without disks leaves the domain. Its recovered copies stay where they are.
    ///
    /// # Errors
    /// `NotFound`; `Refused` where nothing is captured now, or it is the domain's last disk.
    pub async fn remove(&mut self, vm: &Name, disk: &Name) -> Result<()> {
        let nothing = || Error::new(ErrorKind::Refused, "disks can leave only while the domain is captured");
        let pipeline = self.pipeline.as_ref().filter(|p| p.recorder.is_capturing()).ok_or_else(nothing)?;
        let mut catalogue = self.members.catalogue();
        let id = find(&catalogue, vm, disk)?;
        if catalogue.disks.len() == 1 {
            let why = format!("{vm}/{disk} is the last disk of the domain: stop the protection instead");
            return Err(Error::new(ErrorKind::Refused, why));
        }
        let gone = self.members.disk(id)?;
        self.exports.remove(&export_name(vm, disk)).await?;
        catalogue.disks.retain(|d| d.id != id);
        let owner = gone.index_disk().vm;
        if catalogue.disks_of(owner).next().is_none() {
            catalogue.vms.retain(|v| v.id != owner);
        }
        let mut disks = self.members.disks();
        disks.retain(|d| d.index_disk().id != id);
        // What was captured of it is cut before the catalogue is without it.
        pipeline.recorder.cut_now();
        self.members.replace(disks, catalogue.clone());
        pipeline.chain.set_catalogue(catalogue);
        pipeline.recorder.cut_now();
        self.opener.forget(vm, disk);
        for known in &mut self.request.vms {
            if known.name == *vm {
                known.disks.retain(|d| d.name != *disk);
            }
        }
        self.request.vms.retain(|v| !v.disks.is_empty());
        drop(gone);
        let mut memory = self.memory.lock().await;
        self.note_open(&mut memory)
    }

    /// Ends it: clients are shut out, what was captured is shipped as long as that takes and `drain` allows, the last
    /// point is written, and the next start is told how far it all goes.
    ///
    /// # Errors
    /// What the local disk says. What was acknowledged stays on the local disks and marked, whatever fails.
    pub async fn stop(mut self) -> Result<ProtectReport> {
        if let Some(server) = self.server.take() {
            server.shutdown(GRACE).await;
        }
        let disks = self.members.disks();
        for disk in &disks {
            if let Err(error) = disk.backing().sync_data().await {
                self.notes.push(format!("{}: {}", disk.label(), error.text));
            }
        }
        let mut report = ProtectReport { notes: std::mem::take(&mut self.notes), ..ProtectReport::default() };
        let Some(pipeline) = self.pipeline.take() else {
            report.dirty = disks.iter().map(|disk| disk.intent().dirty_bytes()).sum();
            if let Stage::Released(done) = &self.stage {
                report.all_shipped = true;
                (report.point, report.point_time) = (done.point, done.point_time.clone());
                report.notes.push(format!("the domain was released at {}", done.released));
            }
            return Ok(report);
        };
        let stopped = pipeline.stop(self.request.drain).await?;
        report.dirty = disks.iter().map(|disk| disk.intent().dirty_bytes()).sum();
        report.bitmap_syncs = disks.iter().map(|disk| disk.intent().report().syncs).sum();
        let sound = disks.iter().all(|disk| disk.backing().failure().is_none());
        drop(disks);
        if stopped.all && sound {
            let stamps = self.opener.stamps(&self.members.disks())?;
            stopped.clearer.stamp(stamps).await?;
        }
        let shipped = stopped.shipped;
        report.all_shipped = stopped.all;
        (report.point, report.point_time) = (shipped.at.segment.get(), shipped.point_time.to_string());
        (report.segments, report.stored, report.written) = (shipped.segments, shipped.stored, shipped.written);
        report.raw = shipped.raw;
        report.requests = status::requests(&self.site, self.began.elapsed().as_secs());
        (report.manifests, report.left) = (stopped.manifests, stopped.left);
        let findings = self.health.findings();
        report.notes.extend(findings.fenced.into_iter().chain(findings.fault));
        if let Some(writer) = Arc::into_inner(stopped.writer)
            && let Err(error) = writer.finish().await
        {
            report.notes.push(format!("the end of this run could not be told to other writers: {error}"));
        }
        Ok(report)
    }

    /// Requests of guests that failed on their local disks.
    pub fn failed_writes(&self) -> u64 {
        self.members.disks().iter().map(|disk| disk.traffic.failed.load(Relaxed)).sum()
    }
}

impl Drop for Protection {
    fn drop(&mut self) {
        if let Some(pipeline) = self.pipeline.take() {
            pipeline.abandon();
        }
        // A disk knows its recorder, which knows all disks: without this none would ever be closed.
        self.members.replace(Vec::new(), Catalogue::default());
    }
}

pub(super) fn disks_of(opened: &[OpenedDisk]) -> Vec<Arc<ProtectedDisk>> {
    opened.iter().map(|one| Arc::clone(&one.disk)).collect()
}

/// The name under which a disk is served.
pub(crate) fn export_name(vm: &Name, disk: &Name) -> String {
    format!("{vm}/{disk}")
}

fn find(catalogue: &Catalogue, vm: &Name, disk: &Name) -> Result<DiskId> {
    let owner = catalogue.vm_named(vm.as_str()).map(|v| v.id);
    let found = catalogue.disks.iter().find(|d| Some(d.vm) == owner && d.name == *disk);
    found.map(|d| d.id).ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{vm}/{disk} is not protected here")))
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(crate::log_context::here(work)).await;
    done.map_err(|e| Error::with_source(ErrorKind::Internal, "a step of the protection panicked", e))?
}

#[cfg(test)]
#[path = "protection_tests.rs"]
mod tests;
