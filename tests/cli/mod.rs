//! One file for each group of cases; what they share is here.

mod continuous;
mod more;
mod places;
mod signals;
mod sites;
mod strangers;
mod usage;
mod whole;

use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

/// The binary, with an environment that holds nothing of the machine's own settings.
pub(crate) fn freshet() -> Command {
    let mut command = Command::cargo_bin("freshet").unwrap();
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["AWS_", "AZURE_", "GOOGLE_", "RUST_LOG"].iter().any(|p| name.starts_with(p)) {
            command.env_remove(name);
        }
    }
    command.timeout(std::time::Duration::from_secs(120));
    command
}

/// How one run ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// The one JSON document on standard output.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not one JSON document ({e}): {self:?}"))
    }
}

/// Runs `freshet` to its end.
pub(crate) fn run(args: &[&str]) -> Ran {
    ran(freshet().args(args))
}

/// Runs `command` to its end.
pub(crate) fn ran(command: &mut Command) -> Ran {
    let out = command.output().unwrap();
    Ran {
        code: out.status.code().expect("ended by itself, not by a signal"),
        stdout: String::from_utf8(out.stdout).unwrap(),
        stderr: String::from_utf8(out.stderr).unwrap(),
    }
}

/// The URL of a directory.
pub(crate) fn file_url(dir: &Path) -> String {
    format!("file://{}", dir.display())
}
