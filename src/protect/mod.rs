//! Live protection: the disks of running guests, every write captured in order and shipped within about a second.
//!
//! ```text
//! guest write -> range lock -> intent bit -> local disk -> recorder: open segment -> acknowledged
//!                                                            | cut whole, by size or age
//!                   packers: frames -> sealed in order -> backlog (memory, then replication log) -> uploads
//!                                                                                                     |
//!   bits cleared <- local sync <- ledger: map, manifests <- accepted by this writer itself <----------+
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `request`, `report`, `status`, `age`, `pace` | what is asked, how it stands, how it ended; ages and rates |
//! | `protection`, `founding` | the order of the steps; what of the disks the chain is known to have |
//! | `opening`, `memory`, `rehydrated` | images and bitmaps; what is remembered between two runs; disks that were rehydrated |
//! | `hand_over` | giving the domain up without loss, and going on where that comes to nothing |
//! | `retreat`, `observer` | what a claim that fails means; what is told meanwhile |
//! | `pipeline` | the tasks behind the exports |
//! | `disk`, `coverage` | what a guest's request does; which VMs a point covers |
//! | `arena`, `batch`, `recorder` | the open segment, its memory, and when it is cut |
//! | `packer`, `backlog`, `shipper` | compressing and sealing in order; what waits; uploads and acceptance |
//! | `inherit` | what a dead generation left in the log |
//! | `ledger` | the map of what was accepted, and manifests |
//! | `syncer`, `clearer` | initial sync and resync; clearing of bits |
//! | `control` | the socket by which a running protection is asked and steered |
//! | `valve`, `health` | what is done when the store takes too little; what is wrong for good |
//! | `unwatched` | the note on an image whose bitmap cannot be written any more |

mod age;
mod arena;
mod backlog;
mod batch;
mod clearer;
mod control;
mod coverage;
mod disk;
mod filling;
mod founding;
mod hand_over;
mod health;
mod inherit;
mod ledger;
mod memory;
mod observer;
mod opening;
mod outgoing;
mod pace;
mod packer;
mod pipeline;
mod protection;
mod recorder;
mod rehydrated;
mod report;
mod request;
mod retreat;
mod shipper;
mod status;
mod syncer;
mod unwatched;
mod valve;

pub use control::{
    CONTROL_VERSION, ControlClient, ControlLimits, ControlReply, ControlRequest, ControlServer, Controlled, DiskSpec,
    control_path,
};
pub use disk::FencedPolicy;
pub use filling::Filling;
pub use hand_over::{HandOverOptions, HandedOver};
pub(crate) use memory::SiteMemory;
pub use observer::Observer;
pub use protection::Protection;
pub(crate) use protection::export_name;
pub use rehydrated::{RehydratedDisks, rehydrated_disks};
pub use report::{
    DiskStatus, DivergedDiskStatus, DivergedStatus, ProtectReport, ProtectStatus, Requests, SyncStatus, VmStatus,
};
pub use request::{
    DEFAULT_PROTECT_LOG, DEFAULT_PROTECT_MEMORY, DEFAULT_SEGMENT_AGE, MIN_PROTECT_MEMORY, Origin, ProtectRequest,
};
pub(crate) use unwatched::{clear as clear_unwatched, is_noted as is_noted_unwatched, note as note_unwatched};
pub use valve::CaptureMode;
