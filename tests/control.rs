//! The control plane end to end: real `freshet serve` processes, asked over their sockets and over TLS.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails")]

#[path = "support/mod.rs"]
mod support;

#[path = "control/mod.rs"]
mod cases;
