//! Bytes of every object and file: encoding and decoding, no I/O.
//!
//! Every format is little-endian, begins with a magic and a version, repeats the identity of what it belongs to, and is
//! checksummed. A decoder takes any bytes and answers with a value or a [`DecodeError`]; it never panics, never
//! allocates more than the input justifies, and never hands out a byte that was not verified. The bytes are documented
//! in `docs/formats.md`; a test holds that page against [`layouts`].

mod author;
mod catalogue;
mod checksum;
mod codec;
mod decode_error;
mod frame;
#[cfg(test)]
mod hostile_tests;
mod hydration;
mod index;
mod intent;
mod layout;
mod limits;
mod log;
pub mod magic;
mod manifest;
mod map_page;
mod owner;
mod parts;
mod point;
mod protection;
mod recode;
mod recovery_settings;
mod segment;
#[cfg(test)]
mod segment_tests;
mod status;
mod watermark;
pub mod wire;

pub use author::{Author, ProcessIdentity};
pub use catalogue::{Catalogue, DiskInfo, MAX_CATALOGUE_LEN, Nic, VmInfo, VmShape};
pub use checksum::{Digest, xxh3_64, xxh3_128};
pub use codec::Codec;
pub use decode_error::{DecodeError, DecodeResult};
pub use frame::{
    FRAME_HEADER_LEN, FrameBody, FrameDecoder, FrameEncoder, FrameHeader, FrameId, MAX_FRAME_LEN, VerifiedFrame,
};
pub use hydration::{GRANULE, HydrationDisk, HydrationMap, MAX_HYDRATION_LEN, Quarantined, granules};
pub use index::{Index, IndexDisk, IndexEntry, MAX_INDEX_LEN};
pub use intent::{
    INTENT_BITS_LEN, INTENT_MIN_REGION_LEN, INTENT_PAGE, INTENT_PAGE_REGIONS, IntentHeader, IntentId, IntentPage,
    IntentShape, MAX_INTENT_LEN, MAX_INTENT_PAGES,
};
pub use layout::{Field, Layout};
pub use limits::limits;
pub use log::{
    DatastoreId, LOG_BLOCK, LOG_RING_START, LogId, LogRecord, LogSuperblock, MAX_LOG_LEN, MAX_LOG_POSITION,
    log_record_len, min_log_len,
};
pub use manifest::{MAX_MANIFEST_LEN, Manifest, PageRef};
pub use map_page::{Extent, FrameRef, MAX_PAGE_LEN, MapPage, PAGE_SPAN};
pub use owner::{OWNER_RECORD_LEN, OwnerKind, OwnerRecord};
pub use parts::Parts;
pub use point::{Point, PointFlags};
pub use protection::{MAX_PROTECTION_LEN, ProtectionRecord};
pub use recode::{recode, recognise};
pub use recovery_settings::{MAX_RECOVERY_SETTINGS_LEN, MAX_RECOVERY_SETTINGS_TEXT, RecoverySettings};
pub use segment::{
    MAX_SEGMENT_LEN, SEGMENT_FOOTER_LEN, SEGMENT_HEADER_LEN, Seal, SealedSegment, Segment, SegmentBuilder,
    SegmentFooter, SegmentHeader, VerifiedSegment, verify_segment,
};
pub use status::{Mode, STATUS_LEN, Status};
pub use watermark::{FileStamp, MAX_WATERMARK_LEN, Watermark};

/// Layouts of all fixed parts, for the test that ties `docs/formats.md` to the code and for `freshet inspect`.
pub fn layouts() -> Vec<Layout> {
    vec![
        SegmentHeader::layout(),
        FrameHeader::layout(),
        index::IndexHeader::layout(),
        index::DiskRow::layout(),
        index::EntryRow::layout(),
        SegmentFooter::layout(),
        map_page::PageHeader::layout(),
        map_page::ExtentRow::layout(),
        manifest::ManifestHeader::layout(),
        manifest::PageRow::layout(),
        hydration::HydrationHeader::layout(),
        watermark::WatermarkHeader::layout(),
        watermark::StampRow::layout(),
        protection::ProtectionHeader::layout(),
        LogSuperblock::layout(),
        LogRecord::layout(),
        owner::OwnerFields::layout(),
        status::StatusFields::layout(),
        recovery_settings::RecoverySettingsHeader::layout(),
        IntentHeader::layout(),
        IntentPage::layout(),
    ]
}
