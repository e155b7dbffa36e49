//! Domains of the catalog.

use rusqlite::{Connection, OptionalExtension, Row};

use super::{damaged, failed, millis, name, time};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DomainId, Name, Time};

/// How a domain came into the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This site protects it, or protected it first.
    Protected,
    /// It was another site's.
    Imported,
}

impl Origin {
    fn word(self) -> &'static str {
        match self {
            Origin::Protected => "protected",
            Origin::Imported => "imported",
        }
    }
}

/// A domain as it is remembered. What it does is not: that follows from facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DomainRecord {
    /// Name.
    pub(crate) name: Name,
    /// Its storage site.
    pub(crate) store: Name,
    /// Identity in the store; `None` before its first claim.
    pub(crate) id: Option<DomainId>,
    /// How it came here.
    pub(crate) origin: Origin,
    /// When.
    pub(crate) created: Time,
}

const COLUMNS: &str = "name, store, id, origin, created";

type Raw = (String, String, Option<Vec<u8>>, String, i64);

fn raw(row: &Row<'_>) -> rusqlite::Result<Raw> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
}

fn record((text, store, id, origin, created): Raw) -> Result<DomainRecord> {
    let id = id.map(|bytes| bytes.try_into().map_err(|_| damaged("the identity of a domain"))).transpose()?;
    Ok(DomainRecord {
        name: name(&text)?,
        store: name(&store)?,
        id: id.map(DomainId::from_bytes),
        origin: if origin == "imported" { Origin::Imported } else { Origin::Protected },
        created: time(created),
    })
}

impl DomainRecord {
    /// The one of this name.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn get(db: &Connection, which: &Name) -> Result<DomainRecord> {
        let missing = || {
            let why = format!("domain {which} is not known at this site");
            Error::new(ErrorKind::NotFound, format!("{why}; `freshet domain list` shows those that are"))
        };
        DomainRecord::find(db, which)?.ok_or_else(missing)
    }

    /// The same, where it need not be there.
    pub(crate) fn find(db: &Connection, which: &Name) -> Result<Option<DomainRecord>> {
        let sql = format!("SELECT {COLUMNS} FROM domain WHERE name = ?1");
        let row = db.query_row(&sql, [which.as_str()], raw).optional().map_err(|e| failed("read a domain", e))?;
        row.map(record).transpose()
    }

    /// Those after the name `after`, by name, at most `most`.
    pub(crate) fn list(db: &Connection, after: &str, most: usize) -> Result<Vec<DomainRecord>> {
        let sql = format!("SELECT {COLUMNS} FROM domain WHERE name > ?1 ORDER BY name LIMIT ?2");
        let failed = |e| failed("read the domains", e);
        let mut statement = db.prepare_cached(&sql).map_err(failed)?;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let rows: Vec<Raw> = statement.query_map((after, most), raw).and_then(Iterator::collect).map_err(failed)?;
        rows.into_iter().map(record).collect()
    }

    /// How many there are, of one store or of all.
    pub(crate) fn count(db: &Connection, store: Option<&Name>) -> Result<u32> {
        let sql = "SELECT count(*) FROM domain WHERE ?1 IS NULL OR store = ?1";
        db.query_row(sql, [store.map(Name::as_str)], |row| row.get(0)).map_err(|e| failed("count the domains", e))
    }

    /// Writes a new one.
    ///
    /// # Errors
    /// `Refused` where there is one of that name, saying how it is known.
    pub(crate) fn insert(&self, db: &Connection) -> Result<()> {
        if let Some(there) = DomainRecord::find(db, &self.name)? {
            let how = there.origin.word();
            let why = format!("domain {} is known here already: {how}, in storage site {}", self.name, there.store);
            return Err(Error::new(ErrorKind::Refused, format!("{why}; nothing was changed")));
        }
        let sql = format!("INSERT INTO domain ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5)");
        let id = self.id.map(DomainId::bytes);
        let row = (self.name.as_str(), self.store.as_str(), id, self.origin.word(), millis(self.created));
        db.execute(&sql, row).map_err(|e| failed("write a domain", e))?;
        Ok(())
    }

    /// Notes the identity that its first claim drew.
    pub(crate) fn set_id(db: &Connection, which: &Name, id: DomainId) -> Result<()> {
        let sql = "UPDATE domain SET id = ?2 WHERE name = ?1 AND id IS NULL";
        db.execute(sql, (which.as_str(), id.bytes())).map_err(|e| failed("write a domain's identity", e))?;
        Ok(())
    }

    /// Forgets it, with its VMs, disks and runbooks.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn remove(db: &Connection, which: &Name) -> Result<()> {
        DomainRecord::get(db, which)?;
        db.execute("DELETE FROM domain WHERE name = ?1", [which.as_str()]).map_err(|e| failed("remove a domain", e))?;
        Ok(())
    }
}
