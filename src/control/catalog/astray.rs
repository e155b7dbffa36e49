//! VMs whose guests ran on other disks than those that are served: what their images hold is in doubt until it is compared.

use rusqlite::Connection;

use super::{failed, name};
use crate::error::Result;
use crate::ids::{Name, Time};

/// Those of a domain, by name, each with the time at which that was seen first.
pub(crate) fn astray(db: &Connection, domain: &Name) -> Result<Vec<(Name, Time)>> {
    let failed = |e| failed("read which guests run on other disks", e);
    let sql = "SELECT vm, since FROM astray WHERE domain = ?1 ORDER BY vm";
    let mut statement = db.prepare_cached(sql).map_err(failed)?;
    let rows = statement.query_map([domain.as_str()], |row| Ok((row.get(0)?, row.get(1)?)));
    let rows: Vec<(String, i64)> = rows.and_then(Iterator::collect).map_err(failed)?;
    let one = |(vm, since): (String, i64)| Ok((name(&vm)?, Time::from_millis(u64::try_from(since).unwrap_or(0))));
    rows.into_iter().map(one).collect()
}

/// Writes that a guest runs on other disks. The VM must be there; one of which that is known stays as it is.
pub(crate) fn stray(db: &Connection, domain: &Name, vm: &Name, since: Time) -> Result<()> {
    let sql = "INSERT INTO astray (domain, vm, since) VALUES (?1, ?2, ?3) ON CONFLICT (domain, vm) DO NOTHING";
    let since = i64::try_from(since.millis()).unwrap_or(i64::MAX);
    db.execute(sql, (domain.as_str(), vm.as_str(), since)).map_err(|e| failed("write that a guest strays", e))?;
    Ok(())
}

/// Its guest has its own disks again. One that is not known is no error.
pub(crate) fn unstray(db: &Connection, domain: &Name, vm: &Name) -> Result<()> {
    let sql = "DELETE FROM astray WHERE domain = ?1 AND vm = ?2";
    db.execute(sql, (domain.as_str(), vm.as_str())).map_err(|e| failed("write that a guest strays no more", e))?;
    Ok(())
}
