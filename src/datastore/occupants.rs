//! Who has an image open for writing: processes, mappings, loop devices, mounts, locks.
//!
//! Looks at what the kernel tells under `/proc` and `/sys`, at one moment; changes nothing. It cannot see writers on
//! other machines (except through locks on a network file system that carries them), nor, without the right to look,
//! those of other users: how many processes it could not look into is part of the answer.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::error::{IoResultExt, Result};

/// The byte on which QEMU holds a shared lock as long as it has an image open for writing: the first byte of its
/// permission locks plus the number of the permission; see `block/file-posix.c` of QEMU.
const QEMU_WRITE_BYTE: i64 = 101;

/// The byte on which QEMU holds a shared lock as long as nobody else may write to the image.
const QEMU_NO_OTHER_WRITER_BYTE: i64 = 201;

/// Which image it is, by whatever name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ImageKey {
    /// A file by file system and inode.
    File { dev: u64, inode: u64 },
    /// A block device by its number.
    Device { rdev: u64 },
}

impl ImageKey {
    /// The key of what these are the metadata of; `None` for what is neither file nor block device.
    pub(crate) fn of(meta: &Metadata) -> Option<ImageKey> {
        let kind = meta.file_type();
        if kind.is_block_device() {
            return Some(ImageKey::Device { rdev: meta.rdev() });
        }
        kind.is_file().then(|| ImageKey::File { dev: meta.dev(), inode: meta.ino() })
    }
}

/// An image whose writers are looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Suspect<'a> {
    /// Which one it is.
    pub(crate) key: ImageKey,
    /// Open for reading, for questions about locks.
    pub(crate) file: &'a File,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Occupants {
    /// For each image, in the order given, who may write to it, in words.
    pub(crate) writers: Vec<Vec<String>>,
    /// Processes that could not be looked into.
    pub(crate) unseen: usize,
}

/// Looks for writers of `images`.
///
/// # Errors
/// `Io` where `/proc` cannot be read.
pub(crate) fn find(images: &[Suspect<'_>]) -> Result<Occupants> {
    let mut found = Occupants { writers: vec![Vec::new(); images.len()], unseen: 0 };
    let keys: HashMap<ImageKey, usize> = images.iter().enumerate().map(|(i, image)| (image.key, i)).collect();
    for process in fs::read_dir("/proc").io_context(|| "read /proc")?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        look_into(pid, &keys, &mut found);
    }
    for (image, writers) in images.iter().zip(&mut found.writers) {
        writers.extend(lock_holder(image.file));
    }
    loop_devices(&keys, &mut found);
    mounts(&keys, &mut found);
    Ok(found)
}

fn look_into(pid: u32, keys: &HashMap<ImageKey, usize>, found: &mut Occupants) {
    let base = format!("/proc/{pid}");
    let fds = match fs::read_dir(format!("{base}/fd")) {
        Ok(fds) => fds,
        // A process that ended in the meantime holds nothing.
        Err(e) => return found.unseen += usize::from(e.kind() == std::io::ErrorKind::PermissionDenied),
    };
    for fd in fds.flatten() {
        let Some(&image) = fs::metadata(fd.path()).ok().and_then(|m| ImageKey::of(&m)).and_then(|k| keys.get(&k))
        else {
            continue;
        };
        let number = fd.file_name();
        let info = fs::read_to_string(format!("{base}/fdinfo/{}", number.display())).unwrap_or_default();
        if is_writable(&info) {
            found.writers[image].push(format!("{} has it open for writing", command(pid)));
        }
    }
    let maps = fs::read_to_string(format!("{base}/maps")).unwrap_or_default();
    for key in maps.lines().filter_map(written_mapping) {
        if let Some(&image) = keys.get(&key) {
            found.writers[image].push(format!("{} has it mapped for writing", command(pid)));
        }
    }
    for writers in &mut found.writers {
        writers.dedup();
    }
}

/// Whether the flags in a `fdinfo` file allow writing; what cannot be read is no descriptor any more.
fn is_writable(fdinfo: &str) -> bool {
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|text| i32::from_str_radix(text.trim(), 8).ok());
    flags.is_some_and(|f| f & libc::O_PATH == 0 && f & libc::O_ACCMODE != libc::O_RDONLY)
}

/// The file of a line of `/proc/<pid>/maps` where it is mapped shared and writable.
fn written_mapping(line: &str) -> Option<ImageKey> {
    let mut words = line.split_ascii_whitespace();
    let mode = words.nth(1)?.as_bytes();
    if mode.get(1) != Some(&b'w') || mode.get(3) != Some(&b's') {
        return None;
    }
    let (major, minor) = words.nth(1)?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let inode = words.next()?.parse().ok()?;
    Some(ImageKey::File { dev: rustix::fs::makedev(number(major)?, number(minor)?), inode })
}

/// `name (process 123)`.
fn command(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match name.trim() {
        "" => format!("process {pid}"),
        name => format!("{name} (process {pid})"),
    }
}

