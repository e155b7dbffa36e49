//! A store that takes `If-None-Match` for noise: every create of the same key succeeds, as on some real servers.
//!
//! Just enough of S3 for the capability probe, in memory, on the scripted server.

use super::scripted::{Reply, Request, Scripted};
use http::Method;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Starts it; all buckets are one.
pub(crate) fn start() -> Scripted {
    let objects: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::default();
    Scripted::start(move |request| answer(&mut objects.lock().unwrap(), request))
}

fn answer(objects: &mut BTreeMap<String, Vec<u8>>, request: Request) -> Reply {
    let key = request.path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key).to_owned();
    match request.method {
        Method::PUT => {
            objects.insert(key, request.body);
            Reply::new(200, "").header("etag", "\"1\"")
        }
        Method::DELETE => {
            objects.remove(&key);
            Reply::new(204, "")
        }
        _ if key.is_empty() => list(objects, &request.query),
        _ => match objects.get(&key) {
            Some(body) => range(body, request.headers.get("range").and_then(|r| r.to_str().ok())),
            None => Reply::new(404, "<Error><Code>NoSuchKey</Code></Error>"),
        },
    }
}

fn list(objects: &BTreeMap<String, Vec<u8>>, query: &str) -> Reply {
    let value = |name: &str| query.split('&').find_map(|p| p.strip_prefix(name)).unwrap_or("").replace("%2F", "/");
    let (prefix, after) = (value("prefix="), value("start-after="));
    let listed = objects.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after);
    let times = "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>1</ETag>";
    let entry = |(key, body): (&String, &Vec<u8>)| {
        format!("<Contents><Key>{key}</Key><Size>{}</Size>{times}</Contents>", body.len())
    };
    let entries: String = listed.map(entry).collect();
    Reply::new(200, format!("<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"))
}

fn range(body: &[u8], range: Option<&str>) -> Reply {
    let bounds = range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-'));
    let bounds = bounds.and_then(|(from, to)| Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?)));
    let (from, to) = bounds.unwrap_or((0, usize::MAX));
    let len = body.len();
    if from >= len {
        return Reply::new(416, "").header("content-range", format!("bytes */{len}"));
    }
    let to = to.min(len - 1);
    let reply = Reply::new(if range.is_some() { 206 } else { 200 }, &body[from..=to]);
    let reply = reply.header("content-range", format!("bytes {from}-{to}/{len}")).header("etag", "\"1\"");
    reply.header("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")
}
