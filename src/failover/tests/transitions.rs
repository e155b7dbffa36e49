//! What a task becomes: total, replayable, and over when it is over.

use proptest::prelude::*;

use crate::error::ErrorKind;
use crate::failover::engine::folded;
use crate::failover::event::{Entry, Event, Outcome};
use crate::failover::plan::RemoteSettings;
use crate::failover::request::{HandOver, Request};
use crate::failover::samples::{self, name};
use crate::failover::step::Step;
use crate::failover::task::{Choice, Question, StepState, Task, TaskError, TaskId, TaskState};
use crate::failover::transition::{Action, MAX_LOG_LINES, next_action, point_of_no_return, submitted, transition};
use crate::failover::{MAX_ATTEMPTS, modes};
use crate::ids::{Generation, SegmentRef, Time};

fn requests() -> Vec<Request> {
    let mut planned = samples::plan("shop");
    planned.failover.planned = true;
    planned.options.resume_remote = Some(RemoteSettings {
        failover: planned.failover.clone(),
        vms: planned.vms.clone(),
        appliance_networks: planned.appliance_networks.clone(),
        dr: planned.dr.clone(),
        runbook: None,
    });
    let hand_over = HandOver { domain: name("shop"), to: name("b"), shutdown_limit_seconds: 1, taken_limit_seconds: 1 };
    let mut by_the_book = samples::plan("shop");
    let book = r#"{"scripts_before":[{"command":["/a"],"on_failure":"retry"},{"command":["/b"],"on_failure":"stop"}]}"#;
    by_the_book.options.runbook = Some(serde_json::from_str(book).unwrap());
    let request = |plan| Request::Plan(Box::new(plan));
    vec![request(samples::plan("shop")), request(planned), Request::HandOver(hand_over), request(by_the_book)]
}

fn begin(request: &Request) -> Task {
    let event = Event::Submitted { request: request.clone(), actor: "op".into() };
    submitted(TaskId::from_bytes([7; 16]), &Entry::new(1, Time::from_millis(1), event)).unwrap()
}

/// The outcome that fits a step.
fn outcome_of(task: &Task, step: usize) -> Outcome {
    let at = SegmentRef::default();
    match task.steps.get(step).map(|s| &s.step) {
        Some(Step::Check) => Outcome::Checked {
            owner: name("a"),
            generation: Generation::new(1),
            vms: vec![name("db")],
            excluded: vec![],
            plan: None,
            steps: modes::steps(&task.request, None, &[name("db")]),
        },
        Some(Step::Rehydrate | Step::Finish) => Outcome::Rehydrated { at },
        Some(Step::Claim) => Outcome::Claimed { generation: Generation::new(2), base: at },
        Some(Step::Drain) => Outcome::Drained { at },
        Some(Step::AwaitTaker) => Outcome::Taken { by: name("b"), generation: Generation::new(2) },
        _ => Outcome::Nothing,
    }
}

/// What a made-up event is made of: which, and a number that chooses within it.
type Seed = (u8, u8, u8);

const KINDS: [ErrorKind; 7] = [
    ErrorKind::Incomplete,
    ErrorKind::Unreachable,
    ErrorKind::Io,
    ErrorKind::Refused,
    ErrorKind::Fenced,
    ErrorKind::Cancelled,
    ErrorKind::NotFound,
];

/// An event. Mostly one that could be next, so that tasks get somewhere.
fn event(task: &Task, (which, how, any): Seed) -> Event {
    let next = match next_action(task) {
        Action::Do(i) | Action::Undo(i) | Action::Settle(i) => i,
        Action::Wait | Action::End => usize::from(any) % (task.steps.len() + 2),
    };
    let step = if how % 16 == 0 { usize::from(any) } else { next };
    let n = u32::try_from(step).unwrap();
    let error = TaskError { kind: KINDS[usize::from(how) % KINDS.len()], text: format!("error {any}") };
    let choice = Choice::ALL[usize::from(how) % Choice::ALL.len()];
    let actor = "op".to_owned();
    let runs = task.steps.get(step).is_some_and(|s| s.state == StepState::Running);
    let undoing = task.steps.get(step).is_some_and(|s| s.state == StepState::Undoing);
    match which % 24 {
        0..=5 if runs => Event::Finished { step: n, outcome: outcome_of(task, step), log: vec!["x".into()] },
        0..=5 if undoing => Event::Undone { step: n, log: vec![] },
        0..=5 => match next_action(task) {
            Action::Undo(_) => Event::UndoBegan { step: n },
            _ => Event::Began { step: n },
        },
        6 | 7 => Event::Began { step: n },
        8 => Event::Finished { step: n, outcome: Outcome::Nothing, log: vec![] },
        9 | 10 => Event::Failed { step: n, error, log: vec![] },
        11 => Event::Interrupted { step: n },
        12 => Event::Asked {
            step: n,
            question: Question { text: "?".into(), choices: Choice::ALL[..usize::from(any) % 8].to_vec(), vms: vec![] },
            log: vec![],
        },
        13..=15 => Event::Chose { choice, question: None, actor },
        16 => Event::PauseAsked { actor },
        17 => Event::ResumeAsked { actor },
        18 => Event::CancelAsked { actor },
        19 => Event::UndoBegan { step: n },
        20 => Event::Undone { step: n, log: vec![] },
        21 => Event::UndoFailed { step: n, error },
        22 => Event::UndoOvertaken { step: n, why: "b was first".into() },
        _ => Event::Submitted { request: task.request.clone(), actor },
    }
}

