//! The text of journal entries is pinned: what was kept once is read for ever.

use crate::error::ErrorKind;
use crate::failover::engine::replay;
use crate::failover::event::{ENTRY_VERSION, Entry, Event, MAX_ENTRY_LEN, Outcome};
use crate::failover::request::{Complete, Forget, HandOver, Request};
use crate::failover::runbook::{OnFailure, Probe, Script, WaitFor};
use crate::failover::samples::{self, name};
use crate::failover::step::Step;
use crate::failover::task::{Choice, Completion, Question, TaskError, TaskId};
use crate::ids::{Generation, SegmentNo, SegmentRef, Time};

/// Every step but the first.
pub(super) fn all_steps() -> Vec<Step> {
    let script = Script {
        command: vec!["/bin/a".into(), "b".into()],
        environment: [("K".to_owned(), "v".to_owned())].into(),
        limit_seconds: 9,
        on_failure: Default::default(),
        retries: None,
    };
    let vm = name("db");
    let wait = |probe| Step::WaitFor {
        wait: WaitFor { probe, limit_seconds: 5, on_timeout: Default::default(), retries: None },
        vm: name("db"),
    };
    vec![
        Step::Rehydrate,
        Step::PublishSettings,
        Step::Request,
        Step::AwaitRelease,
        Step::Claim,
        Step::Finish,
        Step::Protect,
        Step::Define,
        Step::Delay { seconds: 5, of: "data".into() },
        Step::RunScript { script, vm: Some(vm.clone()) },
        Step::Start { vm },
        wait(Probe::TcpPort { host: "db".into(), port: 5432 }),
        wait(Probe::Script { command: vec!["/up".into()] }),
        Step::Confirm { text: "ok?".into() },
        Step::CleanUp,
        Step::Follow,
        Step::CatchUp,
        Step::CheckSettings,
        Step::ShutDown,
        Step::Drain,
        Step::Release,
        Step::AwaitTaker,
        Step::Undefine,
        Step::Unfollow,
        Step::Forget { delete_disks: true },
    ]
}

/// Steps with what runbooks say since later versions of this program.
fn later_steps() -> Vec<Step> {
    let script = |on_failure, retries| Step::RunScript {
        script: Script {
            command: vec!["/bin/a".into()],
            environment: Default::default(),
            limit_seconds: 9,
            on_failure,
            retries,
        },
        vm: None,
    };
    let wait = |probe, on_timeout, retries| Step::WaitFor {
        wait: WaitFor { probe, limit_seconds: 5, on_timeout, retries },
        vm: name("db"),
    };
    let port = Probe::TcpPort { host: "db".into(), port: 5432 };
    let agent = |address: &str| Probe::GuestAgent { address: address.into() };
    vec![
        script(OnFailure::Continue, None),
        script(OnFailure::Retry, None),
        script(OnFailure::Retry, Some(7)),
        script(OnFailure::Stop, None),
        wait(port, OnFailure::Retry, Some(7)),
        wait(agent(""), OnFailure::Ask, None),
        wait(agent("10.0.0.5"), OnFailure::Stop, None),
    ]
}

/// One entry of every kind, and every step and outcome.
fn all() -> Vec<Event> {
    let at = SegmentRef::new(Generation::new(3), SegmentNo::new(17));
    let checked = |steps| Outcome::Checked {
        owner: name("a"),
        generation: Generation::new(3),
        vms: vec![name("db")],
        excluded: vec![(name("web"), "why".into())],
        plan: None,
        steps,
    };
    let requests = vec![
        Request::Plan(Box::new(samples::plan("shop"))),
        Request::Complete(Box::new(Complete {
            from: Some(name("a")),
            accept_damage: true,
            runbook: Some(Default::default()),
            ..Complete::new(name("shop"), Completion::Planned)
        })),
        Request::HandOver(HandOver {
            domain: name("shop"),
            to: name("b"),
            shutdown_limit_seconds: 300,
            taken_limit_seconds: 3600,
        }),
        Request::Forget(Forget { domain: name("shop"), delete_disks: true, accept_divergence: false }),
    ];
    let actor = || "anna".to_owned();
    let log = || vec!["one".to_owned()];
    let error = || TaskError { kind: ErrorKind::Unreachable, text: "gone".into() };
    let mut events: Vec<Event> =
        requests.into_iter().map(|request| Event::Submitted { request, actor: actor() }).collect();
    let outcomes = vec![
        Outcome::Nothing,
        checked(all_steps()),
        Outcome::Rehydrated { at },
        Outcome::Claimed { generation: Generation::new(4), base: at },
        Outcome::Drained { at },
        Outcome::Taken { by: name("b"), generation: Generation::new(4) },
    ];
    events.extend(outcomes.into_iter().map(|outcome| Event::Finished { step: 1, outcome, log: log() }));
    let question = Question { text: "well?".into(), choices: Choice::ALL.to_vec(), vms: vec![name("db")] };
    events.extend([
        Event::Began { step: 0 },
        Event::Failed { step: 1, error: error(), log: log() },
        Event::Interrupted { step: 1 },
        Event::Asked { step: 1, question, log: log() },
        Event::Chose { choice: Choice::PowerOff, question: None, actor: actor() },
        Event::PauseAsked { actor: actor() },
        Event::ResumeAsked { actor: actor() },
        Event::CancelAsked { actor: actor() },
        Event::UndoBegan { step: 1 },
        Event::Undone { step: 1, log: log() },
        Event::UndoFailed { step: 1, error: error() },
        Event::UndoOvertaken { step: 1, why: "b was first".into() },
    ]);
    // What came later stands at the end: the lines before it stay as they were.
    events.push(Event::Finished { step: 1, outcome: checked(later_steps()), log: log() });
    let (vms, excluded) = (vec![name("db")], vec![(name("web"), "it left".to_owned())]);
    let outcome = Outcome::Released { vms, excluded, steps: vec![Step::Claim, Step::CleanUp] };
    events.push(Event::Finished { step: 2, outcome, log: log() });
    events.push(Event::Chose { choice: Choice::Confirm, question: Some(2), actor: actor() });
    events
}

