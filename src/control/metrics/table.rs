//! Every figure that the endpoint tells: name, unit, labels, stability, meaning. The one place where they are;
//! `docs/control-plane.md` follows this table.

/// Whether a figure only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only grows, from the start of what it counts.
    Counter,
    /// How often values up to each of some bounds came, and their sum: it only grows.
    Histogram,
}

/// One figure.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Name, without the `_total` that counters end with.
    pub name: &'static str,
    /// Gauge or counter.
    pub kind: Kind,
    /// Unit; empty for a plain number.
    pub unit: &'static str,
    /// Labels.
    pub labels: &'static [&'static str],
    /// Whether name and meaning stay from version to version.
    pub stable: bool,
    /// What it is.
    pub meaning: &'static str,
}

const DOMAIN: &[&str] = &["domain"];
const VM: &[&str] = &["domain", "vm"];
const DISK: &[&str] = &["domain", "vm", "disk"];
const PART: &[&str] = &["domain", "part"];
const STORE: &[&str] = &["store"];

const fn gauge(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    meaning: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, labels, stable: true, meaning }
}

const fn counter(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    meaning: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Counter, unit, labels, stable: true, meaning }
}

/// All of them. Bounds of histograms: `store::LATENCY_BOUNDS`.
pub const METRICS: &[Metric] = &[
    gauge("freshet_info", "", &["site", "version"], "Always 1"),
    gauge("freshet_start_time_seconds", "seconds", &[], "When the appliance started, since 1970"),
    gauge(
        "freshet_hypervisor_ready",
        "",
        &[],
        "1 while what runs guests here can be used; absent where none is set up",
    ),
    gauge("freshet_domain_info", "", &["domain", "store", "mode", "status"], "Always 1; mode and status in words"),
    gauge("freshet_domain_rpo_seconds", "seconds", DOMAIN, "What would be lost now; absent where a VM has no point"),
    gauge("freshet_domain_point", "", DOMAIN, "Newest point that is part of the domain"),
    gauge("freshet_domain_captured_point", "", DOMAIN, "Newest segment that was cut here"),
    gauge("freshet_domain_waiting_bytes", "bytes", DOMAIN, "Sealed segments that wait for the store"),
    gauge("freshet_domain_waiting_memory_bytes", "bytes", DOMAIN, "Of these, what is in memory and not in the log"),
    gauge("freshet_domain_log_used_bytes", "bytes", DOMAIN, "Replication log in use"),
    gauge("freshet_domain_log_size_bytes", "bytes", DOMAIN, "Replication log"),
    gauge(
        "freshet_domain_memory_used_bytes",
        "bytes",
        PART,
        "Budget of memory of what is protected or follows, by its parts: what is used of it",
    ),
    gauge("freshet_domain_memory_size_bytes", "bytes", PART, "The same: what there is of it"),
    gauge("freshet_domain_sync_total_bytes", "bytes", DOMAIN, "Disks that are being synced; absent where none is"),
    gauge("freshet_domain_sync_done_bytes", "bytes", DOMAIN, "Of these, what is done"),
    gauge("freshet_domain_hold_seconds", "seconds", DOMAIN, "How long each write is held now"),
    gauge("freshet_domain_landed_point", "", DOMAIN, "Where disks here follow the domain: newest point that landed"),
    gauge("freshet_domain_applied_point", "", DOMAIN, "The same: the point that the disks equal"),
    gauge(
        "freshet_domain_following",
        "",
        DOMAIN,
        "The same: 1 while it goes on, 0 where it was ended by an error and is tried again",
    ),
    gauge("freshet_domain_lag_seconds", "seconds", DOMAIN, "The same: age of the landed point, by the store's clock"),
    gauge("freshet_domain_unapplied_bytes", "bytes", DOMAIN, "The same: what landed and is not applied"),
    gauge(
        "freshet_domain_hydrate_total_bytes",
        "bytes",
        DOMAIN,
        "The same: bytes to bring onto the disks, or found there, since this run began, as far as known",
    ),
    gauge("freshet_domain_hydrate_done_bytes", "bytes", DOMAIN, "Of these, what is there"),
    gauge("freshet_domain_problems", "", DOMAIN, "Things that are wrong"),
    counter("freshet_domain_held_writes", "", DOMAIN, "Writes that were held"),
    counter("freshet_domain_written_bytes", "bytes", DOMAIN, "What guests wrote into what was shipped"),
    counter("freshet_domain_shipped_bytes", "bytes", DOMAIN, "Segments that were shipped"),
    counter("freshet_domain_shipped_segments", "", DOMAIN, "The same, counted"),
    gauge("freshet_vm_rpo_seconds", "seconds", VM, "What would be lost of the VM now; absent where it has no point"),
    gauge(
        "freshet_disk_rpo_seconds",
        "seconds",
        DISK,
        "What would be lost of the disk now; absent where no point of its VM had all of it",
    ),
    gauge(
        "freshet_disk_landed_point",
        "",
        DISK,
        "Where it follows: newest point that landed, of all disks of its domain",
    ),
    gauge("freshet_disk_applied_point", "", DISK, "The same: the point that the disk equals, as all of its domain do"),
    gauge("freshet_disk_lag_seconds", "seconds", DISK, "The same: age of the landed point, by the store's clock"),
    gauge(
        "freshet_disk_hydrate_total_bytes",
        "bytes",
        DISK,
        "The same: bytes to bring onto the disks, or found there, since this run began, as far as known",
    ),
    gauge("freshet_disk_hydrate_done_bytes", "bytes", DISK, "Of these, what is there"),
    gauge("freshet_disk_size_bytes", "bytes", DISK, "The disk"),
    gauge("freshet_disk_dirty_bytes", "bytes", DISK, "What a crash now would read back"),
    gauge("freshet_disk_unsynced_bytes", "bytes", DISK, "What the store may lack"),
    counter("freshet_disk_written_bytes", "bytes", DISK, "What guests wrote"),
    counter("freshet_disk_read_bytes", "bytes", DISK, "What guests read"),
    counter("freshet_disk_failed_requests", "", DISK, "Requests that failed on the local disk"),
    gauge(
        "freshet_disk_damaged_bytes",
        "bytes",
        DISK,
        "Bytes of a disk that follows which could not be recovered; absent for none",
    ),
    counter("freshet_store_requests", "", &["store", "kind"], "Requests by kind: get, head, put, list, delete"),
    counter("freshet_store_retries", "", STORE, "Tries after the first one"),
    counter("freshet_store_hedges", "", STORE, "Second requests because the first was slow"),
    counter("freshet_store_received_bytes", "bytes", STORE, "Object bytes received"),
    counter("freshet_store_sent_bytes", "bytes", STORE, "Object bytes sent"),
    Metric {
        name: "freshet_store_operation_seconds",
        kind: Kind::Histogram,
        unit: "seconds",
        labels: &["store", "operation"],
        stable: true,
        meaning: "Time of an operation with all its tries: get, head, put, list, delete",
    },
    counter(
        "freshet_store_failed_operations",
        "",
        &["store", "operation", "kind"],
        "Operations that failed after all their tries, by the kind of error; absent before the first",
    ),
    counter(
        "freshet_store_failed_tries",
        "",
        &["store", "reason"],
        "Requests that failed, most of them tried again; absent before the first",
    ),
    Metric {
        name: "freshet_tasks",
        kind: Kind::Gauge,
        unit: "",
        labels: &["kind", "state"],
        stable: false,
        meaning: "Tasks that are remembered, of each kind that there is one of in every state",
    },
];
