//! `freshet replicate`: disk images into a storage site, as one new point of a domain.

use clap::Args;

use super::context::Context;
use super::report::Report;
use super::store_args::DomainArgs;
use super::vm_disks::VmDisks;
use crate::error::{Error, ErrorKind, Result};

/// Ship disk images as a new point; a second run ships only what changed
#[derive(Debug, Args)]
pub(super) struct Replicate {
    #[command(flatten)]
    domain: DomainArgs,
    #[command(flatten)]
    vms: VmDisks,
}

impl Replicate {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        self.domain.site.open().await?;
        Err(Error::new(ErrorKind::Unsupported, "replicate is not in this build yet"))
    }
}
