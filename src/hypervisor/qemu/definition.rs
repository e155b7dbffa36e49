//! Definitions: what a VM's own text may say beside its normal form, and the file in which a VM is kept.
//!
//! The text (`qemu-json`) travels with the domain, so whoever can write to the storage site could have written it: unknown
//! words are refused, and the files that it names must lie in folders that this site's settings name.
//!
//! The file is JSON that an operator can read, with its version and a checksum, replaced as a whole and never changed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::xxh3_64;
use crate::hypervisor::VmSpec;

/// What a definition of this driver is called.
pub const QEMU_DEFINITION: &str = "qemu-json";
/// Version of such a definition, and of the file.
const VERSION: u32 = 1;
/// First word of the file in which a VM is kept.
pub const QEMU_VM_FORMAT: &str = "freshet qemu vm";
/// Most bytes of that file.
pub const MAX_QEMU_VM_LEN: u64 = 8 << 20;
/// Most bytes of a kernel's command line: what x86 takes, less its end.
const MAX_APPEND: usize = 2047;

/// The machine that QEMU imitates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Machine {
    /// PCI Express.
    #[default]
    Q35,
    /// The older one.
    Pc,
}

/// What becomes of a guest that resets itself, as after a panic with `panic=-1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnReboot {
    /// It starts again.
    #[default]
    Restart,
    /// It is off.
    Stop,
}

/// What a definition says beside the normal form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuDefinition {
    /// 1.
    pub version: u32,
    /// The machine.
    #[serde(default)]
    pub machine: Machine,
    /// Kernel that is booted without firmware of the guest's own; its disks' boot loaders where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk of that kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Its command line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub append: String,
    /// What becomes of a guest that resets itself.
    #[serde(default)]
    pub on_reboot: OnReboot,
}

impl Default for QemuDefinition {
    fn default() -> QemuDefinition {
        QemuDefinition {
            version: VERSION,
            machine: Machine::default(),
            kernel: None,
            initrd: None,
            append: String::new(),
            on_reboot: OnReboot::default(),
        }
    }
}

impl QemuDefinition {
    /// What the text of `spec` says; the plain machine where it is another hypervisor's.
    ///
    /// # Errors
    /// `Invalid` where the text is not understood, or names a file outside `boot_dirs`.
    pub fn of(spec: &VmSpec, boot_dirs: &[PathBuf]) -> Result<QemuDefinition> {
        if spec.definition_kind != QEMU_DEFINITION {
            return Ok(QemuDefinition::default());
        }
        let bad = |why: String| Error::new(ErrorKind::Invalid, format!("definition of VM {}: {why}", spec.name));
        let read: QemuDefinition = serde_json::from_str(&spec.definition).map_err(|e| bad(e.to_string()))?;
        if read.version != VERSION {
            return Err(bad(format!("version {} is not known, this driver knows {VERSION}", read.version)));
        }
        if read.append.len() > MAX_APPEND || read.append.contains('\0') {
            return Err(bad(format!("append has {} bytes, at most {MAX_APPEND} without a zero", read.append.len())));
        }
        if read.kernel.is_none() && (read.initrd.is_some() || !read.append.is_empty()) {
            return Err(bad("initrd and append are there without a kernel".to_owned()));
        }
        for path in [&read.kernel, &read.initrd].into_iter().flatten() {
            may_boot(path, boot_dirs).map_err(|e| e.while_doing(format!("definition of VM {}", spec.name)))?;
        }
        Ok(read)
    }
}

/// Links are followed first: where a file is counts, not what it is called.
fn may_boot(path: &Path, boot_dirs: &[PathBuf]) -> Result<()> {
    let real = path.canonicalize().io_context(|| format!("{} is to be booted", path.display()))?;
    let allowed = path.is_absolute()
        && real.is_file()
        && boot_dirs.iter().any(|dir| dir.canonicalize().is_ok_and(|dir| real.starts_with(dir)));
    match allowed {
        true => Ok(()),
        false => {
            let why = format!("{} is to be booted, and is no file in a folder of qemu.boot_dirs", path.display());
            Err(Error::new(ErrorKind::Invalid, why))
        }
    }
}

/// The file of a VM.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: String,
    version: u32,
    /// xxh3-64 of the VM's JSON without white space, in hexadecimal digits.
    checksum: String,
    vm: serde_json::Value,
}

