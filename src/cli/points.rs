//! `freshet points`: the points of a domain.

use clap::Args;
use comfy_table::{Table, presets};
use serde_json::json;

use super::context::Context;
use super::report::Report;
use super::store_args::DomainArgs;
use super::units::age;
use crate::error::Result;
use crate::store::Domain;

/// List the points of a domain
#[derive(Debug, Args)]
pub(super) struct Points {
    #[command(flatten)]
    domain: DomainArgs,
}

impl Points {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        let site = self.domain.site.open().await?;
        let mut domain = Domain::open(&site, &self.domain.domain).await?;
        domain.tip().await?;
        let points = domain.points().await?;
        let now = site.now();
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(["point", "generation", "time", "age", "VMs", ""]);
        let mut list = Vec::new();
        for p in points.all() {
            let age_ms = now.millis_since(p.time);
            list.push(json!({
                "point": p.at.segment.get(), "generation": p.at.generation.get(), "time": p.time.to_string(),
                "age_ms": age_ms, "fuzzy": p.fuzzy, "quiesced": p.quiesced, "vms": p.vms.len(),
            }));
            let mark = match (p.fuzzy, p.quiesced) {
                (true, _) => "fuzzy",
                (false, true) => "quiesced",
                (false, false) => "",
            };
            let (number, generation) = (p.at.segment.to_string(), p.at.generation.to_string());
            table.add_row([&number, &generation, &p.time.to_string(), &age(age_ms), &p.vms.len().to_string(), mark]);
        }
        let text = if list.is_empty() { "no points yet".to_owned() } else { table.trim_fmt() };
        let hidden = domain.hidden();
        let warnings: Vec<&String> = points.warnings().iter().chain(&hidden).collect();
        let json = json!({ "domain": self.domain.domain.as_str(), "points": list, "warnings": warnings });
        let lost = warnings.first().map(|w| format!("points may be missing, for {} reasons: {w}", warnings.len()));
        Ok(Report::new(&json, text)?.incomplete(lost))
    }
}
