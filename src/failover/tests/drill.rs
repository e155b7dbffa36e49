//! One scenario on simulated sites: run once as it should go, then again with the process of a site killed at its n-th
//! moment, with its n-th call failing once before or after its effect, and with every step done twice; for all n. Each time
//! the end must be the same, and nothing may have happened that must not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::error::{ErrorKind, Result};
use crate::failover::engine::{Engine, EngineSettings};
use crate::failover::journal::{Journal, MemoryJournal};
use crate::failover::request::{Command, HandOver, Request};
use crate::failover::samples::name;
use crate::failover::sim::{Fault, Faults, GatedJournal, Process, Sim, SimClock, What};
use crate::failover::task::{Choice, Question, Task, TaskId, TaskKind, TaskState};
use crate::ids::Name;

/// Turns of the loop that watches over a scenario, after which it hangs.
const MAX_TURNS: u32 = 200_000;

/// What is to happen, at which site, and how it must end.
pub(super) struct Scenario {
    /// Sites; the first is the domain's home and owns it.
    pub(super) sites: &'static [&'static str],
    /// Makes the state to begin from.
    pub(super) prepare: fn(&mut Sim),
    /// Changes it once all processes run.
    pub(super) then: fn(&mut Sim),
    /// The site that is asked.
    pub(super) at: &'static str,
    pub(super) request: fn() -> Request,
    /// What operators answer.
    pub(super) answer: fn(&Question) -> Choice,
    /// The task is cancelled as soon as this step runs.
    pub(super) cancel_at: Option<&'static str>,
    /// A process that was killed gets the task cancelled as soon as it is back.
    pub(super) cancel_when_back: bool,
    /// The owner's appliance acts on requests.
    pub(super) owner_reacts: bool,
    /// The word of the state in which the task must end.
    pub(super) end: &'static str,
    /// What must be so then.
    pub(super) expect: fn(&Sim),
    /// Sites whose processes are killed.
    pub(super) victims: &'static [&'static str],
}

/// Whoever is asked tries again, and confirms.
pub(super) fn patient(question: &Question) -> Choice {
    let wanted = [Choice::Retry, Choice::Confirm, Choice::Wait];
    wanted.into_iter().find(|c| question.choices.contains(c)).unwrap_or(Choice::GiveUp)
}

impl Default for Scenario {
    fn default() -> Scenario {
        Scenario {
            sites: &["a", "b"],
            prepare: |_| {},
            then: |_| {},
            at: "b",
            request: || unreachable!("a scenario has a request"),
            answer: patient,
            cancel_at: None,
            cancel_when_back: false,
            owner_reacts: true,
            end: "done",
            expect: |_| {},
            victims: &["b"],
        }
    }
}

/// A site's process, and what it leaves behind.
pub(super) struct Site {
    pub(super) engine: Engine,
    faults: Arc<Faults>,
    journal: Arc<MemoryJournal>,
}

/// Simulated sites with an engine each.
pub(super) struct Rig {
    pub(super) sim: Arc<Mutex<Sim>>,
    pub(super) sites: BTreeMap<Name, Site>,
    twice: bool,
}

impl Rig {
    pub(super) async fn new(sim: Sim, fault: Option<(&str, Fault)>, twice: bool) -> Rig {
        let names: Vec<Name> = sim.sites.keys().cloned().collect();
        let mut rig = Rig { sim: Arc::new(Mutex::new(sim)), sites: BTreeMap::new(), twice };
        for site in names {
            let fault = fault.filter(|(victim, _)| *victim == site.as_str()).map(|(_, fault)| fault);
            let started = rig.start(&site, Arc::default(), fault).await;
            rig.sites.insert(site, started);
        }
        rig
    }

    /// A process of `site` starts, and goes on with what stands in `journal`.
    async fn start(&self, site: &Name, journal: Arc<MemoryJournal>, fault: Option<Fault>) -> Site {
        let faults = Faults::new(fault);
        let process = Process::start(&self.sim, site, faults.clone());
        let gated: Arc<dyn Journal> = Arc::new(GatedJournal { journal: journal.clone(), faults: faults.clone() });
        let settings = EngineSettings { twice: self.twice, ..EngineSettings::default() };
        let clock = Arc::new(SimClock(self.sim.clone()));
        let engine = Engine::new(gated, Arc::new(process), clock, settings);
        let recovered = engine.recover().await.unwrap();
        assert!(recovered.broken.is_empty(), "{:?}", recovered.broken);
        Site { engine, faults, journal }
    }

