//! Handing the domain over: the guests are still, everything is in the chain, and only then it is given up.
//!
//! ```text
//! exports closed --> synced, all recoverable --> last point cut, nothing captured after it --> accepted
//!    --> bits cleared --> record as of a clean end, of no boot --> release --> pipeline retired      handed over
//!    any error up to here: captured again, exports open again          error: closed until it is known
//! ```
//!
//! Owns that order. Invariants: nothing is released that is not accepted, or what a guest wrote after; the disks are open
//! for writing again only when no release stands or can come to stand; a start on the same boot does not open them before
//! it owns the domain again, since the record is of no boot. The data stay.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::coverage::Members;
use super::pipeline::Pipeline;
use super::protection::{GRACE, Protection};
use super::recorder::Coverage;
use super::shipper::Shipped;
use super::valve::CaptureMode;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::SegmentNo;
use crate::store::Asked;

/// Time between two looks whether all is synced.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Time for the last manifest, and for tasks that have nothing to do any more.
const RETIRE: Duration = Duration::from_secs(10);

/// How the domain is to be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandOverOptions {
    /// How long sync and the storage site are waited for.
    pub within: Duration,
    /// Give up, too, VMs that the last point does not cover: what they wrote since their last point is lost to the other
    /// site.
    pub leave_uncovered: bool,
}

/// What was handed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    /// The last point: the disks equal it. Generation and number of its segment.
    pub generation: u64,
    /// See `generation`.
    pub point: u64,
    /// Its time.
    pub point_time: String,
    /// When the domain was released, by the store's clock.
    pub released: String,
    /// VMs that the last point covers.
    pub covered: Vec<String>,
    /// VMs that it does not cover; none unless that was allowed.
    pub uncovered: Vec<String>,
}

/// How far a hand-over of this run is.
#[derive(Debug, Clone, Default)]
pub(super) enum Stage {
    /// Nothing of it.
    #[default]
    Off,
    /// A release was tried, and it is not known whether it stands.
    Releasing(HandedOver),
    /// It stands.
    Released(HandedOver),
}

impl Protection {
    /// Who asks for the domain, while this run may write it.
    pub fn asked(&self) -> Option<Asked> {
        self.pipeline.as_ref().and_then(|pipeline| pipeline.writer.asked().borrow().clone())
    }

    /// Turns down who asks for the domain; nothing to do where nobody does.
    ///
    /// # Errors
    /// `Refused` where this run does not write the domain, or is giving it up; what the storage site says.
    pub async fn turn_down(&self) -> Result<()> {
        match (&self.pipeline, &self.stage) {
            (Some(pipeline), Stage::Off) => pipeline.writer.go_on(false).await,
            _ => Err(Error::new(ErrorKind::Refused, "the domain is not written from here now; see the status")),
        }
    }

    /// Gives the domain up, without loss: closes the exports, waits until all that guests wrote is part of the domain, cuts
    /// the last point, and then releases. To be called when the guests are shut down: what is not, is cut off. Called again
    /// it goes on where it was. Afterwards the protection is `Fenced`, and to be stopped.
    ///
    /// # Errors
    /// `Refused` where nothing is captured now; `Incomplete` where a VM is not covered and that was not allowed;
    /// `Unreachable` where it took longer than allowed, or the storage site did not answer; `Fenced`. Nothing was given up
    /// then, the exports are open and captured again; unless the release itself was tried: then it is not known whether it
    /// stands, and they stay closed until this, or [`Protection::take_back`], has succeeded.
    pub async fn hand_over(&mut self, options: HandOverOptions) -> Result<HandedOver> {
        let prepared = match std::mem::take(&mut self.stage) {
            Stage::Released(done) => {
                self.stage = Stage::Released(done.clone());
                return Ok(done);
            }
            Stage::Releasing(prepared) => prepared,
            Stage::Off => match self.prepare(options).await {
                Ok(prepared) => prepared,
                Err(error) => return Err(self.reopen(error).await),
            },
        };
        self.stage = Stage::Releasing(prepared.clone());
        let Some(pipeline) = &self.pipeline else { return Err(nothing()) };
        let released = match pipeline.writer.release().await {
            Ok(released) => released,
            Err(error) if error.kind() == ErrorKind::Fenced => {
                self.health.fail(&error);
                return Err(error);
            }
            Err(error) => {
                let why = "release the domain; it is not known whether that was written, and the exports stay closed";
                return Err(error.while_doing(why));
            }
        };
        let done = HandedOver { released: released.to_string(), ..prepared };
        self.stage = Stage::Released(done.clone());
        self.retire(&done).await;
        Ok(done)
    }

    /// Goes on after a hand-over of which it is not known whether the release stands: takes it back, and opens the exports.
    ///
    /// # Errors
    /// `Fenced` where another site has claimed the domain; `Refused` where nothing of the kind is under way; what the storage
    /// site says: nothing has changed then.
    pub async fn take_back(&mut self) -> Result<()> {
        let Stage::Releasing(_) = &self.stage else {
            let why = "no release is under way here; one that stands is taken back by `freshet hand-over --resume`";
            return Err(Error::new(ErrorKind::Refused, why));
        };
        let Some(pipeline) = &self.pipeline else { return Err(nothing()) };
        if let Err(error) = pipeline.writer.go_on(true).await {
            if error.kind() == ErrorKind::Fenced {
                self.health.fail(&error);
            }
            return Err(error);
        }
        self.stage = Stage::Off;
        self.open_again().await
    }

