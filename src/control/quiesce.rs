//! Points at which guests' file systems are whole: frozen by the agents in the guests, cut, thawed.
//!
//! ```text
//! somebody stands by -> note it durably -> freeze (at most `protect.freeze_limit`) -> cut -> thaw -> forget the note
//! ```
//!
//! Owns the notes of who may be frozen. Invariants: a guest is thawed whatever became of the rest, by another process where
//! this one dies, after a restart as well, and again and again until it says so; a point carries the mark only where every
//! guest that it covers said that it was frozen, or was off, and none was frozen for longer than the limit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::MutexGuard;

use super::appliance::Appliance;
use super::thaw_guard::{ThawGuard, Turn, turn_of};
use crate::datastore::sync_dir;
use crate::error::{Error, ErrorKind, IoResultExt, Result, ResultExt};
use crate::failover::World;
use crate::format::PointFlags;
use crate::hypervisor::{Hypervisor, PowerState};
use crate::ids::Name;

/// Time between two tries to thaw a guest that may be frozen.
pub(super) const THAW_AGAIN: Duration = Duration::from_secs(5);
/// Longest wait for a point that was cut by itself.
const WITHIN: Duration = Duration::from_secs(60);

/// A point that was cut, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Quiesced {
    /// Its number.
    pub(crate) point: u64,
    /// Whether it carries the mark.
    pub(crate) whole: bool,
    /// VMs that were not frozen, and why.
    pub(crate) left_out: Vec<(Name, String)>,
}

/// What became of freezing one VM.
enum Frozen {
    Yes,
    Off,
    No(String),
}

/// Notes of VMs that may be frozen: a file for each, which is there before it is, and until it is thawed.
#[derive(Debug)]
pub(crate) struct FreezeNotes {
    dir: PathBuf,
    turn: PathBuf,
    /// The settings of who thaws where this process dies; nobody does where there are none.
    config: Option<PathBuf>,
    guard: Option<ThawGuard>,
}

impl FreezeNotes {
    /// Notes below the appliance's state. Nothing is made yet.
    pub(crate) fn new(state: &Path, config: Option<PathBuf>) -> FreezeNotes {
        FreezeNotes { dir: state.join("frozen"), turn: turn_of(state), config, guard: None }
    }

    /// The turn to freeze, or to thaw what another process left; `None` where another one has it.
    pub(super) async fn take_turn(&self) -> Result<Option<Turn>> {
        Turn::take(self.turn.clone()).await
    }

    /// From now on somebody thaws all that is noted where this process dies.
    async fn be_guarded(&mut self) -> Result<()> {
        let Some(config) = &self.config else { return Ok(()) };
        if !self.guard.as_mut().is_some_and(ThawGuard::stands) {
            self.guard = Some(ThawGuard::start(config, &self.dir).await?);
        }
        Ok(())
    }

    /// Lets who stands by go where nobody is noted.
    async fn stand_down(&mut self) {
        if self.all().is_empty()
            && let Some(guard) = self.guard.take()
        {
            guard.dismiss().await;
        }
    }

    /// Where they are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes that a VM may be frozen; whether that was not noted before.
    fn note(&self, vm: &Name) -> Result<bool> {
        let path = self.dir.join(vm.key());
        std::fs::create_dir_all(&self.dir).io_context(|| format!("make {}", self.dir.display()))?;
        let is_new = !path.exists();
        std::fs::write(&path, []).io_context(|| format!("make {}", path.display()))?;
        sync_dir(&self.dir).map(|()| is_new)
    }

    fn forget(&self, vm: &Name) -> Result<()> {
        let path = self.dir.join(vm.key());
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done.io_context(|| format!("remove {}", path.display())),
        }
    }

    /// Who may be frozen.
    pub(super) fn all(&self) -> Vec<Name> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str().and_then(Name::from_key)).collect()
    }
}

/// Freezing and thawing at one hypervisor.
pub(super) struct Freezer<'a> {
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    pub(super) notes: MutexGuard<'a, FreezeNotes>,
    pub(super) limit: Duration,
}

