//! A source image: a raw file or block device whose content is replicated.
//!
//! Owns the descriptor that pins the image, its length, where its holes are, and what tells that it was changed while
//! it was read. Reads no data and writes nothing: the data goes through the disk engine, which opens the same inode
//! by [`SourceImage::pinned_path`], whatever becomes of the name in the meantime.

use std::fs::{File, Metadata, OpenOptions};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, SeekFrom, flock, seek};
use rustix::io::Errno;

use crate::datastore::{ImageKey, Suspect};
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Reads begin and end at multiples of this many bytes, or at the end of the image.
const READ_ALIGN: u64 = 4096;

/// A hole shorter than this is read with its neighbours: the file system fills it in without touching the disk, and
/// one long read costs less than two short ones.
const MIN_HOLE: u64 = 64 << 10;

/// What changes when somebody writes to the image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    sectors_written: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct SourceImage {
    path: PathBuf,
    file: File,
    key: ImageKey,
    stamp: Stamp,
    claims: Vec<String>,
}

impl SourceImage {
    /// Opens the image at `path`, symbolic links resolved, for reading.
    ///
    /// # Errors
    /// `NotFound`, `Denied`; `Invalid` for anything that is neither a regular file nor a block device.
    pub(crate) fn open(path: &Path) -> Result<SourceImage> {
        let show = path.display();
        let path = path.canonicalize().io_context(|| format!("disk image {show}"))?;
        let meta = path.metadata().io_context(|| format!("disk image {show}"))?;
        // Asked before it is opened: opening a pipe would wait for its other end.
        let Some(key) = ImageKey::of(&meta) else {
            let what = describe(&meta);
            let why = format!("disk image {show}: is {what}, must be a raw image file or a block device");
            return Err(Error::new(ErrorKind::Invalid, why));
        };
        let (file, claims) = open_shared(&path, key)?;
        let opened = file.metadata().io_context(|| format!("disk image {show}"))?;
        if ImageKey::of(&opened) != Some(key) {
            let why = format!("disk image {show}: was replaced while it was being opened: run it again");
            return Err(Error::new(ErrorKind::Refused, why));
        }
        let stamp = stamp(&file, key).io_context(|| format!("disk image {show}"))?;
        Ok(SourceImage { path, file, key, stamp, claims })
    }

    /// Where it is, symbolic links resolved.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads to this very inode as long as `self` lives.
    pub(crate) fn pinned_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Which image it is.
    pub(crate) fn key(&self) -> ImageKey {
        self.key
    }

