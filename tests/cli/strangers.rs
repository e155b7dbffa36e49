//! Objects and files of a newer program, of another domain, of nobody: named, and nothing of them overwritten.

use std::path::{Path, PathBuf};

use super::whole::{Setup, overwrite};
use super::{Ran, freshet, ran};

/// Files below `dir` whose path contains `part`, sorted.
fn find(dir: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(find(&path, part));
        } else if path.to_str().unwrap().contains(part) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A domain with a manifest, a segment after it, and disks that are at the manifest's point.
fn world() -> Setup {
    let setup = Setup::new();
    assert_eq!(setup.replicate().code, 0);
    assert_eq!(setup.rehydrate(&[]).code, 0);
    overwrite(&setup.path("data.img"), 12_345, 0xEE);
    assert_eq!(setup.replicate().code, 0);
    setup
}

/// All bytes that a refused rehydration must leave alone.
fn everything(setup: &Setup) -> Vec<(PathBuf, Vec<u8>)> {
    let all = [find(&setup.path("store"), ""), find(&setup.path("ds"), "")].concat();
    let kept = all.into_iter().filter(|p| !p.ends_with("lock") && p.extension().is_none_or(|e| e != "log"));
    kept.map(|p| (p.clone(), std::fs::read(p).unwrap())).collect()
}

/// The version follows the eight bytes of the magic.
const VERSION: usize = 8;

#[test]
fn what_a_newer_program_wrote_is_refused_and_kept() {
    let cases = [
        ("store", "/owner/", 0),
        ("store", "/manifests/", 0),
        // The second segment: the one that no manifest covers, so that its header is read.
        ("store", "/segments/", 1),
        ("ds", "/.freshet/hydration", 0),
        ("ds", "/.freshet/hydration", 1),
        ("ds", "/.freshet/watermark", 0),
        ("ds", ".log", 0),
    ];
    for (root, part, which) in cases {
        let setup = world();
        let file = find(&setup.path(root), part).remove(which);
        overwrite(&file, VERSION, 99);
        let before = everything(&setup);
        let refused = setup.rehydrate(&[]);
        assert_eq!(
            (refused.code, refused.json()["error"]["kind"].as_str()),
            (1, Some("unsupported")),
            "{part}: {refused:?}"
        );
        let name = file.file_name().unwrap().to_str().unwrap().trim_end_matches(".log");
        assert!(refused.stderr.contains("newer freshet"), "{part}: what to do is not said: {refused:?}");
        assert!(refused.stderr.contains(name) || root == "ds", "{part}: which is not said: {refused:?}");
        assert!(everything(&setup) == before, "{part}: something was overwritten");
    }
}

#[test]
fn a_map_page_that_is_not_the_one_its_manifest_names_is_not_believed_whatever_it_says() {
    let setup = world();
    let page = find(&setup.path("store"), "/maps/").remove(0);
    overwrite(&page, VERSION, 99);
    std::fs::remove_dir_all(setup.path("ds").join("prod%2F%CE%B1")).unwrap();
    find(&setup.path("ds"), ".log").iter().for_each(|log| std::fs::remove_file(log).unwrap());
    let done = setup.rehydrate(&[]);
    assert_eq!(done.code, 3, "{done:?}");
    let why = done.json()["damage"][0]["why"].as_str().unwrap().to_owned();
    assert!(why.contains("not the page that the manifest names") && why.contains("maps/"), "{why}");
}

#[test]
fn a_frame_of_a_newer_program_is_named_and_the_rest_comes() {
    let setup = Setup::new();
    assert_eq!(setup.replicate().code, 0);
    // Behind the segment's header.
    overwrite(&find(&setup.path("store"), "/segments/")[0], 256 + VERSION, 99);
    let done = setup.rehydrate(&[]);
    assert_eq!(done.code, 3, "{done:?}");
    let damage = &done.json()["damage"];
    assert_eq!(damage.as_array().unwrap().len(), 1, "{damage}");
    assert!(damage[0]["why"].as_str().unwrap().contains("newer freshet"), "{damage}");
}