/// The bytes of the file that keeps `spec`.
pub(super) fn encode(spec: &VmSpec) -> Result<Vec<u8>> {
    let internal = |e| Error::with_source(ErrorKind::Internal, "put a VM into JSON", e);
    let vm = serde_json::to_value(spec).map_err(internal)?;
    let checksum = checksum(&vm)?;
    let stored = Stored { format: QEMU_VM_FORMAT.to_owned(), version: VERSION, checksum, vm };
    let mut bytes = serde_json::to_vec_pretty(&stored).map_err(internal)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The VM that a file of the driver keeps.
///
/// # Errors
/// `Damaged` where the bytes are not what was written, `Unsupported` where a newer program wrote them.
pub fn qemu_vm(bytes: &[u8]) -> Result<VmSpec> {
    let bad = |why: String| Error::new(ErrorKind::Damaged, format!("definition of a VM: {why}"));
    if bytes.len() as u64 > MAX_QEMU_VM_LEN {
        return Err(bad(format!("{} bytes, at most {MAX_QEMU_VM_LEN}", bytes.len())));
    }
    let stored: Stored = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
    if stored.format != QEMU_VM_FORMAT {
        return Err(bad(format!("it begins with {:?}, not {QEMU_VM_FORMAT:?}", stored.format)));
    }
    if stored.version != VERSION {
        let why = format!("definition of a VM: version {}, this program knows {VERSION}", stored.version);
        return Err(Error::new(ErrorKind::Unsupported, why));
    }
    if checksum(&stored.vm)? != stored.checksum {
        return Err(bad("it does not match its checksum".to_owned()));
    }
    serde_json::from_value(stored.vm).map_err(|e| bad(e.to_string()))
}

fn checksum(vm: &serde_json::Value) -> Result<String> {
    let text = serde_json::to_vec(vm);
    let text = text.map_err(|e| Error::with_source(ErrorKind::Internal, "put a VM into JSON", e))?;
    Ok(format!("{:016x}", xxh3_64(&text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::samples::spec;
    use proptest::prelude::*;

    /// As it was once written: this must be read for ever.
    const GOLDEN: &str = include_str!("golden_v1.json");

    #[test]
    fn a_vm_comes_back_and_a_changed_letter_is_noticed() {
        let vm = spec("shop", "web");
        let bytes = encode(&vm).unwrap();
        assert_eq!(qemu_vm(&bytes).unwrap(), vm);
        assert_eq!(qemu_vm(GOLDEN.as_bytes()).unwrap(), vm);
        assert_eq!(String::from_utf8(bytes).unwrap(), GOLDEN);
        let changed = |from: &str, to: &str| qemu_vm(GOLDEN.replacen(from, to, 1).as_bytes()).unwrap_err();
        assert!(changed("\"web\"", "\"wed\"").to_string().contains("checksum"));
        assert!(changed("qemu vm", "qemu wm").to_string().contains("begins with"));
        assert_eq!(changed("\"version\": 1", "\"version\": 2").kind(), ErrorKind::Unsupported);
        assert_eq!(qemu_vm(b"").unwrap_err().kind(), ErrorKind::Damaged);
    }

    #[test]
    fn a_definition_names_only_what_the_settings_allow() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("boot/k"), dir.path().join("shadow"));
        std::fs::create_dir(dir.path().join("boot")).unwrap();
        std::fs::write(&inside, "k").unwrap();
        std::fs::write(&outside, "s").unwrap();
        std::os::unix::fs::symlink(&outside, dir.path().join("boot/link")).unwrap();
        let read = |text: &str, dirs: &[PathBuf]| {
            let mut vm = spec("shop", "web");
            (vm.definition_kind, vm.definition) = (QEMU_DEFINITION.to_owned(), text.to_owned());
            QemuDefinition::of(&vm, dirs)
        };
        let dirs = [dir.path().join("boot")];
        let kernel = |path: &Path| format!(r#"{{"version":1,"kernel":"{}","append":"quiet"}}"#, path.display());
        let good = read(&kernel(&inside), &dirs).unwrap();
        assert_eq!(
            (good.kernel.unwrap(), good.append.as_str(), good.on_reboot),
            (inside.clone(), "quiet", OnReboot::Restart)
        );
        assert!(read(&kernel(&inside), &[]).unwrap_err().to_string().contains("qemu.boot_dirs"));
        for bad in [outside.clone(), dir.path().join("boot/link"), dir.path().join("boot/../shadow"), dirs[0].clone()] {
            assert!(read(&kernel(&bad), &dirs).unwrap_err().to_string().contains("qemu.boot_dirs"), "{bad:?}");
        }
        assert!(read(&kernel(Path::new("/does/not/exist")), &dirs).is_err());
        for (text, why) in [
            (r#"{"version":2}"#, "version 2"),
            (r#"{"version":1,"shell":"rm"}"#, "unknown field"),
            (r#"{"version":1,"append":"x"}"#, "without a kernel"),
            ("", "EOF"),
        ] {
            let told = read(text, &dirs).unwrap_err().to_string();
            assert!(told.contains(why) && told.contains("VM web"), "{told}");
        }
    }

    #[test]
    fn another_hypervisor_s_text_makes_the_plain_machine() {
        let mut vm = spec("shop", "web");
        (vm.definition_kind, vm.definition) = ("libvirt-xml".to_owned(), "<domain/>".to_owned());
        assert_eq!(QemuDefinition::of(&vm, &[]).unwrap(), QemuDefinition::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(qemu_vm(&bytes).is_err());
        }
    }
}
