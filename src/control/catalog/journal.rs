//! What happened to tasks, one line of text each: [`Journal`] on the catalog.
//!
//! Invariants: numbers of a task follow each other from 1; an entry that was acknowledged is durable and never changed; a
//! request id is kept with the first entry of its task, in one transaction.

use std::collections::BTreeMap;

use rusqlite::OptionalExtension;

use super::{Catalog, damaged, failed, millis, time};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::failover::{Abandoned, Entry, Journal, Kept, Once, TaskId, began_another};
use crate::ids::Time;

impl Journal for Catalog {
    fn append(&self, task: TaskId, entry: &Entry) -> Result<u64> {
        let text = entry.to_text()?;
        self.call_blocking(|db| append(db, task, entry, &text))
    }

    fn begin(&self, task: TaskId, entry: &Entry, once: &Once) -> Result<u64> {
        let text = entry.to_text()?;
        self.call_blocking(|db| {
            let n = append(db, task, entry, &text)?;
            note_request(db, once, task, entry.at)?;
            Ok(n)
        })
    }

    fn load(&self) -> Result<Kept> {
        self.call_blocking(|db| Ok(Kept { entries: entries(db)?, abandoned: abandoned(db)? }))
    }

    fn abandon(&self, task: TaskId, abandoned: &Abandoned) -> Result<()> {
        let row = (task.to_string(), millis(abandoned.at), abandoned.actor.clone(), abandoned.why.clone());
        self.call_blocking(|db| {
            let sql = "INSERT INTO abandoned (task, at, actor, why) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING";
            db.execute(sql, row).map(drop).map_err(|e| failed("write that a task was given up", e))
        })
    }
}

fn append(db: &rusqlite::Connection, task: TaskId, entry: &Entry, text: &str) -> Result<u64> {
    let (id, n, at) = (task.to_string(), i64::try_from(entry.n).unwrap_or(i64::MAX), millis(entry.at));
    let wrong =
        |why: &str| Err(Error::new(ErrorKind::Internal, format!("task {task}: entry {n} of its journal {why}")));
    let failed = |e| failed("write the journal", e);
    let there: Option<String> = db
        .query_row("SELECT entry FROM journal WHERE task = ?1 AND n = ?2", (&id, n), |row| row.get(0))
        .optional()
        .map_err(failed)?;
    if let Some(there) = there {
        return if there == text { Ok(entry.n) } else { wrong("is another one") };
    }
    let last: i64 = db
        .query_row("SELECT coalesce(max(n), 0) FROM journal WHERE task = ?1", [&id], |row| row.get(0))
        .map_err(failed)?;
    if n != last + 1 {
        return wrong(&format!("does not follow the last, which is {last}"));
    }
    db.execute("INSERT INTO journal (task, n, at, entry) VALUES (?1, ?2, ?3, ?4)", (&id, n, at, text))
        .map_err(failed)?;
    Ok(entry.n)
}

/// Notes which task a request began.
fn note_request(db: &rusqlite::Connection, once: &Once, task: TaskId, at: Time) -> Result<()> {
    let failed = |e| failed("write a request", e);
    let before: Option<String> = db
        .query_row("SELECT task FROM request WHERE id = ?1", [&once.id], |row| row.get(0))
        .optional()
        .map_err(failed)?;
    match before {
        Some(before) if before == task.to_string() => Ok(()),
        Some(_) => Err(began_another(once)),
        None => {
            let sql = "INSERT INTO request (id, task, digest, at) VALUES (?1, ?2, ?3, ?4)";
            let row = (&once.id, task.to_string(), &once.digest, millis(at));
            db.execute(sql, row).map(drop).map_err(failed)
        }
    }
}

/// All entries, by task and number. One whose number is not the next is an error in its place, as is one that is none.
pub(super) fn entries(db: &rusqlite::Connection) -> Result<Vec<(TaskId, Result<Entry>)>> {
    let failed = |e| failed("read the journal", e);
    let mut statement = db.prepare("SELECT task, n, entry FROM journal ORDER BY task, n").map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    let mut out: Vec<(TaskId, Result<Entry>)> = Vec::new();
    let mut expected = 1;
    while let Some(row) = rows.next().map_err(failed)? {
        let (id, n): (String, i64) = (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
        let id = TaskId::parse(&id).ok_or_else(|| damaged(&format!("{id:?} is no task")))?;
        if out.last().is_none_or(|(last, _)| *last != id) {
            expected = 1;
        }
        let text = row.get_ref(2).map_err(failed)?.as_bytes().unwrap_or_default();
        out.push((id, entry(text, n, expected)));
        expected = n.saturating_add(1);
    }
    Ok(out)
}

/// The `n`-th entry of a task, which is to be number `expected`.
fn entry(text: &[u8], n: i64, expected: i64) -> Result<Entry> {
    let bad = |why: String| Err(Error::new(ErrorKind::Damaged, format!("entry {n} of the journal {why}")));
    if n != expected {
        return bad(format!("is there, and entry {expected} is missing"));
    }
    let Ok(text) = std::str::from_utf8(text) else { return bad("is no text".to_owned()) };
    let entry = Entry::from_text(text).while_doing(|| format!("number {n}"))?;
    match u64::try_from(n) == Ok(entry.n) {
        true => Ok(entry),
        false => bad(format!("says that it is number {}", entry.n)),
    }
}

/// Tasks that were given up.
pub(super) fn abandoned(db: &rusqlite::Connection) -> Result<BTreeMap<TaskId, Abandoned>> {
    let failed = |e| failed("read which tasks were given up", e);
    let mut statement = db.prepare("SELECT task, at, actor, why FROM abandoned").map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    let mut out = BTreeMap::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let id: String = row.get(0).map_err(failed)?;
        let id = TaskId::parse(&id).ok_or_else(|| damaged(&format!("{id:?} is no task")))?;
        let (actor, why) = (row.get(2).map_err(failed)?, row.get(3).map_err(failed)?);
        out.insert(id, Abandoned { at: time(row.get(1).map_err(failed)?), actor, why });
    }
    Ok(out)
}

impl Catalog {
    /// Lets go of the oldest of the tasks `ended`, so that `keep` of them stay. Tasks of version 7 sort by their age.
    pub(crate) async fn forget_tasks(&self, mut ended: Vec<TaskId>, keep: u64) -> Result<usize> {
        ended.sort_unstable();
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        ended.truncate(ended.len().saturating_sub(keep));
        self.call(move |db| {
            for task in &ended {
                for sql in [
                    "DELETE FROM journal WHERE task = ?1",
                    "DELETE FROM request WHERE task = ?1",
                    "DELETE FROM abandoned WHERE task = ?1",
                ] {
                    db.execute(sql, [task.to_string()]).map_err(|e| failed("clear the journal", e))?;
                }
            }
            Ok(ended.len())
        })
        .await
    }

    /// The task that a request began; `None` where it began none.
    ///
    /// # Errors
    /// `Refused` where its id was used for another request.
    pub(crate) async fn task_of_request(&self, once: &Once) -> Result<Option<TaskId>> {
        let Once { id: request, digest } = once.clone();
        self.call(move |db| {
            let sql = "SELECT task, digest FROM request WHERE id = ?1";
            let found: Option<(String, String)> = db
                .query_row(sql, [&request], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
                .map_err(|e| failed("read the requests", e))?;
            match found {
                Some((_, other)) if other != digest => {
                    Err(Error::new(ErrorKind::Refused, format!("request id {request} was used for another request")))
                }
                Some((task, _)) => Ok(TaskId::parse(&task)),
                None => Ok(None),
            }
        })
        .await
    }
}
