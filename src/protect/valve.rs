//! The valve: what a domain does when the storage site takes less than guests write.
//!
//! ```text
//! Normal --log half full--> Throttled --log nearly full, or a write found no room--> Bitmap
//!   ^  <--log under half--      |                                                       |
//!   +---------------------------+----------------- all that was captured is accepted ---+
//! ```
//!
//! Owns the mode, and how long each write is held meanwhile: never longer than the bound that was set. In `Bitmap`
//! nothing is captured: regions are marked and read back later. Being superseded, or a lasting fault, ends in `Fenced` or
//! `Failed`, and stays. Decides only; it never touches a byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use super::backlog::{Backlog, Waiting};
use super::health::Health;
use super::recorder::Recorder;
use crate::cancel::Cancel;

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Parts of the log that are in use when writes begin to be held, and when capturing pauses.
const THROTTLE_AT: f64 = 0.5;
const PAUSE_AT: f64 = 0.9;

/// What is done with guests' writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureMode {
    /// Exports are open, the domain is not claimed yet: regions are marked.
    Starting,
    /// Captured.
    Normal,
    /// Captured, and held a bounded time: the backlog is long.
    Throttled,
    /// Only marked: the backlog was too long. Ends by itself once it is shipped.
    Bitmap,
    /// Only marked, or refused: another writer owns the domain now.
    Fenced,
    /// Only marked: capture or shipping ended with an error that needs a restart.
    Failed,
}

/// See the module.
pub(crate) struct Valve {
    recorder: Arc<Recorder>,
    backlog: Arc<Backlog>,
    health: Arc<Health>,
    longest_hold: Duration,
    hold_micros: AtomicU64,
    /// Writes that were held, and the longest time of one, in microseconds.
    held: AtomicU64,
    longest_held: AtomicU64,
    mode: watch::Sender<CaptureMode>,
}

impl Valve {
    /// A valve that holds no write longer than `longest_hold`.
    pub(crate) fn new(
        recorder: Arc<Recorder>,
        backlog: Arc<Backlog>,
        health: Arc<Health>,
        longest_hold: Duration,
    ) -> Valve {
        let mode = watch::Sender::new(CaptureMode::Starting);
        let [hold_micros, held, longest_held] = [0; 3].map(AtomicU64::new);
        Valve { recorder, backlog, health, longest_hold, hold_micros, held, longest_held, mode }
    }

    /// Starts capturing.
    pub(crate) fn open(&self) {
        self.recorder.resume();
        self.mode.send_replace(CaptureMode::Normal);
    }

    /// The mode now.
    pub(crate) fn mode(&self) -> CaptureMode {
        *self.mode.borrow()
    }

    /// How long a write is to be held before it is made.
    pub(crate) fn hold(&self) -> Duration {
        Duration::from_micros(self.hold_micros.load(Relaxed))
    }

    /// Longest time that a write may be held, all in all.
    pub(crate) fn bound(&self) -> Duration {
        self.longest_hold
    }

    /// A write was held for so long, all in all.
    pub(crate) fn note_held(&self, time: Duration) {
        if !time.is_zero() {
            self.held.fetch_add(1, Relaxed);
            self.longest_held.fetch_max(micros(time), Relaxed);
        }
    }

    /// Writes that were held, and the longest time of one in microseconds.
    pub(crate) fn held(&self) -> (u64, u64) {
        (self.held.load(Relaxed), self.longest_held.load(Relaxed))
    }

    /// Looks after the mode until `end`.
    pub(crate) async fn run(&self, end: Cancel) {
        while !end.is_cancelled() {
            self.step();
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.recorder.overrun() => {}
                () = self.health.worsened(), if self.health.is_sound() => {}
                () = end.cancelled() => {}
            }
        }
    }

    fn facts(&self) -> Facts {
        let waiting = self.backlog.waiting();
        Facts {
            fenced: self.health.is_fenced(),
            sound: self.health.is_sound(),
            capturing: self.recorder.is_capturing(),
            settled: waiting.segments == 0,
            fill: fill(waiting),
        }
    }

    fn step(&self) {
        let (before, now) = advance(&self.mode, || self.facts());
        let hold = match now {
            CaptureMode::Throttled => {
                let part = (fill(self.backlog.waiting()) - THROTTLE_AT) / (PAUSE_AT - THROTTLE_AT);
                self.longest_hold.mul_f64(part.clamp(0.0, 1.0))
            }
            _ => Duration::ZERO,
        };
        self.hold_micros.store(micros(hold), Relaxed);
        if now == before {
            return;
        }
        tracing::info!("capture: {before:?} -> {now:?}");
        match now {
            CaptureMode::Normal if before == CaptureMode::Bitmap => self.recorder.resume(),
            CaptureMode::Bitmap | CaptureMode::Fenced | CaptureMode::Failed => self.recorder.pause(),
            _ => {}
        }
    }
}

