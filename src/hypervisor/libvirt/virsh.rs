//! Running `virsh`: one process for each call, bounded in time and output, and what its errors mean.
//!
//! VMs are named to it by their UUIDs alone: a name that is a number would be taken for an identity of a running guest.

use std::collections::BTreeMap;
use std::time::Duration;

use super::LibvirtSettings;
use crate::error::{Error, ErrorKind, Result};
use crate::hypervisor::RunCommand;
use crate::ids::Name;

/// Most bytes of an answer.
const MAX_ANSWER: usize = 64 << 20;
/// Most bytes of error output that are shown.
const MAX_ERRORS: usize = 4096;
/// Verbs that say what they did, which they do not where they are to be quiet.
const TELLING: [&str; 1] = ["domfsfreeze"];
/// Variables that say where a user's own libvirt is.
const KEPT_VARIABLES: [&str; 4] = ["HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"];
/// What is told of a URI that is none of libvirt's.
const WRONG_URI: [&str; 5] = [
    "no connection driver available",
    "failed to parse",
    "unknown driver",
    "nable to parse URI",
    "transport in URL not recognised",
];
/// What is told where the daemon does not answer, or went away.
const AWAY: [&str; 9] = [
    "failed to connect to the hypervisor",
    "Failed to connect socket",
    "End of file while reading data",
    "Cannot recv data",
    "Cannot write data",
    "client socket is closed",
    "Connection reset by peer",
    "no keepalive messages",
    "cannot acquire state change lock",
];
const MISSING: [&str; 7] = [
    "failed to get domain",
    "Domain not found",
    "no domain with matching",
    "domain not found",
    "Storage pool not found",
    "Storage volume not found",
    "Network not found",
];
const DENIED: [&str; 3] = ["authentication failed", "access denied", "Permission denied"];

/// One VM as the hypervisor lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) uuid: String,
    pub(super) name: Name,
    /// It has a process, whatever that does.
    pub(super) active: bool,
    /// Its memory is saved, to be gone on with at its next start.
    pub(super) saved: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Virsh {
    pub(super) settings: LibvirtSettings,
}

impl Virsh {
    /// The command with its arguments, as `RunCommand` takes it.
    pub(super) fn command(&self, arguments: &[&str]) -> (Vec<String>, BTreeMap<String, String>) {
        let quiet = if arguments.first().is_some_and(|verb| TELLING.contains(verb)) { None } else { Some("-q") };
        let words = ["virsh"].into_iter().chain(quiet).chain(["-k", "5", "-K", "3", "-c"]);
        let mut command: Vec<String> = words.map(str::to_owned).collect();
        command.push(self.settings.uri.clone());
        command.extend(arguments.iter().map(|word| (*word).to_owned()));
        let kept = KEPT_VARIABLES.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
        let mut environment: BTreeMap<String, String> = kept.collect();
        environment.insert("LC_ALL".to_owned(), "C".to_owned());
        (command, environment)
    }

    /// Runs it, and answers with its output.
    ///
    /// # Errors
    /// As its error output says; see [`kind_of`].
    pub(super) async fn ask(&self, arguments: &[&str]) -> Result<String> {
        self.tell(arguments, String::new(), Duration::ZERO).await
    }

    /// The same with what it reads, and more time.
    ///
    /// # Errors
    /// As [`Virsh::ask`].
    pub(super) async fn tell(&self, arguments: &[&str], input: String, more_time: Duration) -> Result<String> {
        let verb = arguments.first().copied().unwrap_or_default().split_whitespace().next().unwrap_or_default();
        let what = || format!("virsh {verb} at {}", self.settings.uri);
        let limit = self.settings.limit + more_time;
        let (command, environment) = self.command(arguments);
        let (input, max_output, max_errors) = (input.into_bytes(), MAX_ANSWER, MAX_ERRORS);
        let end = RunCommand { command, environment, input, limit, max_output, max_errors }.run().await;
        let end = end.map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                Error::new(ErrorKind::Unsupported, "there is no virsh here: install libvirt's clients")
            }
            _ => e.while_doing(what()),
        })?;
        let said = String::from_utf8_lossy(&end.errors);
        let said = said.trim();
        if end.timed_out {
            let why = format!("{}: no answer within {} s", what(), limit.as_secs());
            return Err(Error::new(ErrorKind::Unreachable, why));
        }
        // Of several commands in one call only the last one's end is told by the exit code.
        if end.code != Some(0) || said.starts_with("error:") || said.contains("\nerror:") {
            return Err(Error::new(kind_of(said), format!("{}: {}", what(), shown(said))));
        }
        if end.output_cut {
            let why = format!("{}: its answer is longer than {MAX_ANSWER} bytes", what());
            return Err(Error::new(ErrorKind::Damaged, why));
        }
        String::from_utf8(end.output).map_err(|e| Error::with_source(ErrorKind::Damaged, what(), e))
    }

    /// All VMs.
    ///
    /// # Errors
    /// As [`Virsh::ask`].
    pub(super) async fn list(&self) -> Result<Vec<Listed>> {
        let mark = mark();
        let commands = format!(
            "list --all --uuid --name; echo {mark}; list --inactive --uuid; echo {mark}; list --all --with-managed-save --uuid"
        );
        parse_list(&self.ask(&[&commands]).await?, &mark)
    }

    /// The VM of this name.
    ///
    /// # Errors
    /// As [`Virsh::ask`].
    pub(super) async fn find(&self, vm: &Name) -> Result<Option<Listed>> {
        Ok(self.list().await?.into_iter().find(|listed| listed.name == *vm))
    }

    /// The same, where it must be there.
    ///
    /// # Errors
    /// `NotFound`; as [`Virsh::ask`].
    pub(super) async fn must_find(&self, vm: &Name) -> Result<Listed> {
        let missing = || Error::new(ErrorKind::NotFound, format!("libvirt at {} has no VM {vm}", self.settings.uri));
        self.find(vm).await?.ok_or_else(missing)
    }
}

