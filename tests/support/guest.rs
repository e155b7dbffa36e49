//! A guest: a Debian kernel under QEMU's software emulation, with an initramfs that is packed here.
//!
//! The kernel is looked for in the directory `FRESHET_GUEST_DIR`, where a kernel package was unpacked, and at `/`. The
//! initramfs holds busybox, the modules of a virtio disk, and a script.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use freshet::demo::guest::{GUEST_MODULES, GuestKernel};

use super::agent;
use super::real_images::{find, tool};

/// How many of the modules a virtio disk takes.
const DISK_MODULES: usize = 6;

/// A kernel and the modules built with it.
pub(crate) struct Kernel(GuestKernel);

impl Kernel {
    /// The one that this machine has; or what is missing.
    pub(crate) fn find() -> Result<Kernel, String> {
        if find("qemu-system-x86_64").is_none() {
            return Err("no qemu-system-x86_64 here".to_owned());
        }
        let given = std::env::var_os("FRESHET_GUEST_DIR").map(PathBuf::from);
        let dirs: Vec<PathBuf> = given.into_iter().chain([PathBuf::from("/")]).collect();
        GuestKernel::find(&dirs).map(Kernel).map_err(|e| e.to_string())
    }

    /// The directory below which it was found, for programs that look for it themselves.
    pub(crate) fn root(&self) -> PathBuf {
        self.0.image().ancestors().nth(2).unwrap().to_owned()
    }

    /// The kernel, for programs that load it themselves.
    pub(crate) fn image(&self) -> &Path {
        self.0.image()
    }

    /// Writes an initramfs that loads the modules of a virtio disk and then runs `script`.
    pub(crate) fn pack(&self, script: &str, into: &Path) {
        self.pack_with(&[], script, into);
    }

    /// The same for a guest that hears its power button, as events at `/dev/input/event0`.
    pub(crate) fn pack_with_button(&self, script: &str, into: &Path) {
        self.pack_with(&["drivers/acpi/button", "drivers/input/evdev"], script, into);
    }

    /// The same as [`Kernel::pack`] with programs that need no library: where each is to be, and where it is here.
    pub(crate) fn pack_programs(&self, programs: &[(&str, &Path)], script: &str, into: &Path) {
        self.pack_all(&[], programs, script, into);
    }

    /// The same with a guest's agent, which runs.
    pub(crate) fn pack_with_agent(&self, programs: &[(String, PathBuf)], script: &str, into: &Path) {
        let modules = [&["drivers/acpi/button", "drivers/input/evdev"], &agent::MODULES[..]].concat();
        self.pack_all(&modules, &agent::borrowed(programs), &format!("{}{script}", agent::RUN), into);
    }

    /// The same with further modules and programs, which need no module of the agent's.
    pub(crate) fn pack_both(&self, more: &[&str], programs: &[(String, PathBuf)], script: &str, into: &Path) {
        self.pack_all(more, &agent::borrowed(programs), script, into);
    }

    /// The same with further modules.
    pub(crate) fn pack_with(&self, more: &[&str], script: &str, into: &Path) {
        self.pack_all(more, &[], script, into);
    }

    fn pack_all(&self, more: &[&str], programs: &[(&str, &Path)], script: &str, into: &Path) {
        let init = format!(
            "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n\
             mount -t proc proc /proc\nmount -t devtmpfs dev /dev\n\
             for module in /modules/*; do insmod $module || echo failed: $module; done\n{script}"
        );
        let modules: Vec<&str> = GUEST_MODULES[..DISK_MODULES].iter().chain(more).copied().collect();
        std::fs::write(into, self.0.initramfs_with(&modules, programs, init.as_bytes()).unwrap()).unwrap();
    }

    /// QEMU with this kernel, its serial console at standard output, and an export of a server at `socket` as its disk,
    /// which it connects to again for as long as `reconnect` seconds.
    pub(crate) fn qemu(&self, initramfs: &Path, socket: &Path, export: &str, reconnect: u32) -> Command {
        let mut command = tool("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-m", "256", "-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-display", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(self.0.image()).arg("-initrd").arg(initramfs);
        // Errors of disks are said on the console.
        command.args(["-append", "console=ttyS0 loglevel=5 panic=-1"]);
        let socket = socket.display();
        command.arg("-drive").arg(format!(
            "if=none,id=disk,format=raw,cache=none,file.driver=nbd,file.server.type=unix,file.server.path={socket},\
             file.export={export},file.reconnect-delay={reconnect}"
        ));
        command.args(["-device", "virtio-blk-pci,drive=disk"]).stdin(Stdio::null());
        command
    }
}
