//! Durable, atomic creation of files that are never seen half written.
//!
//! What each step buys: `fsync` of the temporary file, that the name never shows bytes that are lost later; `link(2)`,
//! that exactly one of any number of writers gets the name (on NFS as well); `fsync` of the folder, that the name
//! survives power loss; the same for each folder that had to be made. Only after the last of them is a create
//! reported, and "exists" too is only reported of a name that is durable.
//!
//! Temporary files live in one folder of the site, [`TEMPORARY`]. What a crash leaves there is nobody's object; the
//! first create of a process removes what is old and no longer locked.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Once};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::FlockOperation;
use uuid::Uuid;

use super::super::Created;
use super::super::pool::{ALIGN, Pool};

/// Folder of temporary files, directly in the site's directory.
pub(super) const TEMPORARY: &str = ".freshet-tmp";

/// Leftovers younger than this are not looked at: their writer may not have locked them yet.
const LEFTOVER_AGE: Duration = Duration::from_secs(60);

/// Leftovers looked at by one process at most.
const LEFTOVERS_MAX: usize = 10_000;

/// Objects from this length on are written past the page cache: copying into fresh pages of it costs more processor
/// time than all else.
const DIRECT_FROM: u64 = 1 << 20;

/// Bytes of one direct write: a buffer in a huge page.
const DIRECT_WRITE: usize = 2 << 20;

/// Times that a name is given again after its folder went away.
const PUBLISH_TRIES: u32 = 8;

/// What to do about an object that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replace {
    /// Leave it and say so.
    Never,
    /// Put the new one in its place.
    Always,
}

/// Whether a key part is reserved for temporary files.
pub(super) fn is_temporary(part: &str) -> bool {
    part == TEMPORARY
}

/// Creates the files of one site.
pub(super) struct Creator {
    root: PathBuf,
    cleaned: Once,
    pool: Arc<Pool>,
    /// Cleared for good when the file system refuses a direct write.
    direct: AtomicBool,
}

impl Creator {
    /// For the site in the directory `root`, which need not exist yet; with buffers from `pool`, and direct writes of
    /// large objects where `direct` says so and the file system has them.
    pub(super) fn new(root: PathBuf, pool: Arc<Pool>, direct: bool) -> Creator {
        Creator { root, cleaned: Once::new(), pool, direct: AtomicBool::new(direct) }
    }

    /// Writes the joined `parts` to `path`, which is below the root.
    pub(super) fn write(&self, path: &Path, parts: &[Bytes], replace: Replace) -> io::Result<Created> {
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let staging = self.root.join(TEMPORARY);
        make_dirs(&staging)?;
        self.cleaned.call_once(|| remove_leftovers(&staging));
        let temporary = self.stage(&staging, parts)?;
        let mut tries = 0;
        let created = loop {
            tries += 1;
            make_dirs(folder)?;
            match temporary.publish(path, replace) {
                // The folder was empty and went with a deleted object, between our making and our using it.
                Err(e) if e.kind() == io::ErrorKind::NotFound && tries < PUBLISH_TRIES => {}
                result => break result?,
            }
        };
        sync_dir(folder)?;
        Ok(created)
    }

    /// The complete, durable, nameless object.
    fn stage(&self, staging: &Path, parts: &[Bytes]) -> io::Result<Temporary> {
        let mut temporary = Temporary::create(staging)?;
        let len: u64 = parts.iter().map(|p| p.len() as u64).sum();
        if len >= DIRECT_FROM && self.direct.load(Relaxed) {
            match temporary.write_direct(parts, len, &self.pool) {
                Ok(()) => return temporary.sync(),
                Err(e) if refuses_direct(&e) => self.direct.store(false, Relaxed),
                Err(e) => return Err(e),
            }
        }
        write_parts(&mut temporary.file, parts)?;
        temporary.file.set_len(len)?;
        temporary.sync()
    }
}

