//! The file of a bitmap: exclusive, made whole or not at all, and told apart from one that took its name.
//!
//! The lock is on the file itself, which is replaced when the disk changes its size, so whoever got a lock looks whether
//! the name still means the file that it locked.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::datastore::{FileLock, take_lock};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::{INTENT_PAGE, MAX_INTENT_LEN};

use super::commit::PageFile;

/// Times that another file takes the name while it is being locked, before that is an error.
const TRIES: u32 = 8;

/// The open file; locked as long as this lives.
#[derive(Debug)]
pub(super) struct IntentFile {
    lock: FileLock,
}

impl IntentFile {
    /// Opens and locks what `path` names; `None` where there is nothing.
    ///
    /// # Errors
    /// `Refused` where another holder has it.
    pub(super) fn open(path: &Path) -> Result<Option<IntentFile>> {
        IntentFile::lock_named(path, false)
    }

    fn lock_named(path: &Path, create: bool) -> Result<Option<IntentFile>> {
        for _ in 0..TRIES {
            let file = match OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound && !create => return Ok(None),
                Err(e) => return Err(Error::io(format!("open {}", path.display()), e)),
            };
            let lock = match take_lock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(lock) => lock,
                Err((rustix::io::Errno::WOULDBLOCK, _)) => {
                    let why = format!("{} is in use: another freshet protects this disk", path.display());
                    return Err(Error::new(ErrorKind::Refused, why));
                }
                Err((e, _)) => return Err(Error::io(format!("lock {}", path.display()), e.into())),
            };
            if is_named(lock.file(), path).io_context(|| format!("look at {}", path.display()))? {
                return Ok(Some(IntentFile { lock }));
            }
        }
        let why = format!("{} was replaced again and again while it was opened", path.display());
        Err(Error::new(ErrorKind::Refused, why))
    }

    /// All of it, as far as a bitmap can be long.
    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        let file = self.lock.file();
        let len = file.metadata()?.len().min(MAX_INTENT_LEN);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Makes a file with `bytes` and gives it the name `path`, durably; until then `path` names what it did before, which
    /// the caller has locked, or nothing. It is locked from before it has the name.
    pub(super) fn create(path: &Path, bytes: &[u8]) -> Result<IntentFile> {
        let temporary = beside(path, "new");
        let doing = || format!("create {}", path.display());
        let Some(file) = IntentFile::lock_named(&temporary, true)? else {
            return Err(Error::new(ErrorKind::Internal, format!("{}: not made", doing())));
        };
        // Buys: the name never shows bytes that power loss takes away.
        let write =
            |file: &File| file.set_len(0).and_then(|()| file.write_all_at(bytes, 0)).and_then(|()| file.sync_all());
        write(file.lock.file()).io_context(|| format!("write {}", temporary.display()))?;
        std::fs::rename(&temporary, path).io_context(doing)?;
        sync_dir(path).io_context(doing)?;
        Ok(file)
    }
}

impl PageFile for IntentFile {
    fn write_page(&mut self, n: u32, bytes: &[u8; INTENT_PAGE]) -> io::Result<()> {
        self.lock.file().write_all_at(bytes, u64::from(n) * INTENT_PAGE as u64)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.lock.file().sync_data()
    }
}

/// Puts what `path` names aside as `<path>.lost`, over an earlier one, for people to look at.
pub(super) fn put_aside(path: &Path) -> Result<PathBuf> {
    let aside = beside(path, "lost");
    std::fs::rename(path, &aside).io_context(|| format!("rename {} to {}", path.display(), aside.display()))?;
    Ok(aside)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((open.dev(), open.ino()) == (named.dev(), named.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Buys: the name survives power loss.
fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
