//! Hypervisors: what Freshet asks of whatever runs the guests.
//!
//! One small trait, [`Hypervisor`], with a driver for each kind. A driver defines VMs over disks that Freshet serves, starts
//! and stops them, and says in which state they are. It never touches a disk's bytes and never removes a disk.
//!
//! Every call may be repeated: what is so already is no error, except that [`start`](Hypervisor::start) and
//! [`define`](Hypervisor::define) need not bear with a VM that runs; callers look at [`state`](Hypervisor::state) first.

mod exec;
#[cfg(test)]
mod exec_tests;
mod files;
mod follow;
mod guest_disks;
mod libvirt;
mod none;
mod qemu;
mod restarts;
mod seed;
mod spec;
mod subprocess;

pub use exec::{EXEC_VERSION, ExecDriver, ExecSettings, MAX_ANSWER};
pub use guest_disks::{
    CopyStage, DiskCopy, DiskPlace, FoundDisk, FoundVm, GuestDisks, MoveWatcher, Refresh, Refreshed, SeenDisk,
    Whereabouts,
};
pub use libvirt::{LIBVIRT_XML, LibvirtDriver, LibvirtSettings};
pub use none::NoHypervisor;
pub use qemu::{
    AccelChoice, Console, Forward, MAX_QEMU_VM_LEN, Machine, NetworkKind, OnReboot, QEMU_DEFINITION, QEMU_VM_FORMAT,
    QemuDefinition, QemuDriver, QemuNetwork, QemuSettings, qemu_vm,
};
pub(crate) use seed::prefixed;
pub use seed::{SEED_SERIAL, Seed};
pub use spec::{DiskSpec, Foreseen, GuestChange, GuestEvent, NicSpec, OffEvidence, PowerState, VmEntry, VmSpec};
pub use subprocess::{COMMAND_PATH, CommandEnd, RunCommand};

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;
use crate::ids::Name;

/// How a [`Seed`] hands addresses over, for operators.
pub(crate) const BY_SEED: &str = "they are handed over on a disk for cloud-init, which a guest without cloud-init does not \
                                  heed; other cards of these VMs ask by DHCP";

/// Most addresses of a guest that are looked at: what its agent says is the guest's word.
pub const MAX_ADDRESSES: usize = 4096;