    /// All steps before the release.
    async fn prepare(&mut self, options: HandOverOptions) -> Result<HandedOver> {
        let pipeline = self.pipeline.as_ref().ok_or_else(nothing)?;
        if matches!(pipeline.valve.mode(), CaptureMode::Fenced | CaptureMode::Failed) {
            return Err(nothing());
        }
        let until = Instant::now() + options.within;
        self.close_exports().await?;
        // Where VMs may be left out, half of the time is theirs.
        let patience = if options.leave_uncovered { options.within / 2 } else { options.within };
        let missing = self.wait_covered(Instant::now() + patience).await?;
        if !options.leave_uncovered {
            refuse_uncovered(&missing)?;
        }
        let pipeline = self.pipeline.as_mut().ok_or_else(nothing)?;
        let last = pipeline.quiesce().await;
        let last =
            last.ok_or_else(|| Error::new(ErrorKind::Refused, "the last point cannot be cut; see the status"))?;
        let shipped = wait_shipped(pipeline, last, until).await?;
        let handed = describe(&self.members, &shipped);
        if !options.leave_uncovered {
            refuse_uncovered(&handed.uncovered)?;
        }
        pipeline.clearer.clear_all().await?;
        let stamps = self.opener.stamps(&self.members.disks())?;
        self.memory.lock().await.forget_boot();
        pipeline.clearer.stamp(stamps).await?;
        Ok(handed)
    }

    /// Shuts clients out, and makes durable what they wrote.
    async fn close_exports(&mut self) -> Result<()> {
        if let Some(server) = self.server.take() {
            server.shutdown(GRACE).await;
        }
        for disk in self.members.disks() {
            let synced = disk.backing().sync_data().await;
            synced.map_err(|e| Error::new(ErrorKind::Io, format!("{}: {}", disk.label(), e.text)))?;
        }
        Ok(())
    }

    /// Waits until nothing of any VM is unsynced and all is captured, or time is over; answers with the VMs of which
    /// something is unsynced then.
    async fn wait_covered(&self, until: Instant) -> Result<Vec<String>> {
        let pipeline = self.pipeline.as_ref().ok_or_else(nothing)?;
        let missing = || {
            let (covered, catalogue) = (self.members.covered(), self.members.catalogue());
            let missing = catalogue.vms.iter().filter(|vm| !covered.contains(&vm.id));
            missing.map(|vm| vm.name.to_string()).collect::<Vec<_>>()
        };
        while !missing().is_empty() || !pipeline.recorder.is_capturing() {
            let mut faults = pipeline.writer.check();
            if let CaptureMode::Fenced | CaptureMode::Failed = pipeline.valve.mode() {
                faults = faults.and_then(|()| Err(nothing()));
            }
            faults?;
            if Instant::now() >= until {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(missing())
    }

    /// After an error before the release: as if nothing had been asked.
    async fn reopen(&mut self, error: Error) -> Error {
        let serves = self.server.is_some() || self.pipeline.is_none();
        if serves {
            return error;
        }
        match self.open_again().await {
            Ok(()) => error.while_doing("hand the domain over: nothing was given up, and the exports are open again"),
            Err(again) => {
                error.while_doing(format!("hand the domain over: the exports cannot be opened again ({again})"))
            }
        }
    }

    async fn open_again(&mut self) -> Result<()> {
        {
            let mut memory = self.memory.lock().await;
            memory.remember_boot();
            memory.begin_changes()?;
        }
        if let Some(pipeline) = &mut self.pipeline {
            pipeline.go_on();
        }
        self.listen()
    }

    /// The release stands: what is left is to end, and to tell others.
    async fn retire(&mut self, done: &HandedOver) {
        let why = format!("the domain was released at {}, with point {}", done.released, done.point);
        let Some(pipeline) = self.pipeline.take() else { return };
        let ended = pipeline.retire(RETIRE).await;
        self.health.fail(&Error::new(ErrorKind::Fenced, why));
        match ended.map(std::sync::Arc::into_inner) {
            Ok(Some(writer)) => {
                if let Err(error) = writer.finish().await {
                    tracing::info!("the end of this run could not be told to other writers: {error}");
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

fn nothing() -> Error {
    Error::new(ErrorKind::Refused, "nothing is captured now; see the status")
}

fn refuse_uncovered(vms: &[String]) -> Result<()> {
    if vms.is_empty() {
        return Ok(());
    }
    let why = format!("the last point does not cover {}", vms.join(", "));
    let advice = "what they wrote since their last point would be lost; see the status";
    Err(Error::new(ErrorKind::Incomplete, format!("{why}: {advice}")))
}

async fn wait_shipped(pipeline: &Pipeline, last: SegmentNo, until: Instant) -> Result<Shipped> {
    let mut shipped = pipeline.shipped.clone();
    let left = until.saturating_duration_since(Instant::now());
    let waited = tokio::time::timeout(left, shipped.wait_for(|shipped| shipped.at.segment >= last)).await;
    match waited {
        Ok(Ok(shipped)) => Ok(shipped.clone()),
        Ok(Err(_)) => {
            pipeline.writer.check()?;
            Err(Error::new(ErrorKind::Refused, "shipping has ended; see the status"))
        }
        Err(_) => {
            let why = format!("point {last} is cut and not part of the domain in time; see the status");
            Err(Error::new(ErrorKind::Unreachable, why))
        }
    }
}

/// What would be handed over now.
fn describe(members: &Members, shipped: &Shipped) -> HandedOver {
    let (mut covered, mut uncovered) = (Vec::new(), Vec::new());
    for vm in &members.catalogue().vms {
        let list = if shipped.covered.contains(&vm.id) { &mut covered } else { &mut uncovered };
        list.push(vm.name.to_string());
    }
    HandedOver {
        generation: shipped.at.generation.get(),
        point: shipped.at.segment.get(),
        point_time: shipped.point_time.to_string(),
        released: String::new(),
        covered,
        uncovered,
    }
}
