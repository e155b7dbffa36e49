//! What a protection is asked to do: whose disks, where they are served, within which limits.
//!
//! Plain data with one validation step; no I/O.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::batch::MAX_SPANS;
use super::disk::FencedPolicy;
use super::filling::Filling;
use crate::capture::{DEFAULT_LEVEL, DEFAULT_MANIFEST_EVERY, VmSource};
use crate::clock::{Clock, SystemClock};
use crate::datastore::EngineKind;
use crate::error::{Error, ErrorKind, Result};
use crate::format::MAX_SEGMENT_LEN;
use crate::ids::Name;
use crate::nbd::{CacheMode, Listen, Tls, least_memory};

/// What each frame adds to a segment besides its payload: its header and its entry of the index.
const FRAME_COST: u64 = 192;
/// Smallest memory budget in bytes.
pub const MIN_PROTECT_MEMORY: u64 = 128 << 20;
/// Memory budget unless told otherwise, in bytes.
pub const DEFAULT_PROTECT_MEMORY: u64 = 512 << 20;
/// Size of the replication log unless told otherwise, in bytes.
pub const DEFAULT_PROTECT_LOG: u64 = 4 << 30;
/// Age of its first write at which a segment is cut, unless told otherwise.
pub const DEFAULT_SEGMENT_AGE: Duration = Duration::from_millis(800);

/// Where the images have their content from, before their guests write.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Origin {
    /// From this site: what the domain lacks of them, or has otherwise, is found by comparing.
    #[default]
    Site,
    /// From the domain itself: a rehydration brought them to a point. Where that is the one that the domain goes on from,
    /// nothing is read and nothing compared.
    Rehydrated {
        /// The datastore: the state of the rehydration is in `<datastore>/<domain>/.freshet`.
        datastore: PathBuf,
    },
}

/// What to protect, and how.
#[derive(Debug, Clone)]
pub struct ProtectRequest {
    /// Domain; made where there is none of that name.
    pub domain: Name,
    /// Name of this site, which owns the domain or takes it over.
    pub site: Name,
    /// VMs whose disks are served and captured.
    pub vms: Vec<VmSource>,
    /// Where the disks are served, under the export names `<vm>/<disk>`.
    pub listen: Vec<Listen>,
    /// TLS of the clients' connections.
    pub tls: Tls,
    /// How the images are read and written.
    pub cache: CacheMode,
    /// Directory for the domain's bitmaps, protection record and replication log; must exist.
    pub state: PathBuf,
    /// Size of the replication log in bytes.
    pub log_size: u64,
    /// Budget in bytes for all buffers.
    pub memory: u64,
    /// Connections of clients at once.
    pub connections: usize,
    /// zstd level, 1 to 19.
    pub level: i32,
    /// Threads that compress; 0 is one for each processor.
    pub packers: usize,
    /// Age of its first write at which a segment is cut, 10 ms to 1 min.
    pub segment_age: Duration,
    /// Time without a write after which an empty point is cut, 1 s to 1 h.
    pub idle_point: Duration,
    /// Bytes of segments after which a new manifest is cut.
    pub manifest_every: u64,
    /// Longest time that a write is held because the storage site takes too little.
    pub longest_hold: Duration,
    /// Bytes of disk that initial sync and resync read in a second at most; `None` for no limit but the guests.
    pub sync_rate: Option<u64>,
    /// How long the end waits for the storage site to take what was captured.
    pub drain: Duration,
    /// What guests' writes do once another writer owns the domain.
    pub fenced: FencedPolicy,
    /// Take the domain over from the site that owns it; over rehydrated disks from the point that they equal.
    pub take_ownership: bool,
    /// Where the images have their content from.
    pub origin: Origin,
    /// Open the exports before the domain is claimed, whatever was found: the operator says so.
    pub open_unclaimed: bool,
    /// Accept an image that is smaller than it was at the last point.
    pub allow_shrink: bool,
    /// Disks that running guests are being copied onto.
    pub filling: Filling,
    /// Disk engine.
    pub engine: EngineKind,
    /// Where the times of points come from. It may jump: points stay in order.
    pub clock: Arc<dyn Clock>,
}

impl ProtectRequest {
    /// A request with default settings.
    pub fn new(domain: Name, site: Name, vms: Vec<VmSource>, listen: Vec<Listen>, state: PathBuf) -> ProtectRequest {
        ProtectRequest {
            domain,
            site,
            vms,
            listen,
            tls: Tls::Off,
            cache: CacheMode::Direct,
            state,
            log_size: DEFAULT_PROTECT_LOG,
            memory: DEFAULT_PROTECT_MEMORY,
            connections: 64,
            level: DEFAULT_LEVEL,
            packers: 0,
            segment_age: DEFAULT_SEGMENT_AGE,
            idle_point: Duration::from_secs(10),
            manifest_every: DEFAULT_MANIFEST_EVERY,
            longest_hold: Duration::from_millis(500),
            sync_rate: None,
            drain: Duration::from_secs(30),
            fenced: FencedPolicy::default(),
            take_ownership: false,
            origin: Origin::default(),
            open_unclaimed: false,
            allow_shrink: false,
            filling: Filling::default(),
            engine: EngineKind::Auto,
            clock: Arc::new(SystemClock),
        }
    }

