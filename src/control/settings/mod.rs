//! The settings of an appliance, `freshet.toml`: read once, checked as a whole, never changed afterwards.
//!
//! ```text
//! text -> table of TOML -> values by the rows of `table` -> contradictions -> Settings, or all problems at once
//! ```
//!
//! Owns what may be set and what fits together. It holds no secret: keys and credentials are named by their files.
//! Invariant: nothing outside the file changes a setting.

mod contradictions;
mod example;
mod hypervisor;
mod networks;
mod read;
mod table;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::datastore::EngineKind;
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::failover::{DrSettings, FailoverPlan};
use crate::ids::Name;
use crate::nbd::{CacheMode, Listen, TlsIdentity};
use crate::protect::{FencedPolicy, ProtectRequest};

pub use example::example;
pub use hypervisor::HypervisorSettings;
pub use table::{Kind, SETTINGS, Setting};

/// Longest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// What somebody may do; each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Look.
    Viewer,
    /// Protect, fail over, fail back.
    Operator,
    /// Everything, also what destroys or runs programs.
    Admin,
}

impl Role {
    /// The word of the settings.
    pub fn word(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }

    /// The role of this word.
    pub fn from_word(word: &str) -> Option<Role> {
        [Role::Viewer, Role::Operator, Role::Admin].into_iter().find(|role| role.word() == word)
    }
}

/// What the holder of a certificate may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Subject of the certificate, as the appliance writes it: `CN=alice,O=Example`.
    pub subject: String,
    /// What it may do.
    pub role: Role,
}

/// Files of the API's TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate.
    pub certificate: PathBuf,
    /// Key.
    pub key: PathBuf,
    /// Roots of the clients' certificates.
    pub client_ca: PathBuf,
}

/// How domains are protected, see `docs/settings.md`.
#[derive(Debug, Clone)]
pub struct ProtectSettings {
    /// Directories whose images operators may protect.
    pub image_dirs: Vec<PathBuf>,
    /// Directory of the sockets.
    pub socket_dir: PathBuf,
    /// Group that may connect to the sockets, besides the appliance's own user.
    pub socket_group: Option<String>,
    /// Directory of logs and bitmaps.
    pub log_store: PathBuf,
    /// Directory of images that are made for VMs that the hypervisor runs already.
    pub new_images: PathBuf,
    /// Bytes for each domain.
    pub memory: u64,
    /// Bytes of each domain's log.
    pub log_size: u64,
    /// How images are read and written.
    pub cache: CacheMode,
    /// Disk engine.
    pub engine: EngineKind,
    /// NBD connections.
    pub connections: usize,
    /// Age at which a segment is cut.
    pub segment_age: Duration,
    /// Longest hold of a write.
    pub longest_hold: Duration,
    /// Bytes per second of syncs; `None` for no limit.
    pub sync_rate: Option<u64>,
    /// How long an end waits for the store.
    pub drain: Duration,
    /// What guests' writes do once fenced.
    pub fenced: FencedPolicy,
    /// Time between two points with guests frozen; zero for none.
    pub quiesce_every: Duration,
    /// How long guests may take to freeze.
    pub freeze_limit: Duration,
    /// zstd level.
    pub level: i32,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The file that they were read from, absolute; `None` where they are none's.
    pub file: Option<PathBuf>,
    /// Name of this site.
    pub site: Name,
    /// Directory of the catalog and of what protections remember.
    pub state: PathBuf,
    /// Log lines are JSON objects.
    pub logs_json: bool,
    /// Unix socket of the API.
    pub socket: PathBuf,
    /// Address of the API over TLS, with its files.
    pub tcp: Option<(String, TlsFiles)>,
    /// Address of the Prometheus endpoint.
    pub metrics: Option<String>,
    /// Who may do what over TLS.
    pub access: Vec<Access>,
    /// Connections at once.
    pub connections: usize,
    /// Calls at once on one connection.
    pub streams: u32,
    /// How long calls in flight are waited for.
    pub stop_grace: Duration,
    /// How long a confirmation token is good.
    pub confirmation: Duration,
    /// Time between two looks at an imported domain.
    pub look_every: Duration,
    /// Domains looked at side by side.
    pub looks: usize,
    /// Events kept.
    pub events_kept: u64,
    /// Ended tasks kept.
    pub tasks_kept: u64,
    /// How domains are protected.
    pub protect: ProtectSettings,
    /// What runs guests here.
    pub hypervisor: HypervisorSettings,
    /// How failovers go.
    pub failover: FailoverSettings,
}

