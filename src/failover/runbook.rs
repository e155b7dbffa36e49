//! Runbooks: in which order VMs start at a site, with what resources and networks, and what runs or is waited for around
//! it. A domain has one for failover and one for failback.
//!
//! Plain data, read from TOML or JSON; unknown words are refused, since a misspelled one would be an instruction that is
//! not followed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::Name;

/// What to do where a script fails, or what is waited for does not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Ask the operator: try again, go on, or give up.
    #[default]
    Ask,
    /// Note it and go on.
    #[serde(alias = "skip")]
    Continue,
    /// Try it again with growing pauses, `retries` times; then ask.
    Retry,
    /// End the task: before the point of no return it turns back, after it what was done stays.
    Stop,
}

/// Tries after the first one, where [`OnFailure::Retry`] comes without a number.
const USUAL_RETRIES: u32 = 3;

/// A command that is run at this site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Program and arguments; no shell is between.
    pub command: Vec<String>,
    /// Variables besides those that describe the task.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Seconds after which it is killed, with all it started; 1 to 86,400.
    #[serde(default = "five_minutes")]
    pub limit_seconds: u64,
    /// Where it fails, or is killed.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// With [`OnFailure::Retry`], tries after the first one; 1 to 100, 3 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

impl Script {
    /// What follows where it fails, and how often it is tried again by itself.
    pub fn after_failure(&self) -> (OnFailure, u32) {
        (self.on_failure, self.retries.unwrap_or(USUAL_RETRIES))
    }
}

/// What shows that a VM is up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Probe {
    /// A TCP connection to it is accepted.
    TcpPort {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// A command ends with exit code 0.
    Script {
        /// Program and arguments.
        command: Vec<String>,
    },
    /// The agent in the guest answers.
    GuestAgent {
        /// And tells that a card of the guest has this address; any where empty.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        address: String,
    },
}

/// Waiting for a sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WaitFor {
    /// Of what.
    pub probe: Probe,
    /// Seconds to wait; 1 to 86,400.
    #[serde(default = "five_minutes")]
    pub limit_seconds: u64,
    /// Where it does not come in that time.
    #[serde(default)]
    pub on_timeout: OnFailure,
    /// With [`OnFailure::Retry`], waits as long after the first one; 1 to 100, 3 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

impl WaitFor {
    /// What follows where it does not come, and how often it is waited for again by itself.
    pub fn after_timeout(&self) -> (OnFailure, u32) {
        (self.on_timeout, self.retries.unwrap_or(USUAL_RETRIES))
    }
}

/// Address of a network card in the guest, which [`Hypervisor::addressing`](crate::hypervisor::Hypervisor::addressing) says
/// how it gets to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpSettings {
    /// Address and prefix length, such as `10.0.0.5/24`.
    pub address: String,
    /// Gateway; none where empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
}

/// What differs for one network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSettings {
    /// Which card, from 0.
    pub nic: u32,
    /// Network of the site; the plan's mapping where empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpSettings>,
}

/// How one VM starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmStart {
    /// Which.
    pub vm: Name,
    /// VMs that must have been started before it, each within an earlier group or in its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Name>,
    /// Seconds to wait before it; at most 86,400.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub delay_seconds: u64,
    /// Whether it is powered on at all.
    #[serde(default = "yes")]
    pub power_on: bool,
    /// Virtual processors, where they differ from its definition; 1 to 4,096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory in bytes, where it differs; 1 MiB to 64 TiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Network cards that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NicSettings>,
    /// Run before it starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scripts_before: Vec<Script>,
    /// Waited for once it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wait_for: Vec<WaitFor>,
    /// Run then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scripts_after: Vec<Script>,
    /// What an operator must confirm before the next VM; nothing where empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub confirm: String,
}

impl VmStart {
    /// Its agent is waited for.
    pub(super) fn waits_for_agent(&self) -> bool {
        self.power_on && self.wait_for.iter().any(|wait| matches!(wait.probe, Probe::GuestAgent { .. }))
    }

    /// A VM that starts as it is defined.
    pub fn plain(vm: Name) -> VmStart {
        VmStart {
            vm,
            after: Vec::new(),
            delay_seconds: 0,
            power_on: true,
            cpus: None,
            memory_bytes: None,
            nics: Vec::new(),
            scripts_before: Vec::new(),
            wait_for: Vec::new(),
            scripts_after: Vec::new(),
            confirm: String::new(),
        }
    }
}

/// VMs that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name, unique in the runbook.
    pub name: String,
    /// Groups that must have been started before it; where none are named, the order of the list counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// What an operator must confirm before it; nothing where empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub confirm: String,
    /// Seconds to wait before it; at most 86,400.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub delay_seconds: u64,
    /// Run before its first VM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scripts_before: Vec<Script>,
    /// Its VMs, in order unless they name each other.
    #[serde(default)]
    pub vms: Vec<VmStart>,
    /// Run after its last VM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scripts_after: Vec<Script>,
}

/// What becomes of VMs that no group names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Others {
    /// They start after all groups, in the order of the domain.
    #[default]
    Start,
    /// They are defined and stay off.
    LeaveOff,
}

/// A runbook.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Runbook {
    /// Run before everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scripts_before: Vec<Script>,
    /// Groups, in order unless they name each other.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// VMs that no group names.
    #[serde(default)]
    pub others: Others,
    /// Run after everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scripts_after: Vec<Script>,
}

impl Runbook {
    /// Programs of the site are run by it.
    pub fn runs_programs(&self) -> bool {
        let of_vm = |vm: &VmStart| {
            let waits = vm.wait_for.iter().any(|wait| matches!(wait.probe, Probe::Script { .. }));
            waits || !vm.scripts_before.is_empty() || !vm.scripts_after.is_empty()
        };
        let of_group = |group: &Group| {
            !group.scripts_before.is_empty() || !group.scripts_after.is_empty() || group.vms.iter().any(of_vm)
        };
        !self.scripts_before.is_empty() || !self.scripts_after.is_empty() || self.groups.iter().any(of_group)
    }
}

fn five_minutes() -> u64 {
    300
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}