#[test]
fn a_status_of_a_newer_program_is_trusted_for_nothing_and_stops_nobody() {
    let setup = world();
    overwrite(&find(&setup.path("store"), "/status").remove(0), VERSION, 99);
    assert_eq!(setup.rehydrate(&[]).code, 0);
    setup.assert_same();
}

#[test]
fn a_wrong_magic_is_told_and_read_around_where_that_can_be() {
    // A manifest is passed over: segments say the same. The owner's record is not.
    for (part, code) in [("/owner/000000000001", 6), ("/manifests/", 0)] {
        let setup = world();
        let file = find(&setup.path("store"), part).remove(0);
        overwrite(&file, 0, b'X');
        let done = setup.rehydrate(&[]);
        assert_eq!(done.code, code, "{part}: {done:?}");
        assert!(done.stdout.contains("not a"), "{part}: {done:?}");
        if code == 0 {
            setup.assert_same();
        }
    }
}

#[test]
fn a_newest_point_that_cannot_be_read_is_not_passed_over_in_silence() {
    let setup = world();
    let before = std::fs::read(setup.path("ds").join("prod%2F%CE%B1/web%20server/d.1.raw")).unwrap();
    overwrite(&find(&setup.path("store"), "/segments/")[1], 0, b'X');
    let done = setup.rehydrate(&[]);
    assert_eq!((done.code, done.json()["complete"].as_bool()), (3, Some(false)), "{done:?}");
    assert!(done.stderr.contains("newer point") && done.stderr.contains("segments/"), "{done:?}");
    let after = std::fs::read(setup.path("ds").join("prod%2F%CE%B1/web%20server/d.1.raw")).unwrap();
    assert!(after == before, "the disks left the point that can be read");
    assert_eq!(setup.rehydrate(&["--point", "2"]).code, 9, "the damaged point is none");
}

#[test]
fn another_domains_segment_at_our_key_and_a_truncated_one_are_quarantined() {
    for truncate in [false, true] {
        let setup = Setup::new();
        assert_eq!(setup.replicate().code, 0);
        let other = |disk: &str| {
            let disk = format!("a={}", setup.path(disk).display());
            let url = setup.url();
            let args = ["replicate", "--store", &url, "--domain", "other", "--site", "a", "--vm", "v", "--disk", &disk];
            let done: Ran = ran(freshet().args(args));
            assert_eq!(done.code, 0, "{done:?}");
        };
        // Longer than ours, so that every range of ours exists in it.
        std::fs::write(setup.path("other.img"), std::fs::read(setup.path("root.img")).unwrap().repeat(3)).unwrap();
        other("other.img");
        let (ours, theirs) =
            (find(&setup.path("store"), "%B1/segments/"), find(&setup.path("store"), "other/segments/"));
        let bytes = std::fs::read(if truncate { &ours[0] } else { &theirs[0] }).unwrap();
        let len = if truncate { bytes.len() / 2 } else { bytes.len() };
        std::fs::remove_file(&ours[0]).unwrap();
        std::fs::write(&ours[0], &bytes[..len]).unwrap();
        let done = setup.rehydrate(&[]);
        assert_eq!((done.code, done.json()["complete"].as_bool()), (3, Some(false)), "{done:?}");
        let damage = done.json()["damage"].clone();
        let why = damage[0]["why"].as_str().unwrap();
        let expected = if truncate { "are needed" } else { "belongs to" };
        assert!(why.contains(expected) && damage[0]["disk"].as_str().is_some(), "{damage}");
        // What is named is all that differs.
        let found = std::fs::read(setup.path("ds").join("prod%2F%CE%B1/web%20server/%2E..raw")).unwrap();
        let image = std::fs::read(setup.path("root.img")).unwrap();
        let named = |at: usize| {
            let covers = |d: &serde_json::Value| {
                let (from, len) = (d["offset"].as_u64().unwrap() as usize, d["len"].as_u64().unwrap() as usize);
                d["disk"].as_str() == Some("web server/..") && (from..from + len).contains(&at)
            };
            damage.as_array().unwrap().iter().any(covers)
        };
        assert_eq!(found.len(), image.len());
        let first = (0..image.len()).find(|at| found[*at] != image[*at] && !named(*at));
        assert_eq!(first, None, "a byte differs that no damage names");
    }
}
