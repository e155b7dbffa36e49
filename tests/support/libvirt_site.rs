//! A site with a libvirt daemon of its own beside its appliance.

use std::ops::{Deref, DerefMut};

use super::appliance::{Appliance, Place};
use super::guest::Kernel;
use super::libvirt::{Libvirt, User, missing};
use super::namespaces::Namespace;
use super::site::Site;
use super::skipped;

/// See the module.
pub(crate) struct LibvirtSite<'p> {
    pub(crate) site: Site<&'p Place>,
    pub(crate) libvirt: Libvirt,
    /// Further settings in `[protect]`.
    protect: &'static str,
}

impl<'p> Deref for LibvirtSite<'p> {
    type Target = Site<&'p Place>;
    fn deref(&self) -> &Site<&'p Place> {
        &self.site
    }
}

impl DerefMut for LibvirtSite<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.site
    }
}

fn serve(place: &Place, name: &str, libvirt: &Libvirt, protect: &str) -> Appliance {
    let more = format!("[hypervisor]\nkind = \"libvirt\"\nuri = \"{}\"\npoll = \"50ms\"\n", libvirt.uri());
    let settings = place.settings(name, &more);
    let text = std::fs::read_to_string(&settings).unwrap();
    std::fs::write(&settings, text.replace("[protect]\n", &format!("[protect]\n{protect}\n"))).unwrap();
    Appliance::start(&settings, &place.path(&format!("{name}-api.sock"))).unwrap()
}

impl<'p> LibvirtSite<'p> {
    pub(crate) fn start(place: &'p Place, name: &'static str) -> LibvirtSite<'p> {
        LibvirtSite::start_as(place, name, User::Root, "")
    }

    /// One whose guests run as this user, and whose settings in `[protect]` end with `protect`.
    pub(crate) fn start_as(place: &'p Place, name: &'static str, user: User, protect: &'static str) -> LibvirtSite<'p> {
        LibvirtSite::beside(place, name, Libvirt::start_as(&place.path(name), user), protect)
    }

    /// One whose guests have cards on a network of this name, and nothing else in their network.
    pub(crate) fn start_networked(place: &'p Place, name: &'static str, network: &str) -> LibvirtSite<'p> {
        let own = Namespace::new().unwrap();
        own.ip(&["link", "add", "name", "bridge", "type", "bridge"]);
        own.ip(&["link", "set", "dev", "bridge", "up"]);
        let libvirt = Libvirt::start_in(&place.path(name), User::Root, Some(own));
        libvirt.make_network(network, "bridge");
        LibvirtSite::beside(place, name, libvirt, "")
    }

    fn beside(place: &'p Place, name: &'static str, libvirt: Libvirt, protect: &'static str) -> LibvirtSite<'p> {
        let site = Site::with(place, name, "", |place, name, _| serve(place, name, &libvirt, protect));
        LibvirtSite { site, libvirt, protect }
    }

    /// Starts the appliance anew; one that runs is killed.
    pub(crate) fn serve_again(&mut self) {
        self.site.crash();
        self.site.appliance = serve(self.site.place, self.site.name, &self.libvirt, self.protect);
    }

    /// Has the disks of domain `d` follow here.
    pub(crate) fn follow(&self, verb: &str, more: &[&str]) {
        let datastore = self.datastore();
        let mut args = vec![verb, "continuous", "d", "--datastore", &datastore, "--log-size", "256MiB", "--yes", "d"];
        args.extend(more);
        self.task(&args);
        self.until_mode("DOMAIN_MODE_CONTINUOUS_REHYDRATION_IN_PROGRESS");
    }

    /// Makes domain `d` in store `s`.
    pub(crate) fn make_domain(&self) {
        self.add_store();
        self.ask(&["domain", "create", "d", "--store", "s"]);
    }

    pub(crate) fn import_domain(&self) {
        self.add_store();
        self.ask(&["domain", "import", "d", "--store", "s"]);
    }

    /// Brings domain `d` here by a planned failover or failback, begun now; the task's identity.
    pub(crate) fn begin_planned(&self, verb: &str, more: &[&str]) -> String {
        self.begin_as_needed(verb, &[&["--planned"], more].concat())
    }

    /// Takes domain `d` by force, as its disks are at the storage site.
    pub(crate) fn take(&self, verb: &str, more: &[&str]) {
        self.ended(&self.begin_as_needed(verb, more), "TASK_STATE_DONE");
    }

    fn begin_as_needed(&self, verb: &str, more: &[&str]) -> String {
        let datastore = self.datastore();
        let args = [verb, "start", "d", "--datastore", &datastore, "--log-size", "256MiB", "--yes", "d"];
        self.begin(&[&args[..], more].concat())
    }

    /// Guests, daemon and appliance end at once.
    pub(crate) fn power_failure(&mut self) {
        self.libvirt.power_failure();
        self.site.crash();
    }

    /// Comes back after a power failure.
    pub(crate) fn return_again(&mut self) {
        self.libvirt.start_again();
        self.serve_again();
    }
}

/// Runs a test of guests under libvirt, where there is what they need.
pub(crate) fn with_a_guest(what: &str, test: impl FnOnce(&Kernel)) {
    match (missing(), Kernel::find()) {
        (None, Ok(kernel)) => test(&kernel),
        (Some(why), _) | (None, Err(why)) => skipped(what, &why),
    }
}
