//! Disks through the store and back by commands alone, then what happens with damage, foreign files and odd input.

use std::path::{Path, PathBuf};

use super::{Ran, file_url, freshet, ran, run};

/// A working directory with two images of odd sizes and one of no bytes.
pub(super) struct Setup {
    dir: tempfile::TempDir,
}

const LOG: &str = "136MiB";

impl Setup {
    pub(super) fn new() -> Setup {
        let dir = tempfile::tempdir().unwrap();
        let pattern = |n: usize, seed: u64| -> Vec<u8> {
            (0..n as u64).map(|i| ((i ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 57) as u8).collect()
        };
        let mut root = pattern(3 << 20, 1);
        root.resize(5 << 20, 0);
        root.extend(pattern(1537, 2));
        std::fs::write(dir.path().join("root.img"), root).unwrap();
        std::fs::write(dir.path().join("data.img"), pattern(700_001, 3)).unwrap();
        std::fs::write(dir.path().join("empty.img"), []).unwrap();
        std::fs::create_dir(dir.path().join("ds")).unwrap();
        Setup { dir }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn url(&self) -> String {
        file_url(&self.path("store"))
    }

    pub(super) fn replicate(&self) -> Ran {
        let disk = |name: &str, file: &str| format!("{name}={}", self.path(file).display());
        let mut command = freshet();
        command.args(["replicate", "--json", "--store", &self.url(), "--domain", "prod/α", "--site", "a"]);
        command.args(["--vm", "web server", "--disk", &disk("..", "root.img"), "--disk", &disk("d.1", "data.img")]);
        ran(command.args(["--vm", ".hidden", "--disk", &disk("empty", "empty.img")]))
    }

    pub(super) fn rehydrate(&self, more: &[&str]) -> Ran {
        let (url, ds) = (self.url(), self.path("ds"));
        let mut command = freshet();
        command.args(["rehydrate", "--json", "--store", &url, "--domain", "prod/α", "--log-size", LOG]);
        ran(command.arg("--datastore").arg(ds).args(more))
    }

    pub(super) fn command(&self, name: &str, more: &[&str]) -> Ran {
        ran(freshet().args([name, "--json", "--store", &self.url(), "--domain", "prod/α"]).args(more))
    }

    fn recovered(&self) -> [PathBuf; 3] {
        let domain = self.path("ds").join("prod%2F%CE%B1");
        let vm = domain.join("web%20server");
        [vm.join("%2E..raw"), vm.join("d.1.raw"), domain.join("%2Ehidden").join("empty.raw")]
    }

    pub(super) fn assert_same(&self) {
        for (image, disk) in ["root.img", "data.img", "empty.img"].iter().zip(self.recovered()) {
            let (want, got) = (std::fs::read(self.path(image)).unwrap(), std::fs::read(&disk).unwrap());
            assert!(want == got, "{image} and {} differ", disk.display());
        }
    }

    /// Every segment file of the store.
    pub(super) fn segments(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut dirs = vec![self.path("store").join("prod%2F%CE%B1").join("segments")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { dirs.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        found
    }
}

pub(super) fn overwrite(path: &Path, at: usize, byte: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] = byte;
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn odd_names_and_sizes_come_back_and_an_older_point_too() {
    let setup = Setup::new();
    let first = setup.replicate();
    assert_eq!(first.code, 0, "{first:?}");
    let older = std::fs::read(setup.path("data.img")).unwrap();
    let done = setup.rehydrate(&[]);
    assert_eq!((done.code, done.json()["complete"].as_bool()), (0, Some(true)), "{done:?}");
    setup.assert_same();

    overwrite(&setup.path("data.img"), 12_345, 0xEE);
    let second = setup.replicate().json();
    let (p1, p2) = (first.json()["point"].as_u64().unwrap(), second["point"].as_u64().unwrap());
    assert!(p2 > p1 && second["bytes"]["shipped"].as_u64().unwrap() < 1 << 20, "{second}");
    let points = setup.command("points", &[]).json();
    let numbers: Vec<u64> = points["points"].as_array().unwrap().iter().map(|p| p["point"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [p1, p2]);
    assert_eq!(setup.rehydrate(&[]).code, 0);
    setup.assert_same();
    assert_eq!(setup.rehydrate(&["--point", &p1.to_string()]).code, 0);
    assert!(std::fs::read(&setup.recovered()[1]).unwrap() == older, "the older point came back different");
    assert_eq!(setup.rehydrate(&["--point", "999"]).code, 9);

    let verified = setup.command("verify", &[]);
    assert_eq!(verified.code, 0, "{verified:?}");
    assert!(verified.json()["frames"].as_u64().unwrap() > 10, "{verified:?}");
    let scan = run(&["scan", "--json", "--store", &setup.url()]).json();
    assert_eq!(scan["domains"][0]["domain"].as_str(), Some("prod/α"), "{scan}");
}

#[test]
fn a_flipped_byte_is_named_by_disk_and_range_and_the_rest_is_recovered() {
    let setup = Setup::new();
    assert_eq!(setup.replicate().code, 0);
    // Behind segment header and frame header: in the first frame's payload.
    let segment = setup.segments()[0].clone();
    let byte = std::fs::read(&segment).unwrap()[256 + 128 + 50];
    overwrite(&segment, 256 + 128 + 50, byte ^ 1);
    let ran = setup.command("verify", &[]);
    assert_eq!(ran.code, 3, "{ran:?}");
    let json = ran.json();
    assert_eq!((json["complete"].as_bool(), json["damage"]["range_count"].as_u64()), (Some(false), Some(1)), "{json}");
    let bad = &json["damage"]["ranges"][0];
    assert!(bad["vm"].as_str() == Some("web server") && bad["object"].as_str().unwrap().contains("segments"), "{bad}");
    assert!(json["frames"].as_u64().unwrap() > 5, "the rest was not read: {json}");
    assert!(ran.stderr.contains("damaged"), "{ran:?}");
    assert_eq!(setup.command("verify", &["--quick"]).code, 0, "the structure is whole");

    let done = setup.rehydrate(&[]);
    assert_eq!((done.code, done.json()["complete"].as_bool()), (3, Some(false)), "{done:?}");
    assert_eq!(done.json()["damage"].as_array().unwrap().len(), 1, "{done:?}");
}

#[test]
fn a_missing_segment_or_a_broken_index_is_named_and_verify_goes_on() {
    let setup = Setup::new();
    assert_eq!(setup.replicate().code, 0);
    overwrite(&setup.path("data.img"), 12_345, 0xEE);
    assert_eq!(setup.replicate().code, 0);
    let segments = setup.segments();
    let last = segments.last().unwrap();
    let len = std::fs::metadata(last).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(last).unwrap().set_len(len - 10).unwrap();
    for more in [&["--quick"][..], &[]] {
        let ran = setup.command("verify", more);
        assert_eq!(ran.code, 3, "{more:?}: {ran:?}");
        assert!(ran.json()["damage"]["object_count"].as_u64().unwrap() >= 1, "{ran:?}");
    }
}

#[test]
fn a_file_that_is_not_ours_is_replaced_only_by_flag() {
    let setup = Setup::new();
    assert_eq!(setup.replicate().code, 0);
    let target = setup.recovered()[1].clone();
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    std::fs::write(&target, "somebody's only copy").unwrap();
    let refused = setup.rehydrate(&[]);
    assert_eq!((refused.code, refused.json()["error"]["kind"].as_str()), (4, Some("refused")), "{refused:?}");
    assert!(refused.stderr.contains("--overwrite"), "{refused:?}");
    assert_eq!(std::fs::read(&target).unwrap(), b"somebody's only copy");
    let done = setup.rehydrate(&["--overwrite"]);
    assert_eq!(done.code, 0, "{done:?}");
    setup.assert_same();
}

#[test]
fn images_and_datastores_that_are_not_there_are_named() {
    let setup = Setup::new();
    let url = setup.url();
    let disk = format!("a={}", setup.path("nowhere.img").display());
    let none = run(&["replicate", "--store", &url, "--domain", "d", "--site", "a", "--vm", "v", "--disk", &disk]);
    assert_eq!(none.code, 9, "{none:?}");
    assert!(none.stderr.contains("nowhere.img"), "{none:?}");
    assert!(!setup.path("store").exists(), "a failed command made a domain");
    assert_eq!(setup.replicate().code, 0);
    std::fs::write(setup.path("file"), "x").unwrap();
    let on_file = setup.path("file").join("ds");
    let args = ["rehydrate", "--store", &url, "--domain", "prod/α", "--log-size", LOG, "--datastore"];
    let bad = ran(freshet().args(args).arg(on_file));
    assert!(bad.code != 0 && bad.stderr.contains("file"), "{bad:?}");
}

#[test]
fn another_site_is_refused_until_it_takes_over_by_flag() {
    let setup = Setup::new();
    assert_eq!(setup.replicate().code, 0);
    let disk = |name: &str, file: &str| format!("{name}={}", setup.path(file).display());
    let disks = [disk("..", "root.img"), disk("d.1", "data.img")];
    let url = setup.url();
    let other = |more: &[&str]| {
        let mut command = freshet();
        command.args(["replicate", "--store", &url, "--domain", "prod/α", "--site", "b"]);
        ran(command.args(["--vm", "web server", "--disk", &disks[0], "--disk", &disks[1]]).args(more))
    };
    let refused = other(&[]);
    assert_eq!(refused.code, 4, "{refused:?}");
    let unasked = other(&["--take-ownership"]);
    assert_eq!(unasked.code, 4, "there is no terminal to ask on: {unasked:?}");
    assert!(unasked.stderr.contains("owned by site a") && unasked.stderr.contains("--yes"), "{unasked:?}");
    let taken = other(&["--take-ownership", "--yes"]);
    assert_eq!(taken.code, 0, "{taken:?}");
    assert_eq!(setup.replicate().code, 4, "the site that lost the domain still writes it");
}
