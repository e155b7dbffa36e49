//! Frames: up to 1 MiB of one disk, compressed and checksummed by itself; the unit of fetch, verify and decode.
//!
//! Invariants: a frame never crosses a 1 MiB boundary of its disk and begins at a multiple of 512 bytes. Raw bytes leave
//! [`FrameDecoder`] only after header, identity, lengths, stored checksum and raw checksum have all been checked.

use crate::ids::{DiskId, DomainId, Generation, SegmentNo, SegmentRef};

use super::checksum::{Digest, xxh3_64, xxh3_128};
use super::codec::Codec;
use super::decode_error::{DecodeError, DecodeResult};
use super::layout::layout;
use super::magic;

/// Most raw bytes of one frame, and the boundary that it does not cross.
pub const MAX_FRAME_LEN: u32 = 1 << 20;
/// Bytes of a frame's header; the payload follows it at once.
pub const FRAME_HEADER_LEN: usize = FrameHeader::LEN;

layout! { header magic::FRAME;
    /// What stands in front of each payload.
    pub struct FrameHeader: 128 {
        /// See [`Codec::number`].
        10 => codec: u8,
        /// Bytes after decoding, 1 to [`MAX_FRAME_LEN`].
        12 => raw_len: u32,
        /// Domain that the frame belongs to.
        16 => domain: DomainId,
        /// Generation of the segment that holds it.
        32 => generation: Generation,
        /// Number of the segment that holds it.
        40 => segment: SegmentNo,
        /// Disk that it is part of.
        48 => disk: DiskId,
        /// First byte of the disk that it covers.
        64 => offset: u64,
        /// Bytes of payload.
        72 => stored_len: u32,
        /// Key that encrypts the payload; 0 is none. Reserved.
        76 => key_id: u32,
        /// Nonce of the encryption; zero. Reserved.
        80 => nonce: [u8; 12],
        /// xxh3-128 of the raw bytes.
        96 => raw_digest: Digest,
        /// xxh3-64 of the payload.
        112 => stored_sum: u64,
    }
}

/// Which frame is meant: what its header must repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameId {
    /// Domain.
    pub domain: DomainId,
    /// Segment that holds it.
    pub segment: SegmentRef,
    /// Disk.
    pub disk: DiskId,
    /// First byte of the disk that it covers.
    pub offset: u64,
}

/// What an index or map page says of a frame's content; its header must agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameBody {
    /// Codec of the payload.
    pub codec: Codec,
    /// Bytes after decoding.
    pub raw_len: u32,
    /// Bytes of payload.
    pub stored_len: u32,
    /// xxh3-64 of the payload.
    pub stored_sum: u64,
    /// xxh3-128 of the raw bytes.
    pub raw_digest: Digest,
}

impl FrameBody {
    /// Header plus payload.
    pub fn len_with_header(&self) -> u64 {
        FRAME_HEADER_LEN as u64 + u64::from(self.stored_len)
    }
}

impl FrameHeader {
    /// The header of frame `id` with this content.
    pub fn new(id: &FrameId, body: &FrameBody) -> FrameHeader {
        FrameHeader {
            codec: body.codec.number(),
            raw_len: body.raw_len,
            domain: id.domain,
            generation: id.segment.generation,
            segment: id.segment.segment,
            disk: id.disk,
            offset: id.offset,
            stored_len: body.stored_len,
            key_id: 0,
            nonce: [0; 12],
            raw_digest: body.raw_digest,
            stored_sum: body.stored_sum,
        }
    }

    /// Which frame this is.
    pub fn id(&self) -> FrameId {
        let segment = SegmentRef::new(self.generation, self.segment);
        FrameId { domain: self.domain, segment, disk: self.disk, offset: self.offset }
    }

    /// Checks that this is frame `id` with the content that index or map page tell.
    pub(crate) fn expect(&self, id: &FrameId, body: &FrameBody) -> DecodeResult<()> {
        let found = self.id();
        if found != *id {
            return Err(DecodeError::identity("frame header", show_id(&found), show_id(id)));
        }
        match self.body()? == *body {
            true => Ok(()),
            false => Err(DecodeError::value("frame header", "disagrees with the index that names it")),
        }
    }

    /// Its content, after a check that a writer can have made it.
    pub fn body(&self) -> DecodeResult<FrameBody> {
        let body = FrameBody {
            codec: Codec::from_number(self.codec)?,
            raw_len: self.raw_len,
            stored_len: self.stored_len,
            stored_sum: self.stored_sum,
            raw_digest: self.raw_digest,
        };
        check_frame_shape("frame header", self.offset, &body)?;
        if self.key_id != 0 || self.nonce != [0; 12] {
            return Err(DecodeError::value("frame header", "encrypted: use a newer freshet"));
        }
        Ok(body)
    }
}

