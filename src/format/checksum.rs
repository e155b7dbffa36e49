//! The checksums of the formats: xxh3-64 for headers and stored payloads, xxh3-128 where bytes are identified by it.
//!
//! They find accidents, not attackers: whoever can write to the store is trusted not to forge. Nothing switches them off.

use std::fmt;

/// xxh3-128 of some bytes, stored as its little-endian integer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 16]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_le_bytes(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// xxh3-128 of `bytes`.
pub fn xxh3_128(bytes: &[u8]) -> Digest {
    Digest(xxhash_rust::xxh3::xxh3_128(bytes).to_le_bytes())
}

/// xxh3-64 of `bytes`.
pub fn xxh3_64(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
