//! What a small guest is made of: a Debian cloud kernel with its modules, and a busybox that needs no library. Found on
//! this machine, or where packages were unpacked; what is missing is named with the package that has it.

use std::path::{Path, PathBuf};

use super::archive::Archive;
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Modules of a virtio disk, a virtio card, the power button and the device for panics, in the order of their needs.
pub const GUEST_MODULES: [&str; 13] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/acpi/button",
    "drivers/input/evdev",
    "drivers/misc/pvpanic/pvpanic",
    "drivers/misc/pvpanic/pvpanic-mmio",
];
/// Longest busybox that is read.
const MAX_BUSYBOX: u64 = 64 << 20;

/// A kernel, its modules, and a busybox.
#[derive(Debug, Clone)]
pub struct GuestKernel {
    image: PathBuf,
    modules: PathBuf,
    busybox: PathBuf,
}

impl GuestKernel {
    /// What is below `dirs`, the first that has it; the busybox may also be this machine's own.
    ///
    /// # Errors
    /// `Unsupported`, naming what is missing and where to get it.
    pub fn find(dirs: &[PathBuf]) -> Result<GuestKernel> {
        let shown = || dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ");
        let (image, modules) = dirs.iter().find_map(|dir| below(dir)).ok_or_else(|| {
            missing(&format!("no Debian cloud kernel with its modules below {}", shown()), "linux-image-cloud-amd64")
        })?;
        let own = [Path::new("/usr"), Path::new("/")];
        let places = dirs.iter().flat_map(|dir| [dir.join("usr"), dir.clone()]).chain(own.map(Path::to_owned));
        let there: Vec<PathBuf> = places.map(|dir| dir.join("bin/busybox")).filter(|path| path.is_file()).collect();
        let busybox = there.iter().find(|path| is_static(path)).cloned().ok_or_else(|| {
            let what = if there.is_empty() { "no busybox" } else { "no busybox that needs no library" };
            missing(&format!("{what} below {} or /usr/bin", shown()), "busybox-static")
        })?;
        Ok(GuestKernel { image, modules, busybox })
    }

    /// The kernel's file.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// A first root with busybox, `modules` in their order as `/modules/00.ko` and so on, and `init`.
    ///
    /// # Errors
    /// What reading them says.
    pub fn initramfs(&self, modules: &[&str], init: &[u8]) -> Result<Vec<u8>> {
        self.initramfs_with(modules, &[], init)
    }

    /// The same with `programs`, each where it is to be in the guest, by its whole path, and where it is here.
    ///
    /// # Errors
    /// What reading them says.
    pub fn initramfs_with(&self, modules: &[&str], programs: &[(&str, &Path)], init: &[u8]) -> Result<Vec<u8>> {
        let read = |path: &Path| std::fs::read(path).io_context(|| format!("read {}", path.display()));
        let mut archive = Archive::default();
        for dir in ["bin", "dev", "proc", "sys", "run", "mnt", "data", "modules"] {
            archive.dir(dir);
        }
        archive.file("bin/busybox", true, &read(&self.busybox)?);
        for (at, module) in modules.iter().enumerate() {
            archive.file(&format!("modules/{at:02}.ko"), false, &read(&self.modules.join(format!("{module}.ko")))?);
        }
        let mut made = std::collections::BTreeSet::new();
        for (path, here) in programs {
            let path = path.trim_start_matches('/');
            for (at, _) in path.match_indices('/') {
                if made.insert(&path[..at]) {
                    archive.dir(&path[..at]);
                }
            }
            archive.file(path, true, &read(here)?);
        }
        archive.file("init", true, init);
        Ok(archive.end())
    }
}

fn missing(what: &str, package: &str) -> Error {
    let how = format!(
        "install {package}, or unpack it, or what it depends on, anywhere (apt-get download NAME; dpkg -x FILE DIR) and \
         name that directory"
    );
    Error::new(ErrorKind::Unsupported, format!("{what}; {how}"))
}

/// The newest kernel below `root`, and its modules.
fn below(root: &Path) -> Option<(PathBuf, PathBuf)> {
    let names = std::fs::read_dir(root.join("boot")).ok()?.flatten().map(|entry| entry.file_name());
    let found = names.filter_map(|name| {
        let version = name.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        let modules = root.join("lib/modules").join(&version).join("kernel");
        // Others have other modules, and ext4 as one of them.
        let usable = version.ends_with("-cloud-amd64") && modules.join("drivers/block/virtio_blk.ko").exists();
        usable.then(|| (root.join("boot").join(&name), modules))
    });
    found.max()
}

/// Whether a program asks for no loader: its headers (ELF, 64 bits, little-endian) have none.
fn is_static(path: &Path) -> bool {
    use std::io::Read;
    const LOADER: u32 = 3;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_BUSYBOX).read_to_end(&mut bytes));
    if read.is_err() || !bytes.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let number = |at: usize, len: usize| {
        let field = bytes.get(at..at.checked_add(len)?)?;
        Some(field.iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte)))
    };
    let headers = || Some((number(32, 8)?, number(54, 2)?, number(56, 2)?));
    let Some((first, len, count)) = headers() else { return false };
    (0..count).all(|n| {
        let at = first.checked_add(n * len).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| number(at, 4)).is_some_and(|kind| kind != u64::from(LOADER))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let dir = tempfile::tempdir().unwrap();
        let told = GuestKernel::find(&[dir.path().to_owned()]).unwrap_err();
        assert_eq!(told.kind(), ErrorKind::Unsupported);
        assert!(told.to_string().contains("linux-image-cloud-amd64"), "{told}");
        let version = "6.1.0-1-cloud-amd64";
        std::fs::create_dir_all(dir.path().join("boot")).unwrap();
        std::fs::write(dir.path().join(format!("boot/vmlinuz-{version}")), "k").unwrap();
        assert!(GuestKernel::find(&[dir.path().to_owned()]).is_err(), "without modules");
        let block = dir.path().join(format!("lib/modules/{version}/kernel/drivers/block"));
        std::fs::create_dir_all(&block).unwrap();
        std::fs::write(block.join("virtio_blk.ko"), "m").unwrap();
        assert_eq!(below(dir.path()).unwrap().0, dir.path().join(format!("boot/vmlinuz-{version}")));
    }

    #[test]
    fn a_program_with_a_loader_is_told_from_one_without() {
        let dir = tempfile::tempdir().unwrap();
        let program = |kinds: &[u32]| {
            let mut bytes = vec![0; 64];
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            (bytes[32], bytes[54], bytes[56]) = (64, 56, kinds.len() as u8);
            for kind in kinds {
                bytes.extend(kind.to_le_bytes());
                bytes.extend([0; 52]);
            }
            let path = dir.path().join("program");
            std::fs::write(&path, bytes).unwrap();
            is_static(&path)
        };
        assert!(program(&[1, 2]) && !program(&[1, 3]));
        for bytes in [&b""[..], b"\x7fELF\x02\x01", b"#!/bin/sh\n"] {
            let path = dir.path().join("other");
            std::fs::write(&path, bytes).unwrap();
            assert!(!is_static(&path));
        }
    }
}
