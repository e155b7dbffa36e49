//! Definitions of protected VMs: the one that travels with the disks, what the hypervisor had when that was last looked at,
//! and where the disks were at this site before it protected them.

use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize};

use super::{damaged, failed};
use crate::capture::VmDefinition;
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

/// As the catalog keeps it.
///
/// # Errors
/// `Internal` where it is no JSON.
pub(super) fn to_text(definition: &VmDefinition) -> Result<String> {
    let text = serde_json::to_string(&Kept::of(definition));
    text.map_err(|e| Error::with_source(ErrorKind::Internal, "put a definition into JSON", e))
}

/// The definition of a VM as the catalog has it.
///
/// # Errors
/// `Damaged`.
pub(super) fn from_text(vm: &str, text: &str) -> Result<VmDefinition> {
    let kept = serde_json::from_str::<Kept>(text);
    kept.map(Kept::into_definition).map_err(|e| damaged(&format!("the definition of VM {vm}: {e}")))
}

/// Another definition travels with the disks of a VM from now on.
pub(crate) fn redefine(db: &Connection, domain: &Name, vm: &Name, definition: &VmDefinition) -> Result<()> {
    set(db, "UPDATE vm SET definition = ?3 WHERE domain = ?1 AND name = ?2", domain, vm, Some(to_text(definition)?))
}

/// The definition that a VM had at this site before its disks were protected here; `None` where they came from another site,
/// or nobody told one.
pub(crate) fn before(db: &Connection, domain: &Name, vm: &Name) -> Result<Option<VmDefinition>> {
    let sql = "SELECT before FROM vm WHERE domain = ?1 AND name = ?2";
    get(db, sql, domain, vm)?.map(|text| from_text(vm.as_str(), &text)).transpose()
}

/// Writes that.
pub(crate) fn set_before(db: &Connection, domain: &Name, vm: &Name, definition: Option<&VmDefinition>) -> Result<()> {
    let text = definition.map(to_text).transpose()?;
    set(db, "UPDATE vm SET before = ?3 WHERE domain = ?1 AND name = ?2", domain, vm, text)
}

/// What the hypervisor had when it was last looked at, where that is remembered.
pub(crate) fn seen(db: &Connection, domain: &Name, vm: &Name) -> Result<Option<String>> {
    get(db, "SELECT seen FROM vm WHERE domain = ?1 AND name = ?2", domain, vm)
}

/// Remembers that.
pub(crate) fn set_seen(db: &Connection, domain: &Name, vm: &Name, definition: &str) -> Result<()> {
    set(db, "UPDATE vm SET seen = ?3 WHERE domain = ?1 AND name = ?2", domain, vm, Some(definition.to_owned()))
}

fn get(db: &Connection, sql: &str, domain: &Name, vm: &Name) -> Result<Option<String>> {
    let row = db.query_row(sql, (domain.as_str(), vm.as_str()), |row| row.get::<_, Option<String>>(0)).optional();
    Ok(row.map_err(|e| failed("read a definition", e))?.flatten())
}

fn set(db: &Connection, sql: &str, domain: &Name, vm: &Name, text: Option<String>) -> Result<()> {
    db.execute(sql, (domain.as_str(), vm.as_str(), text)).map_err(|e| failed("write a definition", e))?;
    Ok(())
}
