//! Everything that a step observes or does, as one trait: the engine decides, the world acts.
//!
//! # What every call keeps to
//! It may be made again at any time, also by another process after the first was killed in the middle of it: it looks
//! at what is so and does what is missing. When it returns `Ok`, what it did is durable. It never asks anybody. Where a call
//! says that it is not repeated over its own effect, the engine observes first.
//!
//! Errors carry what the engine does next: `Unreachable` is tried again, with pauses; `Full`, `Denied`, `Io` and the like are
//! shown to the operator, who tries again when the cause is gone; `Refused`, `Fenced`, `Invalid`, `NotFound` end the task
//! (what it did is undone as long as that can be). `Cancelled` is answered only after the call's `cancel` was set.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::facts::{DomainFacts, HandOverRequest, Underway};
use super::plan::{FailoverPlan, PointChoice, RemoteSettings};
use super::survey::Survey;
use crate::cancel::Cancel;
use crate::error::Result;
use crate::hypervisor::{Hypervisor, VmSpec};
use crate::ids::{Generation, Name, SegmentRef};
use crate::progress::Progress;

/// Bringing disks to a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RehydrateTo {
    /// The plan: domain, datastore, log, memory, whether in place and over what.
    pub plan: FailoverPlan,
    /// The point.
    pub point: PointChoice,
    /// VMs whose disks are brought there; all where empty.
    pub vms: Vec<Name>,
}

/// What disks were brought to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The point that they equal.
    pub at: SegmentRef,
    /// What of them could not be recovered, in words, each with VM, disk and range.
    pub damage: Vec<String>,
}

/// Claiming a domain from another site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The domain.
    pub domain: Name,
    /// The generation to open. Where it was opened by another, the claim is refused, and the error says by whom.
    pub generation: Generation,
    /// Without a release of the owner.
    pub forced: bool,
    /// The point to go on from; after a release, the final point, whatever stands here.
    pub point: PointChoice,
}

/// Withdrawing a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resumed {
    /// The domain is this site's again, as if it had not been released.
    Ours,
    /// Another site was first.
    Taken {
        /// Which.
        by: Name,
        /// Its generation.
        generation: Generation,
    },
}

/// A command to run at this site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptRun {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Its variables, besides a small fixed set such as `PATH`.
    pub environment: BTreeMap<String, String>,
    /// Time after which it is killed, with all it started.
    pub limit: Duration,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScriptEnd {
    /// Its exit code; `None` where it was killed.
    pub code: Option<i32>,
    /// It was killed since its time was over.
    pub timed_out: bool,
    /// The end of what it wrote to its output and error output, bounded.
    pub output: String,
}

impl ScriptEnd {
    /// It ended by itself with exit code 0.
    pub fn is_success(&self) -> bool {
        self.code == Some(0)
    }
}

/// One site's side of one storage site.
#[async_trait]
pub trait World: Send + Sync {
    /// This site.
    fn site(&self) -> Name;

    /// What runs guests here.
    fn hypervisor(&self) -> Arc<dyn Hypervisor>;

    /// Waits. A world that is simulated may return at once.
    async fn sleep(&self, time: Duration);

    /// The domain as it is now: the ownership log is read past its last known record.
    async fn facts(&self, domain: &Name) -> Result<DomainFacts>;

    /// What there is for `plan`. Whatever cannot be looked at is a problem in the survey and no error.
    async fn survey(&self, plan: &FailoverPlan) -> Result<Survey>;

    /// Leaves settings for the site that owns the domain; `None` takes them back.
    async fn publish_remote_settings(&self, domain: &Name, settings: Option<&RemoteSettings>) -> Result<()>;

    /// The settings that the site `from`, which asks for the domain, left for this one.
    async fn remote_settings(&self, domain: &Name, from: &Name) -> Result<Option<RemoteSettings>>;

