//! Makes the sums of a damaged object right, so that what is wrong with it has to be found by what it says, and not by
//! its checksum. Property tests and fuzz targets share it.

use freshet::format::magic::{self, Magic};
use freshet::format::{INTENT_PAGE, layouts, xxh3_64, xxh3_128};

/// Name of the layout that `magic` stands at the head of.
fn layout_of(magic: Magic) -> &'static str {
    match magic {
        magic::SEGMENT => "SegmentHeader",
        magic::FRAME => "FrameHeader",
        magic::INDEX => "IndexHeader",
        magic::MAP_PAGE => "PageHeader",
        magic::MANIFEST => "ManifestHeader",
        magic::OWNER => "OwnerFields",
        magic::STATUS => "StatusFields",
        magic::LOG_SUPERBLOCK => "LogSuperblock",
        magic::LOG_RECORD => "LogRecord",
        magic::HYDRATION => "HydrationHeader",
        magic::WATERMARK => "WatermarkHeader",
        magic::INTENT => "IntentHeader",
        magic::INTENT_PAGE => "IntentPage",
        magic::PROTECTION => "ProtectionHeader",
        magic::RECOVERY_SETTINGS => "RecoverySettingsHeader",
        other => panic!("no header begins with {other:?}"),
    }
}

/// Sets magic and version, and makes length and digest of what follows the header and the header's checksum right. False
/// where there is not even a whole header.
pub(crate) fn mend(magic: Magic, bytes: &mut [u8]) -> bool {
    let name = layout_of(magic);
    let layout = layouts().into_iter().find(|l| l.name == name).expect("a layout of this name");
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
    if magic == magic::INTENT {
        // Its pages are parts with sums of their own.
        body.chunks_exact_mut(INTENT_PAGE).for_each(|page| assert!(mend(magic::INTENT_PAGE, page)));
    }
    let sum = xxh3_64(&head[..layout.len - 8]);
    head[layout.len - 8..].copy_from_slice(&sum.to_le_bytes());
    true
}
