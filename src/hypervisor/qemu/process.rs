//! Processes of QEMU: started so that they outlive this one, found again, ended, and never taken for somebody else's.
//!
//! A process is known by the lock that it holds as its standard input; its number and the time of its beginning are a
//! hint, checked before it is used. Each has a session of its own, so that no signal to this program's reaches it, and a
//! thread here waits for its end while this program lives.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, PidfdFlags, Signal};

use super::folder::{Folder, LOG, ProcessRecord};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::hypervisor::COMMAND_PATH;
use crate::ids::Name;

/// How the last process of each VM ended, of those that this program started.
#[derive(Debug, Clone, Default)]
pub(super) struct Ends(Arc<Mutex<HashMap<Name, Option<ExitStatus>>>>);

impl Ends {
    fn set(&self, vm: &Name, end: Option<ExitStatus>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(vm.clone(), end);
    }

    /// How it ended, in words; `None` where that was not seen.
    pub(super) fn of(&self, vm: &Name) -> Option<String> {
        let end = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(vm).copied().flatten()?;
        Some(match (end.code(), end.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "an unknown end".to_owned(),
        })
    }
}

/// Starts `program` for the VM in `folder`.
///
/// # Errors
/// `Refused` where a process of it lives; what starting it says.
pub(super) fn spawn(folder: &Folder, vm: &Name, program: &Path, args: &[OsString], ends: &Ends) -> Result<()> {
    let lock = folder.take_lock()?;
    let log = log(folder)?;
    let what = || format!("start {} for VM {vm}", program.display());
    let errors = log.try_clone().io_context(what)?;
    let mut command = Command::new(program);
    command.args(args).env_clear().env("PATH", COMMAND_PATH).env("LANG", "C.UTF-8").current_dir(folder.path());
    command.stdin(Stdio::from(lock)).stdout(Stdio::from(log)).stderr(Stdio::from(errors));
    // SAFETY: between fork and exec only setsid is called, which may be.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    let mut child = command.spawn().io_context(what)?;
    // The command holds the lock's file, too: from here on only the process does.
    drop(command);
    let pid = child.id();
    ends.set(vm, None);
    let (ends, name) = (ends.clone(), vm.clone());
    let waiting = std::thread::Builder::new().name("qemu-end".to_owned()).spawn(move || {
        let end = child.wait().ok();
        tracing::info!(vm = %name, pid, ?end, "its QEMU ended");
        ends.set(&name, end);
    });
    if let Err(e) = waiting {
        // It runs, and its end will not be seen; the lock tells what counts.
        tracing::warn!(%vm, "no thread to wait for its QEMU: {e}");
    }
    let began = began(pid).unwrap_or_default();
    folder.note_process(&ProcessRecord { pid, began, boot: boot(), told: false })
}

fn log(folder: &Folder) -> Result<File> {
    let path = folder.path().join(LOG);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(&path).io_context(|| format!("open {}", path.display()))
}

/// Ends the VM's process at once, if there is one.
///
/// # Errors
/// `Io` where it cannot be found or ended.
pub(super) fn kill(folder: &Folder) -> Result<()> {
    if !folder.is_alive()? {
        return Ok(());
    }
    let Some(key) = folder.lock_key() else { return Ok(()) };
    let hint = folder.process().filter(|record| record.boot == boot()).map(|record| record.pid);
    let all = std::fs::read_dir("/proc").io_context(|| "read /proc")?.flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in hint.into_iter().chain(all) {
        if !holds(pid, key) {
            continue;
        }
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        let what = || format!("end process {pid}");
        let Ok(process) = rustix::process::pidfd_open(number, PidfdFlags::empty()) else { continue };
        // Once more, now that the number cannot come to stand for another process.
        if holds(pid, key) {
            return rustix::process::pidfd_send_signal(&process, Signal::KILL).io_context(what);
        }
    }
    match folder.is_alive()? {
        false => Ok(()),
        true => {
            let why =
                format!("{}: its lock is held, and no process that holds it can be seen", folder.path().display());
            Err(Error::new(ErrorKind::Io, why))
        }
    }
}

/// Whether the process has the lock as its standard input.
fn holds(pid: u32, key: (u64, u64)) -> bool {
    std::fs::metadata(format!("/proc/{pid}/fd/0")).is_ok_and(|meta| (meta.dev(), meta.ino()) == key)
}

/// Whether the process that was remembered lives, zombies left out.
pub(super) fn lives(record: &ProcessRecord) -> bool {
    record.boot == boot() && began(record.pid) == Some(record.began)
}

/// When a process began; `None` where it is gone, or only its parent knows it still.
pub(in crate::hypervisor) fn began(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    // Field 22 of proc(5); the state is field 3.
    let began = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(began)
}

/// This boot of the host.
pub(in crate::hypervisor) fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::samples;

    fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
        for _ in 0..6000 {
            if is() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("{what} never came");
    }

    #[test]
    fn a_process_is_found_by_its_lock_whatever_the_record_says_and_its_end_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let vm = samples::name("web");
        let folder = Folder::new(dir.path(), &vm);
        folder.write(&samples::spec("shop", "web")).unwrap();
        kill(&folder).unwrap();
        let (ends, args) = (Ends::default(), [OsString::from("-c"), "echo said >&2; exec sleep 600".into()]);
        spawn(&folder, &vm, Path::new("/bin/sh"), &args, &ends).unwrap();
        let record = folder.process().unwrap();
        assert!(folder.is_alive().unwrap() && lives(&record));
        let session = rustix::process::getsid(Pid::from_raw(record.pid.try_into().unwrap())).unwrap();
        wait_for("its own session", || session.as_raw_nonzero().get() == i32::try_from(record.pid).unwrap());
        wait_for("what it said", || folder.tail(LOG) == "said");
        let again = spawn(&folder, &vm, Path::new("/bin/sh"), &args, &ends).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Refused);

        // A record that names this very process: nothing happens to it.
        let wrong = ProcessRecord { pid: std::process::id(), ..record.clone() };
        folder.note_process(&wrong).unwrap();
        assert!(!lives(&wrong), "it began at another time");
        let own = ProcessRecord { began: began(std::process::id()).unwrap(), ..wrong.clone() };
        assert!(lives(&own) && !lives(&ProcessRecord { boot: "another".into(), ..own }), "numbers are of one boot");
        kill(&folder).unwrap();
        wait_for("its end", || !folder.is_alive().unwrap());
        wait_for("its status", || ends.of(&vm).as_deref() == Some("signal 9"));
        assert!(!lives(&record));
    }

    #[test]
    fn a_process_that_only_its_parent_knows_still_has_ended() {
        let mut child = std::process::Command::new("/bin/cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let began_at = began(child.id()).unwrap();
        let record = ProcessRecord { pid: child.id(), began: began_at, boot: boot(), told: false };
        assert!(lives(&record));
        drop(child.stdin.take());
        wait_for("its end", || !lives(&record));
        assert!(Path::new(&format!("/proc/{}", child.id())).exists(), "nobody has asked how it ended");
        child.wait().unwrap();
    }

    #[test]
    fn what_cannot_be_started_is_said_and_leaves_nothing_locked() {
        let dir = tempfile::tempdir().unwrap();
        let vm = samples::name("web");
        let folder = Folder::new(dir.path(), &vm);
        folder.write(&samples::spec("shop", "web")).unwrap();
        let error = spawn(&folder, &vm, Path::new("/does/not/exist"), &[], &Ends::default()).unwrap_err();
        assert!(error.to_string().contains("/does/not/exist"), "{error}");
        drop(folder.take_lock().unwrap());
    }
}