    /// What to look for its writers by.
    pub(crate) fn suspect(&self) -> Suspect<'_> {
        Suspect { key: self.key, file: &self.file }
    }

    /// Length in bytes when it was opened; any number.
    pub(crate) fn len(&self) -> u64 {
        self.stamp.len
    }

    /// What was found to hold it when it was opened, in words: a claim of the kernel, an exclusive lock.
    pub(crate) fn claims(&self) -> &[String] {
        &self.claims
    }

    /// Parts of `span` that may hold data, ascending and disjoint; the rest are holes of at least [`MIN_HOLE`] or at
    /// the edge of the span. All of it is data where the file system does not tell.
    pub(crate) fn data_ranges(&self, span: Range<u64>) -> Result<Vec<Range<u64>>> {
        let end = span.end.min(self.len());
        let mut out: Vec<Range<u64>> = Vec::new();
        if matches!(self.key, ImageKey::Device { .. }) {
            out.extend((span.start < end).then_some(span.start..end));
            return Ok(out);
        }
        let mut at = span.start;
        while at < end {
            let Some((data, hole)) = self.next_data(at, end)? else { break };
            let from = (data / READ_ALIGN * READ_ALIGN).max(span.start);
            let to = hole.next_multiple_of(READ_ALIGN).min(end);
            match out.last_mut() {
                Some(last) if from < last.end + MIN_HOLE => last.end = to,
                _ => out.push(from..to),
            }
            at = hole;
        }
        Ok(out)
    }

    /// First data at or after `at` and the hole after it, both before or at `end`.
    fn next_data(&self, at: u64, end: u64) -> Result<Option<(u64, u64)>> {
        let data = match seek(&self.file, SeekFrom::Data(at)) {
            Ok(data) if data < end => data,
            Ok(_) | Err(Errno::NXIO) => return Ok(None),
            // The file system knows no holes.
            Err(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS) => return Ok(Some((at, end))),
            Err(e) => return Err(Error::io(format!("disk image {}: look for data", self.path.display()), e.into())),
        };
        let hole = match seek(&self.file, SeekFrom::Hole(data)) {
            // One that does not move on would never end.
            Ok(hole) if hole > data => hole.min(end),
            Ok(_) | Err(Errno::NXIO) => end,
            Err(e) => return Err(Error::io(format!("disk image {}: look for holes", self.path.display()), e.into())),
        };
        Ok(Some((data, hole)))
    }

    /// Bytes in the data ranges of the whole image.
    pub(crate) fn allocated(&self) -> Result<u64> {
        const SPAN: u64 = 64 << 30;
        let (mut sum, mut at) = (0, 0);
        while at < self.len() {
            let ranges = self.data_ranges(at..at.saturating_add(SPAN))?;
            sum += ranges.iter().map(|r| r.end - r.start).sum::<u64>();
            at = at.saturating_add(SPAN);
        }
        Ok(sum)
    }

    /// What happened to the image since it was opened, in words; `None` where nothing did.
    pub(crate) fn changed_since_open(&self) -> Result<Option<String>> {
        let now = stamp(&self.file, self.key).io_context(|| format!("disk image {}", self.path.display()))?;
        if now.len != self.stamp.len {
            return Ok(Some(format!("its length went from {} to {} bytes", self.stamp.len, now.len)));
        }
        if now != self.stamp {
            return Ok(Some("it was written to, or its attributes were changed".to_owned()));
        }
        let there = self.path.metadata().ok().and_then(|meta| ImageKey::of(&meta));
        Ok((there != Some(self.key)).then(|| "it was moved, deleted or replaced".to_owned()))
    }
}

/// Opens for reading, with the claims that keep well-behaved writers away as long as it is open; a claim that cannot be
/// had tells of somebody else.
fn open_shared(path: &Path, key: ImageKey) -> Result<(File, Vec<String>)> {
    let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(path);
    let mut claims = Vec::new();
    let opened = match key {
        ImageKey::Device { .. } => match open(libc::O_EXCL) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                claims.push("claimed by the kernel: mounted, or part of a volume group, array or swap".to_owned());
                open(0)
            }
            other => other,
        },
        ImageKey::File { .. } => open(0),
    };
    let file = opened.io_context(|| format!("disk image {}", path.display()))?;
    // File systems without this kind of lock answer with other errors, which tell nothing.
    if flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK) {
        claims.push("locked exclusively by another program (flock)".to_owned());
    }
    Ok((file, claims))
}

fn stamp(file: &File, key: ImageKey) -> std::io::Result<Stamp> {
    let meta = file.metadata()?;
    match key {
        ImageKey::File { .. } => Ok(Stamp {
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            sectors_written: None,
        }),
        // The times of a device node say nothing of its content; the kernel counts what is written to the device.
        ImageKey::Device { rdev } => Ok(Stamp {
            len: seek(file, SeekFrom::End(0))?,
            modified: (0, 0),
            changed: (0, 0),
            sectors_written: sectors_written(rdev),
        }),
    }
}

/// Sectors written to a block device since the machine started; see `Documentation/block/stat.rst` of Linux.
fn sectors_written(rdev: u64) -> Option<u64> {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    text.split_ascii_whitespace().nth(6)?.parse().ok()
}

