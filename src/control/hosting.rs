//! Protections that run in the appliance, one for each domain whose disks it serves.
//!
//! ```text
//! start --> open images (same boot: served at once) --> claim --> running: add, remove, cut ... --> end: drained, let go
//!             ^--- at a restart: whatever fails is tried again, since guests may want their disks ---'
//! ```
//!
//! Owns which protections run and what becomes of one that does not start. It never decides who owns a domain: the
//! protection does. Invariants: one protection for each domain; one that guests had before a restart is not given up
//! because an image or the store is away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{RwLock, oneshot, watch};
use tracing::Instrument;

use super::stores::OpenStores;
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::format::PointFlags;
use crate::ids::{Name, SegmentNo};
use crate::log_context;
use crate::nbd::Listen;
use crate::progress::Progress;
use crate::protect::{
    CaptureMode, DiskStatus, Observer, ProtectReport, ProtectRequest, ProtectStatus, Protection, VmStatus,
};

/// First pause after a start that failed, doubled up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Looks whether disks are open, and the pause between two: ten seconds in all.
const OPENING_LOOKS: usize = 200;
const OPENING_PAUSE: Duration = Duration::from_millis(50);

/// Time between two words of how far it is while it ends.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// How far a protection is.
enum Stage {
    /// Not open yet, or to be opened again.
    Opening,
    Claiming(Box<Observer>),
    Running(Box<Protection>),
    Ended,
}

/// How it ended.
type End = Arc<Result<ProtectReport, (ErrorKind, String)>>;

