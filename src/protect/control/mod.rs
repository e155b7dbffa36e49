//! Control of a running protection: a Unix socket in the domain's state directory, one JSON document a line.
//!
//! ```text
//!  freshet protect --status, --add ...          the running freshet protect
//!     ControlClient --- line: request --->  socket 0600 -> peer's uid? -> line within its limits? -> Controlled
//!                   <-- line: response --
//! ```
//!
//! It owns the socket, the messages (`docs/control.md` is for those who write a client) and their limits; what a request
//! does is told by [`Controlled`], which the protection implements. It knows nothing of disks or of the store.
//!
//! Promises: only root and the user that the protection runs as are heard; a client that is slow, sends nonsense or too
//! much, or goes away in the middle disturbs nobody else and holds a bounded amount of memory for a bounded time; a line
//! that did not come whole is never acted upon; a request that was begun is ended, though its client is gone.

mod client;
mod line;
mod message;
mod server;
mod socket;
#[cfg(test)]
mod tests;

pub use client::ControlClient;
pub use message::{CONTROL_VERSION, ControlReply, ControlRequest, DiskSpec};
pub use server::{ControlLimits, ControlServer, Controlled};
pub use socket::control_path;
