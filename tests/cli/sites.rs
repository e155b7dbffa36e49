//! Storage sites that cannot be used: each is told in words and by exit code within seconds, and nothing is written.

use std::path::Path;

use assert_cmd::Command;

use super::{file_url, freshet, ran, run};
use freshet::s3_server::{Options, S3Server};

/// The commands that open a site, all else in order.
fn commands(url: &str, dir: &Path) -> Vec<Vec<String>> {
    let (image, datastore) = (dir.join("image"), dir.join("datastore"));
    std::fs::write(&image, [7; 8192]).unwrap();
    let line = |text: &str| {
        let text = text.split(' ').map(|w| w.replace("URL", url).replace("IMAGE", image.to_str().unwrap()));
        text.map(|w| w.replace("DIR", datastore.to_str().unwrap())).collect::<Vec<_>>()
    };
    vec![
        line("scan --store URL"),
        line("points --store URL --domain d"),
        line("rehydrate --store URL --domain d --datastore DIR"),
        line("replicate --store URL --domain d --vm v --disk a=IMAGE"),
        line("store probe --store URL"),
    ]
}

fn with_env(server: &S3Server) -> Command {
    let mut command = freshet();
    command.envs(server.env());
    command
}

/// Retries are for stores that come back; these cases do not, and should be told soon.
fn few_retries(dir: &Path) -> String {
    let file = dir.join("options");
    std::fs::write(&file, "RETRY_TRIES=2\nRETRY_CONNECT_TRIES=2\nCONNECT_TIMEOUT=2s\n").unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn a_missing_bucket_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(&dir.path().join("server"), Options::default()).unwrap();
    for args in commands("s3://no-such-bucket/x", dir.path()) {
        let ran = ran(with_env(&server).args(&args));
        assert_eq!(ran.code, 9, "{args:?}: {ran:?}");
        assert!(ran.stderr.contains("no-such-bucket"), "{args:?}: {ran:?}");
        assert_eq!(ran.stdout, "", "{args:?}");
    }
    assert!(!dir.path().join("datastore").exists(), "a refused command made the datastore");
}

#[test]
fn wrong_credentials_are_denied_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let server = S3Server::start(&dir.path().join("server"), Options::default()).unwrap();
    for args in commands(&server.url("site"), dir.path()) {
        let ran = ran(with_env(&server).env("AWS_SECRET_ACCESS_KEY", "hunter2hunter2").args(&args));
        assert_eq!(ran.code, 8, "{args:?}: {ran:?}");
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
    }
    assert!(!dir.path().join("datastore").exists(), "a refused command made the datastore");
}

#[test]
fn a_host_that_does_not_resolve_or_answer_is_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let options = few_retries(dir.path());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for endpoint in ["http://no-such-host.invalid:9000".to_owned(), format!("http://{closed}")] {
        for args in commands("s3://bucket/x", dir.path()) {
            let mut command = freshet();
            command.env("AWS_ENDPOINT_URL", &endpoint).env("AWS_ACCESS_KEY_ID", "a");
            command.env("AWS_SECRET_ACCESS_KEY", "b").env("AWS_REGION", "us-east-1").env("AWS_ALLOW_HTTP", "true");
            let ran = ran(command.args(&args).args(["--store-options", &options]));
            assert_eq!(ran.code, 7, "{endpoint} {args:?}: {ran:?}");
        }
    }
}

#[test]
fn an_empty_or_missing_directory_holds_no_domains() {
    let dir = tempfile::tempdir().unwrap();
    let url = file_url(dir.path());
    let ran = run(&["scan", "--store", &url, "--json"]);
    assert_eq!((ran.code, ran.json()["domains"].as_array().unwrap().len()), (0, 0), "{ran:?}");
    assert_eq!(ran.json()["complete"].as_bool(), Some(true));
    for command in ["points", "verify"] {
        let ran = run(&[command, "--store", &url, "--domain", "nobody"]);
        assert_eq!(ran.code, 9, "{command}: {ran:?}");
        assert!(ran.stderr.contains("nobody"), "{ran:?}");
    }
}

#[test]
fn a_probe_says_what_the_store_can_do() {
    let dir = tempfile::tempdir().unwrap();
    let url = file_url(dir.path());
    let text = run(&["store", "probe", "--store", &url]);
    assert_eq!((text.code, text.stderr.as_str()), (0, ""), "{text:?}");
    assert!(text.stdout.contains("usable for ownership: yes"), "{text:?}");
    let json = run(&["store", "probe", "--store", &url, "--json"]);
    assert_eq!(json.json()["usable_for_ownership"].as_bool(), Some(true), "{json:?}");
}
