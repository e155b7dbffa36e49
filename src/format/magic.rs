//! All magics and versions, in one place. A version is never reused; a reader for every version that ever landed stays.
//!
//! | version | format | why |
//! |---|---|---|
//! | 1 | all | first |

/// Magic and current version of one format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Magic {
    /// First eight bytes.
    pub bytes: [u8; 8],
    /// Version written today.
    pub version: u16,
    /// What it is, for messages.
    pub what: &'static str,
}

const fn magic(bytes: &[u8; 8], version: u16, what: &'static str) -> Magic {
    Magic { bytes: *bytes, version, what }
}

/// Segment header.
pub const SEGMENT: Magic = magic(b"FRSHsegm", 1, "segment header");
/// Frame header.
pub const FRAME: Magic = magic(b"FRSHfram", 1, "frame header");
/// Segment index.
pub const INDEX: Magic = magic(b"FRSHindx", 1, "segment index");
/// Segment footer.
pub const FOOTER: Magic = magic(b"FRSHfoot", 1, "segment footer");
/// Map page.
pub const MAP_PAGE: Magic = magic(b"FRSHpage", 1, "map page");
/// Manifest.
pub const MANIFEST: Magic = magic(b"FRSHmani", 1, "manifest");
/// Ownership record.
pub const OWNER: Magic = magic(b"FRSHownr", 1, "ownership record");
/// Status.
pub const STATUS: Magic = magic(b"FRSHstat", 1, "status");
/// Replication log superblock.
pub const LOG_SUPERBLOCK: Magic = magic(b"FRSHlogs", 1, "log superblock");
/// Replication log record.
pub const LOG_RECORD: Magic = magic(b"FRSHlogr", 1, "log record");
/// Hydration map.
pub const HYDRATION: Magic = magic(b"FRSHhydr", 1, "hydration map");
/// Watermark.
pub const WATERMARK: Magic = magic(b"FRSHwatr", 1, "watermark");
/// Write-intent file.
pub const INTENT: Magic = magic(b"FRSHintn", 1, "write-intent header");
/// Page of a write-intent file.
pub const INTENT_PAGE: Magic = magic(b"FRSHintp", 1, "write-intent page");
/// Protection record.
pub const PROTECTION: Magic = magic(b"FRSHprot", 1, "protection record");

/// Recovery settings.
pub const RECOVERY_SETTINGS: Magic = magic(b"FRSHrset", 1, "recovery settings");

/// Every magic, for telling what a file is.
pub const ALL: &[Magic] = &[
    SEGMENT,
    FRAME,
    INDEX,
    FOOTER,
    MAP_PAGE,
    MANIFEST,
    OWNER,
    STATUS,
    LOG_SUPERBLOCK,
    LOG_RECORD,
    HYDRATION,
    WATERMARK,
    INTENT,
    INTENT_PAGE,
    PROTECTION,
    RECOVERY_SETTINGS,
];
