//! Two who act at once, commands that come in between, and journals that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::drill::{Rig, hand_over, patient, tell, told};
use crate::clock::SystemClock;
use crate::error::{Error, ErrorKind, Result};
use crate::failover::engine::{Engine, EngineSettings};
use crate::failover::event::Entry;
use crate::failover::journal::{Abandoned, Journal, Kept, MemoryJournal, Once};
use crate::failover::plan::FailoverMode;
use crate::failover::request::{Command, Complete, Request};
use crate::failover::samples::{self, name};
use crate::failover::sim::{Faults, Process, Sim};
use crate::failover::task::{Completion, Task, TaskId};
use crate::hypervisor::PowerState;
use crate::ids::Name;

fn complete(how: Completion) -> Request {
    Request::Complete(Box::new(Complete {
        accept_loss: true,
        from: Some(name("a")),
        ..Complete::new(name("shop"), how)
    }))
}

fn follows(sim: &mut Sim, site: &str) {
    let mut plan = samples::plan("shop");
    plan.general.mode = FailoverMode::Continuous;
    plan.options.release_limit_seconds = 604_800;
    sim.site_mut(&name(site)).following = Some(plan);
}

fn failover(change: impl FnOnce(&mut crate::failover::FailoverPlan)) -> Request {
    let mut plan = samples::plan("shop");
    change(&mut plan);
    Request::Plan(Box::new(plan))
}

async fn until(engine: &Engine, id: TaskId, what: impl Fn(&Task) -> bool) -> Arc<Task> {
    let mut watch = engine.watch(id).unwrap();
    let found = tokio::time::timeout(Duration::from_secs(30), watch.wait_for(|t| what(t))).await;
    match found {
        Ok(task) => task.unwrap().clone(),
        Err(_) => panic!("it hangs: {}", tell(&engine.task(id).unwrap())),
    }
}

fn step_runs(task: &Task, word: &str) -> bool {
    task.current().is_some_and(|(_, s)| s.step.word() == word)
}

fn over(task: &Task) -> bool {
    task.state.is_terminal()
}

#[tokio::test]
async fn of_two_sites_that_complete_at_once_one_wins_and_the_other_says_who() {
    for head_start in 0..60 {
        let mut sim = Sim::new(&["a", "b", "c"]);
        sim.cut_off.insert(name("a"));
        follows(&mut sim, "b");
        follows(&mut sim, "c");
        let rig = Rig::new(sim, None, false).await;
        let (b, c) = (&rig.sites[&name("b")].engine, &rig.sites[&name("c")].engine);
        let at_b = b.submit(complete(Completion::Forced), "one").await.unwrap();
        for _ in 0..head_start {
            tokio::task::yield_now().await;
        }
        let at_c = c.submit(complete(Completion::Forced), "two").await.unwrap();
        let (at_b, at_c) = (until(b, at_b, over).await, until(c, at_c, over).await);
        let sim = rig.sim.lock().unwrap();
        assert!(sim.violations.is_empty(), "{:?}", sim.violations);
        let (winner, won, lost) = match at_b.state.word() {
            "done" => ("b", &at_b, &at_c),
            _ => ("c", &at_c, &at_b),
        };
        assert_eq!((won.state.word(), lost.state.word()), ("done", "failed"), "{}", told(&rig));
        let error = lost.error().unwrap();
        assert_eq!(sim.owner.site, name(winner));
        assert!(error.text.contains(&format!("site {winner}")), "{error}");
        let running: Vec<&Name> = sim.sites.keys().filter(|s| !sim.cut_off.contains(*s) && sim.runs_at(s)).collect();
        assert_eq!(running, [&name(winner)]);
    }
}

