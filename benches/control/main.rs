//! The control plane through a real `freshet serve` and its socket: scan, import and status of a storage site with a
//! thousand domains of ten disks, what following a hundred domains costs while nothing happens, and what a completion takes
//! by the operator's command.
//!
//! `cargo bench --bench control [-- import|idle|completing]`

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench: a panic or a printed line is the report"
)]

mod appliance;
mod completing;
mod idle;
mod made;
#[path = "../support/mod.rs"]
mod support;

use std::time::Instant;

use freshet::control::proto::{
    AddStoreRequest, ImportAllDomainsRequest, ListDomainsRequest, ProtectionStatus, ScanStoreRequest,
};
use freshet::store::{StorageSite, StoreOptions};

use appliance::Appliance;

const DOMAINS: usize = 1000;

async fn import() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("store")).unwrap();
    let url = format!("file://{}", dir.path().join("store").display());
    let site = StorageSite::open(&url, &StoreOptions::default()).await.unwrap();
    made::domains(&site, DOMAINS).await;
    let appliance = Appliance::start(dir.path(), &[], "").await;
    let client = appliance.client();
    let add = AddStoreRequest { name: "s".into(), url, options_file: String::new() };
    client.stores().add_store(add).await.unwrap();
    let began = Instant::now();
    let mut found = client.stores().scan_store(ScanStoreRequest { name: "s".into() }).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(one) = found.message().await.unwrap() {
        assert!(one.error.is_empty() && one.vms[0].disks.len() == made::DISKS, "{one:?}");
        count += 1;
    }
    let scan = began.elapsed();
    assert_eq!(count, DOMAINS);
    let began = Instant::now();
    let request = ImportAllDomainsRequest { store: "s".into() };
    let done = client.domains().import_all_domains(request).await.unwrap().into_inner();
    assert_eq!(done.imported.len(), DOMAINS);
    let import = began.elapsed();
    let began = Instant::now();
    let request = ListDomainsRequest { page_size: 1000, page_token: String::new() };
    let listed = client.domains().list_domains(request).await.unwrap().into_inner();
    let list = began.elapsed();
    assert!(listed.domains.iter().all(|domain| domain.status() == ProtectionStatus::Recoverable));
    println!(
        "{DOMAINS} domains of {} disks: scan {scan:.2?}, import {import:.2?}, status of all {list:.2?}",
        made::DISKS
    );
    println!("import and status: {:.2} s (bar: 5 s)", (import + list).as_secs_f64());
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    // Under `cargo test --benches` there is nothing to do: it measures.
    if !args.iter().any(|arg| arg == "--bench") {
        return;
    }
    let parts = ["import", "idle", "completing"];
    let named = |part: &str| args.iter().any(|arg| arg == part);
    let wanted = |part: &str| named(part) || !parts.into_iter().any(named);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if wanted("import") {
        runtime.block_on(import());
    }
    if wanted("idle") {
        runtime.block_on(idle::measure());
    }
    if wanted("completing") {
        runtime.block_on(completing::measure());
    }
}
