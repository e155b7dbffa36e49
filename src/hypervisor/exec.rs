//! The driver for any platform: a configured command that is told in JSON what to do, and answers in JSON.
//!
//! ```text
//! command VERB <- {"version":1,"verb":"start","domain":"shop","vm":"web"}      -> {} or nothing
//! ```
//!
//! | verb | its input has | its output has |
//! |---|---|---|
//! | `inventory` | | `vms`: list of `name`, `state` |
//! | `networks` | | `networks`: list of names, or null |
//! | `define` | `vm`, `spec` | |
//! | `undefine`, `start`, `power-off` | `vm` | |
//! | `shutdown` | `vm`, `limit_seconds` | `off`: whether it is; it may return at once with false |
//! | `state` | `vm` | `state`: `absent`, `off`, `running` |
//! | `off-evidence` | `vm` | `off`, `because` |
//! | `freeze` | `vm`, `limit_seconds` | `frozen`: whether the guest's file systems are |
//! | `thaw` | `vm`, `limit_seconds` | |
//! | `agent` | `vm`, `addresses`: whether they are wanted, `limit_seconds` | `answers`: whether the guest's agent does; `addresses`: list of those of its cards, without prefix length |
//!
//! Exit codes are those of `freshet` itself: 0 done, 2 invalid, 4 refused, 7 unreachable, 8 denied, 9 not found, 10 full; 69
//! says that the verb is not supported (only `networks`, `off-evidence`, `freeze`, `thaw` and `agent` can be missing); everything else is a failure,
//! told with the end of the error output. Values of the configured environment are taken for secrets: they are told to
//! the command alone, and blotted out of what it says before that is logged or shown.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::subprocess::{CommandEnd, RunCommand, find_program};
use super::{Hypervisor, MAX_ADDRESSES, OffEvidence, PowerState, VmEntry, VmSpec};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::ids::Name;

/// Version of what is said.
pub const EXEC_VERSION: u32 = 1;
/// Most bytes of an answer.
pub const MAX_ANSWER: usize = 16 << 20;
/// Most bytes of error output that are shown.
const MAX_ERRORS: usize = 4096;
/// Exit code of a verb that a command does not know.
const NOT_SUPPORTED: i32 = 69;
/// Shortest secret that is blotted out: shorter ones would blot out half of every message.
const LEAST_SECRET: usize = 4;

/// Which command, and how long it may take.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecSettings {
    /// Program and arguments; the verb is added as the last one.
    pub command: Vec<String>,
    /// Its variables, taken for secrets.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Seconds after which a call is ended; 1 to 3,600.
    #[serde(default = "one_minute")]
    pub limit_seconds: u64,
    /// Milliseconds between two looks whether a guest is off; 10 to 60,000.
    #[serde(default = "one_second")]
    pub poll_millis: u64,
}

fn one_minute() -> u64 {
    60
}

fn one_second() -> u64 {
    1000
}

impl fmt::Debug for ExecSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecSettings")
            .field("command", &self.command)
            .field("environment", &self.environment.keys().collect::<Vec<_>>())
            .field("limit_seconds", &self.limit_seconds)
            .field("poll_millis", &self.poll_millis)
            .finish()
    }
}

/// A hypervisor behind a command.
#[derive(Debug)]
pub struct ExecDriver {
    settings: ExecSettings,
}

/// How a verb was answered.
enum Answer {
    Said(Value),
    NotSupported,
}

impl ExecDriver {
    /// A driver with these settings. Nothing is run yet.
    ///
    /// # Errors
    /// `Invalid` where a setting is out of its bounds.
    pub fn new(settings: ExecSettings) -> Result<ExecDriver> {
        let bad = |why: String| Err(Error::new(ErrorKind::Invalid, format!("hypervisor exec: {why}")));
        if settings.command.first().is_none_or(String::is_empty) || settings.command.iter().any(|a| a.contains('\0')) {
            return bad("command must name a program".into());
        }
        if !(1..=3600).contains(&settings.limit_seconds) {
            return bad(format!("limit_seconds is {}, must be 1 to 3600", settings.limit_seconds));
        }
        if !(10..=60_000).contains(&settings.poll_millis) {
            return bad(format!("poll_millis is {}, must be 10 to 60000", settings.poll_millis));
        }
        if let Some((name, _)) =
            settings.environment.iter().find(|(n, v)| n.is_empty() || n.contains(['=', '\0']) || v.contains('\0'))
        {
            return bad(format!("environment variable {name:?} cannot be set"));
        }
        Ok(ExecDriver { settings })
    }

