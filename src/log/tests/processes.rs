//! Two processes at one log: the second is refused as long as the first has it, and goes on with it after that.
//!
//! The second process is this test program, started again for [`second_process`] alone.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use futures::executor::block_on;

use super::made::*;
use super::support::*;
use crate::datastore::EngineKind;
use crate::error::ErrorKind;
use crate::ids::SegmentNo;

/// Tells the second process where the log is.
const DIR: &str = "FRESHET_TEST_SECOND_PROCESS";

/// A second process that has said how it fared.
struct Second {
    child: Child,
    out: BufReader<ChildStdout>,
    said: String,
}

impl Second {
    fn start(made: &Made) -> Second {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "log::tests::processes::second_process", "--ignored", "--nocapture"]);
        command.env(DIR, made.dir.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut second = Second { child, out, said: String::new() };
        while !second.said.contains("second process: ") {
            second.said.clear();
            assert!(second.out.read_line(&mut second.said).unwrap() > 0, "it ended without a word");
        }
        second
    }

    fn is_refused(&self) -> bool {
        self.said.contains("second process: refused")
    }

    /// Lets it end in its own time.
    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        // After `end` there is nothing left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "a part of the test below, which starts it; does nothing by itself"]
fn second_process() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    match open(&engine(EngineKind::Threads, 1), dir.as_ref(), SIZE) {
        Err(e) if e.kind() == ErrorKind::Refused => println!("second process: refused: {e}"),
        Err(e) => panic!("{e}"),
        Ok(log) => {
            let next = log.held().landed.segment.get() + 1;
            block_on(async {
                append(&log, id(next), RAW).await.unwrap();
                log.wait_landed(SegmentNo::new(next)).await.unwrap();
            });
            println!("second process: appended");
            // Until it is told to end, or killed.
            let _ = std::io::stdin().read(&mut [0]);
        }
    }
}

#[test]
fn a_second_process_is_refused_while_the_first_has_the_log_and_goes_on_with_it_after_that() {
    let made = made();
    let log = made.open().unwrap();
    let second = Second::start(&made);
    assert!(second.is_refused() && second.said.contains("in use by another freshet"), "{}", second.said);
    second.end();
    block_on(append(&log, id(6), RAW)).unwrap();
    log.close().unwrap();

    let second = Second::start(&made);
    assert!(!second.is_refused(), "the lock outlived the log");
    assert_eq!(made.open().unwrap_err().kind(), ErrorKind::Refused, "the log of another process was opened");
    second.end();
    let second = Second::start(&made);
    assert!(!second.is_refused());
    // Killed while it has the log: what it appended had landed, and nobody is told that it still lives.
    drop(second);
    let log = made.open().unwrap();
    assert_eq!(log.held().landed, id(8));
    (1..=8).for_each(|n| check_segment(&log, id(n), RAW));
}
