//! A demo on given images, and files of a newer program.

use std::time::Duration;

use super::whole::Setup;
use super::{freshet, ran, run};
use crate::support::guest::Kernel;
use crate::support::real_images::Kind;
use crate::support::skipped;

#[test]
fn the_demo_compares_given_images_and_leaves_them_alone() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("mine.img");
    let bytes: Vec<u8> = (0..(18_u32 << 20) + 77).map(|i| (i.wrapping_mul(0x9E37_79B1) >> 25) as u8).collect();
    std::fs::write(&image, &bytes).unwrap();
    let (work, image_arg) = (dir.path().join("work"), image.to_str().unwrap().to_owned());
    let demo = |dir: &std::path::Path| run(&["demo", "--json", "--image", &image_arg, "--dir", dir.to_str().unwrap()]);
    let ran = demo(&work);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.json()["bytes"]["compared"].as_u64(), Some(3 * bytes.len() as u64), "{ran:?}");
    assert!(std::fs::read(&image).unwrap() == bytes, "the given image was changed");
    assert!(work.join("datastore").is_dir(), "a directory that was named is kept");
    assert_eq!(demo(&work).code, 4, "a directory with something in it was used");
}

#[test]
fn the_failover_to_watch_loses_no_row_on_the_planned_way_and_tells_what_the_disaster_cost() {
    let what = "the demo with real guests";
    let Ok(kernel) = Kernel::find() else { return skipped(what, "no QEMU, or no Debian cloud kernel here") };
    if Kind::Ext4.missing().is_some() {
        return skipped(what, "no mke2fs here");
    }
    let root = kernel.root();
    let kernels = ["--kernel-dir", root.to_str().unwrap()];
    let args = [&["demo", "--guest", "--json"][..], &kernels].concat();
    // It boots six guests under software emulation.
    let ran = ran(freshet().args(args).timeout(Duration::from_secs(400)));
    assert_eq!(ran.code, 0, "{ran:?}");
    let told = ran.json();
    let rows = |way: &str, what: &str| told[way][what].as_u64().unwrap_or_else(|| panic!("{told:#}"));
    // By force: all that had landed, whatever the client had seen after it.
    let (landed, found) = (rows("forced", "landed_rows"), rows("forced", "found_rows"));
    assert!(landed > 0 && found >= landed, "{told:#}");
    assert!(rows("forced", "acknowledged_rows") >= landed, "the client saw it before: {told:#}");
    // Planned: what the database told at its end at one site is what it counts at the other, to the row.
    assert_eq!(rows("planned", "found_rows"), rows("planned", "acknowledged_rows"), "{told:#}");
    assert!(rows("planned", "landed_rows") > found, "the guests wrote at the second site: {told:#}");
    assert_eq!(told["planned"]["rpo"]["rows"], 0, "{told:#}");
    // The disk of the web server counts its boots: it is one disk all the way.
    assert_eq!((rows("forced", "boots"), rows("planned", "boots")), (2, 3), "{told:#}");
    for way in ["forced", "planned"] {
        let rto = &told[way]["rto"];
        let seconds = |part: &serde_json::Value| part.as_f64().unwrap_or_else(|| panic!("{told:#}"));
        let steps: f64 = rto["steps"].as_array().unwrap().iter().map(|step| seconds(&step["seconds"])).sum();
        let sum = steps + seconds(&rto["shorter_steps_seconds"]) + seconds(&rto["boot_seconds"]);
        assert!((sum - seconds(&rto["seconds"])).abs() < 0.005, "its parts make {sum}: {told:#}");
    }
    assert!(told["store_requests"].as_u64().unwrap() > 0, "nothing went through the S3 server: {told:#}");
    let dir = std::path::PathBuf::from(told["dir"].as_str().unwrap());
    assert!(!dir.exists(), "{}: it was to be removed", dir.display());
}

#[test]
fn objects_of_a_newer_program_and_of_nobody_are_refused() {
    let setup = Setup::new();
    assert_eq!(setup.replicate().code, 0);
    let foreign = setup.path("foreign");
    std::fs::write(&foreign, vec![0x55; 4096]).unwrap();
    let ran = run(&["inspect", foreign.to_str().unwrap()]);
    assert!(ran.code != 0 && !ran.stderr.is_empty(), "{ran:?}");
    // The version follows the eight bytes of the magic.
    let record = setup.path("store").join("prod%2F%CE%B1/owner/000000000001");
    super::whole::overwrite(&record, 8, 99);
    for command in ["points", "verify"] {
        let ran = setup.command(command, &[]);
        assert!([1, 6].contains(&ran.code) && ran.stderr.contains("version"), "{command}: {ran:?}");
    }
    assert_ne!(setup.rehydrate(&[]).code, 0);
    assert_ne!(setup.replicate().code, 0, "a newer program's domain was written");
}