/// Checks what every frame's place and lengths obey, wherever they stand.
pub(crate) fn check_frame_shape(what: &'static str, offset: u64, body: &FrameBody) -> DecodeResult<()> {
    let max = u64::from(MAX_FRAME_LEN);
    let raw_len = u64::from(body.raw_len);
    let fits = raw_len > 0 && offset % max + raw_len <= max && offset.checked_add(raw_len).is_some();
    if !fits || !offset.is_multiple_of(512) {
        return Err(DecodeError::value(what, format!("frame of {raw_len} bytes at {offset}")));
    }
    let stored_fits = match body.codec {
        Codec::Plain => body.stored_len == body.raw_len,
        Codec::Zstd => body.stored_len > 0 && body.stored_len < body.raw_len,
    };
    if !stored_fits {
        let why = format!("{} stored bytes for {raw_len} raw ones ({:?})", body.stored_len, body.codec);
        return Err(DecodeError::value(what, why));
    }
    Ok(())
}

/// A frame whose header and payload are verified but not decoded: what landing in a log needs.
#[derive(Debug, Clone, Copy)]
pub struct VerifiedFrame<'a> {
    body: FrameBody,
    payload: &'a [u8],
}

impl<'a> VerifiedFrame<'a> {
    /// Checks `stored` (header and payload, exactly) against what was asked for.
    pub fn open(stored: &'a [u8], id: &FrameId, body: &FrameBody) -> DecodeResult<VerifiedFrame<'a>> {
        FrameHeader::decode(stored)?.expect(id, body)?;
        let payload = &stored[FRAME_HEADER_LEN..];
        if payload.len() as u64 != u64::from(body.stored_len) {
            let need = body.len_with_header();
            return Err(DecodeError::Short { what: "frame payload", need, have: stored.len() as u64 });
        }
        if xxh3_64(payload) != body.stored_sum {
            return Err(DecodeError::Checksum { what: "frame payload" });
        }
        Ok(VerifiedFrame { body: *body, payload })
    }

    /// What the index says of it.
    pub fn body(&self) -> &FrameBody {
        &self.body
    }
}

fn show_id(id: &FrameId) -> String {
    format!("domain {} {} disk {} offset {}", id.domain, id.segment, id.disk, id.offset)
}

/// Decodes frames; keeps the decompression context between them. One per thread.
pub struct FrameDecoder {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl FrameDecoder {
    /// A decoder; fails only where zstd cannot allocate its context.
    pub fn new() -> std::io::Result<FrameDecoder> {
        Ok(FrameDecoder { zstd: zstd::bulk::Decompressor::new()? })
    }

    /// Writes the raw bytes into `out`, which has exactly `raw_len` bytes, and verifies them. On an error the content of
    /// `out` is undefined and must not be used.
    pub fn decode_into(&mut self, frame: &VerifiedFrame<'_>, out: &mut [u8]) -> DecodeResult<()> {
        let raw_len = frame.body.raw_len as usize;
        if out.len() != raw_len {
            return Err(DecodeError::value("frame", format!("buffer of {} bytes for {raw_len}", out.len())));
        }
        match frame.body.codec {
            Codec::Plain => out.copy_from_slice(frame.payload),
            Codec::Zstd => {
                let written = self.zstd.decompress_to_buffer(frame.payload, out);
                let written = written.map_err(|e| DecodeError::value("frame payload", format!("zstd: {e}")))?;
                if written != raw_len {
                    let why = format!("zstd: {written} bytes instead of {raw_len}");
                    return Err(DecodeError::value("frame payload", why));
                }
            }
        }
        match xxh3_128(out) == frame.body.raw_digest {
            true => Ok(()),
            false => Err(DecodeError::Checksum { what: "frame content" }),
        }
    }
}

/// Compresses raw bytes into payloads; keeps the compression context between them. One per thread.
pub struct FrameEncoder {
    zstd: zstd::bulk::Compressor<'static>,
}

impl FrameEncoder {
    /// An encoder at a zstd level (1 is the default of the program); fails where the level is unknown.
    pub fn new(level: i32) -> std::io::Result<FrameEncoder> {
        Ok(FrameEncoder { zstd: zstd::bulk::Compressor::new(level)? })
    }

