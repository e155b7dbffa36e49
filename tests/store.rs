//! Storage sites as their users see them: the same contract on a directory and on the in-tree S3 server, then what
//! each of them does when things go wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use freshet::s3_server::{Options, S3Server};
use freshet::store::{StorageSite, StoreOptions};
use support::contract;

/// A server and a site on it.
struct S3 {
    server: S3Server,
    site: StorageSite,
    _dir: tempfile::TempDir,
}

impl S3 {
    async fn start() -> S3 {
        let dir = tempfile::tempdir().unwrap();
        let server = S3Server::start(dir.path(), Options { page_keys: 3, ..Options::default() }).unwrap();
        let site = StorageSite::open(&server.url("site"), &options(&server)).await.unwrap();
        S3 { server, site, _dir: dir }
    }
}

fn options(server: &S3Server) -> StoreOptions {
    StoreOptions::from_vars(server.env())
}

async fn file_site(dir: &tempfile::TempDir) -> StorageSite {
    let url = format!("file://{}/site", dir.path().display());
    StorageSite::open(&url, &StoreOptions::default()).await.unwrap()
}

#[tokio::test]
async fn a_directory_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract::check(&file_site(&dir).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_server_keeps_the_contract() {
    let s3 = S3::start().await;
    contract::check(&s3.site).await;
    let counters = s3.site.counters();
    assert_eq!((counters.retries, counters.hedges), (0, 0), "{counters:?}");
    let root = StorageSite::open(&s3.server.url(""), &options(&s3.server)).await.unwrap();
    assert_eq!(root.list_dirs("").await.unwrap(), ["site"]);
    assert_eq!(contract::keys(&root, "site/l", None).await.len(), 7);
}

#[tokio::test]
async fn a_directory_read_through_the_page_cache_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = StoreOptions::default();
    options.set("DIRECT", "off").unwrap();
    let url = format!("file://{}/with%20space%20and%20%C3%BC", dir.path().display());
    let site = StorageSite::open(&url, &options).await.unwrap();
    contract::check(&site).await;
    assert!(dir.path().join("with space and ü/d/big").exists());
}
