//! `freshet inspect`: any object or file of ours, offline.

use clap::Args;

use super::context::Context;
use super::report::Report;
use super::store_args::OptionsArgs;
use crate::error::Result;
use crate::inspect::{InspectOptions, run};

/// Show what an object of a storage site, a log or a hydration map holds
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// File, or URL of an object
    #[arg(value_name = "FILE-OR-URL")]
    target: String,
    /// List every frame, extent, page or record
    #[arg(long)]
    frames: bool,
    #[command(flatten)]
    options: OptionsArgs,
}

impl Inspect {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        let options = InspectOptions { frames: self.frames, store: self.options.load()? };
        let found = run(&self.target, options).await?;
        let why = (!found.is_intact()).then(|| format!("{}: damaged, see the report", self.target));
        Ok(Report::new(&found.to_json(), found.to_text())?.incomplete(why))
    }
}
