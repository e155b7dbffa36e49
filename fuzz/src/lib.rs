//! What every fuzz target does: make the sums of the input right, decode it, and demand that what was taken means what
//! its bytes say. Without the sums, a fuzzer would never get past the first checksum.

#[path = "../../tests/support/mend.rs"]
mod mend;

use freshet::failover::{Entry, TaskId, replay};
use freshet::format::magic::{self, Magic};
use freshet::format::{Digest, Index, SegmentHeader, recode, xxh3_64, xxh3_128};
use freshet::hypervisor::qemu_vm;
use freshet::ids::{DomainId, Generation, SegmentNo, Time, WriterId};
use mend::mend;

/// Input as it is, and input with magic, lengths and sums of the header of `magic` made right.
pub fn check(magic: Magic, data: &[u8]) {
    honest(data);
    let mut bytes = data.to_vec();
    if mend(magic, &mut bytes) {
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

/// An index, as part of the segment that its own header and the frames it names ask for.
pub fn check_index(data: &[u8]) {
    let mut bytes = data.to_vec();
    if !mend(magic::INDEX, &mut bytes) {
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

/// A VM that the QEMU driver keeps, as it is and with its checksum made right: what is taken is a VM of bounded length.
pub fn check_qemu_vm(data: &[u8]) {
    let _ = qemu_vm(data);
    let Ok(mut kept) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    let Some(vm) = kept.get("vm").map(serde_json::Value::to_string) else { return };
    kept["checksum"] = format!("{:016x}", xxh3_64(vm.as_bytes())).into();
    if let Ok(vm) = qemu_vm(kept.to_string().as_bytes()) {
        assert!(vm.definition.len() <= data.len());
    }
}

/// An entry of a task's journal: what is taken says the same once more, and a task that it makes does not panic.
pub fn check_journal_entry(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(entry) = Entry::from_text(text) else { return };
    let again = entry.to_text().expect("what was read fits");
    assert_eq!(Entry::from_text(&again).expect("what was written reads"), entry);
    let _ = replay(TaskId::new(Time::from_millis(1)), vec![Ok(entry)]);
}