/// What holds of every task at any time.
fn check(task: &Task) {
    let active = |s: &&crate::failover::StepRecord| matches!(s.state, StepState::Running | StepState::Undoing);
    assert!(task.steps.iter().filter(active).count() <= 1, "one step at a time");
    assert!(task.steps.iter().all(|s| s.log.len() <= MAX_LOG_LINES && s.attempts <= MAX_ATTEMPTS + 200));
    let ended = |s: &StepState| matches!(s, StepState::Done | StepState::Skipped);
    match &task.state {
        TaskState::Done => assert!(task.steps.iter().all(|s| ended(&s.state))),
        TaskState::Cancelled | TaskState::Cancelling { .. } => {
            assert!(point_of_no_return(task).is_none(), "there is no way back: {:?}", task.steps);
        }
        TaskState::WaitingForOperator(question) => assert!(!question.choices.is_empty()),
        TaskState::Paused => assert!(task.steps.iter().all(|s| s.state != StepState::Running)),
        _ => {}
    }
    assert_eq!(task.state.is_terminal(), task.ended.is_some());
    assert_eq!(task.state.is_terminal(), next_action(task) == Action::End);
    // What comes after a step that is not done was not begun, but for what turned back.
    if matches!(task.state, TaskState::Pending | TaskState::Running | TaskState::Paused) {
        let first = task.steps.iter().position(|s| !ended(&s.state)).unwrap_or(0);
        let after = task.steps.iter().skip(first + 1);
        assert!(after.filter(|s| s.state != StepState::Waiting).count() == 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn any_event_in_any_state_gives_a_task_or_says_why_not(
        which in 0usize..4,
        seeds in proptest::collection::vec(any::<Seed>(), 1..150),
    ) {
        let request = &requests()[which];
        let mut task = begin(request);
        let mut kept = vec![Entry::new(1, Time::from_millis(1),
            Event::Submitted { request: request.clone(), actor: "op".into() })];
        for seed in seeds {
            let before = task.clone();
            let entry = Entry::new(task.entries + 1, Time::from_millis(task.entries), event(&task, seed));
            match transition(&task, &entry) {
                Ok(next) => {
                    prop_assert!(!before.state.is_terminal(), "{:?} changed by {:?}", before.state, entry.event);
                    check(&next);
                    if let Event::CancelAsked { .. } | Event::Chose { choice: Choice::Abort, .. } = entry.event {
                        let committed = point_of_no_return(&before).is_some();
                        prop_assert!(!committed, "cancelled past the point of no return: {before:?}");
                    }
                    task = next;
                    kept.push(entry);
                }
                Err(e) => {
                    prop_assert!(matches!(e.kind(), ErrorKind::Refused | ErrorKind::Internal), "{e:?}");
                    prop_assert!(!e.to_string().is_empty());
                }
            }
        }
        // Through the text, as a journal gives it back.
        let again: Vec<Entry> = kept.iter().map(|e| Entry::from_text(&e.to_text().unwrap()).unwrap()).collect();
        let (replayed, broken) = folded(task.id, &again);
        prop_assert!(broken.is_none());
        prop_assert_eq!(replayed.unwrap(), task);
    }

    #[test]
    fn no_text_makes_an_entry_panic(text in "\\PC{0,200}", cut in 0usize..400) {
        let _ = Entry::from_text(&text);
        let good = Entry::new(3, Time::from_millis(9), Event::CancelAsked { actor: text }).to_text().unwrap();
        let end = (0..=cut.min(good.len())).rev().find(|i| good.is_char_boundary(*i)).unwrap();
        let read = Entry::from_text(&good[..end]);
        prop_assert_eq!(read.is_ok(), end == good.len());
    }
}

/// Takes `task` through `events`, all of which must be taken.
fn through(mut task: Task, events: impl IntoIterator<Item = Event>) -> Task {
    for event in events {
        let entry = Entry::new(task.entries + 1, Time::from_millis(task.entries), event);
        task = transition(&task, &entry).unwrap();
        check(&task);
    }
    task
}

fn done(task: &Task, step: usize) -> [Event; 2] {
    let n = u32::try_from(step).unwrap();
    [Event::Began { step: n }, Event::Finished { step: n, outcome: outcome_of(task, step), log: vec![] }]
}

#[test]
fn a_step_that_does_not_answer_is_tried_a_few_times_and_then_asked_about() {
    let mut task = begin(&requests()[0]);
    let error = TaskError { kind: ErrorKind::Unreachable, text: "gone".into() };
    for attempt in 1..=MAX_ATTEMPTS {
        let failed = Event::Failed { step: 0, error: error.clone(), log: vec![] };
        task = through(task, [Event::Began { step: 0 }, failed]);
        assert_eq!(task.question().is_some(), attempt == MAX_ATTEMPTS, "{attempt}");
    }
    let choices = &task.question().unwrap().choices;
    assert_eq!(*choices, [Choice::Retry, Choice::Abort]);
    let task = through(task, [Event::Chose { choice: Choice::Retry, question: Some(1), actor: "op".into() }]);
    assert_eq!((next_action(&task), task.steps[0].attempts), (Action::Do(0), 0));
}

#[test]
fn a_claim_that_was_begun_cannot_be_cancelled_and_one_that_was_refused_can() {
    let mut task = begin(&requests()[1]);
    task = through(task.clone(), done(&task, 0));
    for i in 1..task.steps.len() {
        if task.steps[i].step == Step::Claim {
            task = through(task, [Event::Began { step: u32::try_from(i).unwrap() }]);
            break;
        }
        task = through(task.clone(), done(&task, i));
    }
    let claim = u32::try_from(task.steps.iter().position(|s| s.step == Step::Claim).unwrap()).unwrap();
    let cancel = Entry::new(task.entries + 1, Time::from_millis(1), Event::CancelAsked { actor: "op".into() });
    assert_eq!(transition(&task, &cancel).unwrap_err().kind(), ErrorKind::Refused);
    let failed = |kind| Event::Failed { step: claim, error: TaskError { kind, text: String::new() }, log: vec![] };
    let unsure = through(task.clone(), [failed(ErrorKind::Io)]);
    assert_eq!(unsure.question().unwrap().choices, [Choice::Retry, Choice::GiveUp]);
    let refused = through(task, [failed(ErrorKind::Fenced)]);
    let Action::Undo(last) = next_action(&refused) else { panic!("{:?}", refused.state) };
    assert_eq!(refused.steps[last].step, Step::Request, "what was asked for is withdrawn");
}

#[test]
fn what_was_overtaken_goes_on_forwards() {
    let mut task = begin(&requests()[2]);
    for i in 0..5 {
        task = through(task.clone(), done(&task, i));
    }
    let taker = 5;
    assert_eq!(task.steps[taker].step, Step::AwaitTaker);
    let task = through(
        task,
        [
            Event::Began { step: 5 },
            Event::CancelAsked { actor: "op".into() },
            Event::Interrupted { step: 5 },
            Event::UndoBegan { step: 4 },
            Event::UndoOvertaken { step: 4, why: "b was first".into() },
        ],
    );
    assert_eq!((next_action(&task), task.state.word()), (Action::Do(taker), "running"));
    let task = through(task.clone(), done(&task, taker));
    assert_eq!(task.state, TaskState::Done);
}

#[test]
fn a_script_is_tried_as_often_as_the_runbook_says_and_one_that_stops_turns_back_or_ends_the_task() {
    let step = |text: &str| serde_json::from_str::<Step>(text).unwrap();
    let retried = step(r#"{"run-script":{"script":{"command":["/a"],"on_failure":"retry","retries":2},"vm":null}}"#);
    let stops = step(r#"{"run-script":{"script":{"command":["/b"],"on_failure":"stop"},"vm":null}}"#);
    let failed = |step| {
        let error = TaskError { kind: ErrorKind::Incomplete, text: "script /b ended badly".into() };
        [Event::Began { step }, Event::Failed { step, error, log: vec![] }]
    };
    let listed = |steps: Vec<Step>| {
        let task = begin(&requests()[0]);
        let Outcome::Checked { owner, generation, vms, excluded, plan, .. } = outcome_of(&task, 0) else { panic!() };
        let outcome = Outcome::Checked { owner, generation, vms, excluded, plan, steps };
        through(task, [Event::Began { step: 0 }, Event::Finished { step: 0, outcome, log: vec![] }])
    };
    let mut task = listed(vec![retried, stops.clone()]);
    task = through(task, failed(1));
    assert!(matches!(task.steps[1].state, StepState::Retrying { .. }) && task.question().is_none());
    // Cut off by the end of the process, and begun again: a try as any other.
    task = through(task, [Event::Began { step: 1 }]);
    task = through(task, failed(1));
    assert_eq!(task.steps[1].attempts, 3);
    assert_eq!(task.question().unwrap().choices, [Choice::Retry, Choice::Skip, Choice::Abort]);
    let before = listed(vec![Step::PublishSettings, stops.clone(), Step::Claim]);
    let before = through(before.clone(), done(&before, 1));
    let turned = through(before, failed(2));
    assert!(matches!(&turned.state, TaskState::Cancelling { because: Some(e) } if e.text.contains("/b")), "{turned:?}");
    assert_eq!(next_action(&turned), Action::Undo(1));
    let after = listed(vec![Step::Claim, stops]);
    let ended = through(through(after.clone(), done(&after, 1)), failed(2));
    assert!(matches!(&ended.state, TaskState::Failed { error } if error.text.contains("/b")), "{:?}", ended.state);
}
