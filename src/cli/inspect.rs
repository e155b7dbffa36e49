//! `freshet inspect`: any object or file of ours, offline; a catalog, too, with the journals of its tasks.

use clap::Args;

use super::context::Context;
use super::report::Report;
use super::store_args::OptionsArgs;
use crate::control::inspect_catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::inspect::{InspectOptions, run};

/// Show what an object of a storage site, a log, a hydration map or a catalog holds
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// File, or URL of an object
    #[arg(value_name = "FILE-OR-URL")]
    target: String,
    /// List every frame, extent, page or record; of a catalog every task and every entry of its journal
    #[arg(long)]
    frames: bool,
    #[command(flatten)]
    options: OptionsArgs,
}

impl Inspect {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        let options = InspectOptions { frames: self.frames, store: self.options.load()? };
        let (path, list) = (std::path::PathBuf::from(&self.target), self.frames);
        let catalog = tokio::task::spawn_blocking(move || inspect_catalog(&path, list)).await;
        let catalog = catalog.map_err(|e| Error::with_source(ErrorKind::Internal, "inspecting panicked", e))??;
        let found = match catalog {
            Some(found) => found,
            None => run(&self.target, options).await?,
        };
        let why = (!found.is_intact()).then(|| format!("{}: damaged, see the report", self.target));
        Ok(Report::new(&found.to_json(), found.to_text())?.incomplete(why))
    }
}
