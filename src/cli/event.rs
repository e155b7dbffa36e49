//! `freshet event`: what was done at an appliance, by whom, and how it ended.

use clap::{Args, Subcommand};
use serde_json::json;

use super::appliance_args::{ApplianceArgs, answered, list_of, table, when};
use super::context::Context;
use super::report::Report;
use crate::control::proto::ListEventsRequest;
use crate::error::Result;

/// What was done at an appliance, by whom, and how it ended
#[derive(Debug, Args)]
pub(super) struct Event {
    #[command(subcommand)]
    command: EventCommand,
}

#[derive(Debug, Subcommand)]
enum EventCommand {
    /// List events, newest first
    List(List),
}

#[derive(Debug, Args)]
struct List {
    /// About this domain or storage site only
    #[arg(long, value_name = "NAME", default_value = "")]
    subject: String,
    /// Most events that are listed
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    most: u32,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

impl Event {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        let EventCommand::List(list) = self.command;
        let mut client = list.appliance.connect().await?.events();
        let (mut events, mut page_token) = (Vec::new(), String::new());
        let most = list.most as usize;
        while events.len() < most {
            let page_size = u32::try_from((most - events.len()).min(1000)).unwrap_or(1000);
            let request = ListEventsRequest { subject: list.subject.clone(), page_size, page_token };
            let page = answered(client.list_events(request).await)?;
            events.extend(page.events);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let mut table = table(["time", "who", "what", "about", "outcome", ""]);
        for e in &events {
            let detail = e.detail.lines().next().unwrap_or_default();
            table.add_row([&when(e.time.as_ref()), &e.actor, &e.action, &e.subject, &e.outcome, detail]);
        }
        let text = if events.is_empty() { "no events".to_owned() } else { table.trim_fmt() };
        Report::new(&json!({ "events": list_of(&events)? }), text)
    }
}
