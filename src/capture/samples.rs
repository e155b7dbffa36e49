//! Names and VMs for the unit tests of this module.

use super::request::{DiskSource, VmSource};
use crate::ids::Name;

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A VM whose disks are at `/<disk>`.
pub(super) fn vm(vm: &str, disks: &[&str]) -> VmSource {
    let disks = disks.iter().map(|d| DiskSource { name: name(d), path: format!("/{d}").into(), size: None }).collect();
    VmSource { name: name(vm), disks, definition: None }
}
