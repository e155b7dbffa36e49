//! Why an engine or a file gets less than was asked for, in words that say what to change.
//!
//! Owns the wording and the few facts behind it (a sysctl, a limit, the kind of a file system). It decides nothing:
//! the attempts themselves are made where the thing is used, so that what is reported is what happened.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Resource, getrlimit};

const DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";

/// Why a ring could not be set up.
pub(super) fn no_ring(error: &io::Error) -> String {
    let sysctl = std::fs::read_to_string(DISABLED).ok().and_then(|text| text.trim().parse().ok());
    ring_words(error, sysctl)
}

fn ring_words(error: &io::Error, sysctl: Option<u32>) -> String {
    let why = match (error.raw_os_error(), sysctl) {
        (Some(libc::EPERM), Some(2)) => "the sysctl kernel.io_uring_disabled is 2: set it to 0",
        (Some(libc::EPERM), Some(1)) => {
            "the sysctl kernel.io_uring_disabled is 1: join the group of kernel.io_uring_group, or set it to 0"
        }
        (Some(libc::EPERM), _) => "it is forbidden here, perhaps by the seccomp filter of a container: allow it there",
        (Some(libc::ENOSYS), _) => "the kernel is older than 5.1 or built without it, or a seccomp filter hides it",
        (Some(libc::ENOMEM), _) => "no memory for the ring: raise the memlock limit (LimitMEMLOCK= in the unit)",
        _ => "the ring could not be set up",
    };
    format!("io_uring is not used: {why} ({error})")
}

/// Why the ring did not answer in time.
pub(super) fn ring_silent(seconds: u64) -> String {
    format!("io_uring is not used: a first empty operation did not complete within {seconds} s")
}

/// Why `bytes` of buffers could not be registered.
pub(super) fn not_registered(error: &io::Error, bytes: usize) -> String {
    registration_words(error, bytes, getrlimit(Resource::Memlock).current)
}

fn registration_words(error: &io::Error, bytes: usize, limit: Option<u64>) -> String {
    let limit = limit.map_or("unlimited".to_owned(), |bytes| format!("{bytes} bytes"));
    let why = match error.raw_os_error() {
        Some(libc::ENOMEM) => format!(
            "the memlock limit is {limit} and {bytes} bytes are needed: raise it (ulimit -l, LimitMEMLOCK= in the unit)"
        ),
        _ => format!("the kernel refused {bytes} bytes"),
    };
    format!("buffers are not registered with io_uring: {why} ({error})")
}

/// That a slab has more slots than one registration takes.
pub(super) fn partly_registered(registered: usize, slots: usize) -> String {
    format!("only {registered} of {slots} buffers are registered with io_uring: one registration takes no more")
}

/// Why a file is not opened for direct I/O: `error` of the attempt, or none when the kernel said so beforehand.
pub(super) fn no_direct(error: Option<io::Error>, file: &OwnedFd) -> String {
    let system = match rustix::fs::fstatfs(file) {
        Ok(stat) => file_system(stat.f_type as u64),
        Err(_) => "unknown".to_owned(),
    };
    direct_words(error.as_ref(), &system)
}

fn direct_words(error: Option<&io::Error>, system: &str) -> String {
    match error {
        None => format!("no direct I/O on this file, says the {system} file system (encrypted, or journaled data?)"),
        Some(error) => format!("no direct I/O on this {system} file system ({error})"),
    }
}

/// Name of a file system by the number in statfs(2), for those a datastore may be on.
fn file_system(magic: u64) -> String {
    let name = match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x6969 => "NFS",
        0xff53_4d42 | 0xfe53_4d42 => "SMB",
        0x6573_5546 => "FUSE",
        0x794c_7630 => "overlay",
        0x2fc1_2fc1 => "zfs",
        0x0021_1636 => "gfs2",
        0x00c3_6400 => "ceph",
        other => return format!("{other:#x}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn a_missing_ring_is_explained_by_the_sysctl_that_forbids_it() {
        assert!(ring_words(&os(libc::EPERM), Some(2)).contains("io_uring_disabled is 2"));
        assert!(ring_words(&os(libc::EPERM), Some(1)).contains("io_uring_group"));
        assert!(ring_words(&os(libc::EPERM), Some(0)).contains("seccomp"));
        assert!(ring_words(&os(libc::EPERM), None).contains("seccomp"));
        assert!(ring_words(&os(libc::ENOSYS), Some(0)).contains("older than 5.1"));
        assert!(ring_words(&os(libc::ENOMEM), Some(0)).contains("memlock"));
        assert!(ring_words(&os(libc::EINVAL), Some(0)).contains("Invalid argument"));
    }

    #[test]
    fn a_low_memlock_limit_is_explained_with_both_numbers() {
        let words = registration_words(&os(libc::ENOMEM), 67_108_864, Some(8_388_608));
        assert!(words.contains("67108864") && words.contains("8388608 bytes"), "{words}");
        assert!(registration_words(&os(libc::ENOMEM), 1, None).contains("unlimited"));
        let other = registration_words(&os(libc::EFAULT), 4096, Some(1));
        assert!(!other.contains("memlock") && other.contains("4096"), "{other}");
    }

    #[test]
    fn a_file_system_without_direct_io_is_named() {
        let words = direct_words(Some(&os(libc::EINVAL)), &file_system(0x6969));
        assert!(words.contains("NFS") && words.contains("Invalid argument"), "{words}");
        assert!(direct_words(None, &file_system(0xef53)).contains("ext4"));
        assert_eq!(file_system(0x1234), "0x1234");
    }
}
