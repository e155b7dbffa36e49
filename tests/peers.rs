//! Says which programs of others are here, so that a plain `cargo test` shows how many interop tests it left out.

use std::io::Write as _;
use std::path::Path;

#[test]
fn missing_peers_are_said_and_counted() {
    let on_path = |program: &str| {
        let dirs = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&dirs).chain(["/sbin".into(), "/usr/sbin".into()]).any(|d| d.join(program).is_file())
    };
    let azurite = std::env::var_os("FRESHET_AZURITE_DIR").is_some();
    let peers = [
        ("mke2fs", on_path("mke2fs")),
        ("e2fsck", on_path("e2fsck")),
        ("mkfs.xfs", on_path("mkfs.xfs")),
        ("xfs_repair", on_path("xfs_repair")),
        ("qemu-img", on_path("qemu-img")),
        ("qemu-io", on_path("qemu-io")),
        ("nbdinfo", on_path("nbdinfo")),
        ("nbdcopy", on_path("nbdcopy")),
        ("fio", on_path("fio")),
        ("nbdfuse", on_path("nbdfuse")),
        ("sqlite3", on_path("sqlite3")),
        ("PostgreSQL", on_path("psql") && Path::new("/usr/lib/postgresql").is_dir()),
        ("qemu-system-x86_64", on_path("qemu-system-x86_64")),
        ("busybox", on_path("busybox")),
        ("a kernel for guests", std::env::var_os("FRESHET_GUEST_DIR").is_some()),
        ("azurite", azurite),
        ("Python's gRPC", std::env::var_os("FRESHET_GRPC_PYTHON").is_some()),
    ];
    let missing: Vec<&str> = peers.iter().filter(|(_, here)| !here).map(|(name, _)| *name).collect();
    // Written past the harness, which would keep the output of a test that passes.
    let line = match missing.len() {
        0 => "peers: all here".to_owned(),
        n => format!("peers: {n} of {} missing, tests with them are skipped: {}", peers.len(), missing.join(", ")),
    };
    writeln!(std::io::stderr(), "{line}").expect("standard error can be written");
    let required = std::env::var_os("FRESHET_REQUIRE_PEERS").is_some_and(|v| v == "1");
    assert!(!required || missing.is_empty(), "{line}; FRESHET_REQUIRE_PEERS=1 makes that a failure");
}
