//! Segments, frame by frame, and frames on their own.

use serde_json::json;

use super::report::InspectReport;
use super::source::Source;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    DecodeResult, FRAME_HEADER_LEN, FrameDecoder, FrameHeader, Index, IndexEntry, MAX_FRAME_LEN, SEGMENT_FOOTER_LEN,
    SEGMENT_HEADER_LEN, SegmentFooter, SegmentHeader, VerifiedFrame,
};
use crate::store::keys::ObjectKey;

/// Reports on a whole segment.
pub(super) async fn segment(from: &Source, report: &mut InspectReport) -> Result<()> {
    let head = from.read(0..from.len().min(SEGMENT_HEADER_LEN as u64)).await?;
    let header = match SegmentHeader::decode(&head).and_then(|h| h.check().map(|()| h)) {
        Ok(header) => header,
        Err(e) => {
            report.problem("header, bytes 0 to 255", e);
            return Ok(());
        }
    };
    header_facts(&header, report);
    if let Some(ObjectKey::Segment(id)) = from.expected()
        && id != header.id()
    {
        report.problem("header", format!("misplaced: it is {}, its key says {id}", header.id()));
    }
    if from.len() != header.total_len {
        report.problem("length", format!("{} bytes, its header says {}", from.len(), header.total_len));
    }
    let index_end = header.index_pos + u64::from(header.index_len);
    if from.len() < index_end {
        report.problem("index", "cut off");
        return Ok(());
    }
    let index = Index::decode(&from.read(header.index_pos..index_end).await?, &header);
    footer(from, &header, index_end, report).await?;
    match index {
        Ok(index) => entries(from, &index, report).await,
        Err(e) => {
            report.problem(format!("index, bytes {} to {}", header.index_pos, index_end - 1), e);
            Ok(())
        }
    }
}

fn header_facts(header: &SegmentHeader, report: &mut InspectReport) {
    report.show("domain", header.domain);
    report.show("segment", header.id());
    report.show("parent", header.parent());
    report.show("parent_digest", header.parent_digest);
    report.show("index_digest", header.index_digest);
    report.show("writer", header.writer);
    report.show("created", header.created);
    report.fact("frames", header.frame_count);
    report.fact("raw_bytes", header.raw_bytes);
}

async fn footer(from: &Source, header: &SegmentHeader, at: u64, report: &mut InspectReport) -> Result<()> {
    let bytes = from.read(at..from.len().min(at + SEGMENT_FOOTER_LEN as u64)).await?;
    match SegmentFooter::decode(&bytes) {
        Ok(f) if (f.generation, f.segment, f.total_len) == (header.generation, header.segment, header.total_len) => {}
        Ok(_) => report.problem("footer", "disagrees with the header"),
        Err(e) => report.problem(format!("footer, from byte {at}"), e),
    }
    Ok(())
}

async fn entries(from: &Source, index: &Index, report: &mut InspectReport) -> Result<()> {
    report.fact("zero_ranges", index.entries.iter().filter(|e| e.frame.is_none()).count());
    let disks: Vec<_> = index.disks.iter().map(|d| json!({"id": d.id.to_string(), "size": d.size})).collect();
    report.fact("disks", disks);
    if let Some(point) = &index.point {
        report.show("point_time", point.time);
        report.fact("point_fuzzy", point.flags.fuzzy);
        report.fact("point_quiesced", point.flags.quiesced);
        report.fact("point_vms", point.vms.len());
    }
    if let Some(catalogue) = &index.catalogue {
        super::objects::catalogue_facts(catalogue, report);
    }
    let mut decoder = decoder()?;
    let mut raw = vec![0; MAX_FRAME_LEN as usize];
    for entry in &index.entries {
        let disk = index.disks[entry.disk as usize].id;
        report.entry(|| match &entry.frame {
            Some((pos, body)) => json!({
                "disk": disk.to_string(), "offset": entry.offset, "len": entry.len, "at": pos,
                "codec": format!("{:?}", body.codec), "stored": body.stored_len, "digest": body.raw_digest.to_string(),
            }),
            None => json!({ "disk": disk.to_string(), "offset": entry.offset, "len": entry.len, "zeros": true }),
        });
        let Some((pos, body)) = &entry.frame else { continue };
        let stored = from.read(*pos..*pos + body.len_with_header()).await?;
        if let Err(e) = check(&stored, index, entry, &mut decoder, &mut raw) {
            report.problem(format!("disk {disk}, bytes {}+{}, frame at {pos}", entry.offset, entry.len), e);
        }
    }
    Ok(())
}

fn check(
    stored: &[u8],
    index: &Index,
    entry: &IndexEntry,
    decoder: &mut FrameDecoder,
    raw: &mut [u8],
) -> DecodeResult<()> {
    let Some((_, body)) = &entry.frame else { return Ok(()) };
    let frame = VerifiedFrame::open(stored, &index.frame_id(entry), body)?;
    decoder.decode_into(&frame, &mut raw[..body.raw_len as usize])
}

fn decoder() -> Result<FrameDecoder> {
    FrameDecoder::new().map_err(|e| Error::with_source(ErrorKind::Internal, "set up zstd", e))
}

/// Reports on a frame that was cut out of its segment.
pub(super) async fn frame(from: &Source, report: &mut InspectReport) -> Result<()> {
    let most = FRAME_HEADER_LEN as u64 + u64::from(MAX_FRAME_LEN);
    let bytes = from.read(0..from.len().min(most)).await?;
    let header = match FrameHeader::decode(&bytes).and_then(|h| h.body().map(|body| (h, body))) {
        Ok(header) => header,
        Err(e) => {
            report.problem("header, bytes 0 to 127", e);
            return Ok(());
        }
    };
    let (id, body) = (header.0.id(), header.1);
    report.show("domain", id.domain);
    report.show("segment", id.segment);
    report.show("disk", id.disk);
    report.fact("offset", id.offset);
    report.fact("raw_bytes", body.raw_len);
    report.fact("codec", format!("{:?}", body.codec));
    report.show("raw_digest", body.raw_digest);
    if from.len() > most {
        report.problem("length", format!("{} bytes follow the frame", from.len() - body.len_with_header()));
        return Ok(());
    }
    let mut raw = vec![0; body.raw_len as usize];
    let whole = VerifiedFrame::open(&bytes, &id, &body).map(|f| decoder().map(|mut d| d.decode_into(&f, &mut raw)));
    match whole {
        Ok(decoded) => {
            if let Err(e) = decoded? {
                report.problem("content", e);
            }
        }
        Err(e) => report.problem("payload, from byte 128", e),
    }
    Ok(())
}
