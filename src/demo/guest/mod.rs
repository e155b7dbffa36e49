//! A failover that somebody can watch: two sites, each an appliance with guests of its own under QEMU, on this machine.
//!
//! ```text
//! first site: guests run --live--> protected --segments--> store --follows--> second site
//!   kill -9 of appliance and guests                          forced completion: guests serve again, rows counted
//!   appliance comes back, fenced  <--follows, in place-- planned completion: no row is lost
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `kernel`, `archive`, `init.sh` | guests built on the spot |
//! | `between` | the storage site between both sites |
//! | `site` | a site's processes, and what it is asked |
//! | `rows` | what a client of the guests sees |
//! | `recovery` | what it adds up to: loss, and time by step |
//!
//! It says what really happened: rows are counted by a client and by the database, times by this program's clock.

mod archive;
mod between;
mod kernel;
mod recovery;
mod rows;
mod site;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use self::between::Between;
use self::recovery::Seen;
use self::rows::{RowWatch, get};
use self::site::{DOMAIN, LOG_SIZE, LOOK, NETWORK, PATIENCE, Site};
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::hypervisor::{
    DiskSpec, Hypervisor, NicSpec, OnReboot, PowerState, QEMU_DEFINITION, QemuDefinition, QemuDriver, VmSpec,
};
use crate::ids::Name;
use crate::progress::Progress;

pub use archive::Archive;
pub use kernel::{GUEST_MODULES, GuestKernel};
pub use recovery::Recovery;

/// The QEMU that runs the guests.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// What a guest does, after its modules.
const INIT: &str = include_str!("init.sh");
/// The guests: a web server, and a database that writes all the time.
const GUESTS: [&str; 2] = ["db", "web"];
/// Size of each guest's disk.
const DISK: u64 = 64 << 20;
/// Memory of each guest.
const MEMORY: u64 = 128 << 20;
/// How long the database writes before each blow.
const WRITES: Duration = Duration::from_secs(4);

/// What to show.
#[derive(Debug, Clone)]
pub struct GuestDemoRequest {
    /// Directory to work in; made where it does not exist, and must be empty.
    pub dir: PathBuf,
    /// The program whose appliances run.
    pub program: PathBuf,
    /// Directory where a kernel package was unpacked; this machine's own where absent.
    pub kernel_dir: Option<PathBuf>,
    /// URL of the storage site between both; an S3 server of this process where absent. What is written there stays.
    pub store: Option<String>,
    /// File with its options.
    pub store_options: Option<PathBuf>,
}

/// Something that was done, and how long it took.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestStage {
    /// Seconds since the beginning.
    pub at: f64,
    /// Seconds that it took.
    pub seconds: f64,
    /// What.
    pub what: String,
}

/// What was shown.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GuestDemoReport {
    /// Where everything is.
    pub dir: PathBuf,
    /// What guests ran on.
    pub hypervisor: String,
    /// What was done, in order.
    pub stages: Vec<GuestStage>,
    /// Seconds that a plain boot of both guests took.
    pub boot_seconds: f64,
    /// Longest time without a row while the disks moved, in seconds.
    pub live_pause_seconds: f64,
    /// The forced completion after the disaster.
    pub forced: Recovery,
    /// The planned way back.
    pub planned: Recovery,
    /// Requests that the S3 server between both sites answered; `None` where another one was named.
    pub store_requests: Option<u64>,
}

/// Shows it all, and ends what it started.
///
/// # Errors
/// `Unsupported` where this machine lacks something, with what to install; `Damaged` where a row is missing that must not
/// be; what any of the commands says.
pub async fn guest_demo(request: GuestDemoRequest, progress: Arc<Progress>, cancel: Cancel) -> Result<GuestDemoReport> {
    let mut demo = Demo::prepare(request, progress, cancel.clone()).await?;
    let shown = cancel.or_stop(demo.show()).await;
    let ended = demo.end().await;
    demo.report.store_requests = demo.store.requests();
    shown?;
    ended?;
    Ok(demo.report)
}

struct Demo {
    began: Instant,
    dir: PathBuf,
    store: Between,
    first: Site,
    second: Site,
    vms: Vec<Name>,
    progress: Arc<Progress>,
    report: GuestDemoReport,
}

