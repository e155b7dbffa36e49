//! Azure Blob Storage, by its emulator Azurite where that is installed: contract and capability probe over `az://`.
//!
//! `npm install --prefix DIR azurite`, then `FRESHET_AZURITE_DIR=DIR cargo test --test azure`. Without it the test is
//! skipped and says so; with `FRESHET_REQUIRE_PEERS=1` a skip is a failure.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use freshet::error::ErrorKind;
use freshet::store::{StorageSite, StoreOptions, probe};
use object_store::ClientOptions;
use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential};
use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::contract;

/// The emulator's account and key, published with it.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// How long the emulator may take to start; it is a script of some size.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running emulator, stopped when it is dropped.
struct Azurite {
    child: Child,
    endpoint: String,
    _dir: tempfile::TempDir,
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Azurite {
    /// `None` where it is not installed.
    async fn start() -> Option<Azurite> {
        let program =
            std::env::var_os("FRESHET_AZURITE_DIR").map(|d| PathBuf::from(d).join("node_modules/.bin/azurite-blob"));
        let Some(program) = program.filter(|p| p.exists()) else {
            support::skipped("Azure interop", "FRESHET_AZURITE_DIR names no directory with azurite in it");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(program)
            .args(["--skipApiVersionCheck", "--silent", "--blobHost", "127.0.0.1", "--blobPort"])
            .arg(port.to_string())
            .arg("--location")
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let endpoint = format!("http://127.0.0.1:{port}/{ACCOUNT}");
        let mut azurite = Azurite { child, endpoint, _dir: dir };
        let began = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(began.elapsed() < START_LIMIT, "azurite does not listen");
            assert!(azurite.child.try_wait().unwrap().is_none(), "azurite ended");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(azurite)
    }

    async fn create_container(&self, name: &str) {
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = http::Method::PUT;
        *request.uri_mut() = format!("{}/{name}?restype=container", self.endpoint).parse().unwrap();
        request.headers_mut().insert("content-length", "0".parse().unwrap());
        let credential = AzureCredential::AccessKey(AzureAccessKey::try_new(KEY).unwrap());
        AzureAuthorizer::new(&credential, ACCOUNT).try_authorize(&mut request).unwrap();
        let client = ReqwestConnector::default().connect(&ClientOptions::new().with_allow_http(true)).unwrap();
        let response = client.execute(request).await.unwrap();
        assert_eq!(response.status().as_u16(), 201);
    }

    fn options(&self, key: &str) -> StoreOptions {
        let vars = [
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT),
            ("AZURE_STORAGE_ACCOUNT_KEY", key),
            ("AZURE_STORAGE_ENDPOINT", &self.endpoint),
        ];
        StoreOptions::from_vars(vars.map(|(k, v)| (k.to_owned(), v.to_owned())))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azurite_keeps_the_contract() {
    let Some(azurite) = Azurite::start().await else { return };
    azurite.create_container("freshet").await;
    let site = StorageSite::open("az://freshet/site", &azurite.options(KEY)).await.unwrap();
    contract::check(&site).await;

    let verdict = probe(&site).await.unwrap();
    assert!(verdict.usable_for_ownership, "{verdict}");

    let nowhere = StorageSite::open("az://nowhere/site", &azurite.options(KEY)).await.unwrap();
    let e = nowhere.get("d/1", 10).await.unwrap_err();
    assert!(e.kind() == ErrorKind::NotFound && e.to_string().contains("container \"nowhere\" does not exist"), "{e}");

    let wrong = "AAAAAAAAAAAAAAAAAAAAAA==";
    let stranger = StorageSite::open("az://freshet/site", &azurite.options(wrong)).await.unwrap();
    let e = stranger.get("d/1", 10).await.unwrap_err();
    assert!(e.kind() == ErrorKind::Denied && e.to_string().contains("AZURE_STORAGE_ACCOUNT_KEY"), "{e}");
    assert!(!e.to_string().contains(wrong), "{e}");
}

#[tokio::test]
async fn settings_that_are_missing_are_named() {
    let e = StorageSite::open("az://freshet/site", &StoreOptions::default()).await.err().unwrap();
    assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("az://freshet/site"), "{e}");
}
