//! What happened to tasks, one line of text each: [`Journal`] on the catalog.
//!
//! Invariant: numbers of a task follow each other from 1; an entry that was acknowledged is durable and never changed.

use rusqlite::OptionalExtension;

use super::{Catalog, damaged, failed, millis};
use crate::error::{Error, ErrorKind, Result};
use crate::failover::{Entry, Journal, TaskId};

impl Journal for Catalog {
    fn append(&self, task: TaskId, entry: &Entry) -> Result<u64> {
        let text = entry.to_text()?;
        let (id, n, at) = (task.to_string(), i64::try_from(entry.n).unwrap_or(i64::MAX), millis(entry.at));
        let wrong =
            |why: &str| Err(Error::new(ErrorKind::Internal, format!("task {task}: entry {n} of its journal {why}")));
        self.call_blocking(|db| {
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
            db.execute("INSERT INTO journal (task, n, at, entry) VALUES (?1, ?2, ?3, ?4)", (&id, n, at, &text))
                .map_err(failed)?;
            Ok(entry.n)
        })
    }

    fn load(&self) -> Result<Vec<(TaskId, Entry)>> {
        self.call_blocking(|db| {
            let failed = |e| failed("read the journal", e);
            let mut statement = db.prepare("SELECT task, entry FROM journal ORDER BY task, n").map_err(failed)?;
            let mut rows = statement.query([]).map_err(failed)?;
            let mut out = Vec::new();
            while let Some(row) = rows.next().map_err(failed)? {
                let (id, text): (String, String) = (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
                let id = TaskId::parse(&id).ok_or_else(|| damaged(&format!("{id:?} is no task")))?;
                out.push((id, Entry::from_text(&text)?));
            }
            Ok(out)
        })
    }
}
