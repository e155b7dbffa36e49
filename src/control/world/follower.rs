//! Domains that disks of this site follow: one run for each, started again when it ends by itself.
//!
//! Owns which runs there are, and what was last seen of each. It decides nothing: whether a domain is followed stands in
//! the catalog. Invariant: one run for each domain.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};
use crate::failover::FailoverPlan;
use crate::ids::Name;
use crate::progress::Snapshot;
use crate::rehydrate::{Completion, FollowState, Following, RehydrateReport};

/// First pause after a run that ended by itself, doubled up to [`MAX_PAUSE`] from one short run to the next.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Time between two looks at a run.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What was last seen of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// It runs now.
    pub(crate) running: bool,
    /// How it stands.
    pub(crate) state: FollowState,
    /// Its counts.
    pub(crate) counts: Snapshot,
    /// Why it does not run, where it does not.
    pub(crate) problem: Option<String>,
    /// When its state was seen.
    at: Option<Instant>,
}

impl Seen {
    /// Age of the landed point now: it grows on where nothing runs any more.
    pub(crate) fn lag(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.state.lag_ms?) + self.at?.elapsed())
    }
}

/// How a run is to end.
enum End {
    Complete(Completion, oneshot::Sender<Result<RehydrateReport>>),
    Stop(oneshot::Sender<()>),
}

struct Run {
    plan: FailoverPlan,
    seen: Arc<Mutex<Seen>>,
    end: tokio::sync::mpsc::Sender<End>,
    cancel: Cancel,
}

/// Starts a run: opens everything anew.
pub(crate) type Start = Arc<dyn Fn() -> futures::future::BoxFuture<'static, Result<Following>> + Send + Sync>;

