//! `freshet store`: what a storage site can be trusted with, and the storage sites of an appliance.

use clap::{Args, Subcommand};
use serde_json::json;

use super::appliance_args::{ApplianceArgs, age_of, answered, confirmed, list_of, report, table, when};
use super::context::Context;
use super::report::Report;
use super::store_args::StoreArgs;
use super::units::bytes;
use crate::control::from_status;
use crate::control::proto::{
    AddStoreRequest, ListStoresRequest, RemoveStoreRequest, ScanStoreRequest, ScanStoreResponse,
};
use crate::error::Result;
use crate::store::probe;

/// Storage sites
#[derive(Debug, Args)]
pub(super) struct Store {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Try what Freshet needs of a store: ranges, listing, create-if-absent, a race of concurrent writers
    Probe(StoreArgs),
    /// Have an appliance probe and remember a store
    Add(Add),
    /// List the storage sites of an appliance
    List(List),
    /// Have an appliance forget a storage site; the store is not touched
    Remove(Remove),
    /// List the domains of a storage site that an appliance knows
    Scan(ScanStore),
}

#[derive(Debug, Args)]
struct Add {
    /// Name for it at this site
    #[arg(value_name = "STORE")]
    name: String,
    /// file:///directory, s3://bucket/prefix, az://container/prefix or gs://bucket/prefix
    #[arg(long, value_name = "URL")]
    url: String,
    /// Absolute path, on the appliance's host, of a file of NAME=VALUE lines with credentials and limits
    #[arg(long, value_name = "FILE", default_value = "")]
    options_file: String,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    appliance: ApplianceArgs,
}

#[derive(Debug, Args)]
struct Remove {
    /// Name of the storage site
    #[arg(value_name = "STORE")]
    name: String,
    /// Answer yes: the name once more
    #[arg(long, value_name = "STORE")]
    yes: Option<String>,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

#[derive(Debug, Args)]
struct ScanStore {
    /// Name of the storage site
    #[arg(value_name = "STORE")]
    name: String,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

impl Store {
    pub(super) async fn run(self, _context: &Context) -> Result<Report> {
        match self.command {
            StoreCommand::Probe(args) => {
                let verdict = probe(&args.open().await?).await?;
                let refused = verdict.require_ownership().err().map(|e| e.to_string());
                Ok(Report::new(&verdict, verdict.to_string())?.incomplete(refused))
            }
            StoreCommand::Add(add) => {
                let (name, url, options_file) = (add.name.clone(), add.url, add.options_file);
                let mut client = add.appliance.connect().await?.stores();
                let added = answered(client.add_store(AddStoreRequest { name, url, options_file }).await)?;
                let verdict = added.store.as_ref().map(|store| store.verdict.clone()).unwrap_or_default();
                report(&added, format!("storage site {} is known: usable, because {verdict}", add.name))
            }
            StoreCommand::List(list) => {
                let mut client = list.appliance.connect().await?.stores();
                let stores = answered(client.list_stores(ListStoresRequest {}).await)?;
                let mut table = table(["storage site", "url", "options file", "domains", "probed"]);
                for s in &stores.stores {
                    let options = if s.options_file.is_empty() { "-" } else { &s.options_file };
                    table.add_row([&s.name, &s.url, options, &s.domains.to_string(), &when(s.probed.as_ref())]);
                }
                let text = if stores.stores.is_empty() { "no storage sites".to_owned() } else { table.trim_fmt() };
                report(&stores, text)
            }
            StoreCommand::Remove(remove) => {
                let told = format!("the appliance forgets storage site {}", remove.name);
                confirmed(remove.yes.as_deref(), &remove.name, &told)?;
                let mut client = remove.appliance.connect().await?.stores();
                let removed = answered(client.remove_store(RemoveStoreRequest { name: remove.name.clone() }).await)?;
                report(&removed, format!("storage site {} is forgotten", remove.name))
            }
            StoreCommand::Scan(scan) => scan_store(&scan).await,
        }
    }
}

async fn scan_store(scan: &ScanStore) -> Result<Report> {
    let mut client = scan.appliance.connect().await?.stores();
    let mut answers = answered(client.scan_store(ScanStoreRequest { name: scan.name.clone() }).await)?;
    let mut found = Vec::new();
    while let Some(one) = answers.message().await.map_err(|status| from_status(&status))? {
        found.push(one);
    }
    let bad = found.iter().filter(|one| !one.error.is_empty()).count();
    let why = (bad > 0).then(|| format!("{bad} of {} domains cannot be read", found.len()));
    let text = if found.is_empty() { "no domains".to_owned() } else { text(&found) };
    let json = json!({ "store": scan.name, "domains": list_of(&found)? });
    Ok(Report::new(&json, text)?.incomplete(why))
}

fn text(found: &[ScanStoreResponse]) -> String {
    let mut table = table(["domain", "owner", "gen", "writer", "VMs", "logical", "stored", "point", "age", "here"]);
    for s in found {
        if !s.error.is_empty() {
            table.add_row([s.domain.clone(), format!("cannot be read: {}", s.error)]);
            continue;
        }
        let writer = match (s.released, s.writer_alive) {
            (true, _) => "released",
            (false, true) => "alive",
            (false, false) => "-",
        };
        let point = s.newest_point.as_ref();
        let here = if s.known_as.is_empty() { "-" } else { &s.known_as };
        table.add_row([
            s.domain.clone(),
            s.owner_site.clone(),
            s.generation.to_string(),
            writer.to_owned(),
            s.vms.len().to_string(),
            bytes(s.logical_bytes),
            bytes(s.stored_bytes),
            point.map_or("-".to_owned(), |p| p.number.to_string()),
            age_of(point.map(|p| p.age_ms)),
            here.to_owned(),
        ]);
    }
    let mut out = table.trim_fmt();
    for s in found {
        for warning in &s.warnings {
            out += &format!("\n{}: {warning}", s.domain);
        }
    }
    out
}