/// One protection.
pub(crate) struct Hosted {
    request: ProtectRequest,
    stage: RwLock<Stage>,
    cancel: Cancel,
    /// Why it does not run, as long as it does not.
    trouble: Mutex<Option<String>>,
    /// Where its disks are served.
    addresses: Mutex<Vec<String>>,
    /// Group that may connect there, besides this process's user.
    group: Option<u32>,
    ended: watch::Sender<Option<End>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hosted {
    fn refuse(stage: &Stage) -> Error {
        match stage {
            Stage::Ended => Error::new(ErrorKind::Cancelled, "the protection has ended"),
            _ => Error::new(
                ErrorKind::Refused,
                "nothing is captured now: the domain is not claimed yet; see its problems",
            ),
        }
    }

    /// Cuts a point, see [`Protection::cut_point`].
    pub(crate) async fn cut_point(&self, within: Duration) -> Result<u64> {
        let (point, ..) = self.cut_after(async |_| (PointFlags::default(), ())).await?;
        self.until_shipped(point, within).await
    }

    /// Cuts a point with the marks that `before` answers with for the VMs that are protected; nothing can keep the cut
    /// waiting once that was begun, and no VM joins in between.
    pub(crate) async fn cut_after<M>(
        &self,
        before: impl AsyncFnOnce(Vec<Name>) -> (PointFlags, M),
    ) -> Result<(SegmentNo, PointFlags, M)> {
        let stage = self.stage.read().await;
        let Stage::Running(protection) = &*stage else { return Err(Hosted::refuse(&stage)) };
        let (flags, made) = before(protection.vms()).await;
        Ok((protection.cut(flags)?, flags, made))
    }

    /// Waits until a point that was cut is part of the domain, see [`Protection::until_shipped`]. Nobody waits for this.
    pub(crate) async fn until_shipped(&self, point: SegmentNo, within: Duration) -> Result<u64> {
        let shipped = match &*self.stage.read().await {
            Stage::Running(protection) => protection.until_shipped(point, within),
            other => return Err(Hosted::refuse(other)),
        };
        shipped.await
    }

    /// Has VMs or disks join, see [`Protection::add`].
    pub(crate) async fn add(&self, vms: &[crate::capture::VmSource]) -> Result<()> {
        match &mut *self.stage.write().await {
            Stage::Running(protection) => protection.add(vms).await,
            other => Err(Hosted::refuse(other)),
        }
    }

    /// Copies onto all disks of a VM have ended, see [`Protection::filled`].
    pub(crate) async fn filled(&self, vm: &Name) {
        self.request.filling.end(vm);
        if let Stage::Running(protection) = &*self.stage.read().await {
            protection.filled(vm);
        }
    }

    /// Another definition travels with the disks of a VM, see [`Protection::redefine`].
    pub(crate) async fn redefine(&self, vm: &Name, definition: &crate::capture::VmDefinition) -> Result<()> {
        match &mut *self.stage.write().await {
            Stage::Running(protection) => protection.redefine(vm, definition),
            other => Err(Hosted::refuse(other)),
        }
    }

    /// All of the disks of a VM is compared, see [`Protection::doubt`].
    pub(crate) async fn doubt(&self, vm: &Name) -> Result<()> {
        match &*self.stage.read().await {
            Stage::Running(protection) => protection.doubt(vm).await,
            other => Err(Hosted::refuse(other)),
        }
    }

    /// Disks that guests are being copied onto, or that guests do not run on.
    pub(crate) fn filling(&self) -> &crate::protect::Filling {
        &self.request.filling
    }

    /// Has a disk leave, see [`Protection::remove`].
    pub(crate) async fn remove(&self, vm: &Name, disk: &Name) -> Result<()> {
        match &mut *self.stage.write().await {
            Stage::Running(protection) => protection.remove(vm, disk).await,
            other => Err(Hosted::refuse(other)),
        }
    }

    /// Whether what guests write is captured, or was until another writer came.
    pub(crate) async fn is_running(&self) -> bool {
        matches!(&*self.stage.read().await, Stage::Running(_))
    }

    /// Whether another writer came, as far as that can be told at once.
    pub(crate) fn is_fenced(&self) -> bool {
        let stage = self.stage.try_read();
        matches!(stage.as_deref(), Ok(Stage::Running(protection)) if protection.mode() == CaptureMode::Fenced)
    }

    /// Who asks for the domain, while it is written from here.
    pub(crate) async fn asked(&self) -> Option<crate::store::Asked> {
        match &*self.stage.read().await {
            Stage::Running(protection) => protection.asked(),
            _ => None,
        }
    }

    /// How it stands.
    pub(crate) async fn status(&self) -> ProtectStatus {
        let mut status = match &*self.stage.read().await {
            Stage::Running(protection) => return protection.status().await,
            Stage::Claiming(observer) => observer.status().await,
            Stage::Opening | Stage::Ended => self.closed(),
        };
        if let Some(trouble) = lock(&self.trouble).clone()
            && !status.problems.contains(&trouble)
        {
            status.problems.push(trouble);
        }
        status
    }

    /// What is told while nothing is open.
    fn closed(&self) -> ProtectStatus {
        let status = if lock(&self.trouble).is_some() { "Error" } else { "Initializing" };
        let vms = self.request.vms.iter().map(|vm| {
            let disks = vm.disks.iter().map(|disk| DiskStatus {
                name: disk.name.to_string(),
                path: disk.path.display().to_string(),
                size: disk.size.unwrap_or_default(),
                ..DiskStatus::default()
            });
            let (name, disks) = (vm.name.to_string(), disks.collect());
            VmStatus { name, status: status.to_owned(), disks, ..VmStatus::default() }
        });
        ProtectStatus {
            domain: self.request.domain.to_string(),
            site: self.request.site.to_string(),
            mode: "starting".to_owned(),
            status: status.to_owned(),
            vms: vms.collect(),
            ..ProtectStatus::default()
        }
    }

    /// Where its disks are served.
    pub(crate) fn addresses(&self) -> Vec<String> {
        lock(&self.addresses).clone()
    }

    fn trouble(&self, error: &Error) {
        *lock(&self.trouble) = Some(error.to_string());
    }

    /// Notes where it is served, and lets the group in that may connect there.
    fn note_addresses(&self, protection: &Protection) -> Result<()> {
        *lock(&self.addresses) = protection.addresses();
        let sockets = self.request.listen.iter().filter_map(|listen| match listen {
            Listen::Unix(path) if protection.is_serving() => Some(path),
            _ => None,
        });
        match self.group {
            Some(group) => sockets.into_iter().try_for_each(|socket| super::socket_group::admit(group, socket)),
            None => Ok(()),
        }
    }

    /// Ends it, and waits for that; what is shipped meanwhile is told. May be asked several times.
    pub(crate) async fn end(&self, progress: &Progress) -> Result<ProtectReport> {
        let mut outgoing = match &*self.stage.read().await {
            Stage::Running(protection) => protection.outgoing(),
            _ => None,
        };
        self.cancel.cancel();
        let mut ended = self.ended.subscribe();
        let end = loop {
            if let Some(outgoing) = &mut outgoing {
                outgoing.tell(progress);
            }
            // The sender lives as long as this.
            if let Ok(end) = tokio::time::timeout(TELL_EVERY, ended.wait_for(Option::is_some)).await {
                break end.ok().and_then(|end| end.clone());
            }
        };
        if let Some(outgoing) = &mut outgoing {
            outgoing.tell(progress);
        }
        match end.as_deref() {
            Some(Ok(report)) => Ok(report.clone()),
            Some(Err((kind, text))) => Err(Error::new(*kind, text.clone())),
            None => Err(Error::new(ErrorKind::Internal, "a protection ended without a report")),
        }
    }

    /// From the opening to the end.
    async fn run(self: Arc<Hosted>, stores: Arc<OpenStores>, store: Name, first: Option<oneshot::Sender<Result<()>>>) {
        let (mut first, mut pause) = (first, MIN_PAUSE);
        let end = loop {
            // Each attempt claims a generation of its own.
            let about = log_context::domain(&self.request.domain);
            match self.attempt(&stores, &store).instrument(about.clone()).await {
                Ok(protection) => break self.keep(protection, first).instrument(about).await,
                Err(error) if self.cancel.is_cancelled() => break Err(error),
                Err(error) => {
                    if let Some(first) = first.take() {
                        let _ = first.send(Err(error));
                        break Err(Error::new(ErrorKind::Cancelled, "it was not started"));
                    }
                    about.in_scope(|| tracing::warn!("its protection does not start, and is tried again: {error}"));
                    self.trouble(&error);
                    *self.stage.write().await = Stage::Opening;
                    tokio::select! { () = tokio::time::sleep(pause) => {} () = self.cancel.cancelled() => {} }
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        };
        *self.stage.write().await = Stage::Ended;
        lock(&self.addresses).clear();
        let end = match end {
            // It was ended before it ran: nothing was captured.
            Err(error) if error.kind() == ErrorKind::Cancelled => Ok(ProtectReport::default()),
            end => end.map_err(|error| (error.kind(), error.to_string())),
        };
        self.ended.send_replace(Some(Arc::new(end)));
    }

    /// Keeps it running until it is to end.
    async fn keep(&self, protection: Protection, first: Option<oneshot::Sender<Result<()>>>) -> Result<ProtectReport> {
        for note in protection.notes() {
            tracing::info!("{note}");
        }
        *lock(&self.trouble) = None;
        *self.stage.write().await = Stage::Running(Box::new(protection));
        if let Some(first) = first {
            // Whoever asked has gone: it runs all the same.
            let _ = first.send(Ok(()));
        }
        tracing::info!("its disks are served, and what is written is captured");
        self.cancel.cancelled().await;
        let stage = std::mem::replace(&mut *self.stage.write().await, Stage::Ended);
        let Stage::Running(protection) = stage else { return Ok(ProtectReport::default()) };
        let ended = protection.stop().await;
        match &ended {
            Ok(report) if report.all_shipped => tracing::info!(point = report.point, "its protection ended"),
            Ok(report) => tracing::warn!(left = report.left, "its protection ended before all was shipped"),
            Err(error) => tracing::error!("its protection ended badly: {error}"),
        }
        ended
    }

    /// One start: opened and claimed, or closed again.
    async fn attempt(&self, stores: &OpenStores, store: &Name) -> Result<Protection> {
        self.cancel.check()?;
        let site = stores.open(store).await?;
        let mut protection = Protection::open(site, self.request.clone()).await?;
        *self.stage.write().await = Stage::Claiming(Box::new(protection.observer()));
        let claimed = match self.note_addresses(&protection) {
            Ok(()) => protection.claim(&self.cancel, |error| self.trouble(error)).await,
            Err(error) => Err(error),
        };
        match claimed.and_then(|()| self.note_addresses(&protection)) {
            Ok(()) => Ok(protection),
            Err(error) => {
                lock(&self.addresses).clear();
                if let Err(also) = protection.stop().await {
                    tracing::warn!("letting go of its disks: {also}");
                }
                Err(error)
            }
        }
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Hosting {
    hosted: Mutex<BTreeMap<Name, Arc<Hosted>>>,
    group: OnceLock<u32>,
}

impl Hosting {
    /// Lets a group connect to all sockets that are opened from now on.
    pub(crate) fn admit(&self, group: u32) {
        // It is told once, before anything is served.
        let _ = self.group.set(group);
    }

    /// The protection of a domain.
    pub(crate) fn get(&self, domain: &Name) -> Option<Arc<Hosted>> {
        lock(&self.hosted).get(domain).cloned()
    }

    /// All, by name.
    pub(crate) fn all(&self) -> Vec<(Name, Arc<Hosted>)> {
        lock(&self.hosted).iter().map(|(name, hosted)| (name.clone(), Arc::clone(hosted))).collect()
    }

    fn enter(&self, request: ProtectRequest) -> Result<Arc<Hosted>> {
        let domain = request.domain.clone();
        let mut all = lock(&self.hosted);
        if all.contains_key(&domain) {
            return Err(Error::new(ErrorKind::Refused, format!("domain {domain} is protected here already")));
        }
        let hosted = Arc::new(Hosted {
            request,
            stage: RwLock::new(Stage::Opening),
            cancel: Cancel::new(),
            trouble: Mutex::default(),
            addresses: Mutex::default(),
            group: self.group.get().copied(),
            ended: watch::Sender::new(None),
        });
        all.insert(domain, Arc::clone(&hosted));
        Ok(hosted)
    }

    /// Starts a protection and waits until it captures.
    ///
    /// # Errors
    /// `Refused` where the domain has one; what opening and claiming say. Then there is none.
    pub(crate) async fn start(&self, stores: &Arc<OpenStores>, store: &Name, request: ProtectRequest) -> Result<()> {
        let domain = request.domain.clone();
        let hosted = self.enter(request)?;
        let (tell, told) = oneshot::channel();
        tokio::spawn(Arc::clone(&hosted).run(Arc::clone(stores), store.clone(), Some(tell)));
        let started = told.await;
        let started = started
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled, "the protection was ended while it started")));
        if started.is_err() {
            lock(&self.hosted).remove(&domain);
        }
        started
    }

    /// Starts a protection that was there before, and goes on trying.
    ///
    /// # Errors
    /// `Refused` where the domain has one.
    pub(crate) fn restart(&self, stores: &Arc<OpenStores>, store: &Name, request: ProtectRequest) -> Result<()> {
        let hosted = self.enter(request)?;
        tokio::spawn(hosted.run(Arc::clone(stores), store.clone(), None));
        Ok(())
    }

    /// Opens the disks of a domain that is not claimed yet, by an operator's word; answers with where they are served.
    ///
    /// # Errors
    /// `Refused` where nothing of it is protected here; what opening says.
    pub(crate) async fn open_unclaimed(
        &self,
        stores: &Arc<OpenStores>,
        store: &Name,
        domain: &Name,
    ) -> Result<Vec<String>> {
        let none = || Error::new(ErrorKind::Refused, format!("no VM of domain {domain} is protected here"));
        let hosted = self.get(domain).ok_or_else(none)?;
        if !hosted.addresses().is_empty() {
            return Ok(hosted.addresses());
        }
        let request = ProtectRequest { open_unclaimed: true, ..hosted.request.clone() };
        if let Some(ended) = self.end(domain).await {
            ended?;
        }
        self.restart(stores, store, request)?;
        let opened = self.get(domain).ok_or_else(none)?;
        for _ in 0..OPENING_LOOKS {
            let (addresses, trouble) = (opened.addresses(), lock(&opened.trouble).clone());
            match trouble {
                _ if !addresses.is_empty() => return Ok(addresses),
                Some(why) => return Err(Error::new(ErrorKind::Refused, why)),
                None => tokio::time::sleep(OPENING_PAUSE).await,
            }
        }
        Err(Error::new(
            ErrorKind::Unreachable,
            format!("the disks of domain {domain} are not open yet; see its problems"),
        ))
    }

    /// Ends the protection of a domain; `None` where there is none.
    pub(crate) async fn end(&self, domain: &Name) -> Option<Result<ProtectReport>> {
        self.end_telling(domain, &Progress::new()).await
    }

    /// The same, and tells what is shipped meanwhile.
    pub(crate) async fn end_telling(&self, domain: &Name, progress: &Progress) -> Option<Result<ProtectReport>> {
        let hosted = self.get(domain)?;
        let end = hosted.end(progress).await;
        lock(&self.hosted).remove(domain);
        Some(end)
    }

    /// Ends all, side by side.
    pub(crate) async fn end_all(&self) -> Vec<(Name, Result<ProtectReport>)> {
        let names: Vec<Name> = self.all().into_iter().map(|(name, _)| name).collect();
        let ends = names.into_iter().map(|name| async move {
            let end = self.end(&name).await;
            (name, end)
        });
        let ended = futures::future::join_all(ends).await;
        ended.into_iter().filter_map(|(name, end)| Some((name, end?))).collect()
    }
}
