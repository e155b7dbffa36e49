//! `freshet scan`: what a storage site holds.

use clap::Args;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::context::Context;
use super::report::Report;
use super::store_args::StoreArgs;
use super::units::{age, bytes};
use crate::error::Result;
use crate::scan::{DomainSummary, Scanned, scan};

/// List the domains of a storage site: owner, VMs, disks, sizes, newest point and its age
#[derive(Debug, Args)]
pub(super) struct Scan {
    #[command(flatten)]
    site: StoreArgs,
}

impl Scan {
    pub(super) async fn run(self, context: &Context) -> Result<Report> {
        let site = self.site.open().await?;
        let found = scan(&site, &context.cancel).await?;
        let bad = found.iter().filter(|s| s.summary.is_err()).count();
        let json = json!({ "store": site.url(), "domains": found.iter().map(one).collect::<Vec<_>>() });
        let why = (bad > 0).then(|| format!("{bad} of {} domains cannot be read", found.len()));
        Ok(Report::new(&json, text(&found))?.incomplete(why))
    }
}

fn one(scanned: &Scanned) -> Value {
    let s = match &scanned.summary {
        Ok(summary) => summary,
        Err(e) => return json!({ "domain": scanned.name.as_str(), "error": e.to_string() }),
    };
    let vms = s.catalogue.vms.iter().map(|vm| {
        let disks = s.catalogue.disks_of(vm.id);
        let disks: Vec<Value> = disks.map(|d| json!({ "disk": d.name.as_str(), "size": d.size })).collect();
        json!({ "vm": vm.name.as_str(), "disks": disks })
    });
    let point = s.point.map(
        |p| json!({ "point": p.at.segment.get(), "time": p.time.to_string(), "age_ms": p.age_ms, "fuzzy": p.fuzzy, "quiesced": p.quiesced }),
    );
    json!({
        "domain": scanned.name.as_str(),
        "domain_id": s.id.to_string(),
        "owner": s.owner.as_str(),
        "host": s.host,
        "generation": s.generation.get(),
        "released": s.released.map(|t| t.to_string()),
        "writer": { "alive": s.last_sign.is_recent(), "last_sign_ms": s.last_sign.age_ms },
        "vms": vms.collect::<Vec<_>>(),
        "bytes": { "logical": s.logical, "live": s.live, "stored": s.stored },
        "point": point,
        "warnings": s.warnings,
    })
}

fn text(found: &[Scanned]) -> String {
    if found.is_empty() {
        return "no domains".to_owned();
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["domain", "owner", "gen", "writer", "VMs", "disks", "logical", "stored", "point", "age"]);
    for scanned in found {
        match &scanned.summary {
            Ok(s) => table.add_row(row(scanned.name.as_str(), s)),
            Err(e) => table.add_row([scanned.name.to_string(), format!("cannot be read: {e}")]),
        };
    }
    let mut out = table.trim_fmt();
    for scanned in found {
        for warning in scanned.summary.iter().flat_map(|s| &s.warnings) {
            out += &format!("\n{}: {warning}", scanned.name);
        }
    }
    out
}

fn row(name: &str, s: &DomainSummary) -> Vec<String> {
    let writer = match (s.released.is_some(), s.last_sign.is_recent()) {
        (true, _) => "released",
        (false, true) => "alive",
        (false, false) => "-",
    };
    let (point, since) = match s.point {
        Some(p) => (format!("{}{}", p.at.segment, if p.fuzzy { " fuzzy" } else { "" }), age(p.age_ms)),
        None => ("-".to_owned(), "-".to_owned()),
    };
    vec![
        name.to_owned(),
        s.owner.to_string(),
        s.generation.to_string(),
        writer.to_owned(),
        s.catalogue.vms.len().to_string(),
        s.catalogue.disks.len().to_string(),
        bytes(s.logical),
        bytes(s.stored),
        point,
        since,
    ]
}
