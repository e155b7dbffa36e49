//! Images that a VM is left with, and a hypervisor that runs under a user of its own: may it come to them?
//!
//! Directories of the appliance are private. Where `protect.socket_group` names the group of the hypervisor's user, that group
//! may go through those of them that lead to such an image, and read and write the image; it may list nothing. Without it
//! nothing is changed, and what is in the way is told. Directories of others are theirs: they are told, and left alone.

use std::fs::{Metadata, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::socket_group;
use crate::error::{IoResultExt, Result};

/// See the module.
#[derive(Debug)]
pub(super) struct Reach {
    /// Name or number of the group.
    pub(super) group: Option<String>,
    /// Directories of the appliance; those below are its own, too.
    pub(super) own: Vec<PathBuf>,
}

impl Reach {
    /// Lets the group at images; in words what keeps other users from them. Blocks.
    ///
    /// # Errors
    /// `Invalid` for a group that is none; `Denied` where the process may not let it in; what the file system says.
    pub(super) fn open(&self, images: &[PathBuf]) -> Result<Vec<String>> {
        let group = self.group.as_deref().map(socket_group::number_of).transpose()?;
        let mut notes = Vec::new();
        for image in images {
            if let Some(closed) = self.way_to(image, group)? {
                let remedy = "where the hypervisor runs under a user of its own, that one must be let through \
                              (protect.socket_group lets its group through directories of the appliance)";
                notes.push(format!(
                    "{} is behind {}, which is closed to others: {remedy}",
                    image.display(),
                    closed.display()
                ));
            }
            if let Some(group) = group {
                admit_to_image(image, group)?;
            }
        }
        Ok(notes)
    }

    /// Opens the way to an image, from its directory up; the first directory that stays closed.
    fn way_to(&self, image: &Path, group: Option<u32>) -> Result<Option<PathBuf>> {
        let mut closed = None;
        for dir in image.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()) {
            let meta = std::fs::metadata(dir).io_context(|| dir.display().to_string())?;
            if is_open(&meta, group) {
                continue;
            }
            let is_private = meta.mode() & 0o077 == 0 && meta.uid() == rustix::process::geteuid().as_raw();
            match group {
                Some(group) if is_private && self.own.iter().any(|own| dir.starts_with(own)) => {
                    socket_group::admit(group, dir)?;
                }
                _ => closed = closed.or(Some(dir.to_owned())),
            }
        }
        Ok(closed)
    }
}

/// Whether others, or the group, may go through a directory.
fn is_open(meta: &Metadata, group: Option<u32>) -> bool {
    meta.mode() & 0o001 != 0 || (group == Some(meta.gid()) && meta.mode() & 0o010 != 0)
}

/// Lets a group read and write an image that only its owner may. Devices have the owners that the host gives them.
fn admit_to_image(image: &Path, group: u32) -> Result<()> {
    let what = || format!("let group {group} at {}", image.display());
    let meta = std::fs::metadata(image).io_context(what)?;
    if meta.file_type().is_block_device() || meta.mode() & 0o077 != 0 {
        return Ok(());
    }
    chown(image, None, Some(group)).io_context(what)?;
    std::fs::set_permissions(image, Permissions::from_mode(0o660)).io_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_comes_to_the_image_and_sees_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        let set = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        set(dir.path(), 0o711);
        let (state, images) = (dir.path().join("state"), dir.path().join("state/images"));
        let (catalog, image) = (state.join("catalog"), images.join("a.img"));
        for dir in [&state, &images, &catalog] {
            std::fs::create_dir(dir).unwrap();
            set(dir, 0o700);
        }
        std::fs::write(&image, "x").unwrap();
        set(&image, 0o600);
        let reach = |group: Option<&str>, own: &[&PathBuf]| Reach {
            group: group.map(str::to_owned),
            own: own.iter().map(|own| (*own).clone()).collect(),
        };
        let own_group = rustix::process::getegid().as_raw().to_string();
        // Without a group nothing changes, and it is told what is in the way.
        let notes = reach(None, &[&state]).open(std::slice::from_ref(&image)).unwrap();
        assert!(notes.len() == 1 && notes[0].contains(&format!("behind {}", images.display())), "{notes:?}");
        assert_eq!((mode(&state), mode(&images), mode(&image)), (0o700, 0o700, 0o600));
        // What is not the appliance's is left alone.
        let notes = reach(Some(&own_group), &[&images]).open(std::slice::from_ref(&image)).unwrap();
        assert!(notes[0].contains(&format!("behind {}", state.display())), "{notes:?}");
        assert_eq!((mode(&state), mode(&images)), (0o700, 0o710));
        let all = reach(Some(&own_group), &[&state]);
        for _ in 0..2 {
            assert_eq!(all.open(std::slice::from_ref(&image)).unwrap(), [""; 0]);
        }
        assert_eq!((mode(&state), mode(&images), mode(&image), mode(&catalog)), (0o710, 0o710, 0o660, 0o700));
        // Who has been let in by others stays in.
        set(&image, 0o640);
        all.open(std::slice::from_ref(&image)).unwrap();
        assert_eq!(mode(&image), 0o640);
        assert!(all.open(&[images.join("none")]).is_err());
    }
}
