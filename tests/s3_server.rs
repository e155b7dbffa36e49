//! The S3 server of the tests is itself tested here: what other tests rest on has to be true.
//!
//! The client is `object_store` with its retries off, so that a fault is seen as it is.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod support;

use bytes::Bytes;
use freshet::s3_server::{Fault, Options, Rule, S3Server, Verb, When};
use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
    UpdateVersion,
};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const ROUNDS: usize = 40;
const WRITERS: usize = 8;

/// A server on a fresh directory with a client for it.
struct Site {
    server: S3Server,
    client: Arc<AmazonS3>,
    directory: TempDir,
}

impl Site {
    fn new() -> Site {
        Site::with(Options::default())
    }

    fn with(options: Options) -> Site {
        let directory = tempfile::tempdir().unwrap();
        let server = S3Server::start(directory.path(), options).unwrap();
        let client = Arc::new(builder(&server).build().unwrap());
        Site { server, client, directory }
    }

    async fn put(&self, key: &str, body: impl Into<Bytes>) {
        self.client.put(&Path::from(key), PutPayload::from(body.into())).await.unwrap();
    }

    async fn get(&self, key: &str) -> object_store::Result<Bytes> {
        self.client.get(&Path::from(key)).await?.bytes().await
    }
}

fn builder(server: &S3Server) -> AmazonS3Builder {
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new().with_url(server.url("")).with_retry(retry);
    for (name, value) in server.env() {
        // The configuration keys of object_store are the names of the variables in lower case.
        if let Ok(key) = name.to_lowercase().parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    let options = ClientOptions::new().with_allow_http(true).with_timeout(Duration::from_secs(30));
    builder.with_client_options(options)
}

/// Bytes in which every position is recognisable.
fn pattern(len: usize) -> Bytes {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect::<Vec<_>>().into()
}

async fn keys(client: &AmazonS3, prefix: &str) -> Vec<String> {
    let listed = client.list(Some(&Path::from(prefix))).map_ok(|meta| meta.location.to_string());
    listed.try_collect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_creates_have_one_winner() {
    let site = Site::new();
    for round in 0..ROUNDS {
        let path = Path::from(format!("race/{round}"));
        let create = |writer: usize| {
            let (client, path) = (Arc::clone(&site.client), path.clone());
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            tokio::spawn(async move { (writer, client.put_opts(&path, writer.to_string().into(), options).await) })
        };
        let writers: Vec<_> = (0..WRITERS).map(create).collect();
        let mut winners = Vec::new();
        for writer in writers {
            match writer.await.unwrap() {
                (writer, Ok(_)) => winners.push(writer),
                (_, Err(object_store::Error::AlreadyExists { .. })) => {}
                (_, Err(other)) => panic!("{other}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        assert_eq!(site.get(path.as_ref()).await.unwrap(), winners[0].to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_swaps_have_one_winner() {
    let site = Site::new();
    let path = Path::from("swap");
    let mut current = site.client.put(&path, "start".into()).await.unwrap();
    for round in 0..ROUNDS {
        let version = UpdateVersion { e_tag: current.e_tag.clone(), version: current.version.clone() };
        let swap = |writer: usize| {
            let (client, path) = (Arc::clone(&site.client), path.clone());
            let options = PutOptions { mode: PutMode::Update(version.clone()), ..PutOptions::default() };
            tokio::spawn(
                async move { (writer, client.put_opts(&path, format!("{round}/{writer}").into(), options).await) },
            )
        };
        let writers: Vec<_> = (0..WRITERS).map(swap).collect();
        let mut winners = Vec::new();
        for writer in writers {
            match writer.await.unwrap() {
                (writer, Ok(result)) => winners.push((writer, result)),
                (_, Err(object_store::Error::Precondition { .. })) => {}
                (_, Err(other)) => panic!("{other}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        let (writer, result) = winners.remove(0);
        assert_eq!(site.get("swap").await.unwrap(), format!("{round}/{writer}"));
        current = result;
    }
}

#[tokio::test]
async fn all_forms_of_range() {
    let site = Site::new();
    let body = pattern(3_000_001);
    site.put("big", body.clone()).await;
    site.put("empty", Bytes::new()).await;
    let path = Path::from("big");
    let cases = [
        (GetRange::Bounded(0..1), 0..1),
        (GetRange::Bounded(262_143..262_145), 262_143..262_145),
        (GetRange::Bounded(1_000..2_999_999), 1_000..2_999_999),
        (GetRange::Bounded(2_999_990..9_000_000), 2_999_990..3_000_001),
        (GetRange::Offset(2_500_000), 2_500_000..3_000_001),
        (GetRange::Suffix(7), 2_999_994..3_000_001),
        (GetRange::Suffix(9_000_000), 0..3_000_001),
    ];
    for (range, expected) in cases {
        let options = GetOptions { range: Some(range.clone()), ..GetOptions::default() };
        let result = site.client.get_opts(&path, options).await.unwrap();
        assert_eq!(result.meta.size, body.len() as u64, "{range:?}");
        assert_eq!(result.range, expected.start as u64..expected.end as u64, "{range:?}");
        assert_eq!(result.bytes().await.unwrap(), body.slice(expected), "{range:?}");
    }
    let beyond = GetOptions { range: Some(GetRange::Offset(3_000_001)), ..GetOptions::default() };
    assert!(site.client.get_opts(&path, beyond).await.is_err());
    assert_eq!(site.get("big").await.unwrap(), body);
    assert_eq!(site.get("empty").await.unwrap(), Bytes::new());
}

#[tokio::test]
async fn conditional_reads() {
    let site = Site::new();
    let path = Path::from("object");
    let tag = site.client.put(&path, "one".into()).await.unwrap().e_tag;
    let get = |options| site.client.get_opts(&path, options);
    let same = GetOptions { if_none_match: tag.clone(), ..GetOptions::default() };
    assert!(matches!(get(same).await, Err(object_store::Error::NotModified { .. })));
    let is = GetOptions { if_match: tag, ..GetOptions::default() };
    assert_eq!(get(is.clone()).await.unwrap().bytes().await.unwrap(), "one");
    site.put("object", "two").await;
    assert!(matches!(get(is).await, Err(object_store::Error::Precondition { .. })));
    let modified = site.client.head(&path).await.unwrap().last_modified;
    let since = GetOptions { if_modified_since: Some(modified), ..GetOptions::default() };
    assert!(matches!(get(since).await, Err(object_store::Error::NotModified { .. })));
    let before = modified - Duration::from_secs(5);
    let unmodified = GetOptions { if_unmodified_since: Some(before), ..GetOptions::default() };
    assert!(matches!(get(unmodified).await, Err(object_store::Error::Precondition { .. })));
}

#[tokio::test]
async fn listing_in_order_over_pages() {
    let site = Site::with(Options { page_keys: 7, ..Options::default() });
    let mut expected = BTreeSet::new();
    for at in 0..50 {
        for key in [format!("a/{at:03}/x"), format!("a-{at:03}"), format!("b/{at:03}")] {
            site.put(&key, "1").await;
            expected.insert(key);
        }
    }
    let all: Vec<_> = expected.iter().cloned().collect();
    assert_eq!(keys(&site.client, "").await, all);
    let below: Vec<_> = all.iter().filter(|key| key.starts_with("a/")).cloned().collect();
    assert_eq!(keys(&site.client, "a").await, below);
    let after = Path::from("a/030/x");
    let listed = site.client.list_with_offset(Some(&Path::from("a")), &after);
    let listed: Vec<_> = listed.map_ok(|meta| meta.location.to_string()).try_collect().await.unwrap();
    assert_eq!(listed, below[31..]);
    let page = site.client.list_with_delimiter(None).await.unwrap();
    let objects: Vec<_> = page.objects.iter().map(|meta| meta.location.to_string()).collect();
    assert_eq!(objects, all.iter().filter(|key| key.starts_with("a-")).cloned().collect::<Vec<_>>());
    assert_eq!(page.common_prefixes, [Path::from("a"), Path::from("b")]);
    site.server.reset_counters();
    let page = site.client.list_with_delimiter(Some(&Path::from("a"))).await.unwrap();
    assert_eq!(page.common_prefixes.len(), 50);
    // The client drops repeated prefixes; only the count of pages shows that the server repeats none.
    assert_eq!(site.server.counters().of(Verb::List), 8);
}

#[tokio::test]
async fn deleting_one_and_several() {
    let site = Site::new();
    for at in 0..20 {
        site.put(&format!("d/{at:02}"), "1").await;
    }
    site.client.delete(&Path::from("d/00")).await.unwrap();
    site.client.delete(&Path::from("d/00")).await.expect("absent is fine, as in the original");
    assert!(matches!(site.get("d/00").await, Err(object_store::Error::NotFound { .. })));
    let doomed = futures::stream::iter((1..19).map(|at| Ok(Path::from(format!("d/{at:02}"))))).boxed();
    let deleted: Vec<_> = site.client.delete_stream(doomed).try_collect().await.unwrap();
    assert_eq!(deleted.len(), 18);
    assert_eq!(keys(&site.client, "d").await, ["d/19"]);
}

#[tokio::test]
async fn multipart_in_any_order_and_abort() {
    let site = Site::new();
    let path = Path::from("multi/part");
    let body = pattern(12_000_000);
    let mut upload = site.client.put_multipart(&path).await.unwrap();
    let parts: Vec<_> = [0..5_500_000, 5_500_000..11_000_000, 11_000_000..12_000_000]
        .map(|range| upload.put_part(body.slice(range).into()))
        .into();
    // The last part arrives first.
    for part in parts.into_iter().rev() {
        part.await.unwrap();
    }
    assert!(matches!(site.get("multi/part").await, Err(object_store::Error::NotFound { .. })));
    upload.complete().await.unwrap();
    assert_eq!(site.get("multi/part").await.unwrap(), body);

    let mut upload = site.client.put_multipart(&path).await.unwrap();
    upload.put_part("never".into()).await.unwrap();
    upload.abort().await.unwrap();
    assert_eq!(site.get("multi/part").await.unwrap(), body);

    let mut upload = site.client.put_multipart(&path).await.unwrap();
    upload.put_part("too small".into()).await.unwrap();
    upload.put_part("the last may be".into()).await.unwrap();
    assert!(upload.complete().await.unwrap_err().to_string().contains("EntityTooSmall"));
}

#[tokio::test]
async fn a_part_sent_again_replaces_the_former_one() {
    let site = Site::new();
    let path = Path::from("again");
    let id = site.client.create_multipart(&path).await.unwrap();
    let former = site.client.put_part(&path, &id, 0, "former".into()).await.unwrap();
    let latter = site.client.put_part(&path, &id, 0, "latter".into()).await.unwrap();
    let error = site.client.complete_multipart(&path, &id, vec![former]).await.unwrap_err();
    assert!(error.to_string().contains("InvalidPart"), "{error}");
    site.client.complete_multipart(&path, &id, vec![latter.clone()]).await.unwrap();
    assert_eq!(site.get("again").await.unwrap(), "latter");
    let error = site.client.complete_multipart(&path, &id, vec![latter]).await.unwrap_err();
    assert!(format!("{error:?}").contains("NoSuchUpload"), "{error:?}");
}

#[tokio::test]
async fn objects_and_port_outlive_a_restart() {
    let site = Site::new();
    let long = format!("long/{}/%/é/~+@", "segment-".repeat(80));
    site.put(&long, "one").await;
    site.put(&long, "two").await;
    site.put("short", pattern(100_000)).await;
    let port = site.server.port();
    let short = site.server.object_file("freshet", "short").unwrap();
    site.server.stop();
    // As if killed between a rename and the removal of what it replaced.
    std::fs::write(short.with_file_name("short@0000000000000001"), "replaced long ago").unwrap();
    let options = Options { port, ..Options::default() };
    let server = S3Server::start(site.directory.path(), options).unwrap();
    let client = builder(&server).build().unwrap();
    let long = Path::from(long);
    assert_eq!(client.get(&long).await.unwrap().bytes().await.unwrap(), "two");
    assert_eq!(client.get(&Path::from("short")).await.unwrap().bytes().await.unwrap(), pattern(100_000));
    assert_eq!(keys(&client, "").await, [long.to_string(), "short".to_owned()]);
    let second = S3Server::start(site.directory.path(), Options::default());
    assert!(second.is_err(), "two servers must not share a directory");
}

#[tokio::test]
async fn wrong_credentials_and_missing_bucket() {
    let site = Site::new();
    site.put("object", "1").await;
    let path = Path::from("object");
    let wrong = builder(&site.server).with_secret_access_key("guess").build().unwrap();
    let error = wrong.get(&path).await.unwrap_err();
    assert!(matches!(error, object_store::Error::PermissionDenied { .. }), "{error}");
    let unknown = builder(&site.server).with_access_key_id("nobody").build().unwrap();
    let error = unknown.get(&path).await.unwrap_err();
    assert!(matches!(error, object_store::Error::PermissionDenied { .. }), "{error}");
    let anonymous = builder(&site.server).with_skip_signature(true).build().unwrap();
    assert!(anonymous.get(&path).await.is_err());
    let elsewhere = builder(&site.server).with_url("s3://elsewhere/").build().unwrap();
    let error = elsewhere.put(&path, "1".into()).await.unwrap_err();
    assert!(error.to_string().contains("NoSuchBucket"), "{error}");
}

#[tokio::test]
async fn refusals_are_seen_at_their_rate() {
    let site = Site::new();
    site.put("object", "1").await;
    for (fault, text) in [
        (Fault::Unavailable, "ServiceUnavailable"),
        (Fault::SlowDown, "SlowDown"),
        (Fault::InternalError, "InternalError"),
        (Fault::Deny, "AccessDenied"),
    ] {
        site.server.reset_counters();
        site.server.faults().set([Rule::new(fault).when(When::Every(3)).verb(Verb::Get).key("/obj")]);
        for request in 1..=9 {
            let result = site.get("object").await;
            match result {
                Ok(body) => assert!(request % 3 != 0 && body == "1", "{fault:?} at {request}"),
                Err(error) => assert!(request % 3 == 0 && error.to_string().contains(text), "{request}: {error}"),
            }
        }
        site.put("object", "1").await;
        assert!(site.get("other").await.unwrap_err().to_string().contains("NoSuchKey"));
        let counters = site.server.counters();
        assert_eq!(counters.faults.get(fault.name()), Some(&3));
        assert_eq!((counters.total(), counters.total_faults()), (11, 3));
    }
}

#[tokio::test]
async fn a_body_cut_short_is_seen() {
    let site = Site::new();
    for len in [1, 1_000, 3_000_000] {
        site.put("object", pattern(len)).await;
        site.server.faults().set([Rule::new(Fault::Truncate).when(When::First(1)).verb(Verb::Get)]);
        let result = site.client.get(&Path::from("object")).await.unwrap();
        assert_eq!(result.meta.size, len as u64, "the headers announce the whole body");
        let mut stream = result.into_stream();
        let mut got = 0;
        let error = loop {
            match stream.next().await.expect("an error comes before the end") {
                Ok(piece) => got += piece.len(),
                Err(error) => break error,
            }
        };
        assert_eq!(got, len / 2, "{error}");
        assert_eq!(site.get("object").await.unwrap(), pattern(len));
    }
}

#[tokio::test]
async fn a_flipped_bit_is_seen_and_not_stored() {
    let site = Site::new();
    let body = pattern(2_000_000);
    site.put("object", body.clone()).await;
    site.server.faults().set([Rule::new(Fault::Flip).when(When::First(1)).verb(Verb::Get)]);
    let wrong = site.get("object").await.unwrap();
    let differ: Vec<_> = (0..body.len()).filter(|at| wrong[*at] != body[*at]).collect();
    assert_eq!(differ, [1_000_000]);
    assert_eq!((wrong[1_000_000] ^ body[1_000_000]).count_ones(), 1);
    assert_eq!(site.get("object").await.unwrap(), body);
}

#[tokio::test]
async fn a_reset_does_nothing_and_a_lost_response_has_done_it() {
    let site = Site::new();
    for (fault, done) in [(Fault::Reset, false), (Fault::LostResponse, true)] {
        let key = fault.name();
        site.server.faults().set([Rule::new(fault).when(When::First(1)).verb(Verb::Put)]);
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let error = site.client.put_opts(&Path::from(key), "1".into(), options.clone()).await.unwrap_err();
        assert!(format!("{error:?}").contains("ConnectionReset"), "{error:?}");
        let again = site.client.put_opts(&Path::from(key), "2".into(), options).await;
        assert_eq!(matches!(again, Err(object_store::Error::AlreadyExists { .. })), done, "{fault:?}");
        assert_eq!(site.get(key).await.unwrap(), if done { "1" } else { "2" });
        assert_eq!(site.server.counters().faults.get(key), Some(&1));
    }
}

#[tokio::test]
async fn latency_and_bandwidth_are_waited_for() {
    let site = Site::new();
    site.put("object", pattern(400_000)).await;
    let started = std::time::Instant::now();
    site.server.faults().set([Rule::new(Fault::Latency(Duration::from_millis(120)))]);
    site.client.head(&Path::from("object")).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(120), "a lower bound holds on any machine");
    let started = std::time::Instant::now();
    site.server.faults().set([Rule::new(Fault::Bandwidth(2_000_000))]);
    assert_eq!(site.get("object").await.unwrap(), pattern(400_000));
    site.put("object", pattern(200_000)).await;
    assert!(started.elapsed() >= Duration::from_millis(300), "600 kB at 2 MB/s");
    let faults = site.server.counters().faults;
    assert_eq!((faults.get("latency"), faults.get("bandwidth")), (Some(&1), Some(&2)));
}

#[tokio::test]
async fn unreachable_and_read_only() {
    let site = Site::new();
    site.put("object", "1").await;
    site.server.set_reachable(false).unwrap();
    site.get("object").await.expect_err("the connection of before is closed");
    let stranger = builder(&site.server).build().unwrap();
    let error = stranger.get(&Path::from("object")).await.unwrap_err();
    assert!(format!("{error:?}").contains("ConnectionRefused"), "{error:?}");
    site.server.set_reachable(true).unwrap();
    assert_eq!(site.get("object").await.unwrap(), "1");
    site.server.faults().set_read_only(true);
    let error = site.client.put(&Path::from("object"), "2".into()).await.unwrap_err();
    assert!(matches!(error, object_store::Error::PermissionDenied { .. }), "{error}");
    assert!(site.client.delete(&Path::from("object")).await.is_err());
    assert_eq!(site.get("object").await.unwrap(), "1");
    site.server.faults().clear();
    site.put("object", "2").await;
}

#[tokio::test]
async fn chance_is_a_rate_and_repeats_with_its_seed() {
    let site = Site::new();
    site.put("object", "1").await;
    let mut runs = Vec::new();
    for seed in [1, 1, 2] {
        site.server.faults().set([Rule::new(Fault::SlowDown).when(When::Chance(0.3, seed)).verb(Verb::Get)]);
        let mut struck = Vec::new();
        for _ in 0..100 {
            struck.push(site.get("object").await.is_err());
        }
        let count = struck.iter().filter(|struck| **struck).count();
        assert!((10..=50).contains(&count), "{count} of 100 at 0.3");
        runs.push(struck);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[test]
fn usable_without_a_runtime_and_damage_to_a_file_is_served() {
    let site = Site::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(site.put("object", "original"));
    let file = site.server.object_file("freshet", "object").expect("just put");
    std::fs::write(&file, "damaged, and longer").unwrap();
    assert_eq!(runtime.block_on(site.get("object")).unwrap(), "damaged, and longer");
    std::fs::remove_file(&file).unwrap();
    let lost = runtime.block_on(site.get("object"));
    assert!(matches!(lost, Err(object_store::Error::NotFound { .. })));
    let counters = site.server.counters();
    assert_eq!((counters.of(Verb::Put), counters.of(Verb::Get), counters.bytes_in), (1, 2, 8));
}

#[test]
fn the_date_can_be_wrong() {
    let site = Site::new();
    let day = 86_400;
    for skew in [0, 400 * day, -400 * day] {
        site.server.faults().set_clock_skew(skew);
        let mut stream = TcpStream::connect(("127.0.0.1", site.server.port())).unwrap();
        stream.write_all(b"GET /freshet HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let date = answer.lines().find_map(|line| line.strip_prefix("date: ")).expect("every answer has a date");
        let date = jiff::fmt::rfc2822::parse(date).unwrap().timestamp();
        let ahead = date.as_second() - jiff::Timestamp::now().as_second();
        assert!((ahead - skew).abs() < day, "{ahead} seconds ahead instead of {skew}");
    }
}

#[test]
fn rules_in_words() {
    let rule: Rule = "slowdown,every=10,verb=GET,verb=HEAD,key=segments/".parse().unwrap();
    let same = Rule::new(Fault::SlowDown).when(When::Every(10)).verb(Verb::Get).verb(Verb::Head).key("segments/");
    assert_eq!(rule, same);
    let rule: Rule = "latency=50".parse().unwrap();
    assert_eq!(rule, Rule::new(Fault::Latency(Duration::from_millis(50))));
    let rule: Rule = "flip,chance=0.5,seed=7".parse().unwrap();
    assert_eq!(rule, Rule::new(Fault::Flip).when(When::Chance(0.5, 7)));
    for bad in ["", "latency", "flip=3", "flip,every=0", "flip,every", "flip,verb=get", "flip,often=1", "nonsense"] {
        assert!(bad.parse::<Rule>().is_err(), "{bad:?}");
    }
}
