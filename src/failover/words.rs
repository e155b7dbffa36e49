//! The words that an operator sees for a domain and a VM, spelled as the reference spells them, and how they follow from
//! facts.
//!
//! No I/O, nothing remembered: a status that is stored can lie.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::facts::{DomainFacts, LocalDisks};
use super::task::TaskKind;

/// The mode of a domain at this site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainMode {
    /// This site owns it, and is its home.
    Protected,
    /// Another site owns it; nothing runs here for it.
    Imported,
    /// A failover to this site is under way.
    FailoverInProgress,
    /// Disks at this site follow the domain.
    ContinuousRehydrationInProgress,
    /// This site owns it, and another site is its home.
    RunningInFailover,
    /// A failback to this site is under way.
    FailbackInProgress,
    /// A test failover runs at this site.
    TestFailoverInProgress,
    /// Another site took it over from this one; what was not shipped is kept here.
    Fenced,
}

impl DomainMode {
    /// All of them.
    pub const ALL: [DomainMode; 8] = [
        DomainMode::Protected,
        DomainMode::Imported,
        DomainMode::FailoverInProgress,
        DomainMode::ContinuousRehydrationInProgress,
        DomainMode::RunningInFailover,
        DomainMode::FailbackInProgress,
        DomainMode::TestFailoverInProgress,
        DomainMode::Fenced,
    ];

    /// As an operator sees it.
    pub fn word(self) -> &'static str {
        match self {
            DomainMode::Protected => "Protected",
            DomainMode::Imported => "Imported",
            DomainMode::FailoverInProgress => "Failover in Progress",
            DomainMode::ContinuousRehydrationInProgress => "Continuous Rehydration in Progress",
            DomainMode::RunningInFailover => "Running in Failover",
            DomainMode::FailbackInProgress => "Failback in Progress",
            DomainMode::TestFailoverInProgress => "Test Failover in Progress",
            DomainMode::Fenced => "Fenced",
        }
    }

    /// The mode while a task of this kind works on a domain that is at home here, or not; `None` where the task leaves it as
    /// it is.
    pub fn during(kind: TaskKind, home: bool) -> Option<DomainMode> {
        match kind {
            TaskKind::Failover | TaskKind::Complete { .. } if !home => Some(DomainMode::FailoverInProgress),
            TaskKind::Failover | TaskKind::Failback | TaskKind::Complete { .. } => Some(DomainMode::FailbackInProgress),
            _ => None,
        }
    }

    /// The mode that follows from `facts` while a task of kind `running` is under way, or none.
    pub fn of(facts: &DomainFacts, running: Option<TaskKind>) -> DomainMode {
        let home = facts.home == facts.site;
        if let Some(mode) = running.and_then(|kind| DomainMode::during(kind, home)) {
            return mode;
        }
        if facts.is_owner() {
            return if home { DomainMode::Protected } else { DomainMode::RunningInFailover };
        }
        match (&facts.follow, facts.disks) {
            (Some(_), _) => DomainMode::ContinuousRehydrationInProgress,
            (None, LocalDisks::Diverged { .. }) => DomainMode::Fenced,
            // Released and not taken yet: the domain is still this site's.
            (None, _) if facts.owner.site == facts.site && home => DomainMode::Protected,
            (None, _) if facts.owner.site == facts.site => DomainMode::RunningInFailover,
            (None, _) => DomainMode::Imported,
        }
    }
}

impl fmt::Display for DomainMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The status of a VM, and of a domain by its VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmStatus {
    /// Its protection starts.
    Initializing,
    /// Its disks are read for the first time; no point covers it yet.
    InitialSync,
    /// A recent point covers it.
    Recoverable,
    /// Regions of its disks are read back; its last point stays recoverable.
    Resync,
    /// Something must be done; its last point, if there is one, stays recoverable.
    Error,
    /// It is not protected.
    Unprotected,
    /// Of a domain only: some of its VMs are recoverable, others not.
    PartiallyRecoverable,
}

impl VmStatus {
    /// All of them.
    pub const ALL: [VmStatus; 7] = [
        VmStatus::Initializing,
        VmStatus::InitialSync,
        VmStatus::Recoverable,
        VmStatus::Resync,
        VmStatus::Error,
        VmStatus::Unprotected,
        VmStatus::PartiallyRecoverable,
    ];

    /// As an operator sees it.
    pub fn word(self) -> &'static str {
        match self {
            VmStatus::Initializing => "Initializing",
            VmStatus::InitialSync => "Initial Sync",
            VmStatus::Recoverable => "Recoverable",
            VmStatus::Resync => "Resync",
            VmStatus::Error => "Error",
            VmStatus::Unprotected => "Unprotected",
            VmStatus::PartiallyRecoverable => "Partially Recoverable",
        }
    }

    /// The one of this word.
    pub fn from_word(word: &str) -> Option<VmStatus> {
        VmStatus::ALL.into_iter().find(|status| status.word() == word)
    }

    /// It is protected, and the newest point does not cover it: that it comes to be covered can be waited for.
    pub fn is_behind(self) -> bool {
        !matches!(self, VmStatus::Recoverable | VmStatus::Unprotected)
    }

    /// The status of a domain with VMs of these statuses: the one that all have; `Partially Recoverable` where only
    /// some are recoverable; else the worst. Those that are not protected count for nothing; `Unprotected` where there are no
    /// others.
    pub fn of_domain(vms: &[VmStatus]) -> VmStatus {
        let vms: Vec<VmStatus> = vms.iter().copied().filter(|status| *status != VmStatus::Unprotected).collect();
        let recoverable = vms.iter().filter(|s| **s == VmStatus::Recoverable).count();
        if recoverable > 0 {
            return match recoverable == vms.len() {
                true => VmStatus::Recoverable,
                false => VmStatus::PartiallyRecoverable,
            };
        }
        const WORST_FIRST: [VmStatus; 4] =
            [VmStatus::Error, VmStatus::Resync, VmStatus::InitialSync, VmStatus::Initializing];
        WORST_FIRST.into_iter().find(|s| vms.contains(s)).unwrap_or(VmStatus::Unprotected)
    }
}

impl fmt::Display for VmStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}
