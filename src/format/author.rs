//! Who wrote a record: the site, the run of the writer, and the process, so that an operator can be told whom to look
//! for and another process on the same host can see whether the writer still lives.
//!
//! Owns the text fields of fixed length that ownership records and the status share. Never asks the system anything.

use crate::ids::{Name, WriterId};

use super::decode_error::{DecodeError, DecodeResult};

/// Bytes of the field that holds a name.
pub(crate) const NAME_FIELD_LEN: usize = 256;
/// Bytes of the field that holds a host's name.
pub(crate) const HOST_FIELD_LEN: usize = 64;

/// A process, told apart from every other one on any host and after any reboot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessIdentity {
    /// Hash of the host's machine id and of the namespace in which `pid` counts.
    pub host: [u8; 16],
    /// The host's name, for messages; cut to 64 bytes.
    pub host_name: String,
    /// Process id.
    pub pid: u32,
    /// Hash of the boot and the time within it at which the process started: tells a reused `pid` apart.
    pub started: u64,
}

/// Who wrote a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// Site that the writer serves.
    pub site: Name,
    /// Run of the writer.
    pub writer: WriterId,
    /// Its process.
    pub process: ProcessIdentity,
}

/// `text` in a field of `N` bytes, filled up with zeros, and its length. Longer text is cut at a character.
pub(crate) fn put_text<const N: usize>(text: &str) -> ([u8; N], u16) {
    let len = text.floor_char_boundary(N);
    let mut field = [0; N];
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    (field, u16::try_from(len).expect("fields are shorter than 64 KiB"))
}

/// The text of a field, after a check that only zeros follow it.
pub(crate) fn take_text<'a, const N: usize>(what: &'static str, field: &'a [u8; N], len: u16) -> DecodeResult<&'a str> {
    let Some((text, rest)) = field.split_at_checked(usize::from(len)) else {
        return Err(DecodeError::value(what, format!("text of {len} bytes in a field of {N}")));
    };
    if rest.iter().any(|b| *b != 0) {
        return Err(DecodeError::value(what, "bytes after the end of a text"));
    }
    std::str::from_utf8(text).map_err(|e| DecodeError::value(what, format!("text: {e}")))
}

/// The name in a field.
pub(crate) fn take_name(what: &'static str, field: &[u8; NAME_FIELD_LEN], len: u16) -> DecodeResult<Name> {
    Name::new(take_text(what, field, len)?).map_err(|e| DecodeError::value(what, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_fits_its_field_and_long_text_is_cut_at_a_character() {
        let (field, len) = put_text::<8>("snö");
        assert_eq!(take_text("t", &field, len).unwrap(), "snö");
        let (field, len) = put_text::<8>("☃☃☃");
        assert_eq!(take_text("t", &field, len).unwrap(), "☃☃");
    }

    #[test]
    fn bad_lengths_and_leftovers_are_refused() {
        let (mut field, len) = put_text::<8>("abc");
        assert!(take_text("t", &field, 9).is_err());
        assert!(take_text("t", &field, 2).is_err());
        field[7] = 1;
        assert!(take_text("t", &field, len).is_err());
        assert!(take_text("t", &[0xff; 8], 8).is_err());
    }
}