    async fn ask(&self, verb: &str, input: Value, more_time: Duration) -> Result<Answer> {
        let what = || format!("hypervisor command {} {verb}", self.settings.command[0]);
        let mut command = self.settings.command.clone();
        command.push(verb.to_owned());
        let limit = Duration::from_secs(self.settings.limit_seconds) + more_time;
        let run = RunCommand {
            command,
            environment: self.settings.environment.clone(),
            input: serde_json::to_vec(&input)
                .map_err(|e| Error::with_source(ErrorKind::Internal, "what to tell a command", e))?,
            limit,
            max_output: MAX_ANSWER,
            max_errors: MAX_ERRORS,
        };
        let end = run.run().await.map_err(|e| e.while_doing(what()))?;
        tracing::debug!(verb, code = ?end.code, timed_out = end.timed_out, "{}", what());
        match end.code {
            Some(0) => self.understand(&end).map(Answer::Said).map_err(|e| e.while_doing(what())),
            Some(NOT_SUPPORTED) => Ok(Answer::NotSupported),
            _ => Err(self.failed(&end, limit).while_doing(what())),
        }
    }

    fn understand(&self, end: &CommandEnd) -> Result<Value> {
        let bad = |why: &str| Error::new(ErrorKind::Damaged, format!("its answer {why}"));
        if end.output_cut {
            return Err(bad(&format!("is longer than {MAX_ANSWER} bytes")));
        }
        if end.output.iter().all(u8::is_ascii_whitespace) {
            return Ok(json!({}));
        }
        let value: Value = serde_json::from_slice(&end.output)
            .map_err(|e| bad(&format!("is no JSON at line {}, column {}", e.line(), e.column())))?;
        match value.is_object() {
            true => Ok(value),
            false => Err(bad("is no JSON object")),
        }
    }

    fn failed(&self, end: &CommandEnd, limit: Duration) -> Error {
        let said = self.without_secrets(&String::from_utf8_lossy(&end.errors));
        let said = said.trim();
        let said = if said.is_empty() { "it says nothing" } else { said };
        let (kind, how) = match (end.timed_out, end.code) {
            (true, _) => (ErrorKind::Unreachable, format!("did not end within {} s", limit.as_secs())),
            (false, None) => (ErrorKind::Io, "was killed".to_owned()),
            (false, Some(code)) => (kind_of(code), format!("ended with exit code {code}")),
        };
        Error::new(kind, format!("{how}: {said}"))
    }

    fn without_secrets(&self, text: &str) -> String {
        let secrets = self.settings.environment.values().filter(|v| v.len() >= LEAST_SECRET);
        secrets.fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
    }

    async fn about(&self, verb: &str, vm: &Name) -> Result<Answer> {
        self.ask(verb, json!({"version": EXEC_VERSION, "verb": verb, "vm": vm}), Duration::ZERO).await
    }

    /// The part `field` of the answer to `verb`.
    fn part<T: DeserializeOwned>(&self, verb: &str, answer: Answer, field: &str) -> Result<T> {
        let command = &self.settings.command[0];
        let Answer::Said(mut value) = answer else { return Err(self.must_support(verb)) };
        serde_json::from_value(value[field].take()).map_err(|_| {
            let why = format!("hypervisor command {command} {verb}: its answer has no {field} that can be understood");
            Error::new(ErrorKind::Damaged, why)
        })
    }

    fn must_support(&self, verb: &str) -> Error {
        let command = &self.settings.command[0];
        Error::new(ErrorKind::Unsupported, format!("hypervisor command {command} does not support {verb}"))
    }

    fn done(&self, verb: &str, answer: Answer) -> Result<()> {
        match answer {
            Answer::Said(_) => Ok(()),
            Answer::NotSupported => Err(self.must_support(verb)),
        }
    }

    /// Looks until the guest is off or `limit` is over. Whether it is.
    async fn wait_until_off(&self, vm: &Name, limit: Duration) -> Result<bool> {
        let poll = Duration::from_millis(self.settings.poll_millis);
        let looks = limit.as_millis() / poll.as_millis().max(1);
        for _ in 0..=looks {
            if self.state(vm).await? != PowerState::Running {
                return Ok(true);
            }
            tokio::time::sleep(poll.min(limit)).await;
        }
        Ok(self.state(vm).await? != PowerState::Running)
    }
}

fn kind_of(code: i32) -> ErrorKind {
    use ErrorKind::{Denied, Full, Invalid, NotFound, Refused, Unreachable};
    let known = [Invalid, Refused, Unreachable, Denied, NotFound, Full];
    known.into_iter().find(|k| i32::from(k.exit_code()) == code).unwrap_or(ErrorKind::Io)
}

#[async_trait]
impl Hypervisor for ExecDriver {
    fn describe(&self) -> String {
        format!("the hypervisor behind {}", self.settings.command[0])
    }

    async fn ready(&self) -> Result<()> {
        let advice = "the hypervisor's command cannot be run: set hypervisor.command in the settings";
        find_program(Path::new(&self.settings.command[0])).while_doing(|| advice)
    }

