//! `freshet serve`: the appliance of a site, until a signal.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::context::Context;
use super::notify;
use super::report::Report;
use crate::control::{Settings, serve, stand_by};
use crate::error::Result;

/// Run the appliance of a site: guests' disks, the catalog, and the API, until a signal
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Settings of the appliance; `freshet config example` shows them all
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Serve nothing: stand by to thaw guests, should the appliance that has the other end of standard input die
    #[arg(long, hide = true)]
    thaw_when_alone: bool,
    /// What the file says, once it was read.
    #[arg(skip)]
    settings: Option<Settings>,
}

impl Serve {
    /// Reads the settings, and tells whether they want log lines as JSON.
    pub(super) fn wants_json_logs(&mut self) -> Result<bool> {
        let settings = Settings::load(&self.config)?;
        Ok(self.settings.insert(settings).logs_json)
    }

    pub(super) async fn run(self, context: &Context) -> Result<Report> {
        let settings = match self.settings {
            Some(settings) => settings,
            None => Settings::load(&self.config)?,
        };
        if self.thaw_when_alone {
            stand_by(&settings).await?;
            return Report::new(&json!({ "event": "end" }), "ended");
        }
        let site = settings.site.to_string();
        serve(settings, &context.cancel, |at| {
            let more = [("tcp", &at.tcp), ("metrics", &at.metrics)];
            let more = more.into_iter().filter_map(|(what, at)| Some(format!(", {what} at {}", at.as_ref()?)));
            let text = format!("site {site} is served at {}{}", at.socket, more.collect::<String>());
            let event =
                json!({ "event": "ready", "site": site, "socket": at.socket, "tcp": at.tcp, "metrics": at.metrics });
            context.output.event(&event, &text)?;
            notify::ready();
            Ok(())
        })
        .await?;
        Report::new(&json!({ "event": "end" }), "ended")
    }
}
