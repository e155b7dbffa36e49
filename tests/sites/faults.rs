//! Completions, planned and forced, failovers and failbacks as needed, and the beginning of following, while cables are cut,
//! ways are slow, and processes are killed at random moments.
//!
//! Whatever happens: guests find at each boot what was promised, and nothing of a site that was taken over (see `guest`);
//! a forced completion does not wait for a site that is gone; every task ends or asks; and when all is well again the domain
//! runs at one site and the disks of the other follow it. `FRESHET_ROUNDS` says how many rounds, `FRESHET_SEED` which.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::estate::{Estate, FENCED, FIRST, FOLLOWS, SECOND};
use super::number;
use super::weather::{Change, Weather};
use crate::support::appliance::PATIENCE;
use crate::support::kills::generator;

/// Changes of the weather begin within this time.
const WITHIN: Duration = Duration::from_millis(4000);
/// Most beginnings of one thing that is to come to its end.
const MOST_BEGINNINGS: usize = 5;
/// Most answers to questions of one round.
const ANSWERS: usize = 8;

/// How a domain is completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Planned {
        resume_remote: bool,
    },
    /// The owner is cut off or killed before, and stays so.
    Forced,
    /// It was to be planned; the owner is lost on the way, and it is forced.
    Changed,
}

/// A round.
struct Round<'e> {
    estate: &'e mut Estate,
    weather: Weather,
    random: &'e mut fastrand::Rng,
    answers: usize,
}

impl Round<'_> {
    /// A little time, in which what is due happens.
    fn pass(&mut self) {
        self.weather.pass(self.estate);
        self.estate.guests.iter_mut().for_each(|guests| guests.check());
        std::thread::sleep(Duration::from_millis(100));
    }

    /// What a site says; nothing where it is down or cannot answer.
    fn said(&self, site: usize, args: &[&str]) -> Option<Value> {
        let ran = self.estate.sites[site].appliance.ask(args);
        (ran.code == Some(0)).then_some(ran.json)
    }

    /// Asks for something until that is accepted; refusals are told by whoever gave them.
    fn begin(&mut self, site: usize, args: &[String]) -> String {
        let (began, id) = (Instant::now(), uuid::Uuid::new_v4().to_string());
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.extend(["--request-id", &id]);
        loop {
            let ran = self.estate.sites[site].appliance.ask(&args);
            if let (Some(0), Some(id)) = (ran.code, ran.json["id"].as_str()) {
                return id.to_owned();
            }
            assert!(began.elapsed() < PATIENCE, "it cannot be begun: {ran:?}");
            self.pass();
        }
    }

    /// Answers whatever is asked at a site.
    fn answer(&mut self, site: usize) {
        let tasks = self.said(site, &["task", "list", "--domain", "d", "--running"]);
        for task in tasks.iter().filter_map(|tasks| tasks["tasks"].as_array()).flatten() {
            let Some(choices) = task["question"]["choices"].as_array() else { continue };
            assert!(self.answers < ANSWERS, "asked again and again: {task:#}");
            self.answers += 1;
            let choice = ["retry", "wait"].into_iter().find(|choice| choices.iter().any(|c| c == choice));
            println!("{}: {} -> {choice:?}", self.estate.sites[site].name, task["question"]["text"]);
            let choice = choice.unwrap_or_else(|| panic!("no way to go on: {task:#}"));
            self.said(
                site,
                &["task", "answer", task["id"].as_str().unwrap(), &task["question"]["number"].to_string(), choice],
            );
        }
    }

    /// Waits until a task is over, or `enough`; its state.
    fn over(&mut self, site: usize, id: &str, enough: impl Fn(&Value) -> bool) -> String {
        let began = Instant::now();
        loop {
            let shown = self.said(site, &["task", "show", id]);
            if let Some(shown) = &shown {
                let state = shown["state"].as_str().unwrap_or_default();
                let ended = ["TASK_STATE_DONE", "TASK_STATE_FAILED", "TASK_STATE_CANCELLED"].contains(&state);
                if ended || enough(shown) {
                    println!("{}: {state} {}", self.estate.sites[site].name, shown["outcome"]);
                    return state.to_owned();
                }
            }
            assert!(began.elapsed() < 2 * PATIENCE, "a task does not end: {shown:#?}");
            self.answer(FIRST);
            self.answer(SECOND);
            self.pass();
        }
    }

    /// Completes at `taker`; whether the domain is its.
    fn complete(&mut self, taker: usize, how: How) -> bool {
        let mut args: Vec<String> = ["failover", "complete", "d", "--yes", "d"].map(str::to_owned).into();
        if let How::Planned { resume_remote: true } = how {
            args.extend(self.estate.remote(taker));
        }
        if how != How::Forced {
            args.push("--planned".to_owned());
            let id = self.begin(taker, &args);
            let asks = |step: &Value| step["name"] == "await-release" && step["state"] == "running";
            let asks = |task: &Value| task["steps"].as_array().is_some_and(|steps| steps.iter().any(asks));
            let ended = self.over(taker, &id, |task| how == How::Changed && asks(task));
            if how != How::Changed {
                return ended == "TASK_STATE_DONE";
            }
            // Lost while it hands over.
            self.lose(1 - taker);
            // Too late where it was released before; then it goes on by itself.
            self.said(taker, &["failover", "cancel", "d"]);
            if self.over(taker, &id, |_| false) == "TASK_STATE_DONE" {
                return true;
            }
            args.retain(|arg| arg != "--planned");
        }
        self.estate.vms[0].may_lose(true);
        let id = self.begin(taker, &args);
        self.over(taker, &id, |_| false) == "TASK_STATE_DONE"
    }

    /// The owner is gone, and stays so.
    fn lose(&mut self, site: usize) {
        match self.random.bool() {
            true => self.estate.sites[site].crash(),
            false => self.estate.link(site, false),
        }
    }

    /// Something is begun at a site while the weather is bad, and comes to its end.
    fn in_bad_weather(&mut self, site: usize, args: &[String]) {
        for _ in 0..MOST_BEGINNINGS {
            self.weather = Weather::drawn(self.random, WITHIN / 2);
            let id = self.begin(site, args);
            let ended = self.over(site, &id, |_| false);
            self.well_again();
            if ended == "TASK_STATE_DONE" {
                return;
            }
            // Its owner had just come back, so that no point covered its VM: that is told before anything is done.
            let shown = self.estate.sites[site].ask(&["task", "show", &id]);
            let too_early = shown["error"].to_string().contains("wait for a point that covers a VM");
            assert!(too_early && ended == "TASK_STATE_FAILED", "{args:?}: {shown:#}");
        }
        panic!("{args:?}: never at a time when a point covers its VM");
    }

    fn well_again(&mut self) {
        self.weather.clear(self.estate);
        for site in [FIRST, SECOND] {
            self.estate.link(site, true);
            self.estate.delay(site, Duration::ZERO);
            if self.estate.sites[site].appliance.ask(&["site", "show"]).code != Some(0) {
                self.estate.sites[site].restart();
            }
        }
    }

    /// Everything is well again: waits until the domain runs at `owner`, nothing is under way, and the other's disks follow,
    /// which begins in bad weather. Where they do not yet, the domain may go there at once, by consent and as needed. Who owns
    /// it then.
    fn converge(mut self, owner: usize, goes_at_once: bool) -> usize {
        let other = 1 - owner;
        self.well_again();
        self.estate.runs(owner);
        let began = Instant::now();
        loop {
            self.answer(FIRST);
            self.answer(SECOND);
            let shown = self.estate.sites[other].ask(&["domain", "show", "d"]);
            let idle = |site: usize| self.estate.sites[site].ask(&["domain", "show", "d"])["task_id"] == "";
            let known = [FOLLOWS, FENCED, "DOMAIN_MODE_IMPORTED"].iter().any(|mode| shown["mode"] == *mode);
            if known && idle(FIRST) && idle(SECOND) {
                if shown["mode"] != FOLLOWS {
                    if shown["mode"] == FENCED {
                        assert!(!shown["diverged"].is_null(), "{shown:#}");
                        if self.estate.sites[other].power() == "running" {
                            self.estate.diverge(other);
                        }
                    }
                    self.estate.sites[other].switch("web", "off");
                    let command = if other == FIRST { "failback" } else { "failover" };
                    let in_place = ["--in-place", "--accept-divergence"];
                    if goes_at_once {
                        println!("site {other}: as needed");
                        let more = [&in_place[..], &["--planned"]].concat();
                        self.in_bad_weather(other, &self.estate.plan(other, &[command, "start"], &more));
                        return self.converge(other, false);
                    }
                    self.in_bad_weather(other, &self.estate.plan(other, &[command, "continuous"], &in_place));
                }
                break;
            }
            assert!(began.elapsed() < PATIENCE, "it does not come to rest: {shown:#}");
            self.pass();
        }
        self.estate.follows(other);
        assert!(self.estate.point(owner), "it is well again");
        self.estate.write_on(20);
        owner
    }
}

