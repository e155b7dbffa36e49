//! What a site knows of a domain at one moment: who owns it, its VMs and points, and what there is of it here.
//!
//! Plain data that the [`World`](super::World) observes. Ages are measured with the storage site's clock, `now`.

use serde::{Deserialize, Serialize};

use super::plan::FailoverPlan;
use super::words::VmStatus;
use crate::ids::{Generation, Name, SegmentNo, SegmentRef, Time};
use crate::progress::{DiskBytes, DiskDamage};

/// Who may write the domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The site of the newest claim.
    pub site: Name,
    /// Its generation.
    pub generation: Generation,
    /// When it claimed.
    pub claimed: Time,
    /// Claimed without the consent of the owner before.
    pub forced: bool,
    /// Last segment that the generation inherits; `None` while that is not settled.
    pub base: Option<SegmentRef>,
    /// When it released the domain, unless that was withdrawn.
    pub released: Option<Time>,
}

/// Another site asks the owner for the domain. A request that stands ends with the owner's next claim, and must be made
/// again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOverRequest {
    /// The site that asks.
    pub site: Name,
    /// When it asked.
    pub at: Time,
    /// What the owner answered, where it will not hand the domain over. Told until the site asks again or the domain
    /// changes hands: a new generation of the same owner does not take it back.
    pub refused: Option<String>,
    /// The site that asked does not want it any more. Told as long as a refusal.
    pub withdrawn: bool,
    /// What the owner does about it, where it has said; only the site that asked is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underway: Option<Underway>,
}

/// How far a hand-over is at the site that gives the domain away, for the site that waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Underway {
    /// What it does.
    pub doing: Doing,
    /// That in its words.
    pub what: String,
}

/// What a site does that hands a domain over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doing {
    /// Guests run on until little is left to be shipped.
    ShipAhead,
    /// Guests are being shut down.
    ShutDown,
    /// Its operator is asked.
    Ask,
    /// What guests wrote last is being shipped.
    Ship,
}

impl Doing {
    /// In a few words, for who waits.
    pub fn stage(self) -> &'static str {
        match self {
            Doing::ShipAhead => "the other site ships ahead",
            Doing::ShutDown => "the other site shuts guests down",
            Doing::Ask => "the other site asks its operator",
            Doing::Ship => "the other site ships what is left",
        }
    }
}

/// A point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointFacts {
    /// The segment that it is the end of.
    pub at: SegmentRef,
    /// Its time.
    pub time: Time,
}

/// A VM of the domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmFacts {
    /// Its name.
    pub name: Name,
    /// Its status, by the points that cover it.
    pub status: VmStatus,
    /// The newest point that covers it.
    pub point: Option<PointFacts>,
    /// Bytes of its disks.
    pub logical_bytes: u64,
    /// Bytes of its disks that are not zero, at that point.
    pub live_bytes: u64,
    /// Of these, what is not at this site yet.
    pub fetch_bytes: u64,
    /// Networks of its network cards, as the protected site names them, in order.
    pub networks: Vec<String>,
}

/// What the disks of the domain at this site are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LocalDisks {
    /// There are none.
    #[default]
    None,
    /// They are served to guests, or were until this site's protection ended.
    Protected,
    /// They equal a point of the chain, or are on their way to one.
    Rehydrated {
        /// The last point that they equalled; zero before the first.
        at: SegmentRef,
    },
    /// They hold what this site wrote and no chain has: it was taken over before that was shipped.
    Diverged {
        /// The last segment that they have in common with the chain.
        common: SegmentRef,
        /// Bytes that may differ from it; `None` where that is not known and only comparing tells.
        bytes: Option<u64>,
    },
}

/// How disks at this site follow the domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FollowFacts {
    /// The plan that it was started with: completion uses it.
    pub plan: FailoverPlan,
    /// It runs now. It does not while the appliance starts, or after an error.
    pub running: bool,
    /// The newest point that landed.
    pub landed: Option<PointFacts>,
    /// The newest point that the disks equal.
    pub applied: Option<PointFacts>,
    /// All live bytes of the base are here: from now on only new segments are fetched.
    pub caught_up: bool,
    /// Bytes done of the base, and in all; what came after it is counted as it comes.
    pub done: (u64, u64),
    /// The same for each disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskBytes>,
    /// Bytes of the log that are not applied yet.
    #[serde(default)]
    pub unapplied: u64,
    /// What could not be had, disk by disk; empty where all could.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damage: Vec<DiskDamage>,
    /// What is wrong, if anything is.
    pub problem: Option<String>,
}

impl FollowFacts {
    /// Whether disks of a VM here lack something.
    pub fn damages(&self, vm: &Name) -> bool {
        self.damage.iter().any(|damage| damage.vm == vm.as_str())
    }
}

/// A domain as this site sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DomainFacts {
    /// Its name.
    pub domain: Name,
    /// This site.
    pub site: Name,
    /// The site that the domain is at home at: that of its first claim.
    pub home: Name,
    /// Who may write it.
    pub owner: Owner,
    /// Who asks for it.
    pub request: Option<HandOverRequest>,
    /// Nothing below is recoverable.
    pub floor: SegmentNo,
    /// Its newest point.
    pub newest_point: Option<PointFacts>,
    /// Its VMs.
    pub vms: Vec<VmFacts>,
    /// A protection of this site serves and captures it now.
    pub protecting: bool,
    /// Bytes of segments that it has cut and not shipped yet.
    #[serde(default)]
    pub unshipped: u64,
    /// Its disks at this site.
    pub disks: LocalDisks,
    /// How disks at this site follow it, where they do.
    pub follow: Option<FollowFacts>,
    /// The storage site's clock.
    pub now: Time,
}

impl DomainFacts {
    /// This site owns it, and nothing serves its disks: a take-over that was given up after the claim, and can be gone on with.
    pub fn is_left_lying(&self) -> bool {
        self.is_owner() && !self.protecting
    }

    /// This site owns it, and has not released it.
    pub fn is_owner(&self) -> bool {
        self.owner.site == self.site && self.owner.released.is_none()
    }
}
