//! Progress of one operation: counts that only grow, set by the work and read by whoever shows them.
//!
//! It never guesses: rates and ETA are derived by the reader from counts and time. Invariants: `done` counts unique live
//! bytes, each once however often it was fetched; it never falls, and never passes `total` once the total is known.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::ids::{Name, SegmentNo, Time};

/// Counts of one operation. Shared; all methods are cheap.
#[derive(Debug, Default)]
pub struct Progress {
    stage: Mutex<&'static str>,
    total: AtomicU64,
    done: AtomicU64,
    moved: AtomicU64,
    /// Total and done of each disk.
    disks: Mutex<BTreeMap<String, (u64, u64)>>,
    landed: Mutex<Option<Stand>>,
    applied: Mutex<Option<Stand>>,
    unapplied: AtomicU64,
    /// By VM and disk.
    damage: Mutex<BTreeMap<(String, String), (u64, u64)>>,
    trouble: Mutex<Option<String>>,
    notes: Mutex<Vec<String>>,
    /// Disks that are here.
    here: Mutex<Arc<Vec<(Name, Name)>>>,
    memory: OnceLock<Probe>,
}

/// Looks how much memory is used.
struct Probe(Box<dyn Fn() -> Vec<MemoryUse> + Send + Sync>);

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Probe")
    }
}

/// One part of a budget of memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct MemoryUse {
    /// What it is for, in a word or two.
    pub part: String,
    /// Bytes that are used now.
    pub used: u64,
    /// Bytes that it has.
    pub size: u64,
}

impl MemoryUse {
    /// A part of a budget.
    pub fn new(part: &str, used: u64, size: u64) -> MemoryUse {
        MemoryUse { part: part.to_owned(), used, size }
    }
}

/// A point that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stand {
    /// Its number.
    pub point: SegmentNo,
    /// Its time.
    pub time: Time,
}

/// How far one disk is.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct DiskBytes {
    /// `vm/disk`.
    pub disk: String,
    /// Unique live bytes in all, as far as they are known.
    pub total: u64,
    /// Of these, what is done.
    pub done: u64,
}

/// What could not be had of one disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct DiskDamage {
    /// VM that it belongs to.
    pub vm: String,
    /// Its name within the VM.
    pub disk: String,
    /// How many ranges.
    pub ranges: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl fmt::Display for DiskDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DiskDamage { vm, disk, ranges, bytes } = self;
        let places = if *ranges == 1 { "one range".to_owned() } else { format!("{ranges} ranges") };
        write!(f, "VM {vm}, disk {disk}: {bytes} bytes in {places} could not be recovered")
    }
}

/// What [`Progress`] stood at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// What is being done now, in a few words.
    pub stage: &'static str,
    /// Unique live bytes in all; 0 while not known.
    pub total: u64,
    /// Unique live bytes that are done.
    pub done: u64,
    /// Bytes moved to or from the storage site.
    pub moved: u64,
    /// The same as `total` and `done` for each disk, by name, where the work is counted by disks; at most [`MAX_DISKS`].
    pub disks: Vec<DiskBytes>,
    /// The last point up to which the log is durable; only where a log is used.
    pub landed: Option<Stand>,
    /// The last point that the disks equal.
    pub applied: Option<Stand>,
    /// Bytes of the log that are in use: what landed and is not applied.
    pub unapplied: u64,
    /// What could not be had, disk by disk; empty where all could.
    pub damage: Vec<DiskDamage>,
    /// What the work waits for that should not be so, such as a storage site that does not answer.
    pub trouble: Option<String>,
    /// VM and name of each disk that is here and takes part, where that is known; at most [`MAX_DISKS`].
    pub here: Arc<Vec<(Name, Name)>>,
    /// The budget of memory by its parts, where somebody counts that.
    pub memory: Vec<MemoryUse>,
}

