//! VMs whose disks are being moved, onto exports or back: what a start goes on with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::Connection;

use super::{damaged, failed, name};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Name;

/// A VM under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moving {
    pub(crate) vm: Name,
    /// Its guest runs, and is copied onto images that held nothing: no point covers it until that is done.
    pub(crate) fills: bool,
    /// It is protected no longer once this is done, and its guest is moved back where it was before.
    pub(crate) leaves: bool,
    /// Its disks were about to change over: some may have.
    pub(crate) pivots: bool,
    /// In which run of its guest; empty where that could not be told.
    pub(crate) run: String,
    /// An operator was told to decide which place has what the guest wrote last.
    pub(crate) told: bool,
    /// Images that were made for disks that have no place to go back to, by their names.
    pub(crate) made: BTreeMap<Name, PathBuf>,
}

impl Moving {
    /// Those of a domain, by name.
    pub(crate) fn of(db: &Connection, domain: &Name) -> Result<Vec<Moving>> {
        let failed = |e| failed("read which VMs are moved", e);
        let sql = "SELECT vm, fills, leaves, pivots, run, told, made FROM moving WHERE domain = ?1 ORDER BY vm";
        let mut statement = db.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query([domain.as_str()]).map_err(failed)?;
        let mut out = Vec::new();
        while let Some(row) = rows.next().map_err(failed)? {
            let (vm, made): (String, String) = (row.get(0).map_err(failed)?, row.get(6).map_err(failed)?);
            out.push(Moving {
                vm: name(&vm)?,
                fills: row.get(1).map_err(failed)?,
                leaves: row.get(2).map_err(failed)?,
                pivots: row.get(3).map_err(failed)?,
                run: row.get(4).map_err(failed)?,
                told: row.get(5).map_err(failed)?,
                made: made_of(&made)?,
            });
        }
        Ok(out)
    }

    /// A VM of a domain; `None` where it is not under way.
    pub(crate) fn get(db: &Connection, domain: &Name, vm: &Name) -> Result<Option<Moving>> {
        Ok(Moving::of(db, domain)?.into_iter().find(|moving| moving.vm == *vm))
    }

    /// Domains with such VMs, by name.
    pub(crate) fn domains(db: &Connection) -> Result<Vec<Name>> {
        let failed = |e| failed("read which VMs are moved", e);
        let mut statement = db.prepare_cached("SELECT DISTINCT domain FROM moving ORDER BY domain").map_err(failed)?;
        let rows: Vec<String> =
            statement.query_map([], |row| row.get(0)).and_then(Iterator::collect).map_err(failed)?;
        rows.iter().map(|text| name(text)).collect()
    }

    /// What its images hold, or what is written to them, is no moment of its guest: no point may cover it.
    pub(crate) fn is_no_moment(&self) -> bool {
        self.fills || (self.leaves && self.pivots)
    }

    /// Writes that it goes onto its exports, and nowhere else. The VM must be there.
    pub(crate) fn begin(db: &Connection, domain: &Name, vm: &Name, fills: bool) -> Result<()> {
        let sql = "INSERT INTO moving (domain, vm, fills) VALUES (?1, ?2, ?3)
                   ON CONFLICT (domain, vm) DO UPDATE SET fills = excluded.fills, leaves = 0, pivots = 0,
                       run = '', told = 0, made = ''";
        change(db, sql, (domain.as_str(), vm.as_str(), fills))
    }

    /// Writes that it goes back. Where it was on its way onto its exports, they hold no moment of it still. The VM must be
    /// there.
    pub(crate) fn begin_to_leave(db: &Connection, domain: &Name, vm: &Name) -> Result<()> {
        let sql = "INSERT INTO moving (domain, vm, fills, leaves) VALUES (?1, ?2, 0, 1)
                   ON CONFLICT (domain, vm) DO UPDATE SET leaves = 1";
        change(db, sql, (domain.as_str(), vm.as_str()))
    }

    /// Writes that its disks are about to change over, in this run of its guest.
    pub(crate) fn pivot(db: &Connection, domain: &Name, vm: &Name, run: &str) -> Result<()> {
        let sql = "UPDATE moving SET pivots = 1, run = ?3, told = 0 WHERE domain = ?1 AND vm = ?2";
        change(db, sql, (domain.as_str(), vm.as_str(), run))
    }

    /// Writes which images are made for disks that have no place to go back to. Before they are made.
    pub(crate) fn make(db: &Connection, domain: &Name, vm: &Name, made: &BTreeMap<Name, PathBuf>) -> Result<()> {
        let text = made.iter().map(|(disk, path)| {
            let bad = || Error::new(ErrorKind::Invalid, format!("{}: is not UTF-8", path.display()));
            Ok((disk.as_str(), path.to_str().ok_or_else(bad)?))
        });
        let text = serde_json::to_string(&text.collect::<Result<BTreeMap<_, _>>>()?);
        let text = text.map_err(|e| Error::with_source(ErrorKind::Internal, "put paths into JSON", e))?;
        change(db, "UPDATE moving SET made = ?3 WHERE domain = ?1 AND vm = ?2", (domain.as_str(), vm.as_str(), text))
    }

    /// Writes that an operator was told to decide.
    pub(crate) fn told(db: &Connection, domain: &Name, vm: &Name) -> Result<()> {
        change(db, "UPDATE moving SET told = 1 WHERE domain = ?1 AND vm = ?2", (domain.as_str(), vm.as_str()))
    }

    /// Writes that it does not leave: all its disks are on their exports. One that was on its way there still is.
    pub(crate) fn stay(db: &Connection, domain: &Name, vm: &Name) -> Result<()> {
        let key = (domain.as_str(), vm.as_str());
        change(db, "DELETE FROM moving WHERE domain = ?1 AND vm = ?2 AND fills = 0", key)?;
        change(
            db,
            "UPDATE moving SET leaves = 0, pivots = 0, run = '', told = 0, made = '' WHERE domain = ?1 AND vm = ?2",
            key,
        )
    }

    /// It is done. One that is not under way is no error.
    pub(crate) fn end(db: &Connection, domain: &Name, vm: &Name) -> Result<()> {
        change(db, "DELETE FROM moving WHERE domain = ?1 AND vm = ?2", (domain.as_str(), vm.as_str()))
    }
}

/// Images by the names of their disks, as they are written.
fn made_of(text: &str) -> Result<BTreeMap<Name, PathBuf>> {
    if text.is_empty() {
        return Ok(BTreeMap::new());
    }
    let read: BTreeMap<String, PathBuf> =
        serde_json::from_str(text).map_err(|e| damaged(&format!("images of a VM that is moved: {e}")))?;
    read.into_iter().map(|(disk, path)| Ok((name(&disk)?, path))).collect()
}

fn change(db: &Connection, sql: &str, parameters: impl rusqlite::Params) -> Result<()> {
    db.execute(sql, parameters).map_err(|e| failed("write that a VM is moved", e))?;
    Ok(())
}
