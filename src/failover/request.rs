//! What the engine is asked to do. Journaled as it came, so that a task that goes on does what was asked for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::{FailoverPlan, PointChoice, RemoteSettings, VmSetting};
use super::runbook::Runbook;
use super::task::{Choice, Completion, TaskKind};
use crate::ids::Name;

/// How a continuous failover or failback is completed. What stands here goes before what stands in its plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Complete {
    /// The domain.
    pub domain: Name,
    /// With the owner or by force.
    pub how: Completion,
    /// The point to run from, where it is forced.
    #[serde(default)]
    pub point: PointChoice,
    /// Forced: lose what the summary says.
    #[serde(default)]
    pub accept_loss: bool,
    /// The owner that the summary named: where the domain belongs to another by now, nothing is done. Any where there is
    /// none.
    #[serde(default)]
    pub from: Option<Name>,
    /// Run guests on disks with named damage.
    #[serde(default)]
    pub accept_damage: bool,
    /// Planned: the old site follows the domain afterwards.
    #[serde(default)]
    pub resume_remote: Option<RemoteSettings>,
    /// The plan's runbook where there is none.
    #[serde(default)]
    pub runbook: Option<Runbook>,
    /// Networks of the protected site to networks of this one, beside those of the plan and before them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, String>,
    /// Network of this site for what is mapped nowhere; the plan's where empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub default_network: String,
    /// Where VMs are placed, beside what the plan says and before it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub placement: BTreeMap<String, String>,
    /// Storage policy of all VMs; the plan's where empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub storage_policy: String,
    /// What differs VM by VM, each in the place of what the plan says of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub vms: BTreeMap<Name, VmSetting>,
    /// Seconds that the owner has to release the domain; the plan's where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_limit_seconds: Option<u64>,
}

impl Complete {
    /// As the plan that following was started with says, and nothing accepted.
    pub fn new(domain: Name, how: Completion) -> Complete {
        Complete {
            domain,
            how,
            point: PointChoice::Newest,
            accept_loss: false,
            from: None,
            accept_damage: false,
            resume_remote: None,
            runbook: None,
            networks: BTreeMap::new(),
            default_network: String::new(),
            placement: BTreeMap::new(),
            storage_policy: String::new(),
            vms: BTreeMap::new(),
            release_limit_seconds: None,
        }
    }
}

/// How the owner hands a domain over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandOver {
    /// The domain.
    pub domain: Name,
    /// The site that asked for it.
    pub to: Name,
    /// Seconds that guests have to shut down before the operator is asked; 1 to 86,400.
    pub shutdown_limit_seconds: u64,
    /// Seconds that the other site has to take the domain before the operator is asked; 1 to 604,800.
    pub taken_limit_seconds: u64,
}

/// What of a domain is forgotten at a site that does not own it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forget {
    /// The domain.
    pub domain: Name,
    /// Its disks at this site are deleted as well.
    #[serde(default)]
    pub delete_disks: bool,
    /// Delete them though they hold what no chain has.
    #[serde(default)]
    pub accept_divergence: bool,
}

/// A task to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Failover, failback, or the beginning of a continuous one.
    Plan(Box<FailoverPlan>),
    /// Run on disks that follow.
    Complete(Box<Complete>),
    /// Give the domain away.
    HandOver(HandOver),
    /// Forget it.
    Forget(Forget),
}

impl Request {
    /// What its task does.
    pub fn kind(&self) -> TaskKind {
        match self {
            Request::Plan(plan) => plan.kind(),
            Request::Complete(complete) => TaskKind::Complete { how: complete.how },
            Request::HandOver(_) => TaskKind::HandOver,
            Request::Forget(_) => TaskKind::Forget,
        }
    }

    /// The domain that it is about.
    pub fn domain(&self) -> &Name {
        match self {
            Request::Plan(plan) => &plan.general.domain,
            Request::Complete(complete) => &complete.domain,
            Request::HandOver(hand_over) => &hand_over.domain,
            Request::Forget(forget) => &forget.domain,
        }
    }
}

/// What an operator tells a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Undo what it did, and end. Refused past the point of no return.
    Cancel,
    /// Stand still after the step that runs.
    Pause,
    /// Go on.
    Resume,
    /// Answer its question.
    Choose {
        /// How.
        choice: Choice,
        /// Which of its questions, from 1: one that was asked since is not answered by it.
        question: u32,
    },
}
