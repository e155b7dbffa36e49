//! The audit trail: who did what, when, and how it ended. Bounded: the oldest go first.

use rusqlite::{Connection, Row};

use super::{Catalog, failed, millis, time};
use crate::error::Result;
use crate::ids::Time;

/// Longest text of a detail in bytes; the rest is cut off.
const MOST_DETAIL: usize = 2000;
/// Events between two clearings.
const CLEAR_EVERY: i64 = 64;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct EventRecord {
    /// Its number; 0 before it is written.
    pub(crate) number: u64,
    /// When.
    pub(crate) at: Time,
    /// Who.
    pub(crate) actor: String,
    /// What was asked or done.
    pub(crate) action: String,
    /// What it was about; empty for nothing.
    pub(crate) subject: String,
    /// `ok`, or the word of the error's kind.
    pub(crate) outcome: String,
    /// More.
    pub(crate) detail: String,
}

/// Which events.
#[derive(Debug, Clone, Default)]
pub(crate) struct EventPage {
    /// About this only; `None` for all.
    pub(crate) subject: Option<String>,
    /// Below this number; `None` for the newest.
    pub(crate) before: Option<u64>,
    /// At most so many.
    pub(crate) most: usize,
}

fn read(row: &Row<'_>) -> rusqlite::Result<EventRecord> {
    let (number, at): (i64, i64) = (row.get(0)?, row.get(1)?);
    Ok(EventRecord {
        number: u64::try_from(number).unwrap_or(0),
        at: time(at),
        actor: row.get(2)?,
        action: row.get(3)?,
        subject: row.get(4)?,
        outcome: row.get(5)?,
        detail: row.get(6)?,
    })
}

impl EventRecord {
    /// Newest first.
    pub(crate) fn list(db: &Connection, page: &EventPage) -> Result<Vec<EventRecord>> {
        let sql = "SELECT number, at, actor, action, subject, outcome, detail FROM event
                   WHERE number < ?1 AND (?2 IS NULL OR subject = ?2) ORDER BY number DESC LIMIT ?3";
        let failed = |e| failed("read the events", e);
        let before = page.before.map_or(i64::MAX, |n| i64::try_from(n).unwrap_or(i64::MAX));
        let most = i64::try_from(page.most).unwrap_or(i64::MAX);
        let mut statement = db.prepare_cached(sql).map_err(failed)?;
        let rows = statement.query_map((before, page.subject.as_deref(), most), read);
        rows.and_then(Iterator::collect).map_err(failed)
    }

    fn insert(&self, db: &Connection, keep: u64) -> Result<()> {
        let failed = |e| failed("write an event", e);
        let sql = "INSERT INTO event (at, actor, action, subject, outcome, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let row = (millis(self.at), &self.actor, &self.action, &self.subject, &self.outcome, &self.detail);
        db.execute(sql, row).map_err(failed)?;
        let newest = db.last_insert_rowid();
        if newest % CLEAR_EVERY == 0 {
            let keep = i64::try_from(keep).unwrap_or(i64::MAX);
            db.execute("DELETE FROM event WHERE number <= ?1", [newest.saturating_sub(keep)]).map_err(failed)?;
        }
        Ok(())
    }
}

impl Catalog {
    /// Writes an event, durably.
    pub(crate) async fn note(&self, mut event: EventRecord) -> Result<()> {
        for text in [&mut event.actor, &mut event.action, &mut event.subject, &mut event.detail] {
            cut(text, MOST_DETAIL);
        }
        let keep = self.inner.events_kept;
        self.call(move |db| event.insert(db, keep)).await
    }
}

/// Cuts a text at a character.
pub(crate) fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}
