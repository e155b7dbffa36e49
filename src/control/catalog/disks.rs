//! VMs and disks that this site protects: what a start serves again.

use rusqlite::Connection;

use super::definitions::{from_text, to_text};
use super::{failed, name};
use crate::capture::{DiskSource, VmSource};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Name;

/// The VMs of a domain that are protected here, in the order in which they joined.
pub(crate) fn protected(db: &Connection, domain: &Name) -> Result<Vec<VmSource>> {
    let failed = |e| failed("read the protected disks", e);
    let sql = "SELECT name, definition FROM vm WHERE domain = ?1 ORDER BY position";
    let mut statement = db.prepare_cached(sql).map_err(failed)?;
    let rows = statement.query_map([domain.as_str()], |row| Ok((row.get(0)?, row.get(1)?)));
    let rows: Vec<(String, Option<String>)> = rows.and_then(Iterator::collect).map_err(failed)?;
    let mut vms = Vec::with_capacity(rows.len());
    for (vm, definition) in rows {
        let definition = definition.map(|text| from_text(&vm, &text)).transpose()?;
        vms.push(VmSource { name: name(&vm)?, disks: disks_of(db, domain, &vm)?, definition });
    }
    Ok(vms)
}

fn disks_of(db: &Connection, domain: &Name, vm: &str) -> Result<Vec<DiskSource>> {
    let failed = |e| failed("read the protected disks", e);
    let sql = "SELECT name, path, size FROM disk WHERE domain = ?1 AND vm = ?2 ORDER BY position";
    let mut statement = db.prepare_cached(sql).map_err(failed)?;
    let rows = statement.query_map((domain.as_str(), vm), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    let rows: Vec<(String, String, Option<i64>)> = rows.and_then(Iterator::collect).map_err(failed)?;
    let disk = |(text, path, size): (String, String, Option<i64>)| {
        let size = size.map(|size| u64::try_from(size).unwrap_or(0));
        Ok(DiskSource { name: name(&text)?, path: path.into(), size })
    };
    rows.into_iter().map(disk).collect()
}

/// Domains of which VMs are protected here, by name.
pub(crate) fn protected_domains(db: &Connection) -> Result<Vec<Name>> {
    let failed = |e| failed("read the protected domains", e);
    let mut statement = db.prepare_cached("SELECT DISTINCT domain FROM vm ORDER BY domain").map_err(failed)?;
    let rows: Vec<String> = statement.query_map([], |row| row.get(0)).and_then(Iterator::collect).map_err(failed)?;
    rows.iter().map(|text| name(text)).collect()
}

/// Domains of which a VM of this name is protected here.
pub(crate) fn domains_of(db: &Connection, vm: &Name) -> Result<Vec<Name>> {
    let failed = |e| failed("read whose VM it is", e);
    let mut statement = db.prepare_cached("SELECT domain FROM vm WHERE name = ?1 ORDER BY domain").map_err(failed)?;
    let rows: Vec<String> =
        statement.query_map([vm.as_str()], |row| row.get(0)).and_then(Iterator::collect).map_err(failed)?;
    rows.iter().map(|text| name(text)).collect()
}

/// Writes VMs, or further disks of VMs that are there.
pub(crate) fn protect(db: &Connection, domain: &Name, vm: &VmSource) -> Result<()> {
    let failed = |e| failed("write a protected VM", e);
    let definition = vm.definition.as_ref().map(to_text).transpose()?;
    // Where its disks were before is kept, whatever becomes of the definition.
    let sql = "INSERT INTO vm (domain, name, position, definition, before) VALUES (?1, ?2,
               (SELECT coalesce(max(position), 0) + 1 FROM vm WHERE domain = ?1), ?3, ?3)
               ON CONFLICT (domain, name) DO UPDATE SET definition = coalesce(excluded.definition, definition)";
    db.execute(sql, (domain.as_str(), vm.name.as_str(), definition)).map_err(failed)?;
    let sql = "INSERT INTO disk (domain, vm, name, position, path, size) VALUES (?1, ?2, ?3,
               (SELECT coalesce(max(position), 0) + 1 FROM disk WHERE domain = ?1 AND vm = ?2), ?4, ?5)";
    for disk in &vm.disks {
        let path = disk.path.to_str();
        let path =
            path.ok_or_else(|| Error::new(ErrorKind::Invalid, format!("{}: is not UTF-8", disk.path.display())))?;
        let size = disk.size.map(|size| i64::try_from(size).unwrap_or(i64::MAX));
        let row = (domain.as_str(), vm.name.as_str(), disk.name.as_str(), path, size);
        db.execute(sql, row).map_err(failed)?;
    }
    Ok(())
}

/// Removes a disk, and its VM with the last one.
pub(crate) fn unprotect_disk(db: &Connection, domain: &Name, vm: &Name, disk: &Name) -> Result<()> {
    let failed = |e| failed("remove a protected disk", e);
    let (domain, vm) = (domain.as_str(), vm.as_str());
    let sql = "DELETE FROM disk WHERE domain = ?1 AND vm = ?2 AND name = ?3";
    db.execute(sql, (domain, vm, disk.as_str())).map_err(failed)?;
    let sql = "DELETE FROM vm WHERE domain = ?1 AND name = ?2
               AND NOT EXISTS (SELECT 1 FROM disk WHERE domain = ?1 AND vm = ?2)";
    db.execute(sql, (domain, vm)).map_err(failed)?;
    Ok(())
}

/// Removes a VM with its disks.
pub(crate) fn unprotect(db: &Connection, domain: &Name, vm: &Name) -> Result<()> {
    let sql = "DELETE FROM vm WHERE domain = ?1 AND name = ?2";
    db.execute(sql, (domain.as_str(), vm.as_str())).map_err(|e| failed("remove a protected VM", e))?;
    Ok(())
}
