//! A small durable document in two files that are written in turn: a torn write loses the new version, never the old one.
//!
//! It owns where the bytes stand and when they are durable; what they mean and which version is newer is told by the
//! caller's decoder. What the sync buys: when [`TwoSlot::sync`] returns, the newest version survives power loss; until
//! then it survives only the death of the process, and the version before it is not touched. A failed write or sync
//! poisons: everything later fails until the document is loaded again.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::format::{DecodeError, DecodeResult};

/// The two files of one document.
#[derive(Debug)]
pub struct TwoSlot {
    paths: [PathBuf; 2],
    /// Which of them is written next.
    next: usize,
    /// The newest version, while it is not durable.
    unsynced: Option<Unsynced>,
    poisoned: bool,
}

/// A version that was written and not synced.
#[derive(Debug)]
struct Unsynced {
    path: PathBuf,
    file: File,
    is_new: bool,
}

/// What was found at the start.
#[derive(Debug)]
pub enum Loaded<T> {
    /// Neither file is there.
    Absent,
    /// The newest version that decodes.
    Found(T),
    /// Files are there, and none decodes; why, for each.
    Lost(String),
}

impl TwoSlot {
    /// Reads both files, `<stem>.0` and `<stem>.1` in `dir`; `decode` gives the version's sequence and its content.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where a newer program wrote one of them: nothing of it may be overwritten by an older
    /// one, which would take it for lost.
    pub fn load<T>(
        dir: &Path,
        stem: &str,
        max_len: u64,
        decode: impl Fn(&[u8]) -> DecodeResult<(u64, T)>,
    ) -> Result<(TwoSlot, Loaded<T>)> {
        let paths = [dir.join(format!("{stem}.0")), dir.join(format!("{stem}.1"))];
        let (mut best, mut problems, mut next) = (None::<(u64, T)>, Vec::new(), 0);
        for (i, path) in paths.iter().enumerate() {
            let Some(bytes) = read_bounded(path, max_len)? else { continue };
            match decode(&bytes) {
                Ok((sequence, value)) => {
                    if best.as_ref().is_none_or(|(newest, _)| sequence > *newest) {
                        best = Some((sequence, value));
                        next = 1 - i;
                    }
                }
                Err(e @ DecodeError::Version { .. }) => return Err(e.at(path.display())),
                Err(e) => problems.push(format!("{}: {e}", path.display())),
            }
        }
        let loaded = match best {
            Some((_, value)) => Loaded::Found(value),
            None if problems.is_empty() => Loaded::Absent,
            None => Loaded::Lost(problems.join("; ")),
        };
        Ok((TwoSlot { paths, next, unsynced: None, poisoned: false }, loaded))
    }

    /// Makes `bytes` the newest version, durably.
    pub fn store(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes)?;
        self.sync()
    }

    /// Makes `bytes` the newest version, which is durable after [`TwoSlot::sync`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        // Else the only durable version would be written over.
        self.sync()?;
        let path = self.paths[self.next].clone();
        self.poisoned = true;
        self.unsynced = Some(write_over(&path, bytes).io_context(|| format!("write {}", path.display()))?);
        self.poisoned = false;
        self.next = 1 - self.next;
        Ok(())
    }

    /// Makes the newest version durable.
    pub fn sync(&mut self) -> Result<()> {
        if self.poisoned {
            let why = format!("{}: an earlier write or sync failed; start again", self.paths[self.next].display());
            return Err(Error::new(ErrorKind::Io, why));
        }
        let Some(unsynced) = self.unsynced.take() else { return Ok(()) };
        self.poisoned = true;
        unsynced.sync().io_context(|| format!("sync {}", unsynced.path.display()))?;
        self.poisoned = false;
        Ok(())
    }
}

/// Writes over the file; bytes past the new end may stay, since the document tells its own length.
fn write_over(path: &Path, bytes: &[u8]) -> std::io::Result<Unsynced> {
    let is_new = !path.exists();
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(bytes, 0)?;
    Ok(Unsynced { path: path.to_owned(), file, is_new })
}

