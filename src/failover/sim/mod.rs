//! Sites and a storage site in memory, for tests of the engine: deterministic, and hostile on demand.
//!
//! ```text
//! Sim (shared): ownership, chain of points, requests, settings        <- the storage site
//!   SimSite a, b, ...: disks as contents, follower, protection, VMs   <- what survives a kill of that site's process
//!     Process: one run of a site's freshet; Faults: the n-th moment of it kills it, or fails once
//! ```
//!
//! A disk is the number of its content; the chain says which content each point has. The sim keeps a list of
//! *violations*: what must never happen, whoever asks for it, such as a guest started on a disk that is nobody's point.
//! Calls that the engine must not repeat over their own effect are violations when it does.

mod faults;
mod hypervisor;
mod state;
mod world;

pub(crate) use faults::{Fault, Faults, GatedJournal, What};
pub(crate) use state::Sim;
pub(crate) use world::{Process, SimClock};
