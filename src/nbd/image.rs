//! A disk image that is ours alone while it is served: opened, sized, locked.
//!
//! Owns the descriptor that pins the image and carries its locks. Three kinds of claim, because others look at
//! different ones: a lock on the open file (flock), which a second server and `replicate` see; the byte locks by which
//! QEMU keeps its images apart; and for a block device the kernel's own claim against mounts. What does not look at
//! locks at all is looked for: processes, mappings, loop devices and mounts that may write to it.
//!
//! Invariant: while an [`Image`] for writing lives no other `Image` of the same file or device does; any number for
//! reading live together.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, SeekFrom, seek};
use rustix::io::Errno;

use crate::datastore::{FileLock, ImageKey, Suspect, claim_from_qemu, find_occupants, take_lock};
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// What a disk is to be served as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageOptions {
    /// Size that the disk must have in bytes; the image's own unless given.
    pub size: Option<u64>,
    /// Extend a regular file that is smaller than `size`, sparsely.
    pub grow: bool,
    /// Never write to it. Several may serve it so at once.
    pub read_only: bool,
}

/// See the module's head.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    lock: FileLock,
    size: u64,
    block_device: bool,
    read_only: bool,
}

impl Image {
    /// Opens and locks the image at `path`, symbolic links resolved.
    ///
    /// # Errors
    /// `NotFound`, `Denied`; `Invalid` for what is neither a regular file nor a block device, and for a size that it
    /// does not have; `Refused` where somebody else has it open for writing or serves it.
    pub fn open(path: &Path, options: ImageOptions) -> Result<Image> {
        let context = || format!("disk image {}", path.display());
        let real = path.canonicalize().io_context(context)?;
        let meta = real.metadata().io_context(context)?;
        // Asked before it is opened: opening a pipe would wait for its other end.
        let Some(key) = ImageKey::of(&meta) else {
            let text = format!("{}: must be a raw image file or a block device", context());
            return Err(Error::new(ErrorKind::Invalid, text));
        };
        let block_device = matches!(key, ImageKey::Device { .. });
        let file = open_first(&real, block_device, options.read_only).map_err(|e| e.while_doing(context()))?;
        if file.metadata().ok().as_ref().and_then(ImageKey::of) != Some(key) {
            let text = format!("{}: was replaced while it was being opened: run it again", context());
            return Err(Error::new(ErrorKind::Refused, text));
        }
        let lock = lock(file, options.read_only).map_err(|e| e.while_doing(context()))?;
        if !options.read_only {
            refuse_other_writers(key, lock.file()).map_err(|e| e.while_doing(context()))?;
            claim_from_qemu(lock.file());
        }
        let len = length(lock.file(), block_device).io_context(context)?;
        let size = size_to_serve(len, block_device, options).map_err(|e| e.while_doing(context()))?;
        let image = Image { path: real, lock, size, block_device, read_only: options.read_only };
        if size > len {
            let grown = OpenOptions::new().write(true).open(image.pinned_path()).and_then(|file| file.set_len(size));
            grown.io_context(|| format!("{}: extend it to {size} bytes", context()))?;
        }
        Ok(image)
    }

    /// Where it is, symbolic links resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are served.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Whether it is never written to.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// A path that leads to this very inode as long as `self` lives, whatever becomes of the name.
    pub(super) fn pinned_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.lock.file().as_raw_fd()))
    }

    /// Length now in bytes.
    pub(super) fn length_now(&self) -> std::io::Result<u64> {
        length(self.lock.file(), self.block_device)
    }
}

/// Decides how many bytes of an image of `len` bytes are served; more than `len` means that it is to be extended.
///
/// # Errors
/// `Invalid`, saying what to change, for every size but the image's own, except a larger one of a regular file where
/// extending is asked for.
fn size_to_serve(len: u64, block_device: bool, options: ImageOptions) -> Result<u64> {
    let refuse = |text: String| Err(Error::new(ErrorKind::Invalid, text));
    match options.size {
        None if len == 0 => {
            refuse("is empty: give the size that the disk is to have, and ask for it to be extended".to_owned())
        }
        None => Ok(len),
        Some(0) => refuse("a disk of no bytes cannot be served".to_owned()),
        Some(size) if size == len => Ok(len),
        Some(size) if size < len => refuse(format!(
            "has {len} bytes, more than the {size} that the disk is to have: its end would be out of reach. Give its own size, or none"
        )),
        Some(size) if block_device => refuse(format!(
            "has {len} bytes, less than the {size} that the disk is to have, and is a block device, which cannot be extended here"
        )),
        Some(size) if options.read_only => refuse(format!(
            "has {len} bytes, less than the {size} that the disk is to have, and is served for reading only"
        )),
        Some(size) if !options.grow => refuse(format!(
            "has {len} bytes, less than the {size} that the disk is to have: is it the right image? Ask for it to be extended, or leave the size out"
        )),
        Some(size) if size > i64::MAX as u64 => refuse(format!("{size} bytes are past the largest file")),
        Some(size) => Ok(size),
    }
}

