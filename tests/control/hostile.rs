//! Requests with missing, absurd or hostile fields: a clear status that names the field, and nothing done.

use freshet::control::proto::*;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::appliance::Place;

fn is_about(status: Result<impl std::fmt::Debug, Status>, field: &str) {
    let status = status.expect_err(field);
    assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
    let details = status.get_error_details();
    let named = details.bad_request().unwrap().field_violations[0].field.clone();
    assert!(named.contains(field), "{named} is not {field}");
    assert_eq!(details.error_info().unwrap().metadata["kind"], "invalid");
    assert!(status.message().len() < 2000);
}

fn disk(name: &str, path: &str) -> DiskSpec {
    DiskSpec { name: name.into(), path: path.into(), size_bytes: None }
}

fn protect(disks: Vec<DiskSpec>) -> ProtectVmRequest {
    ProtectVmRequest { domain: "d".into(), vm: "web".into(), disks, definition: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn absurd_fields_are_named_and_nothing_is_done() {
    let place = Place::new();
    let first = place.serve("first");
    first.ask(&["store", "add", "s", "--url", &place.store_url()]).good();
    first.ask(&["domain", "create", "d", "--store", "s"]).good();
    let client = first.client().await;
    let (mut stores, mut domains, mut vms) = (client.stores(), client.domains(), client.vms());
    let add = |name: &str, url: &str, options_file: &str| AddStoreRequest {
        name: name.into(),
        url: url.into(),
        options_file: options_file.into(),
    };
    is_about(stores.add_store(AddStoreRequest::default()).await, "name");
    is_about(stores.add_store(add("a\nb", "file:///x", "")).await, "name");
    is_about(stores.add_store(add(&"x".repeat(300), "file:///x", "")).await, "name");
    is_about(stores.add_store(add("x", "ftp://x", "")).await, "url");
    is_about(stores.add_store(add("x", "file:///x", "relative")).await, "options_file");
    is_about(stores.scan_store(ScanStoreRequest::default()).await.map(|_| ()), "name");
    is_about(domains.create_domain(CreateDomainRequest { name: "x".into(), store: String::new() }).await, "store");
    is_about(domains.list_domains(ListDomainsRequest { page_size: 99_999, ..Default::default() }).await, "page_size");
    is_about(
        domains.cut_point(CutPointRequest { domain: "d".into(), within_ms: u64::MAX, quiesce: false }).await,
        "within_ms",
    );
    is_about(domains.list_kept_copies(ListKeptCopiesRequest::default()).await, "domain");
    let copy = |domain: &str, disk_id: &str| DeleteKeptCopyRequest {
        domain: domain.into(),
        disk_id: disk_id.into(),
        confirm: "web/root".into(),
    };
    is_about(domains.delete_kept_copy(copy("a\nb", "")).await, "domain");
    is_about(domains.delete_kept_copy(copy("d", "../../etc/passwd")).await, "disk_id");
    let none = domains.delete_kept_copy(copy("d", "00000000-0000-4000-8000-000000000000")).await.unwrap_err();
    assert_eq!(none.code(), Code::NotFound, "{none:?}");
    is_about(vms.protect_vm(protect(Vec::new())).await, "disks");
    is_about(vms.protect_vm(protect(vec![disk("a", "/x"); 1025])).await, "disks");
    is_about(vms.protect_vm(protect(vec![disk("a", "x")])).await, "disks[0].path");
    is_about(vms.protect_vm(protect(vec![disk("a", "/x\0y")])).await, "disks[0].path");
    is_about(vms.protect_vm(protect(vec![disk("", "/x")])).await, "disks[0].name");
    is_about(vms.protect_vm(protect(vec![disk("a", "/x"), disk("a", "/y")])).await, "disks[1].name");
    is_about(vms.protect_vm(protect(vec![disk("a", "/x"), disk("b", "/x")])).await, "disks[1].path");
    let sized = DiskSpec { size_bytes: Some(0), ..disk("a", "/x") };
    is_about(vms.protect_vm(protect(vec![sized])).await, "disks[0].size_bytes");
    let defined =
        |definition: VmDefinition| ProtectVmRequest { definition: Some(definition), ..protect(vec![disk("a", "/x")]) };
    let firmware = VmDefinition { firmware: "coreboot".into(), ..Default::default() };
    is_about(vms.protect_vm(defined(firmware)).await, "definition.firmware");
    let long = VmDefinition { kind: "k".into(), text: "x".repeat((4 << 20) + 1), ..Default::default() };
    is_about(vms.protect_vm(defined(long)).await, "definition.text");
    is_about(vms.add_disk(AddDiskRequest { domain: "d".into(), vm: "web".into(), disk: None }).await, "disk");
    is_about(
        client.events().list_events(ListEventsRequest { page_token: "x".into(), ..Default::default() }).await,
        "page_token",
    );
    let runbook = |kind: i32, text: &str| SetRunbookRequest {
        domain: "d".into(),
        kind,
        text: text.into(),
        expected_revision: None,
    };
    is_about(client.runbooks().set_runbook(runbook(99, "")).await, "kind");
    is_about(client.runbooks().set_runbook(runbook(1, "groups = 7")).await, "text");

    // Longer than any message may be: refused before it is read.
    let huge = VmDefinition { kind: "k".into(), text: "x".repeat(20 << 20), ..Default::default() };
    let status = vms.protect_vm(defined(huge)).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
    // Images that are not there, or no images.
    let missing = vms.protect_vm(protect(vec![disk("a", "/does/not/exist")])).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing:?}");
    let directory = vms.protect_vm(protect(vec![disk("a", "/proc")])).await.unwrap_err();
    assert_eq!(directory.code(), Code::InvalidArgument, "{directory:?}");
    let known = first.ask(&["domain", "show", "d"]).good();
    assert_eq!((&known["vms"], &known["domain_id"]), (&serde_json::json!([]), &"".into()), "nothing was done");
    assert!(!place.path("store/d").exists(), "not in the store either");
    assert_eq!(first.ask(&["store", "list"]).good()["stores"].as_array().unwrap().len(), 1);
}

#[test]
fn stores_that_cannot_be_are_not_remembered() {
    let place = Place::new();
    let first = place.serve("first");
    let add = |url: &str| first.ask(&["store", "add", "s", "--url", url]);
    let file = place.image("no-directory");
    assert_ne!(add(&format!("file://{}/x", file.display())).code, Some(0));
    assert_ne!(add("s3://no-such-bucket-here/x").code, Some(0));
    assert_eq!(first.ask(&["store", "list"]).good()["stores"], serde_json::json!([]));
    add(&place.store_url()).good();
    let other = first.ask(&["store", "add", "t", "--url", &place.store_url()]).bad(4);
    assert!(other.contains("is storage site s already"), "{other}");
    let moved = add(&format!("file://{}", place.dir.path().display())).bad(4);
    assert!(moved.contains("remove it first"), "{moved}");
    add(&place.store_url()).good();
    // No secret reaches the catalog: a file of options is named, never read into it.
    let options = place.path("options");
    std::fs::write(&options, "AWS_SECRET_ACCESS_KEY=hunter2-very-secret\n").unwrap();
    let with = ["store", "add", "s", "--url", &place.store_url(), "--options-file", options.to_str().unwrap()];
    first.ask(&with).good();
    assert!(first.stop().success());
    for entry in std::fs::read_dir(place.path("first-state/catalog")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(7).any(|w| w == b"hunter2"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn absurd_plans_are_named_by_their_field_and_begin_nothing() {
    let place = Place::new();
    let first = place.serve("first");
    first.ask(&["store", "add", "s", "--url", &place.store_url()]).good();
    first.ask(&["domain", "create", "d", "--store", "s"]).good();
    let client = first.client().await;
    let good = || FailoverPlan {
        general: Some(GeneralStage { domain: "d".into(), mode: FailoverMode::AsNeeded.into(), direction: 0 }),
        failover: Some(FailoverStage { datastore: "/x".into(), ..Default::default() }),
        ..Default::default()
    };
    let long = || "x".repeat(2000);
    let many = || (0..10_001).map(|n| (n.to_string(), "x".to_owned())).collect();
    let vm = |vm: &str| VmSettings { vm: vm.into(), ..Default::default() };
    let stage = |vms: Vec<VmSettings>| Some(VmsStage { vms, ..Default::default() });
    let options = |options: PlanOptions| Some(options);
    let remote = |runbook: &str| {
        let failover = Some(FailoverStage { datastore: "/x".into(), ..Default::default() });
        let runbook = runbook.to_owned();
        options(PlanOptions {
            resume_remote: Some(RemoteSettings { failover, runbook, ..Default::default() }),
            ..Default::default()
        })
    };
    type Change<'a> = Box<dyn Fn(&mut FailoverPlan) + 'a>;
    let cases: Vec<(&str, Change<'_>)> = vec![
        ("plan.general", Box::new(|p| p.general = None)),
        ("plan.failover", Box::new(|p| p.failover = None)),
        ("plan.failover.datastore", Box::new(|p| p.failover.as_mut().unwrap().datastore = "relative".into())),
        ("plan.failover.datastore", Box::new(|p| p.failover.as_mut().unwrap().datastore = "/x\0y".into())),
        ("plan.failover.placement", Box::new(|p| p.failover.as_mut().unwrap().placement = many())),
        ("plan.general.direction", Box::new(|p| p.general.as_mut().unwrap().direction = 2)),
        ("plan.general.mode", Box::new(|p| p.general.as_mut().unwrap().mode = 2)),
        ("plan.vms.vms[1].vm", Box::new(|p| p.vms = stage(vec![vm("a"), vm("a")]))),
        ("plan.vms.vms[0].vm", Box::new(|p| p.vms = stage(vec![vm("a\nb")]))),
        ("plan.vms", Box::new(|p| p.vms = stage(vec![vm("a"); 10_001]))),
        (
            "plan.vms.storage_policy",
            Box::new(|p| p.vms = Some(VmsStage { storage_policy: long(), ..Default::default() })),
        ),
        ("plan.dr.log_store", Box::new(|p| p.dr = Some(DrStage { log_store: "x".into(), ..Default::default() }))),
        ("plan.options.point", Box::new(|p| p.options = options(PlanOptions { point: Some(0), ..Default::default() }))),
        ("plan.options.resume_remote.runbook", Box::new(|p| p.options = remote("groups = 7"))),
    ];
    for (field, change) in cases {
        let mut plan = good();
        change(&mut plan);
        let request = StartFailoverRequest { plan: Some(plan), ..Default::default() };
        is_about(client.failover().start_failover(request).await, field);
    }
    let request = StartFailoverRequest { plan: Some(good()), request_id: "no uuid".into(), ..Default::default() };
    is_about(client.failover().start_failover(request).await, "request_id");
    is_about(client.failover().start_failover(StartFailoverRequest::default()).await, "plan");
    is_about(client.tasks().get_task(GetTaskRequest { id: "x".into() }).await, "id");
    is_about(client.tasks().abandon_task(AbandonTaskRequest::default()).await, "id");
    assert!(first.ask(&["task", "list"]).good()["tasks"].as_array().is_none_or(Vec::is_empty));
    assert!(first.stop().success());
}
