//! What the storage site hands out: object information, fetched ranges, outcomes of a create, counts.
//!
//! Plain data, no I/O.

use bytes::Bytes;

use crate::ids::Time;

/// One object as a listing or a HEAD shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Key, relative to the site's prefix.
    pub key: String,
    /// Length in bytes.
    pub len: u64,
    /// When the store says that it was written.
    pub modified: Time,
}

/// The bytes of one range, in the parts in which they came, so that nothing was copied to join them.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// The bytes in order; no part is empty.
    pub parts: Vec<Bytes>,
    /// Sum of the lengths of the parts. Less than was asked only where the object ends before the range does.
    pub len: u64,
    /// Length of the whole object.
    pub object_len: u64,
}

impl Fetched {
    /// All bytes in one piece; copies only where there is more than one part.
    pub fn into_bytes(mut self) -> Bytes {
        if self.parts.len() == 1 {
            return self.parts.remove(0);
        }
        let mut whole = Vec::with_capacity(self.parts.iter().map(Bytes::len).sum());
        self.parts.iter().for_each(|part| whole.extend_from_slice(part));
        whole.into()
    }
}

/// Outcome of a create-if-absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object is there now and was not before.
    New,
    /// An object of that key was there. It can be ours: of an earlier try whose answer was lost.
    Exists,
}

/// Outcome of a create whose lost answers were settled by reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The object is there now and was not before.
    New,
    /// An object was there that equals ours in length and at both ends: an earlier try of ours, whose answer was lost.
    Ours,
    /// Another object has the key.
    Theirs,
}

/// What one site has done since it was opened; all numbers only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreCounters {
    /// Reads of objects and ranges, every try and every hedge counted.
    pub gets: u64,
    /// Reads of an object's length.
    pub heads: u64,
    /// Writes, every try counted.
    pub puts: u64,
    /// Pages of listings.
    pub lists: u64,
    /// Objects deleted (probe objects only).
    pub deletes: u64,
    /// Tries after the first one.
    pub retries: u64,
    /// Second requests that were sent because the first was slow.
    pub hedges: u64,
    /// Second requests that finished first.
    pub hedges_won: u64,
    /// Object bytes received, those of tries that failed and hedges that lost included.
    pub bytes_in: u64,
    /// Object bytes sent, every try counted.
    pub bytes_out: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_is_not_copied_and_many_are_joined_in_order() {
        let one = Bytes::from(vec![1u8; 64]);
        let at = one.as_ptr();
        let fetched = Fetched { parts: vec![one], len: 64, object_len: 64 };
        assert_eq!(fetched.into_bytes().as_ptr(), at);
        let parts = vec![Bytes::from_static(b"ab"), Bytes::from_static(b"c")];
        assert_eq!(Fetched { parts, len: 3, object_len: 3 }.into_bytes(), "abc");
    }
}
