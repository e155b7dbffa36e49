//! The folder of one VM, and the one lock in it that says whether a process of the VM lives.
//!
//! ```text
//! <dir>/<vm>/  vm.json     the definition           lock       held by the VM's QEMU as long as it lives
//!              process     which process it is      qemu.log   what it wrote to its error output
//!              monitor, agent (sockets), console, uefi-vars, moving (a disk that is on its way),
//!              seed.img (addresses for the guest)
//! ```
//!
//! The lock is on an open file that the process gets as its standard input, so that the kernel lets it go when the last
//! process that holds it is gone, and not before: no number of a process has to be believed. It is asked for without
//! being taken; only a start takes it. Invariant: who starts a VM holds its lock, and passes it on with the process.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::definition;
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::hypervisor::{Seed, VmSpec, files};
use crate::ids::Name;

const DEFINITION: &str = "vm.json";
const LOCK: &str = "lock";
const PROCESS: &str = "process";
const MOVING: &str = "moving";
/// The disk that hands addresses to the guest.
pub(super) const SEED: &str = "seed.img";
/// What QEMU writes to its error output.
pub(super) const LOG: &str = "qemu.log";
/// A process that ended a moment ago may hold its lock still: tries, and the pause between two.
const TRIES: usize = 25;
const PAUSE: Duration = Duration::from_millis(20);

/// The folder of a VM.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    dir: PathBuf,
}

/// Which process was started for a VM last. Good for one boot of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProcessRecord {
    /// Its number.
    pub(super) pid: u32,
    /// When it began, in the kernel's ticks since its boot.
    pub(super) began: u64,
    /// Of which boot.
    pub(super) boot: String,
    /// It was told to end.
    #[serde(default)]
    pub(super) told: bool,
}

/// A disk that is being moved. While this is kept, the definition may name the disk that the guest has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Moving {
    /// Which disk, from 0.
    pub(super) disk: usize,
    /// Where to.
    pub(super) uri: String,
    /// The block node of that place.
    pub(super) node: String,
}

impl Folder {
    pub(super) fn new(dir: &Path, vm: &Name) -> Folder {
        Folder { dir: dir.join(vm.key()) }
    }

    pub(super) fn path(&self) -> &Path {
        &self.dir
    }

