//! Whether a plan can work: held against what there is, all findings at once. Pure.
//!
//! An error keeps the plan from being started; a warning is to be known. What is found here is not met half-way.

use std::collections::HashSet;
use std::path::Path;

use super::facts::{DomainFacts, FollowFacts, LocalDisks, VmFacts};
use super::finding::{Finding, Severity, Stage};
use super::plan::{Direction, DrSettings, FailoverMode, FailoverPlan, PointChoice};
use super::runbook::Runbook;
use super::runbook_check::{MAX_ENTRIES, MAX_TEXT, absurd_resources};
use super::shape;
use super::summary::overwritten;
use super::survey::{Space, Survey};
use super::words::VmStatus;
use crate::ids::Name;

/// Longest wait for a release in seconds.
const MAX_RELEASE_LIMIT: u64 = 604_800;

/// What a plan is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Begin it.
    Start,
    /// Complete a continuous one.
    Complete,
    /// Follow a domain that this site is about to hand over.
    FollowAfterHandOver,
}

impl FailoverPlan {
    /// What is wrong with it, where there is what `survey` says.
    pub fn validate(&self, survey: &Survey, act: Act) -> Vec<Finding> {
        let mut check = Check { plan: self, survey, act, found: Vec::new() };
        check.bounds();
        check.domain();
        check.datastore();
        check.networks();
        check.vms();
        check.dr();
        check.options();
        if let Some(runbook) = &self.options.runbook {
            let mut vms: Vec<Name> = survey.facts.iter().flat_map(|f| f.vms.iter().map(|v| v.name.clone())).collect();
            if act == Act::Complete {
                // Those that left since it was set: nothing is done with them.
                vms.extend(runbook.groups.iter().flat_map(|group| group.vms.iter().map(|vm| vm.vm.clone())));
            }
            if act == Act::FollowAfterHandOver && runbook.runs_programs() && !survey.runs_remote_scripts {
                let text = "the other site's runbook has scripts, and this site does not run them";
                let remedy = "leave them out, or allow them at this site (failover.remote_scripts in its settings)";
                check.error(Stage::Runbook, "scripts", text, remedy);
            }
            if survey.facts.is_some() {
                check.found.extend(runbook.findings(&vms));
                check.agents(runbook);
                check.addresses(runbook);
            }
        }
        check.found
    }

    /// The domain will belong to this site when the task is done.
    pub(super) fn takes_over(&self, act: Act) -> bool {
        match act {
            Act::Start => self.general.mode == FailoverMode::AsNeeded,
            Act::Complete => true,
            Act::FollowAfterHandOver => false,
        }
    }
}

/// Whether any of them keeps a plan from being started.
pub fn has_errors(findings: &[Finding]) -> bool {
    findings.iter().any(|f| f.severity == Severity::Error)
}

/// The VMs that take part, and those that do not, each with the reason: of an as-needed recovery only those that are
/// `Recoverable`, of a continuous one all.
pub(super) fn taking_part(plan: &FailoverPlan, facts: &DomainFacts) -> (Vec<Name>, Vec<(Name, String)>) {
    let all = plan.general.mode == FailoverMode::Continuous;
    let (part, out): (Vec<&VmFacts>, Vec<&VmFacts>) =
        facts.vms.iter().partition(|v| all || v.status == VmStatus::Recoverable);
    let why = |v: &VmFacts| format!("its status is {}, only {} VMs take part", v.status, VmStatus::Recoverable);
    (part.iter().map(|v| v.name.clone()).collect(), out.iter().map(|v| (v.name.clone(), why(v))).collect())
}

struct Check<'a> {
    plan: &'a FailoverPlan,
    survey: &'a Survey,
    act: Act,
    found: Vec<Finding>,
}