impl Demo {
    async fn prepare(request: GuestDemoRequest, progress: Arc<Progress>, cancel: Cancel) -> Result<Demo> {
        progress.stage("build guests");
        let began = Instant::now();
        if !Path::new(QEMU).exists() {
            let why = format!("no {QEMU}: install qemu-system-x86");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let dirs: Vec<PathBuf> = request.kernel_dir.clone().into_iter().chain(["/".into()]).collect();
        let kernel = GuestKernel::find(&dirs)?;
        let dir = super::empty_dir(&request.dir, &["boot", "plain"])?;
        let vms = GUESTS.into_iter().map(Name::new).collect::<Result<Vec<_>>>()?;
        let (at, built, names) = (dir.clone(), kernel, vms.clone());
        super::blocking(move || build(&at, &built, &names)).await?;
        progress.stage("try what guests can run on");
        let probe = QemuDriver::new(crate::hypervisor::QemuSettings::plain(dir.join("probe"), QEMU.into()));
        let kvm = probe.has_kvm().await?;
        let site = |name| Site::new(name, &dir, &request.program, kvm, &vms, cancel.clone());
        let report = GuestDemoReport { dir: dir.clone(), hypervisor: probe.describe(), ..GuestDemoReport::default() };
        let (first, second) = (site("first")?, site("second")?);
        let store = Between::prepare(request.store, request.store_options.as_deref(), &dir)?;
        Ok(Demo { began, store, first, second, vms, progress, report, dir })
    }

    async fn show(&mut self) -> Result<()> {
        self.both_sites().await?;
        let rows = self.plain_guests().await?;
        self.protect_live(&rows).await?;
        self.follow().await?;
        self.disaster(rows).await?;
        self.back().await
    }

    /// Ends everything that was started, whatever happened.
    async fn end(&mut self) -> Result<()> {
        // Appliances first: they start guests.
        self.first.kill_appliance();
        self.second.kill_appliance();
        let guests = [self.first.kill_guests().await, self.second.kill_guests().await];
        guests.into_iter().collect()
    }

    /// Notes a stage that began at `since`.
    fn done(&mut self, since: Instant, what: impl Into<String>) {
        let (at, seconds) = ((since - self.began).as_secs_f64(), since.elapsed().as_secs_f64());
        let what = what.into();
        self.progress.note(format!("{at:7.1} s  {what} ({seconds:.1} s)"));
        self.report.stages.push(GuestStage { at, seconds, what });
    }

    async fn both_sites(&mut self) -> Result<()> {
        self.progress.stage("start both appliances");
        let since = Instant::now();
        let options = self.store.options.as_ref().map(|path| path.display().to_string());
        for site in [&mut self.first, &mut self.second] {
            site.serve().await?;
            let mut words = vec!["store", "add", "s", "--url", &self.store.url];
            words.extend(options.iter().flat_map(|options| ["--options-file", options]));
            site.ask(&words).await?;
        }
        self.first.ask(&["domain", "create", DOMAIN, "--store", "s"]).await?;
        self.done(since, format!("two appliances, and between them {}", self.store.describe()));
        Ok(())
    }

    /// Guests as they are before anybody protects them: each on its image.
    async fn plain_guests(&mut self) -> Result<RowWatch> {
        self.progress.stage("start guests at the first site");
        let since = Instant::now();
        for vm in &self.vms {
            let image = self.dir.join("plain").join(vm.key());
            self.first.driver.define(&spec(&self.dir, vm, &image)?).await?;
            self.first.driver.start(vm).await?;
        }
        self.until_serving(&self.first, 1).await?;
        self.report.boot_seconds = since.elapsed().as_secs_f64();
        self.done(since, "both guests run on plain images: nothing protects them");
        let database = self.first.way(&self.vms[0]).unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        Ok(RowWatch::start(database))
    }

    /// Moves the running guests' disks onto exports: what QEMU copies there is the initial sync.
    async fn protect_live(&mut self, rows: &RowWatch) -> Result<()> {
        self.progress.stage("protect the running guests");
        let since = Instant::now();
        rows.take_longest_pause();
        let before = rows.newest();
        for vm in &self.vms {
            let image = self.first.disks().join(vm.key());
            empty_disk(&image)?;
            let definition = self.dir.join("boot").join(format!("{}.json", vm.key()));
            let (disk, text) = (format!("data={}", image.display()), definition.display().to_string());
            let nic = format!("{NETWORK},mac={}", mac(vm));
            let memory = MEMORY.to_string();
            let words = [
                "vm",
                "protect",
                DOMAIN,
                vm.as_str(),
                "--disk",
                &disk,
                "--definition",
                &text,
                "--definition-kind",
                QEMU_DEFINITION,
                "--cpus",
                "1",
                "--memory",
                &memory,
                "--nic",
                &nic,
            ];
            self.first.ask(&words).await?;
            let uri = self.export(vm).await?;
            self.first.driver.move_disk(vm, &Name::new("data")?, &uri, PATIENCE).await?;
            let plain = self.dir.join("plain").join(vm.key());
            std::fs::remove_file(&plain).io_context(|| format!("remove {}", plain.display()))?;
        }
        // Points before this one may be of disks that were still empty.
        let point = self.cut(&self.first).await?;
        self.first.until("a point that covers both guests as they are", |shown| covers(shown, point)).await?;
        self.report.live_pause_seconds = rows.take_longest_pause().as_secs_f64();
        let written = rows.newest().saturating_sub(before);
        self.done(since, format!("both disks moved under protection while the guests ran: {written} rows meanwhile"));
        Ok(())
    }

    /// Where the disk of a VM is served at the first site.
    async fn export(&self, vm: &Name) -> Result<String> {
        let uri = |shown: &Value| {
            let vms = shown["vms"].as_array()?;
            let own = vms.iter().find(|one| one["name"] == vm.as_str())?;
            own["disks"][0]["export_uri"].as_str().filter(|uri| !uri.is_empty()).map(str::to_owned)
        };
        let shown = self.first.until("its disk is served", |shown| uri(shown).is_some()).await?;
        uri(&shown).ok_or_else(|| Error::new(ErrorKind::Internal, "a URI that was there is gone"))
    }

    async fn follow(&mut self) -> Result<()> {
        self.progress.stage("follow at the second site");
        let since = Instant::now();
        self.second.ask(&["domain", "import", DOMAIN, "--store", "s"]).await?;
        let disks = self.second.disks().display().to_string();
        let mut words = vec!["failover", "continuous", DOMAIN, "--datastore", &disks, "--log-size", LOG_SIZE];
        words.extend(["--default-network", NETWORK, "--yes", DOMAIN]);
        self.second.task(&words).await?;
        self.second.until("its disks follow", |shown| shown["follow"]["caught_up"] == true).await?;
        self.done(since, "the second site's disks follow the domain");
        tokio::time::sleep(WRITES).await;
        Ok(())
    }

    /// The first site is gone from one moment to the next; the second takes over by force.
    async fn disaster(&mut self, rows: RowWatch) -> Result<()> {
        self.progress.stage("disaster");
        let landed = self.landed(&rows).await?;
        let since = Instant::now();
        self.first.kill_appliance();
        self.first.kill_guests().await?;
        self.done(since, "DISASTER: kill -9 of the first site's appliance and guests");
        self.progress.stage("complete by force at the second site");
        let since = Instant::now();
        let task = &self.second.task(&["failover", "complete", DOMAIN, "--yes", DOMAIN]).await?;
        let boots = self.until_serving(&self.second, 2).await?;
        let rto = since.elapsed();
        let found = self.found(&self.second).await?;
        let acknowledged = rows.newest();
        self.report.forced = Recovery::of(&Seen { rows: &rows, acknowledged, landed, found, boots, rto, task })?;
        self.done(since, format!("forced completion: both guests serve at the second site, with {found} rows"));
        Ok(())
    }

    /// Waits until what was acknowledged a moment ago has landed at the second site; its newest row.
    async fn landed(&self, rows: &RowWatch) -> Result<u64> {
        let row = rows.newest();
        let point = self.cut(&self.first).await?;
        let has_it = |shown: &Value| number(&shown["follow"]["landed"]["number"]) >= Some(point);
        self.second.until("a point that was cut at the first site", has_it).await?;
        Ok(row)
    }

    /// Cuts a point; its number.
    async fn cut(&self, site: &Site) -> Result<u64> {
        let cut = site.ask(&["domain", "point", DOMAIN]).await?;
        number(&cut["point"]).ok_or_else(|| Error::new(ErrorKind::Internal, format!("a point without a number: {cut}")))
    }

    /// The first site's appliance comes back, takes its disks up to date, and the guests with a planned hand-over.
    async fn back(&mut self) -> Result<()> {
        self.progress.stage("follow back at the first site");
        let database = self.second.way(&self.vms[0]).unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let rows = RowWatch::start(database);
        let since = Instant::now();
        self.first.serve().await?;
        let disks = self.first.disks().display().to_string();
        let mut words = vec!["failback", "continuous", DOMAIN, "--datastore", &disks, "--log-size", LOG_SIZE];
        words.extend(["--default-network", NETWORK, "--in-place", "--accept-divergence", "--yes", DOMAIN]);
        self.first.until("it is fenced", |shown| shown["mode"] == "DOMAIN_MODE_FENCED").await?;
        self.first.task(&words).await?;
        self.first.until("its disks follow", |shown| shown["follow"]["caught_up"] == true).await?;
        self.done(since, "the first site's appliance is back, fenced; its own disks follow, only differences fetched");
        tokio::time::sleep(WRITES).await;
        let landed = rows.newest();
        let point = self.cut(&self.second).await?;
        self.second.until("everything is recoverable", |shown| covers(shown, point)).await?;

        self.progress.stage("planned failback to the first site");
        let since = Instant::now();
        let task = &self.first.task(&["failover", "complete", DOMAIN, "--planned", "--yes", DOMAIN]).await?;
        let boots = self.until_serving(&self.first, 3).await?;
        let rto = since.elapsed();
        let found = self.found(&self.first).await?;
        let acknowledged = self.second.said_last(&self.vms[0], "stopped after").await?;
        self.report.planned = Recovery::of(&Seen { rows: &rows, acknowledged, landed, found, boots, rto, task })?;
        self.done(since, format!("planned failback: both guests serve at the first site, with {found} rows"));
        if found != acknowledged {
            let why =
                format!("the database had acknowledged {acknowledged} rows at its end, and came back with {found}");
            return Err(Error::new(ErrorKind::Damaged, why));
        }
        Ok(())
    }

    /// Waits until both guests serve; how often the web server has booted from its disk, which must be `boots` times.
    ///
    /// # Errors
    /// `Io` where one does not come to serve, `Damaged` where the disk counts other boots.
    async fn until_serving(&self, site: &Site, boots: u64) -> Result<u64> {
        let mut said = String::new();
        let until = Instant::now() + PATIENCE;
        for (vm, page) in self.vms.iter().zip(["found", "index.html"]) {
            let address = site.way(vm).unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
            said = loop {
                if let Some(said) = get(address, page).await {
                    break said;
                }
                if let Some(trouble) = site.driver.trouble(vm).await? {
                    return Err(Error::new(ErrorKind::Io, format!("guest {vm}: {trouble}")));
                }
                let off = site.driver.state(vm).await? != PowerState::Running;
                if off || Instant::now() > until {
                    return Err(Error::new(ErrorKind::Io, format!("guest {vm} does not serve (off: {off})")));
                }
                tokio::time::sleep(LOOK).await;
            };
        }
        match boots_of(&said) {
            Some(counted) if counted == boots => Ok(counted),
            _ => {
                let why = format!("the web server is at boot {boots} of its disk, and its page says {said:?}");
                Err(Error::new(ErrorKind::Damaged, why))
            }
        }
    }

    /// Rows that the database found at its boot.
    ///
    /// # Errors
    /// `Damaged` where one in between is missing or broken.
    async fn found(&self, site: &Site) -> Result<u64> {
        let address = site.way(&self.vms[0]).unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
        let said = get(address, "found").await.unwrap_or_default();
        let mut numbers = said.split(' ').map(str::parse::<u64>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(found)), Some(Ok(0))) => Ok(found),
            _ => Err(Error::new(ErrorKind::Damaged, format!("the database says of its rows: {said:?}"))),
        }
    }
}

