//! The command line as scripts see it: exit codes, what is printed where, and that bad input is named and harms nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

#[path = "cli/mod.rs"]
mod cases;
