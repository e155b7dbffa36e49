//! `freshet store probe`: what a storage site can be trusted with.

use clap::{Args, Subcommand};

use super::context::Context;
use super::report::Report;
use super::store_args::StoreArgs;
use crate::error::Result;
use crate::store::probe;

/// Questions about a storage site itself
#[derive(Debug, Args)]
pub(super) struct Store {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Try what Freshet needs of a store: ranges, listing, create-if-absent, a race of concurrent writers
    Probe(StoreArgs),
}

impl Store {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        let StoreCommand::Probe(args) = self.command;
        let verdict = probe(&args.open().await?).await?;
        let refused = verdict.require_ownership().err().map(|e| e.to_string());
        Ok(Report::new(&verdict, verdict.to_string())?.incomplete(refused))
    }
}
