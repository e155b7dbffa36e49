//! Deleting a domain: told, confirmed, whole, and nothing else.

use freshet::control::proto::{DeleteDomainRequest, PrepareDeleteDomainRequest};
use tonic::Code;

use super::appliance::Place;

/// Ends a deletion; its status.
async fn delete(client: &freshet::control::Client, name: &str, token: &str) -> Result<u64, tonic::Status> {
    let request = DeleteDomainRequest { name: name.into(), confirmation_token: token.into() };
    let mut steps = client.domains().delete_domain(request).await?.into_inner();
    let mut last = None;
    while let Some(step) = steps.message().await? {
        last = Some(step);
    }
    let last = last.filter(|last| last.done).expect("its last word is that it is done");
    Ok(last.deleted_objects)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_is_deleted_only_by_the_token_that_told_what_that_destroys() {
    let place = Place::new();
    let (image, other) = (place.image("root"), place.image("other"));
    let first = place.serve("first");
    first.protect(&place, &image);
    first.until_recoverable("d");
    first.ask(&["domain", "create", "e", "--store", "s"]).good();
    first.ask(&["vm", "protect", "e", "x", "--disk", &format!("root={}", other.display())]).good();
    first.until_recoverable("e");
    let busy = first.ask(&["domain", "delete", "d", "--yes", "d"]).bad(4);
    assert!(busy.contains("unprotect them first"), "{busy}");
    first.ask(&["vm", "unprotect", "d", "web"]).good();

    let second = place.serve("second");
    second.ask(&["store", "add", "s", "--url", &place.store_url()]).good();
    second.ask(&["domain", "import", "d", "--store", "s"]).good();
    let foreign = second.ask(&["domain", "delete", "d", "--yes", "d"]).bad(4);
    assert!(foreign.contains("owned by site first"), "{foreign}");

    let unsaid = first.ask(&["domain", "delete", "d"]).bad(4);
    assert!(unsaid.contains("deleting domain d destroys") && unsaid.contains("1 VMs (web)"), "{unsaid}");
    let misnamed = first.ask(&["domain", "delete", "d", "--yes", "e"]).bad(2);
    assert!(misnamed.contains("nothing was done"), "{misnamed}");

    let client = first.client().await;
    let prepare = |name: &str| PrepareDeleteDomainRequest { name: name.into() };
    let told = client.domains().prepare_delete_domain(prepare("d")).await.unwrap().into_inner();
    assert!(told.objects > 0 && told.bytes > 0 && told.vms == ["web"] && told.newest_point.is_some(), "{told:?}");
    for (name, token, code) in [
        ("d", "", Code::InvalidArgument),
        ("d", "made up", Code::FailedPrecondition),
        ("", told.confirmation_token.as_str(), Code::InvalidArgument),
        ("e", told.confirmation_token.as_str(), Code::FailedPrecondition),
    ] {
        assert_eq!(delete(&client, name, token).await.unwrap_err().code(), code, "{name} {token}");
    }
    // The domain goes on: what was told is not what would be destroyed.
    first.ask(&["vm", "protect", "d", "web", "--disk", &format!("root={}", image.display())]).good();
    first.until_recoverable("d");
    first.ask(&["vm", "unprotect", "d", "web"]).good();
    let changed = delete(&client, "d", &told.confirmation_token).await.unwrap_err();
    assert!(changed.message().contains("something changed"), "{changed:?}");
    assert!(place.path("store/d/owner").exists());

    let told = client.domains().prepare_delete_domain(prepare("d")).await.unwrap().into_inner();
    let gone = delete(&client, "d", &told.confirmation_token).await.unwrap();
    assert!(gone >= told.objects, "{gone} of {}", told.objects);
    let left: Vec<_> = walk(&place.path("store/d"));
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    assert_eq!(first.ask(&["domain", "show", "d"]).code, Some(9));
    assert!(!place.path("first-state/domains/d").exists());
    assert!(image.exists(), "images stay");
    // The other domain is as it was, and the name is free again.
    first.until_recoverable("e");
    first.protect(&place, &image);
    first.until_recoverable("d");
    assert!(first.stop().success());
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
