//! Storage sites of the catalog.

use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, Row};

use super::{failed, millis, name, time};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Name, Time};

/// A storage site as it is remembered: where it is, and where its credentials are named. Never a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreRecord {
    /// Name at this site.
    pub(crate) name: Name,
    /// URL.
    pub(crate) url: String,
    /// Options file on this host.
    pub(crate) options_file: Option<PathBuf>,
    /// When it was added.
    pub(crate) added: Time,
    /// When it was last probed.
    pub(crate) probed: Time,
    /// What the probe found.
    pub(crate) verdict: String,
}

const COLUMNS: &str = "name, url, options_file, added, probed, verdict";

type Raw = (String, String, Option<String>, i64, i64, String);

fn raw(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?))
}

fn record((text, url, options_file, added, probed, verdict): Raw) -> Result<StoreRecord> {
    let options_file = options_file.map(PathBuf::from);
    Ok(StoreRecord { name: name(&text)?, url, options_file, added: time(added), probed: time(probed), verdict })
}

impl StoreRecord {
    /// The one of this name.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn get(db: &Connection, which: &Name) -> Result<StoreRecord> {
        let missing = || {
            let why = format!("there is no storage site {which} at this site");
            Error::new(ErrorKind::NotFound, format!("{why}; `freshet store list` shows those that there are"))
        };
        StoreRecord::find(db, which)?.ok_or_else(missing)
    }

    /// The same, where it need not be there.
    pub(crate) fn find(db: &Connection, which: &Name) -> Result<Option<StoreRecord>> {
        let sql = format!("SELECT {COLUMNS} FROM store WHERE name = ?1");
        let row = db.query_row(&sql, [which.as_str()], raw).optional().map_err(|e| failed("read a storage site", e))?;
        row.map(record).transpose()
    }

    /// The one at this URL.
    pub(crate) fn at(db: &Connection, url: &str) -> Result<Option<StoreRecord>> {
        let sql = format!("SELECT {COLUMNS} FROM store WHERE url = ?1");
        let row = db.query_row(&sql, [url], raw).optional().map_err(|e| failed("read a storage site", e))?;
        row.map(record).transpose()
    }

    /// All, by name.
    pub(crate) fn list(db: &Connection) -> Result<Vec<StoreRecord>> {
        let sql = format!("SELECT {COLUMNS} FROM store ORDER BY name");
        let failed = |e| failed("read the storage sites", e);
        let mut statement = db.prepare_cached(&sql).map_err(failed)?;
        let rows: Vec<Raw> = statement.query_map([], raw).and_then(Iterator::collect).map_err(failed)?;
        rows.into_iter().map(record).collect()
    }

    /// Writes it, in place of one of that name.
    pub(crate) fn put(&self, db: &Connection) -> Result<()> {
        let sql = format!(
            "INSERT INTO store ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (name) DO UPDATE SET
             url = excluded.url, options_file = excluded.options_file, probed = excluded.probed, verdict = excluded.verdict"
        );
        let file = self.options_file.as_ref().map(|path| path.to_string_lossy().into_owned());
        let row = (self.name.as_str(), &self.url, file, millis(self.added), millis(self.probed), &self.verdict);
        db.execute(&sql, row).map_err(|e| failed("write a storage site", e))?;
        Ok(())
    }

    /// Forgets it.
    ///
    /// # Errors
    /// `Refused` while domains of it are known, naming some.
    pub(crate) fn remove(db: &Connection, which: &Name) -> Result<()> {
        StoreRecord::get(db, which)?;
        let failed = |e| failed("remove a storage site", e);
        let mut statement =
            db.prepare_cached("SELECT name FROM domain WHERE store = ?1 ORDER BY name").map_err(failed)?;
        let names = statement.query_map([which.as_str()], |row| row.get(0));
        let names: Vec<String> = names.and_then(Iterator::collect).map_err(failed)?;
        if !names.is_empty() {
            let some = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let why = format!("{} domains of storage site {which} are known here ({some})", names.len());
            return Err(Error::new(ErrorKind::Refused, format!("{why}; forget them first")));
        }
        db.execute("DELETE FROM store WHERE name = ?1", [which.as_str()]).map_err(failed)?;
        Ok(())
    }
}
