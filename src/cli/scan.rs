//! `freshet scan`: what a storage site holds.

use clap::Args;

use super::context::Context;
use super::report::Report;
use super::store_args::StoreArgs;
use crate::error::{Error, ErrorKind, Result};

/// List the domains of a storage site: owner, VMs, disks, sizes, newest point and its age
#[derive(Debug, Args)]
pub(super) struct Scan {
    #[command(flatten)]
    site: StoreArgs,
}

impl Scan {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        self.site.open().await?;
        Err(Error::new(ErrorKind::Unsupported, "scan is not in this build yet"))
    }
}
