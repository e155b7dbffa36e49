//! The result of a command, ready to be shown as text or as JSON.

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, ErrorKind, Result};

/// See the module.
#[derive(Debug)]
pub(super) struct Report {
    json: Value,
    text: String,
    verbatim: bool,
    incomplete: Option<String>,
}

impl Report {
    /// A report with its two forms.
    pub(super) fn new(json: &impl Serialize, text: impl Into<String>) -> Result<Report> {
        let json = serde_json::to_value(json)
            .map_err(|e| Error::with_source(ErrorKind::Internal, "put the report into JSON", e))?;
        Ok(Report { json, text: text.into(), verbatim: false, incomplete: None })
    }

    /// Its text is somebody's file: it is printed as it is, to the byte.
    pub(super) fn verbatim(mut self) -> Report {
        self.verbatim = true;
        self
    }

    /// The work is done except for what `why` names: shown on standard error, and the exit code says so.
    pub(super) fn incomplete(mut self, why: Option<String>) -> Report {
        self.incomplete = why;
        self
    }

    /// For `--json`: the document, with `complete` in it where it is an object.
    pub(super) fn json(&self) -> Value {
        let mut json = self.json.clone();
        if let Value::Object(map) = &mut json {
            map.insert("complete".into(), self.incomplete.is_none().into());
        }
        json
    }

    /// For people: as it is where it is somebody's file, else with one end of line behind it, if anything is said.
    pub(super) fn text(&self) -> String {
        match (self.verbatim, self.text.as_str()) {
            (true, text) => text.to_owned(),
            (false, "") => String::new(),
            (false, text) => [text.trim_end(), "\n"].concat(),
        }
    }

    /// Why something is missing, if so.
    pub(super) fn why_incomplete(&self) -> Option<&str> {
        self.incomplete.as_deref()
    }
}
