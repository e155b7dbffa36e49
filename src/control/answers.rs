//! What an appliance answers a site that asks for one of its domains: it is handed over, or turned down.
//!
//! ```text
//! asked --> hand-over task --ended, and it still asks--> turned down --it cannot be told now--> again after a pause
//!       '-> turned down, where the settings say so
//! ```
//!
//! Owns what was done about each request. Invariants: one request begins one task, whatever becomes of that; nobody is told
//! more often than each [`PAUSE`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::appliance::Appliance;
use crate::error::Result;
use crate::failover::{HandOver, Request, Task, TaskState};
use crate::ids::Name;
use crate::store::Asked;

/// Time between two looks whether another site asks for a domain.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Time between two tries to turn down who asks.
const PAUSE: Duration = Duration::from_secs(30);

/// What to do about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    HandOver,
    TurnDown,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// The request that was answered last.
    given: Mutex<HashMap<Name, Given>>,
}

/// An answer that was given.
#[derive(Debug, Clone)]
struct Given {
    to: Asked,
    at: Instant,
    /// Its task could not begin: that is tried again.
    not_begun: bool,
}

impl Answers {
    /// What to do about `asked` now, which is taken for done. `None` where there is nothing to do yet.
    fn next(&self, domain: &Name, asked: &Asked, hands_over: bool, now: Instant) -> Option<Answer> {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let before = given.get(domain).filter(|before| before.to == *asked);
        let answer = match before {
            None if hands_over => Answer::HandOver,
            None => Answer::TurnDown,
            Some(before) if now.saturating_duration_since(before.at) < PAUSE => return None,
            Some(before) if before.not_begun && hands_over => Answer::HandOver,
            // Its task has ended, or it could not be turned down: it is not handed over by asking on.
            Some(_) => Answer::TurnDown,
        };
        given.insert(domain.clone(), Given { to: asked.clone(), at: now, not_begun: false });
        Some(answer)
    }

    /// The task that was to hand `domain` over could not begin.
    fn not_begun(&self, domain: &Name) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(given) = given.get_mut(domain) {
            given.not_begun = true;
        }
    }
}

impl Appliance {
    /// Answers whoever asks for a domain of this site, until the appliance closes.
    pub(crate) async fn keep_answering(self: Arc<Appliance>) {
        while !self.closing.is_cancelled() {
            for (domain, hosted) in self.hosting.all() {
                let Some(asked) = hosted.asked().await.filter(|_| self.engine.running(&domain).is_none()) else {
                    continue;
                };
                let hands_over = self.settings.failover.hands_over;
                let done =
                    match self.answers.next(&domain, &asked, hands_over, Instant::now()) {
                        Some(Answer::HandOver) => {
                            let begun = self.begin_hand_over(&domain, asked.site.clone()).await;
                            if begun.is_err() {
                                self.answers.not_begun(&domain);
                            }
                            begun
                        }
                        Some(Answer::TurnDown) => {
                            let why = self.why_not(&domain, &asked, hands_over);
                            let done = self.world.turn_down(&domain, &asked, &why).await;
                            done.map(|stood| {
                                if stood { format!("turned down: {why}") } else { "it does not ask any more".into() }
                            })
                        }
                        None => continue,
                    };
                let (outcome, detail) = match &done {
                    Ok(what) => (Ok(()), what.clone()),
                    Err(error) => (Err(error.kind().word()), error.to_string()),
                };
                let who = format!("site {}", asked.site);
                self.note(&who, "asks for the domain", domain.as_str(), outcome, &detail).await;
            }
            let pause = tokio::time::sleep(LOOK_EVERY);
            tokio::select! { () = pause => {} () = self.closing.cancelled() => {} }
        }
    }

    /// Why a request is turned down without a task, or after it.
    fn why_not(&self, domain: &Name, asked: &Asked, hands_over: bool) -> String {
        if !hands_over {
            return "that site does not hand domains over when it is asked (failover.hand_over in its settings)".into();
        }
        let is_its =
            |task: &Task| task.domain == *domain && matches!(&task.request, Request::HandOver(h) if h.to == asked.site);
        let tasks = self.engine.tasks();
        match tasks.iter().rfind(|task| is_its(task)).map(|task| (task.id, task.state.clone())) {
            Some((id, TaskState::Failed { error })) => {
                format!("task {id} there, which was to hand it over, failed: {error}")
            }
            Some((id, state)) => format!("task {id} there, which was to hand it over, is {}", state.word()),
            None => "no task that would hand it over could begin there".into(),
        }
    }

    /// Begins the task that hands a domain over; answers with what to tell of it.
    async fn begin_hand_over(&self, domain: &Name, to: Name) -> Result<String> {
        let limits = &self.settings.failover;
        let actor = format!("site {to}");
        let request = Request::HandOver(HandOver {
            domain: domain.clone(),
            to,
            shutdown_limit_seconds: limits.shutdown_limit.as_secs(),
            taken_limit_seconds: limits.taken_limit.as_secs(),
        });
        let task = self.engine.submit(request, &actor).await?;
        Ok(format!("task {task}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Time;

    #[test]
    fn a_request_begins_one_task_and_is_turned_down_where_it_outlives_that() {
        let (answers, domain, began) = (Answers::default(), Name::new("d").unwrap(), Instant::now());
        let asked = |at| Asked { site: Name::new("second").unwrap(), at: Time::from_millis(at) };
        let next = |at, hands_over, after| answers.next(&domain, &asked(at), hands_over, began + after);
        assert_eq!(next(1, true, Duration::ZERO), Some(Answer::HandOver));
        assert_eq!(next(1, true, PAUSE / 2), None, "nobody is told at each look");
        assert_eq!(next(1, true, PAUSE), Some(Answer::TurnDown));
        assert_eq!(next(1, true, PAUSE * 3 / 2), None);
        assert_eq!(next(1, true, PAUSE * 2), Some(Answer::TurnDown), "it could not be told before");
        assert_eq!(next(2, true, PAUSE * 2), Some(Answer::HandOver), "asked anew");
        answers.not_begun(&domain);
        assert_eq!(next(2, true, PAUSE * 5 / 2), None);
        assert_eq!(next(2, true, PAUSE * 3), Some(Answer::HandOver), "no task could begin before");
        assert_eq!(next(2, true, PAUSE * 4), Some(Answer::TurnDown), "one had begun");
        assert_eq!(next(3, false, PAUSE * 2), Some(Answer::TurnDown));
    }
}