/// A temporary file, complete and durable, locked while its writer lives; its name goes when it is dropped.
struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    /// An empty file.
    fn create(staging: &Path) -> io::Result<Temporary> {
        let path = staging.join(Uuid::new_v4().to_string());
        let file = File::options().write(true).create_new(true).open(&path)?;
        let temporary = Temporary { path, file };
        // Without locks on this file system a leftover is told by its age alone, see `abandoned`.
        let _ = rustix::fs::flock(&temporary.file, FlockOperation::NonBlockingLockExclusive);
        Ok(temporary)
    }

    fn sync(self) -> io::Result<Temporary> {
        self.file.sync_all()?;
        Ok(self)
    }

    /// Writes `parts`, `len` bytes in all, past the page cache; the end is padded for it and cut off again.
    ///
    /// Errors: one of which [`refuses_direct`] is true where the file system has no direct writes; nothing of the file
    /// counts then.
    fn write_direct(&self, parts: &[Bytes], len: u64, pool: &Arc<Pool>) -> io::Result<()> {
        let file = File::options().write(true).custom_flags(libc::O_DIRECT).open(&self.path)?;
        // Space within the file's length is had more cheaply than space behind its end.
        file.set_len(len.next_multiple_of(ALIGN as u64))?;
        let mut buffer = pool.take(DIRECT_WRITE);
        let (mut filled, mut at) = (0, 0);
        for part in parts {
            let mut rest = &part[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(DIRECT_WRITE - filled));
                buffer[filled..filled + now.len()].copy_from_slice(now);
                (filled, rest) = (filled + now.len(), later);
                if filled == DIRECT_WRITE {
                    file.write_all_at(&buffer[..filled], at)?;
                    (at, filled) = (at + filled as u64, 0);
                }
            }
        }
        if filled > 0 {
            let padded = filled.next_multiple_of(ALIGN);
            buffer[filled..padded].fill(0);
            file.write_all_at(&buffer[..padded], at)?;
        }
        file.set_len(len)
    }

    /// Gives the complete file its name.
    fn publish(&self, path: &Path, replace: Replace) -> io::Result<Created> {
        if replace == Replace::Always {
            return std::fs::rename(&self.path, path).map(|()| Created::New);
        }
        match std::fs::hard_link(&self.path, path) {
            Ok(()) => Ok(Created::New),
            // A network file system can lose the answer, ask again by itself, and find the name taken: by us.
            Err(_) if self.is_linked() => Ok(Created::New),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(Created::Exists),
            Err(e) => Err(e),
        }
    }

    /// Whether the file has got a second name.
    fn is_linked(&self) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.nlink() > 1)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename it is not there; where removing fails, the next process's clean-up finds it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Whether a file system says so that it does not do direct writes: it may take the flag and not the write.
fn refuses_direct(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

fn write_parts(file: &mut File, parts: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().filter(|p| !p.is_empty()).map(|p| IoSlice::new(p)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut rest, n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Makes a folder and those above it that are missing, each durable in the one above it.
fn make_dirs(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().ok_or(io::ErrorKind::NotFound)?;
    make_dirs(parent)?;
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        result => result?,
    }
    sync_dir(parent)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes what crashed writers left. Best effort: a leftover costs space and nothing else.
fn remove_leftovers(staging: &Path) {
    let Ok(entries) = std::fs::read_dir(staging) else { return };
    for entry in entries.take(LEFTOVERS_MAX).flatten() {
        if abandoned(&entry).unwrap_or(false) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn abandoned(entry: &std::fs::DirEntry) -> io::Result<bool> {
    let age = entry.metadata()?.modified()?.elapsed().unwrap_or_default();
    if age < LEFTOVER_AGE {
        return Ok(false);
    }
    let file = File::options().write(true).open(entry.path())?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        // No locks here: a writer that takes a day is gone.
        Err(_) => Ok(age > Duration::from_secs(24 * 3600)),
    }
}
