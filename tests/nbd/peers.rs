//! Other people's clients against the server: what they write is in the image, what they read is what is there, and they
//! find no fault with the protocol.

use std::path::Path;
use std::process::{Command, Output};

use super::rig::{MIB, Rig, scratch};
use super::support::skipped;
use freshet::nbd::{CacheMode, ServerOptions};

/// Whether the program is here; if not it is said, or a failure where it has to be.
fn has(program: &str, test: &str) -> bool {
    let here = Command::new(program).arg("--version").output().is_ok();
    if !here {
        skipped(test, &format!("{program} is not installed"));
    }
    here
}

fn run(program: &str, args: &[&str]) -> Output {
    // The limit is for a client that waits for ever; none comes near it.
    let out = Command::new("timeout").arg("120").arg(program).args(args).output().unwrap();
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{program} {args:?}: {}{}", shown(&out.stdout), shown(&out.stderr));
    out
}

fn modes() -> [Rig; 2] {
    [CacheMode::Direct, CacheMode::WriteBack].map(|cache| Rig::new(cache, ServerOptions::default()))
}

/// 16 MiB with data of all kinds, zeros, and a hole.
fn sample(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; 16 << 20];
    fastrand::Rng::with_seed(7).fill(&mut bytes[..3 << 20]);
    bytes[5 << 20..6 << 20].fill(0x55);
    bytes[(9 << 20) + 777] = 1;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(16 << 20).unwrap();
    for range in [0..3 << 20, 5 << 20..6 << 20, 9 << 20..10 << 20] {
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes[range.clone()], range.start as u64).unwrap();
    }
    bytes
}

#[test]
fn nbdinfo_understands_what_is_told() {
    if !has("nbdinfo", "nbdinfo_understands_what_is_told") {
        return;
    }
    for rig in modes() {
        sample(&rig.image());
        for address in [&rig.unix, &rig.tcp] {
            let out = run("nbdinfo", &["--json", &address.uri("disk", false)]);
            let told: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
            assert_eq!(told["protocol"], "newstyle-fixed");
            assert_eq!(told["structured"], true);
            let export = &told["exports"][0];
            assert_eq!(export["export-size"], 16 * MIB);
            for yes in [
                "can_multi_conn",
                "can_flush",
                "can_fua",
                "can_trim",
                "can_zero",
                "can_fast_zero",
                "can_df",
                "can_cache",
            ] {
                assert_eq!(export[yes], true, "{yes}");
            }
            assert_eq!(export["is_read_only"], false);
            assert_eq!(export["contexts"][0], "base:allocation");
            assert_eq!((&export["block_size_minimum"], &export["block_size_preferred"]), (&1.into(), &4096.into()));
            let list = run("nbdinfo", &["--json", "--list", &address.uri("disk", false)]);
            assert!(String::from_utf8_lossy(&list.stdout).contains("\"disk\""));
        }
        let out = run("nbdinfo", &["--map", "--json", &rig.unix.uri("disk", false)]);
        let map: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let parts: Vec<(u64, u64, u64)> = map
            .as_array()
            .unwrap()
            .iter()
            .map(|part| {
                let number = |key: &str| part[key].as_u64().unwrap();
                (number("offset") / MIB, number("length") / MIB, number("type"))
            })
            .collect();
        assert_eq!(parts, [(0, 3, 0), (3, 2, 3), (5, 1, 0), (6, 3, 3), (9, 1, 0), (10, 6, 3)]);
        rig.stop();
    }
}

#[test]
fn nbdcopy_copies_both_ways() {
    if !has("nbdcopy", "nbdcopy_copies_both_ways") {
        return;
    }
    for rig in modes() {
        let dir = scratch();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let bytes = sample(&from);
        for address in [&rig.unix, &rig.tcp] {
            let uri = address.uri("disk", false);
            run("nbdcopy", &["--flush", "--connections=4", from.to_str().unwrap(), &uri]);
            assert!(std::fs::read(rig.image()).unwrap() == bytes);
            std::fs::File::create(&to).unwrap().set_len(16 << 20).unwrap();
            run("nbdcopy", &["--connections=4", "--requests=32", &uri, to.to_str().unwrap()]);
            assert!(std::fs::read(&to).unwrap() == bytes);
        }
        rig.stop();
    }
}

