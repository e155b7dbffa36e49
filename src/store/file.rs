//! A directory as a storage site: one file for each object, read past the page cache, created durably.
//!
//! ```text
//! get_range: open O_DIRECT -> pread into an aligned pooled buffer -> Bytes::from_owner -> slice     (no copy)
//! create:    temporary file -> fsync -> link(2), which never replaces -> fsync of the directory
//!            (a large object by way of a pooled buffer, O_DIRECT)
//! ```
//!
//! Every system call that can wait runs on a blocking thread of the runtime. Key parts are file names as they are;
//! parts that would leave the directory or collide with temporary files are refused. Where the file system has no
//! direct I/O, both go through the page cache.

mod create;
mod walk;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use futures::stream::BoxStream;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use self::create::{Creator, Replace};
use super::counters::{Counters, add, count};
use super::pool::{ALIGN, Pool};
use super::{Created, Fetched, ObjectInfo, StoreOptions};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Time;

/// Ranges shorter than this go through the page cache: they are indexes and records, read around and again.
const DIRECT_FROM: u64 = 128 << 10;

/// A file-system directory that holds objects.
#[derive(Clone)]
pub(super) struct FileStore {
    inner: Arc<Inner>,
}

struct Inner {
    /// Shown in errors.
    url: String,
    root: PathBuf,
    creator: Creator,
    pool: Arc<Pool>,
    /// Cleared for good when the file system refuses a direct read.
    direct: AtomicBool,
    counters: Counters,
}

impl FileStore {
    /// The store in `root`, which need not exist yet.
    pub(super) fn new(url: String, root: PathBuf, options: &StoreOptions) -> FileStore {
        let pool = Pool::new(options.idle_buffers);
        let inner = Inner {
            url,
            creator: Creator::new(root.clone(), Arc::clone(&pool), options.direct),
            root,
            pool,
            direct: AtomicBool::new(options.direct),
            counters: Counters::default(),
        };
        FileStore { inner: Arc::new(inner) }
    }

    /// See [`super::StorageSite::get_range`].
    pub(super) async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Fetched>> {
        let path = self.inner.path(key)?;
        count(&self.inner.counters.gets);
        let inner = Arc::clone(&self.inner);
        let fetched = blocking(move || inner.read(&path, range)).await?;
        if let Some(fetched) = &fetched {
            add(&self.inner.counters.bytes_in, fetched.len);
        }
        Ok(fetched)
    }

    /// See [`super::StorageSite::head`].
    pub(super) async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        let path = self.inner.path(key)?;
        count(&self.inner.counters.heads);
        let (inner, key) = (Arc::clone(&self.inner), key.to_owned());
        blocking(move || match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => Ok(Some(info(key, &meta))),
            Ok(_) => Ok(None),
            Err(e) if absent(&e) => Ok(None),
            Err(e) => Err(inner.error("read the length of", &path, e)),
        })
        .await
    }

    /// See [`super::StorageSite::create`].
    pub(super) async fn create(&self, key: &str, parts: Vec<Bytes>) -> Result<Created> {
        self.write(key, parts, Replace::Never).await
    }

    /// Writes the object whether or not one is there, atomically and durably.
    pub(super) async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        self.write(key, vec![bytes], Replace::Always).await.map(drop)
    }

    async fn write(&self, key: &str, parts: Vec<Bytes>, replace: Replace) -> Result<Created> {
        let path = self.inner.path(key)?;
        count(&self.inner.counters.puts);
        add(&self.inner.counters.bytes_out, parts.iter().map(|p| p.len() as u64).sum());
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.creator.write(&path, &parts, replace).map_err(|e| inner.error("create", &path, e))).await
    }

    /// Removes an object; it need not exist. Only for objects of the probe.
    pub(super) async fn delete(&self, key: &str) -> Result<()> {
        let path = self.inner.path(key)?;
        count(&self.inner.counters.deletes);
        let inner = Arc::clone(&self.inner);
        blocking(move || match std::fs::remove_file(&path) {
            Err(e) if !absent(&e) => Err(inner.error("delete", &path, e)),
            _ => {
                inner.remove_empty_folders(&path);
                Ok(())
            }
        })
        .await
    }

    /// See [`super::StorageSite::list`].
    pub(super) fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'static, Result<ObjectInfo>> {
        count(&self.inner.counters.lists);
        let folder = match self.inner.folder(prefix) {
            Ok(folder) => folder,
            Err(e) => return Box::pin(futures::stream::once(async { Err(e) })),
        };
        walk::list(Arc::clone(&self.inner), folder, after.map(str::to_owned))
    }

    /// See [`super::StorageSite::list_dirs`].
    pub(super) async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>> {
        count(&self.inner.counters.lists);
        let folder = self.inner.folder(prefix)?;
        let inner = Arc::clone(&self.inner);
        blocking(move || walk::dirs(&inner, &folder)).await
    }

    /// This machine's clock.
    pub(super) fn now(&self) -> Time {
        SystemClock.now()
    }

    /// What was done so far.
    pub(super) fn counters(&self) -> super::StoreCounters {
        self.inner.counters.snapshot()
    }

    /// Whether long ranges are read past the page cache; known after the first one.
    pub(super) fn reads_direct(&self) -> bool {
        self.inner.direct.load(Relaxed)
    }

    /// The directory.
    pub(super) fn root(&self) -> &Path {
        &self.inner.root
    }
}

impl Inner {
    /// The file of a key. Refuses what would leave the directory.
    fn path(&self, key: &str) -> Result<PathBuf> {
        let bad = |part: &str| matches!(part, "" | "." | "..") || part.contains('\0') || create::is_temporary(part);
        if key.split('/').any(bad) {
            let why = "is not an object key: parts must not be empty, . or .., or look like a temporary file";
            return Err(Error::new(ErrorKind::Invalid, format!("storage site {}: {key:?} {why}", self.url)));
        }
        Ok(self.root.join(key))
    }

