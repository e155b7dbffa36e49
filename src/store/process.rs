//! Which process this is, and whether another one of the same host still lives.
//!
//! A pid alone says little: it is used again, it means something else in another container, and a reboot starts anew.
//! So the host's identity includes the pid namespace, and the start of a process the boot and the tick within it. What
//! cannot be told is answered with [`Presence::Unknown`], and never guessed.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::format::{Author, ProcessIdentity, xxh3_64, xxh3_128};
use crate::ids::WriterId;

/// Whether a writer's process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// It does.
    Alive,
    /// It does not: it can write nothing any more.
    Dead,
    /// It runs, or ran, where this process cannot see it.
    Unknown,
}

/// Writers of this process that were neither finished nor dropped.
static WRITERS: LazyLock<Mutex<HashSet<WriterId>>> = LazyLock::new(Mutex::default);

/// A writer of this process, as long as it exists: a process that lives says nothing of a writer that it gave up.
#[derive(Debug)]
pub(super) struct LocalWriter(WriterId);

impl LocalWriter {
    pub(super) fn register(writer: WriterId) -> LocalWriter {
        WRITERS.lock().unwrap_or_else(PoisonError::into_inner).insert(writer);
        LocalWriter(writer)
    }
}

impl Drop for LocalWriter {
    fn drop(&mut self) {
        WRITERS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// This process.
pub(super) fn current() -> ProcessIdentity {
    let pid = std::process::id();
    let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let machine = ["/etc/machine-id", "/var/lib/dbus/machine-id"].iter().find_map(|p| std::fs::read_to_string(p).ok());
    // Without a machine id the host's name and boot have to do: no two hosts share a boot.
    let machine = machine.unwrap_or_else(|| format!("{host_name} {}", boot()));
    let namespace = std::fs::read_link("/proc/self/ns/pid").map(|l| l.display().to_string()).unwrap_or_default();
    let host = xxh3_128(format!("{}\n{namespace}", machine.trim()).as_bytes()).0;
    ProcessIdentity { host, host_name, pid, started: started(pid).unwrap_or(0) }
}

/// Whether the writer of `author` lives, as seen from the process `here`.
pub(super) fn presence(author: &Author, here: &ProcessIdentity) -> Presence {
    let process = &author.process;
    if process.host != here.host {
        return Presence::Unknown;
    }
    if process == here {
        let writers = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
        return if writers.contains(&author.writer) { Presence::Alive } else { Presence::Dead };
    }
    match started(process.pid) {
        Some(started) if started == process.started => Presence::Alive,
        Some(_) => Presence::Dead,
        None if exists(process.pid) => Presence::Unknown,
        None => Presence::Dead,
    }
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// When process `pid` started, as a hash of boot and tick; `None` where there is none, it is dead but not yet reaped, or
/// its files cannot be read.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): pid (comm) state ... starttime is field 22. The name can hold spaces and parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let (state, ticks) = (fields.first()?, fields.get(19)?);
    if matches!(*state, "Z" | "X" | "x") {
        return None;
    }
    Some(xxh3_64(format!("{} {ticks}", boot().trim()).as_bytes()))
}

/// Whether there is such a process, be it one whose files are hidden from us. A dead one that is not yet reaped is none.
fn exists(pid: u32) -> bool {
    if std::fs::exists(format!("/proc/{pid}/stat")).unwrap_or(false) {
        return false;
    }
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return false };
    !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Name;

    fn author(process: ProcessIdentity) -> Author {
        Author { site: Name::new("P").unwrap(), writer: WriterId::random(), process }
    }

    #[test]
    fn a_process_lives_until_it_ends_even_before_it_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let here = current();
        let process = ProcessIdentity { pid: child.id(), started: started(child.id()).unwrap(), ..here.clone() };
        let other = author(process.clone());
        assert_eq!(presence(&other, &here), Presence::Alive);
        let reused = author(ProcessIdentity { started: process.started ^ 1, ..process.clone() });
        assert_eq!(presence(&reused, &here), Presence::Dead);
        let elsewhere = author(ProcessIdentity { host: [0; 16], ..process });
        assert_eq!(presence(&elsewhere, &here), Presence::Unknown);
        child.kill().unwrap();
        // Not reaped yet: a zombie, after the moment that the signal takes.
        while started(child.id()).is_some() {
            std::thread::yield_now();
        }
        assert_eq!(presence(&other, &here), Presence::Dead);
        child.wait().unwrap();
        assert_eq!(presence(&other, &here), Presence::Dead);
    }

    #[test]
    fn a_writer_of_this_process_lives_as_long_as_it_is_registered() {
        let here = current();
        let own = author(here.clone());
        assert_eq!(presence(&own, &here), Presence::Dead);
        let registered = LocalWriter::register(own.writer);
        assert_eq!(presence(&own, &here), Presence::Alive);
        drop(registered);
        assert_eq!(presence(&own, &here), Presence::Dead);
    }
}