impl Freezer<'_> {
    /// All of it within the limit: others stand still meanwhile.
    async fn freeze(&self, vm: &Name) -> Frozen {
        match tokio::time::timeout(self.limit, self.try_freeze(vm)).await {
            Ok(Ok(frozen)) => frozen,
            Ok(Err(e)) => Frozen::No(e.to_string()),
            Err(_) => Frozen::No(format!("its agent did not freeze it within {} s", self.limit.as_secs_f64())),
        }
    }

    async fn try_freeze(&self, vm: &Name) -> Result<Frozen> {
        match self.hypervisor.state(vm).await? {
            PowerState::Off => return Ok(Frozen::Off),
            PowerState::Absent => return Ok(Frozen::No(format!("{} does not know it", self.hypervisor.describe()))),
            PowerState::Running => {}
        }
        let is_new = self.notes.note(vm).while_doing(|| "note that it is frozen")?;
        if self.hypervisor.freeze(vm, self.limit).await? {
            return Ok(Frozen::Yes);
        }
        if is_new {
            // Nothing was asked of it: there is nothing to be thawed.
            self.notes.forget(vm)?;
        }
        Ok(Frozen::No("no agent answers in the guest".to_owned()))
    }

    /// Thaws a VM that may be frozen; where that fails the note stays.
    async fn thaw(&self, vm: &Name) {
        let thaw = async {
            match self.hypervisor.state(vm).await? {
                PowerState::Running => self.hypervisor.thaw(vm, self.limit).await,
                PowerState::Off | PowerState::Absent => Ok(()),
            }
        };
        let thawed = tokio::time::timeout(self.limit.max(THAW_AGAIN), thaw).await;
        let late = || Error::new(ErrorKind::Unreachable, "its agent does not answer");
        let thawed = thawed.unwrap_or_else(|_| Err(late()));
        if let Err(e) = thawed.and_then(|()| self.notes.forget(vm)) {
            tracing::error!(%vm, "its guest may be frozen still, and thawing is tried again: {e}");
        }
    }

    /// Thaws all that are noted, side by side.
    pub(super) async fn thaw_all(&self) {
        futures::future::join_all(self.notes.all().iter().map(|vm| self.thaw(vm))).await;
    }

    async fn freeze_all(&self, vms: Vec<Name>) -> (PointFlags, Vec<(Name, Frozen)>) {
        let begun = Instant::now();
        let frozen = futures::future::join_all(vms.iter().map(|vm| self.freeze(vm))).await;
        let mut all: Vec<(Name, Frozen)> = vms.into_iter().zip(frozen).collect();
        // Some guests thaw themselves after a while, and do not say so.
        if begun.elapsed() > self.limit {
            for (_, frozen) in all.iter_mut().filter(|(_, frozen)| matches!(frozen, Frozen::Yes)) {
                *frozen = Frozen::No(format!("all were not frozen within {} s", self.limit.as_secs_f64()));
            }
        }
        let quiesced = !all.iter().any(|(_, frozen)| matches!(frozen, Frozen::No(_)));
        (PointFlags { quiesced, ..PointFlags::default() }, all)
    }
}

impl Appliance {
    /// Waits until nobody else freezes: who thaws all that is noted must not thaw another's.
    async fn freezer(&self) -> Freezer<'_> {
        let notes = self.freeze_notes.lock().await;
        Freezer { hypervisor: self.world.hypervisor(), notes, limit: self.settings.protect.freeze_limit }
    }

    /// Thaws guests that may be frozen: by an earlier run, one that was ended in the middle, or for want of an answer.
    pub(crate) async fn thaw_what_is_left(&self) {
        let mut freezer = self.freezer().await;
        freezer.thaw_all().await;
        freezer.notes.stand_down().await;
    }

    /// Cuts a point of a domain with its guests frozen, as far as they can be.
    ///
    /// # Errors
    /// `Refused` where nothing is captured, or another process still thaws guests; what cutting says. Guests are thawed in any
    /// case.
    pub(crate) async fn quiesced_point(&self, domain: &Name, within: Duration) -> Result<Quiesced> {
        let hosted = self
            .hosting
            .get(domain)
            .ok_or_else(|| Error::new(ErrorKind::Refused, format!("no VM of domain {domain} is protected here")))?;
        let cut = {
            let mut freezer = self.freezer().await;
            let Some(_turn) = freezer.notes.take_turn().await? else {
                let why = "guests that an appliance before this one froze are being thawed: ask again in some seconds";
                return Err(Error::new(ErrorKind::Refused, why));
            };
            freezer.notes.be_guarded().await?;
            let cut = hosted.cut_after(async |vms| freezer.freeze_all(vms).await).await;
            freezer.thaw_all().await;
            freezer.notes.stand_down().await;
            cut
        };
        let (point, flags, frozen) = cut?;
        let point = hosted.until_shipped(point, within).await?;
        let left_out = frozen.into_iter().filter_map(|(vm, frozen)| match frozen {
            Frozen::No(why) => Some((vm, why)),
            Frozen::Yes | Frozen::Off => None,
        });
        Ok(Quiesced { point, whole: flags.quiesced, left_out: left_out.collect() })
    }

    /// Thaws guests that an earlier run, or a thaw that failed, left behind, until the appliance closes.
    pub(crate) async fn keep_thawing(self: Arc<Appliance>) {
        while !self.closing.is_cancelled() {
            self.thaw_what_is_left().await;
            tokio::select! { () = tokio::time::sleep(THAW_AGAIN) => {} () = self.closing.cancelled() => {} }
        }
    }

    /// Cuts points by itself, where the settings say so, until the appliance closes.
    pub(crate) async fn keep_quiescing(self: Arc<Appliance>) {
        let every = self.settings.protect.quiesce_every;
        while every > Duration::ZERO && !self.closing.is_cancelled() {
            tokio::select! { () = tokio::time::sleep(every) => self.quiesce_all().await, () = self.closing.cancelled() => {} }
        }
    }

    /// A point of every domain that is captured here, one after the other.
    async fn quiesce_all(&self) {
        for (domain, hosted) in self.hosting.all() {
            if !hosted.is_running().await || self.engine.running(&domain).is_some() {
                continue;
            }
            match self.quiesced_point(&domain, WITHIN).await {
                Ok(done) => {
                    let left_out: Vec<String> = done.left_out.iter().map(|(vm, why)| format!("{vm}: {why}")).collect();
                    tracing::info!(%domain, point = done.point, quiesced = done.whole, "a point was cut: {}", left_out.join("; "));
                }
                Err(e) => tracing::warn!(%domain, "a point with its guests frozen could not be cut: {e}"),
            }
        }
    }
}
