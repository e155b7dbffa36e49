//! Every mode, once as it should go, and drilled.

use super::drill::{Scenario, hand_over, patient};
use crate::failover::facts::Doing;
use crate::failover::plan::{Direction, FailoverMode, FailoverPlan, RemoteSettings};
use crate::failover::request::{Complete, Forget, Request};
use crate::failover::samples::{self, name};
use crate::failover::sim::Sim;
use crate::failover::steps::LITTLE;
use crate::failover::task::{Choice, Completion};
use crate::hypervisor::PowerState;
use crate::ids::{Generation, Time};

pub(super) fn plan(change: impl FnOnce(&mut FailoverPlan)) -> Request {
    let mut plan = samples::plan("shop");
    change(&mut plan);
    Request::Plan(Box::new(plan))
}

fn planned(plan: &mut FailoverPlan) {
    plan.failover.planned = true;
    plan.options.accept_loss = false;
    plan.options.release_limit_seconds = 604_800;
}

fn continuous(plan: &mut FailoverPlan) {
    plan.general.mode = FailoverMode::Continuous;
    plan.options.release_limit_seconds = 604_800;
}

fn back(plan: &mut FailoverPlan) {
    plan.general.direction = Direction::Failback;
    plan.options.in_place = true;
}

fn remote() -> RemoteSettings {
    let plan = samples::plan("shop");
    RemoteSettings {
        failover: plan.failover,
        vms: plan.vms,
        appliance_networks: plan.appliance_networks,
        dr: plan.dr,
        runbook: None,
    }
}

fn complete(how: Completion, resume_remote: bool) -> Request {
    Request::Complete(Box::new(Complete {
        accept_loss: how == Completion::Forced,
        resume_remote: resume_remote.then(remote),
        ..Complete::new(name("shop"), how)
    }))
}

/// Site b follows and has caught up.
fn b_follows(sim: &mut Sim) {
    let mut plan = samples::plan("shop");
    continuous(&mut plan);
    let site = sim.site_mut(&name("b"));
    site.following = Some(plan);
    site.leftovers = true;
}

/// Site a is gone, with something that it never shipped.
pub(super) fn a_is_gone(sim: &mut Sim) {
    sim.write(&name("a"));
    sim.cut_off.insert(name("a"));
}

/// The domain runs at site b; site a has its old disks at an older point, and defined VMs.
fn runs_at_b(sim: &mut Sim) {
    let (a, b) = (name("a"), name("b"));
    let tip = sim.tip();
    let vms = sim.site(&a).vms.clone();
    let here = sim.site_mut(&a);
    here.protecting = None;
    here.at = Some(tip.at);
    here.vms.values_mut().for_each(|(_, state)| *state = PowerState::Off);
    let there = sim.site_mut(&b);
    there.protecting = Some(Generation::new(3));
    there.vms = vms;
    there.content = Some(tip.content);
    sim.owner.site = b.clone();
    sim.owner.generation = Generation::new(3);
    sim.owner.claimed = Time::from_millis(9);
    sim.owner.base = Some(tip.at);
    for _ in 0..2 {
        sim.write_and_ship(&b);
    }
}

pub(super) fn all_run_at(sim: &Sim, site: &str) {
    let (site, other) = (name(site), name(if site == "a" { "b" } else { "a" }));
    assert_eq!(sim.owner.site, site);
    assert!(sim.owner.released.is_none());
    let states: Vec<PowerState> = sim.site(&site).vms.values().map(|(_, s)| *s).collect();
    assert_eq!(states, [PowerState::Running; 2]);
    if !sim.cut_off.contains(&other) {
        assert!(!sim.runs_at(&other));
    }
    assert_eq!(sim.site(&site).protecting, Some(sim.owner.generation));
    assert_eq!(sim.site(&site).content, Some(sim.tip().content));
    assert!(!sim.site(&site).leftovers && sim.site(&site).following.is_none());
}

#[tokio::test]
async fn forced_failover() {
    let scenario = Scenario {
        prepare: a_is_gone,
        request: || plan(|_| {}),
        expect: |sim| {
            all_run_at(sim, "b");
            assert!(sim.site(&name("a")).diverged.is_some(), "what a wrote is kept");
        },
        ..Scenario::default()
    };
    scenario.drill().await;
}

