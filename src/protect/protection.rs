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

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::coverage::Members;
use super::disk::{Flow, ProtectedDisk};
use super::health::Health;
use super::inherit;
use super::memory::SiteMemory;
use super::observer::Observer;
use super::opening::{OpenedDisk, Opener};
use super::pipeline::{Foundation, Pipeline};
use super::report::{ProtectReport, ProtectStatus};
use super::request::{ProtectRequest, divide};
use super::retreat::{self, Failed, Retreat};
use super::status;
use super::valve::CaptureMode;
use crate::cancel::Cancel;
use crate::capture::{VmSource, roster};
use crate::datastore::{EngineOptions, Slab, start as start_engine};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Catalogue, DatastoreId};
use crate::ids::{DiskId, Name, VmId};
use crate::log::{LogOptions, ReplicationLog};
use crate::map::PointMap;
use crate::nbd::{Exports, Server, ServerOptions};
use crate::store::{BaseChoice, DomainWriter, StartOptions, StorageSite};

/// How long clients' requests in flight are waited for at the end.
const GRACE: Duration = Duration::from_secs(10);
/// Buffers of the log's engine.
const LOG_SLOTS: usize = 8;

/// A domain under protection. Dropping it without [`Protection::stop`] is like being killed: the next start reads back
/// what is marked.
pub struct Protection {
    site: StorageSite,
    request: ProtectRequest,
    opener: Opener,
    members: Arc<Members>,
    health: Arc<Health>,
    memory: Arc<Mutex<SiteMemory>>,
    exports: Exports,
    server: Option<Server>,
    pipeline: Option<Pipeline>,
    notes: Vec<String>,
    began: Instant,
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
        let memory = blocking(move || SiteMemory::open(&state, &domain)).await?;
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
            began: Instant::now(),
            request,
        };
        protection.serve_early().await?;
        Ok(protection)
    }

    /// Serves at once what ran here before on this boot of the host: its guests may still run. Or what the operator says.
    async fn serve_early(&mut self) -> Result<()> {
        let mut memory = self.memory.lock().await;
        let Some(record) = memory.record().cloned() else { return Ok(()) };
        let known = self.are_known(&record.catalogue)?;
        let ours = memory.is_same_boot() && known;
        if !ours && !self.request.open_unclaimed {
            return Ok(());
        }
        if !known {
            let why = "the exports cannot be opened before the domain is claimed: a disk was never protected here, or \
                       is smaller than it was";
            return Err(Error::new(ErrorKind::Refused, format!("domain {}: {why}", self.request.domain)));
        }
        let opened = self.opener.open_disks(&mut memory, record.domain, &record.catalogue, &self.request.vms).await?;
        self.members.replace(disks_of(&opened), record.catalogue);
        self.note_open(&mut memory)?;
        memory.begin_changes()?;
        drop(memory);
        self.export(&opened)?;
        self.listen()
    }

    /// Whether `catalogue` has all disks, and no image is shorter than its disk was: a guest that runs must not find the
    /// end of its disk gone.
    fn are_known(&self, catalogue: &Catalogue) -> Result<bool> {
        let mut sizes = self.opener.sizes(&self.request.vms)?.into_iter();
        Ok(self.request.vms.iter().all(|vm| {
            let id = catalogue.vm_named(vm.name.as_str()).map(|v| v.id);
            vm.disks.iter().all(|disk| {
                let size = sizes.next().unwrap_or_default();
                let mut known = catalogue.disks.iter().filter(|d| Some(d.vm) == id && d.name == disk.name);
                known.any(|known| size >= known.size || self.request.allow_shrink)
            })
        }))
    }

    /// The members are open for writing from now on, and nothing speaks of other disks any more.
    fn note_open(&self, memory: &mut SiteMemory) -> Result<()> {
        let disks = self.members.disks();
        memory.set_open(self.opener.stamps(&disks)?);
        let ids: Vec<DiskId> = disks.iter().map(|disk| disk.index_disk().id).collect();
        memory.forget_others(&ids)
    }

    fn export(&self, opened: &[OpenedDisk]) -> Result<()> {
        opened.iter().try_for_each(|one| self.exports.add(&one.export, one.disk.clone()))
    }

    fn listen(&mut self) -> Result<()> {
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
        let take_ownership = self.request.take_ownership.then_some(BaseChoice::NewestPoint);
        let options = StartOptions { take_ownership, ..StartOptions::default() };
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
        match Pipeline::start(foundation, &self.request) {
            Ok(pipeline) => self.pipeline = Some(pipeline),
            Err(error) => return Ok(Err(error)),
        }
        Ok(self.start_capture().await)
    }

    async fn foundation(&mut self, writer: &DomainWriter) -> Result<(PointMap, Option<Catalogue>, ReplicationLog)> {
        let (domain, base) = (writer.domain().clone(), writer.base());
        self.notes.extend_from_slice(writer.warnings());
        let mut map = PointMap::load(&domain, base).await?;
        let mut memory = self.memory.lock().await;
        let log = self.open_log(&memory, &domain)?;
        let taken = inherit::take_over(&log, writer, &mut map, self.request.clock.as_ref()).await?;
        if taken > 0 {
            self.notes.push(format!("{taken} segments that an earlier run had not shipped are part of the domain now"));
        }
        let sizes = self.opener.sizes(&self.request.vms)?;
        let roster = roster(map.catalogue(), &self.request.vms, &sizes, self.request.allow_shrink)?;
        self.notes.extend(roster.notes.iter().cloned());
        let speaks = memory.speaks_of(&domain, base);
        let early = self.members.disks();
        for disk in &early {
            // Served early under another identity: what it marked would be lost.
            let index = disk.index_disk();
            if !roster.members.iter().any(|m| m.disk.id == index.id && m.disk.size == index.size) {
                let why = format!("disk {} is another one in the domain's catalogue now", disk.label());
                return Err(Error::new(ErrorKind::Refused, format!("{why}; stop its guest and start again")));
            }
        }
        if early.is_empty() {
            let vms = &self.request.vms;
            let opened = self.opener.open_disks(&mut memory, domain.id(), &roster.catalogue, vms).await?;
            self.members.replace(disks_of(&opened), roster.catalogue.clone());
            self.export(&opened)?;
        } else {
            self.members.replace(early, roster.catalogue.clone());
        }
        if !speaks {
            if memory.record().is_some() {
                let why =
                    "the domain's chain is not the one that was written from here: all disks are compared with it";
                self.notes.push(why.to_owned());
            }
            for disk in self.members.disks() {
                disk.doubt_all().await?;
            }
        }
        let recoverable = map.points_since_manifest().iter().map(|(_, point)| point);
        let recoverable = recoverable.chain(map.manifest().into_iter().flat_map(|m| m.points.iter().map(|(_, p)| p)));
        let recoverable: HashSet<VmId> = recoverable.flat_map(|point| point.vms.iter().copied()).collect();
        let disks = self.members.disks();
        disks.iter().filter(|d| recoverable.contains(&d.index_disk().vm)).for_each(|d| d.note_synced());
        self.note_open(&mut memory)?;
        memory.store(domain.id(), base, writer.generation(), None, roster.catalogue.clone())?;
        self.notes.append(&mut memory.notes);
        Ok((map, roster.changed.then_some(roster.catalogue), log))
    }

    /// The log holds what a dead generation spilled at most, which the bitmaps have marked.
    fn open_log(&self, memory: &SiteMemory, domain: &crate::store::Domain) -> Result<ReplicationLog> {
        let options = EngineOptions::default();
        let engine = start_engine(self.request.engine, Slab::new(LOG_SLOTS, 1 << 20)?, options)?;
        let canonical = std::fs::canonicalize(memory.dir());
        let canonical = canonical.map_err(|e| Error::io(format!("look at {}", memory.dir().display()), e))?;
        let mut log = LogOptions::new(domain.id(), DatastoreId::of_path(&canonical), self.request.log_size);
        log.verify_payloads = false;
        log.largest_segment = divide(self.request.memory).largest_segment();
        ReplicationLog::open(&engine, memory.dir(), &self.request.domain, &log)
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
        let nothing = || Error::new(ErrorKind::Refused, "nothing is captured now; see the status");
        let pipeline = self.pipeline.as_ref().ok_or_else(nothing)?;
        let number = pipeline.recorder.cut_now().ok_or_else(nothing)?;
        let mut shipped = pipeline.shipped.clone();
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
            let opened = self.opener.open_disks(&mut memory, domain, &roster.catalogue, vms).await?;
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

fn disks_of(opened: &[OpenedDisk]) -> Vec<Arc<ProtectedDisk>> {
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
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::with_source(ErrorKind::Internal, "a step of the protection panicked", e))?
}

#[cfg(test)]
#[path = "protection_tests.rs"]
mod tests;
