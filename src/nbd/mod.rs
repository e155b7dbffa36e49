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

mod active;
mod backing;
mod buffers;
mod connection;
mod export;
mod exports;
mod extents;
mod handshake;
mod image;
mod incoming;
mod listen;
mod op;
mod options;
mod outgoing;
mod proto;
mod replies;
mod request;
mod server;
mod stream;
mod sync_group;
mod tls;

pub use backing::{BackingDisk, CacheMode, start_engine};
pub(crate) use buffers::least_memory;
pub use buffers::{Buffers, MAX_PIECE, Payload, Share};
pub use export::{Answer, BlockStatus, Errno, Export, ExportError, ExportInfo, ZeroMode};
pub use exports::Exports;
pub use image::{Image, ImageOptions};
pub(crate) use listen::Socket;
pub use listen::{Address, Listen};
pub use server::{Drained, Farewell, Server, ServerOptions};
pub use tls::{Tls, TlsIdentity};

/// Feeds any bytes to everything that reads what a client sent, for fuzzing.
#[doc(hidden)]
pub fn read_untrusted(data: &[u8]) {
    let _ = options::export_name(data);
    let _ = options::info_request(data);
    let _ = options::meta_request(data);
    if let Some(header) = data.first_chunk().and_then(request::Header::parse) {
        for (structured, size) in [(true, 1 << 40), (false, 4096)] {
            let agreed = request::Agreed { structured, allocation: structured };
            let _ = request::judge(&header, &ExportInfo::new(size), agreed);
        }
    }
}
