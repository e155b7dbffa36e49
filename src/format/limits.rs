//! Every numeric limit of the formats by name, for the test that ties `docs/formats.md` to the code.
//!
//! The numbers themselves stand with the format that they belong to; this is only their list.

use super::{
    catalogue, frame, hydration, index, intent, log, manifest, map_page, owner, point, protection, recovery_settings,
    segment, status, watermark,
};

/// Name in code and document, and value (bytes, or a count where the name does not end in `LEN`, `SPAN` or `GRANULE`).
pub fn limits() -> Vec<(&'static str, u64)> {
    vec![
        ("MAX_FRAME_LEN", u64::from(frame::MAX_FRAME_LEN)),
        ("MAX_SEGMENT_LEN", segment::MAX_SEGMENT_LEN),
        ("MAX_INDEX_LEN", u64::from(index::MAX_INDEX_LEN)),
        ("MAX_CATALOGUE_LEN", catalogue::MAX_CATALOGUE_LEN as u64),
        ("MAX_VMS", point::MAX_VMS as u64),
        ("MAX_DISKS", catalogue::MAX_DISKS as u64),
        ("MAX_NICS", catalogue::MAX_NICS as u64),
        ("MAX_DEFINITION_LEN", catalogue::MAX_DEFINITION_LEN as u64),
        ("MAX_WORD_LEN", catalogue::MAX_WORD_LEN as u64),
        ("MAX_NAME_LEN", crate::ids::MAX_NAME_LEN as u64),
        ("MAX_KEY_LEN", crate::ids::MAX_KEY_LEN as u64),
        ("PAGE_SPAN", map_page::PAGE_SPAN),
        ("MAX_PAGE_LEN", map_page::MAX_PAGE_LEN),
        ("MAX_MANIFEST_LEN", manifest::MAX_MANIFEST_LEN),
        ("MAX_POINTS", manifest::MAX_POINTS as u64),
        ("OWNER_RECORD_LEN", owner::OWNER_RECORD_LEN as u64),
        ("STATUS_LEN", status::STATUS_LEN as u64),
        ("MAX_RECOVERY_SETTINGS_TEXT", recovery_settings::MAX_RECOVERY_SETTINGS_TEXT as u64),
        ("MAX_RECOVERY_SETTINGS_LEN", recovery_settings::MAX_RECOVERY_SETTINGS_LEN),
        ("LOG_BLOCK", log::LOG_BLOCK),
        ("LOG_RING_START", log::LOG_RING_START),
        ("MAX_LOG_LEN", log::MAX_LOG_LEN),
        ("MAX_LOG_POSITION", log::MAX_LOG_POSITION),
        ("GRANULE", hydration::GRANULE),
        ("MAX_HYDRATION_LEN", hydration::MAX_HYDRATION_LEN),
        ("MAX_QUARANTINED", hydration::MAX_QUARANTINED as u64),
        ("MAX_WHY_LEN", hydration::MAX_WHY_LEN as u64),
        ("INTENT_PAGE", intent::INTENT_PAGE as u64),
        ("INTENT_PAGE_REGIONS", u64::from(intent::INTENT_PAGE_REGIONS)),
        ("INTENT_MIN_REGION_LEN", intent::INTENT_MIN_REGION_LEN),
        ("MAX_INTENT_PAGES", u64::from(intent::MAX_INTENT_PAGES)),
        ("MAX_INTENT_LEN", intent::MAX_INTENT_LEN),
        ("MAX_STAMPS", u64::from(watermark::MAX_STAMPS)),
        ("MAX_WATERMARK_LEN", watermark::MAX_WATERMARK_LEN),
        ("MAX_PROTECTION_LEN", protection::MAX_PROTECTION_LEN),
    ]
}
