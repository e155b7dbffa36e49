//! Arguments that cannot be meant, bad URLs and options: refused before anything is touched.

use super::{file_url, freshet, ran, run};

/// A command for each way to name a storage site, with everything else in order.
fn with_store(url: &str) -> Vec<Vec<String>> {
    let line = |text: &str| text.split(' ').map(|w| w.replace("URL", url)).collect::<Vec<_>>();
    vec![
        line("scan --store URL"),
        line("points --store URL --domain d"),
        line("verify --store URL --domain d"),
        line("rehydrate --store URL --domain d --datastore /nonexistent/ds"),
        line("replicate --store URL --domain d --vm v --disk a=/nonexistent/image"),
        line("store probe --store URL"),
    ]
}

#[test]
fn bad_urls_are_refused_with_what_is_expected() {
    for url in
        ["nothing", "ftp://host/x", "s3://", "s3:///prefix", "file://relative", "s3://user:pass@bucket", "s3://b?x=1"]
    {
        for args in with_store(url) {
            let ran = ran(freshet().args(&args));
            assert_eq!(ran.code, 2, "{args:?}: {ran:?}");
            assert!(ran.stderr.starts_with("error: storage site URL"), "{args:?}: {ran:?}");
            assert!(ran.stderr.contains("s3://bucket/prefix"), "{ran:?}");
            assert!(!ran.stderr.contains("pass"), "a secret was shown: {ran:?}");
            assert_eq!(ran.stdout, "", "{args:?}");
        }
    }
}

#[test]
fn with_json_an_error_is_a_document_too() {
    for args in with_store("ftp://host/x") {
        let ran = ran(freshet().arg("--json").args(&args));
        assert_eq!(ran.code, 2);
        let error = &ran.json()["error"];
        assert_eq!((error["kind"].as_str(), error["exit_code"].as_i64()), (Some("invalid"), Some(2)), "{ran:?}");
        assert!(error["message"].as_str().unwrap().contains("ftp"), "{ran:?}");
        assert!(ran.stderr.starts_with("error: "), "{ran:?}");
    }
    let usage = run(&["rehydrate", "--json", "--nonsense"]);
    assert_eq!((usage.code, usage.json()["error"]["kind"].as_str()), (2, Some("invalid")), "{usage:?}");
}

#[test]
fn bad_values_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let url = file_url(dir.path());
    let rehydrate = ["rehydrate", "--store", &url, "--domain", "d", "--datastore", "/nonexistent/ds"];
    let replicate = ["replicate", "--store", &url, "--domain", "d"];
    let cases: Vec<(&[&str], &[&str], &str)> = vec![
        (&rehydrate, &["--memory", "lots"], "KiB, MiB, GiB or TiB"),
        (&rehydrate, &["--memory", "1MiB"], "memory budget"),
        (&rehydrate, &["--log-size", "1MiB"], "hold the largest segment"),
        (&rehydrate, &["--point", "0"], "number of a point"),
        (&rehydrate, &["--at", "yesterday"], "zone"),
        (&rehydrate, &["--point", "1", "--at", "2026-11-24T05:30:00Z"], "cannot be used with"),
        (&rehydrate, &["--point", "1", "--continuous"], "cannot be used with"),
        (&rehydrate, &["--until", "3"], "--continuous"),
        (&rehydrate, &["--engine", "steam"], "possible values"),
        (&rehydrate, &["--vm", "a\nb"], "control characters"),
        (&replicate, &["--disk", "a=/x", "--vm", "v"], "put --vm in front"),
        (&replicate, &["--vm", "v"], "--disk"),
        (&replicate, &["--vm", "v", "--disk", "a"], "NAME=PATH"),
        (&replicate, &["--vm", "v", "--disk", "a=/x", "--disk", "a=/y"], "two disks"),
    ];
    for (command, more, why) in cases {
        let ran = ran(freshet().args(command).args(more));
        assert_eq!(ran.code, 2, "{more:?}: {ran:?}");
        assert!(ran.stderr.contains(why), "{more:?}: {ran:?}");
        assert_eq!(ran.stdout, "", "{more:?}");
    }
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none(), "something was written");
}

#[test]
fn options_files_are_checked_and_their_secrets_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let url = file_url(dir.path());
    let file = dir.path().join("options");
    for (text, why) in [
        ("RETRY_TRIES = 0", "RETRY_TRIES"),
        ("NO_SUCH_SETTING=hunter2", "not known"),
        ("AWS_SECRET_ACCESS_KEY hunter2", "NAME=VALUE"),
        ("CONNECT_TIMEOUT=soon", "500ms"),
    ] {
        std::fs::write(&file, text).unwrap();
        let ran = run(&["scan", "--store", &url, "--store-options", file.to_str().unwrap()]);
        assert_eq!(ran.code, 2, "{text}: {ran:?}");
        assert!(ran.stderr.contains(why), "{text}: {ran:?}");
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
    }
    let ran = run(&["scan", "--store", &url, "--store-options", "/nonexistent/options"]);
    assert_eq!(ran.code, 9, "{ran:?}");
}

#[test]
fn help_and_version_are_no_errors_and_a_bad_log_filter_is() {
    for args in [&["--help"][..], &["rehydrate", "--help"], &["--version"]] {
        let ran = run(args);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
        assert!(!ran.stdout.is_empty());
    }
    let ran = run(&["scan", "--store", "file:///nonexistent/x", "--log", "freshet=loud"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("log filter"), "{ran:?}");
}
