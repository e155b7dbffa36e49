//! The other site: `rehydrate --continuous`, and how old the newest point was that had landed there, at every moment.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Outcome;

/// Between two moments at which the age is noted.
const STEP: f64 = 0.01;

/// A follower.
pub(crate) struct Follower {
    child: Child,
    reader: JoinHandle<Vec<(Instant, f64)>>,
    young: Receiver<()>,
}

/// Ages in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ages {
    pub(crate) p50: f64,
    pub(crate) p999: f64,
    pub(crate) most: f64,
}

impl Follower {
    /// Follows the bench's domain from `store`.
    pub(crate) fn start(store: &str, dir: &Path) -> Outcome<Follower> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
        command.args(["--json", "rehydrate", "--continuous", "--domain", "bench", "--store", store]);
        command.arg("--datastore").arg(dir).args(["--log-size", "1GiB"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let out = BufReader::new(child.stdout.take().ok_or("no output")?);
        let (caught_up, young) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut seen = Vec::new();
            for line in out.lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
                if let Some(lag) = event["landed"]["lag_ms"].as_f64() {
                    seen.push((Instant::now(), lag / 1e3));
                    if lag < 3000.0 {
                        // Nobody listens any more after the first one.
                        let _ = caught_up.send(());
                    }
                }
            }
            seen
        });
        Ok(Follower { child, reader, young })
    }

    /// Waits until it has landed a point that is younger than 3 s.
    pub(crate) fn until_caught_up(&mut self) -> Outcome<()> {
        Ok(self.young.recv_timeout(Duration::from_secs(120))?)
    }

    /// Ends it, and tells the ages between `from` and now: each point grows older until the next one has landed.
    pub(crate) fn ages(mut self, from: Instant) -> Outcome<Ages> {
        let until = Instant::now();
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id())?).ok_or("no pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let seen = self.reader.join().map_err(|_| "the reader panicked")?;
        self.child.wait()?;
        let mut ages = Vec::new();
        let mut now = from;
        while now < until {
            let newest = seen.iter().rev().find(|(at, _)| *at <= now);
            ages.extend(newest.map(|(at, age)| age + (now - *at).as_secs_f64()));
            now += Duration::from_secs_f64(STEP);
        }
        ages.sort_by(f64::total_cmp);
        let at = |part: f64| ages.get(((ages.len() as f64 * part) as usize).min(ages.len().saturating_sub(1)));
        let at = |part: f64| at(part).copied().unwrap_or(f64::NAN);
        Ok(Ages { p50: at(0.5), p999: at(0.999), most: at(1.0) })
    }
}
