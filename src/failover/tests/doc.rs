//! `docs/failover.md` and the code use the same words, in both directions where it has a table.

use std::collections::BTreeSet;

use crate::failover::policy::MAX_ATTEMPTS;
use crate::failover::runbook::Runbook;
use crate::failover::step::Step;
use crate::failover::task::Choice;
use crate::failover::words::DomainMode;
use crate::failover::{JOURNAL_ATTEMPTS, TaskState};

const PAGE: &str = include_str!("../../../docs/failover.md");

/// The words of the first column of the table under `heading`.
fn first_column(heading: &str) -> BTreeSet<String> {
    let part = PAGE.split(&format!("\n## {heading}\n")).nth(1).expect("the heading is there");
    let part = part.split("\n## ").next().unwrap_or_default();
    let rows = part.lines().filter(|l| l.starts_with("| ")).skip(1);
    let cells = rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split(','));
    cells.map(|cell| cell.trim().trim_matches(['*', '`']).to_owned()).collect()
}

#[test]
fn every_step_is_on_the_page_and_no_other() {
    let steps: BTreeSet<String> = super::entries::all_steps().iter().map(|s| s.word().to_owned()).collect();
    let mut steps = steps;
    steps.insert(Step::Check.word().to_owned());
    assert_eq!(first_column("Steps"), steps);
}

#[test]
fn states_modes_choices_and_numbers_are_those_of_the_code() {
    let error = crate::failover::TaskError { kind: crate::error::ErrorKind::Io, text: String::new() };
    let question = crate::failover::Question { text: String::new(), choices: vec![], vms: vec![] };
    let states = [
        TaskState::Pending,
        TaskState::Running,
        TaskState::Paused,
        TaskState::WaitingForOperator(question),
        TaskState::Cancelling { because: None },
        TaskState::Done,
        TaskState::Failed { error },
        TaskState::Cancelled,
    ];
    let states: BTreeSet<String> = states.iter().map(|s| s.word().to_owned()).collect();
    assert!(states.is_subset(&first_column("States of a task")), "{states:?}");
    for word in states.iter().map(String::as_str).chain(Choice::ALL.map(Choice::word)) {
        assert!(PAGE.contains(&format!("`{word}`")), "{word}");
    }
    for mode in DomainMode::ALL.into_iter().filter(|m| *m != DomainMode::TestFailoverInProgress) {
        assert!(PAGE.replace('\n', " ").contains(&format!("`{}`", mode.word())), "{mode}");
    }
    assert!(PAGE.contains(&format!("tried again, {MAX_ATTEMPTS} times")));
    assert_eq!(JOURNAL_ATTEMPTS, 6, "the page says six");
}

#[test]
fn the_runbook_of_the_page_has_the_words_of_the_code() {
    let part = PAGE.split("```toml\n").nth(1).and_then(|p| p.split("```").next()).expect("it is there");
    let keys = part.lines().filter_map(|l| l.split_once(" = ")).map(|(key, _)| key);
    let known = serde_json::to_string(&full()).unwrap();
    for key in keys {
        assert!(known.contains(&format!("\"{key}\":")), "{key}");
    }
}

/// A runbook in which every field stands.
fn full() -> Runbook {
    serde_json::from_str(
        r#"{"groups":[{"name":"a","after":["b"],"confirm":"?","delay_seconds":1,"scripts_after":[{"command":["x"]}],
            "scripts_before":[{"command":["x"]}],"vms":[{"vm":"v","cpus":1,"memory_bytes":1,
            "nics":[{"nic":0,"network":"n","ip":{"address":"a"}}],"delay_seconds":1,"confirm":"?","after":["w"],
            "wait_for":[{"probe":{"tcp-port":{"host":"h","port":1}}}],"scripts_before":[{"command":["x"]}],
            "scripts_after":[{"command":["x"]}]}]}]}"#,
    )
    .unwrap()
}
