//! The catalog: what an appliance knows of its site, in one SQLite database that an operator can read.
//!
//! ```text
//! services, hosting, engine --call(closure)--> a blocking thread --one connection--> catalog.sqlite3 (WAL, synchronous=FULL)
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `schema` | tables, versions, the refusal of newer ones |
//! | `stores`, `domains`, `disks`, `runbooks` | records by those names |
//! | `definitions` | definitions of protected VMs: the one that travels, and what others are compared with |
//! | `moving` | VMs whose disks are being moved |
//! | `astray` | VMs whose guests ran on other disks than those that are served |
//! | `journal` | what happened to tasks |
//! | `inspect` | looking at the file without an appliance |
//! | `events` | who did what, when, and how it ended |
//!
//! It never holds a secret: credentials are named by files and the environment. The hot path never touches it, and a lost
//! one costs no data: domains are in the store, and are imported anew. Invariants: what a call answered is durable; one
//! process has it at a time.

mod astray;
mod definitions;
mod disks;
mod domains;
mod events;
mod inspect;
mod journal;
mod moving;
mod recoveries;
mod runbooks;
mod schema;
mod stores;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension};

use crate::datastore::DirLock;
use crate::error::{Error, ErrorKind, IoResultExt, Result, ResultExt};
use crate::ids::{Name, Time};

pub(crate) use astray::{astray, stray, unstray};
pub(crate) use definitions::{before, redefine, seen, set_before, set_seen};
pub(crate) use disks::{domains_of, protect, protected, protected_domains, unprotect, unprotect_disk};
pub(crate) use domains::{DomainRecord, Origin};
pub(crate) use events::cut;
pub(crate) use events::{EventPage, EventRecord};
pub use inspect::inspect_catalog;
pub(crate) use moving::Moving;
pub(crate) use recoveries::{Recovery, park, parked, unpark};
pub(crate) use runbooks::{RunbookKind, RunbookRecord};
pub(crate) use stores::StoreRecord;

/// Name of the database in its directory.
const FILE: &str = "catalog.sqlite3";
/// Longest wait for others who read the file, such as an operator's `sqlite3`.
const BUSY: Duration = Duration::from_secs(5);

/// See the module. Clones share it.
#[derive(Clone)]
pub(crate) struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    db: Mutex<Connection>,
    path: PathBuf,
    id: String,
    is_new: bool,
    events_kept: u64,
    _lock: DirLock,
}

impl Catalog {
    /// Opens the catalog in `dir`, or makes it there. Blocks.
    ///
    /// # Errors
    /// `Refused` where another process has it, it is another site's or no catalog; `Unsupported` for a newer one;
    /// `Damaged`; what the file system says. The file is left as it is then.
    pub(crate) fn open(dir: &Path, site: &Name, now: Time, events_kept: u64) -> Result<Catalog> {
        std::fs::create_dir_all(dir).io_context(|| format!("make {}", dir.display()))?;
        let lock = DirLock::take(dir)?;
        let path = dir.join(FILE);
        let opened = prepare(&path, site, now);
        let (db, id, is_new) = opened.while_doing(|| format!("catalog {}", path.display()))?;
        Ok(Catalog { inner: Arc::new(Inner { db: Mutex::new(db), path, id, is_new, events_kept, _lock: lock }) })
    }

    /// The file.
    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Identity, drawn when it was made.
    pub(crate) fn id(&self) -> &str {
        &self.inner.id
    }

    /// Whether this start made it: nothing is known, not even what was known before.
    pub(crate) fn is_new(&self) -> bool {
        self.inner.is_new
    }

    /// Version of its schema.
    pub(crate) fn version(&self) -> u32 {
        schema::VERSION
    }

