//! One fault, when it strikes, and whom. A rule is plain data; what has been counted so far lives with the faults.

use super::counters::Verb;
use std::str::FromStr;
use std::time::Duration;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The request waits this long before anything happens.
    Latency(Duration),
    /// Bodies, both ways, of all requests that match together take at least one second per so many bytes.
    Bandwidth(u64),
    /// 503 `ServiceUnavailable`; nothing was done.
    Unavailable,
    /// 503 `SlowDown`; nothing was done.
    SlowDown,
    /// 500 `InternalError`; nothing was done.
    InternalError,
    /// 403 `AccessDenied`; nothing was done.
    Deny,
    /// The response's headers announce its whole body; half of it comes, then the connection is closed.
    Truncate,
    /// One bit of the byte in the middle of the body is wrong.
    Flip,
    /// The connection is reset before anything was done.
    Reset,
    /// The request is carried out; instead of the response comes a reset.
    LostResponse,
}

/// Which of the matching requests a rule strikes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// All.
    Always,
    /// The n-th, the 2n-th and so on.
    Every(u64),
    /// One of each `cycle`, the `at`-th of it: for several faults in turn.
    Phase {
        /// Requests in a cycle.
        cycle: u64,
        /// Which of them, from 0.
        at: u64,
    },
    /// The first n.
    First(u64),
    /// Each with this probability, from 0 to 1, by a generator of this seed.
    Chance(f64, u64),
}

/// A fault with its condition and its filter.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub(super) fault: Fault,
    pub(super) when: When,
    pub(super) verbs: Vec<Verb>,
    pub(super) key: Option<String>,
}

impl Fault {
    /// The name under which it is counted, and its word in a rule's text.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Latency(_) => "latency",
            Fault::Bandwidth(_) => "bandwidth",
            Fault::Unavailable => "unavailable",
            Fault::SlowDown => "slowdown",
            Fault::InternalError => "internal-error",
            Fault::Deny => "deny",
            Fault::Truncate => "truncate",
            Fault::Flip => "flip",
            Fault::Reset => "reset",
            Fault::LostResponse => "lost-response",
        }
    }
}

impl Rule {
    /// Strikes every request.
    pub fn new(fault: Fault) -> Rule {
        Rule { fault, when: When::Always, verbs: Vec::new(), key: None }
    }

    /// Strikes only some of those that match.
    pub fn when(mut self, when: When) -> Rule {
        self.when = when;
        self
    }

    /// Matches requests of this verb; called again, of that one too.
    pub fn verb(mut self, verb: Verb) -> Rule {
        self.verbs.push(verb);
        self
    }

    /// Matches requests whose decoded path and query contain this text.
    pub fn key(mut self, part: &str) -> Rule {
        self.key = Some(part.to_owned());
        self
    }

    pub(super) fn matches(&self, verb: Verb, target: &str) -> bool {
        let verb_matches = self.verbs.is_empty() || self.verbs.contains(&verb);
        verb_matches && self.key.as_deref().is_none_or(|part| target.contains(part))
    }
}

/// `FAULT[=VALUE][,every=N|,first=N|,chance=P[,seed=S]][,verb=GET]...[,key=TEXT]`: latency in milliseconds,
/// bandwidth in bytes per second. For the command line of the example.
impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Rule, String> {
        let mut parts = text.split(',');
        let mut rule = Rule::new(parse_fault(parts.next().unwrap_or_default())?);
        let mut seed = 1;
        for part in parts {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("{part:?} has no value"))?;
            match name {
                "every" => rule.when = When::Every(positive(part, value)?),
                "first" => rule.when = When::First(positive(part, value)?),
                "chance" => rule.when = When::Chance(value.parse().map_err(|_| bad(part))?, 0),
                "seed" => seed = value.parse().map_err(|_| bad(part))?,
                "verb" => rule.verbs.push(parse_verb(value)?),
                "key" => rule.key = Some(value.to_owned()),
                _ => return Err(format!("{part:?}: known are every, first, chance, seed, verb and key")),
            }
        }
        if let When::Chance(_, chosen) = &mut rule.when {
            *chosen = seed;
        }
        Ok(rule)
    }
}

fn parse_fault(text: &str) -> Result<Fault, String> {
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    let value = value.map(|value| positive(text, value)).transpose()?;
    let fault = match (name, value) {
        ("latency", Some(milliseconds)) => Fault::Latency(Duration::from_millis(milliseconds)),
        ("bandwidth", Some(rate)) => Fault::Bandwidth(rate),
        ("unavailable", None) => Fault::Unavailable,
        ("slowdown", None) => Fault::SlowDown,
        ("internal-error", None) => Fault::InternalError,
        ("deny", None) => Fault::Deny,
        ("truncate", None) => Fault::Truncate,
        ("flip", None) => Fault::Flip,
        ("reset", None) => Fault::Reset,
        ("lost-response", None) => Fault::LostResponse,
        _ => return Err(format!("{text:?} is no fault; only latency and bandwidth take a value, and need it")),
    };
    Ok(fault)
}

fn parse_verb(word: &str) -> Result<Verb, String> {
    let all = [Verb::Get, Verb::Head, Verb::List, Verb::Put, Verb::Post, Verb::Delete];
    all.into_iter().find(|verb| verb.word() == word).ok_or_else(|| format!("{word:?} is no verb"))
}

fn positive(part: &str, value: &str) -> Result<u64, String> {
    value.parse().ok().filter(|number| *number > 0).ok_or_else(|| bad(part))
}

fn bad(part: &str) -> String {
    format!("{part:?}: not a number that makes sense here")
}