/// What stands between the answers of commands that share a call: nothing that they write themselves.
pub(super) fn mark() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn parse_list(text: &str, mark: &str) -> Result<Vec<Listed>> {
    let damaged = |line: &str| Error::new(ErrorKind::Damaged, format!("virsh list says {line:?}, which is no VM"));
    let mut parts = text.split(mark);
    let named = parts.next().unwrap_or_default();
    let uuids = |part: Option<&str>| -> Vec<String> {
        part.unwrap_or_default().lines().map(|line| line.trim().to_owned()).collect()
    };
    let (inactive, saved) = (uuids(parts.next()), uuids(parts.next()));
    let vm = |line: &str| {
        let (uuid, name) = line.split_once(char::is_whitespace).ok_or_else(|| damaged(line))?;
        if uuid::Uuid::parse_str(uuid).is_err() {
            return Err(damaged(line));
        }
        // A name that is none of ours cannot be that of a VM of ours.
        let Ok(name) = Name::new(name.trim()) else { return Ok(None) };
        let uuid = uuid.to_owned();
        Ok(Some(Listed { active: !inactive.contains(&uuid), saved: saved.contains(&uuid), uuid, name }))
    };
    let lines = named.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.filter_map(|line| vm(line).transpose()).collect()
}

/// Without the word that stands before each line.
fn shown(said: &str) -> String {
    let lines = said.lines().map(|line| line.trim_start_matches("error:").trim()).filter(|line| !line.is_empty());
    let text = lines.collect::<Vec<_>>().join(": ");
    if text.is_empty() { "it fails and says nothing".to_owned() } else { text }
}

/// What the caller must do, by what virsh says in English.
pub(super) fn kind_of(said: &str) -> ErrorKind {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    // The wrong URI is told as a connection that fails, and no waiting helps.
    match () {
        () if has(&WRONG_URI) => ErrorKind::Invalid,
        () if has(&DENIED) => ErrorKind::Denied,
        () if has(&AWAY) => ErrorKind::Unreachable,
        () if has(&MISSING) => ErrorKind::NotFound,
        () if has(&["No space left on device"]) => ErrorKind::Full,
        () if has(&["XML error", "unsupported configuration", "invalid argument"]) => ErrorKind::Invalid,
        () if has(&["Requested operation is not valid", "operation failed"]) => ErrorKind::Refused,
        () => ErrorKind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_to_tell_what_it_did_is_not_quiet() {
        let (limit, poll) = (Duration::from_secs(1), Duration::from_secs(1));
        let settings = LibvirtSettings { uri: "x".into(), limit, poll, exports: "/".into(), seeds: "/".into() };
        let virsh = Virsh { settings };
        assert_eq!(virsh.command(&["list"]).0, ["virsh", "-q", "-k", "5", "-K", "3", "-c", "x", "list"]);
        assert!(!virsh.command(&["domfsfreeze", "a"]).0.contains(&"-q".to_owned()));
    }

    #[test]
    fn a_list_is_understood() {
        let a = "f533f2eb-2309-4183-9f90-9761e03d3c25";
        let b = "0533f2eb-2309-4183-9f90-9761e03d3c25";
        let text = format!("{a} web 1   \n{b} 7\n==={b}\n==={b}\n");
        let list = parse_list(&text, "===").unwrap();
        assert_eq!((list[0].name.as_str(), list[0].active, list[0].saved), ("web 1", true, false));
        assert_eq!((list[1].name.as_str(), list[1].active, list[1].saved), ("7", false, true));
        assert_eq!(parse_list("======", "===").unwrap(), []);
        assert_eq!(parse_list("what\n", "===").unwrap_err().kind(), ErrorKind::Damaged);
    }

    #[test]
    fn what_is_said_becomes_what_to_do() {
        for (said, kind) in [
            (
                "error: failed to connect to the hypervisor\nerror: no connection driver available for foo:///x",
                ErrorKind::Invalid,
            ),
            (
                "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/x'",
                ErrorKind::Unreachable,
            ),
            ("error: failed to get domain 'x'", ErrorKind::NotFound),
            ("error: failed to get pool 'x'\nerror: Storage pool not found: no storage pool 'x'", ErrorKind::NotFound),
            (
                "error: failed to connect to the hypervisor\nerror: internal error: Unable to parse URI ::",
                ErrorKind::Invalid,
            ),
            ("error: XML error: no", ErrorKind::Invalid),
            ("error: Requested operation is not valid: domain is not running", ErrorKind::Refused),
            ("", ErrorKind::Io),
        ] {
            assert_eq!(kind_of(said), kind, "{said}");
        }
        assert_eq!(shown("error: a\nerror: b\n"), "a: b");
    }
}
