//! Two operators at once: one gets it, the other is told, nothing is half done.

use freshet::control::from_status;
use freshet::control::proto::{DiskSpec, ImportDomainRequest, ProtectVmRequest};
use freshet::error::ErrorKind;

use super::appliance::Place;

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_import_a_domain_at_once_one_does() {
    let place = Place::new();
    let image = place.image("root");
    let first = place.serve("first");
    first.protect(&place, &image);
    let second = place.serve("second");
    second.ask(&["store", "add", "s", "--url", &place.store_url()]).good();
    let client = second.client().await;
    let tries = (0..8).map(|_| {
        let mut domains = client.domains();
        async move { domains.import_domain(ImportDomainRequest { store: "s".into(), name: "d".into() }).await }
    });
    let ends = futures::future::join_all(tries).await;
    let (good, bad): (Vec<_>, Vec<_>) = ends.into_iter().partition(Result::is_ok);
    assert_eq!((good.len(), bad.len()), (1, 7));
    for status in bad {
        let error = from_status(&status.unwrap_err());
        assert!(error.kind() == ErrorKind::Refused && error.to_string().contains("imported before"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_protect_a_vm_with_other_disks_one_does_and_both_are_told_the_truth() {
    let place = Place::new();
    let images = [place.image("a"), place.image("b")];
    let first = place.serve("first");
    first.ask(&["store", "add", "s", "--url", &place.store_url()]).good();
    first.ask(&["domain", "create", "d", "--store", "s"]).good();
    let client = first.client().await;
    let tries = images.iter().map(|image| {
        let disk = DiskSpec { name: "root".into(), path: image.display().to_string(), size_bytes: None };
        let request = ProtectVmRequest { domain: "d".into(), vm: "web".into(), disks: vec![disk], definition: None };
        let mut vms = client.vms();
        async move { vms.protect_vm(request).await }
    });
    let ends = futures::future::join_all(tries).await;
    let won: Vec<usize> = (0..2).filter(|i| ends[*i].is_ok()).collect();
    assert_eq!(won.len(), 1, "{ends:?}");
    let error = from_status(ends[1 - won[0]].as_ref().unwrap_err());
    assert!(error.kind() == ErrorKind::Refused && error.to_string().contains("with other disks"), "{error}");
    let shown = first.until_recoverable("d");
    assert_eq!(shown["vms"][0]["disks"][0]["path"], images[won[0]].display().to_string());
    assert!(first.stop().success());
}
