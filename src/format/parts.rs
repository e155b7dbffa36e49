//! An object's bytes in the parts in which they came from the network, read as if they were one piece.
//!
//! What lies within one part is handed out in place; only what straddles parts is copied, into a buffer that serves
//! again. This is what keeps decoding free of a copy of everything.

use std::ops::Range;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use super::decode_error::{DecodeError, DecodeResult};

/// Parts in order, with the position of each.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    parts: &'a [Bytes],
    len: u64,
}

impl<'a> Parts<'a> {
    /// Reads `parts` as one.
    pub fn new(parts: &'a [Bytes]) -> Parts<'a> {
        Parts { parts, len: parts.iter().map(|p| p.len() as u64).sum() }
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces that make up `range`, in order.
    ///
    /// # Errors
    /// [`DecodeError::Short`] where the range ends past the end.
    pub fn pieces(&self, range: Range<u64>) -> DecodeResult<impl Iterator<Item = &'a [u8]> + use<'a>> {
        if range.start > range.end || range.end > self.len {
            return Err(DecodeError::Short { what: "object", need: range.end, have: self.len });
        }
        let mut start = 0_u64;
        Ok(self.parts.iter().filter_map(move |part| {
            let (from, to) = (range.start.max(start), range.end.min(start + part.len() as u64));
            let piece = (from < to).then(|| &part[(from - start) as usize..(to - start) as usize]);
            start += part.len() as u64;
            piece
        }))
    }

    /// `range` as one slice: in place where it lies in one part, otherwise gathered in `scratch`.
    pub fn slice<'s>(&self, range: Range<u64>, scratch: &'s mut Vec<u8>) -> DecodeResult<&'s [u8]>
    where
        'a: 's,
    {
        let mut pieces = self.pieces(range.clone())?;
        let Some(first) = pieces.next() else { return Ok(&[]) };
        if first.len() as u64 == range.end - range.start {
            return Ok(first);
        }
        scratch.clear();
        scratch.extend_from_slice(first);
        pieces.for_each(|p| scratch.extend_from_slice(p));
        Ok(scratch)
    }

    /// xxh3-64 of `range`, without gathering it.
    pub fn xxh3_64(&self, range: Range<u64>) -> DecodeResult<u64> {
        let mut pieces = self.pieces(range.clone())?;
        let Some(first) = pieces.next() else { return Ok(super::xxh3_64(&[])) };
        if first.len() as u64 == range.end - range.start {
            return Ok(super::xxh3_64(first));
        }
        let mut hash = Xxh3::new();
        hash.update(first);
        pieces.for_each(|p| hash.update(p));
        Ok(hash.digest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_the_same_however_the_bytes_are_cut() {
        let whole: Vec<u8> = (0..100).collect();
        let parts = [
            Bytes::copy_from_slice(&whole[..10]),
            Bytes::new(),
            Bytes::copy_from_slice(&whole[10..11]),
            Bytes::copy_from_slice(&whole[11..]),
        ];
        let parts = Parts::new(&parts);
        let mut scratch = Vec::new();
        for from in 0..=100_u64 {
            for to in from..=100 {
                let expected = &whole[from as usize..to as usize];
                assert_eq!(parts.slice(from..to, &mut scratch).unwrap(), expected);
                assert_eq!(parts.xxh3_64(from..to).unwrap(), super::super::xxh3_64(expected));
            }
        }
        assert!(parts.slice(5..101, &mut scratch).is_err());
    }
}
