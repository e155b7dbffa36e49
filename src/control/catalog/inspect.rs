//! A catalog that is looked at without an appliance: what it holds, and whether every task's journal can be read and makes
//! a task.
//!
//! It reads and never changes: no migration, no setting. It works beside an appliance that runs, and on a copy; of a copy
//! without its `-wal` file, what was not yet moved into the main file is missing, as it is for SQLite itself.

use std::io::Read;
use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde_json::{Value, json};

use super::schema::{APPLICATION, VERSION};
use super::{BUSY, failed, journal};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::failover::{Entry, TaskId, replay};
use crate::inspect::InspectReport;

/// How every SQLite database begins.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// Tables whose rows are counted, and the version that brought each.
const TABLES: [(&str, u32); 12] = [
    ("store", 1),
    ("domain", 1),
    ("vm", 1),
    ("disk", 1),
    ("runbook", 1),
    ("journal", 1),
    ("event", 1),
    ("recovery", 2),
    ("parked", 2),
    ("abandoned", 3),
    ("moving", 4),
    ("astray", 7),
];

/// What the catalog at `path` holds; with `list` each task and each entry of its journal. `None` where the file is no
/// SQLite database, or is none that is there. Blocks.
///
/// # Errors
/// `Invalid` for a database that is no catalog, `Unsupported` for a catalog of a newer program; what SQLite says.
pub fn inspect_catalog(path: &Path, list: bool) -> Result<Option<InspectReport>> {
    let mut head = [0; MAGIC.len()];
    // Whatever cannot be opened or is shorter is somebody else's to judge.
    let begins = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head));
    if begins.is_err() || head != *MAGIC {
        return Ok(None);
    }
    let shown = path.display().to_string();
    let len = std::fs::metadata(path).io_context(|| format!("inspect {shown}"))?.len();
    let db = open(path).map_err(|e| failed("open it to read", e).while_doing(format!("inspect {shown}")))?;
    let mut report = InspectReport::new(&shown, "catalog", len, list);
    look(&db, &mut report).map_err(|e| e.while_doing(format!("inspect {shown}")))?;
    Ok(Some(report))
}

/// Read only. Where SQLite may not even make the file by which readers know of each other, and nothing waits in a log
/// beside it, the database is taken for one that nobody changes.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let try_open = |immutable: &str| -> rusqlite::Result<Connection> {
        let escaped = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let db = Connection::open_with_flags(format!("file:{escaped}?mode=ro{immutable}"), flags)?;
        db.busy_timeout(BUSY)?;
        db.execute_batch("PRAGMA trusted_schema = OFF; PRAGMA query_only = ON;")?;
        db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
        Ok(db)
    };
    let wal = std::path::PathBuf::from(format!("{}-wal", path.display()));
    let is_alone = std::fs::metadata(wal).map_or(true, |there| there.len() == 0);
    try_open("").or_else(|error| match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly) if is_alone => try_open("&immutable=1"),
        _ => Err(error),
    })
}

fn look(db: &Connection, report: &mut InspectReport) -> Result<()> {
    let number = |name: &str| -> Result<i64> {
        db.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).map_err(|e| failed("read its version", e))
    };
    if number("application_id")? != APPLICATION {
        return Err(Error::new(ErrorKind::Invalid, "it is a database, and no catalog of Freshet"));
    }
    let version = u32::try_from(number("user_version")?).unwrap_or(u32::MAX);
    if version > VERSION {
        let why = format!("it has version {version}, this program knows {VERSION}: use a newer freshet");
        return Err(Error::new(ErrorKind::Unsupported, why));
    }
    report.verified_by("SQLite's own check found nothing, and every task's journal can be read");
    report.fact("version", version);
    let check: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(|e| failed("check", e))?;
    if check != "ok" {
        report.problem("database", check);
    }
    let site = db.query_row("SELECT name, catalog FROM site", [], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
    });
    match site {
        Ok((site, id)) => {
            report.show("site", site);
            report.show("identity", id);
        }
        Err(error) => report.problem("table site", error),
    }
    for (table, _) in TABLES.iter().filter(|(_, since)| *since <= version) {
        let rows = db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0));
        match rows {
            Ok(rows) => report.fact(table, rows),
            Err(error) => report.problem(format!("table {table}"), error),
        }
    }
    tasks(db, version, report)
}

/// Each task, and what its journal says.
fn tasks(db: &Connection, version: u32, report: &mut InspectReport) -> Result<()> {
    let mut entries = journal::entries(db)?.into_iter().peekable();
    let abandoned = if version >= 3 { journal::abandoned(db)? } else { Default::default() };
    let mut count = 0u64;
    while let Some((id, first)) = entries.next() {
        let mut own = vec![first];
        while let Some((_, entry)) = entries.next_if(|(other, _)| *other == id) {
            own.push(entry);
        }
        count += 1;
        let listed: Vec<Value> = own.iter().map(|entry| shown(id, entry)).collect();
        let (task, broken) = replay(id, own);
        let given_up = abandoned.get(&id);
        report.entry(|| {
            let (domain, kind, state) = task
                .as_ref()
                .map_or(("-".into(), "-", "-"), |task| (task.domain.to_string(), task.kind.word(), task.state.word()));
            let entries = listed.len();
            let given_up = given_up.map_or_else(|| "-".to_owned(), |by| format!("by {} at {}", by.actor, by.at));
            json!({ "task": id.to_string(), "domain": domain, "kind": kind, "state": state, "entries": entries,
                "given_up": given_up })
        });
        listed.into_iter().for_each(|entry| report.entry(|| entry));
        if let Some(error) = broken {
            report.problem(format!("task {id}"), error);
        }
    }
    report.fact("task", count);
    Ok(())
}

fn shown(id: TaskId, entry: &Result<Entry>) -> Value {
    match entry {
        Ok(entry) => {
            let event = serde_json::to_value(&entry.event).unwrap_or_default();
            json!({ "task": id.to_string(), "n": entry.n, "at": entry.at.to_string(), "event": event })
        }
        Err(error) => json!({ "task": id.to_string(), "unreadable": error.to_string() }),
    }
}
