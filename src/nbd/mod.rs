//! Disks served over NBD: the protocol, and the disk behind an export.
//!
//! ```text
//!  client --socket--> requests --checked, cut into pieces--> dyn Export --> disk engine or page cache
//!  client <--socket-- replies, gathered into one write <------- completion
//! ```
//!
//! A connection has a thread of its own, which reads requests, starts them and writes the replies; what an export can
//! answer at once is answered there, without waking anybody. The bytes of a request lie in a [`Payload`], one buffer
//! out of a bounded pool ([`Buffers`]), into which the socket is read and from which the disk is written.
//!
//! Limits: connections, requests in flight of each, buffers in all and of each, option lengths, and time: for the
//! handshake, and for a peer that neither takes a reply nor goes on with a request. A client that breaks one of them,
//! or the protocol, loses its own connection and disturbs no other.
//!
//! Nothing here knows of capture, stores or domains.
#![allow(dead_code, reason = "the server that uses all of it comes next")]

mod backing;
mod buffers;
mod export;
mod exports;
mod extents;
mod image;
mod sync_group;

pub use backing::{BackingDisk, CacheMode, start_engine};
pub use buffers::{Buffers, MAX_PIECE, Payload, Share};
pub use export::{Answer, BlockStatus, Errno, Export, ExportError, ExportInfo, ZeroMode};
pub use exports::Exports;
pub use image::{Image, ImageOptions};
