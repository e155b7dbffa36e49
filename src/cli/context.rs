//! What every command is given: where to print, and the flag that asks it to stop.

use super::output::Output;
use crate::cancel::Cancel;

/// See the module.
#[derive(Debug)]
pub(super) struct Context {
    /// Where events go while a command runs; its report is printed for it.
    pub(super) output: Output,
    /// Set by the first SIGINT or SIGTERM.
    pub(super) cancel: Cancel,
}

impl Context {
    pub(super) fn new(output: Output) -> Context {
        Context { output, cancel: Cancel::new() }
    }
}