    /// The VM that is defined here.
    pub(super) fn read(&self) -> Result<Option<VmSpec>> {
        let path = self.dir.join(DEFINITION);
        let what = || format!("read {}", path.display());
        let mut bytes = Vec::new();
        match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened
                .io_context(what)?
                .take(definition::MAX_QEMU_VM_LEN + 1)
                .read_to_end(&mut bytes)
                .io_context(what)?,
        };
        definition::qemu_vm(&bytes).map(Some).map_err(|e| e.while_doing(path.display()))
    }

    /// Makes it, where it is not there.
    pub(super) fn make(&self) -> Result<()> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.dir).io_context(|| format!("make {}", self.dir.display()))
    }

    /// Keeps `spec`, whole or not at all.
    pub(super) fn write(&self, spec: &VmSpec) -> Result<()> {
        self.make()?;
        self.replace(DEFINITION, &definition::encode(spec)?)?;
        let above = self.dir.parent().unwrap_or(&self.dir);
        File::open(above).and_then(|dir| dir.sync_all()).io_context(|| format!("sync {}", above.display()))
    }

    /// Writes a file of the folder, whole or not at all.
    pub(super) fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        files::replace(&self.dir.join(name), bytes, 0o600)
    }

    /// Removes everything that is kept about the VM. No disk is in here.
    pub(super) fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", self.dir.display()), e))
            }
            _ => Ok(()),
        }
    }

    /// Whether a process of the VM lives.
    pub(super) fn is_alive(&self) -> Result<bool> {
        let path = self.dir.join(LOCK);
        let file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            opened => opened.io_context(|| format!("open {}", path.display()))?,
        };
        let mut lock = whole(libc::F_WRLCK);
        // SAFETY: the descriptor is open, and the call writes only into `lock`, which outlives it.
        let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
        match answer {
            0 => Ok(lock.l_type != libc::F_UNLCK as libc::c_short),
            _ => Err(Error::io(format!("ask for the lock {}", path.display()), std::io::Error::last_os_error())),
        }
    }

    /// Takes the lock, to be passed on to the VM's process.
    ///
    /// # Errors
    /// `Refused` where a process of the VM lives.
    pub(super) fn take_lock(&self) -> Result<File> {
        let path = self.dir.join(LOCK);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).io_context(|| format!("open {}", path.display()))?;
        for _ in 0..TRIES {
            let lock = whole(libc::F_WRLCK);
            // SAFETY: the descriptor is open, and `lock`, which the call only reads, outlives it.
            match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } {
                0 => return Ok(file),
                _ => match std::io::Error::last_os_error() {
                    e if e.kind() == std::io::ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
                    e => return Err(Error::io(format!("lock {}", path.display()), e)),
                },
            }
        }
        Err(Error::new(ErrorKind::Refused, format!("{} is held: a process of the VM lives", path.display())))
    }

    /// Which file the lock is, so that a process can be asked whether it holds it.
    pub(super) fn lock_key(&self) -> Option<(u64, u64)> {
        std::fs::metadata(self.dir.join(LOCK)).ok().map(|meta| (meta.dev(), meta.ino()))
    }

    /// Remembers the process.
    pub(super) fn note_process(&self, record: &ProcessRecord) -> Result<()> {
        self.replace(PROCESS, &json(record)?)
    }

    /// The process that was remembered. What cannot be read is none: it is a hint, and the lock is what counts.
    pub(super) fn process(&self) -> Option<ProcessRecord> {
        let mut bytes = Vec::new();
        File::open(self.dir.join(PROCESS)).ok()?.take(4096).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Remembers whether the process was told to end, so that its end is no surprise.
    pub(super) fn note_told(&self, told: bool) -> Result<()> {
        match self.process() {
            Some(record) if record.told != told => self.note_process(&ProcessRecord { told, ..record }),
            _ => Ok(()),
        }
    }

    /// It ended as it was told to.
    pub(super) fn forget_process(&self) -> Result<()> {
        self.drop_file(PROCESS)
    }

    /// Remembers that a disk is being moved, or with `None` that none is any more.
    pub(super) fn note_moving(&self, moving: Option<&Moving>) -> Result<()> {
        match moving {
            Some(moving) => self.replace(MOVING, &json(moving)?),
            None => self.drop_file(MOVING),
        }
    }

    /// The disk that is being moved, if one is.
    ///
    /// # Errors
    /// `Damaged` where that cannot be read: it is no hint.
    pub(super) fn moving(&self) -> Result<Option<Moving>> {
        let path = self.dir.join(MOVING);
        let mut bytes = Vec::new();
        match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened
                .and_then(|file| file.take(64 << 10).read_to_end(&mut bytes))
                .io_context(|| format!("read {}", path.display()))?,
        };
        let read = serde_json::from_slice(&bytes).map(Some);
        read.map_err(|e| Error::with_source(ErrorKind::Damaged, format!("{}", path.display()), e))
    }

    fn drop_file(&self, name: &str) -> Result<()> {
        files::remove(&self.dir.join(name))
    }

    /// Keeps the disk that hands addresses to the guest, or with `None` none.
    pub(super) fn put_seed(&self, seed: Option<&Seed>) -> Result<()> {
        let Some(seed) = seed else { return self.drop_file(SEED) };
        let bytes = seed.image()?;
        match std::fs::read(self.dir.join(SEED)).is_ok_and(|there| there == bytes) {
            true => Ok(()),
            false => self.replace(SEED, &bytes),
        }
    }

    /// The last lines of a file in here, in one line; empty where there is none.
    pub(super) fn tail(&self, name: &str) -> String {
        const BYTES: u64 = 2048;
        let read = || {
            let mut file = File::open(self.dir.join(name))?;
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(len.saturating_sub(BYTES)))?;
            let mut bytes = Vec::new();
            file.take(BYTES).read_to_end(&mut bytes)?;
            std::io::Result::Ok(bytes)
        };
        last_lines(&read().unwrap_or_default())
    }
}

