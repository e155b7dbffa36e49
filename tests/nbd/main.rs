//! The NBD server over real sockets: its protocol byte by byte, bad clients beside good ones, and other people's clients.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod calls;
mod client;
mod command;
mod hostile;
mod model;
mod noise;
mod options;
mod peers;
mod requests;
mod rig;
mod stopping;
mod tls;
