//! What every storage site does, whatever is behind it: one list of checks for directories and all object stores.

use bytes::Bytes;
use freshet::error::ErrorKind;
use freshet::store::{Created, ObjectInfo, Settled, StorageSite};
use futures::TryStreamExt;

/// Bytes that differ from place to place, so that a shifted range is seen.
pub(crate) fn pattern(len: usize) -> Bytes {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect::<Vec<_>>().into()
}

pub(crate) async fn keys(site: &StorageSite, prefix: &str, after: Option<&str>) -> Vec<String> {
    let all: Vec<ObjectInfo> = site.list(prefix, after).try_collect().await.unwrap();
    all.into_iter().map(|o| o.key).collect()
}

/// What every storage site does, whatever it is.
pub(crate) async fn check(site: &StorageSite) {
    ranges(site).await;
    creates(site).await;
    listings(site).await;
}

async fn ranges(site: &StorageSite) {
    let whole = pattern(3_000_001);
    let parts = vec![whole.slice(..1000), Bytes::new(), whole.slice(1000..2_000_000), whole.slice(2_000_000..)];
    assert_eq!(site.create("d/big", parts).await.unwrap(), Created::New);
    let len = whole.len() as u64;
    for range in [0..len, 0..1, 1..2, 4095..4097, 1000..2_500_123, len - 1..len, 200_000..1_200_000] {
        let got = site.get_range("d/big", range.clone()).await.unwrap().unwrap();
        assert_eq!((got.len, got.object_len), (range.end - range.start, len));
        assert!(got.parts.iter().all(|p| !p.is_empty()));
        assert!(got.into_bytes() == whole.slice(range.start as usize..range.end as usize), "{range:?}");
    }
    let tail = site.get_range("d/big", len - 10..len + 10).await.unwrap().unwrap();
    assert_eq!((tail.len, tail.object_len), (10, len));
    assert!(tail.into_bytes() == whole.slice(whole.len() - 10..));
    for range in [len..len + 5, len + 100..len + 200] {
        let none = site.get_range("d/big", range).await.unwrap().unwrap();
        assert_eq!((none.len, none.object_len, none.parts.len()), (0, len, 0));
    }
    assert!(site.get_range("d/none", 0..10).await.unwrap().is_none());
    assert!(site.get("d/none", 10).await.unwrap().is_none());
    assert!(site.get("d/big", len).await.unwrap().unwrap() == whole);
    assert_eq!(site.get("d/big", len - 1).await.unwrap_err().kind(), ErrorKind::Damaged);
    let info = site.head("d/big").await.unwrap().unwrap();
    assert_eq!((info.key.as_str(), info.len), ("d/big", len));
    assert!(info.modified.millis().abs_diff(site.now().millis()) < 3_600_000, "{:?}", info.modified);
    assert!(site.head("d/none").await.unwrap().is_none());
}

async fn creates(site: &StorageSite) {
    let record = |text: &'static str| vec![Bytes::from_static(text.as_bytes())];
    assert_eq!(site.create("d/owner/1", record("first")).await.unwrap(), Created::New);
    assert_eq!(site.create("d/owner/1", record("second")).await.unwrap(), Created::Exists);
    assert_eq!(site.get("d/owner/1", 100).await.unwrap().unwrap(), "first");
    assert_eq!(site.create_settled("d/owner/1", record("first")).await.unwrap(), Settled::Ours);
    assert_eq!(site.create_settled("d/owner/1", record("other")).await.unwrap(), Settled::Theirs);
    assert_eq!(site.create_settled("d/owner/1", record("longer text")).await.unwrap(), Settled::Theirs);
    assert_eq!(site.create_settled("d/owner/2", record("x")).await.unwrap(), Settled::New);
    assert_eq!(site.create_settled("d/empty", vec![]).await.unwrap(), Settled::New);
    assert_eq!(site.create_settled("d/empty", vec![]).await.unwrap(), Settled::Ours);
    assert_eq!(site.get("d/empty", 0).await.unwrap().unwrap(), "");

    // Differences within the first and within the last 4096 bytes are both seen.
    let whole = pattern(100_000);
    assert_eq!(site.create_settled("d/ends", vec![whole.clone()]).await.unwrap(), Settled::New);
    for at in [0, 4095, 100_000 - 4096, 99_999] {
        let mut other = whole.to_vec();
        other[at] ^= 1;
        assert_eq!(site.create_settled("d/ends", vec![other.into()]).await.unwrap(), Settled::Theirs, "{at}");
    }
    assert_eq!(site.create_settled("d/ends", vec![whole]).await.unwrap(), Settled::Ours);

    site.put_status("d/status", Bytes::from_static(b"one")).await.unwrap();
    site.put_status("d/status", Bytes::from_static(b"two")).await.unwrap();
    assert_eq!(site.get("d/status", 100).await.unwrap().unwrap(), "two");
}

async fn listings(site: &StorageSite) {
    // By the bytes of the whole key: '-' and '.' come before '/', letters after it.
    let sorted = ["l/a-x/1", "l/a.x", "l/a/1", "l/a/2/3", "l/a0", "l/web%20server/1", "l/z"];
    for key in sorted.iter().rev() {
        site.create(key, vec![Bytes::from_static(b"1")]).await.unwrap();
    }
    assert_eq!(keys(site, "l", None).await, sorted);
    assert_eq!(keys(site, "l/", None).await, sorted);
    for (i, after) in sorted.iter().enumerate() {
        assert_eq!(keys(site, "l/", Some(after)).await, sorted[i + 1..], "after {after}");
    }
    assert_eq!(keys(site, "l", Some("l/a/15")).await, sorted[3..]);
    assert_eq!(keys(site, "l/a", None).await, ["l/a/1", "l/a/2/3"]);
    assert_eq!(keys(site, "l/none", None).await, [""; 0]);
    assert_eq!(site.list_dirs("l").await.unwrap(), ["a", "a-x", "web%20server"]);
    assert_eq!(site.list_dirs("l/a/").await.unwrap(), ["2"]);
    assert_eq!(site.list_dirs("l/none").await.unwrap(), [""; 0]);
    assert!(site.list_dirs("").await.unwrap().contains(&"l".to_owned()));
}
