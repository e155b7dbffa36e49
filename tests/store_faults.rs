//! Storage sites on stores that fail: each failure ends in the right bytes or in the right error, within limits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use bytes::Bytes;
use freshet::error::{Error, ErrorKind};
use freshet::s3_server::{Fault, Options, Rule, S3Server, Verb, When};
use freshet::store::{Created, Settled, StorageSite, StoreOptions};
use futures::TryStreamExt;
use std::future::Future;
use std::time::Duration;
use support::scripted::{Reply, Scripted};

/// What must never be reached: a request that ends in no time is a failure of its own.
const NEVER: Duration = Duration::from_secs(60);

async fn bounded<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(NEVER, work).await.expect("it did not end in time")
}

/// A server and a site on it.
struct S3 {
    server: S3Server,
    site: StorageSite,
    _dir: tempfile::TempDir,
}

impl S3 {
    /// With quick retries and these settings on top.
    async fn start(settings: &[(&str, &str)]) -> S3 {
        let dir = tempfile::tempdir().unwrap();
        let server = S3Server::start(dir.path(), Options { page_keys: 4, ..Options::default() }).unwrap();
        let site = open(&server.url("site"), server.env(), settings).await;
        S3 { server, site, _dir: dir }
    }

    fn faults(&self, rules: impl IntoIterator<Item = Rule>) {
        self.server.faults().set(rules);
        self.server.reset_counters();
    }
}

async fn open(url: &str, env: Vec<(String, String)>, settings: &[(&str, &str)]) -> StorageSite {
    let mut options = StoreOptions::from_vars(env);
    for (name, value) in [("RETRY_PAUSE", "1ms"), ("RETRY_PAUSE_MAX", "20ms")].iter().chain(settings) {
        options.set(name, value).unwrap();
    }
    StorageSite::open(url, &options).await.unwrap()
}

fn pattern(len: usize) -> Bytes {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect::<Vec<_>>().into()
}