#[tokio::test]
async fn a_withdrawal_and_a_claim_at_once_leave_one_owner_whose_guests_run() {
    let mut wins = [0, 0];
    for delay in 0..80 {
        let mut sim = Sim::new(&["a", "b"]);
        follows(&mut sim, "b");
        let rig = Rig::new(sim, None, false).await;
        let (a, b) = (&rig.sites[&name("a")].engine, &rig.sites[&name("b")].engine);
        let taking = b.submit(complete(Completion::Planned), "b").await.unwrap();
        until(b, taking, |t| step_runs(t, "await-release")).await;
        let giving = a.submit(Request::HandOver(hand_over(name("b"))), "a").await.unwrap();
        until(a, giving, |t| step_runs(t, "release") || step_runs(t, "await-taker")).await;
        for _ in 0..delay {
            tokio::task::yield_now().await;
        }
        let cancelled = a.command(giving, Command::Cancel, "a").await;
        let (giving, taking) = (until(a, giving, over).await, until(b, taking, over).await);
        let sim = rig.sim.lock().unwrap();
        assert!(sim.violations.is_empty(), "{:?} {}", sim.violations, told(&rig));
        match (giving.state.word(), taking.state.word()) {
            ("done", "done") => {
                wins[1] += 1;
                assert!(sim.runs_at(&name("b")) && !sim.runs_at(&name("a")) && sim.owner.site == name("b"));
            }
            ("cancelled", "failed") => {
                wins[0] += 1;
                assert!(cancelled.is_ok());
                assert!(sim.runs_at(&name("a")) && !sim.runs_at(&name("b")) && sim.owner.site == name("a"));
                assert!(taking.error().unwrap().text.contains("site a"), "{}", told(&rig));
            }
            other => panic!("{other:?} {}", told(&rig)),
        }
    }
    assert!(wins[0] > 0 && wins[1] > 0, "both must be seen to win: {wins:?}");
}

#[tokio::test]
async fn a_hand_over_that_is_cancelled_while_it_drains_is_told_to_who_asked() {
    let mut sim = Sim::new(&["a", "b"]);
    follows(&mut sim, "b");
    let rig = Rig::new(sim, None, false).await;
    let (a, b) = (&rig.sites[&name("a")].engine, &rig.sites[&name("b")].engine);
    let taking = b.submit(complete(Completion::Planned), "b").await.unwrap();
    until(b, taking, |t| step_runs(t, "await-release")).await;
    let giving = a.submit(Request::HandOver(hand_over(name("b"))), "a").await.unwrap();
    until(a, giving, |t| step_runs(t, "drain")).await;
    a.command(giving, Command::Cancel, "a").await.unwrap();
    let (giving, taking) = (until(a, giving, over).await, until(b, taking, over).await);
    assert_eq!((giving.state.word(), taking.state.word()), ("cancelled", "failed"), "{}", told(&rig));
    assert!(taking.error().unwrap().text.contains("an operator there aborted it"), "{}", told(&rig));
    let sim = rig.sim.lock().unwrap();
    assert!(sim.violations.is_empty() && sim.runs_at(&name("a")) && sim.owner.site == name("a"));
}

#[tokio::test]
async fn a_second_task_of_a_domain_is_refused_and_names_the_first() {
    let mut sim = Sim::new(&["a", "b"]);
    follows(&mut sim, "b");
    let rig = Rig::new(sim, None, false).await;
    let b = &rig.sites[&name("b")].engine;
    let first = b.submit(complete(Completion::Planned), "anna").await.unwrap();
    let error = b.submit(complete(Completion::Forced), "otto").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains(&first.to_string()) && error.to_string().contains("anna"), "{error}");
    b.command(first, Command::Cancel, "anna").await.unwrap();
    let error = b.command(first, Command::Cancel, "otto").await.unwrap_err();
    assert!(error.to_string().contains("already") || error.to_string().contains("over"), "{error}");
    until(b, first, over).await;
    b.submit(complete(Completion::Forced), "otto").await.unwrap();
}

#[tokio::test]
async fn what_was_never_started_cannot_be_completed() {
    let rig = Rig::new(Sim::new(&["a", "b"]), None, false).await;
    let b = &rig.sites[&name("b")].engine;
    let id = b.submit(complete(Completion::Forced), "op").await.unwrap();
    let task = until(b, id, over).await;
    let error = task.error().unwrap();
    assert!(error.kind == ErrorKind::Refused && error.text.contains("start a continuous failover first"), "{error}");
    assert_eq!(b.plan(&complete(Completion::Forced)).await.unwrap_err().kind(), ErrorKind::Refused);
}

#[tokio::test]
async fn force_without_its_acceptance_is_refused_and_names_the_loss() {
    let rig = Rig::new(Sim::new(&["a", "b"]), None, false).await;
    let b = &rig.sites[&name("b")].engine;
    let request = failover(|p| p.options.accept_loss = false);
    let id = b.submit(request.clone(), "op").await.unwrap();
    let task = until(b, id, over).await;
    assert!(task.error().unwrap().text.contains("loses what was written in the last 1 s"), "{}", tell(&task));
    let planned = b.plan(&request).await.unwrap();
    assert!(planned.findings.iter().any(|f| f.field == "accept_loss"));
    assert_eq!(planned.summary.loss.unwrap().age_millis, 1000);
}

