//! The only place that prints.
//!
//! Standard output carries reports and events, standard error carries errors. A reader that went away is no error: the
//! rest is not printed, and the command goes on to its end.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::json;

use super::report::Report;
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};

/// Prints reports, events and errors, as text or as JSON.
#[derive(Debug, Clone)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Output {
        Output { json }
    }

    /// Whether the operator asked for JSON.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// The result of a command.
    pub(super) fn report(&self, report: &Report) -> Result<()> {
        match self.json {
            // The last of many events is one line, as they are.
            true if report.json().get("event").is_some() => self.event(&report.json(), ""),
            true => self.document(&report.json()),
            false => write_out(&report.text()),
        }
    }

    /// A whole JSON document over several lines.
    fn document(&self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(not_json)?;
        write_out(&[&text, "\n"].concat())
    }

    /// Something that happened while the command runs: one line, `json` or `text`.
    pub(super) fn event(&self, json: &impl Serialize, text: &str) -> Result<()> {
        match self.json {
            true => write_out(&[&serde_json::to_string(json).map_err(not_json)?, "\n"].concat()),
            false => write_out(&[text, "\n"].concat()),
        }
    }

    /// Why the command failed: text on standard error, with `--json` also a document on standard output.
    pub(super) fn error(&self, error: &Error) {
        complain(&format!("error: {error}"));
        if self.json {
            let kind = error.kind();
            let body = json!({ "kind": kind.word(), "message": error.to_string(), "exit_code": kind.exit_code() });
            if let Err(e) = self.document(&json!({ "error": body })) {
                complain(&format!("error: {e}"));
            }
        }
    }
}

/// Whether log lines are JSON objects: then whatever else stands on standard error is one, too.
static JSON_LINES: AtomicBool = AtomicBool::new(false);

/// From now on lines on standard error are JSON objects.
pub(super) fn write_json_lines() {
    JSON_LINES.store(true, Ordering::Relaxed);
}

/// A line on standard error. That it cannot be written is not worth failing for.
pub(super) fn complain(line: &str) {
    let _ = match JSON_LINES.load(Ordering::Relaxed) {
        false => writeln!(io::stderr().lock(), "{line}"),
        true => {
            let now = SystemClock.now().to_string();
            let line = json!({ "timestamp": now, "level": "WARN", "message": line, "target": "freshet::cli" });
            writeln!(io::stderr().lock(), "{line}")
        }
    };
}

/// Asks a question on the terminal; only `yes` is yes. `false` where there is no terminal to ask on.
pub(super) fn confirm(question: &str) -> bool {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return false;
    }
    let mut stderr = io::stderr().lock();
    let asked = write!(stderr, "{question} [yes/no] ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    asked.is_ok() && io::stdin().read_line(&mut answer).is_ok() && answer.trim() == "yes"
}

/// Whether there is somebody to ask.
pub(super) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Whether standard error is read by a person.
pub(super) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Whether a progress bar has a reader: neither of the two is piped.
pub(super) fn is_interactive() -> bool {
    io::stderr().is_terminal() && io::stdout().is_terminal()
}

fn write_out(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| Error::io("write to standard output", e)),
    }
}

fn not_json(e: serde_json::Error) -> Error {
    Error::with_source(ErrorKind::Internal, "put the report into JSON", e)
}
