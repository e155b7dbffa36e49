//! `freshet points`: the points of a domain.

use clap::Args;

use super::context::Context;
use super::report::Report;
use super::store_args::DomainArgs;
use crate::error::{Error, ErrorKind, Result};

/// List the points of a domain
#[derive(Debug, Args)]
pub(super) struct Points {
    #[command(flatten)]
    domain: DomainArgs,
}

impl Points {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        self.domain.site.open().await?;
        Err(Error::new(ErrorKind::Unsupported, "points is not in this build yet"))
    }
}
