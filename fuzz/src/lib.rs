//! What every fuzz target does: make the sums of the input right, decode it, and demand that what was taken means what
//! its bytes say. Without the sums, a fuzzer would never get past the first checksum.

use freshet::format::magic::{self, Magic};
use freshet::format::{Digest, Index, SegmentHeader, layouts, recode, xxh3_64, xxh3_128};
use freshet::ids::{DomainId, Generation, SegmentNo, Time, WriterId};

/// Input as it is, and input with magic, digest and checksum of header `layout` made right.
pub fn check(magic: Magic, layout: &str, data: &[u8]) {
    honest(data);
    let mut bytes = data.to_vec();
    if mend(magic, layout, &mut bytes) {
        honest(&bytes);
    }
}

fn honest(bytes: &[u8]) {
    let Ok(again) = recode(bytes) else { return };
    // Bitmaps of hydration maps have more than one form; theirs must be a fixed point.
    match bytes.starts_with(&magic::HYDRATION.bytes) {
        true => assert!(recode(&again).expect("what was encoded decodes") == again),
        false => assert!(bytes.starts_with(&again)),
    }
}

fn mend(magic: Magic, layout: &str, bytes: &mut [u8]) -> bool {
    let layout = layouts().into_iter().find(|l| l.name == layout).expect("a layout of this name");
    if bytes.len() < layout.len {
        return false;
    }
    bytes[..8].copy_from_slice(&magic.bytes);
    bytes[8..10].copy_from_slice(&magic.version.to_le_bytes());
    let (head, body) = bytes.split_at_mut(layout.len);
    let field = |name: &str| layout.fields.iter().find(|f| f.name == name).map(|f| f.offset..f.offset + f.len);
    if let Some(at) = field("body_digest") {
        head[at].copy_from_slice(&xxh3_128(body).0);
    }
    if let Some(at) = field("body_len") {
        head[at].copy_from_slice(&(body.len() as u64).to_le_bytes());
    }
    if let Some(at) = field("stored_sum") {
        head[at].copy_from_slice(&xxh3_64(body).to_le_bytes());
    }
    let sum = xxh3_64(&head[..layout.len - 8]);
    head[layout.len - 8..].copy_from_slice(&sum.to_le_bytes());
    true
}

/// An index, as part of the segment that its own header and the frames it names ask for.
pub fn check_index(data: &[u8]) {
    let mut bytes = data.to_vec();
    if !mend(magic::INDEX, "IndexHeader", &mut bytes) {
        return;
    }
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let identity = |at: usize| <[u8; 16]>::try_from(&bytes[at..at + 16]).expect("sixteen bytes");
    let mut header = SegmentHeader {
        frame_count: 0,
        domain: DomainId::from_bytes(identity(16)),
        generation: Generation::new(number(32)),
        segment: SegmentNo::new(number(40)),
        parent_generation: Generation::new(number(48)),
        parent_segment: SegmentNo::new(number(56)),
        parent_digest: Digest(identity(64)),
        writer: WriterId::from_bytes([0; 16]),
        created: Time::from_millis(0),
        total_len: 0,
        index_pos: 256,
        index_len: bytes.len() as u32,
        key_id: 0,
        index_digest: xxh3_128(&bytes),
        raw_bytes: 0,
        nonce: [0; 12],
    };
    let _ = Index::decode(&bytes, &header);
    // With room for one frame of 512 plain bytes.
    (header.frame_count, header.raw_bytes, header.index_pos) = (1, 512, 256 + 128 + 512);
    let _ = Index::decode(&bytes, &header);
}
