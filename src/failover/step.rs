//! The steps that tasks consist of: what each is called, from where on there is no way back, and which can be interrupted.
//!
//! The list of a task's steps is journaled with the task, so that a later version of this program goes on with the list
//! that was begun. Words, once used, are never given another meaning.

use serde::{Deserialize, Serialize};

use super::runbook::{OnFailure, Script, WaitFor};
use crate::ids::Name;

/// One step. Each can be run again, whether or not it was done, and then does only what is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Looks at the domain, decides which VMs take part, and lists the other steps.
    Check,
    /// Brings disks to the chosen point before anything is changed.
    Rehydrate,
    /// Leaves the settings for the old site at the storage site.
    PublishSettings,
    /// Asks the owner for the domain.
    Request,
    /// Waits until the owner has released it.
    AwaitRelease,
    /// Claims the domain. Once begun there is no way back.
    Claim,
    /// Brings the disks to the base of the claim.
    Finish,
    /// Starts protection on them, without another initial sync.
    Protect,
    /// Defines the VMs.
    Define,
    /// Waits, as the runbook says.
    Delay {
        /// Seconds.
        seconds: u64,
        /// The VM or group that is waited for; empty for all.
        of: String,
    },
    /// Runs a script of the runbook.
    RunScript {
        /// The script.
        script: Script,
        /// The VM that it belongs to; `None` for a group or all.
        vm: Option<Name>,
    },
    /// Starts a VM.
    Start {
        /// Which.
        vm: Name,
    },
    /// Waits for a sign of life.
    WaitFor {
        /// Of what.
        wait: WaitFor,
        /// The VM that it belongs to.
        vm: Name,
    },
    /// Asks an operator to confirm.
    Confirm {
        /// What.
        text: String,
    },
    /// Removes what was needed only on the way.
    CleanUp,
    /// Starts following.
    Follow,
    /// Waits until the base is here and only new segments are missing.
    CatchUp,
    /// Validates what the other site left for this one.
    CheckSettings,
    /// Shuts the guests down.
    ShutDown,
    /// Closes the exports, ships what is left, and cuts the final point.
    Drain,
    /// Releases the domain.
    Release,
    /// Waits until the other site has taken it. Once done there is no way back.
    AwaitTaker,
    /// Removes the definitions of VMs that run at the other site now. Their disks stay.
    Undefine,
    /// Ends following.
    Unfollow,
    /// Removes what there is of the domain here.
    Forget {
        /// The disks as well.
        delete_disks: bool,
    },
}

impl Step {
    /// One word, for messages and programs.
    pub fn word(&self) -> &'static str {
        match self {
            Step::Check => "check",
            Step::Rehydrate => "rehydrate",
            Step::PublishSettings => "publish-settings",
            Step::Request => "request",
            Step::AwaitRelease => "await-release",
            Step::Claim => "claim",
            Step::Finish => "finish",
            Step::Protect => "protect",
            Step::Define => "define",
            Step::Delay { .. } => "delay",
            Step::RunScript { .. } => "run-script",
            Step::Start { .. } => "start",
            Step::WaitFor { .. } => "wait-for",
            Step::Confirm { .. } => "confirm",
            Step::CleanUp => "clean-up",
            Step::Follow => "follow",
            Step::CatchUp => "catch-up",
            Step::CheckSettings => "check-settings",
            Step::ShutDown => "shut-down",
            Step::Drain => "drain",
            Step::Release => "release",
            Step::AwaitTaker => "await-taker",
            Step::Undefine => "undefine",
            Step::Unfollow => "unfollow",
            Step::Forget { .. } => "forget",
        }
    }

    /// The VM that it is about, where it is about one.
    pub fn vm(&self) -> Option<&Name> {
        match self {
            Step::RunScript { vm, .. } => vm.as_ref(),
            Step::Start { vm } | Step::WaitFor { vm, .. } => Some(vm),
            _ => None,
        }
    }

    /// What the runbook says of its failure, and how often it is tried again by itself; `None` where no runbook speaks of it.
    pub fn on_failure(&self) -> Option<(OnFailure, u32)> {
        match self {
            Step::RunScript { script, .. } => Some(script.after_failure()),
            Step::WaitFor { wait, .. } => Some(wait.after_timeout()),
            _ => None,
        }
    }

    /// Once begun, what it did may be seen by the other site and cannot be taken back.
    pub fn commits_when_begun(&self) -> bool {
        matches!(self, Step::Claim | Step::Forget { .. })
    }

    /// Once done, there is no way back.
    pub fn commits_when_done(&self) -> bool {
        self.commits_when_begun() || matches!(self, Step::AwaitTaker)
    }

    /// It ends early when asked to, and goes on from there when run again.
    pub fn is_interruptible(&self) -> bool {
        matches!(
            self,
            Step::Rehydrate
                | Step::AwaitRelease
                | Step::Finish
                | Step::Delay { .. }
                | Step::WaitFor { .. }
                | Step::CatchUp
                | Step::ShutDown
                | Step::AwaitTaker
        )
    }

    /// An operator may say that it counts as done: nothing after it depends on what it does.
    pub fn may_be_skipped(&self) -> bool {
        matches!(
            self,
            Step::Delay { .. }
                | Step::RunScript { .. }
                | Step::Start { .. }
                | Step::WaitFor { .. }
                | Step::Confirm { .. }
                | Step::CleanUp
                | Step::Undefine
        )
    }

    /// Something must be done to take it back.
    pub fn has_undo(&self) -> bool {
        matches!(
            self,
            Step::PublishSettings
                | Step::Request
                | Step::CheckSettings
                | Step::ShutDown
                | Step::Drain
                | Step::Release
                | Step::Follow
        )
    }
}
