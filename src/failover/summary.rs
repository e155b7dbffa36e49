//! What a plan comes to, told before it is started: which VMs, from which point, how much, how long, and what is lost.
//!
//! Pure. Nothing is promised: bytes are counted, times are those bytes at a rate whose basis is named.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::facts::{DomainFacts, LocalDisks, Owner, PointFacts, VmFacts};
use super::plan::FailoverPlan;
use super::starting;
use super::survey::{Loss, Rate, Survey};
use super::task::TaskKind;
use super::validate::{Act, taking_part};
use super::words::VmStatus;
use crate::ids::Name;

/// One VM of a summary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmSummary {
    /// Which.
    pub name: Name,
    /// Its status.
    pub status: VmStatus,
    /// Why it takes no part; `None` where it does.
    pub excluded: Option<String>,
    /// The newest point that covers it.
    pub point: Option<PointFacts>,
    /// Milliseconds since that point.
    pub age_millis: Option<u64>,
    /// Bytes that must be fetched for it.
    pub fetch_bytes: u64,
    /// Seconds that this takes at the rate of the summary.
    pub seconds: Option<f64>,
}

/// What a plan comes to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The domain.
    pub domain: Name,
    /// What the task would do.
    pub kind: TaskKind,
    /// Who owns the domain, where it can be read.
    pub owner: Option<Owner>,
    /// Its VMs.
    pub vms: Vec<VmSummary>,
    /// The point to be used. A planned failover uses the owner's final point, which does not exist yet.
    pub point: Option<PointFacts>,
    /// Milliseconds since that point.
    pub age_millis: Option<u64>,
    /// Bytes to fetch for all that take part.
    pub fetch_bytes: u64,
    /// Seconds that this takes; `None` where no rate is known.
    pub seconds: Option<f64>,
    /// What the estimate rests on.
    pub basis: String,
    /// What will be lost; `None` where nothing is, as in a planned one.
    pub loss: Option<Loss>,
    /// VMs of which more than that is lost, or all: no point of now covers them.
    pub uncovered: Vec<Name>,
    /// What this site's disks hold that no chain has, and that would be overwritten, in words; `None` where nothing is.
    pub overwritten: Option<String>,
    /// Damage of the disks that is known of, disk by disk.
    #[serde(default)]
    pub damage: Vec<String>,
    /// What must be so at the other site for it to follow afterwards; empty where it was not asked for.
    pub remote_conditions: Vec<String>,
    /// Which cards get which addresses, and how; empty where none does.
    pub addressing: Vec<String>,
    /// What is done once disks are ready, in order; for a continuous failover that is at its completion.
    pub starting: Vec<String>,
}

impl FailoverPlan {
    /// What it comes to, where there is what `survey` says. Sound only where [`FailoverPlan::validate`] finds no error.
    pub fn summary(&self, survey: &Survey, act: Act) -> Summary {
        let facts = survey.facts.as_ref();
        let rate = survey.rate.as_ref().filter(|r| r.bytes_per_second > 0.0);
        let seconds = |bytes: u64| rate.map(|r| bytes as f64 / r.bytes_per_second);
        let excluded = facts.map(|f| taking_part(self, f).1).unwrap_or_default();
        let follow = facts.and_then(|f| f.follow.as_ref());
        let damaged = |vm: &VmFacts| !survey.damage.is_empty() && follow.is_some_and(|f| f.damages(&vm.name));
        let of_vm = |vm: &VmFacts| VmSummary {
            name: vm.name.clone(),
            // Whatever covers it, the disks that would be used lack something.
            status: if damaged(vm) { VmStatus::Error } else { vm.status },
            excluded: excluded.iter().find(|(name, _)| *name == vm.name).map(|(_, why)| why.clone()),
            point: vm.point,
            age_millis: vm.point.zip(facts).map(|(p, f)| f.now.millis_since(p.time)),
            fetch_bytes: vm.fetch_bytes,
            seconds: seconds(vm.fetch_bytes),
        };
        let vms: Vec<VmSummary> = facts.map(|f| f.vms.iter().map(of_vm).collect()).unwrap_or_default();
        let fetch_bytes = vms.iter().filter(|v| v.excluded.is_none()).map(|v| v.fetch_bytes).sum();
        let takes = act == Act::Complete || matches!(self.kind(), TaskKind::Failover | TaskKind::Failback);
        let free = facts.is_some_and(|f| f.owner.released.is_some() || f.is_left_lying());
        Summary {
            domain: self.general.domain.clone(),
            kind: self.kind(),
            owner: facts.map(|f| f.owner.clone()),
            vms,
            point: survey.point,
            age_millis: survey.point.zip(facts).map(|(p, f)| f.now.millis_since(p.time)),
            fetch_bytes,
            seconds: seconds(fetch_bytes),
            basis: basis(rate, facts),
            loss: (takes && !self.failover.planned && !free).then_some(survey.loss),
            uncovered: facts.map(uncovered).filter(|_| takes && !self.failover.planned && !free).unwrap_or_default(),
            overwritten: facts.and_then(|facts| overwritten(facts.disks)).filter(|_| act == Act::Start),
            damage: survey.damage.clone(),
            remote_conditions: self.remote_conditions(facts.map(|f| &f.owner.site), act),
            addressing: self.told_addresses(survey),
            starting: self.told_order(survey),
        }
    }

