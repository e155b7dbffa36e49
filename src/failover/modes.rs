//! The modes as lists of steps. Pure.
//!
//! | task | steps |
//! |---|---|
//! | failover, failback | rehydrate, \[publish-settings, request, await-release,\] **claim**, finish, protect, define, runbook, clean-up |
//! | continuous ones | follow, catch-up |
//! | completing one | \[publish-settings, request, await-release,\] **claim**, finish, protect, define, runbook, clean-up |
//! | hand-over | check-settings, shut-down, drain, release, **await-taker**, \[follow\] |
//! | forget | unfollow, \[undefine,\] **forget** |
//!
//! All begin with `check`. What stands in brackets is there in planned ones, or where it was asked for; **bold** is the
//! point of no return. An as-needed recovery rehydrates before it claims: hours of fetching can be cancelled and change
//! nothing, and the claim then costs only what came meanwhile.

use super::plan::{FailoverMode, FailoverPlan};
use super::request::{Complete, Request};
use super::runbook::Runbook;
use super::runbook_steps;
use super::step::Step;
use super::task::Completion;
use crate::ids::Name;

/// The steps after `check`, for the VMs that take part. `plan` is the one that they go by.
pub(super) fn steps(request: &Request, plan: Option<&FailoverPlan>, vms: &[Name]) -> Vec<Step> {
    match (request, plan) {
        (Request::Plan(plan), _) if plan.general.mode == FailoverMode::Continuous => vec![Step::Follow, Step::CatchUp],
        (Request::Plan(plan), _) => {
            let mut steps = vec![Step::Rehydrate];
            take_over(&mut steps, plan, vms);
            steps
        }
        (Request::Complete(_), Some(plan)) => {
            let mut steps = Vec::new();
            take_over(&mut steps, plan, vms);
            steps
        }
        // A completion without a plan has nothing to go by, and `check` refuses it.
        (Request::Complete(_), None) => Vec::new(),
        (Request::HandOver(_), plan) => {
            let mut steps = vec![Step::CheckSettings, Step::ShutDown, Step::Drain, Step::Release, Step::AwaitTaker];
            steps.extend(plan.map(|_| Step::Follow));
            steps
        }
        (Request::Forget(forget), _) => {
            let mut steps = vec![Step::Unfollow];
            steps.extend(forget.delete_disks.then_some(Step::Undefine));
            steps.push(Step::Forget { delete_disks: forget.delete_disks });
            steps
        }
    }
}

fn take_over(steps: &mut Vec<Step>, plan: &FailoverPlan, vms: &[Name]) {
    if plan.failover.planned {
        steps.extend(plan.options.resume_remote.as_ref().map(|_| Step::PublishSettings));
        steps.extend([Step::Request, Step::AwaitRelease]);
    }
    steps.extend([Step::Claim, Step::Finish, Step::Protect, Step::Define]);
    let plain = Runbook::default();
    steps.extend(runbook_steps::steps(plan.options.runbook.as_ref().unwrap_or(&plain), vms));
    steps.push(Step::CleanUp);
}

/// The plan by which a continuous failover is completed: the one that it was started with, with what was decided now.
pub(super) fn completing(begun: &FailoverPlan, complete: &Complete) -> FailoverPlan {
    let mut plan = begun.clone();
    plan.failover.planned = complete.how == Completion::Planned;
    plan.vms.networks.extend(complete.networks.clone());
    if !complete.default_network.is_empty() {
        plan.vms.default_network.clone_from(&complete.default_network);
    }
    if !complete.storage_policy.is_empty() {
        plan.vms.storage_policy.clone_from(&complete.storage_policy);
    }
    plan.vms.vms.extend(complete.vms.clone());
    plan.failover.placement.extend(complete.placement.clone());
    let options = &mut plan.options;
    options.point = complete.point;
    options.accept_loss = complete.accept_loss;
    options.from = complete.from.clone();
    // Of the damage that is there now: what was accepted when following began was another one's.
    options.accept_damage = complete.accept_damage;
    options.release_limit_seconds = complete.release_limit_seconds.unwrap_or(options.release_limit_seconds);
    options.resume_remote = complete.resume_remote.clone();
    if let Some(runbook) = &complete.runbook {
        options.runbook = Some(runbook.clone());
    }
    plan
}
