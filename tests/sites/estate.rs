//! Two sites in a network each, and the storage site in a third, to which a cable leads from each of them.
//!
//! ```text
//! [first: appliance, guests] --veth-- relay \
//!                                            S3 server     [storage site]
//! [second: appliance, guests] -veth-- relay /
//! ```

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::guest::{Guests, SIZE, Vm};
use super::relay::Relay;
use crate::support::appliance::{PATIENCE, Place};
use crate::support::namespaces::{self, Namespace};
use crate::support::site::Site;
use freshet::s3_server::{Options, S3Server};

pub(crate) const FIRST: usize = 0;
pub(crate) const SECOND: usize = 1;
const NAMES: [&str; 2] = ["first", "second"];

/// Modes of the domain: where it is at home, away from there, and where disks follow it.
pub(crate) const HOME: &str = "DOMAIN_MODE_PROTECTED";
pub(crate) const AWAY: &str = "DOMAIN_MODE_RUNNING_IN_FAILOVER";
pub(crate) const FOLLOWS: &str = "DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS";
pub(crate) const FENCED: &str = "DOMAIN_MODE_FENCED";
/// Size of replication logs.
const LOG: &str = "256MiB";
/// A storage site that does not answer is given up sooner than by default, so that the tests need not wait.
const PATIENT_FOR: &str = "CONNECT_TIMEOUT=1s\nSTALL_TIMEOUT=3s\nRETRY_TOTAL=5s\nRETRY_PAUSE_MAX=500ms\n";

/// See the module. What is first here ends first.
pub(crate) struct Estate {
    pub(crate) guests: Vec<Guests>,
    pub(crate) vms: Vec<Arc<Vm>>,
    pub(crate) sites: Vec<Site>,
    relays: Vec<Relay>,
    _s3: S3Server,
    network: Namespace,
    pub(crate) place: Arc<Place>,
}

impl Estate {
    /// Networks, storage site and appliances; no domain yet. `None` where networks cannot be made here.
    pub(crate) fn new(test: &str) -> Option<Estate> {
        if !namespaces::can_be_made(test) {
            return None;
        }
        let mut place = Place::new();
        let network = Namespace::new().unwrap();
        let s3 = network.within(|| S3Server::start(&place.path("store"), Options::default()).unwrap());
        let mut relays = Vec::new();
        for (i, name) in NAMES.into_iter().enumerate() {
            let site = Namespace::new().unwrap();
            network.cable(&site, name, &format!("10.77.{i}.1/24"), &format!("10.77.{i}.2/24"));
            let at = Ipv4Addr::new(10, 77, i as u8, 1);
            let relay = network.within(|| Relay::start(at, s3.port()));
            let options = s3.env().into_iter().map(|(name, value)| match name.as_str() {
                "AWS_ENDPOINT_URL" | "AWS_ENDPOINT" => format!("{name}=http://{at}:{}\n", relay.port()),
                _ => format!("{name}={value}\n"),
            });
            std::fs::write(place.store_options(name), options.collect::<String>() + PATIENT_FOR).unwrap();
            relays.push(relay);
            place.networks.insert(name.to_owned(), site);
        }
        place.store = Some(s3.url("estate"));
        let place = Arc::new(place);
        let sites = NAMES.map(|name| Site::start(Arc::clone(&place), name)).into();
        Some(Estate { guests: Vec::new(), vms: Vec::new(), sites, relays, _s3: s3, network, place })
    }

    /// A domain `d` at home at the first site, with a VM `web` that runs there, imported at the second.
    pub(crate) fn with_domain(test: &str) -> Option<Estate> {
        let mut estate = Estate::new(test)?;
        estate.sites.iter().for_each(Site::add_store);
        estate.sites[FIRST].ask(&["domain", "create", "d", "--store", "s"]);
        estate.protect(Vm::new("web", &["root", "data"]));
        estate.sites[SECOND].ask(&["domain", "import", "d", "--store", "s"]);
        Some(estate)
    }

    /// Protects a VM at the first site, on empty disks, and has it run there.
    pub(crate) fn protect(&mut self, vm: Arc<Vm>) {
        let first = &self.sites[FIRST];
        let mut args = vec!["vm".to_owned(), "protect".into(), "d".into(), vm.name.into()];
        for disk in vm.disks {
            let path = self.place.path(&format!("{}-{disk}.raw", vm.name));
            std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
            args.extend(["--disk".to_owned(), format!("{disk}={}", path.display())]);
        }
        first.ask(&args.iter().map(String::as_str).collect::<Vec<_>>());
        first.appliance.until_recoverable("d");
        first.switch(vm.name, "running");
        self.guests.push(Guests::start(&vm, &self.sites));
        self.vms.push(vm);
        self.until("its first boot", |estate| estate.vms.iter().all(|vm| vm.boots() > 0));
    }

    /// Writes to a disk of a site that is fenced where no guest ever does: whatever follows onto these disks must undo it,
    /// though the domain changed nothing there.
    pub(crate) fn diverge(&self, site: usize) {
        let mut disk = self.sites[site].guest();
        disk.write(disk.size - (1 << 20), &[5; 4096]).unwrap();
    }

