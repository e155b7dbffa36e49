//! The control plane with a storage site of a thousand domains of ten disks: scan, import, status, through a real
//! `freshet serve` and its socket. `cargo bench --bench control`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "a bench: a panic or a printed line is the report"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use freshet::control::proto::{
    AddStoreRequest, ImportAllDomainsRequest, ListDomainsRequest, ProtectionStatus, ScanStoreRequest,
};
use freshet::control::{Client, Target};
use freshet::format::{Catalogue, DiskInfo, IndexDisk, Point, PointFlags, Seal, SegmentBuilder, VmInfo, VmShape};
use freshet::ids::{DiskId, Name, Time, VmId};
use freshet::store::{DomainWriter, StartOptions, StorageSite, StoreOptions, keys};
use futures::StreamExt;

const DOMAINS: usize = 1000;
const DISKS: usize = 10;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A domain of one VM, with one point.
async fn make(site: &StorageSite, domain: &Name) {
    let writer = DomainWriter::start(site, domain, &name("first"), StartOptions::default()).await.unwrap();
    let vm = VmId::random();
    let info = VmInfo {
        id: vm,
        name: name("vm"),
        definition_kind: String::new(),
        definition: String::new(),
        shape: VmShape::default(),
    };
    let disk = |i: usize| DiskInfo { id: DiskId::random(), vm, name: name(&format!("disk {i}")), size: 1 << 30 };
    let disks: Vec<DiskInfo> = (0..DISKS).map(disk).collect();
    let mut builder = SegmentBuilder::new(Vec::new());
    for disk in &disks {
        builder.push_zeros(&IndexDisk { id: disk.id, vm, size: disk.size }, 0, 4096);
    }
    let sealed = builder.seal(Seal {
        domain: writer.domain().id(),
        id: writer.first(),
        parent: writer.base(),
        parent_digest: writer.base_digest(),
        writer: writer.writer(),
        created: site.now(),
        point: Some(Point { time: Time::from_millis(1_000_000), flags: PointFlags::default(), vms: [vm].into() }),
        catalogue: Some(Catalogue { vms: vec![info], disks }),
    });
    site.create(&keys::segment(domain, writer.first()), vec![sealed.unwrap().bytes.into()]).await.unwrap();
    writer.accept_up_to(writer.first()).await.unwrap();
    writer.finish().await.unwrap();
}

/// A process that is killed when the bench ends, however that is.
struct Appliance(Child);

impl Drop for Appliance {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(dir: &Path) -> Appliance {
    let at = |what: &str| dir.join(what).display().to_string();
    let settings = format!(
        "site = \"second\"\nstate = \"{}\"\n[listen]\nsocket = \"{}\"\n[protect]\nsocket_dir = \"{}\"\n",
        at("state"),
        at("socket"),
        at("nbd")
    );
    std::fs::write(dir.join("settings"), settings).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
    command.args(["--json", "serve", "--config"]).arg(dir.join("settings")).stdout(Stdio::piped());
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("ready"), "{line}");
    Appliance(child)
}

async fn measure(dir: &Path, url: &str) {
    let appliance = serve(dir);
    let client = Client::connect(&Target::Socket(dir.join("socket"))).await.unwrap();
    let add = AddStoreRequest { name: "s".into(), url: url.into(), options_file: String::new() };
    client.stores().add_store(add).await.unwrap();
    let began = Instant::now();
    let mut found = client.stores().scan_store(ScanStoreRequest { name: "s".into() }).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(one) = found.message().await.unwrap() {
        assert!(one.error.is_empty() && one.vms[0].disks.len() == DISKS, "{one:?}");
        count += 1;
    }
    let scan = began.elapsed();
    assert_eq!(count, DOMAINS);
    let began = Instant::now();
    let done =
        client.domains().import_all_domains(ImportAllDomainsRequest { store: "s".into() }).await.unwrap().into_inner();
    assert_eq!(done.imported.len(), DOMAINS);
    let import = began.elapsed();
    let began = Instant::now();
    let request = ListDomainsRequest { page_size: 1000, page_token: String::new() };
    let listed = client.domains().list_domains(request).await.unwrap().into_inner();
    let list = began.elapsed();
    assert!(listed.domains.iter().all(|domain| domain.status() == ProtectionStatus::Recoverable));
    println!("{DOMAINS} domains of {DISKS} disks: scan {scan:.2?}, import {import:.2?}, status of all {list:.2?}");
    println!("import and status: {:.2} s (bar: 5 s)", (import + list).as_secs_f64());
    drop(appliance);
}

fn main() {
    // Under `cargo test --benches` there is nothing to do: it measures.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        let url = format!("file://{}", dir.path().join("store").display());
        let site = StorageSite::open(&url, &StoreOptions::default()).await.unwrap();
        let names: Vec<Name> = (0..DOMAINS).map(|i| name(&format!("domain {i:04}"))).collect();
        futures::stream::iter(names.iter().map(|domain| make(&site, domain)))
            .buffer_unordered(16)
            .collect::<Vec<()>>()
            .await;
        measure(dir.path(), &url).await;
    });
}
