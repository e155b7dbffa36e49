//! Replication logs: both superblock slots, then every record from the tail on, its segment's digest included.
//!
//! The walk reads no byte of the ring twice: it ends where a record does not follow, and after one lap at the latest.

use serde_json::json;
use xxhash_rust::xxh3::Xxh3;

use super::report::InspectReport;
use super::source::Source;
use crate::error::Result;
use crate::format::{Digest, LOG_BLOCK, LOG_RING_START, LogRecord, LogSuperblock, log_record_len};

/// Bytes that are read at a time.
const PIECE: u64 = 1 << 20;

/// Reports on a log file.
pub(super) async fn log(from: &Source, report: &mut InspectReport) -> Result<()> {
    let mut slots = Vec::new();
    for slot in 0..2 {
        let start = from.len().min(slot * LOG_BLOCK);
        let bytes = from.read(start..from.len().min(start + LOG_BLOCK)).await?;
        // A slot that was never written is all zeros: the log is new.
        if slot_is_blank(&bytes) {
            continue;
        }
        match LogSuperblock::open(&bytes, slot) {
            Ok(superblock) => slots.push(superblock),
            Err(e) => report.problem(format!("superblock slot {slot}, bytes {start} to {}", start + LOG_BLOCK - 1), e),
        }
    }
    let Some(newest) = slots.into_iter().max_by_key(|s| s.sequence) else {
        report.problem("superblocks", "neither slot can be used: nothing in the ring can be trusted");
        return Ok(());
    };
    report.show("log", newest.log);
    report.show("domain", newest.domain);
    report.show("datastore", newest.datastore);
    report.fact("sequence", newest.sequence);
    report.fact("epoch", newest.epoch);
    report.fact("ring_bytes", newest.ring_len());
    report.fact("tail", newest.tail);
    report.fact("head", newest.head);
    report.show("last_segment", newest.last());
    if from.len() != newest.file_len {
        report.problem("length", format!("{} bytes, its superblock says {}", from.len(), newest.file_len));
        return Ok(());
    }
    walk(from, &newest, report).await
}

fn slot_is_blank(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|b| *b == 0)
}

async fn walk(from: &Source, newest: &LogSuperblock, report: &mut InspectReport) -> Result<()> {
    let ring = newest.ring_len();
    let (mut at, mut records, mut bytes) = (newest.tail, 0_u64, 0_u64);
    let mut next = (newest.tail < newest.head).then_some(newest.first.get());
    let mut epoch = 0;
    while at - newest.tail + LOG_BLOCK <= ring {
        let place = LOG_RING_START + at % ring;
        let confirmed = at < newest.head;
        let block = from.read(place..place + LOG_BLOCK).await?;
        let record = match LogRecord::open(&block) {
            Ok(record) => record,
            Err(e) if confirmed => {
                report.problem(format!("record at byte {place}, position {at}"), e);
                break;
            }
            Err(_) => break,
        };
        let follows = record.log == newest.log
            && record.domain == newest.domain
            && record.position == at
            && record.epoch >= if confirmed { epoch } else { newest.epoch }
            && next.is_none_or(|n| n == record.segment.get())
            && at - newest.tail + log_record_len(record.payload_len) <= ring;
        if !follows {
            if confirmed {
                report.problem(
                    format!("record at byte {place}, position {at}"),
                    format!("{} of position {}: not the one that follows", record.id(), record.position),
                );
            }
            break;
        }
        let digest = payload_digest(from, &record, ring).await?;
        if digest != record.payload_digest {
            if confirmed {
                report.problem(format!("{} at byte {place}", record.id()), "the segment's checksum does not match");
            }
            break;
        }
        report.entry(|| {
            json!({
                "segment": record.id().to_string(), "position": record.position, "at": place, "epoch": record.epoch,
                "len": record.payload_len, "confirmed": confirmed,
            })
        });
        (records, bytes, epoch) = (records + 1, bytes + record.payload_len, record.epoch);
        next = record.segment.get().checked_add(1);
        at = record.end();
    }
    report.fact("records", records);
    report.fact("segment_bytes", bytes);
    report.fact("walked_to", at);
    Ok(())
}

async fn payload_digest(from: &Source, record: &LogRecord, ring: u64) -> Result<Digest> {
    let start = (record.position + LOG_BLOCK) % ring;
    let first = record.payload_len.min(ring - start);
    let mut hash = Xxh3::new();
    let place = LOG_RING_START + start;
    from.read_pieces(place..place + first, PIECE, |b| hash.update(b)).await?;
    let rest = record.payload_len - first;
    from.read_pieces(LOG_RING_START..LOG_RING_START + rest, PIECE, |b| hash.update(b)).await?;
    Ok(Digest(hash.digest128().to_le_bytes()))
}