    /// Checks the settings against their bounds.
    ///
    /// # Errors
    /// `Invalid`, naming everything that is wrong.
    pub fn validate(&self) -> Result<()> {
        let problems = self.problems();
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Invalid, problems.join("; "))),
        }
    }

    /// Everything that is out of its bounds or does not fit together.
    pub(crate) fn problems(&self) -> Vec<String> {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let bounds = [
            ("zstd level", u64::try_from(self.level).unwrap_or(0), 1, 19),
            ("memory budget in bytes", self.memory, MIN_PROTECT_MEMORY, u64::MAX),
            ("number of connections", self.connections as u64, 1, 10_000),
            ("number of packers", self.packers as u64, 0, 1024),
            ("segment age in ms", millis(self.segment_age), 10, 60_000),
            ("time to an empty point in ms", millis(self.idle_point), 1000, 3_600_000),
            ("longest hold of a write in ms", millis(self.longest_hold), 1, 60_000),
            ("number of VMs", self.vms.len() as u64, 1, 100_000),
            (
                "size of the replication log in bytes",
                self.log_size,
                2 * divide(self.memory).largest_segment(),
                u64::MAX,
            ),
            ("number of addresses to listen on", self.listen.len() as u64, 1, 64),
        ];
        let wrong = bounds.into_iter().filter(|(_, value, least, most)| !(least..=most).contains(&value));
        let mut problems: Vec<String> = wrong
            .map(|(what, value, least, most)| {
                let most = if most == u64::MAX { String::new() } else { format!(" and at most {most}") };
                format!("{what} is {value}, must be at least {least}{most}")
            })
            .collect();
        // One more, for what the protection itself reads and writes.
        let needed = least_memory(self.connections.saturating_add(1)).saturating_mul(4);
        if self.memory < needed && (1..=10_000).contains(&self.connections) {
            problems.push(format!(
                "memory budget of {} bytes is too small for {} connections, each of which is sure of some buffers: \
                 give it at least {needed} bytes, or allow fewer connections",
                self.memory, self.connections
            ));
        }
        problems
    }
}

/// How the memory budget is divided, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Division {
    /// Buffers of requests.
    pub(crate) requests: u64,
    /// Arenas of open segments, each.
    pub(crate) arena: usize,
    /// How many.
    pub(crate) arenas: usize,
    /// Sealed segments that wait.
    pub(crate) backlog: u64,
}

impl Division {
    /// Longest segment that can come of an arena: nothing of it compressed, a header to every frame, a full index.
    pub(crate) fn largest_segment(&self) -> u64 {
        (self.arena as u64 + MAX_SPANS as u64 * FRAME_COST).next_multiple_of(1 << 20).min(MAX_SEGMENT_LEN)
    }
}

/// A quarter for requests, a quarter for open segments, a quarter for sealed ones; the rest for the map, manifests, and
/// what packers and uploads hold.
pub(crate) fn divide(memory: u64) -> Division {
    let quarter = memory / 4;
    let arena = (quarter / 8).clamp(2 << 20, 16 << 20);
    Division { requests: quarter, arena: arena as usize, arenas: (quarter / arena) as usize, backlog: quarter }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_fit_the_budget() {
        for memory in [MIN_PROTECT_MEMORY, DEFAULT_PROTECT_MEMORY, 16 << 30] {
            let d = divide(memory);
            assert!(d.requests + d.backlog + (d.arena * d.arenas) as u64 <= memory * 3 / 4, "{d:?}");
            assert!(d.arenas >= 8, "{d:?}");
        }
    }

    #[test]
    fn settings_out_of_bounds_are_named() {
        let name = |n: &str| Name::new(n).unwrap();
        let good = || {
            let vms = vec![VmSource { name: name("a"), disks: Vec::new(), definition: None }];
            ProtectRequest::new(name("d"), name("s"), vms, vec![Listen::Unix("/run/x".into())], "/state".into())
        };
        assert!(good().validate().is_ok());
        let check = |change: fn(&mut ProtectRequest)| {
            let mut request = good();
            change(&mut request);
            request.validate().unwrap_err().to_string()
        };
        assert!(check(|r| r.memory = 1).contains("memory budget"));
        assert!(check(|r| r.level = -1).contains("zstd level"));
        assert!(check(|r| r.segment_age = Duration::ZERO).contains("segment age"));
        assert!(check(|r| r.listen.clear()).contains("listen"));
        let all = check(|r| (r.level, r.connections, r.log_size) = (99, 1000, 0));
        for part in ["zstd level", "too small for 1000 connections", "replication log"] {
            assert!(all.contains(part), "{all}");
        }
        // What is told to be enough, is.
        let mut request = good();
        request.connections = 1000;
        let told = request.validate().unwrap_err().to_string();
        let enough = told.split("at least ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        (request.memory, request.log_size) = (enough, 1 << 40);
        assert!(request.validate().is_ok() && crate::nbd::Buffers::new(divide(enough).requests, 1001).is_ok());
        request.memory = enough - (4 << 20);
        assert!(request.validate().is_err());
    }
}
