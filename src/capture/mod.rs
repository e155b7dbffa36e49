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
//! | `source`, `occupants` | an image, its holes; who else has it open for writing |
//! | `roster` | VMs and disks of the call against the domain's catalogue |
//! | `pieces`, `reader` | what is read, in which order |
//! | `zeros`, `compare` | what of it must be shipped |
//! | `budget`, `halt` | bytes of memory as permits; how all stages stop together |
//!
//! Promises: holes are not read; zeros, and what the map has already, are not shipped; nothing is reported before the
//! writer's own acceptance read; what an interrupted run stored serves the next one.

#![allow(dead_code, reason = "the stages that use these parts land next")]

mod budget;
mod compare;
mod halt;
mod occupants;
mod pieces;
mod reader;
mod report;
mod request;
mod roster;
mod source;
mod zeros;

use std::sync::Arc;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::store::StorageSite;

pub use report::{ReplicateReport, ReplicatedDisk, StageSeconds};
pub use request::{
    DEFAULT_LEVEL, DEFAULT_MANIFEST_EVERY, DEFAULT_MEMORY, DEFAULT_SEGMENT_BYTES, DiskSource, MIN_MEMORY,
    ReplicateRequest, VmDefinition, VmSource,
};

/// Ships what changed of the request's disks since the domain's newest segment, as a new point.
///
/// Takes ownership of the domain for the time of the call, or makes the domain. `progress` counts bytes of images: in
/// all those that are allocated; done those that equal the map or whose segments are accepted.
///
/// # Errors
/// `Invalid` for the request, `Refused` for an image that is open for writing elsewhere or shrank, and where another
/// site or writer owns the domain; `Fenced` when another writer took over meanwhile; `Cancelled`. After any of them the
/// domain's points are as they were; run it again and it ships only what is still missing.
pub async fn replicate(
    _site: &StorageSite,
    request: ReplicateRequest,
    _progress: Arc<Progress>,
    _cancel: Cancel,
) -> Result<ReplicateReport> {
    request.validate()?;
    Err(Error::new(ErrorKind::Unsupported, "replicate is not in this build yet"))
}
