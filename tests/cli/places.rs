//! Datastores, log stores and stores that are full, read-only, missing or not like others: real file systems, real refusals.

use std::path::{Path, PathBuf};

use super::whole::Setup;
use super::{Ran, freshet, ran};
use crate::support::mounts::{mount_memory, remount, set_read_only, with_own_mounts};

impl Setup {
    /// Rehydrates into `ds` with the log in `logs`.
    fn rehydrate_apart(&self, more: &[&str]) -> Ran {
        let logs = self.path("logs");
        let args = ["--log-store", logs.to_str().unwrap()];
        self.rehydrate(&[&args, more].concat())
    }

    /// Makes the first disk one that does not compress, so that its segment is long enough to be written directly.
    fn fill_root(&self) {
        let mut bytes = vec![0; 5 << 20];
        fastrand::Rng::with_seed(3).fill(&mut bytes);
        std::fs::write(self.path("root.img"), bytes).unwrap();
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}

/// Runs `test` on a replicated domain, where `sub` of its directory is a file system of its own.
fn with_place(what: &str, sub: &str, kind: &str, options: &str, test: impl FnOnce(Setup) + Send) {
    with_own_mounts(what, || {
        let setup = Setup::new();
        assert_eq!(setup.replicate().code, 0);
        setup.dir("logs");
        mount_memory(kind, &setup.path(sub), options);
        test(setup);
    });
}

/// Every file below a directory, with what it holds.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => found.push((path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn a_full_datastore_is_named_and_gone_on_with_when_there_is_room() {
    with_place("a full datastore", "ds", "tmpfs", "size=2m", |setup| {
        let full = setup.rehydrate_apart(&[]);
        assert_eq!((full.code, full.json()["error"]["kind"].as_str()), (10, Some("full")), "{full:?}");
        assert!(full.stderr.contains(setup.path("ds").to_str().unwrap()), "it does not say where: {full:?}");
        assert!(full.stderr.contains("No space left"), "{full:?}");
        remount(&setup.path("ds"), "size=64m");
        let done = setup.rehydrate_apart(&[]);
        assert_eq!(done.code, 0, "{done:?}");
        setup.assert_same();
    });
}

#[test]
fn a_run_that_ended_between_the_creation_of_two_disks_is_gone_on_with() {
    // Enough for what is ours and the first disk; the others cannot be created.
    with_place("a datastore without inodes", "ds", "tmpfs", "nr_inodes=7", |setup| {
        let full = setup.rehydrate_apart(&[]);
        assert_eq!(full.code, 10, "{full:?}");
        let created =
            contents(&setup.path("ds")).iter().filter(|(p, _)| p.extension().is_some_and(|e| e == "raw")).count();
        assert!((1..3).contains(&created), "{created} of three disks were created: {full:?}");
        remount(&setup.path("ds"), "nr_inodes=100");
        let done = setup.rehydrate_apart(&[]);
        assert_eq!(done.code, 0, "its own disk is a stranger to it: {done:?}");
        setup.assert_same();
    });
}

#[test]
fn a_log_store_without_room_is_named_and_left_as_it_was() {
    with_place("a full log store", "logs", "tmpfs", "size=16m", |setup| {
        std::fs::write(setup.path("logs").join("other"), "kept").unwrap();
        let full = setup.rehydrate_apart(&[]);
        assert_eq!(full.code, 10, "{full:?}");
        assert!(full.stderr.contains("replication log") && full.stderr.contains("142606336 bytes"), "{full:?}");
        let left = contents(&setup.path("logs"));
        assert_eq!(left, [(setup.path("logs").join("other"), b"kept".to_vec())], "half a log was left");
        remount(&setup.path("logs"), "size=160m");
        assert_eq!(setup.rehydrate_apart(&[]).code, 0);
        setup.assert_same();
    });
}

#[test]
fn a_read_only_datastore_is_denied_and_its_disks_stay() {
    with_place("a read-only datastore", "ds", "tmpfs", "size=64m", |setup| {
        set_read_only(&setup.path("ds"), true);
        for fresh in [true, false] {
            let denied = setup.rehydrate_apart(&[]);
            assert_eq!((denied.code, denied.json()["error"]["kind"].as_str()), (8, Some("denied")), "{denied:?}");
            assert!(denied.stderr.contains(setup.path("ds").to_str().unwrap()), "{denied:?}");
            assert!(denied.stderr.contains("Read-only"), "{denied:?}");
            if fresh {
                set_read_only(&setup.path("ds"), false);
                assert_eq!(setup.rehydrate_apart(&[]).code, 0);
                set_read_only(&setup.path("ds"), true);
                setup.assert_same();
                super::whole::overwrite(&setup.path("data.img"), 5, 0xEE);
                assert_eq!(setup.replicate().code, 0);
            }
        }
        set_read_only(&setup.path("ds"), false);
        assert_eq!(setup.rehydrate_apart(&[]).code, 0);
        setup.assert_same();
    });
}

#[test]
fn a_read_only_log_store_is_denied() {
    with_place("a read-only log store", "logs", "tmpfs", "size=1m", |setup| {
        set_read_only(&setup.path("logs"), true);
        let denied = setup.rehydrate_apart(&[]);
        assert_eq!(denied.code, 8, "{denied:?}");
        assert!(denied.stderr.contains(setup.path("logs").to_str().unwrap()), "{denied:?}");
    });
}

