//! What only a directory does: leftovers of crashes, names that must not leave it, writers of several processes.

use std::time::{Duration, SystemTime};

use futures::TryStreamExt;

use super::*;

fn store(dir: &Path) -> FileStore {
    FileStore::new("file:///site".into(), dir.join("site"), &StoreOptions::default())
}

async fn keys(store: &FileStore) -> Vec<String> {
    store.list("", None).map_ok(|o| o.key).try_collect().await.unwrap()
}

#[tokio::test]
async fn keys_that_would_leave_the_directory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let outside = format!("{}/outside", dir.path().display());
    for key in ["", "/", &outside, "a//b", "..", "../x", "a/../../x", "a/.", "a/", "a\0b", ".freshet-tmp/x"] {
        let e = store.create(key, vec![]).await.unwrap_err();
        assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains("file:///site"), "{key:?}: {e}");
        assert_eq!(store.get_range(key, 0..1).await.unwrap_err().kind(), ErrorKind::Invalid, "{key:?}");
    }
    assert!(store.list_dirs("..").await.is_err() && store.list("a/..", None).try_next().await.is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was touched");
}

#[tokio::test]
async fn objects_of_any_length_are_what_was_given_with_and_without_direct_writes() {
    let dir = tempfile::tempdir().unwrap();
    for direct in [true, false] {
        let mut options = StoreOptions::default();
        options.direct = direct;
        let store = FileStore::new("file:///site".into(), dir.path().join(format!("{direct}")), &options);
        for len in [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 4095, (3 << 20) + 4096] {
            // Parts end everywhere but where the buffers do.
            let bytes: Bytes = (0..len).map(|i: usize| (i * 7 + i / 251) as u8).collect::<Vec<_>>().into();
            let cuts = [0, len / 3, len / 3, len.saturating_sub(5), len];
            let parts = cuts.windows(2).map(|cut| bytes.slice(cut[0]..cut[1].max(cut[0]))).collect();
            store.create(&format!("o{len}"), parts).await.unwrap();
            let stored = std::fs::read(dir.path().join(format!("{direct}/o{len}"))).unwrap();
            assert!(stored == bytes, "{len} bytes, direct {direct}");
        }
    }
}

#[tokio::test]
async fn what_a_crashed_writer_left_is_removed_and_what_a_living_one_has_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let staging = dir.path().join("site").join(create::TEMPORARY);
    std::fs::create_dir_all(&staging).unwrap();
    let old = SystemTime::now() - Duration::from_secs(3600);
    let leave = |name: &str, age: SystemTime| {
        let file = File::create(staging.join(name)).unwrap();
        file.set_modified(age).unwrap();
        file
    };
    drop(leave("crashed", old));
    drop(leave("young", SystemTime::now()));
    let living = leave("living", old);
    rustix::fs::flock(&living, rustix::fs::FlockOperation::LockExclusive).unwrap();

    let store = store(dir.path());
    assert_eq!(keys(&store).await, [""; 0], "leftovers are not objects");
    store.create("a", vec![]).await.unwrap();
    let mut left: Vec<_> = std::fs::read_dir(&staging).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["living", "young"]);
    assert_eq!(keys(&store).await, ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_writers_in_several_processes_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let start = Arc::new(tokio::sync::Barrier::new(8));
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..8u8 {
            // Each with a store of its own, as each process has.
            let (store, start) = (store(dir.path()), Arc::clone(&start));
            writers.spawn(async move {
                start.wait().await;
                let key = format!("d{round}/owner/1");
                (writer, store.create(&key, vec![Bytes::from(vec![writer; 5000])]).await.unwrap())
            });
        }
        let all = writers.join_all().await;
        let won: Vec<u8> = all.iter().filter(|(_, c)| *c == Created::New).map(|(w, _)| *w).collect();
        assert_eq!(won.len(), 1, "{all:?}");
        let kept = store(dir.path()).get_range(&format!("d{round}/owner/1"), 0..9000).await.unwrap().unwrap();
        assert!(kept.into_bytes() == vec![won[0]; 5000]);
    }
}

#[tokio::test]
async fn a_missing_site_is_an_error_where_all_of_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    assert!(store.get_range("d/x", 0..1).await.unwrap().is_none());
    assert_eq!(store.list_dirs("d").await.unwrap(), [""; 0]);
    let e = store.list_dirs("").await.unwrap_err();
    assert!(e.kind() == ErrorKind::NotFound && e.to_string().contains("file:///site"), "{e}");
    assert_eq!(store.list("", None).try_next().await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn an_object_is_no_folder_and_foreign_files_are_no_objects() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    store.create("a/b", vec![Bytes::from_static(b"x")]).await.unwrap();
    assert!(store.get_range("a", 0..1).await.unwrap().is_none() && store.head("a").await.unwrap().is_none());
    assert!(store.get_range("a/b/c", 0..1).await.unwrap().is_none() && store.head("a/b/c").await.unwrap().is_none());
    let e = store.create("a/b/c", vec![]).await.unwrap_err();
    assert!(e.to_string().contains("a/b/c"), "{e}");

    let site = dir.path().join("site");
    std::os::unix::fs::symlink(dir.path().join("site/a/b"), site.join("link")).unwrap();
    std::os::unix::fs::symlink("/", site.join("a/root")).unwrap();
    use std::os::unix::ffi::OsStrExt;
    std::fs::write(site.join(std::ffi::OsStr::from_bytes(b"\xff")), "x").unwrap();
    assert_eq!(keys(&store).await, ["a/b"]);
}

#[tokio::test]
async fn direct_and_cached_reads_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let direct = store(dir.path());
    let mut options = StoreOptions::default();
    options.set("DIRECT", "off").unwrap();
    let cached = FileStore::new("file:///site".into(), dir.path().join("site"), &options);
    assert!(!cached.reads_direct());
    let whole: Bytes =
        (0..2_000_003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>().into();
    direct.create("a", vec![whole.clone()]).await.unwrap();
    for (from, to) in [(0, 2_000_003), (1, 2_000_003), (4095, 1_000_000), (4096, 1_048_576), (1_800_000, 2_000_003)] {
        for store in [&direct, &cached] {
            // Twice, so that the second read is into a buffer that was used before.
            for _ in 0..2 {
                let got = store.get_range("a", from..to).await.unwrap().unwrap();
                assert_eq!(got.parts.len(), 1);
                assert!(got.into_bytes() == whole.slice(from as usize..to as usize), "{from}..{to}");
            }
        }
    }
}
