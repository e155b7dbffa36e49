//! VMs and disks that this site protects: what a start serves again.

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::{damaged, failed, name};
use crate::capture::{DiskSource, VmDefinition, VmSource};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Nic, VmShape};
use crate::ids::Name;

/// A definition as the catalog keeps it, in JSON.
#[derive(Serialize, Deserialize)]
struct Kept {
    kind: String,
    text: String,
    cpus: u32,
    memory_bytes: u64,
    firmware: String,
    /// Address, network, model.
    nics: Vec<(String, String, String)>,
}

impl Kept {
    fn of(definition: &VmDefinition) -> Kept {
        let VmDefinition { kind, text, shape } = definition.clone();
        let nics = shape.nics.into_iter().map(|nic| (nic.mac, nic.network, nic.model)).collect();
        Kept { kind, text, cpus: shape.cpus, memory_bytes: shape.memory_bytes, firmware: shape.firmware, nics }
    }

    fn into_definition(self) -> VmDefinition {
        let Kept { kind, text, cpus, memory_bytes, firmware, nics } = self;
        let nics = nics.into_iter().map(|(mac, network, model)| Nic { mac, network, model }).collect();
        VmDefinition { kind, text, shape: VmShape { cpus, memory_bytes, firmware, nics } }
    }
}

/// The VMs of a domain that are protected here, in the order in which they joined.
pub(crate) fn protected(db: &Connection, domain: &Name) -> Result<Vec<VmSource>> {
    let failed = |e| failed("read the protected disks", e);
    let sql = "SELECT name, definition FROM vm WHERE domain = ?1 ORDER BY position";
    let mut statement = db.prepare_cached(sql).map_err(failed)?;
    let rows = statement.query_map([domain.as_str()], |row| Ok((row.get(0)?, row.get(1)?)));
    let rows: Vec<(String, Option<String>)> = rows.and_then(Iterator::collect).map_err(failed)?;
    let mut vms = Vec::with_capacity(rows.len());
    for (vm, definition) in rows {
        let kept = definition.map(|text| serde_json::from_str::<Kept>(&text)).transpose();
        let kept = kept.map_err(|e| damaged(&format!("the definition of VM {vm}: {e}")))?;
        let disks = disks_of(db, domain, &vm)?;
        vms.push(VmSource { name: name(&vm)?, disks, definition: kept.map(Kept::into_definition) });
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
    let definition = vm.definition.as_ref().map(|definition| serde_json::to_string(&Kept::of(definition)));
    let definition = definition.transpose();
    let definition =
        definition.map_err(|e| Error::with_source(ErrorKind::Internal, "put a definition into JSON", e))?;
    let sql = "INSERT INTO vm (domain, name, position, definition) VALUES (?1, ?2,
               (SELECT coalesce(max(position), 0) + 1 FROM vm WHERE domain = ?1), ?3)
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
