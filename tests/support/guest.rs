//! A guest: a Debian kernel under QEMU's software emulation, with an initramfs that is packed here.
//!
//! The kernel is looked for in the directory `FRESHET_GUEST_DIR`, where a kernel package was unpacked, and at `/`. The
//! initramfs holds busybox, the modules of a virtio disk, and a script.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::real_images::{find, tool};

/// Modules that a virtio disk takes, in the order of their needs.
const MODULES: [&str; 6] = [
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
];

/// A kernel and the modules built with it.
pub(crate) struct Kernel {
    image: PathBuf,
    drivers: PathBuf,
}

impl Kernel {
    /// The one that this machine has; or what is missing.
    pub(crate) fn find() -> Result<Kernel, String> {
        if let Some(program) = ["qemu-system-x86_64", "busybox"].into_iter().find(|program| find(program).is_none()) {
            return Err(format!("no {program} here"));
        }
        let given = std::env::var_os("FRESHET_GUEST_DIR").map(PathBuf::from);
        let found = given.into_iter().chain([PathBuf::from("/")]).find_map(|root| Kernel::below(&root));
        found.ok_or_else(|| "no Debian cloud kernel at FRESHET_GUEST_DIR or in /boot".to_owned())
    }

    fn below(root: &Path) -> Option<Kernel> {
        let names = std::fs::read_dir(root.join("boot")).ok()?.flatten().map(|entry| entry.file_name());
        let mut kernels: Vec<Kernel> = names
            .filter_map(|name| {
                let version = name.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
                let drivers = root.join("lib/modules").join(&version).join("kernel/drivers");
                let image = root.join("boot").join(&name);
                // Others have other modules, and ext4 as one of them.
                let usable = version.ends_with("-cloud-amd64") && drivers.join("block/virtio_blk.ko").exists();
                usable.then_some(Kernel { image, drivers })
            })
            .collect();
        kernels.sort_by(|a, b| a.image.cmp(&b.image));
        kernels.pop()
    }

    /// The kernel, for programs that load it themselves.
    pub(crate) fn image(&self) -> &Path {
        &self.image
    }

    /// Writes an initramfs that loads the modules and then runs `script`.
    pub(crate) fn pack(&self, script: &str, into: &Path) {
        self.pack_with(&[], script, into);
    }

    /// The same for a guest that hears its power button, as events at `/dev/input/event0`.
    pub(crate) fn pack_with_button(&self, script: &str, into: &Path) {
        self.pack_with(&["acpi/button", "input/evdev"], script, into);
    }

    fn pack_with(&self, more: &[&str], script: &str, into: &Path) {
        let mut archive = Archive::default();
        for dir in ["bin", "dev", "proc", "sys", "mnt", "modules"] {
            archive.add(dir, 0o040_755, &[]);
        }
        archive.add("bin/busybox", 0o100_755, &std::fs::read(find("busybox").unwrap()).unwrap());
        let mut init = "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n\
                        mount -t proc proc /proc\nmount -t devtmpfs dev /dev\n"
            .to_owned();
        for (at, module) in MODULES.iter().chain(more).enumerate() {
            let bytes = std::fs::read(self.drivers.join(format!("{module}.ko"))).unwrap();
            archive.add(&format!("modules/{at}.ko"), 0o100_644, &bytes);
            init += &format!("insmod /modules/{at}.ko || echo failed: {module}\n");
        }
        init += script;
        archive.add("init", 0o100_755, init.as_bytes());
        std::fs::write(into, archive.end()).unwrap();
    }

    /// QEMU with this kernel, its serial console at standard output, and an export of a server at `socket` as its disk,
    /// which it connects to again for as long as `reconnect` seconds.
    pub(crate) fn qemu(&self, initramfs: &Path, socket: &Path, export: &str, reconnect: u32) -> Command {
        let mut command = tool("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-m", "256", "-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-display", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(&self.image).arg("-initrd").arg(initramfs);
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

/// An archive as the kernel unpacks it: cpio, its format `newc`.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (len, name_len) = (u32::try_from(content.len()).unwrap(), u32::try_from(name.len() + 1).unwrap());
        // Inode, mode, owner, group, links, time, length, four numbers of devices, length of the name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0];
        self.bytes.extend(b"070701");
        fields.iter().for_each(|field| self.bytes.extend(format!("{field:08x}").bytes()));
        self.bytes.extend(name.bytes().chain([0]));
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