#[test]
fn entries_are_the_text_that_they_always_were() {
    let kept = include_str!("entries-v1.jsonl");
    let texts: Vec<String> = (1..)
        .zip(all())
        .map(|(n, event)| Entry::new(n, Time::from_millis(1_700_000_000_000), event).to_text().unwrap())
        .collect();
    let now = texts.join("\n") + "\n";
    if std::env::var_os("FRESHET_WRITE_GOLDEN").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/failover/tests/entries-v1.jsonl"), &now).unwrap();
    }
    assert_eq!(now, kept);
    for (line, event) in kept.lines().zip(all()) {
        assert_eq!(Entry::from_text(line).unwrap().event, event);
    }
}

#[test]
fn what_is_not_known_is_refused() {
    let good = Entry::new(1, Time::from_millis(5), Event::Began { step: 0 }).to_text().unwrap();
    for (from, to, kind) in [
        ("\"version\":1", "\"version\":2", ErrorKind::Unsupported),
        ("\"began\"", "\"begun\"", ErrorKind::Damaged),
        ("\"step\":0", "\"step\":0,\"more\":1", ErrorKind::Damaged),
        ("\"step\":0", "\"step\":-1", ErrorKind::Damaged),
        ("\"n\":1", "\"n\":1,\"m\":1", ErrorKind::Damaged),
    ] {
        let bad = good.replace(from, to);
        assert_ne!(bad, good);
        assert_eq!(Entry::from_text(&bad).unwrap_err().kind(), kind, "{bad}");
    }
}

#[test]
fn the_page_of_formats_has_every_event_with_its_fields_and_the_version_and_limit() {
    let page = include_str!("../../../docs/formats.md");
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let rows = |head: &str| -> Vec<Vec<String>> {
        let rows = page.lines().skip_while(|line| *line != head).skip(2);
        rows.take_while(|line| line.starts_with('|')).map(cells).collect()
    };
    let mut coded: Vec<(String, String)> = Vec::new();
    for event in all() {
        let text = serde_json::to_value(&event).unwrap();
        let (name, fields) = text.as_object().unwrap().iter().next().unwrap();
        let optional = |field: &str| {
            let mut without = text.clone();
            without[name].as_object_mut().unwrap().remove(field);
            serde_json::from_value::<Event>(without).is_ok()
        };
        let fields = fields.as_object().unwrap().keys();
        let mut fields: Vec<String> = fields.map(|f| if optional(f) { format!("{f}?") } else { f.clone() }).collect();
        fields.sort();
        let row = (format!("`{name}`"), fields.join(", "));
        if !coded.contains(&row) {
            coded.push(row);
        }
    }
    let mut told: Vec<(String, String)> =
        rows("| event | fields | what happened |").into_iter().map(|row| (row[1].clone(), row[2].clone())).collect();
    told.sort();
    coded.sort();
    assert_eq!(told, coded);
    let part = rows("| part | version | limit in bytes | why |");
    assert_eq!(part.len(), ENTRY_VERSION as usize, "a reader for every version stays, and has a row");
    assert_eq!(part[0][2], ENTRY_VERSION.to_string());
    assert_eq!(part[0][3].replace(',', ""), MAX_ENTRY_LEN.to_string());
}

#[test]
fn an_entry_survives_any_bytes_and_what_is_taken_says_the_same_again() {
    let honest = |bytes: &[u8]| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let Ok(entry) = Entry::from_text(text) else { return };
        let again = entry.to_text().unwrap();
        assert_eq!(Entry::from_text(&again).unwrap(), entry);
        // Nothing of what it says makes a task that cannot be.
        let _ = replay(TaskId::new(Time::from_millis(1)), vec![Ok(entry)]);
    };
    let mut random = fastrand::Rng::with_seed(7);
    for line in include_str!("entries-v1.jsonl").lines() {
        assert!(Entry::from_text(line).is_ok());
        for _ in 0..300 {
            let mut bytes = line.as_bytes().to_vec();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                match random.u8(..4) {
                    0 => bytes.truncate(at + 1),
                    1 => bytes[at] = random.u8(..),
                    2 => bytes[at] = *b"{}[]\":,0123456789-e.".get(random.usize(..20)).unwrap(),
                    _ => drop(bytes.splice(at..at, line.bytes().skip(random.usize(..line.len())).take(9))),
                }
            }
            honest(&bytes);
        }
    }
    honest("[".repeat(100_000).as_bytes());
    honest(format!("{{\"version\":1,\"n\":{}", "9".repeat(400)).as_bytes());
    assert_eq!(Entry::from_text(&" ".repeat(MAX_ENTRY_LEN + 1)).unwrap_err().kind(), ErrorKind::Damaged);
}
