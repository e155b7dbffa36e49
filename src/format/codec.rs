//! How a frame's payload is stored.

use super::decode_error::{DecodeError, DecodeResult};

/// Codec of one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Codec {
    /// The raw bytes: chosen where compressing saves nothing.
    #[default]
    Plain,
    /// One zstd frame without dictionary.
    Zstd,
}

impl Codec {
    /// Number on disk and wire.
    pub const fn number(self) -> u8 {
        match self {
            Codec::Plain => 0,
            Codec::Zstd => 1,
        }
    }

    /// From the number on disk and wire.
    pub fn from_number(n: u8) -> DecodeResult<Codec> {
        match n {
            0 => Ok(Codec::Plain),
            1 => Ok(Codec::Zstd),
            n => Err(DecodeError::value("codec", format!("unknown number {n}: use a newer freshet"))),
        }
    }
}