fn env(endpoint: &str) -> Vec<(String, String)> {
    let pairs = [("AWS_ENDPOINT_URL", endpoint), ("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "s3cr3t")];
    pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// An error as an operator sees it: its kind, and every one of these words in its text, and never the secret.
#[track_caller]
fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    assert!(!text.contains("secret") && !text.contains("s3cr3t") && !text.contains("Signature="), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_on_every_third_request_change_no_byte() {
    let whole = pattern(1_000_000);
    for fault in
        [Fault::Unavailable, Fault::SlowDown, Fault::InternalError, Fault::Reset, Fault::Truncate, Fault::LostResponse]
    {
        let s3 = S3::start(&[]).await;
        s3.faults([Rule::new(fault).when(When::Every(3))]);
        for i in 0..6 {
            let key = format!("d/{i}");
            let settled = s3.site.create_settled(&key, vec![whole.slice(i..)]).await.unwrap();
            assert!(matches!(settled, Settled::New | Settled::Ours), "{fault:?} {settled:?}");
            let got = s3.site.get_range(&key, 10..900_000).await.unwrap().unwrap();
            assert!(got.into_bytes() == whole.slice(i + 10..i + 900_000), "{fault:?}");
            assert_eq!(s3.site.head(&key).await.unwrap().unwrap().len, 1_000_000 - i as u64);
            assert!(s3.site.get("d/none", 10).await.unwrap().is_none());
        }
        let listed: Vec<_> = s3.site.list("d", None).map_ok(|o| o.key).try_collect().await.unwrap();
        assert_eq!(listed, (0..6).map(|i| format!("d/{i}")).collect::<Vec<_>>(), "{fault:?}");
        assert_eq!(s3.site.list_dirs("").await.unwrap(), ["d"]);
        let injected = s3.server.counters().total_faults();
        let retries = s3.site.counters().retries;
        assert!(injected >= 3 && retries > 0 && retries <= injected, "{fault:?}: {retries} of {injected}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_of_a_create_is_settled_by_reading() {
    let s3 = S3::start(&[]).await;
    let lose_first = || [Rule::new(Fault::LostResponse).when(When::First(1)).verb(Verb::Put)];
    s3.faults(lose_first());
    assert_eq!(s3.site.create("d/1", vec![pattern(100)]).await.unwrap(), Created::Exists);
    s3.faults(lose_first());
    assert_eq!(s3.site.create_settled("d/2", vec![pattern(100)]).await.unwrap(), Settled::Ours);
    // A byte of what is read to settle it changes on the way.
    let flip_first = Rule::new(Fault::Flip).when(When::First(1)).verb(Verb::Get);
    s3.faults(lose_first().into_iter().chain([flip_first]));
    assert_eq!(s3.site.create_settled("d/3", vec![pattern(100)]).await.unwrap(), Settled::Ours);
    assert_eq!(s3.server.counters().total_faults(), 2);
    s3.faults(lose_first());
    s3.site.put_status("d/status", pattern(100)).await.unwrap();
    assert_eq!(s3.site.counters().retries, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_body_is_gone_on_with_where_it_broke() {
    let s3 = S3::start(&[("HEDGE", "off")]).await;
    let whole = pattern(4 << 20);
    s3.site.create("d/1", vec![whole.clone()]).await.unwrap();
    // Twice broken: half comes, then half of the rest.
    s3.faults([Rule::new(Fault::Truncate).when(When::First(2)).verb(Verb::Get)]);
    let got = s3.site.get_range("d/1", 0..4 << 20).await.unwrap().unwrap();
    assert_eq!((got.len, got.object_len), (4 << 20, 4 << 20));
    assert!(got.into_bytes() == whole);
    let counters = s3.site.counters();
    assert_eq!((counters.gets, counters.retries, counters.bytes_in), (3, 2, 4 << 20), "nothing came twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_only_fails_is_given_up_after_the_tries() {
    let s3 = S3::start(&[("RETRY_TRIES", "4")]).await;
    s3.faults([Rule::new(Fault::SlowDown)]);
    let words = ["s3://freshet/site", "d/1", "503", "SlowDown", "4 tries", "try again later"];
    says(&s3.site.create("d/1", vec![pattern(10)]).await.unwrap_err(), ErrorKind::Unreachable, &words);
    assert_eq!(s3.server.counters().total(), 4);
    says(&s3.site.get("d/1", 10).await.unwrap_err(), ErrorKind::Unreachable, &words);
    says(&s3.site.put_status("d/1", pattern(10)).await.unwrap_err(), ErrorKind::Unreachable, &words);
    says(&s3.site.head("d/1").await.unwrap_err(), ErrorKind::Unreachable, &["d/1", "503", "4 tries"]);
    says(&s3.site.list_dirs("d").await.unwrap_err(), ErrorKind::Unreachable, &["list d", "SlowDown", "4 tries"]);
    let listed = s3.site.list("d", None).try_collect::<Vec<_>>().await;
    says(&listed.unwrap_err(), ErrorKind::Unreachable, &["list d", "SlowDown", "4 tries"]);
    assert_eq!(s3.server.counters().total(), 24);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_request_wins_where_the_first_hangs() {
    let s3 = S3::start(&[("HEDGE_FLOOR", "20ms"), ("HEDGE_CEILING", "200ms"), ("STALL_TIMEOUT", "1m")]).await;
    let whole = pattern(300_000);
    s3.site.create("d/1", vec![whole.clone()]).await.unwrap();
    // A hanging request would outlast the test; only a second one can end it.
    s3.faults([Rule::new(Fault::Latency(NEVER * 2)).when(When::Every(30)).verb(Verb::Get)]);
    bounded(async {
        for i in 0..120 {
            let got = s3.site.get_range("d/1", i..200_000 + i).await.unwrap().unwrap();
            assert!(got.into_bytes() == whole.slice(i as usize..200_000 + i as usize));
        }
    })
    .await;
    let counters = s3.site.counters();
    assert!(counters.hedges_won >= 4, "{counters:?}");
    assert!(counters.hedges <= 1 + 120 * 5 / 100, "more than their share: {counters:?}");
    assert_eq!(counters.retries, 0, "{counters:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_cut_and_a_long_body_is_not() {
    let s3 = S3::start(&[("STALL_TIMEOUT", "1s"), ("RETRY_TRIES", "2"), ("HEDGE", "off")]).await;
    let whole = pattern(1 << 20);
    s3.site.create("d/1", vec![whole.clone()]).await.unwrap();

    // 2.5 s for the body, in pieces that come every 160 ms.
    s3.faults([Rule::new(Fault::Bandwidth(400 << 10))]);
    let got = bounded(s3.site.get_range("d/1", 0..1 << 20)).await.unwrap().unwrap();
    assert!(got.into_bytes() == whole);
    assert_eq!(s3.site.create("d/2", vec![whole]).await.unwrap(), Created::New);
    assert_eq!(s3.site.counters().retries, 0);

    s3.faults([Rule::new(Fault::Latency(NEVER * 2))]);
    let words = ["nothing came for 1 s", "2 tries", "d/1"];
    says(&bounded(s3.site.get_range("d/1", 0..100)).await.unwrap_err(), ErrorKind::Unreachable, &words);

    // One piece of 64 KiB takes longer than the test.
    s3.faults([Rule::new(Fault::Bandwidth(1)).verb(Verb::Get)]);
    says(&bounded(s3.site.get_range("d/1", 0..1 << 20)).await.unwrap_err(), ErrorKind::Unreachable, &words);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_told_at_once() {
    let s3 = S3::start(&[]).await;
    for (name, value) in [("AWS_SECRET_ACCESS_KEY", "wrong s3cr3t"), ("AWS_ACCESS_KEY_ID", "nobody")] {
        let site = open(&s3.server.url("site"), s3.server.env(), &[(name, value)]).await;
        s3.server.reset_counters();
        let words = ["s3://freshet/site", "d/1", "check AWS_ACCESS_KEY_ID"];
        says(&site.get("d/1", 10).await.unwrap_err(), ErrorKind::Denied, &words);
        says(&site.create("d/1", vec![]).await.unwrap_err(), ErrorKind::Denied, &words);
        says(&site.list_dirs("").await.unwrap_err(), ErrorKind::Denied, &["s3://freshet/site", "list"]);
        assert_eq!(s3.server.counters().total(), 3, "{name}: no retries");
    }
    // Half of a pair is a setting to correct, and no request is sent.
    let mut half = StoreOptions::default();
    half.set("AWS_SECRET_ACCESS_KEY", "s3cr3t").unwrap();
    let e = StorageSite::open("s3://b/p", &half).await.err().unwrap();
    says(&e, ErrorKind::Invalid, &["s3://b/p", "AccessKeyId"]);
}

#[tokio::test]
async fn missing_credentials_are_told_as_such() {
    let store = Scripted::start(|_| Reply::new(500, ""));
    let metadata = Scripted::start(|_| Reply::new(404, ""));
    let settings = [("AWS_ENDPOINT_URL", store.endpoint()), ("AWS_METADATA_ENDPOINT", metadata.endpoint())];
    let vars = settings.map(|(k, v)| (k.to_owned(), v));
    let site = open("s3://b/p", vars.to_vec(), &[]).await;
    let e = bounded(site.get("d/1", 10)).await.unwrap_err();
    says(&e, ErrorKind::Denied, &["s3://b/p", "no credentials", "AWS_ACCESS_KEY_ID"]);
    drop(metadata);
    let e = bounded(site.get("d/1", 10)).await.unwrap_err();
    says(&e, ErrorKind::Denied, &["s3://b/p", "no credentials", "AWS_ACCESS_KEY_ID"]);
    assert_eq!(store.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_bucket_is_named() {
    let s3 = S3::start(&[]).await;
    let site = open("s3://nowhere/site", s3.server.env(), &[]).await;
    s3.server.reset_counters();
    let words = ["s3://nowhere/site", "bucket \"nowhere\" does not exist", "create it"];
    says(&site.get("d/1", 10).await.unwrap_err(), ErrorKind::NotFound, &words);
    says(&site.create("d/1", vec![]).await.unwrap_err(), ErrorKind::NotFound, &words);
    says(&site.list_dirs("").await.unwrap_err(), ErrorKind::NotFound, &words);
    says(&site.list("", None).try_collect::<Vec<_>>().await.unwrap_err(), ErrorKind::NotFound, &words);
    assert_eq!(s3.server.counters().total(), 4, "no retries");
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_told_after_a_few_tries() {
    // The port was just free, and nobody listens on it.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (endpoint, word) in [(format!("http://{free}"), "refused"), ("http://nosuch.invalid:9".into(), "dns")] {
        let site = open("s3://b/p", env(&endpoint), &[("RETRY_TRIES", "100")]).await;
        let e = bounded(site.get("d/1", 10)).await.unwrap_err();
        says(&e, ErrorKind::Unreachable, &["s3://b/p", "d/1", "cannot connect", "3 tries", "AWS_ENDPOINT_URL", word]);
        assert_eq!(site.counters().retries, 2);
        let e = bounded(site.list_dirs("")).await.unwrap_err();
        says(&e, ErrorKind::Unreachable, &["cannot connect"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_there_is_waited_for() {
    let s3 = S3::start(&[("RETRY_TRIES", "100"), ("RETRY_PAUSE_MAX", "50ms")]).await;
    s3.site.create("d/1", vec![pattern(1000)]).await.unwrap();
    s3.server.set_reachable(false).unwrap();
    let site = s3.site.clone();
    let reader = tokio::spawn(async move { bounded(site.get("d/1", 1000)).await });
    // Long after a store that was never there would have been given up.
    while s3.site.counters().retries < 6 {
        assert!(!reader.is_finished());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    s3.server.set_reachable(true).unwrap();
    assert!(reader.await.unwrap().unwrap().unwrap() == pattern(1000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_is_the_stores() {
    let s3 = S3::start(&[]).await;
    for skew in [3600, -86_400] {
        s3.server.faults().set_clock_skew(skew);
        s3.site.head("d/1").await.unwrap();
        let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
        let apart = s3.site.now().millis() as i64 - here - skew * 1000;
        assert!(apart.abs() < 60_000, "{skew}: {apart} ms off");
    }
}

#[tokio::test]
async fn answers_that_make_no_sense_are_refused() {
    // Whatever the store says to a read of bytes 10 to 19, other bytes are never handed out as those.
    type Answer = fn() -> Reply;
    let answers: [(&str, Answer, ErrorKind); 6] = [
        ("whole object", || Reply::new(200, vec![7; 100]), ErrorKind::Unreachable),
        ("no range", || Reply::new(206, vec![7; 10]).header("etag", "\"1\""), ErrorKind::Unreachable),
        ("other range", || ranged("bytes 0-9/100", 10), ErrorKind::Unreachable),
        ("too little", || ranged("bytes 10-19/100", 5), ErrorKind::Unreachable),
        ("too much", || ranged("bytes 10-19/100", 15), ErrorKind::Unreachable),
        ("elsewhere", || Reply::new(301, "").header("x-amz-bucket-region", "eu-1"), ErrorKind::Invalid),
    ];
    for (what, answer, kind) in answers {
        let store = Scripted::start(move |_| answer());
        let site = open("s3://b/p", env(&store.endpoint()), &[("RETRY_TRIES", "3"), ("HEDGE", "off")]).await;
        let e = bounded(site.get_range("d/1", 10..20)).await.err().unwrap_or_else(|| panic!("{what} is taken"));
        says(&e, kind, &["s3://b/p", "d/1"]);
        assert_eq!(store.requests(), if kind == ErrorKind::Invalid { 1 } else { 3 }, "{what}");
    }
}

fn ranged(range: &str, len: usize) -> Reply {
    let reply = Reply::new(206, vec![7; len]).header("content-range", range).header("etag", "\"1\"");
    reply.header("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")
}

/// A bucket that lists these keys of the folder `p`, whatever it is asked.
fn lists(keys: &'static [&'static str]) -> Scripted {
    Scripted::start(move |_| {
        let times = "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>1</ETag>";
        let object = |key: &&str| format!("<Contents><Key>p/{key}</Key><Size>1</Size>{times}</Contents>");
        let objects: String = keys.iter().map(object).collect();
        Reply::new(200, format!("<ListBucketResult><IsTruncated>false</IsTruncated>{objects}</ListBucketResult>"))
    })
}

#[tokio::test]
async fn a_listing_out_of_order_is_an_error_and_one_from_the_start_is_filtered() {
    let store = lists(&["a", "c", "b"]);
    let site = open("s3://b/p", env(&store.endpoint()), &[]).await;
    let e = site.list("", None).try_collect::<Vec<_>>().await.unwrap_err();
    says(&e, ErrorKind::Unsupported, &["s3://b/p", "ascending"]);

    let store = lists(&["a", "b", "c"]);
    let site = open("s3://b/p", env(&store.endpoint()), &[]).await;
    let all: Vec<_> = site.list("", Some("b")).map_ok(|o| o.key).try_collect().await.unwrap();
    assert_eq!(all, ["c"]);
}
