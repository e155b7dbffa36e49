//! Two sites in two networks whose only common path is the storage site: real `freshet serve` processes, guests that write
//! all the time, every mode in turn, and then the same while links are cut or slow and processes are killed.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails")]

#[path = "support/mod.rs"]
mod support;

#[path = "sites/mod.rs"]
mod cases;
