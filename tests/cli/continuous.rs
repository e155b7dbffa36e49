//! Continuous mode as an operator has it: signals, `--until`, a second one, and what it prints.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::whole::{Setup, overwrite};
use super::{freshet, ran};

/// A continuous rehydration that is ended when the test ends, however that is.
struct Follower {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Follower {
    fn start(setup: &Setup) -> Follower {
        let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
        command.args(["rehydrate", "--continuous", "--json", "--store", &setup.url(), "--domain", "prod/α"]);
        command.args(["--log-size", "136MiB", "--datastore"]).arg(setup.path("ds"));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Follower { child, lines }
    }

    /// Reads events until `point` was applied.
    fn wait_for(&mut self, point: u64) {
        for line in self.lines.by_ref() {
            let event: serde_json::Value = serde_json::from_str(&line.unwrap()).expect("one JSON object a line");
            if event["event"] == "point" && event["applied"]["point"].as_u64() == Some(point) {
                assert!(event["applied"]["lag_ms"].is_u64(), "{event}");
                return;
            }
        }
        panic!("it ended before point {point} was applied");
    }

    /// Sends a signal; answers with exit code and last line.
    fn end_by(mut self, signal: i32) -> (Option<i32>, serde_json::Value) {
        // SAFETY: kill only sends a signal, to a child that was not waited for yet, so that its id is its own.
        assert_eq!(unsafe { libc::kill(i32::try_from(self.child.id()).unwrap(), signal) }, 0);
        let last = self.lines.by_ref().map_while(Result::ok).last().unwrap_or_default();
        (self.child.wait().unwrap().code(), serde_json::from_str(&last).expect("one JSON object a line"))
    }
}

fn point_of(ran: &super::Ran) -> u64 {
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.json()["point"].as_u64().unwrap()
}

#[test]
fn it_follows_ends_cleanly_by_either_signal_and_goes_on() {
    let setup = Setup::new();
    let mut point = point_of(&setup.replicate());
    for (i, signal) in [libc::SIGTERM, libc::SIGINT].into_iter().enumerate() {
        let mut follower = Follower::start(&setup);
        follower.wait_for(point);
        let second = setup.rehydrate(&[]);
        assert_eq!((second.code, second.json()["error"]["kind"].as_str()), (4, Some("refused")), "{second:?}");
        assert!(second.stderr.contains("in use by another freshet (process "), "{second:?}");
        overwrite(&setup.path("data.img"), 100 + i, 0xEE);
        point = point_of(&setup.replicate());
        follower.wait_for(point);
        setup.assert_same();
        let (code, end) = follower.end_by(signal);
        assert_eq!(code, Some(0), "{end}");
        assert_eq!((end["event"].as_str(), end["point"].as_u64()), (Some("end"), Some(point)), "{end}");
        assert_eq!(end["between_points"].as_bool(), Some(false), "{end}");
        setup.assert_same();
    }
    let again = setup.rehydrate(&[]);
    assert_eq!((again.code, again.json()["bytes"]["written"].as_u64()), (0, Some(0)), "{again:?}");
}

#[test]
fn it_ends_at_the_point_it_was_told_or_the_next_one_after_that() {
    let setup = Setup::new();
    let first = point_of(&setup.replicate());
    let start = |until: u64| {
        let (url, ds) = (setup.url(), setup.path("ds"));
        let mut command = freshet();
        command.args(["rehydrate", "--continuous", "--until", &until.to_string(), "--store", &url]);
        command.args(["--domain", "prod/α", "--log-size", "136MiB"]).arg("--datastore").arg(ds);
        ran(command.timeout(Duration::from_secs(60)))
    };
    let there = start(first);
    assert_eq!(there.code, 0, "{there:?}");
    assert!(there.stdout.contains(&format!("applied s{first} (")), "{there:?}");
    setup.assert_same();
    // One that comes while it runs.
    let next = std::thread::scope(|scope| {
        let follower = scope.spawn(|| start(first + 1));
        overwrite(&setup.path("data.img"), 7, 0xEE);
        let next = point_of(&setup.replicate());
        let ended = follower.join().unwrap();
        assert_eq!(ended.code, 0, "{ended:?}");
        next
    });
    assert!(next > first);
    setup.assert_same();
}
