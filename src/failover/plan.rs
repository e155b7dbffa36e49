//! What an operator decides before a failover: the six stages of the guided steps as one message.
//!
//! Plain data. Whether it can work is found by holding it against what is at the site.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::runbook::Runbook;
use super::task::TaskKind;
use crate::ids::{Name, SegmentNo, Time};
use crate::rehydrate::Target;

/// When data comes: at the failover, or from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailoverMode {
    /// Recover now and run.
    AsNeeded,
    /// Follow from now on, and run on command.
    Continuous,
}

/// Whether the domain leaves its home or comes back to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To a recovery site.
    Failover,
    /// Back home.
    Failback,
}

/// Stage 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct General {
    /// The domain.
    pub domain: Name,
    /// As needed or continuous.
    pub mode: FailoverMode,
    /// There or back.
    pub direction: Direction,
}

/// Stage 2a.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverSettings {
    /// Where VMs are placed, in the hypervisor's words, such as datacenter, cluster, resource pool.
    #[serde(default)]
    pub placement: BTreeMap<String, String>,
    /// Directory of the recovered disks.
    pub datastore: PathBuf,
    /// The owner is asked to shut its guests down and to release the domain; else it is taken by force. Of a continuous
    /// failover it is decided at completion.
    #[serde(default)]
    pub planned: bool,
}

/// What differs for one VM.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSetting {
    /// Networks of its cards, from the first on; where one is empty or missing the mapping counts.
    #[serde(default)]
    pub networks: Vec<String>,
    /// Storage policy; the plan's where empty.
    #[serde(default)]
    pub storage_policy: String,
    /// Virtual processors, where they differ.
    #[serde(default)]
    pub cpus: Option<u32>,
    /// Memory in bytes, where it differs.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
}

/// Stage 2b.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSettings {
    /// Network of this site for cards that nothing else maps; none where empty.
    #[serde(default)]
    pub default_network: String,
    /// Network of the protected site to network of this one.
    #[serde(default)]
    pub networks: BTreeMap<String, String>,
    /// Storage policy of all VMs; none where empty.
    #[serde(default)]
    pub storage_policy: String,
    /// What differs for single VMs.
    #[serde(default)]
    pub vms: BTreeMap<Name, VmSetting>,
}

/// Stage 3. Names of networks as the appliance's site calls them; empty ones are not used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplianceNetworks {
    /// To the storage site.
    #[serde(default)]
    pub replication: String,
    /// To the hypervisors.
    #[serde(default)]
    pub internal: String,
    /// To operators.
    #[serde(default)]
    pub management: String,
}

/// Stage 4.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrSettings {
    /// The appliance that serves the domain; this one where empty.
    #[serde(default)]
    pub appliance: String,
    /// Directory of the replication log.
    pub log_store: PathBuf,
    /// Size of the replication log in bytes. In settings for another site 0 is that site's setting, as of `memory`.
    pub log_size: u64,
    /// Room for maps and bitmaps in bytes.
    pub metadata_size: u64,
    /// Budget for buffers in bytes.
    pub memory: u64,
}

/// Which point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointChoice {
    /// The newest one.
    #[default]
    Newest,
    /// The one of this number.
    Number(SegmentNo),
    /// The newest at or before this time.
    At(Time),
}

impl From<PointChoice> for Target {
    fn from(choice: PointChoice) -> Target {
        match choice {
            PointChoice::Newest => Target::Newest,
            PointChoice::Number(n) => Target::Point(n),
            PointChoice::At(time) => Target::At(time),
        }
    }
}

/// How the old site is to follow the domain after it handed it over: what an operator would decide there. It travels
/// through the storage site, and the old site validates it before it hands anything over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteSettings {
    /// As in [`FailoverPlan`], at the old site.
    pub failover: FailoverSettings,
    /// As in [`FailoverPlan`], at the old site.
    #[serde(default)]
    pub vms: VmSettings,
    /// As in [`FailoverPlan`], at the old site.
    #[serde(default)]
    pub appliance_networks: ApplianceNetworks,
    /// As in [`FailoverPlan`], at the old site.
    pub dr: DrSettings,
    /// Runbook of the failback.
    #[serde(default)]
    pub runbook: Option<Runbook>,
}

impl RemoteSettings {
    /// The plan by which the old site follows `domain` in place; it is back `home` there where `direction` says so.
    pub fn to_plan(&self, domain: Name, direction: Direction) -> FailoverPlan {
        FailoverPlan {
            general: General { domain, mode: FailoverMode::Continuous, direction },
            failover: self.failover.clone(),
            vms: self.vms.clone(),
            appliance_networks: self.appliance_networks.clone(),
            dr: self.dr.clone(),
            options: Options { in_place: true, runbook: self.runbook.clone(), ..Options::default() },
        }
    }
}

/// Seconds that the owner has to release the domain before the operator is asked, unless told otherwise.
pub const DEFAULT_RELEASE_LIMIT: u64 = 3600;
/// Seconds that guests have to shut down before the operator is asked, unless told otherwise.
pub const DEFAULT_SHUTDOWN_LIMIT: u64 = 300;

/// What is not asked for on every failover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The point to run from. A planned failover runs from the owner's final point, whatever stands here.
    pub point: PointChoice,
    /// Take the domain by force, and lose what the summary says.
    pub accept_loss: bool,
    /// The owner that the summary named: where the domain belongs to another by now, nothing is done. Any where there is
    /// none.
    pub from: Option<Name>,
    /// Run guests on disks with named damage.
    pub accept_damage: bool,
    /// Use the disks that this site protected before, where they are, and fetch only what differs.
    pub in_place: bool,
    /// Overwrite what this site wrote and never shipped.
    pub accept_divergence: bool,
    /// The old site follows the domain afterwards.
    pub resume_remote: Option<RemoteSettings>,
    /// Start order and scripts; all VMs start in the domain's order where there is none.
    pub runbook: Option<Runbook>,
    /// Seconds that the owner has to release the domain before the operator is asked; 1 to 604,800.
    pub release_limit_seconds: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            point: PointChoice::Newest,
            accept_loss: false,
            from: None,
            accept_damage: false,
            in_place: false,
            accept_divergence: false,
            resume_remote: None,
            runbook: None,
            release_limit_seconds: DEFAULT_RELEASE_LIMIT,
        }
    }
}

/// A failover or failback, as needed or continuous.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverPlan {
    /// Stage 1: general.
    pub general: General,
    /// Stage 2a: failover settings.
    pub failover: FailoverSettings,
    /// Stage 2b: VM settings.
    #[serde(default)]
    pub vms: VmSettings,
    /// Stage 3: networks of the recovery appliance.
    #[serde(default)]
    pub appliance_networks: ApplianceNetworks,
    /// Stage 4: DR settings.
    pub dr: DrSettings,
    /// The rest.
    #[serde(default)]
    pub options: Options,
}

impl FailoverPlan {
    /// What the task of this plan does.
    pub fn kind(&self) -> TaskKind {
        match (self.general.mode, self.general.direction) {
            (FailoverMode::AsNeeded, Direction::Failover) => TaskKind::Failover,
            (FailoverMode::AsNeeded, Direction::Failback) => TaskKind::Failback,
            (FailoverMode::Continuous, Direction::Failover) => TaskKind::ContinuousFailover,
            (FailoverMode::Continuous, Direction::Failback) => TaskKind::ContinuousFailback,
        }
    }
}
