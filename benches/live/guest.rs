//! The guest whose disk is moved: a kernel under software emulation, under a libvirt daemon of its own, that writes all the
//! time and tells on its console how long it waited.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::guest::Kernel;
use crate::support::libvirt::Libvirt;
use crate::{Outcome, file_data};

/// Bytes of the disk.
pub(crate) const SIZE: u64 = 1 << 30;
/// Bytes of data in one piece, one at the beginning of each of [`PLACES`] parts of the disk; the rest is a hole.
const PIECE: u64 = 4 << 20;
pub(crate) const PLACES: u64 = 64;
/// Bytes of data in all.
pub(crate) const DATA: u64 = PIECE * PLACES;
/// Longest wait for the guest to write, or to write on.
const PATIENCE: Duration = Duration::from_secs(120);
/// Its name.
pub(crate) const VM: &str = "web";

/// What is the same in every run.
pub(crate) struct Made {
    data: Vec<u8>,
    initramfs: PathBuf,
}

impl Made {
    /// Compiles the guest's program and packs it.
    pub(crate) fn new(kernel: &Kernel, dir: &Path) -> Outcome<Made> {
        let (program, initramfs) = (dir.join("writer"), dir.join("initramfs"));
        let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        command.args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "panic=abort"]);
        command.args(["-C", "strip=symbols", "-o"]).arg(&program);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/live/writer.rs"));
        let out = command.output()?;
        if !out.status.success() {
            return Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr)).into());
        }
        let spacing = SIZE / PLACES;
        let script = format!("/bin/writer /dev/vda {PLACES} {spacing} {PIECE}\npoweroff -f\n");
        kernel.pack_programs(&[("/bin/writer", &program)], &script, &initramfs);
        Ok(Made { data: file_data(usize::try_from(DATA)?), initramfs })
    }

    /// A sparse disk with its data, durable.
    fn disk(&self, path: &Path) -> Outcome<()> {
        let file = File::create(path)?;
        file.set_len(SIZE)?;
        for (place, piece) in (0..PLACES).zip(self.data.chunks(usize::try_from(PIECE)?)) {
            file.write_all_at(piece, place * (SIZE / PLACES))?;
        }
        Ok(file.sync_all()?)
    }
}

/// A fifth of a second of the guest's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Longest time between the ends of two writes, in milliseconds.
    pub(crate) longest: f64,
    pub(crate) writes: u64,
}

/// A guest that runs.
pub(crate) struct Guest<'a> {
    libvirt: &'a Libvirt,
    console: PathBuf,
}

impl<'a> Guest<'a> {
    /// Starts it on a new disk below `dir`, and waits until it writes.
    pub(crate) fn start(made: &Made, kernel: &Kernel, libvirt: &'a Libvirt, dir: &Path) -> Outcome<Guest<'a>> {
        let (disk, console) = (dir.join("web.raw"), dir.join("console"));
        made.disk(&disk)?;
        libvirt.define(&format!(
            "<domain type='qemu'><name>{VM}</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>\
             <cmdline>console=ttyS0 loglevel=5 panic=-1</cmdline></os><features><acpi/></features>\
             <on_reboot>destroy</on_reboot><devices><disk type='file' device='disk'>\
             <driver name='qemu' type='raw' cache='none' discard='unmap'/><source file='{}'/>\
             <target dev='vda' bus='virtio'/></disk>\
             <serial type='file'><source path='{}'/></serial></devices></domain>",
            kernel.image().display(),
            made.initramfs.display(),
            disk.display(),
            console.display(),
        ));
        libvirt.virsh(&["start", VM]);
        let guest = Guest { libvirt, console };
        guest.some_more(10)?;
        Ok(guest)
    }

    /// What it has told so far.
    pub(crate) fn windows(&self) -> Outcome<Vec<Window>> {
        let mut text = std::fs::read(&self.console)?;
        // Half a number is another one.
        text.truncate(text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        let text = String::from_utf8_lossy(&text);
        if let Some(alarm) = text.lines().find(|line| line.contains("failed:") || line.contains("I/O error")) {
            return Err(format!("the guest says: {alarm}").into());
        }
        let window = |line: &str| {
            let (longest, writes) = line.trim().strip_prefix("gap ")?.split_once(' ')?;
            Some(Window { longest: longest.parse::<f64>().ok()? / 1e3, writes: writes.parse().ok()? })
        };
        Ok(text.lines().filter_map(window).collect())
    }

    /// Waits until it has told of `count` windows more; how many there are in all.
    pub(crate) fn some_more(&self, count: usize) -> Outcome<usize> {
        let (began, from) = (Instant::now(), self.windows().map_or(0, |windows| windows.len()));
        loop {
            // No console yet is no error.
            if self.console.exists() && self.windows()?.len() >= from + count {
                return Ok(from + count);
            }
            if began.elapsed() > PATIENCE {
                let said = std::fs::read(&self.console).unwrap_or_default();
                return Err(format!("the guest does not write: {}", String::from_utf8_lossy(&said)).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as a power failure does.
    pub(crate) fn end(self) {
        self.libvirt.virsh(&["destroy", VM]);
    }
}