#[tokio::test]
async fn past_the_point_of_no_return_cancelling_is_refused() {
    let mut sim = Sim::new(&["a", "b"]);
    sim.cut_off.insert(name("a"));
    let rig = Rig::new(sim, None, false).await;
    let b = &rig.sites[&name("b")].engine;
    let book = r#"{"scripts_before":[],"groups":[{"name":"g","confirm":"go?","vms":[]}]}"#;
    let id = b.submit(failover(|p| p.options.runbook = Some(serde_json::from_str(book).unwrap())), "op").await.unwrap();
    let task = until(b, id, |t| t.question().is_some()).await;
    let error = b.command(id, Command::Cancel, "op").await.unwrap_err();
    assert!(error.kind() == ErrorKind::Refused && error.to_string().contains("step claim"), "{error}");
    let answer = patient(task.question().unwrap());
    let error = b
        .command(id, Command::Choose { choice: crate::failover::Choice::PowerOff, question: 1 }, "op")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("confirm, give-up"), "{error}");
    for late in [0, 2] {
        let error = b.command(id, Command::Choose { choice: answer, question: late }, "op").await.unwrap_err();
        assert!(error.to_string().contains("it asks question 1"), "{error}");
    }
    b.command(id, Command::Choose { choice: answer, question: 1 }, "op").await.unwrap();
    assert_eq!(until(b, id, over).await.state.word(), "done");
}

#[tokio::test]
async fn a_task_is_paused_between_steps_and_within_long_ones_and_goes_on() {
    let mut sim = Sim::new(&["a", "b"]);
    follows(&mut sim, "b");
    let rig = Rig::new(sim, None, false).await;
    let b = &rig.sites[&name("b")].engine;
    let id = b.submit(complete(Completion::Planned), "op").await.unwrap();
    until(b, id, |t| step_runs(t, "await-release")).await;
    b.command(id, Command::Pause, "op").await.unwrap();
    let task = until(b, id, |t| t.state.word() == "paused").await;
    assert!(task.current().is_none(), "the step that waited has stopped: {}", tell(&task));
    assert!(b.command(id, Command::Pause, "op").await.is_err());
    // The other site acts meanwhile; nothing happens here.
    let a = &rig.sites[&name("a")].engine;
    a.submit(Request::HandOver(hand_over(name("b"))), "a").await.unwrap();
    for _ in 0..2000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.sim.lock().unwrap().owner.site, name("a"));
    b.command(id, Command::Resume, "op").await.unwrap();
    assert_eq!(until(b, id, over).await.state.word(), "done");
}

#[tokio::test]
async fn an_engine_that_is_stopped_leaves_its_tasks_to_the_next() {
    let mut sim = Sim::new(&["a", "b"]);
    follows(&mut sim, "b");
    let sim = Arc::new(std::sync::Mutex::new(sim));
    let journal = Arc::new(MemoryJournal::new());
    let start = || {
        let process = Process::start(&sim, &name("b"), Faults::new(None));
        Engine::new(journal.clone(), Arc::new(process), Arc::new(SystemClock), EngineSettings::default())
    };
    let first = start();
    let id = first.submit(complete(Completion::Planned), "op").await.unwrap();
    until(&first, id, |t| step_runs(t, "await-release")).await;
    first.stop().await;
    assert!(first.submit(complete(Completion::Planned), "op").await.is_err(), "a stopped engine takes nothing");
    let second = start();
    let recovered = second.recover().await.unwrap();
    assert_eq!(recovered.going_on, [id]);
    until(&second, id, |t| step_runs(t, "await-release") && t.steps.iter().any(|s| s.attempts == 2)).await;
    second.command(id, Command::Cancel, "op").await.unwrap();
    assert_eq!(until(&second, id, over).await.state.word(), "cancelled");
}

/// A journal that fails while it is told to.
#[derive(Default)]
struct Failing {
    inner: MemoryJournal,
    fails: AtomicBool,
}

impl Journal for Failing {
    fn append(&self, task: TaskId, entry: &Entry) -> Result<u64> {
        match self.fails.load(Ordering::SeqCst) {
            true => Err(Error::new(ErrorKind::Full, "the catalog has no room")),
            false => self.inner.append(task, entry),
        }
    }

