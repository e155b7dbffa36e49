//! From the text of `freshet.toml` to values that fit the table. Finds everything that is wrong, not only the first.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use toml::{Table, Value};

use super::table::{Kind, SETTINGS, Setting};
use super::{Access, Role, networks};
use crate::hypervisor::QemuNetwork;
use crate::ids::Name;
use crate::quantity::{parse_size, parse_time_span, show_size, show_time_span};

/// Most entries of a list.
const MAX_LIST: usize = 1000;

/// A value that fits its kind and bounds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Read {
    Text(String),
    Paths(Vec<PathBuf>),
    Number(u64),
    Time(Duration),
    Switch(bool),
}

/// What the file says, by name; settings that it leaves out have their default, or are absent where there is none.
#[derive(Debug, Default)]
pub(super) struct Values {
    values: BTreeMap<&'static str, Read>,
    pub(super) access: Vec<Access>,
    pub(super) networks: Vec<QemuNetwork>,
}

impl Values {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.values.get(name) {
            Some(Read::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    pub(super) fn paths(&self, name: &str) -> Vec<PathBuf> {
        match self.values.get(name) {
            Some(Read::Paths(paths)) => paths.clone(),
            _ => Vec::new(),
        }
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        match self.values.get(name) {
            Some(Read::Number(n)) => Some(*n),
            _ => None,
        }
    }

    pub(super) fn time(&self, name: &str) -> Duration {
        match self.values.get(name) {
            Some(Read::Time(time)) => *time,
            _ => Duration::ZERO,
        }
    }

    pub(super) fn switch(&self, name: &str) -> bool {
        matches!(self.values.get(name), Some(Read::Switch(true)))
    }
}

/// Reads `table`; what is wrong goes to `problems`.
pub(super) fn read(mut table: Table, problems: &mut Vec<String>) -> Values {
    let mut out = Values::default();
    if let Some(access) = table.remove("access") {
        out.access = read_access(access, problems);
    }
    if let Some(list) = table.remove("network") {
        out.networks = networks::read(list, problems);
    }
    for setting in SETTINGS {
        let value = match take(&mut table, setting.name) {
            Some(value) => Some(value),
            None if setting.required => {
                problems.push(format!("{}: must be there. {}", setting.name, setting.meaning));
                None
            }
            None => default_of(setting),
        };
        match value.map(|value| judge(setting, &value)) {
            Some(Ok(read)) => {
                out.values.insert(setting.name, read);
            }
            Some(Err(why)) => problems.push(format!("{}: {why}", setting.name)),
            None => {}
        }
    }
    unknown(&table, "", problems);
    out
}

/// Takes `a.b` out of its table, which goes with its last entry.
fn take(table: &mut Table, name: &str) -> Option<Value> {
    match name.split_once('.') {
        None => match table.get(name) {
            Some(Value::Table(_)) | None => None,
            Some(_) => table.remove(name),
        },
        Some((first, rest)) => {
            let inner = table.get_mut(first)?.as_table_mut()?;
            let value = inner.remove(rest);
            if inner.is_empty() {
                table.remove(first);
            }
            value
        }
    }
}

/// The default as it would stand in the file.
fn default_of(setting: &Setting) -> Option<Value> {
    if setting.default.is_empty() {
        return None;
    }
    Some(match setting.kind {
        Kind::Switch => Value::Boolean(setting.default == "true"),
        Kind::Paths => Value::Array(Vec::new()),
        Kind::Count { .. } => Value::Integer(setting.default.parse().unwrap_or_default()),
        _ => Value::String(setting.default.to_owned()),
    })
}

/// Names what is left over.
fn unknown(table: &Table, above: &str, problems: &mut Vec<String>) {
    for (name, value) in table {
        let full = format!("{above}{name}");
        match value {
            Value::Table(inner) if SETTINGS.iter().any(|s| s.name.starts_with(&format!("{full}."))) => {
                unknown(inner, &format!("{full}."), problems);
            }
            _ => problems.push(format!("{full}: is not known; `freshet config example` shows what is")),
        }
    }
}

fn judge(setting: &Setting, value: &Value) -> Result<Read, String> {
    let text = || value.as_str().ok_or_else(|| format!("is {}, must be text", value.type_str()));
    let path = |text: &str| match text.starts_with('/') && !text.contains('\0') {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not an absolute path")),
    };
    match setting.kind {
        Kind::Name => {
            let text = text()?;
            Name::new(text).map(|_| Read::Text(text.to_owned())).map_err(|e| e.to_string())
        }
        Kind::Path => path(text()?).map(Read::Text),
        Kind::Paths => {
            let list = value.as_array().ok_or_else(|| format!("is {}, must be a list", value.type_str()))?;
            if list.len() > MAX_LIST {
                return Err(format!("has {} entries, at most {MAX_LIST} are taken", list.len()));
            }
            let paths = list.iter().map(|one| {
                let one = one.as_str().ok_or_else(|| format!("{one} is {}, must be text", one.type_str()))?;
                path(one).map(PathBuf::from)
            });
            paths.collect::<Result<_, _>>().map(Read::Paths)
        }
        Kind::Address => {
            let text = text()?;
            let good = text.rsplit_once(':').is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok());
            match good {
                true => Ok(Read::Text(text.to_owned())),
                false => Err(format!("{text:?} is not host:port, such as 127.0.0.1:7443")),
            }
        }
        Kind::Size { least, most } => {
            let n = match value {
                Value::Integer(n) => u64::try_from(*n).map_err(|_| format!("is {n}, must not be below zero"))?,
                _ => parse_size(text()?)?,
            };
            within(n, least, most, show_size).map(Read::Number)
        }
        Kind::Time { least, most } => {
            let time = parse_time_span(text()?)?;
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            within(millis, least, most, show_time_span).map(|_| Read::Time(time))
        }
        Kind::Count { least, most } => {
            let n = value.as_integer().ok_or_else(|| format!("is {}, must be a whole number", value.type_str()))?;
            let n = u64::try_from(n).map_err(|_| format!("is {n}, must be {least} to {most}"))?;
            within(n, least, most, |n| n.to_string()).map(Read::Number)
        }
        Kind::Switch => match value.as_bool() {
            Some(on) => Ok(Read::Switch(on)),
            None => Err(format!("is {}, must be true or false", value.type_str())),
        },
        Kind::Word(words) => {
            let text = text()?;
            match words.contains(&text) {
                true => Ok(Read::Text(text.to_owned())),
                false => Err(format!("is {text:?}, must be one of {}", words.join(", "))),
            }
        }
    }
}

fn within(n: u64, least: u64, most: u64, show: impl Fn(u64) -> String) -> Result<u64, String> {
    match (least..=most).contains(&n) {
        true => Ok(n),
        false => Err(format!("is {}, must be {} to {}", show(n), show(least), show(most))),
    }
}

/// The list `[[access]]`.
fn read_access(value: Value, problems: &mut Vec<String>) -> Vec<Access> {
    let Value::Array(list) = value else {
        problems.push("access: must be a list of tables, each headed [[access]]".to_owned());
        return Vec::new();
    };
    if list.len() > MAX_LIST {
        problems.push(format!("access: has {} entries, at most {MAX_LIST} are taken", list.len()));
        return Vec::new();
    }
    let mut out: Vec<Access> = Vec::new();
    for (i, entry) in list.into_iter().enumerate() {
        let here = format!("access {}", i + 1);
        let Value::Table(mut entry) = entry else {
            problems.push(format!("{here}: must be a table with subject and role"));
            continue;
        };
        let mut text = |name: &str| match entry.remove(name) {
            Some(Value::String(text)) if !text.is_empty() => Some(text),
            _ => {
                problems.push(format!("{here}: {name} must be there and be text"));
                None
            }
        };
        let (subject, role) = (text("subject"), text("role"));
        problems.extend(entry.keys().map(|name| format!("{here}: {name} is not known; known are subject and role")));
        let (Some(subject), Some(role)) = (subject, role) else { continue };
        let Some(role) = Role::from_word(&role) else {
            problems.push(format!("{here}: role is {role:?}, must be viewer, operator or admin"));
            continue;
        };
        if out.iter().any(|known| known.subject == subject) {
            problems.push(format!("{here}: {subject:?} has a role already"));
            continue;
        }
        out.push(Access { subject, role });
    }
    out
}