/// Opens it for reading, a block device with the kernel's claim on it, unless it is only read.
fn open_first(path: &Path, block_device: bool, read_only: bool) -> Result<File> {
    let flags = if block_device && !read_only { libc::O_EXCL } else { 0 };
    OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => {
            let text = "is claimed by the kernel: mounted, or part of a volume group, array or swap";
            Error::with_source(ErrorKind::Refused, text, e)
        }
        _ => Error::io("open it", e),
    })
}

fn lock(file: File, read_only: bool) -> Result<FileLock> {
    let operation =
        if read_only { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
    take_lock(file, operation).map_err(|(errno, _)| match errno {
        Errno::WOULDBLOCK => {
            let text = "is locked by another program, which serves, replicates or writes it (flock): stop that first";
            Error::new(ErrorKind::Refused, text)
        }
        errno => Error::io("lock it", errno.into()),
    })
}

fn refuse_other_writers(key: ImageKey, file: &File) -> Result<()> {
    let found = find_occupants(&[Suspect { key, file }])?;
    match found.writers.into_iter().next() {
        Some(writers) if !writers.is_empty() => {
            let text = format!("{}; it would be written to from two sides", writers.join("; "));
            Err(Error::new(ErrorKind::Refused, text))
        }
        _ => Ok(()),
    }
}

fn length(file: &File, block_device: bool) -> std::io::Result<u64> {
    match block_device {
        true => Ok(seek(file, SeekFrom::End(0))?),
        false => Ok(rustix::fs::fstat(file)?.st_size.unsigned_abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZED: ImageOptions = ImageOptions { size: Some(8192), grow: false, read_only: false };

    #[test]
    fn only_the_images_own_size_is_served_unless_extending_is_asked_for() {
        let grow = ImageOptions { grow: true, ..SIZED };
        let plain = ImageOptions::default();
        assert_eq!(size_to_serve(8192, false, SIZED).unwrap(), 8192);
        assert_eq!(size_to_serve(8192, true, SIZED).unwrap(), 8192);
        assert_eq!(size_to_serve(777, false, plain).unwrap(), 777);
        assert_eq!(size_to_serve(4096, false, grow).unwrap(), 8192);
        assert_eq!(size_to_serve(0, false, grow).unwrap(), 8192);
        for (len, device, options, word) in [
            (0, false, plain, "empty"),
            (4096, false, SIZED, "extended"),
            (8193, false, grow, "out of reach"),
            (4096, true, grow, "block device"),
            (4096, false, ImageOptions { read_only: true, ..grow }, "reading only"),
            (4096, false, ImageOptions { size: Some(0), ..grow }, "no bytes"),
            (4096, false, ImageOptions { size: Some(u64::MAX), ..grow }, "largest"),
        ] {
            let error = size_to_serve(len, device, options).unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn an_image_is_extended_sparsely_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, [7; 100]).unwrap();
        assert_eq!(Image::open(&path, SIZED).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(path.metadata().unwrap().len(), 100);
        let image = Image::open(&path, ImageOptions { grow: true, ..SIZED }).unwrap();
        assert_eq!((image.size(), path.metadata().unwrap().len()), (8192, 8192));
        assert_eq!(std::fs::read(&path).unwrap()[..101], [[7; 100].as_slice(), &[0]].concat());
    }

    #[test]
    fn one_writer_or_many_readers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        let link = dir.path().join("link");
        std::fs::write(&path, [7; 100]).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let reading = ImageOptions { read_only: true, ..Default::default() };
        let refused = |path: &Path, options| {
            let error = Image::open(path, options).unwrap_err();
            assert!(error.kind() == ErrorKind::Refused && error.to_string().contains("locked"), "{error}");
        };
        let writer = Image::open(&path, ImageOptions::default()).unwrap();
        refused(&link, ImageOptions::default());
        refused(&link, reading);
        drop(writer);
        let readers = [Image::open(&path, reading).unwrap(), Image::open(&link, reading).unwrap()];
        refused(&path, ImageOptions::default());
        drop(readers);
        Image::open(&path, ImageOptions::default()).unwrap();
    }

    #[test]
    fn a_program_that_writes_without_locks_is_found_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, [7; 100]).unwrap();
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        let error = Image::open(&path, ImageOptions::default()).unwrap_err();
        let process = format!("process {}", std::process::id());
        assert!(error.kind() == ErrorKind::Refused && error.to_string().contains(&process), "{error}");
        drop(writer);
        Image::open(&path, ImageOptions::default()).unwrap();
    }
}