    /// Does `work` in one transaction, off the asynchronous threads; what it changed is durable when this answers.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let catalog = self.clone();
        let done = tokio::task::spawn_blocking(move || catalog.call_blocking(work)).await;
        done.map_err(|e| Error::with_source(ErrorKind::Internal, "a call to the catalog panicked", e))?
    }

    /// The same, for callers that may block.
    pub(crate) fn call_blocking<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let mut db = self.inner.db.lock().unwrap_or_else(PoisonError::into_inner);
        let context = || format!("catalog {}", self.inner.path.display());
        let change = db.transaction().map_err(|e| failed("begin", e)).while_doing(context)?;
        // Dropped without a commit it is rolled back.
        let done = work(&change)?;
        change.commit().map_err(|e| failed("commit", e)).while_doing(context)?;
        Ok(done)
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "catalog {}", self.inner.path.display())
    }
}

/// A database that is ready for use, its identity, and whether it was made just now.
fn prepare(path: &Path, site: &Name, now: Time) -> Result<(Connection, String, bool)> {
    let mut db = Connection::open(path).map_err(|e| failed("open", e))?;
    // Names and paths of the site are nobody else's business.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, mode).io_context(|| "make it private".to_owned())?;
    db.busy_timeout(BUSY).map_err(|e| failed("set the wait", e))?;
    let set =
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;";
    let objects: i64 =
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(|e| failed("read", e))?;
    let is_new = objects == 0;
    if !is_new {
        check(&db)?;
        schema::migrate(&mut db)?;
        db.execute_batch(set).map_err(|e| failed("set it up", e))?;
    } else {
        db.execute_batch(set).map_err(|e| failed("set it up", e))?;
        schema::migrate(&mut db)?;
    }
    let kept: Option<(String, String)> = db
        .query_row("SELECT name, catalog FROM site", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
        .map_err(|e| failed("read the site", e))?;
    let id = match kept {
        Some((name, _)) if name != site.as_str() => {
            let why = format!("it is of site {name}, the settings say {site}");
            let advice = "domains are owned under the site's name: set it back, or begin with another state directory";
            return Err(Error::new(ErrorKind::Refused, format!("{why}; {advice}")));
        }
        Some((_, id)) => id,
        None => {
            let id = uuid::Uuid::new_v4().to_string();
            let row = (site.as_str(), &id, millis(now));
            db.execute("INSERT INTO site (one, name, catalog, created) VALUES (1, ?1, ?2, ?3)", row)
                .map_err(|e| failed("write the site", e))?;
            id
        }
    };
    Ok((db, id, is_new))
}

/// Finds damage before anything is changed. A catalog is small: a few megabytes at a thousand domains.
fn check(db: &Connection) -> Result<()> {
    let word: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(|e| failed("check", e))?;
    match word.as_str() {
        "ok" => Ok(()),
        other => Err(damaged(other)),
    }
}

fn damaged(what: &str) -> Error {
    let advice =
        "move it away, start again, add the storage sites and import the domains: their data are in the stores";
    Error::new(ErrorKind::Damaged, format!("it is damaged ({what}); {advice}"))
}

/// An error of SQLite in our terms, by its code.
fn failed(doing: &str, error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode as Code;
    let kind = match error.sqlite_error_code() {
        Some(Code::DiskFull | Code::TooBig) => ErrorKind::Full,
        Some(Code::NotADatabase | Code::DatabaseCorrupt) => return damaged(&error.to_string()),
        Some(Code::ReadOnly | Code::PermissionDenied | Code::AuthorizationForStatementDenied) => ErrorKind::Denied,
        Some(Code::CannotOpen | Code::SystemIoFailure) => ErrorKind::Io,
        Some(Code::DatabaseBusy | Code::DatabaseLocked) => ErrorKind::Refused,
        _ => ErrorKind::Internal,
    };
    Error::with_source(kind, doing.to_owned(), error)
}

/// As SQLite keeps a time.
fn millis(time: Time) -> i64 {
    i64::try_from(time.millis()).unwrap_or(i64::MAX)
}

/// From how SQLite keeps it.
fn time(millis: i64) -> Time {
    Time::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// A name that was checked when it was written.
fn name(text: &str) -> Result<Name> {
    Name::new(text).map_err(|e| damaged(&e.to_string()))
}

#[cfg(test)]
mod tests;