/// Site b has claimed the domain, and whoever was asked gave up before its disks were served.
fn b_gave_up(sim: &mut Sim) {
    a_is_gone(sim);
    let tip = sim.tip();
    sim.owner.site = name("b");
    sim.owner.generation = Generation::new(2);
    sim.owner.claimed = Time::from_millis(9);
    sim.owner.base = Some(tip.at);
}

#[tokio::test]
async fn a_take_over_that_was_given_up_after_the_claim_is_gone_on_with() {
    let scenario = Scenario {
        prepare: b_gave_up,
        request: || plan(|_| {}),
        expect: |sim| {
            all_run_at(sim, "b");
            assert!(sim.owner.generation >= Generation::new(2));
        },
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn planned_failover() {
    let scenario = Scenario {
        request: || plan(planned),
        expect: |sim| {
            all_run_at(sim, "b");
            let a = sim.site(&name("a"));
            assert_eq!(a.content, Some(sim.tip().content), "nothing is lost, and a's data stays");
        },
        victims: &["a", "b"],
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn continuous_failover_goes_on() {
    let scenario = Scenario {
        request: || plan(continuous),
        expect: |sim| {
            assert!(sim.site(&name("b")).following.is_some() && sim.site(&name("b")).behind == 0);
            assert_eq!(sim.owner.site, name("a"));
        },
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn continuous_failover_completed_by_force() {
    let scenario = Scenario {
        prepare: |sim| {
            b_follows(sim);
            a_is_gone(sim);
        },
        request: || complete(Completion::Forced, false),
        expect: |sim| all_run_at(sim, "b"),
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn continuous_failover_completed_as_planned() {
    let scenario = Scenario {
        prepare: b_follows,
        request: || complete(Completion::Planned, false),
        expect: |sim| {
            all_run_at(sim, "b");
            assert!(sim.site(&name("a")).following.is_none());
        },
        victims: &["a", "b"],
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn the_old_site_follows_after_a_planned_completion() {
    let scenario = Scenario {
        prepare: b_follows,
        request: || complete(Completion::Planned, true),
        expect: |sim| {
            all_run_at(sim, "b");
            let a = sim.site(&name("a")).following.as_ref().expect("a follows");
            assert!(a.options.in_place && a.general.direction == Direction::Failback);
            assert!(sim.settings.is_none(), "the settings are taken away");
        },
        victims: &["a", "b"],
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn a_guest_that_hangs_is_powered_off() {
    let scenario = Scenario {
        prepare: |sim| {
            b_follows(sim);
            sim.site_mut(&name("a")).hanging.insert(name("db"));
        },
        request: || complete(Completion::Planned, false),
        answer: |question| match question.choices.contains(&Choice::PowerOff) {
            true => {
                assert_eq!(question.vms, [name("db")]);
                Choice::PowerOff
            }
            false => patient(question),
        },
        expect: |sim| all_run_at(sim, "b"),
        victims: &["a", "b"],
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn guests_run_on_until_little_is_left_to_ship() {
    let scenario = |expect: fn(&Sim)| Scenario {
        prepare: |sim| {
            b_follows(sim);
            let here = sim.site_mut(&name("a"));
            (here.unshipped, here.ships) = (100 << 20, 10 << 20);
        },
        request: || complete(Completion::Planned, false),
        expect,
        victims: &["a", "b"],
        ..Scenario::default()
    };
    let undisturbed = scenario(|sim| {
        let doing: Vec<Doing> = sim.told.iter().map(|(doing, _)| *doing).collect();
        assert_eq!(doing, [Doing::ShipAhead, Doing::ShutDown, Doing::Ship]);
        assert!(sim.told[0].1 > LITTLE && sim.told[1].1 <= LITTLE, "{:?}", sim.told);
    });
    undisturbed.run(None, false).await;
    // A word may be lost where its site is disturbed.
    let disturbed = scenario(|sim| {
        all_run_at(sim, "b");
        let first = |doing| sim.told.iter().find(|(did, _)| *did == doing).map(|(_, left)| *left);
        assert!(first(Doing::ShutDown).is_none_or(|left| left <= LITTLE), "{:?}", sim.told);
    });
    disturbed.drill().await;
}

#[tokio::test]
async fn guests_that_write_as_fast_as_is_shipped_are_shut_down_all_the_same() {
    let scenario = Scenario {
        prepare: |sim| {
            b_follows(sim);
            sim.site_mut(&name("a")).unshipped = 100 << 20;
        },
        request: || complete(Completion::Planned, false),
        expect: |sim| all_run_at(sim, "b"),
        victims: &["a"],
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn a_hand_over_that_its_operator_aborts_is_told_to_the_other_site() {
    let scenario = Scenario {
        prepare: |sim| {
            b_follows(sim);
            sim.site_mut(&name("a")).hanging.insert(name("db"));
        },
        request: || complete(Completion::Planned, true),
        answer: |question| match question.choices.contains(&Choice::PowerOff) {
            true => Choice::Abort,
            false => patient(question),
        },
        end: "failed",
        expect: |sim| {
            all_run_at(sim, "a");
            assert!(sim.site(&name("b")).following.is_some(), "b goes on following");
            assert!(sim.settings.is_none());
        },
        victims: &["a", "b"],
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn settings_that_the_old_site_cannot_follow_by_are_refused_before_anything_is_shut_down() {
    let scenario = Scenario {
        prepare: b_follows,
        request: || match complete(Completion::Planned, true) {
            Request::Complete(mut complete) => {
                complete.resume_remote.as_mut().unwrap().dr.appliance = "nobody".into();
                Request::Complete(complete)
            }
            other => other,
        },
        end: "failed",
        expect: |sim| all_run_at(sim, "a"),
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn a_planned_failover_is_cancelled_while_it_waits() {
    let scenario = Scenario {
        prepare: b_follows,
        request: || complete(Completion::Planned, true),
        owner_reacts: false,
        cancel_at: Some("await-release"),
        end: "cancelled",
        expect: |sim| {
            all_run_at(sim, "a");
            assert!(sim.request.as_ref().is_none_or(|r| r.withdrawn));
            assert!(sim.settings.is_none());
        },
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn a_release_that_nobody_takes_is_withdrawn() {
    let scenario = Scenario {
        then: |sim| {
            let at = Time::from_millis(sim.now);
            let site = name("b");
            sim.request =
                Some(crate::failover::HandOverRequest { site, at, refused: None, withdrawn: false, underway: None });
        },
        at: "a",
        request: || {
            let mut hand_over = hand_over(name("b"));
            hand_over.taken_limit_seconds = 5;
            Request::HandOver(hand_over)
        },
        answer: |question| match question.choices.as_slice() {
            [Choice::Wait, Choice::Abort] => Choice::Abort,
            _ => patient(question),
        },
        owner_reacts: false,
        end: "cancelled",
        expect: |sim| all_run_at(sim, "a"),
        victims: &[],
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn planned_failback_in_place() {
    let scenario = Scenario {
        prepare: runs_at_b,
        at: "a",
        request: || {
            plan(|p| {
                planned(p);
                back(p);
            })
        },
        expect: |sim| all_run_at(sim, "a"),
        victims: &["a", "b"],
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn a_fenced_site_becomes_one_that_follows() {
    let scenario = Scenario {
        prepare: |sim| {
            runs_at_b(sim);
            let common = sim.tip().at;
            sim.write(&name("a"));
            sim.site_mut(&name("a")).diverged = Some(common);
        },
        at: "a",
        request: || {
            plan(|p| {
                continuous(p);
                back(p);
                p.options.accept_divergence = true;
            })
        },
        expect: |sim| {
            let a = sim.site(&name("a"));
            assert!(a.following.is_some() && a.diverged.is_none());
            assert_eq!(a.content, Some(sim.tip().content));
        },
        victims: &["a"],
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn a_fenced_site_overwrites_nothing_unless_told_to() {
    let scenario = Scenario {
        prepare: |sim| {
            runs_at_b(sim);
            let common = sim.tip().at;
            sim.write(&name("a"));
            sim.site_mut(&name("a")).diverged = Some(common);
        },
        at: "a",
        request: || {
            plan(|p| {
                continuous(p);
                back(p);
            })
        },
        end: "failed",
        expect: |sim| assert!(sim.site(&name("a")).diverged.is_some()),
        victims: &[],
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn forgetting_takes_everything_away() {
    let scenario = Scenario {
        prepare: |sim| {
            b_follows(sim);
            let specs = sim.site(&name("a")).vms.clone();
            let b = sim.site_mut(&name("b"));
            b.vms = specs;
            b.vms.values_mut().for_each(|(_, s)| *s = PowerState::Off);
        },
        request: || Request::Forget(Forget { domain: name("shop"), delete_disks: true, accept_divergence: false }),
        expect: |sim| {
            let b = sim.site(&name("b"));
            assert!(b.forgotten && b.vms.is_empty() && b.content.is_none() && b.following.is_none());
        },
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn only_recoverable_vms_take_part_in_an_as_needed_failover() {
    let scenario = Scenario {
        prepare: |sim| {
            a_is_gone(sim);
            sim.unrecoverable.insert(name("web"));
        },
        request: || plan(|_| {}),
        expect: |sim| {
            let vms: Vec<&str> = sim.site(&name("b")).vms.keys().map(|v| v.as_str()).collect();
            assert_eq!(vms, ["db"]);
        },
        victims: &[],
        ..Scenario::default()
    };
    scenario.drill().await;
}

#[tokio::test]
async fn damage_is_used_only_where_an_operator_says_so() {
    let damaged = |sim: &mut Sim| {
        a_is_gone(sim);
        sim.site_mut(&name("b")).damage = vec!["db/system: 4096 bytes at 0".into()];
    };
    let scenario = Scenario {
        prepare: damaged,
        request: || plan(|_| {}),
        answer: |q| if q.choices.contains(&Choice::Confirm) { Choice::Confirm } else { patient(q) },
        expect: |sim| all_run_at(sim, "b"),
        victims: &[],
        ..Scenario::default()
    };
    scenario.drill().await;
    let scenario = Scenario {
        prepare: damaged,
        request: || plan(|_| {}),
        answer: |q| if q.choices.contains(&Choice::Abort) { Choice::Abort } else { patient(q) },
        end: "cancelled",
        expect: |sim| assert_eq!(sim.owner.site, name("a"), "nothing was taken"),
        victims: &[],
        ..Scenario::default()
    };
    scenario.drill().await;
}

/// The domain is owned and runs at exactly one of the sites that reach the storage site, or nowhere where its owner is gone.
fn runs_once(sim: &Sim) {
    assert!(sim.owner.released.is_none(), "nobody is left with a release");
    match sim.cut_off.contains(&sim.owner.site) {
        true => assert!(!sim.runs_at(&name("b"))),
        false => all_run_at(sim, sim.owner.site.as_str()),
    }
}

#[tokio::test]
async fn a_forced_completion_is_cancelled_after_any_kill_or_goes_through() {
    let scenario = Scenario {
        prepare: |sim| {
            b_follows(sim);
            a_is_gone(sim);
        },
        request: || complete(Completion::Forced, false),
        cancel_when_back: true,
        expect: runs_once,
        ..Scenario::default()
    };
    scenario.drill_cancelling().await;
}

#[tokio::test]
async fn a_planned_completion_is_cancelled_at_both_sites_after_any_kill_or_goes_through() {
    let scenario = Scenario {
        prepare: b_follows,
        request: || complete(Completion::Planned, true),
        cancel_when_back: true,
        expect: runs_once,
        victims: &["a", "b"],
        ..Scenario::default()
    };
    scenario.drill_cancelling().await;
}

#[tokio::test]
async fn a_claim_without_a_base_is_never_taken_for_none() {
    let scenario = Scenario {
        prepare: |sim| {
            a_is_gone(sim);
            sim.base_fails = true;
        },
        request: || plan(|_| {}),
        answer: |question| {
            assert!(!question.choices.contains(&Choice::Abort), "{question:?}");
            patient(question)
        },
        expect: |sim| all_run_at(sim, "b"),
        victims: &[],
        ..Scenario::default()
    };
    scenario.drill().await;
}
