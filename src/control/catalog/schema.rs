//! The schema of the catalog, step by step: each version is one script that is never changed once it was released.

use rusqlite::Connection;

use super::failed;
use crate::error::{Error, ErrorKind, Result};

/// `FRSH`: tells a catalog from a database of others.
pub(super) const APPLICATION: i64 = 0x4652_5348;

/// What leads from version n to n + 1. Reasons stand beside each.
const STEPS: [&str; 9] = [
    // 1: the first.
    "CREATE TABLE site (one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL, catalog TEXT NOT NULL,
        created INTEGER NOT NULL) STRICT;
     CREATE TABLE store (name TEXT PRIMARY KEY, url TEXT NOT NULL UNIQUE, options_file TEXT, added INTEGER NOT NULL,
        probed INTEGER NOT NULL, verdict TEXT NOT NULL) STRICT;
     CREATE TABLE domain (name TEXT PRIMARY KEY, store TEXT NOT NULL REFERENCES store (name), id BLOB,
        origin TEXT NOT NULL CHECK (origin IN ('protected', 'imported')), created INTEGER NOT NULL) STRICT;
     CREATE INDEX domain_store ON domain (store);
     CREATE TABLE vm (domain TEXT NOT NULL REFERENCES domain (name) ON DELETE CASCADE, name TEXT NOT NULL,
        position INTEGER NOT NULL, definition TEXT, PRIMARY KEY (domain, name)) STRICT;
     CREATE TABLE disk (domain TEXT NOT NULL, vm TEXT NOT NULL, name TEXT NOT NULL, position INTEGER NOT NULL,
        path TEXT NOT NULL, size INTEGER, PRIMARY KEY (domain, vm, name),
        FOREIGN KEY (domain, vm) REFERENCES vm (domain, name) ON DELETE CASCADE) STRICT;
     CREATE TABLE runbook (domain TEXT NOT NULL REFERENCES domain (name) ON DELETE CASCADE,
        kind TEXT NOT NULL CHECK (kind IN ('failover', 'failback')), text TEXT NOT NULL, revision INTEGER NOT NULL,
        changed INTEGER NOT NULL, changed_by TEXT NOT NULL, PRIMARY KEY (domain, kind)) STRICT;
     CREATE TABLE journal (task TEXT NOT NULL, n INTEGER NOT NULL, at INTEGER NOT NULL, entry TEXT NOT NULL,
        PRIMARY KEY (task, n)) STRICT;
     CREATE TABLE request (id TEXT PRIMARY KEY, task TEXT NOT NULL, digest TEXT NOT NULL, at INTEGER NOT NULL) STRICT;
     CREATE TABLE event (number INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, actor TEXT NOT NULL,
        action TEXT NOT NULL, subject TEXT NOT NULL, outcome TEXT NOT NULL, detail TEXT NOT NULL) STRICT;
     CREATE INDEX event_subject ON event (subject, number);",
    // 2: recoveries, and protections that were handed over.
    "CREATE TABLE recovery (domain TEXT PRIMARY KEY REFERENCES domain (name) ON DELETE CASCADE, plan TEXT NOT NULL,
        follows INTEGER NOT NULL CHECK (follows IN (0, 1))) STRICT;
     CREATE TABLE parked (domain TEXT PRIMARY KEY REFERENCES domain (name) ON DELETE CASCADE, generation INTEGER NOT NULL,
        segment INTEGER NOT NULL) STRICT;",
    // 3: tasks that were given up, since their journal cannot be read.
    "CREATE TABLE abandoned (task TEXT PRIMARY KEY, at INTEGER NOT NULL, actor TEXT NOT NULL, why TEXT NOT NULL) STRICT;",
    // 4: VMs whose disks are being moved.
    "CREATE TABLE moving (domain TEXT NOT NULL, vm TEXT NOT NULL, fills INTEGER NOT NULL CHECK (fills IN (0, 1)),
        PRIMARY KEY (domain, vm), FOREIGN KEY (domain, vm) REFERENCES vm (domain, name) ON DELETE CASCADE) STRICT;",
    // 5: those that are moved back, and that their disks may have changed over.
    "ALTER TABLE moving ADD COLUMN leaves INTEGER NOT NULL DEFAULT 0 CHECK (leaves IN (0, 1));
     ALTER TABLE moving ADD COLUMN pivots INTEGER NOT NULL DEFAULT 0 CHECK (pivots IN (0, 1));",
    // 6: in which run of the guest that was, and that an operator was told to decide between both places.
    "ALTER TABLE moving ADD COLUMN run TEXT NOT NULL DEFAULT '';
     ALTER TABLE moving ADD COLUMN told INTEGER NOT NULL DEFAULT 0 CHECK (told IN (0, 1));",
    // 7: VMs whose guests ran on other disks than those that are served.
    "CREATE TABLE astray (domain TEXT NOT NULL, vm TEXT NOT NULL, since INTEGER NOT NULL, PRIMARY KEY (domain, vm),
        FOREIGN KEY (domain, vm) REFERENCES vm (domain, name) ON DELETE CASCADE) STRICT;",
    // 8: definitions that are taken anew: what the hypervisor had when it was last looked at, and where the disks were at
    // this site before it protected them, which the definition told alone so far.
    "ALTER TABLE vm ADD COLUMN seen TEXT;
     ALTER TABLE vm ADD COLUMN before TEXT;
     UPDATE vm SET before = definition;",
    // 9: images that are made for disks that have no place to go back to.
    "ALTER TABLE moving ADD COLUMN made TEXT NOT NULL DEFAULT '';",
];

/// The version that this program writes.
pub(super) const VERSION: u32 = STEPS.len() as u32;

/// Brings the database to [`VERSION`].
///
/// # Errors
/// `Unsupported` for a newer one, `Refused` for a database of others; neither is touched.
pub(super) fn migrate(db: &mut Connection) -> Result<()> {
    let number = |name: &str| -> Result<i64> {
        db.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0))
            .map_err(|e| failed("read the catalog's version", e))
    };
    let (application, version) = (number("application_id")?, number("user_version")?);
    let objects: i64 = db
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(|e| failed("read the catalog's schema", e))?;
    if objects > 0 && application != APPLICATION {
        return Err(Error::new(ErrorKind::Refused, "it is a database, and no catalog of Freshet; it is left as it is"));
    }
    let version = u32::try_from(version).unwrap_or(u32::MAX);
    if version > VERSION {
        let why = format!("it has version {version}, this program knows {VERSION}: a newer program wrote it");
        let advice = "run that one, or move the catalog away and import the domains anew";
        return Err(Error::new(ErrorKind::Unsupported, format!("{why}; {advice}")));
    }
    for (from, step) in (0..).zip(STEPS).skip(version as usize) {
        let doing = "bring the catalog to this program's version";
        let change = db.transaction().map_err(|e| failed(doing, e))?;
        let script = format!("{step}\nPRAGMA application_id = {APPLICATION}; PRAGMA user_version = {};", from + 1);
        change.execute_batch(&script).map_err(|e| failed(doing, e))?;
        change.commit().map_err(|e| failed(doing, e))?;
    }
    Ok(())
}