    /// Dead processes are started again. Whether there were any.
    async fn revive(&mut self) -> bool {
        let dead: Vec<Name> =
            self.sites.iter().filter(|(_, s)| s.faults.is_dead()).map(|(name, _)| name.clone()).collect();
        for site in &dead {
            let journal = self.sites.remove(site).expect("it was listed").journal;
            let started = self.start(site, journal, None).await;
            self.sites.insert(site.clone(), started);
        }
        !dead.is_empty()
    }

    /// What the owner's appliance does when it sees a request.
    async fn react(&self) {
        let asked = {
            let sim = self.sim.lock().unwrap();
            let stands = |r: &&crate::failover::HandOverRequest| !r.withdrawn && r.refused.is_none();
            let request = sim.request.as_ref().filter(stands).map(|r| r.site.clone());
            request.filter(|_| sim.owner.released.is_none()).map(|to| (sim.owner.site.clone(), to))
        };
        let Some((owner, to)) = asked else { return };
        let site = &self.sites[&owner];
        if site.engine.running(&name("shop")).is_none() && !site.faults.is_dead() {
            let hand_over = hand_over(to);
            // A process that is killed here gets the request again when it is back.
            let _ = site.engine.submit(Request::HandOver(hand_over), "appliance").await;
        }
    }

    async fn answer(&self, answer: fn(&Question) -> Choice) {
        for site in self.sites.values() {
            for task in site.engine.tasks() {
                if let Some(question) = task.question() {
                    let choice = answer(question);
                    let _ = site
                        .engine
                        .command(task.id, Command::Choose { choice, question: task.questions }, "operator")
                        .await;
                }
            }
        }
    }

    /// Everybody changes their mind. Where that is refused, it is too late.
    async fn cancel_all(&self) {
        for site in self.sites.values() {
            for task in site.engine.tasks() {
                let _ = site.engine.command(task.id, Command::Cancel, "operator").await;
            }
        }
    }

    fn all_over(&self) -> bool {
        self.sites.values().all(|s| !s.faults.is_dead() && s.engine.tasks().iter().all(|t| t.state.is_terminal()))
    }
}

pub(super) fn hand_over(to: Name) -> HandOver {
    HandOver { domain: name("shop"), to, shutdown_limit_seconds: 60, taken_limit_seconds: 604_800 }
}

/// How a run ended.
pub(super) struct Ended {
    pub(super) sim: String,
    pub(super) state: TaskState,
    /// Where the fault struck; `None` where the run had fewer moments.
    struck: Option<String>,
    tasks: String,
}

