//! Moves of running guests' disks that are under way, as the API shows them: which phase, and how far each disk is.
//!
//! Owns what is known of them while this process works on them. It moves nothing and remembers nothing: that a move is
//! under way stands in the catalog. Invariants: a move is shown for as long as whoever works on it holds it; at most one of
//! each VM; rates and time left come from what was measured.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::proto;
use crate::failover::{Meter, TaskProgress};
use crate::hypervisor::{CopyStage, DiskCopy};
use crate::ids::{Name, Time};
use crate::progress::{DiskBytes, Snapshot};

pub(crate) use super::proto::MovePhase;

/// Where disks go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Onto exports.
    Onto,
    /// Back to where they were before.
    Back,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    under_way: Mutex<BTreeMap<(Name, Name), Known>>,
    /// Why the last try of a move did not come to its end.
    troubles: Mutex<BTreeMap<(Name, Name), String>>,
    /// Those that are gone on with in the background.
    kept_on: Mutex<BTreeSet<(Name, Name)>>,
}

#[derive(Debug)]
struct Known {
    direction: Direction,
    phase: MovePhase,
    /// How far each disk is, by its name.
    disks: BTreeMap<Name, MovePhase>,
    meter: Meter,
    measured: Option<TaskProgress>,
}

/// A move that is shown until this is dropped.
pub(crate) struct ShownMove<'a> {
    moves: &'a Moves,
    key: (Name, Name),
}

impl Drop for ShownMove<'_> {
    fn drop(&mut self) {
        self.moves.lock().remove(&self.key);
    }
}

impl Moves {
    /// What is behind the lock is whole at any moment.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Name, Name), Known>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A move is gone on with in the background from now on; whether it was not before: one of each VM is enough. Whoever asks
    /// has the domain's turn, as has who [ends](Self::end_keeping_on) it.
    pub(crate) fn keep_on(&self, domain: &Name, vm: &Name) -> bool {
        self.kept_on.lock().unwrap_or_else(PoisonError::into_inner).insert((domain.clone(), vm.clone()))
    }

    /// It is not gone on with any more.
    pub(crate) fn end_keeping_on(&self, domain: &Name, vm: &Name) {
        self.kept_on.lock().unwrap_or_else(PoisonError::into_inner).remove(&(domain.clone(), vm.clone()));
    }

    /// What is wrong with a move that is not done; `None` once it is.
    pub(crate) fn trouble(&self, domain: &Name, vm: &Name, why: Option<String>) {
        let key = (domain.clone(), vm.clone());
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => drop(troubles.insert(key, why)),
            None => drop(troubles.remove(&key)),
        }
    }

    /// What is wrong with moves of a domain, each with its VM.
    pub(crate) fn troubles(&self, domain: &Name) -> Vec<String> {
        let troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let own = troubles.iter().filter(|((of, _), _)| of == domain);
        own.map(|((_, vm), why)| format!("VM {vm}: its disks are not all where they are to be: {why}")).collect()
    }

    /// A move of these disks of a VM begins. Whoever begins it has the domain's turn, so that there is no other.
    pub(crate) fn begin<'a>(
        &'a self,
        domain: &Name,
        vm: &Name,
        direction: Direction,
        disks: impl Iterator<Item = &'a Name>,
    ) -> ShownMove<'a> {
        let (key, phase) = ((domain.clone(), vm.clone()), MovePhase::Preparing);
        let disks = disks.map(|disk| (disk.clone(), phase)).collect();
        self.lock().insert(key.clone(), Known { direction, phase, disks, meter: Meter::default(), measured: None });
        ShownMove { moves: self, key }
    }

    /// The moves of a domain, by VM.
    pub(crate) fn of(&self, domain: &Name) -> Vec<(Name, proto::Move)> {
        let moves = self.lock();
        let own = moves.iter().filter(|((of, _), _)| of == domain);
        own.map(|((_, vm), known)| (vm.clone(), known.shown())).collect()
    }
}

impl ShownMove<'_> {
    fn change(&self, change: impl FnOnce(&mut Known)) {
        if let Some(known) = self.moves.lock().get_mut(&self.key) {
            change(known);
        }
    }

    /// Another phase begins, for all disks.
    pub(crate) fn phase(&self, phase: MovePhase) {
        self.change(|known| known.enter(phase));
    }

    /// How far the copies are at `now`. A disk that is not among them is where it is to be.
    pub(crate) fn copies(&self, now: Time, copies: &[DiskCopy]) {
        self.change(|known| known.take(now, copies));
    }
}

/// The words for a phase.
pub fn move_words(phase: MovePhase) -> &'static str {
    match phase {
        MovePhase::Unspecified => "-",
        MovePhase::Preparing => "preparing",
        MovePhase::Copying => "copying",
        MovePhase::Pivoting => "pivoting",
        MovePhase::Moved => "moved",
        MovePhase::Leaving => "leaving",
    }
}

impl Known {
    fn enter(&mut self, phase: MovePhase) {
        self.phase = phase;
        self.disks.values_mut().for_each(|disk| *disk = phase);
    }

