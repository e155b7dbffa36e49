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

impl Catalog {
    /// Lets go of the oldest of the tasks `ended`, so that `keep` of them stay. Tasks of version 7 sort by their age.
    pub(crate) async fn forget_tasks(&self, mut ended: Vec<TaskId>, keep: u64) -> Result<usize> {
        ended.sort_unstable();
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        ended.truncate(ended.len().saturating_sub(keep));
        self.call(move |db| {
            for task in &ended {
                for sql in ["DELETE FROM journal WHERE task = ?1", "DELETE FROM request WHERE task = ?1"] {
                    db.execute(sql, [task.to_string()]).map_err(|e| failed("clear the journal", e))?;
                }
            }
            Ok(ended.len())
        })
        .await
    }

    /// The task that a request id was used for; `None` where it was not.
    ///
    /// # Errors
    /// `Refused` where it was used for another request.
    pub(crate) async fn task_of_request(&self, request: &str, digest: &str) -> Result<Option<TaskId>> {
        let (request, digest) = (request.to_owned(), digest.to_owned());
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

    /// Notes what a request id was used for.
    pub(crate) async fn note_request(
        &self,
        request: &str,
        digest: &str,
        task: TaskId,
        at: crate::ids::Time,
    ) -> Result<()> {
        let (request, digest) = (request.to_owned(), digest.to_owned());
        self.call(move |db| {
            let sql = "INSERT INTO request (id, task, digest, at) VALUES (?1, ?2, ?3, ?4)";
            db.execute(sql, (&request, task.to_string(), &digest, millis(at)))
                .map_err(|e| failed("write a request", e))?;
            Ok(())
        })
        .await
    }
}
