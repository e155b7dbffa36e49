//! `freshet site`: the appliance itself.

use clap::{Args, Subcommand};

use super::appliance_args::{ApplianceArgs, answered, report, when};
use super::context::Context;
use super::report::Report;
use crate::control::proto::GetSiteRequest;
use crate::error::Result;

/// The appliance itself
#[derive(Debug, Args)]
pub(super) struct Site {
    #[command(subcommand)]
    command: SiteCommand,
}

#[derive(Debug, Subcommand)]
enum SiteCommand {
    /// Show who answers, and who asks
    Show(Show),
}

#[derive(Debug, Args)]
struct Show {
    #[command(flatten)]
    appliance: ApplianceArgs,
}

impl Site {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        let SiteCommand::Show(show) = self.command;
        let mut client = show.appliance.connect().await?.site();
        let site = answered(client.get_site(GetSiteRequest {}).await)?;
        let hypervisor = match site.hypervisor_problem.as_str() {
            "" => format!("VMs run on: {}", site.hypervisor),
            why => format!("no VM can be started: {why}"),
        };
        let text = format!(
            "site {}, freshet {}, since {}\n{} storage sites, {} domains, {} of them served here\n\
             {hypervisor}\nyou are {}, {}",
            site.site,
            site.version,
            when(site.started.as_ref()),
            site.stores,
            site.domains,
            site.protections,
            site.caller,
            site.role
        );
        report(&site, text)
    }
}
