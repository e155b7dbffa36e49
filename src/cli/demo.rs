//! `freshet demo`: the whole way of the bytes on this machine, in under a minute.

use std::path::PathBuf;

use clap::Args;

use super::context::Context;
use super::report::Report;
use crate::error::{Error, ErrorKind, Result};

/// Replicate disks, change them, replicate again, rehydrate both points and compare every byte
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Work in this directory and leave everything there [default: a fresh one that is removed at the end]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Use a copy of this image as a disk instead of building one; can be repeated
    #[arg(long, value_name = "PATH")]
    image: Vec<PathBuf>,
}

impl Demo {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        let _ = (self.dir, self.image);
        Err(Error::new(ErrorKind::Unsupported, "demo is not in this build yet"))
    }
}
