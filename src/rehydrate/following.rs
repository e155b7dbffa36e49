//! The handle of who follows a domain: watches how it stands, has the disks left alone for a while, and ends it at a point.
//!
//! ```text
//! start --> (brought to a first point) --> following <--> held
//!                                              '--> complete_at: landing stops, what landed is applied --> report
//!                                              '--> stop: whatever is under way ends --> report
//! ```
//!
//! Thin over [`rehydrate`](super::rehydrate()) in continuous mode: it owns the task, and what it tells is read from the
//! run's progress. What is durable survives its end, however that comes; start again to go on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::{DiskDamage, Progress, Stand};
use crate::store::StorageSite;

use super::request::{Mode, RehydrateReport, RehydrateRequest};
use super::steer::{Completion, Steer};
use super::{open, run};

/// Time between two looks at the counts.
const TICK: Duration = Duration::from_millis(100);

/// How following stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FollowState {
    /// What is being done now, in a few words.
    pub stage: &'static str,
    /// The newest point up to which the log is durable: what a loss of the protected site would leave. `None` before the
    /// first, and for a moment after a take-over that cut it off.
    pub landed: Option<Stand>,
    /// The point that the disks equal; `None` before the first.
    pub applied: Option<Stand>,
    /// Age of the landed point in milliseconds, by the store's clock. A writer that is idle still cuts points, so that a
    /// lag that grows means something.
    pub lag_ms: Option<u64>,
    /// Bytes of the log that are not applied yet: what stands between a completion and disks that are ready.
    pub unapplied: u64,
    /// The disks are left as they are, as was asked.
    pub is_held: bool,
    /// What could not be had, disk by disk; empty where all could. Gone once a later point writes it anew. Until the first
    /// point is applied, what is not told here is not known yet.
    pub damage: Vec<DiskDamage>,
    /// What it waits for that should not be so, such as a storage site that does not answer.
    pub trouble: Option<String>,
}

/// A domain that is followed in the background. Dropping it stops it where it stands.
#[derive(Debug)]
pub struct Following {
    steer: Steer,
    cancel: Cancel,
    progress: Arc<Progress>,
    state: watch::Receiver<FollowState>,
    run: Option<JoinHandle<Result<RehydrateReport>>>,
}

impl Following {
    /// Opens everything, then brings the disks to the newest point and follows the domain, on the current runtime. The
    /// mode of `request` does not count.
    ///
    /// # Errors
    /// As [`rehydrate`](super::rehydrate()) before it touches a disk; what comes later is told by the end.
    pub async fn start(site: &StorageSite, request: RehydrateRequest) -> Result<Following> {
        let (progress, cancel, steer) = (Arc::new(Progress::new()), Cancel::new(), Steer::default());
        let request = RehydrateRequest { mode: Mode::Continuous { until: None }, ..request };
        let (session, point) = open(site, request, Arc::clone(&progress), cancel.clone(), steer.clone()).await?;
        let (tell, state) = watch::channel(FollowState::default());
        let watcher = Watcher { site: site.clone(), progress: Arc::clone(&progress), steer: steer.clone(), tell };
        let run = crate::log_context::spawn(async move {
            let done = tokio::select! {
                done = run(session, point) => done,
                never = watcher.run() => match never {},
            };
            // The last word: what it stood at in the end.
            watcher.tell();
            done
        });
        Ok(Following { steer, cancel, progress, state, run: Some(run) })
    }

    /// How it stands now, and from now on; the receiver's `changed` fails once it has ended.
    pub fn watch(&self) -> watch::Receiver<FollowState> {
        self.state.clone()
    }

    /// How it stands.
    pub fn state(&self) -> FollowState {
        self.state.borrow().clone()
    }

    /// Counts of the work, and notes.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Whether it has ended by itself: [`Following::stop`] tells why.
    pub fn has_ended(&self) -> bool {
        self.run.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Leaves the disks as they are, or goes on with them. Landing goes on meanwhile, as long as the log has room. It
    /// counts from the first point on that the disks are brought to.
    pub fn hold(&self, hold: bool) {
        self.steer.hold(hold);
    }

    /// Ends at a point: fetches nothing that it does not need for it, applies what has landed up to it, syncs, and
    /// answers when the disks are ready. While the disks are still brought to their first point, that comes before.
    ///
    /// With [`Completion::Landed`] the storage site is asked for nothing: it was asked when the segments landed. Claim
    /// the domain before, or segments may come to count after the point that was completed at.
    ///
    /// # Errors
    /// What ended it; `NotFound` for a point that there is not. The disks can be brought to any point then by
    /// [`rehydrate`](super::rehydrate()).
    pub async fn complete_at(mut self, at: Completion) -> Result<RehydrateReport> {
        self.steer.complete(at);
        self.end().await
    }

    /// Ends it without waiting for anything but what is under way on the disks.
    ///
    /// # Errors
    /// What ended it before; `Cancelled` where no point was reached yet.
    pub async fn stop(mut self) -> Result<RehydrateReport> {
        self.cancel.cancel();
        self.end().await
    }

    async fn end(&mut self) -> Result<RehydrateReport> {
        let gone = || Error::new(ErrorKind::Internal, "following was ended before");
        let run = self.run.as_mut().ok_or_else(gone)?;
        let done = run.await.map_err(|e| Error::with_source(ErrorKind::Internal, "following ended abnormally", e));
        self.run = None;
        done?
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // The task ends by itself, in order.
        self.cancel.cancel();
    }
}

/// Tells how the run stands.
struct Watcher {
    site: StorageSite,
    progress: Arc<Progress>,
    steer: Steer,
    tell: watch::Sender<FollowState>,
}

impl Watcher {
    async fn run(&self) -> std::convert::Infallible {
        loop {
            self.tell();
            tokio::time::sleep(TICK).await;
        }
    }

    fn tell(&self) {
        let now = self.progress.snapshot();
        let state = FollowState {
            stage: now.stage,
            landed: now.landed,
            applied: now.applied,
            lag_ms: now.landed.map(|landed| self.site.now().millis_since(landed.time)),
            unapplied: now.unapplied,
            is_held: self.steer.is_held(),
            damage: now.damage,
            trouble: now.trouble,
        };
        self.tell.send_if_modified(|told| {
            let changed = *told != state;
            *told = state;
            changed
        });
    }
}
