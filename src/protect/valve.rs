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
        Valve { recorder, backlog, health, longest_hold, hold_micros: AtomicU64::new(0), mode }
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

    /// Looks after the mode until `end`.
    pub(crate) async fn run(&self, end: Cancel) {
        while !end.is_cancelled() {
            let next = self.decide(self.mode(), self.backlog.waiting());
            self.enter(next);
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.recorder.overrun() => {}
                () = self.health.worsened(), if self.health.is_sound() => {}
                () = end.cancelled() => {}
            }
        }
    }

    fn decide(&self, mode: CaptureMode, waiting: Waiting) -> CaptureMode {
        if self.health.is_fenced() {
            return CaptureMode::Fenced;
        }
        if !self.health.is_sound() {
            return CaptureMode::Failed;
        }
        let full = fill(waiting);
        match mode {
            CaptureMode::Starting | CaptureMode::Fenced | CaptureMode::Failed => mode,
            CaptureMode::Bitmap if waiting.segments == 0 => CaptureMode::Normal,
            CaptureMode::Bitmap => CaptureMode::Bitmap,
            // The recorder paused by itself: a write found no room.
            CaptureMode::Normal | CaptureMode::Throttled if !self.recorder.is_capturing() => CaptureMode::Bitmap,
            CaptureMode::Normal | CaptureMode::Throttled if full >= PAUSE_AT => CaptureMode::Bitmap,
            CaptureMode::Normal | CaptureMode::Throttled if full >= THROTTLE_AT => CaptureMode::Throttled,
            CaptureMode::Normal | CaptureMode::Throttled => CaptureMode::Normal,
        }
    }

    fn enter(&self, next: CaptureMode) {
        let before = self.mode();
        let hold = match next {
            CaptureMode::Throttled => {
                let part = (fill(self.backlog.waiting()) - THROTTLE_AT) / (PAUSE_AT - THROTTLE_AT);
                self.longest_hold.mul_f64(part.clamp(0.0, 1.0))
            }
            _ => Duration::ZERO,
        };
        self.hold_micros.store(u64::try_from(hold.as_micros()).unwrap_or(u64::MAX), Relaxed);
        if next == before {
            return;
        }
        tracing::info!("capture: {before:?} -> {next:?}");
        match next {
            CaptureMode::Normal if before == CaptureMode::Bitmap => self.recorder.resume(),
            CaptureMode::Bitmap | CaptureMode::Fenced | CaptureMode::Failed => self.recorder.pause(),
            _ => {}
        }
        self.mode.send_replace(next);
    }
}

/// How full the log is, 0 to 1.
fn fill(waiting: Waiting) -> f64 {
    match waiting.log {
        (_, 0) => 0.0,
        (used, ring) => used as f64 / ring as f64,
    }
}