/// How failovers go, see `docs/settings.md`.
#[derive(Debug, Clone, Copy)]
pub struct FailoverSettings {
    /// A domain that another site asks for is handed over; else that site is turned down.
    pub hands_over: bool,
    /// Scripts of a runbook that another site left are run here.
    pub runs_remote_scripts: bool,
    /// How long guests have to shut down.
    pub shutdown_limit: Duration,
    /// How long the other site has to take a domain that was released.
    pub taken_limit: Duration,
}

impl Settings {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// `Invalid` with everything that is wrong, a line each; what the file system says.
    pub fn load(path: &Path) -> Result<Settings> {
        let what = || format!("settings {}", path.display());
        let len = std::fs::metadata(path).io_context(what)?.len();
        if len > MAX_FILE {
            let why = format!("{}: it has {len} bytes, at most {MAX_FILE} are read", what());
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        let text = std::fs::read_to_string(path).io_context(what)?;
        let settings = Settings::parse(&text).map_err(|e| e.while_doing(what()))?;
        Ok(Settings { file: Some(std::path::absolute(path).io_context(what)?), ..settings })
    }

    /// From the text of the file.
    ///
    /// # Errors
    /// `Invalid` with everything that is wrong, a line each.
    pub fn parse(text: &str) -> Result<Settings> {
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
            // Its own text repeats the line: no setting is a secret.
            Error::new(ErrorKind::Invalid, e.to_string().trim_end().to_owned())
        })?;
        let mut problems = Vec::new();
        let values = read::read(table, &mut problems);
        let settings = problems.is_empty().then(|| Settings::of(&values, &mut problems)).flatten();
        contradictions::find(&values, &mut problems);
        match settings.filter(|_| problems.is_empty()) {
            Some(settings) => Ok(settings),
            None => {
                let list: String = problems.iter().map(|problem| format!("\n  {problem}")).collect();
                let count = problems.len();
                let s = if count == 1 { "" } else { "s" };
                Err(Error::new(ErrorKind::Invalid, format!("{count} problem{s}:{list}")))
            }
        }
    }

    /// Every value fits its own bounds here.
    fn of(values: &read::Values, problems: &mut Vec<String>) -> Option<Settings> {
        let state = values.path("state")?;
        let number = |name: &str| values.number(name).unwrap_or_default();
        let small = |name: &str| usize::try_from(number(name)).unwrap_or(usize::MAX);
        let tls = match (values.path("tls.certificate"), values.path("tls.key"), values.path("tls.client_ca")) {
            (Some(certificate), Some(key), Some(client_ca)) => Some(TlsFiles { certificate, key, client_ca }),
            _ => None,
        };
        let settings = Settings {
            file: None,
            site: Name::new(values.text("site")?).ok()?,
            logs_json: values.text("log.format") == Some("json"),
            socket: values.path("listen.socket")?,
            tcp: values.text("listen.tcp").map(str::to_owned).zip(tls),
            metrics: values.text("listen.metrics").map(str::to_owned),
            access: values.access.clone(),
            connections: small("api.connections"),
            streams: u32::try_from(number("api.streams")).unwrap_or(u32::MAX),
            stop_grace: values.time("api.stop_grace"),
            confirmation: values.time("api.confirmation"),
            look_every: values.time("stores.look_every"),
            looks: small("stores.looks"),
            events_kept: number("events.keep"),
            tasks_kept: number("tasks.keep"),
            protect: ProtectSettings {
                image_dirs: values.paths("protect.image_dirs"),
                socket_dir: values.path("protect.socket_dir")?,
                socket_group: values.text("protect.socket_group").map(str::to_owned),
                log_store: values.path("protect.log_store").unwrap_or_else(|| state.join("domains")),
                new_images: values.path("protect.new_images").unwrap_or_else(|| state.join("images")),
                memory: number("protect.memory"),
                log_size: number("protect.log_size"),
                cache: match values.text("protect.cache") {
                    Some("write-back") => CacheMode::WriteBack,
                    _ => CacheMode::Direct,
                },
                engine: match values.text("protect.engine") {
                    Some("io-uring") => EngineKind::IoUring,
                    Some("threads") => EngineKind::Threads,
                    _ => EngineKind::Auto,
                },
                connections: small("protect.connections"),
                segment_age: values.time("protect.segment_age"),
                longest_hold: values.time("protect.longest_hold"),
                sync_rate: values.number("protect.sync_rate"),
                drain: values.time("protect.drain"),
                fenced: match values.text("protect.when_fenced") {
                    Some("stop") => FencedPolicy::Stop,
                    _ => FencedPolicy::Continue,
                },
                quiesce_every: values.time("protect.quiesce_every"),
                freeze_limit: values.time("protect.freeze_limit"),
                level: i32::try_from(number("protect.level")).unwrap_or(1),
            },
            hypervisor: HypervisorSettings::of(values, &state),
            failover: FailoverSettings {
                hands_over: values.text("failover.hand_over") != Some("refuse"),
                runs_remote_scripts: values.text("failover.remote_scripts") == Some("run"),
                shutdown_limit: values.time("failover.shutdown_limit"),
                taken_limit: values.time("failover.taken_limit"),
            },
            state,
        };
        // What only the protection itself knows, such as the least log for a budget.
        let probe = settings.protect_request(settings.site.clone(), Vec::new());
        let one = crate::capture::VmSource { name: settings.site.clone(), disks: Vec::new(), definition: None };
        let probe = ProtectRequest { vms: vec![one], ..probe };
        problems.extend(probe.problems().into_iter().map(|problem| format!("protect: {problem}")));
        Some(settings)
    }

    /// A protection of `domain` by these settings.
    pub(crate) fn protect_request(&self, domain: Name, vms: Vec<crate::capture::VmSource>) -> ProtectRequest {
        let p = &self.protect;
        let listen = vec![Listen::Unix(self.export_socket(&domain))];
        ProtectRequest {
            cache: p.cache,
            engine: p.engine,
            memory: p.memory,
            log_size: p.log_size,
            connections: p.connections,
            segment_age: p.segment_age,
            longest_hold: p.longest_hold,
            sync_rate: p.sync_rate,
            drain: p.drain,
            fenced: p.fenced,
            level: p.level,
            ..ProtectRequest::new(domain, self.site.clone(), vms, listen, p.log_store.clone())
        }
    }

    /// Bytes of the log of the protection that follows a recovery by `plan`: as large as the recovery's, and never smaller
    /// than the setting, which this site's memory was measured by.
    pub(crate) fn protect_log_size(&self, plan: &FailoverPlan) -> u64 {
        self.protect.log_size.max(plan.dr.log_size)
    }

    /// `dr` with the sizes of this site where it says none.
    pub(crate) fn sized(&self, dr: DrSettings) -> DrSettings {
        let or = |asked: u64, usual: u64| if asked == 0 { usual } else { asked };
        DrSettings {
            log_size: or(dr.log_size, self.protect.log_size),
            memory: or(dr.memory, self.protect.memory),
            ..dr
        }
    }

    /// Where the image of a disk is made that cannot be served as it is: the first name that is free.
    pub(crate) fn new_image(&self, domain: &Name, vm: &Name, disk: &Name) -> PathBuf {
        /// More are nobody's doing but a mistake's, and are told as a file that is there.
        const MOST: u32 = 1000;
        let dir = self.protect.new_images.join(domain.key()).join(vm.key());
        let path =
            |n: u32| dir.join(if n < 2 { format!("{}.img", disk.key()) } else { format!("{}-{n}.img", disk.key()) });
        let free = (1..MOST).map(path).find(|path| !path.exists());
        free.unwrap_or_else(|| path(MOST))
    }

    /// Where the disks of `domain` are served. A name that is too long for an address gives way to its digest.
    pub(crate) fn export_socket(&self, domain: &Name) -> PathBuf {
        let plain = self.protect.socket_dir.join(format!("{}.sock", domain.key()));
        if plain.as_os_str().len() <= contradictions::MOST_SOCKET {
            return plain;
        }
        let digest = crate::format::xxh3_64(domain.as_str().as_bytes());

        self.protect.socket_dir.join(format!("{digest:016x}.sock"))
    }

    /// What the files say that the settings name: `freshet config check` and every start look.
    ///
    /// # Errors
    /// `Invalid` with everything that is wrong, a line each.
    pub fn check_files(&self) -> Result<()> {
        let mut problems = Vec::new();
        if let Some((address, tls)) = &self.tcp {
            let loaded = TlsIdentity::load(&tls.certificate, &tls.key, Some(&tls.client_ca));
            problems.extend(loaded.err().map(|e| format!("tls: {e}")));
            problems.extend(resolve(address).err().map(|e| format!("listen.tcp: {e}")));
        }
        if let Some(address) = &self.metrics {
            problems.extend(resolve(address).err().map(|e| format!("listen.metrics: {e}")));
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Invalid, problems.join("\n"))),
        }
    }
}

/// The first address of `host:port`.
pub(crate) fn resolve(address: &str) -> Result<SocketAddr> {
    let found = address.to_socket_addrs().io_context(|| format!("look up {address}"))?.next();
    found.ok_or_else(|| Error::new(ErrorKind::Invalid, format!("{address} is no address")))
}

#[cfg(test)]
mod tests;
