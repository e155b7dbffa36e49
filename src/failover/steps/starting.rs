//! What a runbook asks for around the start of VMs: delays, scripts, signs of life, and an operator's word.
//!
//! A script is run at least once: where the process is killed between its end and the entry that says so, it is run
//! again. It is told the attempt, and what it works on, in its environment.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::{Context, Ran};
use crate::error::{Error, ErrorKind, Result};
use crate::failover::policy;
use crate::failover::runbook::{OnFailure, Probe, Script, WaitFor};
use crate::failover::task::{Choice, Question};
use crate::failover::world::{ScriptEnd, ScriptRun};
use crate::ids::Name;

/// Longest run of one probe of a wait.
const PROBE_LIMIT: Duration = Duration::from_secs(30);
/// Looks at which a guest is in trouble, one after the other, after which it is waited for no more.
const TROUBLED: u32 = 3;
/// Most lines of a script's output that go into the step's log, the last ones.
const OUTPUT_LINES: usize = 40;

/// What one look shows.
enum Sign {
    There,
    /// It is missing; of what, in words.
    Missing(String),
}

impl Context {
    pub(super) async fn delay(&mut self, seconds: u64) -> Result<Ran> {
        // Counted from when the step was begun first, so that a restart does not begin anew; a clock that was set meanwhile
        // makes it no longer than it is.
        let began = self.record().started.unwrap_or_else(|| self.clock.now());
        let passed = self.clock.now().millis_since(began) / 1000;
        let end = self.deadline(seconds.saturating_sub(passed));
        while !self.is_over(end) {
            self.wait(Duration::from_millis(end.millis_since(self.clock.steady()))).await?;
        }
        Ran::nothing()
    }

