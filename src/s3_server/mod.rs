//! A real S3 server for the demo, tests and benches: HTTP and Signature V4 from `s3s`, storage and faults of our own.
//!
//! ```text
//!  client --TCP--> Connection --> Front (faults, counters) --> s3s (routing, Sig V4, XML) --> Backend --> files
//! ```
//!
//! It is here because the crate's promises are about stores: one winner among racing writers, a reply lost after
//! the commit, a body cut short. A peer that keeps the first and does the rest on demand has to be in the tree. It
//! must also be fast enough that a bench does not measure it: file bytes go from the page cache through a pooled
//! buffer to the socket, and nothing hashes them.
//!
//! What it does not do: versions, tags, metadata, access control beyond one key pair, fsync (objects survive the
//! death of the server, not of the machine).

mod backend;
mod body;
mod catalog;
mod connection;
mod counters;
mod faults;
mod front;
mod incoming;
mod multipart;
mod name;
mod pool;
mod reader;
mod rule;
mod server;

pub use counters::{Counters, Verb};
pub use faults::Faults;
pub use rule::{Fault, Rule, When};
pub use server::{Options, S3Server};
