//! Variable parts: a writer that appends and a reader that checks every length before it is used.
//!
//! Strings and lists carry a u32 length in front. The reader knows the limit of each, so that a damaged length neither
//! panics nor allocates.

use super::decode_error::{DecodeError, DecodeResult};
use super::layout::Wire;

/// Appends values to a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty buffer.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// A value of fixed length.
    pub(crate) fn put<T: Wire>(&mut self, value: &T) -> &mut Writer {
        let at = self.bytes.len();
        self.bytes.resize(at + T::LEN, 0);
        value.put(&mut self.bytes[at..]);
        self
    }

    /// Bytes as they are, without a length.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Writer {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A count or length of what follows. Longer than a u32 is a caller's error and cannot come from valid input.
    pub fn count(&mut self, n: usize) -> &mut Writer {
        let n = u32::try_from(n).expect("counts are bounded by the limits of their formats");
        self.put(&n)
    }

    /// A string with its length.
    pub fn text(&mut self, text: &str) -> &mut Writer {
        self.count(text.len()).raw(text.as_bytes())
    }

    /// All that was written.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Takes values from the front of a slice.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, which are a `what` in messages.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, what }
    }

    /// The next `len` bytes.
    pub fn raw(&mut self, len: usize) -> DecodeResult<&'a [u8]> {
        let have = self.rest.len() as u64;
        let short = DecodeError::Short { what: self.what, need: len as u64, have };
        let (head, tail) = self.rest.split_at_checked(len).ok_or(short)?;
        self.rest = tail;
        Ok(head)
    }

    /// The next record of a known length.
    pub fn array<const N: usize>(&mut self) -> DecodeResult<&'a [u8; N]> {
        let have = self.rest.len() as u64;
        let short = DecodeError::Short { what: self.what, need: N as u64, have };
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(short)?;
        self.rest = tail;
        Ok(head)
    }

    /// A value of fixed length.
    pub(crate) fn take<T: Wire>(&mut self) -> DecodeResult<T> {
        Ok(T::take(self.raw(T::LEN)?))
    }

    /// A count of items that take at least `item_len` bytes each and of which there are at most `max`.
    pub fn count(&mut self, item_len: usize, max: usize) -> DecodeResult<usize> {
        let n = self.take::<u32>()? as usize;
        if n > max || n.saturating_mul(item_len) > self.rest.len() {
            let why = format!("count {n} with {} bytes left (limit {max})", self.rest.len());
            return Err(DecodeError::value(self.what, why));
        }
        Ok(n)
    }

    /// A string of at most `max` bytes.
    pub fn text(&mut self, max: usize) -> DecodeResult<&'a str> {
        let n = self.count(1, max)?;
        std::str::from_utf8(self.raw(n)?).map_err(|e| DecodeError::value(self.what, format!("text: {e}")))
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Fails where bytes are left over: a part is exactly as long as it says.
    pub fn finish(self) -> DecodeResult<()> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(DecodeError::value(self.what, format!("{n} bytes left over at the end"))),
        }
    }
}
