//! Who wrote a record: the site, the run of the writer, and the process, so that an operator can be told whom to look
//! for and another process on the same host can see whether the writer still lives.
//!
//! Owns the text fields of fixed length that ownership records and the status share. Never asks the system anything.

use crate::ids::{Name, WriterId};

use super::decode_error::{DecodeError, DecodeResult};

/// Bytes of the field that holds a name.
pub(super) const NAME_FIELD_LEN: usize = 256;
/// Bytes of the field that holds a host's name.
const HOST_FIELD_LEN: usize = 64;

/// A field of `N` bytes that a text stands in, and the text's length.
type Text<const N: usize> = ([u8; N], u16);

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

impl Author {
    /// The two texts as fields of a record, each with its length: site, and host.
    pub(crate) fn texts(&self) -> (Text<NAME_FIELD_LEN>, Text<HOST_FIELD_LEN>) {
        (put_text(self.site.as_str()), put_text(&self.process.host_name))
    }

    /// From the fields of a record: the two texts, each with its length, the run, and the process by host, number and
    /// start.
    pub(crate) fn from_fields(
        what: &'static str,
        (site, site_len): (&[u8; NAME_FIELD_LEN], u16),
        (host_name, host_name_len): (&[u8; HOST_FIELD_LEN], u16),
        writer: WriterId,
        (host, pid, started): ([u8; 16], u32, u64),
    ) -> DecodeResult<Author> {
        let host_name = take_text(what, host_name, host_name_len)?.to_owned();
        let process = ProcessIdentity { host, host_name, pid, started };
        Ok(Author { site: take_name(what, site, site_len)?, writer, process })
    }
}

/// `text` in a field of `N` bytes, filled up with zeros, and its length. Longer text is cut at a character.
pub(super) fn put_text<const N: usize>(text: &str) -> Text<N> {
    let len = text.floor_char_boundary(N);
    let mut field = [0; N];
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    (field, u16::try_from(len).expect("fields are shorter than 64 KiB"))
}

/// The text of a field, after a check that only zeros follow it.
fn take_text<'a, const N: usize>(what: &'static str, field: &'a [u8; N], len: u16) -> DecodeResult<&'a str> {
    let Some((text, rest)) = field.split_at_checked(usize::from(len)) else {
        return Err(DecodeError::value(what, format!("text of {len} bytes in a field of {N}")));
    };
    if rest.iter().any(|b| *b != 0) {
        return Err(DecodeError::value(what, "bytes after the end of a text"));
    }
    std::str::from_utf8(text).map_err(|e| DecodeError::value(what, format!("text: {e}")))
}

/// The name in a field.
pub(super) fn take_name(what: &'static str, field: &[u8; NAME_FIELD_LEN], len: u16) -> DecodeResult<Name> {
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
