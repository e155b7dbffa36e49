//! Other people's clients, driven over an export: what they write is in its image, what they read is what is there, and
//! they find no fault with the protocol.
//!
//! Each function takes an export of [`SIZE`] bytes as its clients name it, and the image behind it. The clients are
//! bounded in time.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Output};

use super::skipped;

const MIB: u64 = 1 << 20;

/// Bytes of the disk that they are driven on.
pub(crate) const SIZE: u64 = 16 * MIB;

/// Python as the distribution has it, which is the one that its libnbd is for.
const PYTHON: &str = "/usr/bin/python3";

/// Whether the program is here; if not it is said, or a failure where it has to be.
pub(crate) fn has(program: &str, test: &str) -> bool {
    let here = Command::new(program).arg("--version").output().is_ok();
    if !here {
        skipped(test, &format!("{program} is not installed"));
    }
    here
}

/// Whether fio is here with an engine for NBD.
pub(crate) fn has_fio(test: &str) -> bool {
    let has_engine = || {
        let engines = run("fio", &["--enghelp"]);
        String::from_utf8_lossy(&engines.stdout).lines().any(|line| line.trim() == "nbd")
    };
    if !has("fio", test) {
        return false;
    }
    let here = has_engine();
    if !here {
        skipped(test, "this fio has no nbd engine");
    }
    here
}

/// Whether Python has libnbd.
pub(crate) fn has_libnbd(test: &str) -> bool {
    let here = Command::new(PYTHON).args(["-c", "import nbd"]).output().is_ok_and(|out| out.status.success());
    if !here {
        skipped(test, "Python's libnbd is not installed");
    }
    here
}

/// Runs a program that has to end well.
pub(crate) fn run(program: &str, args: &[&str]) -> Output {
    // The limit is for a client that waits for ever; none comes near it.
    let out = Command::new("timeout").arg("120").arg(program).args(args).output().unwrap();
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{program} {args:?}: {}{}", shown(&out.stdout), shown(&out.stderr));
    out
}

/// A file with data of all kinds, zeros, and a hole; its bytes.
pub(crate) fn sample(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    fastrand::Rng::with_seed(7).fill(&mut bytes[..3 << 20]);
    bytes[5 << 20..6 << 20].fill(0x55);
    bytes[(9 << 20) + 777] = 1;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    for range in [0..3 << 20, 5 << 20..6 << 20, 9 << 20..10 << 20] {
        file.write_all_at(&bytes[range.clone()], range.start as u64).unwrap();
    }
    bytes
}

/// `nbdinfo` about an export whose image is a [`sample`]: what is told of it, and the map of its holes.
pub(crate) fn nbdinfo(uri: &str) {
    let out = run("nbdinfo", &["--json", uri]);
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&told["protocol"], &told["structured"]), (&"newstyle-fixed".into(), &true.into()));
    let export = &told["exports"][0];
    assert_eq!(export["export-size"], SIZE);
    for yes in
        ["can_multi_conn", "can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_df", "can_cache"]
    {
        assert_eq!(export[yes], true, "{yes}");
    }
    assert_eq!(export["is_read_only"], false);
    assert_eq!(export["contexts"][0], "base:allocation");
    assert_eq!((&export["block_size_minimum"], &export["block_size_preferred"]), (&1.into(), &4096.into()));
    let out = run("nbdinfo", &["--map", "--json", uri]);
    let map: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let number = |part: &serde_json::Value, key: &str| part[key].as_u64().unwrap();
    let parts = map.as_array().unwrap().iter();
    let parts = parts.map(|part| (number(part, "offset") / MIB, number(part, "length") / MIB, number(part, "type")));
    let expected = [(0, 3, 0), (3, 2, 3), (5, 1, 0), (6, 3, 3), (9, 1, 0), (10, 6, 3)];
    assert_eq!(parts.collect::<Vec<_>>(), expected);
}

/// `nbdcopy` both ways, on several connections.
pub(crate) fn nbdcopy(uri: &str, image: &Path, dir: &Path) {
    let (from, to) = (dir.join("from"), dir.join("to"));
    let bytes = sample(&from);
    run("nbdcopy", &["--flush", "--connections=4", from.to_str().unwrap(), uri]);
    assert!(std::fs::read(image).unwrap() == bytes);
    std::fs::File::create(&to).unwrap().set_len(SIZE).unwrap();
    run("nbdcopy", &["--connections=4", "--requests=32", uri, to.to_str().unwrap()]);
    assert!(std::fs::read(&to).unwrap() == bytes);
}

/// `qemu-img`: converts to and from the export, compares, maps, and writes its benches.
pub(crate) fn qemu_img(uri: &str, image: &Path, dir: &Path) {
    let (from, back) = (dir.join("from"), dir.join("back"));
    let bytes = sample(&from);
    let (from, back) = (from.to_str().unwrap(), back.to_str().unwrap());
    run("qemu-img", &["convert", "-n", "-W", "-f", "raw", "-O", "raw", from, uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", from, uri]);
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", uri, back]);
    assert!(std::fs::read(back).unwrap() == bytes);
    assert!(std::fs::read(image).unwrap() == bytes);
    let info = run("qemu-img", &["map", "--output=json", "-f", "raw", uri]);
    assert!(String::from_utf8_lossy(&info.stdout).contains("\"zero\": true"));
    for more in [
        &["-s", "4096"][..],
        &["-s", "65536", "-S", "69632"],
        &["-w", "-s", "4096", "--flush-interval=16"],
        &["-w", "-s", "1M"],
    ] {
        run("qemu-img", &[&["bench", "-c", "400", "-d", "16", "-f", "raw"], more, &[uri]].concat());
    }
}

/// `qemu-io`: writes, zeros and discards, some at once, and reads with patterns that must be found.
pub(crate) fn qemu_io(uri: &str, image: &Path) {
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
    args.push(uri);
    let out = run("qemu-io", &args);
    let told = String::from_utf8_lossy(&out.stdout);
    // It tells of a wrong pattern on its output and may still end well.
    assert!(!told.contains("verification failed") && !told.contains("rror"), "{told}");
    assert!(std::fs::read(image).unwrap()[1 << 20..(1 << 20) + 4096] == [0x22; 4096]);
}

/// `fio`, many requests in flight, every block read back and its sum compared.
pub(crate) fn fio(uri: &str, dir: &Path) {
    let (uri, output) = (format!("--uri={uri}"), format!("--aux-path={}", dir.display()));
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
}

/// libnbd from Python, every call and flag that it has, and what it must refuse.
pub(crate) fn libnbd(uri: &str) {
    run(PYTHON, &["-c", include_str!("libnbd.py"), uri]);
}
