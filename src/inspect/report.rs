//! What an inspection found, for people and for programs.

use std::fmt::{Display, Write};

use serde_json::{Map, Value, json};

use super::MAX_ENTRIES;

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which part, with its bytes where they are known.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
}

/// What an inspection found.
#[derive(Debug, Clone)]
pub struct InspectReport {
    source: String,
    kind: &'static str,
    len: u64,
    facts: Vec<(&'static str, Value)>,
    list: bool,
    entries: Vec<Value>,
    unlisted: u64,
    problems: Vec<Problem>,
    more_problems: u64,
    verified: &'static str,
}

impl InspectReport {
    /// Nothing found yet in `source`, which is a `kind` of `len` bytes; `list` asks for its entries.
    pub(crate) fn new(source: &str, kind: &'static str, len: u64, list: bool) -> InspectReport {
        InspectReport {
            source: source.to_owned(),
            kind,
            len,
            facts: Vec::new(),
            list,
            entries: Vec::new(),
            unlisted: 0,
            problems: Vec::new(),
            more_problems: 0,
            verified: "every checksum was verified",
        }
    }

    /// What stands behind the word `intact`, where that is not checksums of ours.
    pub(crate) fn verified_by(&mut self, what: &'static str) {
        self.verified = what;
    }

    /// Something that it holds.
    pub(crate) fn fact(&mut self, name: &'static str, value: impl Into<Value>) {
        self.facts.push((name, value.into()));
    }

    /// A fact that is shown as its text.
    pub(crate) fn show(&mut self, name: &'static str, value: impl Display) {
        self.fact(name, value.to_string());
    }

    /// Lists an entry where entries are asked for; `make` runs only then.
    pub(crate) fn entry(&mut self, make: impl FnOnce() -> Value) {
        match self.list && self.entries.len() < MAX_ENTRIES {
            true => self.entries.push(make()),
            false => self.unlisted += u64::from(self.list),
        }
    }

    /// Something is not as it must be.
    pub(crate) fn problem(&mut self, place: impl Into<String>, what: impl Display) {
        match self.problems.len() < MAX_ENTRIES {
            true => self.problems.push(Problem { place: place.into(), what: what.to_string() }),
            false => self.more_problems += 1,
        }
    }

    /// What it is, such as `segment header` for a segment: the name of the format that its magic announces.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Whether everything was verified and is whole.
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty()
    }

    /// What is damaged, and where.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// One value of the report by name.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.facts.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// For programs: `source`, `kind`, `bytes`, `intact`, `facts`, `entries` (with `entries_not_listed`), `problems`.
    pub fn to_json(&self) -> Value {
        let facts: Map<String, Value> = self.facts.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
        let problems: Vec<Value> = self.problems.iter().map(|p| json!({ "place": p.place, "what": p.what })).collect();
        let mut out = json!({
            "source": self.source,
            "kind": self.kind,
            "bytes": self.len,
            "intact": self.is_intact(),
            "facts": facts,
            "problems": problems,
            "problems_not_listed": self.more_problems,
        });
        if let (true, Value::Object(map)) = (self.list, &mut out) {
            map.insert("entries".into(), self.entries.clone().into());
            map.insert("entries_not_listed".into(), self.unlisted.into());
        }
        out
    }

    /// For people: a line for each fact, entry and problem, and a verdict at the end.
    pub fn to_text(&self) -> String {
        let mut out = format!("{}: {}, {} bytes\n", self.source, self.kind, self.len);
        let mut line = |text: std::fmt::Arguments<'_>| {
            out.write_fmt(text).and_then(|()| out.write_char('\n')).expect("writing to a string does not fail");
        };
        for (name, value) in &self.facts {
            line(format_args!("  {:<18} {}", name.replace('_', " "), plain(value)));
        }
        for entry in &self.entries {
            line(format_args!("    {}", plain(entry)));
        }
        if self.unlisted > 0 {
            line(format_args!("    and {} more", self.unlisted));
        }
        for p in &self.problems {
            line(format_args!("  DAMAGED {}: {}", p.place, p.what));
        }
        if self.more_problems > 0 {
            line(format_args!("  DAMAGED and {} more", self.more_problems));
        }
        match self.is_intact() {
            true => line(format_args!("  intact: {}", self.verified)),
            false => line(format_args!("  not intact: do not use what is named above")),
        }
        out
    }
}

/// A value without the quotes and braces of JSON. Text that was read is escaped, so that it cannot steer a terminal.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.escape_debug().to_string(),
        Value::Object(map) => map.iter().map(|(k, v)| format!("{}={}", k, plain(v))).collect::<Vec<_>>().join(" "),
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
