//! The owner's side of a planned failover: little left to ship, guests off, everything shipped, released, taken.

use std::time::Duration;

use futures::StreamExt;

use super::{Context, Ran};
use crate::error::{Error, ErrorKind, Result};
use crate::failover::event::Outcome;
use crate::failover::facts::{Doing, Underway};
use crate::failover::request::{HandOver, Request};
use crate::failover::task::{Choice, Question};
use crate::failover::validate::Act;
use crate::hypervisor::PowerState;
use crate::ids::Name;

/// Guests that are shut down side by side.
const SIDE_BY_SIDE: usize = 16;

/// Bytes that may be left to ship when guests are shut down: they stand still for as long as that takes.
pub(in crate::failover) const LITTLE: u64 = 16 << 20;
/// Seconds in which what is left must become less, and in all: guests that write faster than is shipped are not waited for.
const GETS_LESS_WITHIN: u64 = 30;
const SHIPS_AHEAD_WITHIN: u64 = 1800;
/// Longest wait for words that are a help only.
const TOLD_WITHIN: Duration = Duration::from_secs(3);

/// What became of a guest that was to be off.
enum Found {
    Off,
    On(Name, String),
    /// The hypervisor has no such VM, and cannot say anything of it.
    Unknown(Name),
}

impl Context {
    fn hand_over(&self) -> Result<HandOver> {
        match &self.task.request {
            Request::HandOver(hand_over) => Ok(hand_over.clone()),
            _ => Err(Error::new(ErrorKind::Internal, format!("task {} is no hand-over", self.task.id))),
        }
    }

    pub(super) async fn check_settings(&mut self) -> Result<Ran> {
        if let Some(plan) = self.task.learned.plan.clone() {
            self.hold_against_survey(&plan, Act::FollowAfterHandOver).await?;
        }
        // Before a guest is off: what is being synced can take hours, and draining would wait for it.
        let facts = self.facts().await?;
        let behind = facts.vms.iter().filter(|vm| vm.status.is_behind());
        let behind: Vec<String> = behind.map(|vm| format!("{} ({})", vm.name, vm.status)).collect();
        if facts.protecting && !behind.is_empty() {
            let why = format!("the last point of domain {} would not cover {}", facts.domain, behind.join(", "));
            return Err(Error::new(ErrorKind::Unreachable, format!("{why}: guests run on until they are synced")));
        }
        Ran::nothing()
    }

    /// Lets guests run on until little of what they wrote is left to be shipped, or it does not get less. Once one of them is
    /// off, or an operator has decided, nothing is waited for.
    async fn ship_ahead(&mut self) -> Result<()> {
        let is_decided = matches!(self.answer(), Some(Choice::Wait | Choice::PowerOff));
        if is_decided || self.task.learned.vms.is_empty() || !self.all_run().await? {
            return Ok(());
        }
        let (mut least, mut said) = (u64::MAX, false);
        let (mut patience, end) = (self.deadline(GETS_LESS_WITHIN), self.deadline(SHIPS_AHEAD_WITHIN));
        loop {
            let left = self.facts().await?.unshipped;
            if left <= LITTLE {
                return Ok(());
            }
            // Less by a sixteenth, or it would not come to an end.
            if left < least - least / 16 {
                (least, patience) = (left, self.deadline(GETS_LESS_WITHIN));
            }
            if self.is_over(patience) || self.is_over(end) {
                self.note(format!("{left} bytes are left to ship, and do not get less: guests are shut down now"));
                return Ok(());
            }
            if !said {
                said = true;
                self.note(format!("guests run on while {left} bytes that they wrote are shipped"));
                self.progress.stage("shipping ahead");
                self.tell_taker(
                    Doing::ShipAhead,
                    format!("guests run on while {left} bytes that they wrote are shipped"),
                )
                .await;
            }
            self.wait(self.poll).await?;
        }
    }

