//! The arguments that name a storage site, and a domain in it.

use std::path::PathBuf;

use clap::Args;

use super::values::parse_name;
use crate::error::Result;
use crate::ids::Name;
use crate::store::{StorageSite, StoreOptions};

/// Where the objects are.
#[derive(Debug, Args)]
pub(super) struct StoreArgs {
    /// Storage site: file:///directory, s3://bucket/prefix, az://container/prefix or gs://bucket/prefix
    #[arg(long, value_name = "URL")]
    pub(super) store: String,
    #[command(flatten)]
    pub(super) options: OptionsArgs,
}

/// Credentials, endpoint and limits.
#[derive(Debug, Args)]
pub(super) struct OptionsArgs {
    /// File of NAME=VALUE lines: credentials and endpoint under their environment variables' names, timeouts, retries
    #[arg(long, value_name = "FILE")]
    pub(super) store_options: Option<PathBuf>,
}

impl OptionsArgs {
    /// The settings: environment first, the file over it.
    pub(super) fn load(&self) -> Result<StoreOptions> {
        StoreOptions::load(self.store_options.as_deref())
    }
}

impl StoreArgs {
    /// Opens the site. Sends no request.
    pub(super) async fn open(&self) -> Result<StorageSite> {
        StorageSite::open(&self.store, &self.options.load()?).await
    }
}

/// A domain of a storage site.
#[derive(Debug, Args)]
pub(super) struct DomainArgs {
    #[command(flatten)]
    pub(super) site: StoreArgs,
    /// Protected domain
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub(super) domain: Name,
}
