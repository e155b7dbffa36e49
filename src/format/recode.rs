//! Whatever stands there, decoded in full and encoded again: one door for `freshet inspect`, property tests and fuzzing.
//!
//! Since one content has one encoding, the result equals the input for everything but the bitmaps of hydration maps.

use super::decode_error::{DecodeError, DecodeResult};
use super::frame::{FRAME_HEADER_LEN, FrameDecoder, FrameHeader, VerifiedFrame};
use super::hydration::HydrationMap;
use super::intent::{self, IntentPage};
use super::log::{LogRecord, LogSuperblock};
use super::manifest::Manifest;
use super::map_page::MapPage;
use super::owner::OwnerRecord;
use super::protection::ProtectionRecord;
use super::recovery_settings::RecoverySettings;
use super::segment::{SEGMENT_HEADER_LEN, Segment, SegmentFooter};
use super::status::Status;
use super::watermark::Watermark;
use super::{IndexEntry, magic};

/// The format whose magic `bytes` begin with.
pub fn recognise(bytes: &[u8]) -> Option<magic::Magic> {
    magic::ALL.iter().copied().find(|m| bytes.starts_with(&m.bytes))
}

/// Decodes `bytes` by their magic, every frame and its content included, and encodes what was found.
///
/// # Errors
/// What the decoder says; [`DecodeError::Value`] for bytes of no format, and for an index, which has no meaning alone.
pub fn recode(bytes: &[u8]) -> DecodeResult<Vec<u8>> {
    match recognise(bytes).ok_or_else(|| DecodeError::value("object", "begins with no magic of ours"))? {
        magic::SEGMENT => segment(bytes),
        magic::FRAME => frame(bytes),
        magic::FOOTER => Ok(SegmentFooter::decode(bytes)?.encode().to_vec()),
        magic::MAP_PAGE => MapPage::decode_any(bytes)?.encode(),
        magic::MANIFEST => Manifest::decode_any(bytes)?.encode(),
        magic::OWNER => Ok(OwnerRecord::decode_any(bytes)?.encode().to_vec()),
        magic::STATUS => Ok(Status::decode(bytes)?.encode().to_vec()),
        magic::LOG_SUPERBLOCK => {
            let slot = LogSuperblock::decode(bytes)?.sequence % 2;
            Ok(LogSuperblock::open(bytes, slot)?.encode().to_vec())
        }
        magic::LOG_RECORD => Ok(LogRecord::open(bytes)?.encode().to_vec()),
        magic::HYDRATION => Ok(HydrationMap::decode(bytes)?.encode()),
        magic::WATERMARK => Ok(Watermark::decode(bytes)?.encode()),
        magic::INTENT => intent::recode(bytes),
        magic::INTENT_PAGE => Ok(IntentPage::decode(bytes)?.encode().to_vec()),
        magic::RECOVERY_SETTINGS => RecoverySettings::decode_any(bytes)?.encode(),
        magic::PROTECTION => Ok(ProtectionRecord::decode(bytes)?.encode()),
        other => Err(DecodeError::value(other.what, "has no meaning outside its segment")),
    }
}

fn segment(bytes: &[u8]) -> DecodeResult<Vec<u8>> {
    let segment = Segment::open_any(bytes)?;
    let mut decoder = FrameDecoder::new().map_err(|e| DecodeError::value("segment", e.to_string()))?;
    let mut raw = Vec::new();
    let mut check = |entry: &IndexEntry| -> DecodeResult<()> {
        let Some(frame) = segment.frame(entry)? else { return Ok(()) };
        raw.resize(frame.body().raw_len as usize, 0);
        decoder.decode_into(&frame, &mut raw)
    };
    segment.index.entries.iter().try_for_each(&mut check)?;
    let header = &segment.header;
    let footer = SegmentFooter {
        index_len: header.index_len,
        generation: header.generation,
        segment: header.segment,
        total_len: header.total_len,
        index_pos: header.index_pos,
    };
    let mut out = header.encode().to_vec();
    out.extend_from_slice(&bytes[SEGMENT_HEADER_LEN..header.index_pos as usize]);
    out.extend_from_slice(&segment.index.encode());
    out.extend_from_slice(&footer.encode());
    Ok(out)
}

fn frame(bytes: &[u8]) -> DecodeResult<Vec<u8>> {
    let header = FrameHeader::decode(bytes)?;
    let (id, body) = (header.id(), header.body()?);
    let frame = VerifiedFrame::open(bytes, &id, &body)?;
    let mut decoder = FrameDecoder::new().map_err(|e| DecodeError::value("frame", e.to_string()))?;
    decoder.decode_into(&frame, &mut vec![0; body.raw_len as usize])?;
    let mut out = FrameHeader::new(&id, &body).encode().to_vec();
    out.extend_from_slice(&bytes[FRAME_HEADER_LEN..]);
    Ok(out)
}
