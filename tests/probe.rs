//! The capability probe's verdict on stores that can and cannot be trusted with ownership.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use freshet::error::ErrorKind;
use freshet::s3_server::{Fault, Options, Rule, S3Server, Verb, When};
use freshet::store::{Outcome, StorageSite, StoreOptions, Verdict, probe};
use futures::TryStreamExt;
use support::naive_s3;
use support::scripted::{Reply, Scripted};

/// Everything that decides about ownership.
const DECIDING: [&str; 7] =
    ["write", "read your write", "range", "listing", "start of a listing", "create-if-absent", "race"];

fn outcome(verdict: &Verdict, name: &str) -> Option<Outcome> {
    verdict.capabilities.iter().find(|c| c.name == name).map(|c| c.outcome)
}

#[track_caller]
fn is_good(verdict: &Verdict) {
    for name in DECIDING {
        assert_eq!(outcome(verdict, name), Some(Outcome::Yes), "{name}: {verdict}");
    }
    assert!(verdict.usable_for_ownership, "{verdict}");
    assert!(verdict.to_string().contains("usable for ownership: yes, because"), "{verdict}");
    assert_eq!(outcome(verdict, "clean-up"), None, "{verdict}");
    verdict.require_ownership().unwrap();
}

/// All that is in the site.
async fn left(site: &StorageSite) -> usize {
    site.list("", None).try_collect::<Vec<_>>().await.unwrap().len()
}

async fn naive(server: &Scripted) -> StorageSite {
    let vars = [("AWS_ENDPOINT_URL", server.endpoint()), ("AWS_SKIP_SIGNATURE", "true".into())];
    let options = StoreOptions::from_vars(vars.map(|(k, v)| (k.to_owned(), v)));
    StorageSite::open("s3://bucket/site", &options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_directory_is_good() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/site", dir.path().display());
    let site = StorageSite::open(&url, &StoreOptions::default()).await.unwrap();
    let verdict = probe(&site).await.unwrap();
    is_good(&verdict);
    assert_eq!(left(&site).await, 0);
    // No folder is left but that of temporary files, and that is empty.
    let entries: Vec<_> = std::fs::read_dir(dir.path().join("site")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(entries, [dir.path().join("site/.freshet-tmp")]);
    assert_eq!(std::fs::read_dir(&entries[0]).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_true_s3_server_is_good_also_when_answers_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(dir.path(), Options::default()).unwrap();
    let mut options = StoreOptions::from_vars(server.env());
    options.set("RETRY_PAUSE", "1ms").unwrap();
    let site = StorageSite::open(&server.url("site"), &options).await.unwrap();
    is_good(&probe(&site).await.unwrap());
    assert_eq!(left(&site).await, 0);

    server.faults().set([Rule::new(Fault::LostResponse).when(When::Every(10)).verb(Verb::Put).key("race")]);
    is_good(&probe(&site).await.unwrap());

    server.faults().clear();
    server.faults().set_clock_skew(7200);
    let verdict = probe(&site).await.unwrap();
    is_good(&verdict);
    let clock = verdict.capabilities.iter().find(|c| c.name == "clock").unwrap();
    assert!(clock.outcome == Outcome::Note && clock.detail.contains("ahead"), "{verdict}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_where_everybody_wins_is_refused() {
    let server = naive_s3::start();
    let site = naive(&server).await;
    let verdict = probe(&site).await.unwrap();
    assert_eq!(outcome(&verdict, "create-if-absent"), Some(Outcome::No), "{verdict}");
    assert_eq!(outcome(&verdict, "listing"), Some(Outcome::Yes), "{verdict}");
    assert!(!verdict.usable_for_ownership);
    assert!(verdict.to_string().contains("usable for ownership: NO, because of create-if-absent"), "{verdict}");
    let refused = verdict.require_ownership().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("s3://bucket/site") && refused.to_string().contains("replaced the object"));
    assert_eq!(left(&site).await, 0);
}

#[tokio::test]
async fn a_store_that_can_only_be_read_is_told_from_one_that_refuses_us() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(dir.path(), Options::default()).unwrap();
    let mut options = StoreOptions::from_vars(server.env());
    let site = StorageSite::open(&server.url("site"), &options).await.unwrap();
    server.faults().set_read_only(true);
    let verdict = probe(&site).await.unwrap();
    assert_eq!(outcome(&verdict, "write"), Some(Outcome::No), "{verdict}");
    assert!(!verdict.usable_for_ownership && verdict.because.contains("read and not written"), "{verdict}");

    options.set("AWS_SECRET_ACCESS_KEY", "wrong").unwrap();
    let site = StorageSite::open(&server.url("site"), &options).await.unwrap();
    assert_eq!(probe(&site).await.unwrap_err().kind(), ErrorKind::Denied);
    server.faults().clear();
    let site = StorageSite::open("s3://nowhere/x", &StoreOptions::from_vars(server.env())).await.unwrap();
    assert_eq!(probe(&site).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_store_without_conditional_puts_is_refused() {
    let server = Scripted::start(|_| Reply::new(501, "<Error><Code>NotImplemented</Code></Error>"));
    let verdict = probe(&naive(&server).await).await.unwrap();
    assert_eq!(outcome(&verdict, "create-if-absent"), Some(Outcome::No), "{verdict}");
    assert!(!verdict.usable_for_ownership);
    assert_eq!(outcome(&verdict, "clean-up"), Some(Outcome::Note), "it could not delete either: {verdict}");
}
