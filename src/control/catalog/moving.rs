//! VMs whose hypervisor is being made to use the exports of their disks: what a start goes on with.

use rusqlite::Connection;

use super::{failed, name};
use crate::error::Result;
use crate::ids::Name;

/// A VM under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moving {
    pub(crate) vm: Name,
    /// Its guest runs, and is copied onto images that held nothing: no point covers it until that is done.
    pub(crate) fills: bool,
}

impl Moving {
    /// Those of a domain, by name.
    pub(crate) fn of(db: &Connection, domain: &Name) -> Result<Vec<Moving>> {
        let failed = |e| failed("read which VMs are moved", e);
        let mut statement =
            db.prepare_cached("SELECT vm, fills FROM moving WHERE domain = ?1 ORDER BY vm").map_err(failed)?;
        let rows = statement.query_map([domain.as_str()], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)));
        let rows: Vec<(String, bool)> = rows.and_then(Iterator::collect).map_err(failed)?;
        rows.into_iter().map(|(vm, fills)| Ok(Moving { vm: name(&vm)?, fills })).collect()
    }

    /// Domains with such VMs, by name.
    pub(crate) fn domains(db: &Connection) -> Result<Vec<Name>> {
        let failed = |e| failed("read which VMs are moved", e);
        let mut statement = db.prepare_cached("SELECT DISTINCT domain FROM moving ORDER BY domain").map_err(failed)?;
        let rows: Vec<String> =
            statement.query_map([], |row| row.get(0)).and_then(Iterator::collect).map_err(failed)?;
        rows.iter().map(|text| name(text)).collect()
    }

    /// Writes that it is under way. The VM must be there.
    pub(crate) fn begin(&self, db: &Connection, domain: &Name) -> Result<()> {
        let sql = "INSERT INTO moving (domain, vm, fills) VALUES (?1, ?2, ?3)
                   ON CONFLICT (domain, vm) DO UPDATE SET fills = excluded.fills";
        db.execute(sql, (domain.as_str(), self.vm.as_str(), self.fills))
            .map_err(|e| failed("write that a VM is moved", e))?;
        Ok(())
    }

    /// It is done. One that is not under way is no error.
    pub(crate) fn end(db: &Connection, domain: &Name, vm: &Name) -> Result<()> {
        let sql = "DELETE FROM moving WHERE domain = ?1 AND vm = ?2";
        db.execute(sql, (domain.as_str(), vm.as_str())).map_err(|e| failed("write that a VM was moved", e))?;
        Ok(())
    }
}
