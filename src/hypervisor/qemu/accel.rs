//! Whether guests can have the processor's own virtualisation here: believed only where a guest really boots with it.
//!
//! A device that is there proves nothing: there are hosts where /dev/kvm opens and guests hang, or where a processor like
//! the host's cannot be made. So a boot sector is booted on the machine and the processor that guests get: it waits for
//! some beats of the timer and ends its QEMU with a code of its own, within a limit. What was found is kept for this boot
//! of the host, in the driver's folder, as a hint that may be lost.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::command::processor;
use super::process::boot;
use super::settings::{AccelChoice, QemuSettings};
use crate::error::{IoResultExt, Result};
use crate::hypervisor::RunCommand;

/// How long a guest of some ten instructions may take.
const LIMIT: Duration = Duration::from_secs(8);
/// What the boot sector writes to the exit device.
const SIGN: u8 = 0x2a;
/// The exit code that this makes: the device shifts it and sets the lowest bit.
const CODE: i32 = (SIGN as i32) << 1 | 1;
const PORT: u8 = 0xf4;
/// Beside the folders of VMs, of which none begins with a dot.
const FINDING: &str = ".accelerator";
const PROBE: &str = ".probe";

/// What guests run on here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finding {
    /// Of which boot of the host.
    boot: String,
    /// With which program.
    program: PathBuf,
    /// kvm, or else software emulation.
    pub(super) kvm: bool,
    /// Why.
    pub(super) because: String,
}

/// What guests run on, by the settings and what is so.
///
/// # Errors
/// What writing the boot sector says. A probe that fails is no error: it is the finding.
pub(super) async fn find(settings: &QemuSettings) -> Result<Finding> {
    let found = |kvm, because: &str| Finding {
        boot: boot(),
        program: settings.program.clone(),
        kvm,
        because: because.to_owned(),
    };
    match settings.accel {
        AccelChoice::Kvm => return Ok(found(true, "as the settings say")),
        AccelChoice::Tcg => return Ok(found(false, "as the settings say")),
        AccelChoice::Auto => {}
    }
    if let Err(e) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Ok(found(false, &format!("/dev/kvm: {e}")));
    }
    let path = settings.dir.join(FINDING);
    let kept = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Finding>(&bytes).ok());
    if let Some(kept) = kept.filter(|kept| kept.boot == boot() && kept.program == settings.program) {
        return Ok(kept);
    }
    let finding = match boots(&settings.program, &settings.dir, "kvm", LIMIT).await? {
        None => found(true, "a probe guest boots with kvm"),
        Some(why) => found(false, &format!("a probe guest does not boot with kvm: {why}")),
    };
    if let Ok(text) = serde_json::to_vec(&finding)
        && let Err(e) = std::fs::write(&path, text)
    {
        tracing::warn!("what guests run on is found out again next time: {}: {e}", path.display());
    }
    Ok(finding)
}

/// Boots the probe guest with `accel`; why it does not boot, where it does not.
async fn boots(program: &Path, dir: &Path, accel: &str, limit: Duration) -> Result<Option<String>> {
    let image = dir.join(PROBE);
    // A disk of one sector is none to the firmware.
    let written = std::fs::write(&image, sector()).and_then(|()| {
        let file = std::fs::File::options().write(true).open(&image)?;
        file.set_len(1 << 20)
    });
    written.io_context(|| format!("write {}", image.display()))?;
    let node = serde_json::json!({
        "driver": "raw", "node-name": "probe", "file": {"driver": "file", "filename": image, "locking": "off"},
    });
    let node = node.to_string();
    let (exit, machine) = (format!("isa-debug-exit,iobase=0x{PORT:x},iosize=4"), format!("q35,accel={accel}"));
    let words = [
        "-machine",
        &machine,
        "-cpu",
        processor(accel == "kvm"),
        "-m",
        "32M",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-device",
        &exit,
        "-blockdev",
        &node,
        "-device",
        "virtio-blk-pci,drive=probe,bootindex=1",
        "-no-reboot",
    ];
    let program = program.display().to_string();
    let command = std::iter::once(program).chain(words.into_iter().map(str::to_owned)).collect();
    let run = RunCommand {
        command,
        environment: Default::default(),
        input: Vec::new(),
        limit,
        max_output: 4096,
        max_errors: 1024,
    };
    let end = match run.run().await {
        Ok(end) => end,
        Err(e) => return Ok(Some(e.to_string())),
    };
    Ok(match end.code {
        Some(CODE) => None,
        _ if end.timed_out => Some(format!("nothing of it ran within {} s", limit.as_secs())),
        code => {
            let how =
                code.map_or("it was killed by a signal".to_owned(), |code| format!("it ended with exit code {code}"));
            let errors = String::from_utf8_lossy(&end.errors);
            // The last line is what it ended by; the others led there.
            let last = errors.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it says nothing");
            Some(format!("{how}: {last}"))
        }
    })
}

/// A boot sector: `sti; mov cx, 4; l: hlt; loop l; mov al, SIGN; mov dx, PORT; out dx, al; cli; hlt`.
fn sector() -> [u8; 512] {
    let code = [0xfb, 0xb9, 0x04, 0x00, 0xf4, 0xe2, 0xfd, 0xb0, SIGN, 0xba, PORT, 0x00, 0xee, 0xfa, 0xf4];
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// QEMU, where it is; else a line that CI counts, or a failure where programs of others are required.
    pub(in crate::hypervisor::qemu) fn qemu(what: &str) -> Option<PathBuf> {
        let path = PathBuf::from("/usr/bin/qemu-system-x86_64");
        if path.exists() {
            return Some(path);
        }
        let required = std::env::var_os("FRESHET_REQUIRE_PEERS").is_some_and(|v| v == "1");
        assert!(!required, "{what} must not be skipped: no {}", path.display());
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            format!("skipped: {what}: no {}\n", path.display()).as_bytes(),
        );
        None
    }

    #[tokio::test]
    async fn a_guest_that_boots_is_told_from_one_that_does_not() {
        let Some(program) = qemu("a probe guest") else { return };
        let dir = tempfile::tempdir().unwrap();
        let long = Duration::from_secs(60);
        assert_eq!(boots(&program, dir.path(), "tcg", long).await.unwrap(), None);
        let other = boots(&program, dir.path(), "none-such", long).await.unwrap().unwrap();
        assert!(other.contains("none-such"), "{other}");
        // A program that hangs, as a guest on a bad /dev/kvm does.
        let hangs = dir.path().join("hangs");
        std::fs::write(&hangs, "#!/bin/sh\nexec sleep 600\n").unwrap();
        std::fs::set_permissions(&hangs, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let why = boots(Path::new("/bin/sh"), dir.path(), "kvm", Duration::from_millis(200)).await.unwrap().unwrap();
        assert!(!why.is_empty());
        let why = boots(&hangs, dir.path(), "kvm", Duration::from_millis(200)).await.unwrap().unwrap();
        assert!(why.contains("nothing of it ran"), "{why}");
    }
}
