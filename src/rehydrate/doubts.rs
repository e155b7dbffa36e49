//! Which disks may hold other bytes than the hydration map says. Pure.

use std::collections::BTreeSet;

use crate::ids::DiskId;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Doubts {
    /// Every disk is in doubt.
    pub(super) all: bool,
    /// Disks of which nothing is believed: all of their bytes are hashed, and fetched where they differ.
    pub(super) whole: BTreeSet<DiskId>,
    /// Disks whose missing bytes may well be there: they are hashed before they are fetched.
    pub(super) parts: BTreeSet<DiskId>,
}

impl Doubts {
    /// Nothing of it is believed.
    pub(super) fn distrusts(&self, disk: DiskId) -> bool {
        self.all || self.whole.contains(&disk)
    }

    /// What is missing of it is looked for on it first.
    pub(super) fn hashes(&self, disk: DiskId) -> bool {
        self.distrusts(disk) || self.parts.contains(&disk)
    }

    /// Whether any disk may hold other bytes than the map says.
    pub(super) fn any(&self) -> bool {
        self.all || !self.whole.is_empty()
    }
}