    /// A prefix as key of a folder, without the slash at its end.
    fn folder(&self, prefix: &str) -> Result<String> {
        let folder = prefix.strip_suffix('/').unwrap_or(prefix);
        if !folder.is_empty() {
            self.path(folder)?;
        }
        Ok(folder.to_owned())
    }

    /// An object store has no folders: those that only a deleted object needed go with it. One that is not empty, or
    /// cannot be removed, stays.
    fn remove_empty_folders(&self, path: &Path) {
        for folder in path.ancestors().skip(1).take_while(|folder| *folder != self.root) {
            if std::fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }

    fn error(&self, doing: &str, path: &Path, source: std::io::Error) -> Error {
        let key = path.strip_prefix(&self.root).unwrap_or(path).display();
        let advice = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                "; make room there, then run it again"
            }
            std::io::ErrorKind::PermissionDenied => "; give this user the right to it",
            std::io::ErrorKind::CrossesDevices => "; the folders of one site must be on one file system",
            _ => "",
        };
        Error::io(format!("storage site {}: {doing} object {key}{advice}", self.url), source)
    }

    fn read(&self, path: &Path, range: Range<u64>) -> Result<Option<Fetched>> {
        let wanted = range.end.saturating_sub(range.start);
        let direct = wanted >= DIRECT_FROM && self.direct.load(Relaxed);
        let (file, direct) = match open_read(path, direct) {
            Ok((file, opened_direct)) => {
                if direct && !opened_direct {
                    self.direct.store(false, Relaxed);
                }
                (file, opened_direct)
            }
            Err(e) if absent(&e) => return Ok(None),
            Err(e) => return Err(self.error("open", path, e)),
        };
        let meta = file.metadata().map_err(|e| self.error("read the length of", path, e))?;
        if !meta.is_file() {
            return Ok(None);
        }
        let object_len = meta.len();
        let range = range.start.min(object_len)..range.end.min(object_len);
        if range.is_empty() {
            return Ok(Some(Fetched { parts: Vec::new(), len: 0, object_len }));
        }
        let bytes = match direct {
            true => match self.read_direct(&file, &range) {
                // The file system took the flag and not the read, as some do: through the page cache from now on.
                Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    self.direct.store(false, Relaxed);
                    open_read(path, false).and_then(|(file, _)| self.read_cached(&file, &range))
                }
                result => result,
            },
            false => self.read_cached(&file, &range),
        };
        let bytes = bytes.map_err(|e| self.error("read", path, e))?;
        let len = bytes.len() as u64;
        Ok(Some(Fetched { parts: vec![bytes], len, object_len }))
    }

    /// Reads whole blocks around the range and hands out the range within them.
    fn read_direct(&self, file: &File, range: &Range<u64>) -> std::io::Result<Bytes> {
        let start = range.start - range.start % ALIGN as u64;
        let wanted = to_usize(range.end - start)?;
        let mut buffer = self.pool.take(wanted);
        let mut filled = 0;
        while filled < wanted {
            // `filled` is a multiple of the block here: a read that ends within a block ended at the end of the file.
            let n = file.read_at(&mut buffer[filled..], start + filled as u64)?;
            filled += n;
            if n == 0 || !filled.is_multiple_of(ALIGN) {
                break;
            }
        }
        shrunk(filled >= wanted)?;
        let head = to_usize(range.start - start)?;
        Ok(Bytes::from_owner(buffer).slice(head..wanted))
    }

    fn read_cached(&self, file: &File, range: &Range<u64>) -> std::io::Result<Bytes> {
        let wanted = to_usize(range.end - range.start)?;
        if range.end - range.start < DIRECT_FROM {
            let mut bytes = vec![0; wanted];
            file.read_exact_at(&mut bytes, range.start)?;
            return Ok(bytes.into());
        }
        let mut buffer = self.pool.take(wanted);
        file.read_exact_at(&mut buffer[..wanted], range.start)?;
        Ok(Bytes::from_owner(buffer).slice(..wanted))
    }
}

/// Objects never shrink; a file that did was changed by something else.
fn shrunk(whole: bool) -> std::io::Result<()> {
    let why = "the file became shorter while it was read";
    if whole { Ok(()) } else { Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, why)) }
}

fn to_usize(n: u64) -> std::io::Result<usize> {
    usize::try_from(n).map_err(|_| std::io::Error::new(std::io::ErrorKind::InvalidInput, "range too long for memory"))
}

/// Opens for reading, past the page cache if `direct` and if the file system can; tells whether it is so.
fn open_read(path: &Path, direct: bool) -> std::io::Result<(File, bool)> {
    let plain = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    if direct {
        match rustix::fs::open(path, plain | OFlags::DIRECT, Mode::empty()) {
            Ok(fd) => return Ok((File::from(fd), true)),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok((File::from(rustix::fs::open(path, plain, Mode::empty())?), false))
}

/// Whether the error says that there is no such object: a folder of its key may be missing, or be an object itself.
fn absent(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

fn info(key: String, meta: &std::fs::Metadata) -> ObjectInfo {
    let millis = meta.mtime().saturating_mul(1000).saturating_add(meta.mtime_nsec() / 1_000_000);
    ObjectInfo { key, len: meta.len(), modified: Time::from_millis(u64::try_from(millis).unwrap_or(0)) }
}

/// Runs what can wait on a blocking thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|e| Error::with_source(ErrorKind::Internal, "a file operation did not finish", e))?
}

#[cfg(test)]
mod tests;
