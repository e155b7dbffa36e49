//! What `build.rs` made of `proto/freshet/v1`: messages, clients and servers of the API. Nothing is written here by hand.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated; its documentation is that of the interface"
)]

tonic::include_proto!("freshet.v1");

/// The interface as its own description, with comments, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/freshet.v1.bin"));
