//! Naming what could not be recovered: disk, range, and the guest's files that use it where a tool can tell.
//!
//! It reads only, and never fails the run: what cannot be told is left out.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::format::Quarantined;

use super::disks::TargetDisk;
use super::request::Damage;

/// Ranges for which files are looked up, and blocks of each: a help, not an inventory.
const MAX_LOOKUPS: usize = 16;
const MAX_BLOCKS: u64 = 256;
/// Block size that is asked for; a file system with another one gives no answer.
const BLOCK: u64 = 4096;

/// The quarantined ranges with their names.
pub(super) fn name(disks: &[Arc<TargetDisk>], quarantined: Vec<Quarantined>) -> Vec<Damage> {
    let mut out: Vec<Damage> = Vec::new();
    for q in quarantined {
        let disk = disks.iter().find(|d| d.id == q.disk);
        let label = disk.map_or_else(|| q.disk.to_string(), |d| d.label.clone());
        let files = match disk {
            Some(disk) if out.len() < MAX_LOOKUPS => files_of(&disk.path, q.offset, q.len),
            _ => Vec::new(),
        };
        out.push(Damage { disk: q.disk, label, offset: q.offset, len: q.len, why: q.why, files });
    }
    out
}

/// Files of an ext file system that starts at the first byte of the disk.
fn files_of(path: &Path, offset: u64, len: u64) -> Vec<String> {
    let first = offset / BLOCK;
    let last = (offset + len).div_ceil(BLOCK).min(first + MAX_BLOCKS);
    let blocks: Vec<String> = (first..last).map(|b| b.to_string()).collect();
    let Some(owners) = debugfs(path, &format!("icheck {}", blocks.join(" "))) else { return Vec::new() };
    let mut inodes: Vec<&str> = owners
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter(|inode| inode.parse::<u64>().is_ok())
        .collect();
    inodes.sort_unstable();
    inodes.dedup();
    if inodes.is_empty() {
        return Vec::new();
    }
    let names = debugfs(path, &format!("ncheck {}", inodes.join(" "))).unwrap_or_default();
    names.lines().skip(1).filter_map(|line| line.split_once('\t').map(|(_, name)| name.to_owned())).collect()
}

fn debugfs(path: &Path, request: &str) -> Option<String> {
    let mut command = Command::new("debugfs");
    command.args(["-R", request]).arg(path).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|o| o.status.success())?;
    String::from_utf8(output.stdout).ok()
}
