//! `freshet inspect`: any object or file of ours, offline.

use clap::Args;

use super::context::Context;
use super::report::Report;
use super::store_args::OptionsArgs;
use crate::error::{Error, ErrorKind, Result};

/// Show what an object of a storage site, a log or a hydration map holds
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// File, or URL of an object
    #[arg(value_name = "FILE-OR-URL")]
    target: String,
    #[command(flatten)]
    options: OptionsArgs,
}

impl Inspect {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        self.options.load()?;
        Err(Error::new(ErrorKind::Unsupported, format!("inspect {}: not in this build yet", self.target)))
    }
}