#[test]
fn without_direct_io_the_disks_are_the_same_and_the_report_says_why() {
    // ramfs knows neither direct I/O nor holes that are punched nor reserved space.
    for kind in ["ramfs", "tmpfs"] {
        with_place(&format!("a datastore on {kind}"), "ds", kind, "", |setup| {
            let direct = direct_io_works(&setup.path("ds"));
            let done = setup.rehydrate(&[]);
            assert_eq!(done.code, 0, "{done:?}");
            setup.assert_same();
            let notes = done.json()["notes"].to_string();
            assert_eq!(notes.contains("no direct I/O"), !direct, "{notes}");
            assert!(direct || notes.contains("web server/d.1"), "it does not say which disks: {notes}");
            // Ranges become zero, where holes cannot be punched too.
            let mut image = std::fs::read(setup.path("root.img")).unwrap();
            image[4096..1_000_000].fill(0);
            std::fs::write(setup.path("root.img"), image).unwrap();
            assert_eq!(setup.replicate().code, 0);
            assert_eq!(setup.rehydrate(&[]).code, 0);
            setup.assert_same();
        });
    }
}

#[test]
fn a_store_without_direct_io_keeps_objects_of_any_size() {
    with_own_mounts("a store on ramfs", || {
        let setup = Setup::new();
        setup.fill_root();
        mount_memory("ramfs", &setup.dir("store"), "");
        assert!(!direct_io_works(&setup.path("store")), "ramfs has direct I/O here: the test shows nothing");
        assert_eq!(setup.replicate().code, 0);
        assert!(setup.segments().iter().any(|segment| segment.metadata().unwrap().len() > (2 << 20)));
        assert_eq!(setup.rehydrate(&[]).code, 0);
        setup.assert_same();
    });
}

#[test]
fn a_full_store_is_named_and_gone_on_with_when_there_is_room() {
    with_own_mounts("a full store", || {
        let setup = Setup::new();
        setup.fill_root();
        mount_memory("tmpfs", &setup.dir("store"), "size=2m");
        let full = setup.replicate();
        assert_eq!((full.code, full.json()["error"]["kind"].as_str()), (10, Some("full")), "{full:?}");
        assert!(full.stderr.contains(setup.path("store").to_str().unwrap()), "it does not say where: {full:?}");
        remount(&setup.path("store"), "size=64m");
        assert_eq!(setup.replicate().code, 0);
        assert_eq!(setup.rehydrate(&[]).code, 0);
        setup.assert_same();
    });
}

fn direct_io_works(dir: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let path = dir.join("probe");
    std::fs::write(&path, "").unwrap();
    let opened = std::fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(&path).is_ok();
    std::fs::remove_file(path).unwrap();
    opened
}

#[test]
fn datastores_and_log_stores_that_are_not_there_are_named_and_not_made() {
    let setup = Setup::new();
    assert_eq!(setup.replicate().code, 0);
    let url = setup.url();
    let run = |datastore: &Path, log_store: &Path| {
        let mut command = freshet();
        command.args(["rehydrate", "--store", &url, "--domain", "prod/α", "--log-size", "136MiB", "--datastore"]);
        ran(command.arg(datastore).arg("--log-store").arg(log_store))
    };
    let (missing, file) = (setup.path("missing"), setup.path("file"));
    std::fs::write(&file, "x").unwrap();
    for (datastore, log_store, code, word) in [
        (&missing, &setup.path("ds"), 9, "create it first"),
        (&setup.path("ds"), &missing, 9, "create it first"),
        (&file, &setup.path("ds"), 2, "not a directory"),
        (&setup.path("ds"), &file, 2, "not a directory"),
    ] {
        let refused = run(datastore, log_store);
        assert_eq!(refused.code, code, "{refused:?}");
        let bad = if datastore.ends_with("ds") { log_store } else { datastore };
        assert!(refused.stderr.contains(bad.to_str().unwrap()) && refused.stderr.contains(word), "{refused:?}");
    }
    assert!(!missing.exists());
    assert_eq!(std::fs::read(&file).unwrap(), b"x");
    assert_eq!(contents(&setup.path("ds")), []);
}

#[test]
fn what_is_no_plain_file_at_a_disks_place_is_refused_even_to_overwrite() {
    let setup = Setup::new();
    assert_eq!(setup.replicate().code, 0);
    let target = setup.path("ds").join("prod%2F%CE%B1/web%20server/d.1.raw");
    let precious = setup.path("precious");
    std::fs::write(&precious, "somebody's").unwrap();
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    for link in [true, false] {
        match link {
            true => std::os::unix::fs::symlink(&precious, &target).unwrap(),
            false => std::fs::create_dir(&target).unwrap(),
        }
        let refused = setup.rehydrate(&["--overwrite"]);
        assert_eq!(refused.code, 4, "{refused:?}");
        assert!(refused.stderr.contains("not a plain file") && refused.stderr.contains("d.1.raw"), "{refused:?}");
        if link { std::fs::remove_file(&target).unwrap() } else { std::fs::remove_dir(&target).unwrap() }
    }
    assert_eq!(std::fs::read(&precious).unwrap(), b"somebody's");
    assert_eq!(setup.rehydrate(&[]).code, 0);
    setup.assert_same();
}