#[test]
fn whatever_happens_meanwhile_nothing_is_lost_and_everything_comes_to_rest() {
    let test = "whatever_happens_meanwhile_nothing_is_lost_and_everything_comes_to_rest";
    let Some(mut estate) = Estate::with_domain(test) else { return };
    let mut random = generator(test);
    estate.follow(SECOND, false);
    estate.follows(SECOND);
    let mut owner = FIRST;
    for round in 0..number("FRESHET_ROUNDS", 3) {
        // The few rounds of every run have one of each kind.
        let how = match (round, random.u8(..5)) {
            (0, _) | (3.., 0 | 1) => How::Planned { resume_remote: random.bool() },
            (1, _) | (3.., 2) => How::Forced,
            _ => How::Changed,
        };
        println!("round {round}: site {} by {how:?}", 1 - owner);
        estate.write_on(20);
        assert!(estate.point(owner));
        estate.write_on(20);
        let taker = 1 - owner;
        let weather = match how {
            How::Planned { .. } => Weather::drawn(&mut random, WITHIN),
            // The owner is gone already, and the taker has troubles of its own.
            _ => {
                let (at, down) = (random.u64(..3000), random.u64(100..1500));
                let (at, until) = (Duration::from_millis(at), Duration::from_millis(at + down));
                match random.u8(..3) {
                    0 => Weather::of(Vec::new()),
                    1 => Weather::of(vec![(at, Change::Kill(taker)), (until, Change::Start(taker))]),
                    _ => Weather::of(vec![(at, Change::Cut(taker)), (until, Change::Mend(taker))]),
                }
            }
        };
        let mut it = Round { estate: &mut estate, weather, random: &mut random, answers: 0 };
        if how == How::Forced {
            it.lose(owner);
        }
        if it.complete(taker, how) {
            owner = taker;
        }
        let goes_at_once = it.random.bool() || round == 1;
        owner = it.converge(owner, goes_at_once);
    }
    estate.same_disks(1 - owner);
}
