//! Whether the writer that holds a domain still lives, from its claim and its status: what lets a restart go on at once
//! and keeps a second writer from starting beside the first.
//!
//! Advice only, decided without I/O. A wrong answer costs a refusal or a fenced writer, never data: the ownership log
//! decides who is believed.

use std::fmt;

use super::GenerationInfo;
use super::process::{self, Presence};
use crate::format::{Author, Mode, ProcessIdentity, Status};
use crate::ids::Time;

/// A writer whose last sign is older than this is not waited for.
pub const LIVE_FOR_MS: u64 = 30_000;

/// The last sign that a writer gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastSign {
    /// What it was doing then; `None` where it only claimed the domain so far.
    pub mode: Option<Mode>,
    /// Milliseconds since, by the store's clock.
    pub age_ms: u64,
}

impl LastSign {
    /// Whether it is recent enough to think that the writer lives.
    pub fn is_recent(&self) -> bool {
        self.mode != Some(Mode::Idle) && self.age_ms < LIVE_FOR_MS
    }
}

impl fmt::Display for LastSign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let age = age(self.age_ms);
        match self.mode {
            Some(Mode::Idle) => write!(f, "its writer finished {age} ago"),
            Some(mode) if self.is_recent() => write!(f, "its writer is alive ({}, last heard {age} ago)", mode.word()),
            Some(mode) => write!(f, "its writer is silent ({}, last heard {age} ago)", mode.word()),
            None => write!(f, "its writer was last heard {age} ago, when it claimed it"),
        }
    }
}

/// The last sign of the writer that made `claim`. A status of any other writer says nothing of it.
pub(super) fn last_sign(claim: &GenerationInfo, status: Option<&Status>, now: Time) -> LastSign {
    let own = |s: &&Status| s.author.writer == claim.author.writer && s.generation == claim.generation;
    match status.filter(own) {
        Some(status) => LastSign { mode: Some(status.mode), age_ms: now.millis_since(status.at.max(claim.claimed)) },
        None => LastSign { mode: None, age_ms: now.millis_since(claim.claimed) },
    }
}

/// Whether the writer that made `claim` lives as far as the process `here` can tell; its last sign if so.
pub(super) fn live_writer(
    claim: &GenerationInfo,
    status: Option<&Status>,
    now: Time,
    here: &ProcessIdentity,
) -> Option<LastSign> {
    let sign = last_sign(claim, status, now);
    let dead = process::presence(&claim.author, here) == Presence::Dead;
    (sign.is_recent() && !dead).then_some(sign)
}

/// Names a writer.
pub(super) fn name_writer(author: &Author) -> String {
    let host = match author.process.host_name.as_str() {
        "" => "an unknown host".to_owned(),
        name => format!("host {name}"),
    };
    format!("process {} on {host} (writer {})", author.process.pid, author.writer)
}

/// A duration in words, to its two largest units.
pub(super) fn age(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms} ms"),
        1..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DomainId, Generation, Name, SegmentRef, WriterId};

    fn author(host: u8, writer: u8) -> Author {
        // No process of this host has the highest pid.
        let process = ProcessIdentity { host: [host; 16], host_name: "h".into(), pid: u32::MAX >> 1, started: 1 };
        Author { site: Name::new("P").unwrap(), writer: WriterId::from_bytes([writer; 16]), process }
    }

    fn claim(host: u8) -> GenerationInfo {
        GenerationInfo {
            generation: Generation::new(2),
            author: author(host, 1),
            claimed: Time::from_millis(1000),
            take_over: false,
            record: 3,
            base: None,
            released: None,
        }
    }

    fn status(host: u8, writer: u8, generation: u64, mode: Mode, at: u64) -> Status {
        Status {
            domain: DomainId::default(),
            author: author(host, writer),
            generation: Generation::new(generation),
            mode,
            point: SegmentRef::default(),
            point_time: Time::default(),
            beat: 1,
            at: Time::from_millis(at),
        }
    }

    fn live(host: u8, status: Option<Status>, now: u64) -> bool {
        let here = ProcessIdentity { host: [1; 16], ..ProcessIdentity::default() };
        live_writer(&claim(host), status.as_ref(), Time::from_millis(now), &here).is_some()
    }

    #[test]
    fn a_writer_elsewhere_lives_while_it_beats() {
        let beat = |at| Some(status(2, 1, 2, Mode::Replicating, at));
        assert!(live(2, beat(50_000), 79_999));
        assert!(!live(2, beat(50_000), 80_000));
        assert!(live(2, beat(90_000), 80_000), "clocks that disagree do not make it dead");
        assert!(live(2, None, 30_999), "it has just claimed");
        assert!(!live(2, None, 31_000));
    }

    #[test]
    fn a_writer_that_finished_or_whose_process_is_gone_does_not_live() {
        assert!(!live(2, Some(status(2, 1, 2, Mode::Idle, 50_000)), 50_001));
        assert!(!live(1, Some(status(1, 1, 2, Mode::Replicating, 50_000)), 50_001));
        assert!(!live(1, None, 1001));
    }

    #[test]
    fn the_status_of_another_writer_says_nothing() {
        assert!(!live(2, Some(status(2, 9, 2, Mode::Replicating, 50_000)), 50_001));
        assert!(!live(2, Some(status(2, 1, 1, Mode::Replicating, 50_000)), 50_001));
        assert!(live(2, Some(status(2, 9, 2, Mode::Idle, 2000)), 2001));
    }

    #[test]
    fn durations_have_two_units() {
        assert_eq!(age(999), "999 ms");
        assert_eq!(age(59_999), "59 s");
        assert_eq!(age(61_000), "1 min 1 s");
        assert_eq!(age(7_380_000), "2 h 3 min");
        assert_eq!(age(90_000_000), "1 d 1 h");
    }
}
