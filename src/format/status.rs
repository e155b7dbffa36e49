//! The status of a domain: its writer's latest word, for `scan` and to see whether the writer lives.
//!
//! The one object that is overwritten, and the one that nothing trusts: no decision about data rests on it. It delays a
//! second writer of the same site; what makes a second writer harmless is the ownership log.

use crate::ids::{DomainId, Generation, SegmentNo, SegmentRef, Time, WriterId};

use super::author::Author;
use super::decode_error::{DecodeError, DecodeResult};
use super::layout::layout;
use super::magic;

/// Bytes of a status.
pub const STATUS_LEN: usize = StatusFields::LEN;
const WHAT: &str = "status";

layout! { header magic::STATUS;
    /// A status, the whole object.
    pub(crate) struct StatusFields: 512 {
        /// 0 idle, 1 replicating.
        10 => mode: u8,
        /// Bytes of the site's name.
        12 => site_len: u16,
        /// Bytes of the host's name.
        14 => host_name_len: u16,
        /// Domain.
        16 => domain: DomainId,
        /// Generation of the writer.
        32 => generation: Generation,
        /// Run of the writer.
        40 => writer: WriterId,
        /// Counts the writings of this run.
        56 => beat: u64,
        /// When it was written, by the store's clock as far as the writer knew it.
        64 => at: Time,
        /// Generation of the newest accepted point; zero where there is none.
        72 => point_generation: Generation,
        /// Number of the newest accepted point; zero where there is none.
        80 => point_segment: SegmentNo,
        /// Time of that point.
        88 => point_time: Time,
        /// Hash of the writer's host.
        120 => host: [u8; 16],
        /// Process of the writer.
        136 => pid: u32,
        /// Hash of the time at which that process started.
        144 => process_started: u64,
        /// Site of the writer.
        152 => site: [u8; 256],
        /// Host of the writer, for messages.
        408 => host_name: [u8; 64],
    }
}

/// What the writer of a status was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It ended cleanly and holds nothing: another may start at once.
    Idle,
    /// It writes the domain and beats.
    Replicating,
}

impl Mode {
    /// One word, for messages.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Idle => "idle",
            Mode::Replicating => "replicating",
        }
    }

    fn number(self) -> u8 {
        match self {
            Mode::Idle => 0,
            Mode::Replicating => 1,
        }
    }

    fn from_number(n: u8) -> DecodeResult<Mode> {
        match n {
            0 => Ok(Mode::Idle),
            1 => Ok(Mode::Replicating),
            _ => Err(DecodeError::value(WHAT, format!("mode {n}: use a newer freshet"))),
        }
    }
}

/// A status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Domain.
    pub domain: DomainId,
    /// Who wrote it.
    pub author: Author,
    /// Generation of the writer.
    pub generation: Generation,
    /// What it is doing.
    pub mode: Mode,
    /// Newest accepted point; zero where there is none.
    pub point: SegmentRef,
    /// Time of that point.
    pub point_time: Time,
    /// Counts the writings of this run.
    pub beat: u64,
    /// When it was written, by the store's clock as far as the writer knew it.
    pub at: Time,
}

impl Status {
    /// The object's bytes.
    pub fn encode(&self) -> [u8; STATUS_LEN] {
        let ((site, site_len), (host_name, host_name_len)) = self.author.texts();
        let fields = StatusFields {
            mode: self.mode.number(),
            site_len,
            host_name_len,
            domain: self.domain,
            generation: self.generation,
            writer: self.author.writer,
            beat: self.beat,
            at: self.at,
            point_generation: self.point.generation,
            point_segment: self.point.segment,
            point_time: self.point_time,
            host: self.author.process.host,
            pid: self.author.process.pid,
            process_started: self.author.process.started,
            site,
            host_name,
        };
        fields.encode()
    }

    /// Decodes whatever status stands there.
    pub fn decode(bytes: &[u8]) -> DecodeResult<Status> {
        let f = StatusFields::decode(bytes)?;
        if bytes.len() != STATUS_LEN {
            return Err(DecodeError::value(WHAT, format!("{} bytes, must be {STATUS_LEN}", bytes.len())));
        }
        let process = (f.host, f.pid, f.process_started);
        let (site, host) = ((&f.site, f.site_len), (&f.host_name, f.host_name_len));
        let author = Author::from_fields(WHAT, site, host, f.writer, process)?;
        Ok(Status {
            domain: f.domain,
            author,
            generation: f.generation,
            mode: Mode::from_number(f.mode)?,
            point: SegmentRef::new(f.point_generation, f.point_segment),
            point_time: f.point_time,
            beat: f.beat,
            at: f.at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::owner::tests::author;
    use proptest::prelude::*;

    fn status() -> Status {
        Status {
            domain: DomainId::from_bytes([1; 16]),
            author: author(),
            generation: Generation::new(4),
            mode: Mode::Replicating,
            point: SegmentRef::new(Generation::new(4), SegmentNo::new(18)),
            point_time: Time::from_millis(900),
            beat: 3,
            at: Time::from_millis(1000),
        }
    }

    #[test]
    fn comes_back_as_what_it_was_and_damage_is_noticed() {
        let bytes = status().encode();
        assert_eq!(Status::decode(&bytes).unwrap(), status());
        let idle = Status { mode: Mode::Idle, ..status() };
        assert_eq!(Status::decode(&idle.encode()).unwrap(), idle);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Status::decode(&bad).is_err(), "bit {bit}");
        }
        assert!(Status::decode(&bytes[..511]).is_err());
        assert!(Status::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn unknown_modes_are_refused() {
        let mut fields = StatusFields::decode(&status().encode()).unwrap();
        fields.mode = 2;
        assert!(Status::decode(&fields.encode()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(Status::decode(&bytes).is_err());
        }
    }
}
