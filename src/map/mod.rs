//! Maps: where each live byte of a domain is stored at one point.
//!
//! ```text
//! newest manifest at or before the point -> page references ─┐
//! indexes of the segments after it       -> changes by page ─┴-> extents of one page, when asked for
//! ```
//!
//! Only page references and the changes since the manifest are held; pages are read when they are asked for, so the
//! memory that a map takes does not grow with the disks. What no extent covers is zero.

mod overlay;
mod point_map;

pub use overlay::{Change, last_wins, overlay};
pub use point_map::{PageKey, PointMap};
