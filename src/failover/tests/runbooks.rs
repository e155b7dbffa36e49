//! What runbooks ask for, each drilled as whole modes are.

use super::drill::{Scenario, patient};
use super::modes::{a_is_gone, all_run_at, plan};
use crate::failover::samples::name;
use crate::failover::task::{Choice, Question, TaskState};
use crate::hypervisor::PowerState;

const BOOK: &str = r#"{"scripts_before":[{"command":["/first"]}],
    "groups":[{"name":"data","delay_seconds":30,"confirm":"is the array there?",
        "vms":[{"vm":"db","scripts_before":[{"command":["/pre"]}],"wait_for":[{"probe":{"tcp-port":{"host":"db","port":5432}}},
               {"probe":{"script":{"command":["/up"]}}}],"scripts_after":[{"command":["/post"]}]}]}],
    "scripts_after":[{"command":["/last"],"on_failure":"continue"}]}"#;

#[tokio::test]
async fn a_runbook_is_followed() {
    let scenario = Scenario {
        prepare: |sim| {
            a_is_gone(sim);
            sim.site_mut(&name("b")).exits.insert("/last".into(), 3);
        },
        request: || plan(|p| p.options.runbook = Some(serde_json::from_str(BOOK).unwrap())),
        expect: |sim| {
            all_run_at(sim, "b");
            let scripts: Vec<&str> = sim.site(&name("b")).scripts.iter().map(String::as_str).collect();
            assert_eq!(scripts, ["/first ", "/last ", "/post db", "/pre db", "/up db"]);
        },
        ..Scenario::default()
    };
    scenario.drill().await;
}

/// What failed for good is left out, and what the process was in the middle of done again.
fn skips_what_failed(question: &Question) -> Choice {
    match question.choices.contains(&Choice::Skip) && question.text.contains("retries = ") {
        true => Choice::Skip,
        false => patient(question),
    }
}

const STUBBORN: &str = r#"{"groups":[{"name":"data","vms":[{"vm":"db",
        "scripts_before":[{"command":["/slow"],"on_failure":"retry"},{"command":["/broken"],"on_failure":"retry","retries":1}],
        "wait_for":[{"probe":{"tcp-port":{"host":"dead","port":1}},"limit_seconds":1,"on_timeout":"retry","retries":2}]}]}]}"#;

#[tokio::test]
async fn what_a_runbook_has_tried_again_is_and_then_an_operator_is_asked() {
    let scenario = Scenario {
        prepare: |sim| {
            a_is_gone(sim);
            let b = sim.site_mut(&name("b"));
            b.failing.insert("/slow".into(), 2);
            b.exits.insert("/broken".into(), 3);
            b.exits.insert("dead".into(), 1);
        },
        request: || plan(|p| p.options.runbook = Some(serde_json::from_str(STUBBORN).unwrap())),
        answer: |question| {
            assert!(!question.text.contains("script /slow ended"), "it was to be tried again: {question:?}");
            skips_what_failed(question)
        },
        expect: |sim| {
            all_run_at(sim, "b");
            let b = sim.site(&name("b"));
            assert!(b.failing["/slow"] == 0 && b.scripts.contains("/slow db"), "{:?}", b.scripts);
        },
        ..Scenario::default()
    };
    scenario.drill().await;
}

const AGENTS: &str = r#"{"groups":[{"name":"data","vms":[
        {"vm":"db","wait_for":[{"probe":{"guest-agent":{"address":"10.0.0.5"}}}]},
        {"vm":"web","wait_for":[{"probe":{"guest-agent":{}},"limit_seconds":1,"on_timeout":"retry","retries":1}]}]}]}"#;

#[tokio::test]
async fn agents_of_guests_are_waited_for() {
    let scenario = Scenario {
        prepare: |sim| {
            a_is_gone(sim);
            let told = ["fe80::1", "10.0.0.5"].map(|a| a.parse().unwrap());
            sim.site_mut(&name("b")).agents.insert(name("db"), told.to_vec());
        },
        request: || plan(|p| p.options.runbook = Some(serde_json::from_str(AGENTS).unwrap())),
        answer: |question| {
            assert!(!question.text.contains("VM db: no sign"), "{question:?}");
            skips_what_failed(question)
        },
        expect: |sim| all_run_at(sim, "b"),
        ..Scenario::default()
    };
    scenario.drill().await;
}

const STOPS: &str = r#"{"groups":[{"name":"data","vms":[{"vm":"db"}],
        "scripts_after":[{"command":["/check"],"on_failure":"stop"}]}]}"#;

#[tokio::test]
async fn what_a_runbook_stops_at_ends_the_task_where_it_stands() {
    let scenario = Scenario {
        prepare: |sim| {
            a_is_gone(sim);
            sim.site_mut(&name("b")).exits.insert("/check".into(), 3);
        },
        request: || plan(|p| p.options.runbook = Some(serde_json::from_str(STOPS).unwrap())),
        end: "failed",
        expect: |sim| {
            let b = sim.site(&name("b"));
            assert_eq!(sim.owner.site, name("b"), "what was done stays");
            assert_eq!((b.vms[&name("db")].1, b.vms[&name("web")].1), (PowerState::Running, PowerState::Off));
        },
        ..Scenario::default()
    };
    scenario.drill().await;
    let ended = scenario.run(None, false).await;
    let TaskState::Failed { error } = ended.state else { panic!("it did not fail") };
    assert!(error.text.contains("script /check ended with exit code 3"), "{error}");
}