/// Makes of the mode what follows from it and from facts that are gathered after it was read: what it was, and what it is.
/// Where somebody opens it meanwhile, that stays, and the next look goes on from there.
fn advance(mode: &watch::Sender<CaptureMode>, facts: impl FnOnce() -> Facts) -> (CaptureMode, CaptureMode) {
    let before = *mode.borrow();
    let after = next(before, facts());
    let changed = mode.send_if_modified(|mode| {
        let changes = *mode == before && before != after;
        if changes {
            *mode = after;
        }
        changes
    });
    (before, if changed { after } else { before })
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What the next mode depends on.
#[derive(Debug, Clone, Copy)]
struct Facts {
    /// Another writer owns the domain.
    fenced: bool,
    /// Neither that nor a lasting fault.
    sound: bool,
    /// The recorder takes writes.
    capturing: bool,
    /// All that was captured is part of the domain.
    settled: bool,
    /// How full the log is, 0 to 1.
    fill: f64,
}

/// The mode after `mode`. Total and pure.
fn next(mode: CaptureMode, facts: Facts) -> CaptureMode {
    if facts.fenced {
        return CaptureMode::Fenced;
    }
    if !facts.sound {
        return CaptureMode::Failed;
    }
    match mode {
        CaptureMode::Starting | CaptureMode::Fenced | CaptureMode::Failed => mode,
        CaptureMode::Bitmap if facts.settled => CaptureMode::Normal,
        CaptureMode::Bitmap => CaptureMode::Bitmap,
        // The recorder paused by itself: a write found no room.
        CaptureMode::Normal | CaptureMode::Throttled if !facts.capturing => CaptureMode::Bitmap,
        CaptureMode::Normal | CaptureMode::Throttled if facts.fill >= PAUSE_AT => CaptureMode::Bitmap,
        CaptureMode::Normal | CaptureMode::Throttled if facts.fill >= THROTTLE_AT => CaptureMode::Throttled,
        CaptureMode::Normal | CaptureMode::Throttled => CaptureMode::Normal,
    }
}

/// How full the log is, 0 to 1.
fn fill(waiting: Waiting) -> f64 {
    match waiting.log {
        (_, 0) => 0.0,
        (used, ring) => used as f64 / ring as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_follow_from_the_log_and_end_by_themselves_but_for_the_lasting_ones() {
        use CaptureMode::{Bitmap, Failed, Fenced, Normal, Starting, Throttled};
        let well = Facts { fenced: false, sound: true, capturing: true, settled: true, fill: 0.0 };
        let full = |fill| Facts { settled: false, fill, ..well };
        let paused = Facts { capturing: false, settled: false, ..well };
        let fault = Facts { sound: false, ..well };
        let fenced = Facts { fenced: true, ..fault };
        for (mode, facts, after) in [
            (Starting, well, Starting),
            (Normal, full(0.49), Normal),
            (Normal, full(0.5), Throttled),
            (Throttled, full(0.89), Throttled),
            (Throttled, full(0.4), Normal),
            (Throttled, full(0.9), Bitmap),
            (Normal, full(0.95), Bitmap),
            (Normal, paused, Bitmap),
            (Bitmap, full(0.0), Bitmap),
            (Bitmap, paused, Bitmap),
            (Bitmap, Facts { capturing: false, ..well }, Normal),
            (Fenced, well, Fenced),
            (Failed, well, Failed),
        ] {
            assert_eq!(next(mode, facts), after, "{mode:?} with {facts:?}");
        }
        for mode in [Starting, Normal, Throttled, Bitmap, Fenced, Failed] {
            assert_eq!((next(mode, fault), next(mode, fenced)), (Failed, Fenced), "{mode:?}");
        }
    }

    #[test]
    fn what_is_opened_while_it_is_looked_at_stays_open() {
        use CaptureMode::{Failed, Normal, Starting};
        let well = Facts { fenced: false, sound: true, capturing: true, settled: true, fill: 0.0 };
        for facts in [well, Facts { capturing: false, ..well }, Facts { sound: false, ..well }] {
            let mode = watch::Sender::new(Starting);
            let opened = || {
                mode.send_replace(Normal);
                facts
            };
            assert_eq!(advance(&mode, opened), (Starting, Starting), "{facts:?}");
            assert_eq!(*mode.borrow(), Normal, "{facts:?}");
        }
        let mode = watch::Sender::new(Normal);
        assert_eq!(advance(&mode, || Facts { sound: false, ..well }), (Normal, Failed));
        assert_eq!(*mode.borrow(), Failed);
    }
}