impl Check<'_> {
    fn error(&mut self, stage: Stage, field: &str, text: impl Into<String>, remedy: impl Into<String>) {
        self.found.push(Finding::error(stage, field, text, remedy));
    }

    fn warning(&mut self, stage: Stage, field: &str, text: impl Into<String>, remedy: impl Into<String>) {
        self.found.push(Finding::warning(stage, field, text, remedy));
    }

    /// Sizes of fields that come from outside, before anything is made of them.
    fn bounds(&mut self) {
        let plan = self.plan;
        let too_many = plan.vms.vms.len().max(plan.vms.networks.len()).max(plan.failover.placement.len());
        if too_many > MAX_ENTRIES {
            self.error(Stage::Vms, "vms", format!("{too_many} entries"), format!("at most {MAX_ENTRIES} can be"));
        }
        let texts = plan.failover.placement.iter().chain(&plan.vms.networks).flat_map(|(k, v)| [k, v]);
        let singles = [&plan.vms.default_network, &plan.vms.storage_policy, &plan.dr.appliance];
        let longest = texts.chain(singles).map(String::len).max().unwrap_or(0);
        if longest > MAX_TEXT {
            self.error(Stage::General, "*", format!("a text of {longest} bytes"), format!("at most {MAX_TEXT} can be"));
        }
        let paths =
            [(Stage::Failover, "datastore", &plan.failover.datastore), (Stage::Dr, "log_store", &plan.dr.log_store)];
        for (stage, field, path) in paths {
            if !is_plain(path) {
                let text = format!("{} is no absolute path without ..", path.display());
                self.error(stage, field, text, "name a directory by its whole path");
            }
        }
    }

    fn domain(&mut self) {
        let name = &self.plan.general.domain;
        if let Some(why) = &self.survey.store_problem {
            let text = format!("domain {name} cannot be read: {why}");
            return self.error(Stage::General, "domain", text, "make the storage site reachable, then plan again");
        }
        let Some(facts) = &self.survey.facts else {
            let text = format!("nothing is known of domain {name}");
            return self.error(Stage::General, "domain", text, "import it first");
        };
        if self.act != Act::FollowAfterHandOver {
            self.owner(facts);
            self.direction(facts);
        }
        self.recoverable(facts);
        // Of what is this site's already nothing is taken, and nothing lost.
        if self.plan.takes_over(self.act) && !facts.is_left_lying() {
            self.point(facts);
        }
        match (self.act, &facts.follow) {
            (Act::Start, Some(_)) if self.plan.general.mode == FailoverMode::Continuous => {
                self.error(
                    Stage::General,
                    "mode",
                    "disks at this site follow it already",
                    "complete it, or forget it first",
                );
            }
            (Act::Start, Some(_)) => {
                let text = "disks at this site follow it";
                self.error(Stage::General, "mode", text, "complete the continuous failover instead");
            }
            (Act::Complete, None) => {
                self.error(
                    Stage::General,
                    "mode",
                    "no disks at this site follow it",
                    "start a continuous failover first",
                );
            }
            (Act::Complete, Some(follow)) => self.following(follow),
            _ => {}
        }
    }

    /// How far the disks that are to be run on are.
    fn following(&mut self, follow: &FollowFacts) {
        if !follow.running
            && let Some(why) = &follow.problem
        {
            let text = format!("its disks do not follow it now: {why}");
            self.warning(
                Stage::General,
                "mode",
                text,
                "what is missing is fetched after it is taken over; mend it first",
            );
        }
        let (done, total) = follow.done;
        if !follow.caught_up && total > 0 {
            let text = format!("{done} of {total} bytes of its base are here");
            self.warning(Stage::General, "mode", text, "guests are off until the rest is fetched; wait for it");
        }
    }

    fn owner(&mut self, facts: &DomainFacts) {
        if let Some(seen) = self.plan.options.from.as_ref().filter(|s| **s != facts.owner.site) {
            let text = format!(
                "it belongs to site {} since {}, and no longer to {seen}",
                facts.owner.site, facts.owner.claimed
            );
            self.error(Stage::General, "domain", text, "look at the summary again, then decide anew");
        }
        if facts.is_left_lying() && self.plan.takes_over(self.act) {
            let text = "this site owns it already, and nothing serves its disks";
            self.warning(Stage::General, "domain", text, "its disks are brought to what it was taken over at, and run");
        } else if facts.owner.site == facts.site {
            let (text, remedy) = match facts.owner.released {
                None => ("this site owns it already", "there is nothing to recover"),
                Some(_) => ("this site has released it, and nobody has taken it", "withdraw the release instead"),
            };
            self.error(Stage::General, "domain", text, remedy);
        } else if facts.protecting {
            let text = "a protection of this site still serves its disks";
            self.error(Stage::General, "domain", text, "end that protection first");
        }
    }

    fn direction(&mut self, facts: &DomainFacts) {
        let home = facts.home == facts.site;
        match self.plan.general.direction {
            Direction::Failback if !home => {
                let text = format!("it is at home at site {}", facts.home);
                self.error(Stage::General, "direction", text, "fail over to this site, or back at that one");
            }
            Direction::Failover if home => {
                self.error(Stage::General, "direction", "it is at home at this site", "choose a failback");
            }
            _ => {}
        }
    }

    fn recoverable(&mut self, facts: &DomainFacts) {
        let (part, out) = taking_part(self.plan, facts);
        for (vm, why) in &out {
            let text = format!("VM {vm} takes no part: {why}");
            self.warning(Stage::General, "vms", text, "wait until it is, or choose a continuous failover");
        }
        if !self.plan.failover.planned && self.plan.takes_over(self.act) {
            let uncovered = facts.vms.iter().filter(|vm| part.contains(&vm.name) && vm.status != VmStatus::Recoverable);
            for vm in uncovered {
                let text = format!("VM {} is {}: no point of now covers it", vm.name, vm.status);
                let remedy =
                    "its disks would be of no one moment: wait for a point that covers it, or know that it is lost";
                self.warning(Stage::General, "vms", text, remedy);
            }
        }
        if part.is_empty() {
            let text = match facts.vms.is_empty() {
                true => "it has no VMs".to_owned(),
                false => format!("none of its {} VMs is Recoverable", facts.vms.len()),
            };
            self.error(Stage::General, "vms", text, "wait for a point that covers a VM");
        }
    }

    fn point(&mut self, facts: &DomainFacts) {
        let planned = self.plan.failover.planned;
        match (&self.survey.point_problem, self.survey.point) {
            (Some(why), _) => self.error(Stage::Options, "point", why.clone(), "choose another point"),
            (None, None) => self.error(Stage::Options, "point", "it has no point", "wait for its first one"),
            (None, Some(point)) if point.at.segment < facts.floor => {
                let text =
                    format!("point {} is below {}, where recovery begins", point.at.segment.get(), facts.floor.get());
                self.error(Stage::Options, "point", text, "choose a newer one");
            }
            (None, Some(_)) => {}
        }
        if planned {
            if !self.survey.loss.owner_alive {
                let text = format!("site {} gives no sign of life", facts.owner.site);
                self.warning(
                    Stage::Failover,
                    "planned",
                    text,
                    "a planned failover waits for it; a forced one does not",
                );
            }
            return;
        }
        let released = facts.owner.released.is_some();
        if self.survey.loss.owner_alive && !released {
            let text = format!("site {} lives: its guests may run on, and what they write is lost", facts.owner.site);
            self.warning(Stage::Failover, "planned", text, "choose a planned failover unless that is meant");
        }
        if !self.plan.options.accept_loss && !released {
            let text = format!("taking the domain by force loses {}", self.survey.loss);
            self.error(Stage::Options, "accept_loss", text, "accept it, or choose a planned failover");
        }
    }

    fn datastore(&mut self) {
        let (survey, plan) = (self.survey, self.plan);
        let disks = survey.facts.as_ref().map(|f| f.disks).unwrap_or_default();
        if plan.options.in_place && self.act == Act::Start && disks == LocalDisks::None {
            let text = "this site has no disks of it";
            self.error(Stage::Options, "in_place", text, "leave it out: they are fetched in whole then");
        }
        if let Some(why) = &survey.datastore.problem {
            let text = format!("{}: {why}", plan.failover.datastore.display());
            return self.error(Stage::Failover, "datastore", text, "choose another directory");
        }
        if plan.options.in_place || self.act != Act::Start {
            return;
        }
        let Some(facts) = &survey.facts else { return };
        let (part, _) = taking_part(plan, facts);
        let of_part = |f: fn(&VmFacts) -> u64| {
            facts.vms.iter().filter(|v| part.contains(&v.name)).map(f).fold(0, u64::saturating_add)
        };
        let same = survey.datastore.device == survey.log_store.device;
        let log = if same { self.new_log_bytes() } else { 0 };
        let log = match survey.datastore.device == survey.protect_log.device {
            true => log.saturating_add(self.new_protect_log_bytes()),
            false => log,
        };
        // What an earlier try left there is gone on with.
        let need = of_part(|v| v.fetch_bytes).saturating_sub(survey.datastore.held_bytes).saturating_add(log);
        let grown = of_part(|v| v.logical_bytes).saturating_sub(survey.datastore.held_bytes).saturating_add(log);
        let free = survey.datastore.free_bytes;
        if free < need {
            let text = format!("{free} bytes are free, {need} are needed");
            self.error(Stage::Failover, "datastore", text, "make room, or choose another directory");
        } else if free < grown {
            let text = format!("{free} bytes are free, disks and log can grow by {grown}");
            self.warning(Stage::Failover, "datastore", text, "make room before guests fill their disks");
        }
    }

    /// Bytes that the log of the protection takes which follows, where it does not exist yet.
    fn new_protect_log_bytes(&self) -> u64 {
        let takes = self.plan.takes_over(self.act);
        if takes { self.survey.protect_log_bytes.saturating_sub(self.survey.protect_log.held_bytes) } else { 0 }
    }

    /// Room for the protection that follows: past the point of no return it is too late to look for it.
    fn protect_log(&mut self) {
        let (survey, need) = (self.survey, self.new_protect_log_bytes());
        if need == 0 {
            return;
        }
        let shares = |other: &Space| survey.protect_log.device == other.device;
        let log = if shares(&survey.log_store) { self.new_log_bytes() } else { 0 };
        let free = survey.protect_log.free_bytes.saturating_sub(log);
        match &survey.protect_log.problem {
            Some(why) => {
                let text = format!("the log of the protection that follows has no place: {why}");
                self.error(Stage::Dr, "log_store", text, "mend that directory (protect.log_store in the settings)");
            }
            None if free < need => {
                let text =
                    format!("the log of the protection that follows takes {need} bytes, and {free} are free for it");
                self.error(Stage::Dr, "log_store", text, "make room there (protect.log_store and protect.log_size)");
            }
            None => {}
        }
    }

    /// Bytes that the replication log takes where it does not exist yet.
    fn new_log_bytes(&self) -> u64 {
        self.plan.dr.log_size.saturating_sub(self.survey.log_store.held_bytes)
    }

    fn networks(&mut self) {
        if let Some(why) = &self.survey.hypervisor_problem {
            let text = format!("the hypervisor cannot be asked: {why}");
            self.error(Stage::Failover, "placement", text, "make it reachable, then plan again");
        }
        for what in &self.survey.unheeded {
            self.error(Stage::Failover, "placement", what.clone(), "leave it out, or correct it");
        }
        let Some(known) = &self.survey.networks else { return };
        let known: HashSet<&str> = known.iter().map(String::as_str).collect();
        let appliance = &self.plan.appliance_networks;
        let named = [
            ("replication", &appliance.replication),
            ("internal", &appliance.internal),
            ("management", &appliance.management),
        ];
        for (field, network) in named {
            if !network.is_empty() && !known.contains(network.as_str()) {
                let text = format!("this site has no network {network:?}");
                self.error(Stage::ApplianceNetworks, field, text, "choose one that it has");
            }
        }
    }

    fn vms(&mut self) {
        let Some(facts) = &self.survey.facts else { return };
        let plan = self.plan;
        for (name, setting) in &plan.vms.vms {
            let field = format!("vms.{name}");
            if !facts.vms.iter().any(|v| v.name == *name) {
                let text = format!("the domain has no VM {name}");
                match self.act {
                    // It left since the plan was made, and nothing is done with what stands there of it.
                    Act::Complete => self.warning(Stage::Vms, &field, text, "what the plan says of it is left out"),
                    _ => self.error(Stage::Vms, &field, text, "remove it, or correct its name"),
                }
            }
            self.found.extend(absurd_resources(Stage::Vms, &field, setting.cpus, setting.memory_bytes));
        }
        let (part, _) = taking_part(plan, facts);
        for vm in facts.vms.iter().filter(|v| part.contains(&v.name)) {
            self.cards(vm);
        }
        for vm in self.survey.foreign_vms.iter().filter(|v| part.contains(v)) {
            let text = format!("the hypervisor has a VM {vm} that is not of this domain");
            self.error(Stage::Vms, &format!("vms.{vm}"), text, "rename or remove that VM");
        }
        for (vm, why) in self.survey.refused_vms.iter().filter(|(vm, _)| part.contains(vm)) {
            let field = format!("vms.{vm}");
            match self.plan.takes_over(self.act) {
                true => self.error(Stage::Vms, &field, why.clone(), "remove the cause, then plan again"),
                false => self.warning(Stage::Vms, &field, why.clone(), "remove the cause before it is completed"),
            }
        }
        for (vm, change) in self.survey.changed_vms.iter().filter(|(vm, _)| part.contains(vm)) {
            let remedy = "see that its guest bears with it";
            self.warning(Stage::Vms, &format!("vms.{vm}"), change.clone(), remedy);
        }
    }

    fn cards(&mut self, vm: &VmFacts) {
        for (i, there) in vm.networks.iter().enumerate() {
            let field = format!("vms.{}.networks[{i}]", vm.name);
            match (shape::network(self.plan, &vm.name, i, there), &self.survey.networks) {
                (None, _) if there.is_empty() => {}
                (None, _) => {
                    let text = format!("card {i} of VM {}, on network {there:?}, is mapped to none", vm.name);
                    self.error(Stage::Vms, &field, text, "map that network, or set a default");
                }
                (Some(here), Some(known)) if !known.contains(&here) => {
                    let text = format!("this site has no network {here:?}");
                    self.error(Stage::Vms, &field, text, "choose one that it has");
                }
                _ => {}
            }
        }
    }

    /// Agents that are waited for, and cannot be asked here.
    fn agents(&mut self, runbook: &Runbook) {
        for (i, group) in runbook.groups.iter().enumerate() {
            for vm in group.vms.iter().filter(|vm| vm.waits_for_agent()) {
                let problem = self.survey.agent_problems.iter().find(|(name, _)| *name == vm.vm);
                if let Some((_, why)) = problem {
                    let text = format!("the agent in VM {} is waited for, and cannot be asked: {why}", vm.vm);
                    let remedy = "wait for something else, such as a port";
                    self.error(Stage::Runbook, &format!("groups[{i}].{}.wait_for", vm.vm), text, remedy);
                }
            }
        }
    }

    /// Cards that there are not, and addresses that cannot be handed over.
    fn addresses(&mut self, runbook: &Runbook) {
        // Of a VM of which nothing is shipped yet the owner tells no cards; it hands that one over with the others.
        let facts = self.survey.facts.as_ref().filter(|_| self.act != Act::FollowAfterHandOver);
        for (i, group) in runbook.groups.iter().enumerate() {
            for (start, nic) in group.vms.iter().flat_map(|vm| vm.nics.iter().map(move |nic| (vm, nic))) {
                let field = format!("groups[{i}].{}.nics[{}]", start.vm, nic.nic);
                let there = facts.and_then(|f| f.vms.iter().find(|vm| vm.name == start.vm)).map(|vm| vm.networks.len());
                if let Some(there) = there.filter(|there| nic.nic as usize >= *there) {
                    let text = format!("VM {} has {there} network cards, counted from 0", start.vm);
                    self.error(Stage::Runbook, &field, text, "correct the number of the card, or remove this");
                }
                if let (Some(ip), Some(Err(why))) = (&nic.ip, &self.survey.addressing) {
                    let text = format!("address {} cannot be handed to the guest: {why}", ip.address);
                    self.error(Stage::Runbook, &format!("{field}.ip"), text, "set it up in the guest, or leave it out");
                }
            }
        }
    }

    fn dr(&mut self) {
        let (survey, dr) = (self.survey, &self.plan.dr);
        if !dr.appliance.is_empty() && !survey.appliances.contains(&dr.appliance) {
            let text = format!("this site has no appliance {:?}", dr.appliance);
            self.error(Stage::Dr, "appliance", text, format!("choose one of: {}", survey.appliances.join(", ")));
        }
        match (&survey.log_store.problem, enough(&survey.log_store, self.new_log_bytes())) {
            (Some(why), _) => {
                let text = format!("{}: {why}", dr.log_store.display());
                self.error(Stage::Dr, "log_store", text, "choose another directory");
            }
            (None, false) => {
                let text = format!("{} bytes are free there", survey.log_store.free_bytes);
                self.error(Stage::Dr, "log_size", text, "make room, choose a smaller log or another directory");
            }
            (None, true) => {}
        }
        self.protect_log();
        self.sizes(dr);
    }

    fn sizes(&mut self, dr: &DrSettings) {
        let survey = self.survey;
        let least = [
            (
                "log_size",
                dr.log_size,
                survey.largest_segment.saturating_mul(2),
                "it must hold two of the largest segments",
            ),
            (
                "metadata_size",
                // 0 is what is needed.
                if dr.metadata_size == 0 { survey.metadata_bytes } else { dr.metadata_size },
                survey.metadata_bytes,
                "maps and bitmaps of the disks need that",
            ),
            ("memory", dr.memory, survey.least_memory, "buffers need that"),
        ];
        for (field, has, least, why) in least {
            if has < least {
                self.error(Stage::Dr, field, format!("{has} bytes are too few: {why}"), format!("at least {least}"));
            }
        }
    }

    fn options(&mut self) {
        let (survey, options) = (self.survey, &self.plan.options);
        if !(1..=MAX_RELEASE_LIMIT).contains(&options.release_limit_seconds) {
            let text = format!("is {}", options.release_limit_seconds);
            self.error(Stage::Options, "release_limit_seconds", text, format!("must be 1 to {MAX_RELEASE_LIMIT}"));
        }
        if !survey.damage.is_empty() && !options.accept_damage && self.plan.takes_over(self.act) {
            let text = format!("the disks would not be as they were: {}", some(&survey.damage));
            self.error(Stage::Options, "accept_damage", text, "choose an older point, or accept the damage");
        }
        if let Some(text) = survey.facts.as_ref().and_then(|facts| overwritten(facts.disks))
            && !options.accept_divergence
        {
            let remedy = "copy what is needed, then accept that it is overwritten";
            self.error(Stage::Options, "accept_divergence", text, remedy);
        }
        if self.act == Act::Start && !self.plan.takes_over(self.act) {
            self.said_too_early();
            return;
        }
        if let Some(remote) = &options.resume_remote {
            if !self.plan.failover.planned {
                let text = "only a planned failover can ask the other site for something";
                self.error(Stage::Options, "resume_remote", text, "choose a planned one, or leave it out");
            }
            if !is_plain(&remote.failover.datastore) || !is_plain(&remote.dr.log_store) {
                let text = "its directories must be absolute";
                self.error(Stage::Options, "resume_remote", text, "correct the settings for the other site");
            }
        }
    }
}

impl Check<'_> {
    /// What is decided when a continuous failover is completed, and is not kept until then.
    fn said_too_early(&mut self) {
        let plan = self.plan;
        let said = [
            (Stage::Failover, "planned", plan.failover.planned),
            (Stage::Options, "point", plan.options.point != PointChoice::Newest),
            (Stage::Options, "resume_remote", plan.options.resume_remote.is_some()),
            (Stage::Options, "accept_damage", plan.options.accept_damage),
        ];
        for (stage, field, _) in said.into_iter().filter(|(.., said)| *said) {
            let text = "is decided when this is completed, and is not kept until then";
            self.warning(stage, field, text, "say it again to the completion");
        }
    }
}

fn enough(space: &Space, need: u64) -> bool {
    space.free_bytes >= need
}

/// An absolute path without `..`.
fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|c| c == std::path::Component::ParentDir)
}

/// The first few of many.
fn some(all: &[String]) -> String {
    match all.len() {
        0..=3 => all.join("; "),
        n => format!("{}; and {} more", all[..3].join("; "), n - 3),
    }
}
