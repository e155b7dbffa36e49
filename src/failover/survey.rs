//! What a plan is held against: the domain, and what this site has for it. Observed at one moment, changed by nobody.

use serde::{Deserialize, Serialize};

use super::facts::{DomainFacts, PointFacts};

/// A directory that a plan names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Space {
    /// Why it cannot be used; `None` where it can.
    pub problem: Option<String>,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// Bytes that the domain has there already and would use again.
    pub held_bytes: u64,
    /// Number of the file system: two directories with the same one share what is free.
    pub device: u64,
}

/// What a take-over at the chosen point would cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Loss {
    /// Segments after the point.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Points after it.
    pub points: u64,
    /// Milliseconds from the point to the storage site's now: what was written since may be lost too.
    pub age_millis: u64,
    /// The owner gave a sign of life less than a minute ago: it may run, and go on writing.
    pub owner_alive: bool,
}

/// How fast data comes, and why that is believed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Such as `measured in the last recovery` or `a probe of 64 MiB just now`.
    pub basis: String,
}

/// What is there for a plan.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Survey {
    /// Why the domain cannot be read at the storage site; `None` where it can.
    pub store_problem: Option<String>,
    /// The domain, where it can be read.
    pub facts: Option<DomainFacts>,
    /// The point that the plan chooses.
    pub point: Option<PointFacts>,
    /// Why it chooses none.
    pub point_problem: Option<String>,
    /// What a take-over at that point would cut off.
    pub loss: Loss,
    /// Damage that is known of, disk by disk: what could not be had of the disks that would be used.
    pub damage: Vec<String>,
    /// This site runs scripts of a runbook that the other site left.
    pub runs_remote_scripts: bool,
    /// What of the plan's placement and storage policies the hypervisor here makes nothing of.
    pub unheeded: Vec<String>,
    /// Why the hypervisor cannot be asked; `None` where it can.
    pub hypervisor_problem: Option<String>,
    /// Networks of this site, where the hypervisor can tell.
    pub networks: Option<Vec<String>>,
    /// VMs that the hypervisor knows already and that are not this domain's.
    pub foreign_vms: Vec<crate::ids::Name>,
    /// VMs whose guests' agents cannot be asked here, each with the reason.
    pub agent_problems: Vec<(crate::ids::Name, String)>,
    /// How addresses of cards get into guests, or why they do not.
    pub addressing: Option<std::result::Result<String, String>>,
    /// VMs that the hypervisor would not make or start as the plan wants them, each with the reason.
    pub refused_vms: Vec<(crate::ids::Name, String)>,
    /// What VMs would be otherwise here than at the protected site, without the plan saying so.
    pub changed_vms: Vec<(crate::ids::Name, String)>,
    /// The datastore.
    pub datastore: Space,
    /// The directory of the replication log.
    pub log_store: Space,
    /// Where the log of the protection is that follows a take-over.
    pub protect_log: Space,
    /// Bytes that it takes in all.
    pub protect_log_bytes: u64,
    /// Bytes of the largest segment that can come: the log must hold two.
    pub largest_segment: u64,
    /// Bytes of maps and bitmaps that the domain's disks need.
    pub metadata_bytes: u64,
    /// Smallest budget for buffers in bytes.
    pub least_memory: u64,
    /// Appliances of this site.
    pub appliances: Vec<String>,
    /// How fast data comes, where that is known.
    pub rate: Option<Rate>,
}