    async fn inventory(&self) -> Result<Vec<VmEntry>> {
        let verb = "inventory";
        let answer = self.ask(verb, json!({"version": EXEC_VERSION, "verb": verb}), Duration::ZERO).await?;
        self.part(verb, answer, "vms")
    }

    async fn networks(&self) -> Result<Option<Vec<String>>> {
        let verb = "networks";
        match self.ask(verb, json!({"version": EXEC_VERSION, "verb": verb}), Duration::ZERO).await? {
            Answer::NotSupported => Ok(None),
            said => self.part(verb, said, "networks"),
        }
    }

    /// Its commands get all of it.
    fn unheeded(&self, _placement: &BTreeMap<String, String>, _policies: &[&str]) -> Vec<String> {
        Vec::new()
    }

    fn addressing(&self) -> std::result::Result<&'static str, String> {
        Ok("they are told to the hypervisor's command, and what it does with them is its matter")
    }

    async fn define(&self, spec: &VmSpec) -> Result<Vec<String>> {
        let verb = "define";
        let input = json!({"version": EXEC_VERSION, "verb": verb, "vm": spec.name, "spec": spec});
        let answer = self.ask(verb, input, Duration::ZERO).await?;
        self.done(verb, answer).map(|()| Vec::new())
    }

    async fn undefine(&self, vm: &Name) -> Result<()> {
        match self.about("undefine", vm).await {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            answer => self.done("undefine", answer?),
        }
    }

    async fn start(&self, vm: &Name) -> Result<()> {
        let answer = self.about("start", vm).await?;
        self.done("start", answer)
    }

    async fn shutdown(&self, vm: &Name, limit: Duration) -> Result<bool> {
        let verb = "shutdown";
        let input = json!({"version": EXEC_VERSION, "verb": verb, "vm": vm, "limit_seconds": limit.as_secs()});
        let answer = self.ask(verb, input, limit).await?;
        let said: Option<bool> = self.part(verb, answer, "off")?;
        match said {
            Some(true) => Ok(true),
            // It only passed the wish on: the guest takes its time.
            Some(false) | None => self.wait_until_off(vm, limit).await,
        }
    }

    async fn power_off(&self, vm: &Name) -> Result<()> {
        let answer = self.about("power-off", vm).await?;
        self.done("power-off", answer)
    }

    async fn state(&self, vm: &Name) -> Result<PowerState> {
        match self.about("state", vm).await {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(PowerState::Absent),
            answer => self.part("state", answer?, "state"),
        }
    }

    async fn freeze(&self, vm: &Name, limit: Duration) -> Result<bool> {
        let verb = "freeze";
        let input = json!({"version": EXEC_VERSION, "verb": verb, "vm": vm, "limit_seconds": limit.as_secs()});
        match self.ask(verb, input, Duration::ZERO).await? {
            Answer::NotSupported => Ok(false),
            said => self.part(verb, said, "frozen"),
        }
    }

    async fn thaw(&self, vm: &Name, limit: Duration) -> Result<()> {
        let verb = "thaw";
        let input = json!({"version": EXEC_VERSION, "verb": verb, "vm": vm, "limit_seconds": limit.as_secs()});
        self.ask(verb, input, Duration::ZERO).await.map(drop)
    }

    async fn agent(&self, vm: &Name, addresses: bool, limit: Duration) -> Result<Option<Vec<IpAddr>>> {
        #[derive(Deserialize)]
        struct Said {
            answers: bool,
            #[serde(default)]
            addresses: Vec<IpAddr>,
        }
        let verb = "agent";
        let input = json!({
            "version": EXEC_VERSION, "verb": verb, "vm": vm, "addresses": addresses, "limit_seconds": limit.as_secs(),
        });
        let Answer::Said(value) = self.ask(verb, input, limit).await? else { return Err(self.must_support(verb)) };
        let said: Said = serde_json::from_value(value).map_err(|_| {
            let command = &self.settings.command[0];
            let why = "its answer needs answers, true or false, and addresses such as \"10.0.0.5\"";
            Error::new(ErrorKind::Damaged, format!("hypervisor command {command} {verb}: {why}"))
        })?;
        Ok(said.answers.then(|| said.addresses.into_iter().take(MAX_ADDRESSES).collect()))
    }

    async fn off_evidence(&self, vm: &Name) -> Result<OffEvidence> {
        let verb = "off-evidence";
        match self.about(verb, vm).await? {
            Answer::Said(value) => serde_json::from_value(value).map_err(|_| {
                let why =
                    format!("hypervisor command {} {verb}: its answer needs off and because", self.settings.command[0]);
                Error::new(ErrorKind::Damaged, why)
            }),
            Answer::NotSupported => {
                let state = self.state(vm).await?;
                let off = state != PowerState::Running;
                let because = format!("its state is {state:?}, which is all that the command can tell").to_lowercase();
                Ok(OffEvidence { off, because })
            }
        }
    }
}
