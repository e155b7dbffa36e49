//! Why bytes were not accepted: what was being read, where, and what is wrong with it.

use crate::error::{Error, ErrorKind};

use super::magic::Magic;

/// Result of a decoder.
pub type DecodeResult<T> = std::result::Result<T, DecodeError>;

/// Why bytes were not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than the part needs.
    #[error("{what}: needs {need} bytes, has {have}")]
    Short {
        /// Part that was read.
        what: &'static str,
        /// Bytes it needs.
        need: u64,
        /// Bytes there were.
        have: u64,
    },
    /// The first bytes are not this format's.
    #[error("not a {what}: it begins with {found:02x?}")]
    Magic {
        /// Format that was expected.
        what: &'static str,
        /// The eight bytes that stand there.
        found: [u8; 8],
    },
    /// A version this program does not know.
    #[error("{what}: version {found}, this program reads up to {known}: use a newer freshet")]
    Version {
        /// Format that was expected.
        what: &'static str,
        /// Version that stands there.
        found: u16,
        /// Newest version known.
        known: u16,
    },
    /// The bytes changed since they were written.
    #[error("{what}: checksum does not match")]
    Checksum {
        /// Part whose checksum fails.
        what: &'static str,
    },
    /// A well-formed part of something else: misplaced.
    #[error("{what}: belongs to {found}, expected {expected}")]
    Identity {
        /// Part that was read.
        what: &'static str,
        /// Identity in the bytes.
        found: String,
        /// Identity that was asked for.
        expected: String,
    },
    /// A value that no writer makes.
    #[error("{what}: {why}")]
    Value {
        /// Part that was read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl DecodeError {
    /// A value that no writer makes.
    pub fn value(what: &'static str, why: impl Into<String>) -> DecodeError {
        DecodeError::Value { what, why: why.into() }
    }

    /// Bytes that carry another identity than the one asked for.
    pub fn identity(
        what: &'static str,
        found: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> DecodeError {
        DecodeError::Identity { what, found: found.to_string(), expected: expected.to_string() }
    }

    /// The error of the crate, with `place` (object key or path) in front.
    pub fn at(self, place: impl std::fmt::Display) -> Error {
        let kind = match self {
            DecodeError::Version { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::Damaged,
        };
        Error::new(kind, format!("{place}: {self}"))
    }
}

/// Checks magic and version at the start of `bytes`.
pub(crate) fn check_magic(magic: &Magic, bytes: &[u8]) -> DecodeResult<()> {
    let Some(head) = bytes.first_chunk::<10>() else {
        return Err(DecodeError::Short { what: magic.what, need: 10, have: bytes.len() as u64 });
    };
    let [a, b, c, d, e, f, g, h, v0, v1] = *head;
    let found = [a, b, c, d, e, f, g, h];
    if found != magic.bytes {
        return Err(DecodeError::Magic { what: magic.what, found });
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version == 0 || version > magic.version {
        return Err(DecodeError::Version { what: magic.what, found: version, known: magic.version });
    }
    Ok(())
}
