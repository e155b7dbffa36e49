//! Runbooks of the catalog: text with a revision, so that two operators do not overwrite each other unseen.

use rusqlite::{Connection, OptionalExtension};

use super::{failed, millis, time};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Name, Time};

/// Which of a domain's two runbooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RunbookKind {
    /// For a failover to this site.
    Failover,
    /// For a failback to this site.
    Failback,
}

impl RunbookKind {
    /// One word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            RunbookKind::Failover => "failover",
            RunbookKind::Failback => "failback",
        }
    }
}

/// A runbook as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunbookRecord {
    /// TOML.
    pub(crate) text: String,
    /// Grows with each change.
    pub(crate) revision: u64,
    /// When it was set.
    pub(crate) changed: Time,
    /// Who set it.
    pub(crate) changed_by: String,
}

impl RunbookRecord {
    /// The one of a domain; `None` where none was set.
    pub(crate) fn find(db: &Connection, domain: &Name, kind: RunbookKind) -> Result<Option<RunbookRecord>> {
        let sql = "SELECT text, revision, changed, changed_by FROM runbook WHERE domain = ?1 AND kind = ?2";
        let read = |row: &rusqlite::Row<'_>| {
            let (revision, changed): (i64, i64) = (row.get(1)?, row.get(2)?);
            let revision = u64::try_from(revision).unwrap_or(0);
            Ok(RunbookRecord { text: row.get(0)?, revision, changed: time(changed), changed_by: row.get(3)? })
        };
        let row = db.query_row(sql, (domain.as_str(), kind.word()), read).optional();
        row.map_err(|e| failed("read a runbook", e))
    }

    /// Sets it where its revision is `expected`, or whatever it is. The same text again changes nothing.
    ///
    /// # Errors
    /// `Refused` where somebody changed it since.
    pub(crate) fn set(
        db: &Connection,
        domain: &Name,
        kind: RunbookKind,
        expected: Option<u64>,
        new: (String, Time, String),
    ) -> Result<RunbookRecord> {
        let (text, changed, changed_by) = new;
        let there = RunbookRecord::find(db, domain, kind)?;
        if let Some(same) = there.clone().filter(|there| there.text == text) {
            return Ok(same);
        }
        let now = there.as_ref().map_or(0, |there| there.revision);
        if let (Some(expected), Some(there)) = (expected.filter(|expected| *expected != now), &there) {
            let word = kind.word();
            let why = format!("{} changed the {word} runbook of {domain} at {}", there.changed_by, there.changed);
            let why = format!("{why}: its revision is {now}, not {expected}");
            return Err(Error::new(ErrorKind::Refused, format!("{why}; read it again")));
        }
        let record = RunbookRecord { text, revision: now + 1, changed, changed_by };
        let sql =
            "INSERT INTO runbook (domain, kind, text, revision, changed, changed_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                   ON CONFLICT (domain, kind) DO UPDATE SET text = excluded.text, revision = excluded.revision,
                   changed = excluded.changed, changed_by = excluded.changed_by";
        let revision = i64::try_from(record.revision).unwrap_or(i64::MAX);
        let (at, by) = (millis(record.changed), &record.changed_by);
        let row = (domain.as_str(), kind.word(), &record.text, revision, at, by);
        db.execute(sql, row).map_err(|e| failed("write a runbook", e))?;
        Ok(record)
    }
}
