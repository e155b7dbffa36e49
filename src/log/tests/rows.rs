//! Each row of the decision table met by a real file: the label that recovery logs, and what the log then holds.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex};

use futures::executor::block_on;

use super::super::{Action, LogOptions, RULES, ReplicationLog};
use super::made::*;
use super::support::*;
use crate::error::{ErrorKind, Result};
use crate::format::{DatastoreId, LOG_BLOCK, LogId};
use crate::ids::*;

/// What a case makes of the log of five segments.
enum Ends {
    /// All five are held; these are quarantined.
    Holds(&'static [u64]),
    /// The log ends before the fourth one.
    ThreeLeft,
    /// It is not opened, and its file stays as it is.
    Refused(ErrorKind),
}
use Ends::*;

/// The row that is met, what is done to the file for it, and how it ends.
type Case = (&'static str, fn(&Made), Ends);

/// A log whose superblocks were written before its last two segments: these are after the head.
fn two_after_head(made: &Made) {
    let head = made.starts[3] - made.starts[0];
    for slot in [0, 1] {
        made.with_slot(slot, |s| {
            // As after the third segment, whatever the older of the two slots said.
            (s.tail, s.head, s.first) = (0, head, SegmentNo::new(1));
            (s.last_generation, s.last_segment) = (Generation::new(1), SegmentNo::new(3));
        });
    }
}

fn copy_header(made: &Made, from: usize, to: usize) {
    made.write(made.starts[to - 1], &made.block(made.starts[from - 1]));
}

fn blank(made: &Made, at: u64) {
    made.write(at, &[0; LOG_BLOCK as usize]);
}

const OTHER: LogId = LogId::from_bytes([9; 16]);

fn slots() -> Vec<Case> {
    vec![
        ("S1", |_| (), Holds(&[])),
        ("S2", |m| m.flip(m.newest() * LOG_BLOCK + 100), Holds(&[])),
        ("S3", |m| blank(m, (1 - m.newest()) * LOG_BLOCK), Holds(&[])),
        ("S4", |m| [50, LOG_BLOCK + 50].iter().for_each(|at| m.flip(*at)), Refused(ErrorKind::Damaged)),
        ("S5", |m| m.flip(9), Refused(ErrorKind::Unsupported)),
        ("S6", |m| m.with_slot(0, |s| s.log = OTHER), Refused(ErrorKind::Damaged)),
        ("S7", |m| m.write(SIZE, &[0; LOG_BLOCK as usize]), Refused(ErrorKind::Damaged)),
        ("S8", |m| both(m, |s| s.domain = DomainId::from_bytes([9; 16])), Refused(ErrorKind::Refused)),
        ("S9", |m| both(m, |s| s.datastore = DatastoreId::from_bytes([9; 16])), Refused(ErrorKind::Refused)),
    ]
}

fn both(made: &Made, change: fn(&mut crate::format::LogSuperblock)) {
    [0, 1].iter().for_each(|n| made.with_slot(*n, change));
}

fn durable() -> Vec<Case> {
    vec![
        ("D1", |_| (), Holds(&[])),
        ("D2", |m| m.flip(m.starts[2] + LOG_BLOCK + 9), Holds(&[3])),
        ("D3", |m| blank(m, m.starts[2]), Holds(&[3])),
        ("D4", |m| m.flip(m.starts[2] + 60), Holds(&[3])),
        ("D5", |m| copy_header(m, 1, 3), Holds(&[3])),
        ("D6", |m| copy_header(m, 4, 3), Holds(&[3])),
        ("D7", |m| (3..=5).for_each(|n| m.with_record(n, |r| r.epoch += 1)), Holds(&[])),
        ("D8", |m| m.with_record(3, |r| r.log = OTHER), Holds(&[3])),
        ("D9", |m| m.with_record(3, |r| r.segment = SegmentNo::new(9)), Holds(&[3])),
    ]
}

fn end() -> Vec<Case> {
    vec![
        ("E1", |_| (), Holds(&[])),
        ("E2", |m| m.flip(m.starts[3] + LOG_BLOCK + 9), ThreeLeft),
        ("E3", |m| blank(m, m.starts[3]), ThreeLeft),
        ("E4", |m| m.flip(m.starts[3] + 60), ThreeLeft),
        ("E5", |m| copy_header(m, 1, 4), ThreeLeft),
        ("E6", |m| copy_header(m, 5, 4), ThreeLeft),
        ("E7", |m| m.with_record(4, |r| r.epoch -= 1), ThreeLeft),
        ("E8", |m| m.with_record(4, |r| r.log = OTHER), ThreeLeft),
        ("E9", |m| m.with_record(4, |r| r.segment = SegmentNo::new(9)), ThreeLeft),
    ]
}

/// What is logged in this thread.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Opens the log and gives the labels of the decisions that were logged meanwhile.
fn opened(made: &Made) -> (Result<ReplicationLog>, BTreeSet<String>) {
    let logged = Logged::default();
    let writer = logged.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let options = LogOptions { verify_payloads: true, ..options(SIZE) };
    let open = || ReplicationLog::open(&made.engine, made.dir.path(), &name(), &options);
    let log = tracing::subscriber::with_default(subscriber, open);
    let text = String::from_utf8(logged.0.lock().unwrap().clone()).unwrap();
    let labels = text.split("label=\"").skip(1).filter_map(|rest| rest.split('"').next());
    (log, labels.map(str::to_owned).collect())
}

fn check_case((label, change, ends): &Case, made: &Made) {
    change(made);
    let before = std::fs::read(made.path()).unwrap();
    let (log, labels) = opened(made);
    assert!(labels.contains(*label), "{label}: decided by {labels:?}");
    let held = match ends {
        Refused(kind) => {
            let error = log.unwrap_err();
            assert_eq!(error.kind(), *kind, "{label}: {error}");
            assert!(error.to_string().contains(&format!("[{label}]")), "{error}");
            assert!(before == std::fs::read(made.path()).unwrap(), "{label}: a refused log was changed");
            return;
        }
        Holds(_) => 5,
        ThreeLeft => 3,
    };
    let log = log.unwrap_or_else(|e| panic!("{label}: {e}"));
    assert_eq!(log.held().landed, id(held), "{label}");
    let bad = if let Holds(bad) = ends { bad } else { &[][..] };
    let named: Vec<u64> = log.recovery().quarantined.iter().map(|q| q.segment.get()).collect();
    assert_eq!(named, *bad, "{label}");
    if held == 3 {
        assert_eq!(log.recovery().ended_by, Some(*label));
    }
    (1..=held).filter(|n| !bad.contains(n)).for_each(|n| check_segment(&log, id(n), RAW));
    // It is a log to go on with: of the same length, so that a record that was dropped would follow at once.
    let next = SegmentRef::new(Generation::new(2), SegmentNo::new(held + 1));
    block_on(append(&log, next, RAW)).unwrap();
    log.close().unwrap();
    let log = made.open().unwrap_or_else(|e| panic!("{label}: {e}"));
    assert_eq!(log.held().landed, next, "{label}: what was dropped came back");
    check_segment(&log, next, RAW);
}

#[test]
fn every_row_is_met_by_a_file_and_does_what_it_says() {
    let mut met = Vec::new();
    for case in slots().iter().chain(&durable()) {
        check_case(case, &made());
        met.push(case.0);
    }
    for case in &end() {
        let made = made();
        two_after_head(&made);
        check_case(case, &made);
        met.push(case.0);
    }
    let rows: Vec<&str> = RULES.iter().map(|rule| rule.label).collect();
    assert_eq!(met, rows, "a row without a case");
}

#[test]
fn the_cases_expect_what_the_rows_say() {
    for (label, _, ends) in slots().iter().chain(&durable()).chain(&end()) {
        let rule = RULES.iter().find(|rule| rule.label == *label).unwrap();
        let agrees = match (rule.action, ends) {
            (Action::Refuse(kind), Refused(expected)) => kind == *expected,
            (Action::Stop, ThreeLeft) | (Action::QuarantineOne | Action::QuarantineToNext, Holds([3])) => true,
            (Action::UseNewest | Action::Keep | Action::ToEnd, Holds([])) => true,
            _ => false,
        };
        assert!(agrees, "{label}");
    }
}