fn describe(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device",
        () => "of an unknown kind",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const MIB: u64 = 1 << 20;

    fn image(dir: &tempfile::TempDir, len: u64, data: &[(u64, usize)]) -> PathBuf {
        let path = dir.path().join("disk.raw");
        let file = File::create(&path).unwrap();
        file.set_len(len).unwrap();
        for (at, len) in data {
            file.write_all_at(&vec![1; *len], *at).unwrap();
        }
        path
    }

    fn covers(ranges: &[Range<u64>], at: u64) -> bool {
        ranges.iter().any(|r| r.contains(&at))
    }

    #[test]
    fn holes_are_left_out_and_data_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let len = 40 * MIB + 777;
        let path = image(&dir, len, &[(3 * MIB, 5000), (20 * MIB, 1), (len - 1, 1)]);
        let image = SourceImage::open(&path).unwrap();
        assert_eq!(image.len(), len);
        let ranges = image.data_ranges(0..len).unwrap();
        for at in [3 * MIB, 3 * MIB + 4999, 20 * MIB, len - 1] {
            assert!(covers(&ranges, at), "{at} in {ranges:?}");
        }
        for at in [0, MIB, 10 * MIB, 30 * MIB] {
            assert!(!covers(&ranges, at), "{at} in {ranges:?}");
        }
        assert_eq!(ranges.last().unwrap().end, len);
        assert_eq!(image.allocated().unwrap(), ranges.iter().map(|r| r.end - r.start).sum::<u64>());
        let within = image.data_ranges(3 * MIB + 4096..MIB * 4).unwrap();
        assert_eq!(within[0].start, 3 * MIB + 4096);
    }

    #[test]
    fn an_empty_image_has_no_data() {
        let dir = tempfile::tempdir().unwrap();
        let image = SourceImage::open(&image(&dir, 0, &[])).unwrap();
        assert_eq!((image.len(), image.allocated().unwrap()), (0, 0));
    }

    #[test]
    fn what_is_no_image_is_refused_by_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        for (path, kind, word) in [
            (dir.path().to_owned(), ErrorKind::Invalid, "a directory"),
            (pipe, ErrorKind::Invalid, "a pipe"),
            ("/dev/zero".into(), ErrorKind::Invalid, "a character device"),
            (dir.path().join("none"), ErrorKind::NotFound, "none"),
        ] {
            let error = SourceImage::open(&path).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn an_exclusive_lock_is_a_claim_and_a_shared_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir, MIB, &[]);
        let holder = File::open(&path).unwrap();
        flock(&holder, FlockOperation::LockShared).unwrap();
        assert_eq!(SourceImage::open(&path).unwrap().claims(), [""; 0]);
        flock(&holder, FlockOperation::LockExclusive).unwrap();
        assert!(SourceImage::open(&path).unwrap().claims()[0].contains("flock"));
        flock(&holder, FlockOperation::Unlock).unwrap();
    }

    #[test]
    fn every_kind_of_change_is_seen_and_reading_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(&dir, MIB, &[(0, 100)]);
        let open = SourceImage::open(&path).unwrap();
        std::fs::read(&path).unwrap();
        assert_eq!(open.changed_since_open().unwrap(), None);
        // The file system's clock may tick only every few milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        File::options().write(true).open(&path).unwrap().write_all_at(&[2], 0).unwrap();
        assert!(open.changed_since_open().unwrap().unwrap().contains("written"));
        let open = SourceImage::open(&path).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(5).unwrap();
        assert!(open.changed_since_open().unwrap().unwrap().contains("from 1048576 to 5"));
        let open = SourceImage::open(&path).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(SourceImage::open(&link).unwrap().key(), open.key());
        std::fs::copy(&path, dir.path().join("copy")).unwrap();
        assert_eq!(open.changed_since_open().unwrap(), None);
        std::fs::rename(dir.path().join("copy"), &path).unwrap();
        assert!(open.changed_since_open().unwrap().is_some());
    }
}