    fn begin(&self, task: TaskId, entry: &Entry, once: &Once) -> Result<u64> {
        let n = self.inner.begin(task, entry, once)?;
        match self.fails.load(Ordering::SeqCst) {
            // Kept, and its answer is lost.
            true => Err(Error::new(ErrorKind::Io, "the catalog went away")),
            false => Ok(n),
        }
    }

    fn load(&self) -> Result<Kept> {
        self.inner.load()
    }

    fn abandon(&self, task: TaskId, abandoned: &Abandoned) -> Result<()> {
        self.inner.abandon(task, abandoned)
    }
}

type Shared = Arc<std::sync::Mutex<Sim>>;

/// Site b follows a domain whose owner is cut off, and its journal fails where that is asked for.
fn a_follower_alone() -> (Shared, Arc<Failing>) {
    let mut sim = Sim::new(&["a", "b"]);
    sim.cut_off.insert(name("a"));
    follows(&mut sim, "b");
    (Arc::new(std::sync::Mutex::new(sim)), Arc::default())
}

/// A process of site b.
fn engine_over(sim: &Shared, journal: &Arc<Failing>) -> Engine {
    let process = Process::start(sim, &name("b"), Faults::new(None));
    Engine::new(journal.clone(), Arc::new(process), Arc::new(SystemClock), EngineSettings::default())
}

#[tokio::test]
async fn without_a_journal_nothing_is_done_and_a_restart_goes_on() {
    let (sim, journal) = a_follower_alone();
    let start = || engine_over(&sim, &journal);
    let first = start();
    journal.fails.store(true, Ordering::SeqCst);
    let error = first.submit(complete(Completion::Forced), "op").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    assert!(first.tasks().is_empty(), "what was not kept is not there");
    journal.fails.store(false, Ordering::SeqCst);
    let book = r#"{"groups":[{"name":"g","confirm":"go?","vms":[]}]}"#;
    let mut request = complete(Completion::Forced);
    if let Request::Complete(complete) = &mut request {
        complete.runbook = Some(serde_json::from_str(book).unwrap());
    }
    let id = first.submit(request, "op").await.unwrap();
    until(&first, id, |t| t.question().is_some()).await;
    journal.fails.store(true, Ordering::SeqCst);
    let answer = Command::Choose { choice: crate::failover::Choice::Confirm, question: 1 };
    assert!(first.command(id, answer, "op").await.is_err());
    let task = first.task(id).unwrap();
    assert!(task.question().is_some(), "what was not kept was not done");
    assert!(task.trouble.as_ref().unwrap().contains("no room"), "{:?}", task.trouble);
    journal.fails.store(false, Ordering::SeqCst);
    assert!(first.command(id, answer, "op").await.is_err(), "nobody knows what the journal holds");
    drop(first);
    let second = start();
    second.recover().await.unwrap();
    assert!(!sim.lock().unwrap().site(&name("b")).vms.values().any(|(_, s)| *s == PowerState::Running));
    second.command(id, answer, "op").await.unwrap();
    assert_eq!(until(&second, id, over).await.state.word(), "done");
    assert!(sim.lock().unwrap().violations.is_empty());
}

#[tokio::test]
async fn a_request_is_kept_with_the_task_that_it_began_though_nobody_was_told() {
    let (sim, journal) = a_follower_alone();
    let start = || engine_over(&sim, &journal);
    let first = start();
    journal.fails.store(true, Ordering::SeqCst);
    let once = Once { id: "r".into(), digest: "x".into() };
    let lost = first.submit_once(complete(Completion::Forced), "op", Some(once)).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Io, "{lost}");
    drop(first);
    journal.fails.store(false, Ordering::SeqCst);
    let second = start();
    let going_on = second.recover().await.unwrap().going_on;
    assert_eq!(going_on.len(), 1);
    assert_eq!(journal.inner.began_by("r"), Some(going_on[0]), "whoever asks again is told of this one");
    assert_eq!(until(&second, going_on[0], over).await.state.word(), "done");
}