    /// Whether all guests run that ran when this began.
    async fn all_run(&self) -> Result<bool> {
        let hypervisor = self.world.hypervisor();
        for vm in &self.task.learned.vms {
            if hypervisor.state(vm).await? != PowerState::Running {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Tells who waits for the domain what is done about it, where that does not take long: guests may stand still.
    async fn tell_taker(&self, doing: Doing, what: String) {
        let underway = Underway { doing, what };
        let told = self.world.tell_underway(self.domain(), &underway);
        if tokio::time::timeout(TOLD_WITHIN, told).await.is_err() {
            tracing::warn!("who waits for it is not told: {}", underway.what);
        }
    }

    pub(super) async fn shut_down(&mut self) -> Result<Ran> {
        let limit = Duration::from_secs(self.hand_over()?.shutdown_limit_seconds);
        self.ship_ahead().await?;
        self.progress.stage("shutting guests down");
        self.tell_taker(Doing::ShutDown, format!("guests have {} s to shut down", limit.as_secs())).await;
        let cancel = self.cancel.clone();
        let on = cancel.or_stop(self.shut_down_all(limit)).await?;
        if on.is_empty() {
            return Ran::nothing();
        }
        let names: Vec<&str> = on.iter().map(|(vm, _)| vm.as_str()).collect();
        for (vm, why) in &on {
            self.note(format!("VM {vm}: {why}"));
        }
        let text = format!(
            "guests that did not shut down within {} s: {}. Wait asks them again and waits as long once more; power-off \
             switches them off, as a power failure would; abort starts all guests again and tells the other site",
            limit.as_secs(),
            names.join(", ")
        );
        self.tell_taker(Doing::Ask, text.clone()).await;
        let choices = vec![Choice::Wait, Choice::PowerOff, Choice::Abort];
        Ok(Ran::Ask(Question { text, choices, vms: on.into_iter().map(|(vm, _)| vm).collect() }))
    }

    /// Shuts all guests of the domain down. Those that are not off for certain, with the reason.
    async fn shut_down_all(&mut self, limit: Duration) -> Result<Vec<(Name, String)>> {
        let hypervisor = &self.world.hypervisor();
        let named: &[Name] = match &self.record().answer {
            Some((Choice::PowerOff, vms)) => vms,
            _ => &[],
        };
        let guests = self.world.guests(self.domain()).await?;
        let each = guests.into_iter().map(|guest| async move {
            let vm = guest.name;
            if hypervisor.state(&vm).await? == PowerState::Running {
                match named.contains(&vm) {
                    true => hypervisor.power_off(&vm).await?,
                    false => hypervisor.shutdown(&vm, limit).await.map(drop)?,
                }
            }
            if hypervisor.state(&vm).await? == PowerState::Absent {
                return Ok(Found::Unknown(vm));
            }
            let evidence = hypervisor.off_evidence(&vm).await?;
            Ok(if evidence.off { Found::Off } else { Found::On(vm, evidence.because) })
        });
        let ends: Vec<Result<Found>> = futures::stream::iter(each).buffered(SIDE_BY_SIDE).collect().await;
        let mut on = Vec::new();
        for end in ends {
            match end? {
                Found::Off => {}
                Found::On(vm, because) => on.push((vm, because)),
                Found::Unknown(vm) => {
                    self.note(format!(
                        "VM {vm}: the hypervisor does not know it; its disks are closed, whoever uses them"
                    ));
                }
            }
        }
        Ok(on)
    }

    pub(super) async fn drain(&mut self) -> Result<Ran> {
        let words = self.tell_taker(Doing::Ship, "guests are off, and what they wrote last is shipped".to_owned());
        let ((), drained) = tokio::join!(words, self.world.drain(self.domain(), self.progress.clone()));
        let at = drained?;
        self.note(format!("the final point is {}", at.segment.get()));
        Ok(Ran::Done(Outcome::Drained { at }))
    }

    pub(super) async fn release(&mut self) -> Result<Ran> {
        let Some(at) = self.task.learned.drained else {
            return Err(Error::new(ErrorKind::Internal, "a domain cannot be released before it is drained"));
        };
        let facts = self.facts().await?;
        if facts.owner.site != facts.site {
            self.note(format!("site {} took domain {} before it was released", facts.owner.site, facts.domain));
        } else if facts.owner.released.is_none() {
            self.world.release(self.domain(), at).await?;
        }
        Ran::nothing()
    }

    pub(super) async fn await_taker(&mut self) -> Result<Ran> {
        let hand_over = self.hand_over()?;
        let deadline = self.deadline(hand_over.taken_limit_seconds);
        loop {
            let facts = self.facts().await?;
            let owner = &facts.owner;
            if owner.site != facts.site {
                let (by, generation) = (owner.site.clone(), owner.generation);
                self.note(format!("site {by} has domain {} as generation {}", facts.domain, generation.get()));
                return Ok(Ran::Done(Outcome::Taken { by, generation }));
            }
            let refused = |why: String| Err(Error::new(ErrorKind::Refused, why));
            if owner.released.is_none() {
                return refused(format!("the release of domain {} was withdrawn at this site", facts.domain));
            }
            if facts.request.as_ref().is_some_and(|r| r.site == hand_over.to && r.withdrawn) {
                return refused(format!("site {} does not want domain {} any more", hand_over.to, facts.domain));
            }
            if self.is_over(deadline) {
                let text = format!(
                    "site {} has not taken domain {}, which nobody runs now. Wait waits as long once more; abort \
                     withdraws the release and starts the guests again",
                    hand_over.to, facts.domain
                );
                return Ok(Ran::Ask(Question { text, choices: vec![Choice::Wait, Choice::Abort], vms: Vec::new() }));
            }
            self.wait(self.poll).await?;
        }
    }
}
