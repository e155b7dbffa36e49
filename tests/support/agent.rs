//! The QEMU guest agent as Debian builds it, with the libraries that it needs, to be packed into a guest.
//!
//! It is looked for below the directory `FRESHET_GUEST_DIR`, where its package was unpacked, and at `/`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules that the port of the agent takes, after those of a virtio disk.
pub(crate) const MODULES: [&str; 1] = ["drivers/char/virtio_console"];
/// What has the agent run, in the background, at the port that the guest has.
pub(crate) const RUN: &str =
    "ip link set lo up\nqemu-ga -m virtio-serial -p $(ls /dev/vport*p1 | head -n 1) -t /run &\n";

/// Each file by its path in the guest, and where it is here; or what is missing.
pub(crate) fn programs() -> Result<Vec<(String, PathBuf)>, String> {
    let given = std::env::var_os("FRESHET_GUEST_DIR").map(PathBuf::from);
    let dirs = given.into_iter().chain([PathBuf::from("/")]);
    let found = dirs.map(|dir| dir.join("usr/sbin/qemu-ga")).find(|path| path.is_file());
    let agent = found.ok_or("no qemu-ga here (package qemu-guest-agent)")?;
    let out = Command::new("ldd").arg(&agent).output().map_err(|e| format!("ldd: {e}"))?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    if said.contains("not found") || !out.status.success() {
        return Err(format!("libraries of qemu-ga are missing: {said}"));
    }
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned);
    let libraries = said.lines().filter_map(path).map(|path| (path.clone(), PathBuf::from(path)));
    Ok(libraries.chain([("/bin/qemu-ga".to_owned(), agent)]).collect())
}

/// As a builder of first roots takes them.
pub(crate) fn borrowed(programs: &[(String, PathBuf)]) -> Vec<(&str, &Path)> {
    programs.iter().map(|(path, here)| (path.as_str(), here.as_path())).collect()
}
