//! Every setting of the appliance: its name, kind, default, bounds and meaning. The one place where they are; reading,
//! checking, the example and `docs/settings.md` all follow this table.

/// What a setting holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A name of 1 to 255 bytes.
    Name,
    /// An absolute path.
    Path,
    /// A list of absolute paths.
    Paths,
    /// `host:port`.
    Address,
    /// Bytes, or a number with KiB, MiB, GiB or TiB.
    Size {
        /// Least bytes.
        least: u64,
        /// Most bytes.
        most: u64,
    },
    /// A number with ms, s, m or h; bounds in milliseconds.
    Time {
        /// Least milliseconds.
        least: u64,
        /// Most milliseconds.
        most: u64,
    },
    /// A whole number.
    Count {
        /// Least.
        least: u64,
        /// Most.
        most: u64,
    },
    /// `true` or `false`.
    Switch,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Name with its table, such as `protect.memory`.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What it is unless told; empty for nothing.
    pub default: &'static str,
    /// Whether the file must have it.
    pub required: bool,
    /// What it does.
    pub meaning: &'static str,
}

const fn setting(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Setting {
    Setting { name, kind, default, required: false, meaning }
}

const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;
const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// All settings but the list `[[access]]`, in the order of the page.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "site",
        kind: Kind::Name,
        default: "",
        required: true,
        meaning: "Name of this site, which owns domains under it. Never to be changed while it owns one",
    },
    setting(
        "state",
        Kind::Path,
        "/var/lib/freshet",
        "Directory of the catalog and of what protections remember; made where it is missing",
    ),
    setting(
        "log.format",
        Kind::Word(&["text", "json"]),
        "text",
        "How log lines look on standard error: for people, or one JSON object a line; `--log-format` overrides it",
    ),
    setting(
        "listen.socket",
        Kind::Path,
        "/run/freshet/freshet.sock",
        "Unix socket of the API, for the appliance's own user and root",
    ),
    setting("listen.tcp", Kind::Address, "", "Address of the API over TLS; nothing listens on TCP where absent"),
    setting("listen.metrics", Kind::Address, "", "Address of the Prometheus endpoint, plain HTTP; none where absent"),
    setting(
        "listen.metrics_public",
        Kind::Switch,
        "false",
        "Allows `listen.metrics` to be another address than a loopback one: whoever reaches it reads names and figures",
    ),
    setting(
        "tls.certificate",
        Kind::Path,
        "",
        "PEM file with the certificate of the API, and those that lead to its root",
    ),
    setting("tls.key", Kind::Path, "", "PEM file with its key"),
    setting("tls.client_ca", Kind::Path, "", "PEM file with the roots of which a client must show a certificate"),
    setting(
        "api.connections",
        Kind::Count { least: 1, most: 10_000 },
        "256",
        "Connections of clients at once, on the socket and on TCP each",
    ),
    setting("api.streams", Kind::Count { least: 1, most: 1000 }, "100", "Calls at once on one connection"),
    setting(
        "api.stop_grace",
        Kind::Time { least: 0, most: 10 * MINUTE },
        "10s",
        "How long calls in flight are waited for at the end",
    ),
    setting(
        "api.confirmation",
        Kind::Time { least: 10 * SECOND, most: HOUR },
        "5m",
        "How long a token that confirms a destructive act is good",
    ),
    setting(
        "stores.look_every",
        Kind::Time { least: SECOND, most: HOUR },
        "30s",
        "Time between two looks at an imported domain",
    ),
    setting("stores.looks", Kind::Count { least: 1, most: 256 }, "32", "Domains looked at side by side"),
    setting("events.keep", Kind::Count { least: 1000, most: 10_000_000 }, "100000", "Events kept; the oldest go first"),
    setting(
        "tasks.keep",
        Kind::Count { least: 10, most: 100_000 },
        "1000",
        "Tasks kept after their end; the oldest go first",
    ),
    setting(
        "protect.image_dirs",
        Kind::Paths,
        "[]",
        "Directories whose images operators may protect; others, and all where it is empty, only admins",
    ),
    setting(
        "protect.socket_dir",
        Kind::Path,
        "/run/freshet/nbd",
        "Directory of the sockets at which disks are served, one for each domain; made where it is missing",
    ),
    setting(
        "protect.socket_group",
        Kind::Name,
        "",
        "Group in `/etc/group`, or its number, that may connect to the sockets, and comes to the images that VMs are left \
         with: that of a hypervisor which runs under a user of its own, such as `kvm`",
    ),
    setting(
        "protect.log_store",
        Kind::Path,
        "",
        "Directory of replication logs and write-intent bitmaps; `domains` in the state directory where absent",
    ),
    setting(
        "protect.new_images",
        Kind::Path,
        "",
        "Directory of raw images that are made for VMs which the hypervisor runs already; `images` in the state directory \
         where absent",
    ),
    setting(
        "protect.memory",
        Kind::Size { least: 128 * MIB, most: TIB },
        "512MiB",
        "Budget for the buffers of each domain",
    ),
    setting(
        "protect.log_size",
        Kind::Size { least: 32 * MIB, most: 64 * TIB },
        "4GiB",
        "Replication log of each domain",
    ),
    setting(
        "protect.cache",
        Kind::Word(&["direct", "write-back"]),
        "direct",
        "Images past the page cache, or through it: then flush and FUA make writes durable",
    ),
    setting("protect.engine", Kind::Word(&["auto", "io-uring", "threads"]), "auto", "Disk engine"),
    setting(
        "protect.connections",
        Kind::Count { least: 1, most: 10_000 },
        "64",
        "NBD connections at once, of each domain",
    ),
    setting(
        "protect.segment_age",
        Kind::Time { least: 10, most: MINUTE },
        "800ms",
        "Age of its first write at which a segment is cut: what would be lost is a little more",
    ),
    setting(
        "protect.longest_hold",
        Kind::Time { least: 1, most: MINUTE },
        "500ms",
        "Longest time that a write is held because the storage site takes too little",
    ),
    setting(
        "protect.sync_rate",
        Kind::Size { least: MIB, most: TIB },
        "",
        "Most that initial sync and resync of a domain read in a second; no limit where absent",
    ),
    setting(
        "protect.drain",
        Kind::Time { least: 0, most: HOUR },
        "30s",
        "How long the end of a protection waits for the storage site",
    ),
    setting(
        "protect.when_fenced",
        Kind::Word(&["continue", "stop"]),
        "continue",
        "What guests' writes do once another writer owns the domain: go on unprotected, or fail",
    ),
    setting(
        "protect.quiesce_every",
        Kind::Time { least: 0, most: 24 * HOUR },
        "0s",
        "Time between two points that are cut with the guests' file systems frozen, where their agents answer; none where 0",
    ),
    setting(
        "protect.freeze_limit",
        Kind::Time { least: SECOND, most: MINUTE },
        "5s",
        "How long guests may take to freeze; one that takes longer is thawed, and the point is an ordinary one",
    ),
    setting("protect.level", Kind::Count { least: 1, most: 19 }, "1", "zstd level"),
    setting(
        "hypervisor.kind",
        Kind::Word(&["none", "exec", "qemu", "libvirt"]),
        "",
        "What runs guests here, see `docs/failover.md`; where absent, `exec` if there is a `hypervisor.command`, and else \
         `none`: no failover can be started here then",
    ),
    setting("hypervisor.uri", Kind::Name, "qemu:///system", "URI of libvirt, for `libvirt`"),
    setting(
        "hypervisor.seed_dir",
        Kind::Path,
        "",
        "Directory of the disks on which `libvirt` hands addresses to guests, see `docs/failover.md`; QEMU's user must be let \
         into it, so that it is beside the state directory where absent: `/var/lib/freshet-seeds` for `/var/lib/freshet`",
    ),
    setting("hypervisor.command", Kind::Path, "", "Program that drives the hypervisor, for `exec`"),
    setting(
        "hypervisor.limit",
        Kind::Time { least: SECOND, most: HOUR },
        "1m",
        "How long one call of the hypervisor may take, beside the time that a guest is given",
    ),
    setting(
        "hypervisor.poll",
        Kind::Time { least: 10, most: MINUTE },
        "1s",
        "Time between two looks whether a guest is off",
    ),
    setting(
        "qemu.dir",
        Kind::Path,
        "",
        "Folder of the VMs that the driver `qemu` runs; `qemu` in the state directory where absent",
    ),
    setting("qemu.program", Kind::Path, "/usr/bin/qemu-system-x86_64", "The QEMU that it starts"),
    setting(
        "qemu.accel",
        Kind::Word(&["auto", "kvm", "tcg"]),
        "auto",
        "What guests run on; `auto` is kvm where a probe guest boots with it, else software emulation (tcg)",
    ),
    setting(
        "qemu.console",
        Kind::Word(&["ring", "file"]),
        "ring",
        "Where serial consoles go: 64 KiB of memory, or the file `console` of the VM's folder, which has no limit",
    ),
    setting(
        "qemu.boot_dirs",
        Kind::Paths,
        "[]",
        "Directories whose kernels and initial RAM disks VMs may be booted with; none where it is empty",
    ),
    setting("qemu.uefi_code", Kind::Path, "/usr/share/OVMF/OVMF_CODE_4M.fd", "Firmware of VMs that have UEFI"),
    setting(
        "qemu.uefi_vars",
        Kind::Path,
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
        "Its variables, as a VM gets them at first",
    ),
    setting(
        "qemu.reconnect",
        Kind::Time { least: SECOND, most: 24 * HOUR },
        "10m",
        "How long a disk waits for its export to come back before its guest is paused",
    ),
    setting(
        "failover.hand_over",
        Kind::Word(&["automatic", "refuse"]),
        "automatic",
        "What is done when another site asks for a domain of this one: guests are shut down and it is handed over, or it is turned down",
    ),
    setting(
        "failover.remote_scripts",
        Kind::Word(&["refuse", "run"]),
        "refuse",
        "What is done with a runbook with scripts that the other site leaves for the way back: whoever can write to the storage site can write one",
    ),
    setting(
        "failover.shutdown_limit",
        Kind::Time { least: SECOND, most: 24 * HOUR },
        "5m",
        "How long guests have to shut down before an operator is asked",
    ),
    setting(
        "failover.taken_limit",
        Kind::Time { least: SECOND, most: 168 * HOUR },
        "1h",
        "How long the other site has to take a domain that was released before an operator is asked",
    ),
];