    /// Tells the site that asks for the domain how far this one is with handing it over. It is a help only: where it cannot
    /// be told, nothing else changes.
    async fn tell_underway(&self, domain: &Name, underway: &Underway);

    /// Asks the owner for the domain. Not repeated while a request of this site stands.
    async fn request(&self, domain: &Name) -> Result<()>;

    /// Takes the request back. One that was never made is no error.
    async fn withdraw_request(&self, domain: &Name) -> Result<()>;

    /// Tells the site that asks that it will not get the domain, and why. A request that came after `request` is left alone.
    async fn refuse_request(&self, domain: &Name, request: &HandOverRequest, why: &str) -> Result<()>;

    /// Claims the domain and settles the base of the claim. Where this site has the generation already and only the
    /// base is missing, settles that. Not repeated over a settled claim.
    ///
    /// # Errors
    /// `Fenced` where another site has that generation; the text says which. `Refused` where it is not released and the
    /// claim is not forced.
    async fn claim(&self, claim: &Claim) -> Result<()>;

    /// Brings disks to a point, fetching only what differs.
    async fn rehydrate(&self, to: &RehydrateTo, progress: Arc<Progress>, cancel: Cancel) -> Result<Reached>;

    /// Lets disks follow the domain from now on, also after a restart of this process, until
    /// [`finish_following`](World::finish_following) or [`unfollow`](World::unfollow). Keeps the plan.
    async fn follow(&self, plan: &FailoverPlan) -> Result<()>;

    /// Ends following with disks that equal the point `at`, using what landed. Where nothing follows any more and the
    /// disks equal it, that is answered.
    async fn finish_following(
        &self,
        domain: &Name,
        at: SegmentRef,
        progress: Arc<Progress>,
        cancel: Cancel,
    ) -> Result<Reached>;

    /// Ends following; disks stay. Where nothing follows, that is no error.
    async fn unfollow(&self, domain: &Name) -> Result<()>;

    /// Serves the domain's disks of `vms` (all where empty) to guests and captures what is written, as a new generation
    /// of this site, also after a restart of this process. Disks that equal the tip of the chain are not read. With a
    /// `plan`, on the disks that it rehydrated; without one, on those that this site protected before. Not repeated
    /// while a protection runs.
    async fn protect(&self, domain: &Name, plan: Option<&FailoverPlan>, vms: &[Name]) -> Result<()>;

    /// Closes the exports, ships everything, cuts the final point, makes the watermark durable, and ends the protection;
    /// it does not come back by itself after a restart. Answers with that point, also when it was done before.
    async fn drain(&self, domain: &Name, progress: Arc<Progress>) -> Result<SegmentRef>;

    /// Releases the domain, whose last segment is `at`. Not repeated over a release.
    async fn release(&self, domain: &Name, at: SegmentRef) -> Result<()>;

    /// Withdraws the release, and refuses who asked. Where there is none and the domain is this site's, that is `Ours`.
    async fn resume(&self, domain: &Name) -> Result<Resumed>;

    /// The VMs of the domain, with their disks as this site serves them, or would. Networks are still those of the site
    /// that defined them; nothing of a plan is applied.
    async fn guests(&self, domain: &Name) -> Result<Vec<VmSpec>>;

    /// Runs a command. One that ends badly is no error: see [`ScriptEnd`].
    ///
    /// # Errors
    /// `NotFound`, `Denied` where it cannot be run at all.
    async fn run_script(&self, run: &ScriptRun) -> Result<ScriptEnd>;

    /// Whether a TCP connection to the port is accepted now.
    async fn port_is_open(&self, host: &str, port: u16) -> bool;

    /// Removes what a recovery needed only on its way, such as a log that nothing reads any more.
    async fn clean_up(&self, domain: &Name) -> Result<()>;

    /// Forgets the domain at this site; with `delete_disks` its disks are deleted. Nothing at the storage site changes.
    async fn forget(&self, domain: &Name, delete_disks: bool) -> Result<()>;
}
