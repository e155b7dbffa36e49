//! Live protection end to end: what guests write over NBD reaches the storage site in order, and what is recovered at any
//! point is a state that the disks had.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails")]

#[path = "support/mod.rs"]
mod support;
#[path = "support/world.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod world;

#[path = "protect/mod.rs"]
mod cases;