/// See the module.
#[derive(Default)]
pub(crate) struct Followers {
    runs: Mutex<BTreeMap<Name, Arc<Run>>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Followers {
    /// Follows a domain from now on, unless that is so already.
    pub(crate) fn start(&self, domain: &Name, plan: FailoverPlan, start: Start) {
        let mut runs = lock(&self.runs);
        if runs.contains_key(domain) {
            return;
        }
        let (end, ends) = tokio::sync::mpsc::channel(1);
        let run = Run { plan, seen: Arc::default(), end, cancel: Cancel::new() };
        let keeper = Keeper { seen: Arc::clone(&run.seen), start, cancel: run.cancel.clone() };
        runs.insert(domain.clone(), Arc::new(run));
        let about = crate::log_context::domain(domain);
        tokio::spawn(tracing::Instrument::instrument(keeper.run(ends), about));
    }

    fn get(&self, domain: &Name) -> Option<Arc<Run>> {
        lock(&self.runs).get(domain).cloned()
    }

    /// The plan and what was last seen; `None` where the domain is not followed.
    pub(crate) fn seen(&self, domain: &Name) -> Option<(FailoverPlan, Seen)> {
        let run = self.get(domain)?;
        let seen = lock(&run.seen).clone();
        Some((run.plan.clone(), seen))
    }

    /// Ends a run at a point; `None` where there is none that runs, and nothing was done.
    pub(crate) async fn complete(&self, domain: &Name, at: Completion) -> Option<Result<RehydrateReport>> {
        let run = self.get(domain)?;
        let (tell, told) = oneshot::channel();
        let asked = run.end.send(End::Complete(at, tell)).await;
        let done = match asked {
            Ok(()) => told.await.ok(),
            Err(_) => None,
        };
        lock(&self.runs).remove(domain);
        done
    }

    /// Ends a run where it stands, and waits for that.
    pub(crate) async fn stop(&self, domain: &Name) {
        let Some(run) = self.get(domain) else { return };
        let (tell, told) = oneshot::channel();
        run.cancel.cancel();
        if run.end.send(End::Stop(tell)).await.is_ok() {
            // It has ended either way.
            let _ = told.await;
        }
        lock(&self.runs).remove(domain);
    }

    /// Ends all runs.
    pub(crate) async fn stop_all(&self) {
        let names: Vec<Name> = lock(&self.runs).keys().cloned().collect();
        let stops = names.iter().map(|name| self.stop(name));
        futures::future::join_all(stops).await;
    }
}

/// What keeps one domain followed.
struct Keeper {
    seen: Arc<Mutex<Seen>>,
    start: Start,
    cancel: Cancel,
}

impl Keeper {
    async fn run(self, mut ends: tokio::sync::mpsc::Receiver<End>) {
        let mut pause = MIN_PAUSE;
        loop {
            let began = Instant::now();
            let started = tokio::select! {
                started = (self.start)() => started,
                () = self.cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "it was ended")),
            };
            let ended = match started {
                Ok(following) => match self.watch(following, &mut ends).await {
                    Some(ended) => ended,
                    None => return,
                },
                Err(error) => error,
            };
            if !self.cancel.is_cancelled() {
                tracing::warn!("its disks do not follow it, and that is tried again: {ended}");
            }
            self.tell(|seen| (seen.running, seen.problem) = (false, Some(ended.to_string())));
            if began.elapsed() > MAX_PAUSE {
                pause = MIN_PAUSE;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(MAX_PAUSE),
                end = ends.recv() => {
                    match end {
                        // There is no run that could complete: who asked does it otherwise.
                        Some(End::Complete(_, tell)) => drop(tell),
                        Some(End::Stop(tell)) => drop(tell.send(())),
                        None => {}
                    }
                    return;
                }
            }
        }
    }

    /// Looks at a run until it ends by itself, which is answered with the reason; `None` where it was ended.
    async fn watch(&self, following: Following, ends: &mut tokio::sync::mpsc::Receiver<End>) -> Option<Error> {
        loop {
            let (mut state, counts) = (following.state(), following.progress().snapshot());
            self.tell(|seen| {
                keep_damage(&seen.state, &mut state);
                *seen = Seen { running: true, problem: state.trouble.clone(), state, counts, at: Some(Instant::now()) };
            });
            if following.has_ended() {
                let ended = following.stop().await;
                let early = || Error::new(ErrorKind::Cancelled, "it ended by itself");
                return Some(ended.err().unwrap_or_else(early));
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                end = ends.recv() => {
                    match end {
                        // Whoever asked may have gone: it is completed all the same.
                        Some(End::Complete(at, tell)) => drop(tell.send(following.complete_at(at).await)),
                        Some(End::Stop(tell)) => {
                            if let Err(error) = following.stop().await {
                                tracing::info!("following ended: {error}");
                            }
                            let _ = tell.send(());
                        }
                        None => drop(following.stop().await),
                    }
                    return None;
                }
            }
        }
    }

    fn tell(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut lock(&self.seen));
    }
}

/// Until a run has come to its first point, what the one before it could not have counts on: it is tried again, and nobody
/// knows yet what comes of that.
fn keep_damage(before: &FollowState, now: &mut FollowState) {
    if now.applied.is_some() {
        return;
    }
    for old in &before.damage {
        match now.damage.iter_mut().find(|new| (&new.vm, &new.disk) == (&old.vm, &old.disk)) {
            Some(new) => (new.ranges, new.bytes) = (new.ranges.max(old.ranges), new.bytes.max(old.bytes)),
            None => now.damage.push(old.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{SegmentNo, Time};
    use crate::progress::{DiskDamage, Stand};

    #[test]
    fn what_could_not_be_had_counts_until_a_later_run_has_come_to_a_point() {
        let damage = |disk: &str, ranges, bytes| DiskDamage { vm: "web".into(), disk: disk.into(), ranges, bytes };
        let before = FollowState { damage: vec![damage("a", 2, 100), damage("b", 1, 7)], ..FollowState::default() };
        let mut now = FollowState { damage: vec![damage("a", 1, 200)], ..FollowState::default() };
        keep_damage(&before, &mut now);
        assert_eq!(now.damage, [damage("a", 2, 200), damage("b", 1, 7)]);
        let applied = Some(Stand { point: SegmentNo::new(3), time: Time::from_millis(1) });
        let mut now = FollowState { applied, damage: vec![damage("a", 1, 8)], ..FollowState::default() };
        keep_damage(&before, &mut now);
        assert_eq!(now.damage, [damage("a", 1, 8)]);
    }
}