/// Whether a domain is recoverable, each VM at `point` or later.
fn covers(shown: &Value, point: u64) -> bool {
    let vms = shown["vms"].as_array().map(Vec::as_slice).unwrap_or_default();
    let covered = vms.iter().all(|vm| number(&vm["point"]) >= Some(point));
    shown["status"] == "PROTECTION_STATUS_RECOVERABLE" && vms.len() == GUESTS.len() && covered
}

/// A number of 64 bits, which JSON of the interface has as text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// How many boots the page of the web server tells.
fn boots_of(page: &str) -> Option<u64> {
    page.strip_prefix("<h1>page of ")?.strip_suffix(" boots</h1>")?.parse().ok()
}

/// Kernel, first root, definitions and file systems.
fn build(dir: &Path, kernel: &GuestKernel, vms: &[Name]) -> Result<()> {
    let boot = dir.join("boot");
    let write = |name: &str, bytes: &[u8]| {
        let path = boot.join(name);
        std::fs::write(&path, bytes).io_context(|| format!("write {}", path.display()))
    };
    std::fs::copy(kernel.image(), boot.join("kernel")).io_context(|| format!("copy {}", kernel.image().display()))?;
    write("initrd", &kernel.initramfs(&GUEST_MODULES, INIT.as_bytes())?)?;
    for vm in vms {
        write(&format!("{}.json", vm.key()), definition(dir, vm)?.as_bytes())?;
        let image = dir.join("plain").join(vm.key());
        empty_disk(&image)?;
        let words = ["-q", "-F", "-t", "ext4"].map(std::ffi::OsStr::new);
        let words: Vec<_> = words.into_iter().chain([image.as_os_str()]).collect();
        if !super::images::tool("mke2fs", &words) {
            let why = "mke2fs is not here or failed: install e2fsprogs";
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
    }
    Ok(())
}

/// Nobody may have it open when it is protected.
fn empty_disk(image: &Path) -> Result<()> {
    let made = std::fs::File::create_new(image).and_then(|file| file.set_len(DISK));
    made.io_context(|| format!("make {}", image.display()))
}

fn definition(dir: &Path, vm: &Name) -> Result<String> {
    let definition = QemuDefinition {
        kernel: Some(dir.join("boot/kernel")),
        initrd: Some(dir.join("boot/initrd")),
        append: format!("console=ttyS0 quiet panic=-1 part={vm}"),
        on_reboot: OnReboot::Stop,
        ..QemuDefinition::default()
    };
    serde_json::to_string(&definition)
        .map_err(|e| Error::with_source(ErrorKind::Internal, "put a definition into JSON", e))
}

fn mac(vm: &Name) -> String {
    let last = crate::format::xxh3_64(vm.as_str().as_bytes()).to_le_bytes();
    format!("52:54:00:{:02x}:{:02x}:{:02x}", last[0], last[1], last[2])
}

/// A guest on an image of its own.
fn spec(dir: &Path, vm: &Name, image: &Path) -> Result<VmSpec> {
    let uri = url::Url::from_file_path(image)
        .map_err(|()| Error::new(ErrorKind::Invalid, format!("image {} makes no URL", image.display())))?;
    Ok(VmSpec {
        name: vm.clone(),
        domain: Name::new(DOMAIN)?,
        cpus: 1,
        memory_bytes: MEMORY,
        firmware: String::new(),
        disks: vec![DiskSpec { name: Name::new("data")?, uri: uri.to_string(), size: DISK }],
        nics: vec![NicSpec { name: "nic0".into(), mac: mac(vm), network: NETWORK.into(), ..NicSpec::default() }],
        placement: Default::default(),
        storage_policy: String::new(),
        definition_kind: QEMU_DEFINITION.to_owned(),
        definition: definition(dir, vm)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_counts_once_it_covers_every_guest() {
        let shown = |status: &str, points: &[u64]| {
            let vms: Vec<Value> = points.iter().map(|n| serde_json::json!({ "point": n.to_string() })).collect();
            serde_json::json!({ "status": format!("PROTECTION_STATUS_{status}"), "vms": vms })
        };
        assert!(covers(&shown("RECOVERABLE", &[7, 8]), 7));
        assert!(!covers(&shown("RECOVERABLE", &[6, 8]), 7), "a disk that was still empty");
        assert!(!covers(&shown("RECOVERABLE", &[8]), 7) && !covers(&shown("INITIAL_SYNC", &[7, 8]), 7));
        assert!(!covers(&serde_json::json!({ "status": "PROTECTION_STATUS_RECOVERABLE", "vms": [{}, {}] }), 0));
    }

    #[test]
    fn a_page_without_a_count_is_no_boot() {
        assert_eq!(boots_of("<h1>page of 3 boots</h1>"), Some(3));
        for other in ["", "<h1>page of  boots</h1>", "<h1>page of 3", "hello"] {
            assert_eq!(boots_of(other), None, "{other}");
        }
    }
}
