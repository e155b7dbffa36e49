//! `freshet runbook`: the runbooks of a domain. What `show` prints is what `set` takes, to the byte.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::appliance_args::{ApplianceArgs, answered, report};
use super::context::Context;
use super::output::complain;
use super::report::Report;
use crate::control::proto::{self, GetRunbookRequest, RunbookKind, SetRunbookRequest};
use crate::error::{IoResultExt, Result};

/// Runbooks of a domain: start order, delays, resources, networks, scripts
#[derive(Debug, Args)]
pub(super) struct Runbook {
    #[command(subcommand)]
    command: RunbookCommand,
}

#[derive(Debug, Subcommand)]
enum RunbookCommand {
    /// Print a runbook as it was set, and its revision on standard error
    Show(One),
    /// Set a runbook from a TOML file, which is checked first
    Set(Set),
}

/// Which of the two.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// For a failover to this site
    Failover,
    /// For a failback to this site
    Failback,
}

impl From<Kind> for i32 {
    fn from(kind: Kind) -> i32 {
        match kind {
            Kind::Failover => RunbookKind::Failover.into(),
            Kind::Failback => RunbookKind::Failback.into(),
        }
    }
}

#[derive(Debug, Args)]
struct One {
    /// Name of the domain
    #[arg(value_name = "DOMAIN")]
    domain: String,
    /// Which of its runbooks
    #[arg(value_enum)]
    kind: Kind,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

#[derive(Debug, Args)]
struct Set {
    #[command(flatten)]
    one: One,
    /// The runbook; an empty file removes it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Revision that was read before: refused where somebody changed it since
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
}

impl Runbook {
    pub(super) async fn run(self, context: &Context) -> Result<Report> {
        match self.command {
            RunbookCommand::Show(One { domain, kind, appliance }) => {
                let mut client = appliance.connect().await?.runbooks();
                let shown = answered(client.get_runbook(GetRunbookRequest { domain, kind: kind.into() }).await)?;
                let runbook = shown.runbook.unwrap_or_default();
                if !context.output.is_json() {
                    complain(&revision_of(&runbook));
                }
                Ok(report(&runbook, runbook.text.clone())?.verbatim())
            }
            RunbookCommand::Set(Set { one: One { domain, kind, appliance }, file, revision }) => {
                let text = std::fs::read_to_string(&file).io_context(|| format!("runbook {}", file.display()))?;
                let mut client = appliance.connect().await?.runbooks();
                let request = SetRunbookRequest { domain, kind: kind.into(), text, expected_revision: revision };
                let set = answered(client.set_runbook(request).await)?;
                let runbook = set.runbook.unwrap_or_default();
                report(&runbook, format!("the runbook of {} has revision {} now", runbook.domain, runbook.revision))
            }
        }
    }
}

fn revision_of(runbook: &proto::Runbook) -> String {
    match (runbook.revision, runbook.text.is_empty()) {
        (0, _) => format!("{} has no such runbook", runbook.domain),
        (revision, true) => {
            format!("{} has no such runbook any more: it was removed by revision {revision}", runbook.domain)
        }
        (revision, false) => format!("revision {revision}"),
    }
}
