//! What is wrong with VMs: they panicked, stand still, start anew again and again, or ended as nobody wanted.
//!
//! Guests are asked about one by one and often: one call tells the states of all, and serves all who ask within a second.
//! Owns what the states mean. A panic is seen where the guest has a device that tells it (`<panic>`), and a guest that
//! is started again after it (`on_crash`) is told by its event alone.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use tokio::sync::MutexGuard;

use super::LibvirtDriver;
use crate::error::Result;
use crate::hypervisor::restarts::Restarts;
use crate::ids::Name;

/// How old a look may be.
const FRESH: Duration = Duration::from_secs(1);
/// Numbers of virDomainState.
const PAUSED: u32 = 3;
const SHUT_OFF: u32 = 5;
const CRASHED: u32 = 6;

/// The state of a VM, and the reason for it.
type State = (u32, u32);

/// The last look.
#[derive(Debug, Default)]
pub(super) struct Seen {
    at: Option<Instant>,
    states: BTreeMap<String, State>,
}

/// What `virsh domstats --state` says of each VM, by its name. What is not understood is left out.
fn parse(text: &str) -> BTreeMap<String, State> {
    let mut out = BTreeMap::new();
    let mut current: Option<(&str, Option<u32>)> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("Domain: '").and_then(|rest| rest.strip_suffix('\'')) {
            current = Some((name, None));
        }
        let number = |word: &str| line.strip_prefix(word)?.parse::<u32>().ok();
        match (number("state.state="), number("state.reason="), current) {
            (Some(state), _, Some((name, _))) => current = Some((name, Some(state))),
            (_, Some(reason), Some((name, Some(state)))) => drop(out.insert(name.to_owned(), (state, reason))),
            _ => {}
        }
    }
    out
}

/// What is wrong in such a state, in the words of virDomainPausedReason and virDomainShutoffReason.
fn meaning(state: State) -> Option<&'static str> {
    match state {
        (CRASHED, _) | (PAUSED, 10) => Some("its guest panicked, and stands still"),
        (PAUSED, 5) => Some("an error of a disk halted it: it goes on once its disks are served"),
        (PAUSED, 6) => Some("its watchdog halted it"),
        (SHUT_OFF, 3) => Some("its guest panicked, or its QEMU ended by itself: it is off"),
        (SHUT_OFF, 6) => Some("it did not start"),
        _ => None,
    }
}

impl LibvirtDriver {
    /// The states of all VMs, as of a second ago or less.
    pub(super) async fn look_at_all(&self) -> Result<MutexGuard<'_, Seen>> {
        let mut seen = self.seen.lock().await;
        if seen.at.is_none_or(|at| at.elapsed() > FRESH) {
            let states = parse(&self.virsh.ask(&["domstats", "--state"]).await?);
            *seen = Seen { at: Some(Instant::now()), states };
        }
        Ok(seen)
    }

    async fn state_of(&self, vm: &Name) -> Result<Option<State>> {
        Ok(self.look_at_all().await?.states.get(vm.as_str()).copied())
    }

    pub(super) async fn trouble_of(&self, vm: &Name) -> Result<Option<String>> {
        match self.state_of(vm).await?.and_then(meaning) {
            Some(told) => Ok(Some(told.to_owned())),
            None => Ok(self.restarts().trouble(vm, Instant::now())),
        }
    }

    /// Which guests started anew by themselves, by the events that were heard.
    pub(super) fn restarts(&self) -> std::sync::MutexGuard<'_, Restarts> {
        self.restarts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a guest panicked and still has its process: it hears nothing any more.
    pub(super) async fn has_panicked(&self, vm: &Name) -> Result<bool> {
        Ok(self.state_of(vm).await?.is_some_and(|(state, _)| state == CRASHED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_understood_and_only_what_is_wrong_is_told() {
        let text = "Domain: 'web 'x''\n  state.state=6\n  state.reason=1\n\nDomain: 'db'\n  state.state=1\n  state.reason=1\n\
                    \nDomain: 'odd'\n  state.state=many\n  state.reason=3\n\nDomain: 'off'\n  state.state=5\n  state.reason=3\n";
        let found = parse(text);
        assert_eq!(found, [("db".into(), (1, 1)), ("off".into(), (5, 3)), ("web 'x'".into(), (6, 1))].into());
        let told = |name: &str| meaning(found[name]);
        assert!(told("web 'x'").unwrap().contains("panicked") && told("off").unwrap().contains("is off"));
        assert_eq!(told("db"), None);
        for fine in [(5, 1), (5, 2), (3, 1), (1, 0), (4, 1), (5, 0)] {
            assert_eq!(meaning(fine), None, "{fine:?}: by an operator's hand, or not known");
        }
        assert_eq!(parse("noise"), BTreeMap::new());
    }
}