    fn told_order(&self, survey: &Survey) -> Vec<String> {
        let Some(facts) = &survey.facts else { return Vec::new() };
        let (part, _) = taking_part(self, facts);
        let with_cards = |vm: &VmFacts| (vm.name.clone(), vm.networks.clone());
        let vms: Vec<_> = facts.vms.iter().filter(|vm| part.contains(&vm.name)).map(with_cards).collect();
        starting::words(self, &vms)
    }

    fn told_addresses(&self, survey: &Survey) -> Vec<String> {
        let (Some(runbook), Some(facts)) = (&self.options.runbook, &survey.facts) else { return Vec::new() };
        let (part, _) = taking_part(self, facts);
        let vms = runbook.groups.iter().flat_map(|group| &group.vms).filter(|vm| part.contains(&vm.vm));
        let mut told: Vec<String> = vms
            .flat_map(|vm| vm.nics.iter().filter_map(move |nic| Some((&vm.vm, nic.nic, nic.ip.as_ref()?))))
            .map(|(vm, nic, ip)| {
                let gateway = if ip.gateway.is_empty() { String::new() } else { format!(", gateway {}", ip.gateway) };
                let dns =
                    if ip.dns.is_empty() { String::new() } else { format!(", name servers {}", ip.dns.join(", ")) };
                format!("card {nic} of VM {vm} gets {}{gateway}{dns}", ip.address)
            })
            .collect();
        if !told.is_empty()
            && let Some(Ok(how)) = &survey.addressing
        {
            told.push(how.clone());
        }
        told
    }

    fn remote_conditions(&self, owner: Option<&Name>, act: Act) -> Vec<String> {
        let Some(remote) = self.options.resume_remote.as_ref().filter(|_| self.takes_over(act)) else {
            return Vec::new();
        };
        let log = match remote.dr.log_size {
            0 => "room for as large a replication log as its settings say".to_owned(),
            bytes => format!("{bytes} bytes for a replication log"),
        };
        let site = owner.map_or_else(|| "the other site".to_owned(), |s| format!("site {s}"));
        vec![
            format!("{site} keeps its disks of the domain: they become the ones that follow, in place"),
            format!("{site} has {log} in {}, and nothing else uses it", remote.dr.log_store.display()),
            format!("{site} has all networks that the settings map to"),
            format!("{site} checks this before it hands the domain over, and refuses with the reason otherwise"),
        ]
    }
}

fn uncovered(facts: &DomainFacts) -> Vec<Name> {
    facts.vms.iter().filter(|vm| vm.status != VmStatus::Recoverable).map(|vm| vm.name.clone()).collect()
}

/// What no chain has of this site's disks.
pub(super) fn overwritten(disks: LocalDisks) -> Option<String> {
    let LocalDisks::Diverged { common, bytes } = disks else { return None };
    let what = bytes.map_or("an unknown number of bytes".to_owned(), |bytes| format!("up to {bytes} bytes"));
    Some(format!("this site wrote {what} after segment {} that no chain has", common.segment.get()))
}

/// What bytes and seconds rest on.
fn basis(rate: Option<&Rate>, facts: Option<&DomainFacts>) -> String {
    let rate = rate.map_or("no rate was measured yet", |rate| &rate.basis);
    match facts.is_some_and(|facts| facts.follow.is_none() && facts.disks != LocalDisks::None) {
        true => format!("at most: of disks that are here only what differs is fetched; {rate}"),
        false => rate.to_owned(),
    }
}

impl Summary {
    /// Whether starting it wants a confirmation: something is lost, at the other site or at this one.
    pub fn loses(&self) -> bool {
        self.loss.is_some() || self.overwritten.is_some()
    }

    /// What will be lost, in words; empty for nothing.
    pub fn loss_words(&self) -> String {
        let Some(loss) = self.loss else { return String::new() };
        let names: Vec<&str> = self.uncovered.iter().map(Name::as_str).collect();
        match names.is_empty() {
            true => loss.to_string(),
            false => {
                format!("{loss}; and more of VMs that no point of now covers, or all of them: {}", names.join(", "))
            }
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.age_millis / 1000;
        write!(f, "what was written in the last {seconds} s")?;
        match (self.points, self.segments) {
            (0, 0) => write!(f, " and has not reached the storage site"),
            (points, segments) => {
                write!(
                    f,
                    ", of that {points} points and {segments} segments ({} bytes) at the storage site",
                    self.bytes
                )
            }
        }
    }
}
