//! Identities and numbers as types, so that a generation cannot be passed where a segment number is meant.
//!
//! Nothing here does I/O. Names are validated once, at construction, and stay valid.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, ErrorKind, Result};

/// An identity of sixteen bytes that reads as a UUID; `drawn` ones can be made at random.
macro_rules! uuid_id {
    (drawn $(#[$doc:meta])* $name:ident) => {
        $crate::ids::uuid_id!($(#[$doc])* $name);

        impl $name {
            /// A fresh random identity.
            pub fn random() -> Self {
                Self(*uuid::Uuid::new_v4().as_bytes())
            }
        }
    };
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name([u8; 16]);

        impl $name {
            /// From its sixteen bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its sixteen bytes.
            pub const fn bytes(self) -> [u8; 16] {
                self.0
            }

            /// From the text form.
            pub fn parse(text: &str) -> Option<Self> {
                uuid::Uuid::parse_str(text).ok().map(|u| Self(*u.as_bytes()))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(&uuid::Uuid::from_bytes(self.0), f)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(from)?;
                Self::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no UUID")))
            }
        }
    };
}
pub(crate) use uuid_id;

uuid_id!(drawn
    /// Identity of a protected domain, drawn when its first claim is written and repeated in every header.
    DomainId
);
uuid_id!(drawn
    /// Identity of a VM within its domain.
    VmId
);
uuid_id!(drawn
    /// Identity of a virtual disk.
    DiskId
);
uuid_id!(drawn
    /// Identity of one run of one writer; never reused.
    WriterId
);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The lowest value: "nothing yet".
            pub const ZERO: Self = Self(0);

            /// From the bare number.
            pub const fn new(n: u64) -> Self {
                Self(n)
            }

            /// The bare number.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The number after this one.
            pub const fn next(self) -> Self {
                Self(self.0.saturating_add(1))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

number!(
    /// Number that is bumped each time a writer starts or takes over; the first is 1.
    Generation,
    "g"
);
number!(
    /// Number of a segment within its domain, without gaps across generations; the first is 1. A point is named by the
    /// number of the segment that ends at it.
    SegmentNo,
    "s"
);

/// One segment: its number and the generation that wrote it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentRef {
    /// The generation whose writer made the object.
    pub generation: Generation,
    /// Its number in the domain.
    pub segment: SegmentNo,
}

impl SegmentRef {
    /// Pairs the two numbers.
    pub const fn new(generation: Generation, segment: SegmentNo) -> Self {
        Self { generation, segment }
    }

    /// Whether it can be part of a chain that ends at `cut`: neither its number nor its generation is higher.
    pub fn is_within(self, cut: SegmentRef) -> bool {
        self.segment <= cut.segment && self.generation <= cut.generation
    }
}

impl fmt::Display for SegmentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.generation, self.segment)
    }
}

impl fmt::Debug for SegmentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Wall time in milliseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(u64);

impl Time {
    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// Milliseconds from `earlier` to this time; zero if it is not earlier.
    pub const fn millis_since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Time {
    /// RFC 3339 in UTC, with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_millisecond(millis) {
            Ok(t) => write!(f, "{t:.3}"),
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A name given by the operator: of a domain, a VM, a disk or a site.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// Longest name in bytes.
pub const MAX_NAME_LEN: usize = 255;
/// Longest escaped name in bytes: what file systems take as one path component.
pub const MAX_KEY_LEN: usize = 255;

impl Name {
    /// Validates `text`: 1 to 255 bytes, no control characters, and its escaped form fits one path component.
    pub fn new(text: &str) -> Result<Name> {
        let bad = |why: String| Error::new(ErrorKind::Invalid, format!("name {text:?}: {why}"));
        if text.is_empty() || text.len() > MAX_NAME_LEN {
            return Err(bad(format!("must be 1 to {MAX_NAME_LEN} bytes long, is {}", text.len())));
        }
        if text.chars().any(char::is_control) {
            return Err(bad("must not contain control characters".into()));
        }
        let name = Name(text.to_owned());
        let key_len = name.key().len();
        if key_len > MAX_KEY_LEN {
            return Err(bad(format!("its escaped form has {key_len} bytes, at most {MAX_KEY_LEN} fit a file name")));
        }
        Ok(name)
    }

    /// As the operator wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As one part of an object key or one directory: all bytes but `A-Za-z0-9._-`, and a leading dot, as `%XX`.
    pub fn key(&self) -> String {
        let mut out = String::with_capacity(self.0.len());
        for (i, b) in self.0.bytes().enumerate() {
            let plain = b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || (b == b'.' && i > 0);
            match plain {
                true => out.push(char::from(b)),
                false => out.push_str(&format!("%{b:02X}")),
            }
        }
        out
    }

    /// Back from the escaped form; `None` where it is not one that [`Name::key`] makes.
    pub fn from_key(key: &str) -> Option<Name> {
        let mut bytes = Vec::with_capacity(key.len());
        let mut rest = key.as_bytes();
        while let Some((&b, tail)) = rest.split_first() {
            rest = tail;
            if b != b'%' {
                bytes.push(b);
                continue;
            }
            let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = rest.get(2..)?;
        }
        let name = Name::new(std::str::from_utf8(&bytes).ok()?).ok()?;
        (name.key() == key).then_some(name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Name, D::Error> {
        Name::new(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_escape_and_never_leave_their_directory() {
        for text in ["a", "web server", "..", ".", "a/b", "ünïcode", "50%", ".hidden", "x.y", "a\\b", "☃"] {
            let name = Name::new(text).unwrap();
            let key = name.key();
            assert!(!key.contains('/') && !key.starts_with('.'), "{key}");
            assert_eq!(Name::from_key(&key), Some(name), "{key}");
        }
        assert_eq!(Name::new("web server").unwrap().key(), "web%20server");
    }

    #[test]
    fn bad_names_are_refused() {
        for text in ["", "a\nb", "\0", &"x".repeat(256), &"☃".repeat(80)] {
            assert!(Name::new(text).is_err(), "{text:?}");
        }
        for key in ["%2", "%zz", "%61", "a%2f", ".x", ""] {
            assert!(Name::from_key(key).is_none(), "{key}");
        }
    }
}
