//! The NBD server over real sockets: its protocol byte by byte, bad clients beside good ones, and other people's clients.

#[path = "../support/mod.rs"]
mod support;

mod client;
mod hostile;
mod model;
mod options;
mod requests;
mod rig;
mod stopping;
