//! Copies of disks that left the domain: kept, out of the way, until they are deleted by their name.
//!
//! ```text
//! <datastore>/<domain>/<vm>/<disk>.raw  --the disk leaves-->  <datastore>/<domain>/.detached/<vm>/<disk>.<disk id>.raw
//!                                       <--it is back, as in an older point--
//! ```
//!
//! Their old place is free for another disk of that name. Invariant: a copy is moved whole, by renaming, and deleted only
//! by who names its identity. A disk that stands at a place of the operator's own is left there.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::ids::{DiskId, Name, Time};

use super::disks::create_dirs_durably;

/// Directory of the copies, beside those of the VMs: no VM's directory begins with a dot.
const DIR: &str = ".detached";

/// A kept copy of a disk that left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachedDisk {
    /// Identity of the disk: by this it is deleted.
    pub disk: DiskId,
    /// VM that it belonged to.
    pub vm: Name,
    /// Name that it had in the VM.
    pub name: Name,
    /// `vm/disk`, as it was called.
    pub label: String,
    /// Its file.
    pub path: PathBuf,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes that it takes: deleting it frees them.
    pub held: u64,
    /// When it left, as far as the file system tells: when the file was moved here, or changed otherwise since.
    pub left: Time,
}

/// The kept copies of disks that left `domain`, in `datastore`, sorted by name.
///
/// # Errors
/// `Io` where a directory cannot be read.
pub fn detached(datastore: &Path, domain: &Name) -> Result<Vec<DetachedDisk>> {
    let mut out = Vec::new();
    for (vm, dir) in entries(&datastore.join(domain.key()).join(DIR))? {
        let Some(vm) = Name::from_key(&vm) else { continue };
        for (file, path) in entries(&dir)? {
            let Some((disk, id)) = parse(&file) else { continue };
            let seen = match std::fs::symlink_metadata(&path) {
                // It is back in the domain, or deleted, since its directory was read.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                seen => seen.io_context(|| format!("look at {}", path.display()))?,
            };
            if !seen.is_file() {
                continue;
            }
            let (size, held) = (seen.len(), seen.blocks().saturating_mul(512));
            let left = u64::try_from(seen.ctime()).unwrap_or(0).saturating_mul(1000);
            let (label, left) = (format!("{vm}/{disk}"), Time::from_millis(left));
            out.push(DetachedDisk { disk: id, vm: vm.clone(), name: disk, label, path, size, held, left });
        }
    }
    out.sort_by(|a, b| (&a.label, a.disk).cmp(&(&b.label, b.disk)));
    Ok(out)
}

/// Deletes the kept copy of a disk that left `domain`; its path.
///
/// # Errors
/// `NotFound` where there is none of that identity, naming those that there are; `Io`.
pub fn delete_detached(datastore: &Path, domain: &Name, disk: DiskId) -> Result<PathBuf> {
    let kept = detached(datastore, domain)?;
    let Some(found) = kept.iter().find(|kept| kept.disk == disk) else {
        let there: Vec<String> = kept.iter().map(|kept| format!("{} ({})", kept.disk, kept.label)).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        let why = format!("datastore {} keeps no detached copy of disk {disk} of domain {domain}", datastore.display());
        return Err(Error::new(ErrorKind::NotFound, format!("{why}; there are: {there}")));
    };
    let context = || format!("delete {}", found.path.display());
    std::fs::remove_file(&found.path).io_context(context)?;
    let dir = found.path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(dir).and_then(|dir| dir.sync_all()).io_context(context)?;
    Ok(found.path.clone())
}

/// Where the copy of a disk of the domain's directory `root` is kept.
pub(super) fn place(root: &Path, vm: &Name, disk: &Name, id: DiskId) -> PathBuf {
    root.join(DIR).join(vm.key()).join(format!("{}.{id}.raw", disk.key()))
}

/// Moves a file with a disk from one place to the other, durably. What stands at `to` is not ours to replace.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    let dir = |path: &Path| path.parent().unwrap_or(Path::new(".")).to_owned();
    create_dirs_durably(&dir(to))?;
    let context = || format!("move {} to {}", from.display(), to.display());
    rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, rustix::fs::RenameFlags::NOREPLACE)
        .map_err(std::io::Error::from)
        .io_context(context)?;
    for dir in [dir(to), dir(from)] {
        std::fs::File::open(&dir).and_then(|d| d.sync_all()).io_context(|| format!("sync {}", dir.display()))?;
    }
    Ok(())
}

fn parse(file: &str) -> Option<(Name, DiskId)> {
    let (disk, id) = file.strip_suffix(".raw")?.rsplit_once('.')?;
    Some((Name::from_key(disk)?, DiskId::parse(id)?))
}

/// Names and paths in a directory; none where it is not there.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let context = || format!("read {}", dir.display());
    let read = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.io_context(context)?,
    };
    let mut out = Vec::new();
    for entry in read {
        let entry = entry.io_context(context)?;
        if let Ok(name) = entry.file_name().into_string() {
            out.push((name, entry.path()));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_kept_apart_by_identity_and_deleted_only_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let name = |n: &str| Name::new(n).unwrap();
        let (domain, vm, disk) = (name("shop ☃"), name("a.b"), name("x.y"));
        assert_eq!(detached(dir.path(), &domain).unwrap(), []);
        let root = dir.path().join(domain.key());
        let ids = [1, 2].map(|n| DiskId::from_bytes([n; 16]));
        for id in ids {
            let from = dir.path().join("file");
            std::fs::write(&from, [7; 100]).unwrap();
            rename(&from, &place(&root, &vm, &disk, id)).unwrap();
            assert!(!from.exists());
        }
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let taken = rename(&dir.path().join("file"), &place(&root, &vm, &disk, ids[0])).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::Io, "{taken}");
        std::fs::write(root.join(DIR).join(vm.key()).join("stranger"), "x").unwrap();
        // Neither what is none of ours, nor a directory or a link of such a name.
        let other = DiskId::from_bytes([3; 16]);
        std::fs::create_dir(place(&root, &vm, &disk, other)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", place(&root, &vm, &disk, DiskId::from_bytes([4; 16]))).unwrap();
        assert_eq!(delete_detached(dir.path(), &domain, other).unwrap_err().kind(), ErrorKind::NotFound);
        let kept = detached(dir.path(), &domain).unwrap();
        assert!(kept.iter().all(|k| k.held >= 100 && k.left > Time::from_millis(1_600_000_000_000)), "{kept:?}");
        assert_eq!(
            kept.iter().map(|k| (k.disk, k.label.as_str(), k.size)).collect::<Vec<_>>(),
            [(ids[0], "a.b/x.y", 100), (ids[1], "a.b/x.y", 100)]
        );
        let gone = delete_detached(dir.path(), &domain, ids[0]).unwrap();
        assert!(!gone.exists() && kept[1].path.exists());
        let error = delete_detached(dir.path(), &domain, ids[0]).unwrap_err();
        assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains(&ids[1].to_string()), "{error}");
    }
}