/// Most notes that wait to be shown; further ones are dropped, since the report holds them too.
const MAX_NOTES: usize = 1000;
/// Most disks that are counted each by itself; the sums count all.
pub const MAX_DISKS: usize = 1000;

impl Progress {
    /// Nothing done yet.
    pub fn new() -> Progress {
        Progress::default()
    }

    /// A new stage began.
    pub fn stage(&self, stage: &'static str) {
        *lock(&self.stage) = stage;
    }

    /// More bytes belong to the work.
    pub fn add_total(&self, bytes: u64) {
        self.total.fetch_add(bytes, Relaxed);
    }

    /// More bytes are done.
    pub fn add_done(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }

    /// More bytes of a disk, `vm/disk`, belong to the work.
    pub fn add_disk_total(&self, disk: &str, bytes: u64) {
        self.add_total(bytes);
        self.of_disk(disk, |(total, _)| *total += bytes);
    }

    /// More bytes of a disk are done.
    pub fn add_disk_done(&self, disk: &str, bytes: u64) {
        self.add_done(bytes);
        self.of_disk(disk, |(_, done)| *done += bytes);
    }

    /// Each disk stands where somebody else counted it to be; the sums do not change.
    pub fn disks_are(&self, disks: &[DiskBytes]) {
        let all = disks.iter().take(MAX_DISKS).map(|of| (of.disk.clone(), (of.total, of.done)));
        *lock(&self.disks) = all.collect();
    }

    /// These disks, by VM and name, are here and take part from now on; no others.
    pub fn disks_here(&self, disks: impl Iterator<Item = (Name, Name)>) {
        *lock(&self.here) = Arc::new(disks.take(MAX_DISKS).collect());
    }

    /// From now on `probe` tells how much memory is used. Only the first one is taken.
    pub fn count_memory(&self, probe: impl Fn() -> Vec<MemoryUse> + Send + Sync + 'static) {
        let _ = self.memory.set(Probe(Box::new(probe)));
    }

    fn of_disk(&self, disk: &str, change: impl FnOnce(&mut (u64, u64))) {
        let mut disks = lock(&self.disks);
        if let Some(of) = disks.get_mut(disk) {
            change(of);
        } else if disks.len() < MAX_DISKS {
            change(disks.entry(disk.to_owned()).or_default());
        }
    }

    /// More bytes went over the wire.
    pub fn add_moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Relaxed);
    }

    /// The log is durable up to this point; told of an earlier one than before, nothing changes.
    pub fn landed(&self, point: SegmentNo, time: Time) {
        let mut landed = lock(&self.landed);
        if landed.is_none_or(|before| before.point < point) {
            *landed = Some(Stand { point, time });
        }
    }

    /// The disks equal this point.
    pub fn applied(&self, point: SegmentNo, time: Time) {
        *lock(&self.applied) = Some(Stand { point, time });
    }

    /// Nothing has landed that counts: a take-over cut it off.
    pub fn cut_off(&self) {
        *lock(&self.landed) = None;
    }

    /// Bytes of the log that are in use.
    pub fn unapplied(&self, bytes: u64) {
        self.unapplied.store(bytes, Relaxed);
    }

    /// This, and no more, could not be had.
    pub fn damage_is(&self, damage: impl IntoIterator<Item = DiskDamage>) {
        *lock(&self.damage) = damage.into_iter().map(|of| ((of.vm, of.disk), (of.ranges, of.bytes))).collect();
    }

    /// At least this could not be had of a disk. What was told of it before stays until it is known to be repaired.
    pub fn damage_grows(&self, damage: DiskDamage) {
        let mut all = lock(&self.damage);
        let (ranges, bytes) = all.entry((damage.vm, damage.disk)).or_default();
        (*ranges, *bytes) = ((*ranges).max(damage.ranges), (*bytes).max(damage.bytes));
    }

    /// What the work waits for; `None` once it goes on.
    pub fn trouble(&self, why: Option<String>) {
        *lock(&self.trouble) = why;
    }

    /// Something to tell at once, such as a point that was applied or a range that is damaged.
    pub fn note(&self, text: impl Into<String>) {
        let mut notes = lock(&self.notes);
        if notes.len() < MAX_NOTES {
            notes.push(text.into());
        }
    }

    /// Takes the notes that were not shown yet.
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.notes))
    }

    /// Where it stands.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            stage: *lock(&self.stage),
            total: self.total.load(Relaxed),
            done: self.done.load(Relaxed),
            moved: self.moved.load(Relaxed),
            disks: {
                let disks = lock(&self.disks);
                let of = |(disk, (total, done)): (&String, &(u64, u64))| DiskBytes {
                    disk: disk.clone(),
                    total: *total,
                    done: *done,
                };
                disks.iter().map(of).collect()
            },
            landed: *lock(&self.landed),
            applied: *lock(&self.applied),
            unapplied: self.unapplied.load(Relaxed),
            damage: {
                let damage = lock(&self.damage);
                let of = |((vm, disk), (ranges, bytes)): (&(String, String), &(u64, u64))| DiskDamage {
                    vm: vm.clone(),
                    disk: disk.clone(),
                    ranges: *ranges,
                    bytes: *bytes,
                };
                damage.iter().map(of).collect()
            },
            trouble: lock(&self.trouble).clone(),
            here: Arc::clone(&lock(&self.here)),
            memory: self.memory.get().map(|probe| (probe.0)()).unwrap_or_default(),
        }
    }
}