impl Scenario {
    /// One run.
    pub(super) async fn run(&self, fault: Option<(&'static str, Fault)>, twice: bool) -> Ended {
        let mut sim = Sim::new(self.sites);
        (self.prepare)(&mut sim);
        let mut rig = Rig::new(sim, fault, twice).await;
        (self.then)(&mut rig.sim.lock().unwrap());
        let at = name(self.at);
        let victim = fault.map(|(site, _)| rig.sites[&name(site)].faults.clone());
        let mut main = rig.sites[&at].engine.submit((self.request)(), "operator").await;
        for turn in 0.. {
            assert!(turn < MAX_TURNS, "it hangs: {}", told(&rig));
            if rig.revive().await {
                if main.is_err() {
                    main = self.ask_again(&rig, &at).await;
                }
                if self.cancel_when_back {
                    rig.cancel_all().await;
                }
            }
            if self.owner_reacts {
                rig.react().await;
            }
            rig.answer(self.answer).await;
            self.cancel(&rig.sites[&at].engine, &main).await;
            if rig.all_over() && main.is_ok() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let id = main.expect("looked at above");
        let task = rig.sites[&at].engine.task(id).unwrap();
        (self.expect)(&rig.sim.lock().unwrap());
        let sim = rig.sim.lock().unwrap().end_state();
        Ended { sim, state: task.state.clone(), struck: victim.and_then(|f| f.struck()), tasks: told(&rig) }
    }

    /// The process was killed before it said whether it took the task: whoever asked looks, and asks again.
    async fn ask_again(&self, rig: &Rig, at: &Name) -> Result<TaskId> {
        let engine = &rig.sites[at].engine;
        let kind = (self.request)().kind();
        match engine.tasks().iter().find(|t| t.kind == kind && kind != TaskKind::HandOver) {
            Some(task) => Ok(task.id),
            None => engine.submit((self.request)(), "operator").await,
        }
    }

    async fn cancel(&self, engine: &Engine, main: &Result<TaskId>) {
        let (Some(step), Ok(id)) = (self.cancel_at, main) else { return };
        let Ok(task) = engine.task(*id) else { return };
        if task.current().is_some_and(|(_, s)| s.step.word() == step) {
            let _ = engine.command(*id, Command::Cancel, "operator").await;
        }
    }

    /// All runs.
    pub(super) async fn drill(&self) {
        let clean = self.run(None, false).await;
        assert_eq!(clean.state.word(), self.end, "{}", clean.tasks);
        assert!(!clean.sim.contains("VIOLATION"), "{}", clean.sim);
        self.compare(&clean, self.run(None, true).await, "every step twice");
        for victim in self.victims {
            for kills in [true, false] {
                let mut struck = 0;
                for at in 1.. {
                    let what = match (kills, (at / 2) % 2) {
                        (true, _) => What::Kill,
                        (false, 0) => What::Fail(ErrorKind::Unreachable),
                        (false, _) => What::Fail(ErrorKind::Io),
                    };
                    let run = self.run(Some((victim, Fault { at, what })), false);
                    let ended = tokio::time::timeout(Duration::from_secs(60), run).await.expect("it hangs");
                    let Some(place) = ended.struck.clone() else { break };
                    self.compare(&clean, ended, &format!("site {victim}: {place}"));
                    struck += 1;
                }
                assert!(struck > 10, "only {struck} moments of site {victim} were tried");
            }
        }
    }

    /// All runs in which a process is killed and the tasks are cancelled when it is back: each ends either as if nothing had
    /// been asked for, or as if nothing had been cancelled; `expect` looks.
    pub(super) async fn drill_cancelling(&self) {
        let mut ends = std::collections::BTreeSet::new();
        for victim in self.victims {
            for at in 1.. {
                let run = self.run(Some((victim, Fault { at, what: What::Kill })), false);
                let ended = tokio::time::timeout(Duration::from_secs(60), run).await.expect("it hangs");
                let Some(place) = ended.struck else { break };
                assert!(!ended.sim.contains("VIOLATION"), "{place}\n{}\n{}", ended.sim, ended.tasks);
                ends.insert(ended.state.word());
            }
        }
        // Which of them is a matter of how far the task was, and of who was first to say no.
        assert!(!ends.is_empty() && ends.iter().all(|end| ["cancelled", "done", "failed"].contains(end)), "{ends:?}");
    }

    fn compare(&self, clean: &Ended, ended: Ended, what: &str) {
        assert_eq!(ended.sim, clean.sim, "{what}\n{}", ended.tasks);
        assert_eq!(ended.state.word(), clean.state.word(), "{what}\n{}", ended.tasks);
    }
}

/// All tasks in words, for messages.
pub(super) fn told(rig: &Rig) -> String {
    let mut out = String::new();
    for (name, site) in &rig.sites {
        for task in site.engine.tasks() {
            out += &format!("site {name}: {}\n", tell(&task));
        }
    }
    out
}

pub(super) fn tell(task: &Task) -> String {
    let mut out = format!("{} {:?} trouble {:?}", task.kind, task.state, task.trouble);
    for step in &task.steps {
        let log: Vec<&str> = step.log.iter().map(|l| l.text.as_str()).collect();
        out += &format!("\n    {} {:?} {log:?}", step.step.word(), step.state);
    }
    out
}