/// What runs guests at one site.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// What it is, for messages.
    fn describe(&self) -> String;

    /// Whether it can be used at all, as far as that is told without asking about a VM. A driver exists before what it
    /// drives does: exports of guests that run must not wait for a program that is missing.
    ///
    /// # Errors
    /// `Unreachable`, or what is wrong, with what to do about it.
    async fn ready(&self) -> Result<()> {
        Ok(())
    }

    /// Moves disks of VMs that it runs already, where it can.
    fn guest_disks(&self) -> Option<&dyn GuestDisks> {
        None
    }

    /// Tells of VMs that were started, stopped or halted by whatever hand, for as long as this is waited for. A driver
    /// that cannot tell never does.
    async fn watch(&self, _tell: &(dyn Fn(GuestChange) + Send + Sync)) {
        std::future::pending().await
    }

    /// The VMs that it knows.
    ///
    /// # Errors
    /// `Unreachable` where it does not answer.
    async fn inventory(&self) -> Result<Vec<VmEntry>>;

    /// The networks that a card can be put on; `None` where it cannot tell.
    ///
    /// # Errors
    /// `Unreachable` where it does not answer.
    async fn networks(&self) -> Result<Option<Vec<String>>>;

    /// What of a plan's placement and storage policies it makes nothing of, each in a sentence: a plan that says it would be
    /// another one than is carried out.
    fn unheeded(&self, placement: &BTreeMap<String, String>, policies: &[&str]) -> Vec<String> {
        unheeded(&self.describe(), &[], placement, policies)
    }

    /// How the addresses that cards are given get into a guest, in a sentence for the operator.
    ///
    /// # Errors
    /// Why they do not, in words, where this site cannot hand them over.
    fn addressing(&self) -> std::result::Result<&'static str, String>;

    /// Makes the VM known, or changes what is known of one that is off. It is not started. What it is otherwise than it was
    /// at the protected site without the plan saying so, each in a sentence.
    ///
    /// # Errors
    /// `Refused` where a VM of that name exists that is not Freshet's or runs; `Invalid` where it cannot be made.
    async fn define(&self, spec: &VmSpec) -> Result<Vec<String>>;

    /// What [`define`](Self::define) would make of each of `specs`, as far as can be told beforehand; nothing is said of those
    /// of which nothing is to be told. Nothing is changed.
    ///
    /// # Errors
    /// `Unreachable` where it does not answer.
    async fn foresee(&self, _specs: &[VmSpec]) -> Result<Vec<Foreseen>> {
        Ok(Vec::new())
    }

    /// Forgets the VM. Its disks stay as they are. A VM that is not known is no error.
    ///
    /// # Errors
    /// `Refused` where it runs.
    async fn undefine(&self, vm: &Name) -> Result<()>;

    /// Starts it.
    ///
    /// # Errors
    /// `NotFound` where it is not defined; `Unreachable` where the hypervisor does not answer.
    async fn start(&self, vm: &Name) -> Result<()>;

    /// Asks the guest to shut down, and waits up to `limit` until it is off. Whether it is.
    ///
    /// # Errors
    /// `NotFound` where it is not defined; `Unreachable` where the hypervisor does not answer.
    async fn shutdown(&self, vm: &Name, limit: Duration) -> Result<bool>;

    /// Switches it off at once.
    ///
    /// # Errors
    /// `Unreachable` where the hypervisor does not answer.
    async fn power_off(&self, vm: &Name) -> Result<()>;

    /// In which state it is.
    ///
    /// # Errors
    /// `Unreachable` where the hypervisor does not answer.
    async fn state(&self, vm: &Name) -> Result<PowerState>;

    /// Has the agent in the guest freeze its file systems, which writes out what they hold, and waits up to `limit` for that.
    /// Whether it did: `false` where there is no agent, and nothing was asked of it. After an error the guest may be
    /// frozen: thaw it in any case.
    ///
    /// # Errors
    /// `Unreachable` where the agent answers and does not come to an end in time; what it says where it cannot; `Refused`
    /// where it froze none.
    async fn freeze(&self, vm: &Name, limit: Duration) -> Result<bool>;

    /// Has the agent thaw them. A guest that is not frozen, or is off, is no error.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    async fn thaw(&self, vm: &Name, limit: Duration) -> Result<()>;

    /// Asks the agent in the guest for a sign of life and, with `addresses`, for the addresses of the guest's cards, and waits
    /// up to `limit`. `None` where no agent answers: it may yet. Of more than [`MAX_ADDRESSES`] the rest is left out.
    ///
    /// # Errors
    /// `Unsupported` where agents cannot be asked here, and waiting helps nothing; `Io` with the agent's words where it
    /// does not tell addresses; `Unreachable` where the hypervisor does not answer, or the agent breaks off.
    async fn agent(&self, vm: &Name, addresses: bool, limit: Duration) -> Result<Option<Vec<IpAddr>>>;

    /// Why the agent of a guest that is defined so cannot be asked here, as far as can be told before.
    fn agent_problem(&self, _: &VmSpec) -> Option<String> {
        None
    }

    /// What shows that the guest is really off, so that its disks can change hands.
    ///
    /// # Errors
    /// `Unreachable` where the hypervisor does not answer.
    async fn off_evidence(&self, vm: &Name) -> Result<OffEvidence>;

    /// What is wrong with a VM that was started, as far as can be told at once: it panicked, stands still, ended by itself.
    /// A driver that can set it right tries to. `None` where nothing is wrong, or nothing can be told.
    ///
    /// # Errors
    /// `Unreachable` where the hypervisor does not answer.
    async fn trouble(&self, _: &Name) -> Result<Option<String>> {
        Ok(None)
    }
}

/// What of a plan's placement and storage policies is unheeded by a driver that knows `words`, each with the values that it
/// takes, any where there are none.
fn unheeded(
    driver: &str,
    words: &[(&str, &[&str])],
    placement: &BTreeMap<String, String>,
    policies: &[&str],
) -> Vec<String> {
    let known = |word: &str| words.iter().find(|(known, _)| *known == word).map(|(_, values)| *values);
    let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let has = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    let mut told: Vec<String> = placement
        .iter()
        .filter_map(|(word, value)| match known(word) {
            None => Some(format!("placement.{word} means nothing to {driver}, which knows {has}")),
            Some(values) if !values.is_empty() && !values.contains(&value.as_str()) => {
                Some(format!("placement.{word} is {value:?}, and {driver} takes {}", values.join(", ")))
            }
            Some(_) => None,
        })
        .collect();
    told.extend(policies.iter().map(|policy| format!("{driver} has no storage policies, such as {policy:?}")));
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_driver_makes_nothing_of_is_told_word_by_word() {
        let words: [(&str, &[&str]); 2] = [("machine", &[]), ("mac", &["renew"])];
        let of = |pairs: &[(&str, &str)], policies: &[&str]| {
            let placement = pairs.iter().map(|(word, value)| ((*word).to_owned(), (*value).to_owned())).collect();
            unheeded("it", &words, &placement, policies)
        };
        assert_eq!(of(&[("machine", "any"), ("mac", "renew")], &[]), Vec::<String>::new());
        let told = of(&[("datacenter", "x"), ("mac", "renw")], &["gold"]);
        assert_eq!(
            told,
            [
                "placement.datacenter means nothing to it, which knows machine, mac",
                "placement.mac is \"renw\", and it takes renew",
                "it has no storage policies, such as \"gold\"",
            ]
        );
        let none = unheeded("it", &[], &BTreeMap::from([("a".to_owned(), "b".to_owned())]), &[]);
        assert_eq!(none, ["placement.a means nothing to it, which knows nothing"]);
    }
}