impl Unsynced {
    /// One fdatasync makes content and length durable; a new file also needs its directory synced.
    fn sync(&self) -> std::io::Result<()> {
        self.file.sync_data()?;
        match self.path.parent() {
            Some(dir) if self.is_new => File::open(dir)?.sync_all(),
            _ => Ok(()),
        }
    }
}

fn read_bounded(path: &Path, max_len: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(format!("open {}", path.display()), e)),
    };
    let mut bytes = Vec::new();
    file.take(max_len + 1).read_to_end(&mut bytes).io_context(|| format!("read {}", path.display()))?;
    match bytes.len() as u64 <= max_len {
        true => Ok(Some(bytes)),
        false => {
            let why = format!("{}: longer than {max_len} bytes, not a file of freshet", path.display());
            Err(Error::new(ErrorKind::Damaged, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> DecodeResult<(u64, u8)> {
        match bytes {
            [sequence, value, check, ..] if sequence ^ value == *check => Ok((u64::from(*sequence), *value)),
            _ => Err(DecodeError::Checksum { what: "test" }),
        }
    }

    fn load(dir: &Path) -> (TwoSlot, Loaded<u8>) {
        TwoSlot::load(dir, "doc", 100, decode).unwrap()
    }

    #[test]
    fn the_newest_good_version_counts_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (mut slot, loaded) = load(dir.path());
        assert!(matches!(loaded, Loaded::Absent));
        for sequence in 1..=5_u8 {
            slot.store(&[sequence, 100 + sequence, sequence ^ (100 + sequence)]).unwrap();
            // The next store would tear the other file: this version must survive that.
            let (torn, other) = (load(dir.path()).0, dir.path());
            let kept = std::fs::read(&torn.paths[torn.next]).unwrap_or_default();
            std::fs::write(&torn.paths[torn.next], b"torn").unwrap();
            assert!(matches!(load(other).1, Loaded::Found(v) if v == 100 + sequence));
            std::fs::write(&torn.paths[torn.next], kept).unwrap();
        }
    }

    #[test]
    fn what_a_newer_program_wrote_is_not_taken_for_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (mut slot, _) = load(dir.path());
        slot.store(&[1, 101, 1 ^ 101]).unwrap();
        std::fs::write(dir.path().join("doc.1"), b"newer").unwrap();
        let newer = |bytes: &[u8]| match bytes {
            b"newer" => Err(DecodeError::Version { what: "test", found: 2, known: 1 }),
            _ => decode(bytes),
        };
        let error = TwoSlot::load(dir.path(), "doc", 100, newer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("doc.1") && error.to_string().contains("newer freshet"), "{error}");
    }

    #[test]
    fn what_is_written_counts_at_once_and_leaves_the_durable_version_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (mut slot, _) = load(dir.path());
        slot.store(&[1, 101, 1 ^ 101]).unwrap();
        for sequence in 2..=4_u8 {
            slot.write(&[sequence, 100 + sequence, sequence ^ (100 + sequence)]).unwrap();
            assert!(matches!(load(dir.path()).1, Loaded::Found(v) if v == 100 + sequence));
            // What is not synced may be torn; the version before it was synced by this write at the latest.
            let newest = slot.unsynced.as_ref().unwrap().path.clone();
            let kept = std::fs::read(&newest).unwrap();
            std::fs::write(&newest, b"torn").unwrap();
            assert!(matches!(load(dir.path()).1, Loaded::Found(v) if v == 99 + sequence));
            std::fs::write(&newest, kept).unwrap();
        }
        slot.sync().unwrap();
        assert!(slot.unsynced.is_none());
    }

    #[test]
    fn two_bad_files_are_lost_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("doc.0"), b"bad").unwrap();
        assert!(matches!(load(dir.path()).1, Loaded::Lost(_)));
        std::fs::write(dir.path().join("doc.1"), vec![0; 101]).unwrap();
        assert!(TwoSlot::load(dir.path(), "doc", 100, decode).is_err());
    }
}
