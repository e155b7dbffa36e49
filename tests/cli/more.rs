//! A demo on given images, and files of a newer program.

use super::run;
use super::whole::Setup;

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