/// The last three lines with something in them, without what would move a terminal.
pub(super) fn last_lines(bytes: &[u8]) -> String {
    const LINES: usize = 3;
    let text = String::from_utf8_lossy(bytes);
    let clean = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned();
    let lines: Vec<String> = text.lines().map(clean).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}

fn json(what: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(what).map_err(|e| Error::with_source(ErrorKind::Internal, "put a record into JSON", e))
}

fn whole(kind: i32) -> libc::flock {
    // SAFETY: all-zero bytes are a valid `flock`, a plain C struct of integers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::failover::samples;

    #[test]
    fn the_lock_tells_of_a_process_that_has_it_and_of_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let vm = samples::spec("shop", "web");
        let folder = Folder::new(dir.path(), &vm.name);
        assert!(!folder.is_alive().unwrap() && folder.read().unwrap().is_none());
        folder.write(&vm).unwrap();
        assert_eq!(folder.read().unwrap(), Some(vm));
        let lock = folder.take_lock().unwrap();
        let mut child = Command::new("sleep").arg("600").stdin(Stdio::from(lock)).spawn().unwrap();
        assert!(folder.is_alive().unwrap());
        assert_eq!(folder.take_lock().unwrap_err().kind(), ErrorKind::Refused);
        assert!(folder.is_alive().unwrap(), "looking has not taken it away");
        child.kill().unwrap();
        child.wait().unwrap();
        drop(folder.take_lock().unwrap());
        folder.remove().unwrap();
        folder.remove().unwrap();
        assert!(!dir.path().join("web").exists());
    }

    #[test]
    fn a_definition_that_is_damaged_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path(), &samples::name("web"));
        folder.write(&samples::spec("shop", "web")).unwrap();
        std::fs::write(folder.path().join(DEFINITION), "{").unwrap();
        let error = folder.read().unwrap_err();
        assert!(error.kind() == ErrorKind::Damaged && error.to_string().contains("vm.json"), "{error}");
    }

    #[test]
    fn what_is_remembered_of_a_process_is_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path(), &samples::name("web"));
        folder.write(&samples::spec("shop", "web")).unwrap();
        let record = ProcessRecord { pid: 7, began: 9, boot: "b".into(), told: false };
        folder.note_process(&record).unwrap();
        assert_eq!(folder.process(), Some(record.clone()));
        folder.note_told(true).unwrap();
        assert_eq!(folder.process(), Some(ProcessRecord { told: true, ..record }));
        std::fs::write(folder.path().join(PROCESS), "{").unwrap();
        assert_eq!(folder.process(), None);
        folder.forget_process().unwrap();
        folder.forget_process().unwrap();
        assert_eq!(folder.tail("none"), "");
        // A disk on its way is more than that.
        assert_eq!(folder.moving().unwrap(), None);
        let moving = Moving { disk: 0, uri: "file:///x".into(), node: "disk0-1".into() };
        folder.note_moving(Some(&moving)).unwrap();
        assert_eq!(folder.moving().unwrap(), Some(moving));
        std::fs::write(folder.path().join(MOVING), "{").unwrap();
        assert_eq!(folder.moving().unwrap_err().kind(), ErrorKind::Damaged);
        folder.note_moving(None).unwrap();
        assert_eq!(folder.moving().unwrap(), None);
        assert_eq!(last_lines(b"a\n\n b \x1b[31m\r\nc\nd"), "b [31m | c | d");
    }
}
