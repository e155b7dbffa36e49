//! Damage of disks that follow a domain, as the API shows it: VMs that are not recoverable, and problems that name what.
//!
//! It decides nothing, and knows only what a follower could not have; what it shows is bounded.

use std::collections::HashSet;

use super::proto::{self, ProtectionStatus};
use super::view::together;
use crate::progress::DiskDamage;

/// Most disks whose damage is told one by one.
const MOST_DAMAGED: usize = 1000;
/// Most of them that are problems of their own.
const DAMAGE_PROBLEMS: usize = 16;

/// Damage of disks, the worst first.
pub(super) fn damage_of(damage: &[DiskDamage]) -> Vec<proto::DiskDamage> {
    let mut worst: Vec<&DiskDamage> = damage.iter().collect();
    worst.sort_by_key(|of| std::cmp::Reverse(of.bytes));
    let of = |of: &DiskDamage| proto::DiskDamage {
        vm: of.vm.clone(),
        disk: of.disk.clone(),
        ranges: of.ranges,
        bytes: of.bytes,
    };
    worst.into_iter().take(MOST_DAMAGED).map(of).collect()
}

/// VMs whose disks here lack something are not recoverable, whatever point covers them, and the problems say what.
pub(super) fn tell_damage(view: &mut proto::Domain, damage: &[DiskDamage]) {
    if damage.is_empty() {
        return;
    }
    let vms: HashSet<&str> = damage.iter().map(|of| of.vm.as_str()).collect();
    for vm in view.vms.iter_mut().filter(|vm| vms.contains(vm.name.as_str())) {
        vm.set_status(ProtectionStatus::Error);
    }
    view.set_status(if view.vms.is_empty() { ProtectionStatus::Error } else { together(&view.vms) });
    let mut problems: Vec<String> =
        damage.iter().take(DAMAGE_PROBLEMS).map(|of| format!("damage here: {of}")).collect();
    if damage.len() > DAMAGE_PROBLEMS {
        problems.push(format!("damage here: {} further disks", damage.len() - DAMAGE_PROBLEMS));
    }
    view.problems.append(&mut problems);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_makes_its_vms_not_recoverable_and_is_named() {
        let recoverable = ProtectionStatus::Recoverable.into();
        let vm = |name: &str| proto::Vm { name: name.into(), status: recoverable, ..proto::Vm::default() };
        let mut view = proto::Domain { vms: vec![vm("web"), vm("db")], ..proto::Domain::default() };
        tell_damage(&mut view, &[]);
        assert!(view.problems.is_empty());
        let damage = |n: u64| DiskDamage { vm: "db".into(), disk: format!("d{n}"), ranges: 1, bytes: n };
        let all: Vec<_> = (1..=20).map(damage).collect();
        tell_damage(&mut view, &all);
        assert_eq!(view.status(), ProtectionStatus::PartiallyRecoverable);
        assert_eq!(
            view.vms.iter().map(proto::Vm::status).collect::<Vec<_>>(),
            [ProtectionStatus::Recoverable, ProtectionStatus::Error]
        );
        assert_eq!(view.problems.len(), DAMAGE_PROBLEMS + 1);
        assert!(view.problems[0].contains("VM db, disk d1: 1 bytes in one range"), "{:?}", view.problems);
        assert!(view.problems[DAMAGE_PROBLEMS].contains("4 further disks"), "{:?}", view.problems);
        assert_eq!(damage_of(&all)[0].bytes, 20, "the worst is the first");
    }
}
