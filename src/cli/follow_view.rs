//! What continuous rehydration prints: a line, or a JSON object, whenever a point landed or was applied, with the lag.
//!
//! The lag is the age of that point by the store's clock. It says how old the disks would be if the protected site were
//! lost now; a writer that is idle still cuts points, so that a lag that grows means something.

use std::time::Duration;

use serde_json::json;

use super::output::Output;
use super::units::age;
use crate::error::Result;
use crate::progress::{Progress, Snapshot, Stand};
use crate::store::StorageSite;

/// Time between two looks at the counts.
const TICK: Duration = Duration::from_millis(200);

/// Runs `work` to its end and prints what it reaches on the way.
pub(super) async fn while_running<T>(
    work: impl Future<Output = T>,
    site: &StorageSite,
    progress: &Progress,
    output: &Output,
) -> Result<T> {
    let mut work = std::pin::pin!(work);
    let mut last = Snapshot::default();
    loop {
        let done = tokio::select! {
            done = &mut work => Some(done),
            () = tokio::time::sleep(TICK) => None,
        };
        last = show(&last, site, progress, output)?;
        if let Some(done) = done {
            return Ok(done);
        }
    }
}

fn show(last: &Snapshot, site: &StorageSite, progress: &Progress, output: &Output) -> Result<Snapshot> {
    let now = progress.snapshot();
    for note in progress.take_notes() {
        output.event(&json!({ "event": "note", "text": note }), &note)?;
    }
    if (now.landed, now.applied) != (last.landed, last.applied) {
        let clock = site.now();
        let lag = |s: Stand| clock.millis_since(s.time);
        let json_of = |s: Stand| json!({ "point": s.point.get(), "time": s.time.to_string(), "lag_ms": lag(s) });
        let text_of = |s: Option<Stand>| match s {
            Some(s) => format!("{} ({} behind)", s.point, age(lag(s))),
            None => "nothing yet".to_owned(),
        };
        let event = json!({ "event": "point", "landed": now.landed.map(json_of), "applied": now.applied.map(json_of) });
        output.event(&event, &format!("landed {}, applied {}", text_of(now.landed), text_of(now.applied)))?;
    }
    Ok(now)
}