#[tokio::test]
async fn a_journal_that_makes_no_sense_is_named_and_keeps_the_domain() {
    let journal = Arc::new(MemoryJournal::new());
    let id = TaskId::new(crate::ids::Time::from_millis(5));
    let at = crate::ids::Time::from_millis(5);
    let submitted = crate::failover::Event::Submitted { request: complete(Completion::Forced), actor: "op".into() };
    journal.append(id, &Entry::new(1, at, submitted)).unwrap();
    journal.append(id, &Entry::new(2, at, crate::failover::Event::Undone { step: 7, log: vec![] })).unwrap();
    let sim = Arc::new(std::sync::Mutex::new(Sim::new(&["a", "b"])));
    let process = Process::start(&sim, &name("b"), Faults::new(None));
    let engine = Engine::new(journal, Arc::new(process), Arc::new(SystemClock), EngineSettings::default());
    let recovered = engine.recover().await.unwrap();
    assert!(recovered.broken.len() == 1 && recovered.going_on.is_empty(), "{recovered:?}");
    assert!(engine.task(id).unwrap().trouble.as_ref().unwrap().contains("step 7"));
    assert!(engine.submit(complete(Completion::Forced), "op").await.is_err());
}

#[tokio::test]
async fn a_task_is_given_up_only_where_its_journal_cannot_be_read_and_then_for_good() {
    let journal = Arc::new(MemoryJournal::new());
    let mut sim = Sim::new(&["a", "b"]);
    follows(&mut sim, "b");
    let sim = Arc::new(std::sync::Mutex::new(sim));
    let start = || {
        let process = Process::start(&sim, &name("b"), Faults::new(None));
        Engine::new(journal.clone(), Arc::new(process), Arc::new(SystemClock), EngineSettings::default())
    };
    let first = start();
    let id = first.submit(complete(Completion::Planned), "op").await.unwrap();
    until(&first, id, |t| step_runs(t, "await-release")).await;
    let refused = first.abandon(id, "root").await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Refused && refused.to_string().contains("reads well"), "{refused}");
    let other = TaskId::new(crate::ids::Time::from_millis(5));
    assert_eq!(first.abandon(other, "root").await.unwrap_err().kind(), ErrorKind::NotFound);
    first.stop().await;
    journal.damage(id, 2, "{\"version\":1,\"n\":2,\"at\":");

    let second = start();
    assert_eq!(second.recover().await.unwrap().broken.len(), 1);
    assert!(second.task(id).unwrap().trouble.as_ref().unwrap().contains("freshet task abandon"));
    assert!(second.submit(complete(Completion::Planned), "op").await.is_err(), "it keeps its domain");
    let task = second.abandon(id, "root").await.unwrap().unwrap();
    assert!(task.state.word() == "failed" && task.error().unwrap().text.contains("root"), "{task:?}");
    assert_eq!(second.abandon(id, "root").await.unwrap().unwrap().state.word(), "failed", "once more changes nothing");
    second.stop().await;

    let third = start();
    let recovered = third.recover().await.unwrap();
    assert!(recovered.broken.is_empty() && recovered.over == 1, "{recovered:?}");
    assert_eq!(third.task(id).unwrap().state.word(), "failed");
    let next = third.submit(complete(Completion::Planned), "op").await.unwrap();
    third.command(next, Command::Cancel, "op").await.unwrap();
    assert_eq!(until(&third, next, over).await.state.word(), "cancelled");
}

#[tokio::test]
async fn a_task_of_which_nothing_can_be_read_is_named_and_can_be_given_up() {
    let journal = Arc::new(MemoryJournal::new());
    let id = TaskId::new(crate::ids::Time::from_millis(5));
    let submitted = crate::failover::Event::Submitted { request: complete(Completion::Forced), actor: "op".into() };
    journal.append(id, &Entry::new(1, crate::ids::Time::from_millis(5), submitted)).unwrap();
    journal.damage(id, 1, "{\"version\":9}");
    let sim = Arc::new(std::sync::Mutex::new(Sim::new(&["a", "b"])));
    let start = || {
        let process = Process::start(&sim, &name("b"), Faults::new(None));
        Engine::new(journal.clone(), Arc::new(process), Arc::new(SystemClock), EngineSettings::default())
    };
    let engine = start();
    let recovered = engine.recover().await.unwrap();
    assert_eq!(recovered.broken[0].1.kind(), ErrorKind::Unsupported);
    assert!(engine.tasks().is_empty() && engine.abandon(id, "root").await.unwrap().is_none());
    assert!(engine.abandon(id, "root").await.unwrap().is_none(), "once more changes nothing");
    let never = TaskId::new(crate::ids::Time::from_millis(9));
    assert_eq!(engine.abandon(never, "root").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(start().recover().await.unwrap().broken.is_empty());
}