    /// Cuts the cable of a site, or mends it.
    pub(crate) fn link(&self, site: usize, up: bool) {
        self.network.ip(&["link", "set", "dev", NAMES[site], if up { "up" } else { "down" }]);
    }

    /// How long everything takes on the way of a site, each way.
    pub(crate) fn delay(&self, site: usize, delay: Duration) {
        self.relays[site].delay(delay);
    }

    /// Waits until something is so; guests must find no fault meanwhile.
    pub(crate) fn until(&mut self, what: &str, is: impl Fn(&Estate) -> bool) {
        let began = Instant::now();
        while !is(self) {
            self.guests.iter_mut().for_each(Guests::check);
            assert!(began.elapsed() < PATIENCE, "never: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until guests have written on by so many ticks.
    pub(crate) fn write_on(&mut self, ticks: u64) {
        let from: Vec<u64> = self.vms.iter().map(|vm| vm.acknowledged()).collect();
        self.until("further writes", |estate| {
            estate.vms.iter().zip(&from).all(|(vm, from)| vm.acknowledged() >= from + ticks)
        });
    }

    /// Cuts a point at a site: what guests wrote before it must never be lost. False where it could not be.
    pub(crate) fn point(&self, site: usize) -> bool {
        let cut = || self.sites[site].appliance.ask(&["domain", "point", "d"]).code == Some(0);
        match &self.vms[..] {
            [one] => one.promised_by(cut),
            [one, other] => one.promised_by(|| {
                let mut kept = false;
                other.promised_by(|| {
                    kept = cut();
                    kept
                });
                kept
            }),
            _ => cut(),
        }
    }

    /// Waits until the domain runs at a site with all its guests.
    pub(crate) fn runs(&mut self, site: usize) {
        self.sites[site].comes_to_run(if site == FIRST { HOME } else { AWAY });
        self.until("the guests' boots", |estate| estate.vms.iter().all(|vm| vm.site() == NAMES[site]));
        self.write_on(20);
    }

    /// Arguments by which a domain comes to a site, and more.
    pub(crate) fn plan(&self, site: usize, command: &[&str], more: &[&str]) -> Vec<String> {
        let datastore = self.sites[site].datastore();
        let usual = ["d", "--datastore", &datastore, "--log-size", LOG, "--yes", "d"];
        [command, &usual, more].concat().into_iter().map(str::to_owned).collect()
    }

    /// Arguments by which the other site follows after it handed the domain to `site`.
    pub(crate) fn remote(&self, site: usize) -> Vec<String> {
        let datastore = self.sites[1 - site].datastore();
        ["--resume-remote", &datastore, "--remote-log-size", LOG].map(str::to_owned).into()
    }

    /// Completes at a site by consent, and waits for that.
    pub(crate) fn complete_planned(&self, site: usize, resume_remote: bool) {
        let remote = if resume_remote { self.remote(site) } else { Vec::new() };
        let args = ["failover", "complete", "d", "--planned", "--yes", "d"].into_iter();
        self.sites[site].task(&args.chain(remote.iter().map(String::as_str)).collect::<Vec<_>>());
    }

    /// Has the disks that are at a site, or new ones where none are, follow the domain. What they hold of their own is
    /// given up.
    pub(crate) fn follow(&self, site: usize, in_place: bool) {
        let command = if site == FIRST { "failback" } else { "failover" };
        let more: &[&str] = if in_place { &["--in-place", "--accept-divergence"] } else { &[] };
        let args = self.plan(site, &[command, "continuous"], more);
        self.sites[site].task(&args.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Where the disk of a VM stands at a site.
    pub(crate) fn disk(&self, site: usize, vm: &str, disk: &str) -> PathBuf {
        match site {
            FIRST => self.place.path(&format!("{vm}-{disk}.raw")),
            _ => PathBuf::from(self.sites[site].datastore()).join(format!("d/{vm}/{disk}.raw")),
        }
    }

    /// Ends the guests, and waits until the disks of both sites are the same, with all that was acknowledged.
    pub(crate) fn same_disks(&mut self, follower: usize) {
        self.guests.iter_mut().for_each(Guests::stop);
        self.guests.clear();
        self.follows(follower);
        for vm in &self.vms {
            let read = |site: usize| -> Vec<Vec<u8>> {
                vm.disks.iter().map(|disk| std::fs::read(self.disk(site, vm.name, disk)).unwrap()).collect()
            };
            let here = read(1 - follower);
            vm.judge(&here);
            assert!(here == read(follower), "VM {}: the disks of both sites differ", vm.name);
        }
    }

    /// Waits until disks at a site follow the domain, up to the point that is the newest now at the other one.
    pub(crate) fn follows(&self, site: usize) -> Value {
        let owner = &self.sites[1 - site];
        let newest = owner.ask(&["domain", "point", "d"])["point"].as_u64().unwrap();
        self.sites[site].appliance.until("d", "its disks follow", |shown| {
            shown["mode"] == FOLLOWS
                && shown["follow"]["running"] == true
                && shown["follow"]["applied"]["number"].as_u64().is_some_and(|n| n >= newest)
        })
    }
}
