//! Object keys as file names and back.
//!
//! A key becomes one path below its bucket: `/` is written `+`, everything outside `[A-Za-z0-9._-]` is `%XX`, and
//! `@` with the version in hexadecimal follows. The escaped key is cut into pieces of at most [`PIECE`] bytes, each
//! but the last a directory marked by a trailing `~`, because a file name holds 255 bytes and a key 1,024. Neither
//! `@` nor `~` nor `+` comes out of the escaping, so the mapping is one to one and no key is another's directory.

use std::path::PathBuf;

/// Longest piece of an escaped key in one path component, so that piece, `@` and version fit a file name.
const PIECE: usize = 200;

/// Path of one version of an object, relative to the bucket's directory.
pub(super) fn path(key: &str, version: u64) -> PathBuf {
    let escaped = escape(key);
    let mut rest = escaped.as_str();
    let mut path = PathBuf::new();
    while rest.len() > PIECE {
        // The escaped form is ASCII, so any index is a character boundary.
        let (piece, tail) = rest.split_at(PIECE);
        path.push(format!("{piece}~"));
        rest = tail;
    }
    path.push(format!("{rest}@{version:016x}"));
    path
}

/// The escaped piece that a directory name stands for; `None` if it is not one of ours.
pub(super) fn directory_piece(name: &str) -> Option<&str> {
    name.strip_suffix('~')
}

/// Key and version of a file whose directories contributed `prefix` (escaped); `None` if it is not one of ours.
pub(super) fn parse(prefix: &str, name: &str) -> Option<(String, u64)> {
    let (piece, version) = name.split_once('@')?;
    let version = u64::from_str_radix(version, 16).ok()?;
    let key = unescape(&format!("{prefix}{piece}"))?;
    Some((key, version))
}

fn escape(key: &str) -> String {
    let mut out = String::with_capacity(key.len() + 16);
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' => out.push(byte as char),
            b'/' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn unescape(escaped: &str) -> Option<String> {
    let mut out = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b'+' => b'/',
            other => other,
        });
    }
    String::from_utf8(out).ok()
}
