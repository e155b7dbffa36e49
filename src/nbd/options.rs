//! The data of options, read out of bytes that a client sent. No I/O; every length is checked before it is used.
//!
//! [`Fields`] is the reader; one function for each option that carries data. What is wrong is told in words for the
//! client's user.

use super::proto::MAX_STRING;

/// Longest data of an option in bytes that is read at all: more than the longest name and some hundred queries.
pub(super) const MAX_OPTION: u32 = 64 << 10;

/// Longest data that is skipped, so that the client can be told; past that it is shown the door.
pub(super) const MAX_SKIPPED: u32 = 32 << 20;

/// What is wrong with an option.
pub(super) type Wrong = &'static str;

/// The data of `INFO` and `GO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InfoRequest<'a> {
    pub(super) name: &'a str,
    /// Kinds of information, big-endian 16-bit numbers.
    wanted: &'a [u8],
}

impl InfoRequest<'_> {
    /// Whether this kind of information is asked for.
    pub(super) fn wants(&self, kind: u16) -> bool {
        self.wanted.chunks_exact(2).any(|wanted| wanted == kind.to_be_bytes())
    }
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MetaRequest<'a> {
    pub(super) name: &'a str,
    pub(super) queries: Vec<&'a str>,
}

/// Reads the data of `EXPORT_NAME`.
pub(super) fn export_name(data: &[u8]) -> Result<&str, Wrong> {
    string(data)
}

/// Reads the data of `INFO` and `GO`.
pub(super) fn info_request(data: &[u8]) -> Result<InfoRequest<'_>, Wrong> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let wanted = fields.take(usize::from(count) * 2)?;
    fields.end()?;
    Ok(InfoRequest { name, wanted })
}

/// Reads the data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
pub(super) fn meta_request(data: &[u8]) -> Result<MetaRequest<'_>, Wrong> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        // Ends with the data at the latest: each takes four bytes.
        let query = fields.string()?;
        if !query.contains(':') {
            return Err("a query has no colon behind its namespace");
        }
        queries.push(query);
    }
    fields.end()?;
    Ok(MetaRequest { name, queries })
}

/// Bytes not read yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Wrong> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or("a length goes past the end of the option")?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, Wrong> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, Wrong> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn string(&mut self) -> Result<&'a str, Wrong> {
        let len = self.u32()?;
        string(self.take(len as usize)?)
    }

    fn end(self) -> Result<(), Wrong> {
        if self.0.is_empty() { Ok(()) } else { Err("the option has more data than it says") }
    }
}

/// A string as the protocol has it (section "Conventions").
fn string(bytes: &[u8]) -> Result<&str, Wrong> {
    if bytes.len() > MAX_STRING {
        return Err("a string is longer than 4096 bytes");
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8")?;
    if text.contains('\0') { Err("a string has a zero byte in it") } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counted(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u32).to_be_bytes(), text].concat()
    }

    #[test]
    fn what_clients_send_is_read() {
        let data = [counted(b"disk").as_slice(), &[0, 2, 0, 3, 0x12, 0x34]].concat();
        let request = info_request(&data).unwrap();
        assert_eq!(request.name, "disk");
        assert!(request.wants(3) && request.wants(0x1234) && !request.wants(0) && !request.wants(0x0312));
        let data = [counted(b""), vec![0, 0, 0, 2], counted(b"base:"), counted(b"x:y:z")].concat();
        assert_eq!(meta_request(&data).unwrap(), MetaRequest { name: "", queries: vec!["base:", "x:y:z"] });
        assert_eq!(export_name(b"disk").unwrap(), "disk");
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let long = counted(&[b'x'; MAX_STRING + 1]);
        for data in [
            &b""[..],
            &[0, 0, 0],
            &counted(b"disk"),
            &[counted(b"disk").as_slice(), &[0, 1]].concat(),
            &[counted(b"disk").as_slice(), &[0, 0, 0]].concat(),
            &[0, 0, 0, 9, b'd', 0, 0],
            &[0xff, 0xff, 0xff, 0xff, 0, 0],
            &[counted(b"a\0b").as_slice(), &[0, 0]].concat(),
            &[counted(b"\xff").as_slice(), &[0, 0]].concat(),
            &[long.as_slice(), &[0, 0]].concat(),
        ] {
            assert!(info_request(data).is_err(), "{data:?}");
        }
        for data in [
            counted(b"disk"),
            [counted(b"disk"), vec![0, 0, 0, 1]].concat(),
            [counted(b"disk"), vec![0xff; 4], counted(b"base:")].concat(),
            [counted(b"disk"), vec![0, 0, 0, 1], counted(b"nocolon")].concat(),
            [counted(b"disk"), vec![0, 0, 0, 1], counted(b"base:"), vec![0]].concat(),
        ] {
            assert!(meta_request(&data).is_err(), "{data:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = export_name(&data);
            let _ = info_request(&data);
            if let Ok(request) = meta_request(&data) {
                prop_assert!(request.queries.len() <= data.len() / 4);
            }
        }
    }
}
