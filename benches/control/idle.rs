//! What a site costs that follows a hundred domains in which nothing happens: requests and CPU a minute.

use std::time::{Duration, Instant};

use freshet::control::Client;
use freshet::control::proto::{
    AddStoreRequest, DomainMode, DrStage, FailoverMode, FailoverPlan, FailoverStage, GeneralStage, GetDomainRequest,
    ImportAllDomainsRequest, StartContinuousFailoverRequest, VmsStage,
};
use freshet::store::{StorageSite, StoreOptions};

use crate::appliance::Appliance;
use crate::made;
use freshet::s3_server::{Options, S3Server};

/// Domains that are followed.
const FOLLOWED: usize = 100;
/// Longest time until all of them are.
const PATIENCE: Duration = Duration::from_secs(300);
/// What is left out after that, before it is measured.
const SETTLE: Duration = Duration::from_secs(20);
const MEASURED: Duration = Duration::from_secs(120);
/// A hypervisor without VMs: nothing is started here.
const HYPERVISOR: &str = "#!/bin/sh\ncase $1 in networks) echo '{\"networks\":[\"lan\"]}';; inventory) echo '{\"vms\":[]}';; *) exit 9;; esac\n";

pub(crate) fn plan(domain: &str, datastore: &str) -> FailoverPlan {
    FailoverPlan {
        general: Some(GeneralStage { domain: domain.into(), mode: FailoverMode::Continuous.into(), direction: 0 }),
        failover: Some(FailoverStage { datastore: datastore.into(), ..Default::default() }),
        vms: Some(VmsStage { default_network: "lan".into(), ..Default::default() }),
        dr: Some(DrStage {
            log_store: datastore.into(),
            log_size_bytes: 256 << 20,
            memory_bytes: 64 << 20,
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn follows(client: &Client, domain: &str) -> bool {
    let shown =
        client.domains().get_domain(GetDomainRequest { name: domain.into(), fresh: false }).await.unwrap().into_inner();
    let domain = shown.domain.unwrap();
    domain.mode() == DomainMode::ContinuousRehydrationInProgress
}

pub(crate) async fn measure() {
    let dir = tempfile::tempdir_in(std::env::current_dir().unwrap().join("target")).unwrap();
    let server = S3Server::start(&dir.path().join("s3"), Options::default()).unwrap();
    let site = StorageSite::open(&server.url("p"), &StoreOptions::from_vars(server.env())).await.unwrap();
    let names = made::domains(&site, FOLLOWED).await;
    let (driver, datastore) = (dir.path().join("driver"), dir.path().join("disks"));
    std::fs::create_dir(&datastore).unwrap();
    std::fs::write(&driver, HYPERVISOR).unwrap();
    std::fs::set_permissions(&driver, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let more = format!("[hypervisor]\ncommand = \"{}\"\n", driver.display());
    let appliance = Appliance::start(dir.path(), &server.env(), &more).await;
    let client = appliance.client();
    let add = AddStoreRequest { name: "s".into(), url: server.url("p"), options_file: String::new() };
    client.stores().add_store(add).await.unwrap();
    client.domains().import_all_domains(ImportAllDomainsRequest { store: "s".into() }).await.unwrap();
    let began = Instant::now();
    for domain in &names {
        let plan = Some(plan(domain, &datastore.display().to_string()));
        let start = StartContinuousFailoverRequest { plan, ..Default::default() };
        client.failover().start_continuous_failover(start).await.unwrap();
    }
    for domain in &names {
        while !follows(client, domain).await {
            assert!(began.elapsed() < PATIENCE, "{domain} is not followed");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    println!(
        "{FOLLOWED} domains of {} disks followed {:.1?} after the first was asked for",
        made::DISKS,
        began.elapsed()
    );
    tokio::time::sleep(SETTLE).await;
    let (cpu, _) = appliance.used();
    server.reset_counters();
    let began = Instant::now();
    tokio::time::sleep(MEASURED).await;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let (after, resident) = appliance.used();
    let counters = server.counters();
    println!(
        "idle: {:.0} requests a minute, of each domain {:.1}",
        counters.total() as f64 / minutes,
        counters.total() as f64 / minutes / FOLLOWED as f64
    );
    for (verb, count) in &counters.requests {
        println!("  {}: {:.0} a minute", verb.word(), *count as f64 / minutes);
    }
    println!(
        "idle: {:.2} s of CPU a minute ({:.2} % of one core), {} MiB resident",
        (after - cpu) / minutes,
        (after - cpu) / minutes / 0.6,
        resident >> 20
    );
}