    pub(super) async fn run_script(&mut self, script: &Script, vm: Option<&Name>) -> Result<Ran> {
        let run = ScriptRun {
            command: script.command.clone(),
            environment: self.environment(&script.environment, vm),
            limit: Duration::from_secs(script.limit_seconds),
        };
        let program = script.command.first().map_or("", String::as_str);
        let end = match self.world.run_script(&run).await {
            // That it cannot be begun is a failure of the script as any other.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied) => {
                return self.failed(script.after_failure(), format!("script {program} cannot be run: {e}"));
            }
            end => end?,
        };
        self.tell(&end);
        if end.is_success() {
            return Ran::nothing();
        }
        let how = match (end.timed_out, end.code) {
            (true, _) => format!("was killed after {} s", script.limit_seconds),
            (false, Some(code)) => format!("ended with exit code {code}"),
            (false, None) => "was killed".to_owned(),
        };
        self.failed(script.after_failure(), format!("script {program} {how}"))
    }

    pub(super) async fn wait_for(&mut self, wait: &WaitFor, vm: &Name) -> Result<Ran> {
        let deadline = self.deadline(wait.limit_seconds);
        let mut troubled = 0;
        loop {
            let missing = match self.look_for(wait, vm).await? {
                Sign::There => return Ran::nothing(),
                Sign::Missing(what) => what,
            };
            let trouble = self.world.hypervisor().trouble(vm).await.ok().flatten();
            troubled = if trouble.is_some() { troubled + 1 } else { 0 };
            if let Some(why) = trouble.as_ref().filter(|_| troubled >= TROUBLED) {
                // It will not come, and others wait behind it.
                return self.failed(wait.after_timeout(), format!("VM {vm}: no sign of life from {missing}; {why}"));
            }
            if self.is_over(deadline) {
                let trouble = trouble.map(|why| format!("; {why}")).unwrap_or_default();
                let why = format!("VM {vm}: no sign of life from {missing} within {} s{trouble}", wait.limit_seconds);
                return self.failed(wait.after_timeout(), why);
            }
            self.wait(self.poll).await?;
        }
    }

    /// One look for what is waited for.
    async fn look_for(&self, wait: &WaitFor, vm: &Name) -> Result<Sign> {
        let limit = PROBE_LIMIT.min(Duration::from_secs(wait.limit_seconds));
        let (there, what) = match &wait.probe {
            Probe::TcpPort { host, port } => (self.world.port_is_open(host, *port).await, format!("{host}:{port}")),
            Probe::Script { command } => {
                let environment = self.environment(&BTreeMap::new(), Some(vm));
                let end = self.world.run_script(&ScriptRun { command: command.clone(), environment, limit }).await?;
                (end.is_success(), command.first().cloned().unwrap_or_default())
            }
            Probe::GuestAgent { address } => return self.look_for_agent(address, vm, limit).await,
        };
        Ok(if there { Sign::There } else { Sign::Missing(what) })
    }

    async fn look_for_agent(&self, address: &str, vm: &Name, limit: Duration) -> Result<Sign> {
        /// Addresses that are told where the one that is waited for is not among them.
        const SOME: usize = 8;
        let wanted: Option<IpAddr> = (!address.is_empty()).then(|| address.parse()).transpose().map_err(|_| {
            Error::new(ErrorKind::Invalid, format!("VM {vm}: its agent is to tell {address:?}, which is no address"))
        })?;
        let missing = |what: String| Ok(Sign::Missing(format!("its guest agent{what}")));
        match (self.world.hypervisor().agent(vm, wanted.is_some(), limit).await, wanted) {
            (Ok(Some(_)), None) => Ok(Sign::There),
            (Ok(Some(told)), Some(wanted)) if told.contains(&wanted) => Ok(Sign::There),
            (Ok(Some(told)), Some(wanted)) => {
                let some: Vec<String> = told.iter().take(SOME).map(ToString::to_string).collect();
                missing(format!(", which answers, with address {wanted} (it tells {})", some.join(", ")))
            }
            (Ok(None), _) => missing(String::new()),
            (Err(e), _) if e.kind() == ErrorKind::Unsupported => Err(e),
            // A guest that is just starting says all sorts of things.
            (Err(e), _) => missing(format!(" ({e})")),
        }
    }

    pub(super) fn confirm(&mut self, text: String) -> Result<Ran> {
        if self.answer() == Some(Choice::Confirm) {
            return Ran::nothing();
        }
        let choices = vec![Choice::Confirm, Choice::GiveUp];
        let text = format!("{text} (confirm goes on; give-up ends the task, and what was done stays as it is)");
        Ok(Ran::Ask(Question { text, choices, vms: Vec::new() }))
    }

    /// What did not go well is noted where the runbook says to go on; else it is an error, and what follows is decided by
    /// what the runbook says of it.
    fn failed(&mut self, (then, retries): (OnFailure, u32), why: String) -> Result<Ran> {
        let attempt = self.record().attempts;
        let why = match then {
            OnFailure::Continue => {
                self.note(why);
                return Ran::nothing();
            }
            OnFailure::Ask => why,
            OnFailure::Retry => format!("{why} (try {attempt}, retries = {retries})"),
            OnFailure::Stop => format!("{why}, and the runbook says to stop there"),
        };
        Err(Error::new(policy::NOT_DONE, why))
    }

    fn tell(&mut self, end: &ScriptEnd) {
        let lines: Vec<&str> = end.output.lines().collect();
        let left_out = lines.len().saturating_sub(OUTPUT_LINES);
        if left_out > 0 {
            self.note(format!("({left_out} lines of output before these)"));
        }
        for line in &lines[left_out..] {
            self.note(*line);
        }
    }

    fn environment(&self, own: &BTreeMap<String, String>, vm: Option<&Name>) -> BTreeMap<String, String> {
        let task = &self.task;
        let mut all = own.clone();
        let mut set = |name: &str, value: String| {
            all.insert(format!("FRESHET_{name}"), value);
        };
        set("TASK", task.id.to_string());
        set("KIND", task.kind.word().to_owned());
        set("DOMAIN", task.domain.to_string());
        set("SITE", self.world.site().to_string());
        set("STEP", self.index.to_string());
        set("ATTEMPT", self.record().attempts.to_string());
        set("VM", vm.map_or_else(String::new, Name::to_string));
        if let Some((generation, base)) = task.learned.claimed {
            set("GENERATION", generation.get().to_string());
            set("POINT", base.segment.get().to_string());
        }
        all
    }
}