    /// Appends the payload for `raw` to `out`; stores the raw bytes where compressing does not make them smaller.
    /// `digest` is their xxh3-128 where the caller has it already.
    pub fn encode(&mut self, raw: &[u8], digest: Option<Digest>, out: &mut Vec<u8>) -> std::io::Result<FrameBody> {
        let raw_len = u32::try_from(raw.len()).unwrap_or(u32::MAX);
        if raw_len == 0 || raw_len > MAX_FRAME_LEN {
            let why = format!("frame of {} bytes", raw.len());
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, why));
        }
        let at = out.len();
        // Reserved and not filled: zeros that are overwritten at once cost as much as a checksum. Behind a cursor zstd
        // writes into the spare room of the vector, and the vector then ends where the payload does.
        out.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        let mut end = std::io::Cursor::new(&mut *out);
        end.set_position(at as u64);
        let written = self.zstd.compress_to_buffer(raw, &mut end)?;
        let codec = if written < raw.len() { Codec::Zstd } else { Codec::Plain };
        if codec == Codec::Plain {
            out.truncate(at);
            out.extend_from_slice(raw);
        }
        let payload = &out[at..];
        Ok(FrameBody {
            codec,
            raw_len,
            stored_len: u32::try_from(payload.len()).expect("not longer than the raw bytes"),
            stored_sum: xxh3_64(payload),
            raw_digest: digest.unwrap_or_else(|| xxh3_128(raw)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> FrameId {
        FrameId {
            domain: DomainId::from_bytes([1; 16]),
            segment: SegmentRef::new(Generation::new(3), SegmentNo::new(9)),
            disk: DiskId::from_bytes([2; 16]),
            offset: 4096,
        }
    }

    fn frame(raw: &[u8]) -> (Vec<u8>, FrameBody) {
        let mut payload = Vec::new();
        let body = FrameEncoder::new(1).unwrap().encode(raw, None, &mut payload).unwrap();
        let mut stored = FrameHeader::new(&id(), &body).encode().to_vec();
        stored.extend_from_slice(&payload);
        (stored, body)
    }

    #[test]
    fn frames_round_trip_in_both_codecs() {
        let noise: Vec<u8> = (0..9000_u64).flat_map(|i| xxh3_64(&i.to_le_bytes()).to_le_bytes()).collect();
        for (raw, codec) in [(vec![7; 5000], Codec::Zstd), (noise, Codec::Plain)] {
            let (stored, body) = frame(&raw);
            assert_eq!(body.codec, codec);
            let verified = VerifiedFrame::open(&stored, &id(), &body).unwrap();
            let mut out = vec![0; raw.len()];
            FrameDecoder::new().unwrap().decode_into(&verified, &mut out).unwrap();
            assert_eq!(out, raw);
        }
    }

    #[test]
    fn payloads_follow_what_is_there_and_need_no_more_memory_than_their_bound() {
        let mut encoder = FrameEncoder::new(1).unwrap();
        let noise: Vec<u8> = (0..9000_u64).flat_map(|i| xxh3_64(&i.to_le_bytes()).to_le_bytes()).collect();
        let raws = [vec![7; 5000], noise, vec![9; 1], b"some words, some words, some words".repeat(100)];
        let bound: usize = raws.iter().map(|raw| zstd::zstd_safe::compress_bound(raw.len())).sum();
        let mut out = Vec::with_capacity(3 + bound);
        out.extend_from_slice(b"abc");
        let before = out.as_ptr();
        let mut at = out.len();
        for raw in &raws {
            let body = encoder.encode(raw, None, &mut out).unwrap();
            assert_eq!(out.len(), at + body.stored_len as usize);
            let mut stored = FrameHeader::new(&id(), &body).encode().to_vec();
            stored.extend_from_slice(&out[at..]);
            let mut back = vec![0; raw.len()];
            let verified = VerifiedFrame::open(&stored, &id(), &body).unwrap();
            FrameDecoder::new().unwrap().decode_into(&verified, &mut back).unwrap();
            assert!(back == *raw);
            at = out.len();
        }
        assert_eq!((&out[..3], out.as_ptr()), (&b"abc"[..], before), "moved, though there was room");
    }

    #[test]
    fn any_flipped_bit_and_any_other_identity_is_noticed() {
        let (stored, body) = frame(&[7; 3000]);
        for bit in 0..stored.len() * 8 {
            let mut bad = stored.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(VerifiedFrame::open(&bad, &id(), &body).is_err(), "bit {bit}");
        }
        let other = FrameId { offset: 8192, ..id() };
        let error = VerifiedFrame::open(&stored, &other, &body).unwrap_err();
        assert!(matches!(error, DecodeError::Identity { .. }), "{error}");
        let short = VerifiedFrame::open(&stored[..stored.len() - 1], &id(), &body).unwrap_err();
        assert!(matches!(short, DecodeError::Short { .. }), "{short}");
    }

    #[test]
    fn raw_bytes_that_do_not_match_their_digest_are_not_handed_out() {
        let (mut stored, body) = frame(&[7; 3000]);
        let wrong = FrameBody { raw_digest: Digest([0; 16]), ..body };
        stored[..FRAME_HEADER_LEN].copy_from_slice(&FrameHeader::new(&id(), &wrong).encode());
        let verified = VerifiedFrame::open(&stored, &id(), &wrong).unwrap();
        let error = FrameDecoder::new().unwrap().decode_into(&verified, &mut vec![0; 3000]).unwrap_err();
        assert_eq!(error, DecodeError::Checksum { what: "frame content" });
    }
}
