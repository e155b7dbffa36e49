//! Fields of requests: checked once, named where they are wrong.

use std::path::PathBuf;
use std::time::Duration;

use crate::capture::{DiskSource, VmDefinition, VmSource};
use crate::control::fault::{Done, Fault};
use crate::control::proto;
use crate::format::{Nic, VmShape};
use crate::ids::Name;

/// Most disks of a VM.
const MOST_DISKS: usize = 1024;
const MOST_DEFINITION: usize = 4 << 20;
const MOST_WORD: usize = 1024;
const MOST_NICS: usize = 1024;
/// Longest path.
const MOST_PATH: usize = 4096;

/// A name.
pub(super) fn name(field: &str, text: &str) -> Done<Name> {
    Name::new(text).map_err(|e| Fault::field(field, e))
}

/// An absolute path.
pub(super) fn path(field: &str, text: &str) -> Done<PathBuf> {
    let good = text.starts_with('/') && text.len() <= MOST_PATH && !text.chars().any(char::is_control);
    match good {
        true => Ok(PathBuf::from(text)),
        false => {
            let mut shown = text.to_owned();
            crate::control::catalog::cut(&mut shown, 100);
            Err(Fault::field(field, format!("{shown:?} is not an absolute path of at most {MOST_PATH} bytes")))
        }
    }
}

fn disk(field: &str, spec: &proto::DiskSpec) -> Done<DiskSource> {
    if spec.size_bytes.is_some_and(|size| size == 0 || i64::try_from(size).is_err()) {
        return Err(Fault::field(format!("{field}.size_bytes"), "must be 1 to 2^63 - 1"));
    }
    Ok(DiskSource {
        name: name(&format!("{field}.name"), &spec.name)?,
        path: path(&format!("{field}.path"), &spec.path)?,
        size: spec.size_bytes,
    })
}

/// Disks of a VM that are to be protected.
pub(super) fn disks(field: &str, specs: &[proto::DiskSpec]) -> Done<Vec<DiskSource>> {
    if specs.is_empty() || specs.len() > MOST_DISKS {
        return Err(Fault::field(field, format!("{} disks, must be 1 to {MOST_DISKS}", specs.len())));
    }
    let mut out: Vec<DiskSource> = Vec::with_capacity(specs.len());
    for (i, spec) in specs.iter().enumerate() {
        let at = format!("{field}[{i}]");
        let disk = disk(&at, spec)?;
        if out.iter().any(|known| known.name == disk.name) {
            return Err(Fault::field(format!("{at}.name"), format!("{} is there twice", disk.name)));
        }
        if out.iter().any(|known| known.path == disk.path) {
            return Err(Fault::field(format!("{at}.path"), format!("{} is there twice", disk.path.display())));
        }
        out.push(disk);
    }
    Ok(out)
}

/// A VM that is to be protected.
pub(super) fn vm(request: &proto::ProtectVmRequest) -> Done<VmSource> {
    Ok(VmSource {
        name: name("vm", &request.vm)?,
        disks: disks("disks", &request.disks)?,
        definition: request.definition.as_ref().map(definition).transpose()?,
    })
}

fn definition(sent: &proto::VmDefinition) -> Done<VmDefinition> {
    let bound = |field: &str, text: &str, most: usize| match text.len() <= most {
        true => Ok(text.to_owned()),
        false => Err(Fault::field(format!("definition.{field}"), format!("{} bytes, at most {most}", text.len()))),
    };
    if !matches!(sent.firmware.as_str(), "" | "bios" | "uefi") {
        return Err(Fault::field("definition.firmware", "must be bios, uefi or empty"));
    }
    if sent.nics.len() > MOST_NICS {
        return Err(Fault::field("definition.nics", format!("{} cards, at most {MOST_NICS}", sent.nics.len())));
    }
    if sent.text.is_empty() != sent.kind.is_empty() {
        return Err(Fault::field("definition.kind", "goes with a text, and a text with a kind"));
    }
    let nics = sent.nics.iter().map(|nic| {
        let word = |field: &str, text: &str| bound(&format!("nics.{field}"), text, MOST_WORD);
        Ok(Nic {
            mac: word("mac", &nic.mac)?,
            network: word("network", &nic.network)?,
            model: word("model", &nic.model)?,
        })
    });
    let shape = VmShape {
        cpus: sent.cpus,
        memory_bytes: sent.memory_bytes,
        firmware: sent.firmware.clone(),
        nics: nics.collect::<Done<_>>()?,
    };
    Ok(VmDefinition {
        kind: bound("kind", &sent.kind, MOST_WORD)?,
        text: bound("text", &sent.text, MOST_DEFINITION)?,
        shape,
    })
}

/// How many entries a page has.
pub(super) fn page_size(asked: u32, usual: usize, most: usize) -> Done<usize> {
    match asked {
        0 => Ok(usual),
        n if n as usize <= most => Ok(n as usize),
        n => Err(Fault::field("page_size", format!("is {n}, at most {most}"))),
    }
}

/// A time in milliseconds; 0 is `usual`.
pub(super) fn millis(field: &str, asked: u64, usual: Duration, most: Duration) -> Done<Duration> {
    match asked {
        0 => Ok(usual),
        n if Duration::from_millis(n) <= most => Ok(Duration::from_millis(n)),
        n => Err(Fault::field(field, format!("is {n}, at most {}", most.as_millis()))),
    }
}