#[test]
fn qemu_img_converts_compares_and_drives() {
    if !has("qemu-img", "qemu_img_converts_compares_and_drives") {
        return;
    }
    for rig in modes() {
        let dir = scratch();
        let (from, back) = (dir.path().join("from"), dir.path().join("back"));
        let bytes = sample(&from);
        let (from, back, uri) = (from.to_str().unwrap(), back.to_str().unwrap(), rig.unix.uri("disk", false));
        run("qemu-img", &["convert", "-n", "-W", "-f", "raw", "-O", "raw", from, &uri]);
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", from, &uri]);
        run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, back]);
        assert!(std::fs::read(back).unwrap() == bytes);
        assert!(std::fs::read(rig.image()).unwrap() == bytes);
        let info = run("qemu-img", &["map", "--output=json", "-f", "raw", &uri]);
        assert!(String::from_utf8_lossy(&info.stdout).contains("\"zero\": true"));
        for more in [
            &["-s", "4096"][..],
            &["-s", "65536", "-S", "69632"],
            &["-w", "-s", "4096", "--flush-interval=16"],
            &["-w", "-s", "1M"],
        ] {
            let args = [&["bench", "-c", "400", "-d", "16", "-f", "raw"], more, &[&uri]].concat();
            run("qemu-img", &args);
        }
        rig.stop();
    }
}

#[test]
fn qemu_io_finds_what_it_wrote() {
    if !has("qemu-io", "qemu_io_finds_what_it_wrote") {
        return;
    }
    for rig in modes() {
        let uri = rig.tcp.uri("disk", false);
        let script = [
            "write -P 0x11 0 64k",
            "write -f -P 0x22 1M 4k",
            "aio_write -P 0x33 2M 1M",
            "aio_write -P 0x44 3M 1M",
            "aio_flush",
            "flush",
            "write -z 8k 4k",
            "write -z -u 2M 512k",
            "discard 3M 256k",
            "write -P 0x55 4097 3",
            "read -P 0x11 0 4097",
            "read -P 0x55 4097 3",
            "read -P 0x11 4100 4092",
            "read -P 0 8k 4k",
            "read -P 0x22 1M 4k",
            "read -P 0 2M 512k",
            "read -P 0x33 2560k 512k",
            "read -P 0 3M 256k",
            "read -P 0x44 3328k 768k",
            "aio_read -P 0 12M 4M",
            "aio_flush",
            "flush",
        ];
        let mut args = vec!["-f", "raw", "-t", "none"];
        script.iter().for_each(|line| args.extend(["-c", line]));
        args.push(&uri);
        let out = run("qemu-io", &args);
        let told = String::from_utf8_lossy(&out.stdout);
        // It tells of a wrong pattern on its output and may still end well.
        assert!(!told.contains("verification failed") && !told.contains("rror"), "{told}");
        assert!(std::fs::read(rig.image()).unwrap()[1 << 20..(1 << 20) + 4096] == [0x22; 4096]);
        rig.stop();
    }
}

#[test]
fn fio_verifies_what_it_wrote_with_many_requests_in_flight() {
    let test = "fio_verifies_what_it_wrote_with_many_requests_in_flight";
    if !has("fio", test) {
        return;
    }
    let engines = run("fio", &["--enghelp"]);
    if !String::from_utf8_lossy(&engines.stdout).lines().any(|line| line.trim() == "nbd") {
        return skipped(test, "this fio has no nbd engine");
    }
    for rig in modes() {
        let uri = format!("--uri={}", rig.unix.uri("disk", false));
        let output = format!("--aux-path={}", rig.dir.path().display());
        for (name, more) in [
            ("small", &["--rw=randwrite", "--bsrange=512-64k", "--iodepth=32", "--fsync=50"][..]),
            ("large", &["--rw=write", "--bs=1m", "--iodepth=8"]),
            ("mixed", &["--rw=randrw", "--bs=4k", "--iodepth=16", "--trim_percentage=0"]),
        ] {
            let common =
                ["--ioengine=nbd", &uri, &output, "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--size=16m"];
            let name = format!("--name={name}");
            run("fio", &[&[name.as_str()], &common[..], more].concat());
        }
        rig.stop();
    }
}

#[test]
fn a_qemu_does_not_open_what_is_served() {
    if !has("qemu-io", "a_qemu_does_not_open_what_is_served") {
        return;
    }
    let rig = Rig::plain();
    let image = rig.image();
    let out = Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 4k"]).arg(&image).output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && told.contains("lock"), "{told}");
    assert!(std::fs::read(&image).unwrap().iter().all(|&b| b == 0));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    drop(runtime.block_on(rig.exports.remove("disk")).unwrap());
    run("qemu-io", &["-f", "raw", "-c", "write 0 4k", image.to_str().unwrap()]);
    rig.stop();
}
