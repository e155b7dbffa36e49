//! What follows from a failure: another try, a question, or turning back. Pure.
//!
//! | kind of error | before the point of no return | after it |
//! |---|---|---|
//! | `Unreachable` | tried again, [`MAX_ATTEMPTS`] times with pauses; then a question | the same |
//! | `Refused`, `Fenced`, `Invalid`, `NotFound`, `Unsupported` | turn back | a question; `Fenced` ends the task |
//! | all others | a question: the operator removes the cause | a question |
//!
//! [`NOT_DONE`] of a step of the runbook is what the runbook speaks of: `retry` is tried again as often as it says, with the
//! same pauses, and then a question; `stop` turns back before the point of no return, and ends the task after it.

use std::time::Duration;

use super::runbook::OnFailure;
use super::step::Step;
use super::task::{Choice, Question, TaskError};
use crate::error::ErrorKind;

/// The kind of error with which a step of the runbook says that its script failed, or that nothing answered in time.
pub(super) const NOT_DONE: ErrorKind = ErrorKind::Incomplete;
/// Tries of one step before the operator is asked.
pub const MAX_ATTEMPTS: u32 = 12;
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Try it again after [`pause_after`].
    Retry,
    /// Ask the operator.
    Ask,
    /// Undo what was done.
    TurnBack,
    /// End where it stands.
    End,
}

/// What follows from the failure of a step that was tried `attempts` times; `committed`: past the point of no return.
pub(super) fn verdict(step: &Step, error: &TaskError, attempts: u32, committed: bool) -> Verdict {
    use ErrorKind::{Fenced, Invalid, NotFound, Refused, Unreachable, Unsupported};
    let said = step.on_failure().filter(|_| error.kind == NOT_DONE);
    match (error.kind, committed) {
        _ if said.is_some_and(|(then, retries)| then == OnFailure::Retry && attempts <= retries) => Verdict::Retry,
        (_, true) if said.is_some_and(|(then, _)| then == OnFailure::Stop) => Verdict::End,
        (_, false) if said.is_some_and(|(then, _)| then == OnFailure::Stop) => Verdict::TurnBack,
        (Unreachable, _) if attempts < MAX_ATTEMPTS => Verdict::Retry,
        (Fenced, true) => Verdict::End,
        (Refused | Fenced | Invalid | NotFound | Unsupported, false) => Verdict::TurnBack,
        _ => Verdict::Ask,
    }
}

/// Whether an error of a claim proves that the domain was not claimed: the step looks before it answers so.
pub(super) fn proves_not_claimed(error: &TaskError) -> bool {
    matches!(error.kind, ErrorKind::Refused | ErrorKind::Fenced)
}

/// Pause before the try after `attempts`: from half a second on, doubled each time, at most a minute.
pub fn pause_after(attempts: u32) -> Duration {
    let doubled = 500u64.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    Duration::from_millis(doubled).min(LONGEST_PAUSE)
}

/// What the operator is asked about a step that failed.
pub(super) fn question_after(step: &Step, error: &TaskError, committed: bool) -> Question {
    let mut choices = vec![Choice::Retry];
    let mut text = format!("{}: {error}. Retry tries it again", step.word());
    if step.may_be_skipped() {
        choices.push(Choice::Skip);
        text.push_str("; skip goes on without it");
    }
    if committed {
        choices.push(Choice::GiveUp);
        text.push_str("; give-up ends the task, and what was done stays as it is");
    } else {
        choices.push(Choice::Abort);
        text.push_str("; abort undoes what was done");
    }
    Question { text, choices, vms: step.vm().cloned().into_iter().collect() }
}

/// What the operator is asked where undoing a step failed.
pub(super) fn question_after_undo(step: &Step, error: &TaskError) -> Question {
    let text = format!(
        "undoing {}: {error}. Retry tries it again; give-up ends the task, and what was not undone stays as it is",
        step.word()
    );
    Question { text, choices: vec![Choice::Retry, Choice::GiveUp], vms: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let millis: Vec<u128> = (0..5).map(|n| pause_after(n).as_millis()).collect();
        assert_eq!(millis, [500, 500, 1000, 2000, 4000]);
        assert_eq!(pause_after(u32::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn nothing_is_tried_for_ever_and_nothing_committed_turns_back() {
        for kind in ALL_KINDS {
            let error = TaskError { kind, text: String::new() };
            let step = Step::Protect;
            assert_ne!(verdict(&step, &error, MAX_ATTEMPTS, false), Verdict::Retry, "{kind:?}");
            assert_ne!(verdict(&step, &error, 1, true), Verdict::TurnBack, "{kind:?}");
            let ends = verdict(&step, &error, 1, true) == Verdict::End;
            assert_eq!(ends, kind == ErrorKind::Fenced, "{kind:?}");
        }
    }

    #[test]
    fn a_script_that_fails_is_tried_again_or_ends_the_task_as_the_runbook_says() {
        let failed = TaskError { kind: NOT_DONE, text: String::new() };
        let step = |then: &str| -> Step {
            serde_json::from_str(&format!(r#"{{"run-script":{{"script":{{"command":["/x"],{then}}},"vm":null}}}}"#))
                .unwrap()
        };
        for (then, last) in [(r#""on_failure":"retry""#, 3), (r#""on_failure":"retry","retries":20"#, 20)] {
            assert_eq!(verdict(&step(then), &failed, last, true), Verdict::Retry);
            assert_eq!(verdict(&step(then), &failed, last + 1, true), Verdict::Ask);
        }
        let stop = step(r#""on_failure":"stop""#);
        assert_eq!(verdict(&stop, &failed, 1, false), Verdict::TurnBack);
        assert_eq!(verdict(&stop, &failed, 1, true), Verdict::End);
        assert_eq!(verdict(&step(r#""on_failure":"ask""#), &failed, 1, true), Verdict::Ask);
        // What else goes wrong with it is no matter of the runbook's.
        let away = TaskError { kind: ErrorKind::Io, text: String::new() };
        for then in ["stop", "retry"] {
            assert_eq!(verdict(&step(&format!(r#""on_failure":"{then}""#)), &away, 1, true), Verdict::Ask);
        }
    }

    const ALL_KINDS: [ErrorKind; 13] = [
        ErrorKind::Invalid,
        ErrorKind::NotFound,
        ErrorKind::Refused,
        ErrorKind::Fenced,
        ErrorKind::Damaged,
        ErrorKind::Incomplete,
        ErrorKind::Full,
        ErrorKind::Unreachable,
        ErrorKind::Denied,
        ErrorKind::Unsupported,
        ErrorKind::Io,
        ErrorKind::Cancelled,
        ErrorKind::Internal,
    ];
}