/// Whether a lock says that somebody writes: any exclusive one, or the one that QEMU keeps.
fn lock_holder(image: &File) -> Option<String> {
    let probes = [(libc::F_RDLCK, 0, 0), (libc::F_WRLCK, QEMU_WRITE_BYTE, 1)];
    probes.into_iter().find_map(|(kind, start, len)| {
        // SAFETY: all-zero bytes are a valid `flock`, a plain C struct of integers.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        (lock.l_start, lock.l_len) = (start, len);
        // SAFETY: the descriptor is open, and the call writes only into `lock`, which outlives it.
        let answer = unsafe { libc::fcntl(image.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
        let held = answer == 0 && lock.l_type != libc::F_UNLCK as libc::c_short;
        held.then(|| match u32::try_from(lock.l_pid) {
            Ok(pid) if pid > 0 => format!("{} holds a lock on it", command(pid)),
            _ => "another program holds a writer's lock on it, as a running QEMU does".to_owned(),
        })
    })
}

/// Tells every QEMU that somebody writes to the image and wants to be the only one, in the locks that it looks at.
/// They go when the open file does. Where the file system has no such locks nothing is told.
pub(crate) fn claim_from_qemu(image: &File) {
    for byte in [QEMU_WRITE_BYTE, QEMU_NO_OTHER_WRITER_BYTE] {
        // SAFETY: all-zero bytes are a valid `flock`, a plain C struct of integers.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = libc::F_RDLCK as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        (lock.l_start, lock.l_len) = (byte, 1);
        // SAFETY: the descriptor is open, and `lock` outlives the call, which only reads it.
        let answer = unsafe { libc::fcntl(image.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
        if answer != 0 {
            tracing::debug!("no lock on byte {byte}: {}", std::io::Error::last_os_error());
        }
    }
}

fn loop_devices(keys: &HashMap<ImageKey, usize>, found: &mut Occupants) {
    let Ok(devices) = fs::read_dir("/sys/block") else { return };
    for device in devices.flatten() {
        let Ok(backing) = fs::read_to_string(device.path().join("loop/backing_file")) else { continue };
        let key = fs::metadata(backing.trim_end_matches('\n')).ok().and_then(|m| ImageKey::of(&m));
        let read_only = fs::read_to_string(device.path().join("ro")).is_ok_and(|ro| ro.trim() == "1");
        if let (Some(&image), false) = (key.and_then(|k| keys.get(&k)), read_only) {
            found.writers[image].push(format!("loop device /dev/{} stands on it", device.file_name().display()));
        }
    }
}

fn mounts(keys: &HashMap<ImageKey, usize>, found: &mut Occupants) {
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let mut words = line.split(' ');
        let Some((major, minor)) = words.nth(2).and_then(|word| word.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        let key = ImageKey::Device { rdev: rustix::fs::makedev(major, minor) };
        if let (Some(&image), Some(place)) = (keys.get(&key), words.nth(1)) {
            found.writers[image].push(format!("it is mounted at {place}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn image(dir: &tempfile::TempDir, name: &str) -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, vec![7; 8192]).unwrap();
        path
    }

    fn suspect(file: &File) -> Suspect<'_> {
        Suspect { key: ImageKey::of(&file.metadata().unwrap()).unwrap(), file }
    }

    fn writers(path: &std::path::Path) -> Vec<String> {
        let file = File::open(path).unwrap();
        let found = find(&[suspect(&file)]).unwrap();
        found.writers.into_iter().next().unwrap()
    }

    #[test]
    fn only_descriptors_that_can_write_count_and_each_image_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (image(&dir, "a"), image(&dir, "b"));
        let _reader = File::open(&a).unwrap();
        assert_eq!(writers(&a), [""; 0]);
        let _writer = File::options().append(true).open(&b).unwrap();
        let files = [File::open(&a).unwrap(), File::open(&b).unwrap()];
        let found = find(&files.each_ref().map(suspect)).unwrap();
        assert_eq!(found.writers[0], [""; 0]);
        assert_eq!(found.writers[1].len(), 1);
        assert!(found.writers[1][0].contains(&format!("(process {})", std::process::id())), "{:?}", found.writers);
    }

    #[test]
    fn a_shared_writable_mapping_counts_without_a_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir, "mapped");
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let flags = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; it is not touched.
        let at = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), 4096, flags, rustix::mm::MapFlags::SHARED, &file, 0).unwrap()
        };
        drop(file);
        let found = writers(&path);
        // SAFETY: the mapping made above, which nothing refers to.
        unsafe { rustix::mm::munmap(at, 4096).unwrap() };
        assert!(found.iter().any(|w| w.contains("mapped for writing")), "{found:?}");
        assert_eq!(writers(&path), [""; 0]);
    }

    #[test]
    fn a_lock_tells_of_a_qemu_and_a_shared_lock_of_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir, "locked");
        let holder = File::open(&path).unwrap();
        rustix::fs::flock(&holder, rustix::fs::FlockOperation::LockShared).unwrap();
        assert_eq!(writers(&path), [""; 0]);
        rustix::fs::flock(&holder, rustix::fs::FlockOperation::Unlock).unwrap();
        // As QEMU does: a shared lock of the open file description on the byte that stands for writing.
        claim_from_qemu(&holder);
        assert!(writers(&path)[0].contains("QEMU"), "{:?}", writers(&path));
    }

    #[test]
    fn lines_of_the_kernel_are_read_as_they_are_written() {
        assert!(is_writable("pos:\t0\nflags:\t0100002\nmnt_id:\t29\n"));
        assert!(is_writable("flags:\t02001\n"));
        for info in ["flags:\t0100000\n", "flags:\t012000002\n", "flags:\tx\n", ""] {
            assert!(!is_writable(info), "{info:?}");
        }
        let line = "7f0 rw-s 00000000 fe:01 1234                       /a b";
        let dev = rustix::fs::makedev(0xfe, 1);
        assert_eq!(written_mapping(line), Some(ImageKey::File { dev, inode: 1234 }));
        for line in ["7f0 rw-p 00000000 fe:01 1234 /a", "7f0 r--s 00000000 fe:01 1234 /a", "7f0 rw-s", ""] {
            assert_eq!(written_mapping(line), None, "{line:?}");
        }
    }
}
