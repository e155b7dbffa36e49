//! Capture: disk images become segments, map pages and manifests in the storage site.
//!
//! ```text
//!  map of the tip --page by page--+
//!                                 v
//!  images -> reader -> bounded channel -> workers: zeros? same as the map? compress into an open segment
//!            (engine)                       | 16 MiB
//!                                           v
//!                          chain: number, parent, digest -> parallel uploads -> accepted prefix -> point -> manifest
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `request`, `report` | what is asked, what was done |
//! | `replicate`, `transfer` | the order of the steps; the stages that run side by side |
//! | `images`, `source` | the images, their holes; whether anybody writes to them meanwhile |
//! | `roster` | VMs and disks of the call against the domain's catalogue |
//! | `pieces`, `reader` | what is read, in which order |
//! | `zeros`, `compare` | what of it must be shipped |
//! | `worker`, `chain`, `ship` | compressing into segments, their place in the chain, uploads and acceptance |
//! | `rehead` | what a dead generation spilled, as segments of the one that goes on |
//! | `checkpoint` | map pages and manifest |
//! | `budget`, `halt` | bytes of memory as permits; how all stages stop together |
//!
//! Promises: holes are not read; zeros, and what the map has already, are not shipped; nothing is reported before the
//! writer's own acceptance read; what an interrupted run stored serves the next one.

mod budget;
mod chain;
pub(crate) mod checkpoint;
mod compare;
mod halt;
mod images;
mod pieces;
mod reader;
mod rehead;
mod replicate;
mod report;
mod request;
mod roster;
#[cfg(test)]
mod samples;
mod ship;
mod source;
mod transfer;
mod worker;
mod zeros;

pub(crate) use chain::Chain;
pub use chain::ChainEnd;
pub(crate) use compare::{Change, Comparer, GRID};
pub(crate) use halt::Halt;
pub use rehead::Rehead;
pub use replicate::replicate;
pub use report::{ReplicateReport, ReplicatedDisk, StageSeconds};
pub use request::{
    DEFAULT_LEVEL, DEFAULT_MANIFEST_EVERY, DEFAULT_MEMORY, DEFAULT_SEGMENT_BYTES, DiskSource, MIN_MEMORY,
    ReplicateRequest, VmDefinition, VmSource,
};
pub(crate) use roster::{Roster, roster};
pub(crate) use zeros::is_zero;
