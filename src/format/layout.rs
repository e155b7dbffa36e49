//! Fixed-size parts: a struct whose fields have written offsets, with encoder, decoder and a table of the layout.
//!
//! `layout!` makes two kinds. A *header* begins with magic (8 bytes) and version (u16) and ends with xxh3-64 of all
//! bytes before; its decoder checks the three. A *row* is a bare record inside a part that is checksummed as a whole.
//! Offsets that overlap or leave the struct are a compile error. Bytes that no field names are reserved: written as
//! zero, and refused where they are not, so that a later version that gives them a meaning is never misread.

use crate::ids::{DiskId, DomainId, Generation, SegmentNo, Time, VmId, WriterId};

use super::checksum::Digest;
use super::intent::IntentId;
use super::log::{DatastoreId, LogId};

/// One field of a fixed layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Name in code and document.
    pub name: &'static str,
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

/// A fixed layout: its name, its length, and its fields by offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Name in code and document.
    pub name: &'static str,
    /// Bytes in all.
    pub len: usize,
    /// Fields in order.
    pub fields: Vec<Field>,
}

/// A value of fixed length on disk and wire.
pub(crate) trait Wire: Sized {
    const LEN: usize;
    /// Writes exactly `LEN` bytes.
    fn put(&self, to: &mut [u8]);
    /// Reads from exactly `LEN` bytes.
    fn take(from: &[u8]) -> Self;
}

macro_rules! wire_int {
    ($($t:ty),*) => {$(
        impl Wire for $t {
            const LEN: usize = size_of::<$t>();
            fn put(&self, to: &mut [u8]) {
                to.copy_from_slice(&self.to_le_bytes());
            }
            fn take(from: &[u8]) -> Self {
                let mut bytes = [0; size_of::<$t>()];
                bytes.copy_from_slice(from);
                <$t>::from_le_bytes(bytes)
            }
        }
    )*};
}
wire_int!(u8, u16, u32, u64);

impl<const N: usize> Wire for [u8; N] {
    const LEN: usize = N;
    fn put(&self, to: &mut [u8]) {
        to.copy_from_slice(self);
    }
    fn take(from: &[u8]) -> Self {
        let mut bytes = [0; N];
        bytes.copy_from_slice(from);
        bytes
    }
}

macro_rules! wire_via {
    ($($t:ty as $inner:ty: $to:expr, $from:expr;)*) => {$(
        impl Wire for $t {
            const LEN: usize = <$inner as Wire>::LEN;
            fn put(&self, to: &mut [u8]) {
                let convert: fn($t) -> $inner = $to;
                convert(*self).put(to);
            }
            fn take(from: &[u8]) -> Self {
                let convert: fn($inner) -> $t = $from;
                convert(<$inner as Wire>::take(from))
            }
        }
    )*};
}
wire_via! {
    DomainId as [u8; 16]: |v| v.bytes(), DomainId::from_bytes;
    VmId as [u8; 16]: |v| v.bytes(), VmId::from_bytes;
    DiskId as [u8; 16]: |v| v.bytes(), DiskId::from_bytes;
    WriterId as [u8; 16]: |v| v.bytes(), WriterId::from_bytes;
    LogId as [u8; 16]: |v| v.bytes(), LogId::from_bytes;
    IntentId as [u8; 16]: |v| v.bytes(), IntentId::from_bytes;
    DatastoreId as [u8; 16]: |v| v.bytes(), DatastoreId::from_bytes;
    Digest as [u8; 16]: |v| v.0, Digest;
    Generation as u64: |v| v.get(), Generation::new;
    SegmentNo as u64: |v| v.get(), SegmentNo::new;
    Time as u64: |v| v.millis(), Time::from_millis;
}

/// True where every field begins at or after the end of the one before and ends within `len`. Evaluated at compile time.
pub(crate) const fn fields_fit(fields: &[(usize, usize)], start: usize, len: usize) -> bool {
    let (mut at, mut i) = (start, 0);
    while i < fields.len() {
        let (offset, field_len) = fields[i];
        if offset < at || offset + field_len > len {
            return false;
        }
        at = offset + field_len;
        i += 1;
    }
    true
}