/// What is behind these locks is whole at any moment, so that a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_add_up_to_the_sums_and_are_bounded() {
        let progress = Progress::new();
        for n in 0..MAX_DISKS + 5 {
            progress.add_disk_total(&format!("web/{n}"), 10);
        }
        progress.add_disk_done("web/3", 4);
        progress.add_disk_done("web/3", 2);
        let now = progress.snapshot();
        assert_eq!((now.total, now.done, now.disks.len()), (10 * (MAX_DISKS as u64 + 5), 6, MAX_DISKS));
        let third = now.disks.iter().find(|of| of.disk == "web/3").unwrap();
        assert_eq!((third.total, third.done), (10, 6));
        let elsewhere = DiskBytes { disk: "db/a".into(), total: 7, done: 7 };
        progress.disks_are(std::slice::from_ref(&elsewhere));
        assert_eq!(progress.snapshot().disks, [elsewhere]);
        assert_eq!(progress.snapshot().done, 6);
        let name = |text: String| Name::new(text.as_str()).unwrap();
        progress.disks_here((0..MAX_DISKS + 5).map(|n| (name("web".into()), name(n.to_string()))));
        assert_eq!(progress.snapshot().here.len(), MAX_DISKS);
        assert_eq!(progress.snapshot().memory, []);
        progress.count_memory(|| vec![MemoryUse::new("fetched", 1, 2)]);
        progress.count_memory(Vec::new);
        assert_eq!(progress.snapshot().memory, [MemoryUse::new("fetched", 1, 2)]);
    }

    #[test]
    fn damage_that_is_tried_again_counts_until_it_is_known_what_came_of_it() {
        let progress = Progress::new();
        let damage = |ranges, bytes| DiskDamage { vm: "web".into(), disk: "root".into(), ranges, bytes };
        progress.damage_grows(damage(2, 100));
        progress.damage_grows(damage(1, 30));
        assert_eq!(progress.snapshot().damage, [damage(2, 100)]);
        assert_eq!(damage(2, 100).to_string(), "VM web, disk root: 100 bytes in 2 ranges could not be recovered");
        progress.damage_is([damage(1, 30)]);
        assert_eq!(progress.snapshot().damage, [damage(1, 30)]);
        progress.damage_is([]);
        assert!(progress.snapshot().damage.is_empty());
    }
}