    fn take(&mut self, now: Time, copies: &[DiskCopy]) {
        let copying = copies.iter().any(|copy| copy.stage == CopyStage::Copying);
        self.phase = if copying { MovePhase::Copying } else { MovePhase::Pivoting };
        for (name, phase) in &mut self.disks {
            *phase = match copies.iter().find(|copy| copy.disk == *name).map(|copy| copy.stage) {
                Some(CopyStage::Moved) | None => MovePhase::Moved,
                Some(_) => self.phase,
            };
        }
        let disks = copies.iter().map(|copy| DiskBytes {
            disk: copy.disk.to_string(),
            total: copy.total,
            done: copy.done.min(copy.total),
        });
        let disks: Vec<DiskBytes> = disks.collect();
        let (done, total) = disks.iter().fold((0, 0), |(done, total), of| (done + of.done, total + of.total));
        let snapshot = Snapshot { stage: move_words(self.phase), total, done, disks, ..Snapshot::default() };
        self.measured = Some(self.meter.take(now, snapshot));
    }

    fn shown(&self) -> proto::Move {
        let measured = self.measured.clone().unwrap_or_default();
        let whole = |number: f64| number.ceil() as u64;
        let rate = |rate: f64| (rate > 0.0).then(|| whole(rate));
        let disks = self.disks.iter().map(|(name, phase)| {
            let of = measured.disks.iter().find(|of| of.disk == name.as_str()).cloned().unwrap_or_default();
            proto::MovingDisk {
                name: name.to_string(),
                phase: (*phase).into(),
                done_bytes: of.done_bytes,
                total_bytes: of.total_bytes,
                rate_bytes: rate(of.bytes_per_second),
                eta_s: of.eta_seconds.map(whole),
            }
        });
        proto::Move {
            phase: self.phase.into(),
            back: self.direction == Direction::Back,
            done_bytes: measured.done_bytes,
            total_bytes: measured.total_bytes,
            rate_bytes: rate(measured.bytes_per_second),
            eta_s: measured.eta_seconds.map(whole),
            disks: disks.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_shown_with_rates_from_what_was_measured_until_nobody_works_on_it() {
        let name = |text: &str| Name::new(text).unwrap();
        let (moves, d, web, a, b) = (Moves::default(), name("d"), name("web"), name("vda"), name("vdb"));
        let copy = |disk: &Name, stage, done| DiskCopy { disk: disk.clone(), stage, done, total: 1000 };
        let now = Time::from_millis;
        let shown = moves.begin(&d, &web, Direction::Onto, [&a, &b].into_iter());
        let is = |phase: MovePhase, disks: [MovePhase; 2], done: u64| {
            let [(vm, told)] = moves.of(&d).try_into().unwrap();
            let told_disks: Vec<MovePhase> = told.disks.iter().map(proto::MovingDisk::phase).collect();
            assert_eq!((vm, told.phase(), told_disks, told.done_bytes), (web.clone(), phase, disks.to_vec(), done));
            told
        };
        use MovePhase::{Copying, Leaving, Moved, Pivoting, Preparing};
        let told = is(Preparing, [Preparing; 2], 0);
        assert!(!told.back && told.eta_s.is_none() && told.disks[0].total_bytes == 0);
        shown.copies(now(0), &[copy(&a, CopyStage::Copying, 0), copy(&b, CopyStage::Copying, 0)]);
        shown.copies(now(2000), &[copy(&a, CopyStage::Ready, 1000), copy(&b, CopyStage::Copying, 200)]);
        let told = is(Copying, [Copying; 2], 1200);
        assert_eq!((told.total_bytes, told.rate_bytes, told.eta_s), (2000, Some(600), Some(2)));
        assert_eq!((told.disks[1].rate_bytes, told.disks[1].eta_s), (Some(100), Some(8)));
        shown.copies(now(9000), &[copy(&a, CopyStage::Ready, 1000), copy(&b, CopyStage::Ready, 1000)]);
        is(Pivoting, [Pivoting; 2], 2000);
        shown.copies(now(9100), &[copy(&a, CopyStage::Moved, 1000), copy(&b, CopyStage::Ready, 1000)]);
        is(Pivoting, [Moved, Pivoting], 2000);
        shown.phase(Leaving);
        is(Leaving, [Leaving; 2], 2000);
        assert!(moves.of(&name("other")).is_empty());
        drop(shown);
        assert!(moves.of(&d).is_empty());
        // One disk had moved in a call before.
        let shown = moves.begin(&d, &web, Direction::Back, [&a, &b].into_iter());
        shown.copies(now(0), &[copy(&b, CopyStage::Copying, 5)]);
        assert!(is(Copying, [Moved, Copying], 5).back);
        moves.trouble(&d, &web, Some("no room".to_owned()));
        assert!(moves.troubles(&d)[0].starts_with("VM web: ") && moves.troubles(&d)[0].ends_with("no room"));
        assert!(moves.troubles(&name("other")).is_empty());
        moves.trouble(&d, &web, None);
        assert!(moves.troubles(&d).is_empty());
        assert!(moves.keep_on(&d, &web) && !moves.keep_on(&d, &web), "one is enough");
        moves.end_keeping_on(&d, &web);
        assert!(moves.keep_on(&d, &web));
    }
}