macro_rules! layout {
    (@common $(#[$doc:meta])* $vis:vis struct $name:ident $len:literal, $start:expr, $end:expr, {$(
        $(#[$fdoc:meta])* $offset:literal => $field:ident: $ty:ty,
    )*}) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        $vis struct $name {
            $($(#[$fdoc])* $vis $field: $ty,)*
        }

        impl $name {
            /// Bytes on disk and wire.
            $vis const LEN: usize = $len;

            const FIT: () = assert!(
                $crate::format::layout::fields_fit(
                    &[$(($offset, <$ty as $crate::format::layout::Wire>::LEN)),*], $start, $end
                ),
                "fields overlap or leave the struct"
            );

            fn put_fields(&self, to: &mut [u8; $len]) {
                const { Self::FIT };
                use $crate::format::layout::Wire;
                $(self.$field.put(&mut to[$offset..$offset + <$ty as Wire>::LEN]);)*
            }

            fn take_fields(what: &'static str, from: &[u8; $len]) -> $crate::format::DecodeResult<Self> {
                use $crate::format::layout::Wire;
                let value = Self { $($field: <$ty as Wire>::take(&from[$offset..$offset + <$ty as Wire>::LEN]),)* };
                let mut again = [0_u8; $len];
                value.put_fields(&mut again);
                match again[$start..$end] == from[$start..$end] {
                    true => Ok(value),
                    false => Err($crate::format::DecodeError::value(what, "reserved bytes are set: use a newer freshet")),
                }
            }
        }
    };
    (header $magic:expr; $(#[$doc:meta])* $vis:vis struct $name:ident: $len:literal {$(
        $(#[$fdoc:meta])* $offset:literal => $field:ident: $ty:ty,
    )*}) => {
        $crate::format::layout::layout!(@common $(#[$doc])* $vis struct $name $len, 10, $len - 8, {$(
            $(#[$fdoc])* $offset => $field: $ty,
        )*});

        impl $name {
            /// With magic, version and checksum.
            $vis fn encode(&self) -> [u8; $len] {
                let mut out = [0_u8; $len];
                out[..8].copy_from_slice(&$magic.bytes);
                out[8..10].copy_from_slice(&$magic.version.to_le_bytes());
                self.put_fields(&mut out);
                let sum = $crate::format::xxh3_64(&out[..$len - 8]);
                out[$len - 8..].copy_from_slice(&sum.to_le_bytes());
                out
            }

            /// From the first bytes of `bytes`, after checking length, magic, version, checksum and reserved bytes.
            $vis fn decode(bytes: &[u8]) -> $crate::format::DecodeResult<Self> {
                use $crate::format::DecodeError;
                $crate::format::decode_error::check_magic(&$magic, bytes)?;
                let Some(head) = bytes.first_chunk::<$len>() else {
                    return Err(DecodeError::Short { what: $magic.what, need: $len, have: bytes.len() as u64 });
                };
                let (covered, sum) = head.split_at($len - 8);
                if $crate::format::xxh3_64(covered).to_le_bytes() != sum {
                    return Err(DecodeError::Checksum { what: $magic.what });
                }
                Self::take_fields($magic.what, head)
            }

            /// Names and offsets, as documented.
            $vis fn layout() -> $crate::format::Layout {
                use $crate::format::{Field, Layout, layout::Wire};
                let mut fields = vec![
                    Field { name: "magic", offset: 0, len: 8 },
                    Field { name: "version", offset: 8, len: 2 },
                ];
                $(fields.push(Field { name: stringify!($field), offset: $offset, len: <$ty as Wire>::LEN });)*
                fields.push(Field { name: "checksum", offset: $len - 8, len: 8 });
                Layout { name: stringify!($name), len: $len, fields }
            }
        }
    };
    (row; $(#[$doc:meta])* $vis:vis struct $name:ident: $len:literal {$(
        $(#[$fdoc:meta])* $offset:literal => $field:ident: $ty:ty,
    )*}) => {
        $crate::format::layout::layout!(@common $(#[$doc])* $vis struct $name $len, 0, $len, {$(
            $(#[$fdoc])* $offset => $field: $ty,
        )*});

        impl $name {
            /// The bare record.
            $vis fn encode(&self) -> [u8; $len] {
                let mut out = [0_u8; $len];
                self.put_fields(&mut out);
                out
            }

            /// The bare record; `bytes` was verified as a part of something larger. Fails where reserved bytes are set.
            $vis fn decode(bytes: &[u8; $len]) -> $crate::format::DecodeResult<Self> {
                Self::take_fields(stringify!($name), bytes)
            }

            /// Names and offsets, as documented.
            $vis fn layout() -> $crate::format::Layout {
                use $crate::format::{Field, Layout, layout::Wire};
                let fields = vec![
                    $(Field { name: stringify!($field), offset: $offset, len: <$ty as Wire>::LEN },)*
                ];
                Layout { name: stringify!($name), len: $len, fields }
            }
        }
    };
}
pub(crate) use layout;
