//! What is wrong with a runbook: all findings at once, against the VMs of its domain. Pure.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::finding::{Finding, Stage};
use super::order::order;
use super::runbook::{Group, IpSettings, OnFailure, Probe, Runbook, Script, VmStart, WaitFor};
use crate::hypervisor::prefixed;
use crate::ids::Name;

/// Most groups, VMs, scripts of one place, and so on.
pub(super) const MAX_ENTRIES: usize = 10_000;
/// Longest time of a delay, a script or a wait in seconds.
pub(super) const MAX_SECONDS: u64 = 86_400;
/// Longest word, argument or text in bytes.
pub(super) const MAX_TEXT: usize = 4096;
/// Most virtual processors of a VM.
pub(super) const MAX_CPUS: u32 = 4096;
/// Memory of a VM in bytes: least and most.
pub(super) const MEMORY_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=64 << 40;
/// How often what failed is tried again by itself.
const RETRIES: std::ops::RangeInclusive<u32> = 1..=100;
/// Most name servers of a card.
const MAX_DNS: usize = 64;
/// Most network cards of a VM that a runbook can speak of.
const MAX_NIC: u32 = 1024;

impl Runbook {
    /// What is wrong with it, where the domain has `vms`.
    pub fn findings(&self, vms: &[Name]) -> Vec<Finding> {
        let mut check = Check { found: Vec::new(), vms: vms.iter().collect() };
        check.whole(self);
        check.found
    }
}

struct Check<'a> {
    found: Vec<Finding>,
    vms: HashSet<&'a Name>,
}

impl Check<'_> {
    fn error(&mut self, field: &str, text: impl Into<String>, remedy: &str) {
        self.found.push(Finding::error(Stage::Runbook, field, text, remedy));
    }

    fn warning(&mut self, field: &str, text: impl Into<String>, remedy: &str) {
        self.found.push(Finding::warning(Stage::Runbook, field, text, remedy));
    }

    fn whole(&mut self, runbook: &Runbook) {
        let entries = runbook.groups.iter().map(|g| 1 + g.vms.len()).sum::<usize>();
        if entries > MAX_ENTRIES {
            self.error("groups", format!("{entries} groups and VMs, at most {MAX_ENTRIES} can be"), "split the domain");
            return;
        }
        self.scripts("scripts_before", &runbook.scripts_before);
        self.scripts("scripts_after", &runbook.scripts_after);
        let mut names = HashSet::new();
        let mut vm_group: HashMap<&Name, usize> = HashMap::new();
        for (i, group) in runbook.groups.iter().enumerate() {
            let field = format!("groups[{i}]");
            if group.name.is_empty() || group.name.len() > MAX_TEXT || !names.insert(group.name.as_str()) {
                self.error(&format!("{field}.name"), format!("{:?} is empty or twice there", group.name), "rename it");
            }
            for vm in &group.vms {
                if vm_group.insert(&vm.vm, i).is_some() {
                    self.error(&format!("{field}.vms"), format!("VM {} stands in it twice", vm.vm), "remove one");
                }
            }
            self.group(&field, group);
        }
        self.order_of_groups(runbook);
        self.order_of_vms(runbook, &vm_group);
    }

    fn group(&mut self, field: &str, group: &Group) {
        self.seconds(&format!("{field}.delay_seconds"), group.delay_seconds, 0);
        self.text(&format!("{field}.confirm"), &group.confirm);
        self.scripts(&format!("{field}.scripts_before"), &group.scripts_before);
        self.scripts(&format!("{field}.scripts_after"), &group.scripts_after);
        for vm in &group.vms {
            self.vm(&format!("{field}.{}", vm.vm), vm);
        }
    }

    fn vm(&mut self, field: &str, vm: &VmStart) {
        if !self.vms.contains(&vm.vm) {
            let text = format!("the domain has no VM {}", vm.vm);
            self.error(field, text, "remove it, or correct its name");
        }
        self.seconds(&format!("{field}.delay_seconds"), vm.delay_seconds, 0);
        self.text(&format!("{field}.confirm"), &vm.confirm);
        self.resources(field, vm.cpus, vm.memory_bytes);
        for nic in &vm.nics {
            let field = format!("{field}.nics[{}]", nic.nic);
            if nic.nic >= MAX_NIC || vm.nics.iter().filter(|n| n.nic == nic.nic).count() > 1 {
                self.error(&field, format!("card {} is too high or named twice", nic.nic), "correct its number");
            }
            self.text(&format!("{field}.network"), &nic.network);
            if let Some(ip) = &nic.ip {
                self.ip(&field, ip);
            }
        }
        self.scripts(&format!("{field}.scripts_before"), &vm.scripts_before);
        self.scripts(&format!("{field}.scripts_after"), &vm.scripts_after);
        for (i, wait) in vm.wait_for.iter().enumerate() {
            self.wait(&format!("{field}.wait_for[{i}]"), wait);
        }
    }

    fn resources(&mut self, field: &str, cpus: Option<u32>, memory: Option<u64>) {
        self.found.extend(absurd_resources(Stage::Runbook, field, cpus, memory));
    }

    fn ip(&mut self, field: &str, ip: &IpSettings) {
        if prefixed(&ip.address).is_none() {
            let text = format!("{:?} is no address with a prefix length", ip.address);
            self.error(&format!("{field}.ip.address"), text, "write it as 10.0.0.5/24 or fd00::5/64");
        }
        let hosts = ip.dns.iter().chain((!ip.gateway.is_empty()).then_some(&ip.gateway));
        for host in hosts.filter(|h| h.parse::<IpAddr>().is_err()) {
            self.error(&format!("{field}.ip"), format!("{host:?} is no address"), "write it as 10.0.0.1 or fd00::1");
        }
        if ip.dns.len() > MAX_DNS {
            let text = format!("{} name servers, at most {MAX_DNS} can be", ip.dns.len());
            self.error(&format!("{field}.ip.dns"), text, "leave some out");
        }
        if let (Some((address, length)), Ok(gateway)) = (prefixed(&ip.address), ip.gateway.parse::<IpAddr>()) {
            let field = format!("{field}.ip.gateway");
            match reaches(address, length, gateway) {
                None => {
                    let text = format!("gateway {gateway} is of another kind than address {address}");
                    self.error(&field, text, "both must be IPv4, or both IPv6");
                }
                Some(false) => {
                    let text = format!("gateway {gateway} is not in the network of {address}/{length}");
                    self.warning(
                        &field,
                        text,
                        "correct the prefix length, unless the guest is to reach it all the same",
                    );
                }
                Some(true) => {}
            }
        }
    }

    fn wait(&mut self, field: &str, wait: &WaitFor) {
        self.seconds(&format!("{field}.limit_seconds"), wait.limit_seconds, 1);
        self.retries(field, "on_timeout", wait.on_timeout, wait.retries);
        match &wait.probe {
            Probe::TcpPort { host, port } if host.is_empty() || host.len() > 255 || *port == 0 => {
                self.error(field, format!("{host:?} port {port} cannot be connected to"), "name a host and a port");
            }
            Probe::TcpPort { .. } => {}
            Probe::Script { command } => self.command(field, command),
            Probe::GuestAgent { address } if !address.is_empty() && address.parse::<IpAddr>().is_err() => {
                let field = format!("{field}.probe.guest-agent.address");
                self.error(
                    &field,
                    format!("{address:?} is no address"),
                    "write it as 10.0.0.5 or fd00::5, or leave it out",
                );
            }
            Probe::GuestAgent { .. } => {}
        }
    }

    fn scripts(&mut self, field: &str, scripts: &[Script]) {
        if scripts.len() > MAX_ENTRIES {
            self.error(field, format!("{} scripts, at most {MAX_ENTRIES} can be", scripts.len()), "join them");
            return;
        }
        for (i, script) in scripts.iter().enumerate() {
            let field = format!("{field}[{i}]");
            self.command(&field, &script.command);
            self.seconds(&format!("{field}.limit_seconds"), script.limit_seconds, 1);
            self.retries(&field, "on_failure", script.on_failure, script.retries);
            for (name, value) in &script.environment {
                let bad_name = name.is_empty() || name.contains(['=', '\0']) || name.len() > MAX_TEXT;
                if bad_name || value.contains('\0') || value.len() > MAX_TEXT {
                    self.error(&format!("{field}.environment"), format!("{name:?} cannot be set"), "correct it");
                }
                if name.starts_with("FRESHET_") {
                    let text = format!("{name} is set by Freshet itself");
                    self.error(&format!("{field}.environment"), text, "choose another name");
                }
            }
        }
    }

    fn retries(&mut self, field: &str, when: &str, then: OnFailure, retries: Option<u32>) {
        let Some(retries) = retries else { return };
        let field = format!("{field}.retries");
        if !RETRIES.contains(&retries) {
            let remedy = format!("must be {} to {}", RETRIES.start(), RETRIES.end());
            self.error(&field, format!("is {retries}"), &remedy);
        }
        if then != OnFailure::Retry {
            let text = format!("it is there without {when} = \"retry\"");
            self.error(&field, text, "say that it is to be tried again, or remove this");
        }
    }

    fn command(&mut self, field: &str, command: &[String]) {
        let bad = |a: &String| a.contains('\0') || a.len() > MAX_TEXT;
        if command.first().is_none_or(String::is_empty) || command.len() > 1000 || command.iter().any(bad) {
            self.error(
                &format!("{field}.command"),
                "it names no program that can be run",
                "name program and arguments",
            );
        }
    }

    fn seconds(&mut self, field: &str, seconds: u64, least: u64) {
        if !(least..=MAX_SECONDS).contains(&seconds) {
            self.error(field, format!("is {seconds}"), &format!("must be {least} to {MAX_SECONDS}"));
        }
    }

    fn text(&mut self, field: &str, text: &str) {
        if text.len() > MAX_TEXT {
            self.error(field, format!("has {} bytes", text.len()), &format!("at most {MAX_TEXT} can be"));
        }
    }

    fn order_of_groups(&mut self, runbook: &Runbook) {
        let names: Vec<&str> = runbook.groups.iter().map(|g| g.name.as_str()).collect();
        let known: HashSet<&str> = names.iter().copied().collect();
        for (i, group) in runbook.groups.iter().enumerate() {
            for name in group.after.iter().filter(|n| !known.contains(n.as_str())) {
                let text = format!("there is no group {name:?}");
                self.error(&format!("groups[{i}].after"), text, "remove it, or correct its name");
            }
        }
        let after = |i: usize| runbook.groups[i].after.iter().map(String::as_str).collect();
        if let Err(cycle) = order(&names, after) {
            self.error("groups", format!("they wait for each other: {}", cycle.join(", ")), "remove one of these");
        }
    }

    fn order_of_vms(&mut self, runbook: &Runbook, vm_group: &HashMap<&Name, usize>) {
        let names: Vec<&str> = runbook.groups.iter().map(|g| g.name.as_str()).collect();
        let after = |i: usize| runbook.groups[i].after.iter().map(String::as_str).collect();
        let position: HashMap<usize, usize> =
            order(&names, after).unwrap_or_default().into_iter().enumerate().map(|(at, i)| (i, at)).collect();
        for (i, group) in runbook.groups.iter().enumerate() {
            for vm in &group.vms {
                let field = format!("groups[{i}].{}.after", vm.vm);
                for other in &vm.after {
                    match vm_group.get(other) {
                        None => self.error(&field, format!("no group has a VM {other}"), "remove it, or correct it"),
                        Some(g) if position.get(g) > position.get(&i) => {
                            let text = format!("VM {other} is in a later group");
                            self.error(&field, text, "put it into an earlier group, or the same");
                        }
                        Some(_) => {}
                    }
                }
            }
            let names: Vec<&str> = group.vms.iter().map(|v| v.vm.as_str()).collect();
            let after = |v: usize| group.vms[v].after.iter().map(Name::as_str).collect();
            if let Err(cycle) = order(&names, after) {
                let text = format!("VMs wait for each other: {}", cycle.join(", "));
                self.error(&format!("groups[{i}].vms"), text, "remove one of these");
            }
        }
    }
}

/// What is out of bounds of a VM's resources.
pub(super) fn absurd_resources(stage: Stage, field: &str, cpus: Option<u32>, memory: Option<u64>) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(cpus) = cpus.filter(|c| !(1..=MAX_CPUS).contains(c)) {
        let remedy = format!("must be 1 to {MAX_CPUS}");
        found.push(Finding::error(stage, format!("{field}.cpus"), format!("is {cpus}"), remedy));
    }
    if let Some(memory) = memory.filter(|m| !MEMORY_BYTES.contains(m)) {
        let remedy = "must be 1 MiB to 64 TiB";
        found.push(Finding::error(stage, format!("{field}.memory_bytes"), format!("is {memory}"), remedy));
    }
    found
}

/// Whether `gateway` is in the network of an address, or next to it by its kind; `None` where one is IPv4 and one is not.
fn reaches(address: IpAddr, length: u8, gateway: IpAddr) -> Option<bool> {
    let same = |a: u128, b: u128, bits: u32| {
        let shift = bits - u32::from(length);
        a.checked_shr(shift).unwrap_or(0) == b.checked_shr(shift).unwrap_or(0)
    };
    match (address, gateway) {
        (IpAddr::V4(a), IpAddr::V4(g)) => Some(same(u32::from(a).into(), u32::from(g).into(), 32)),
        (IpAddr::V6(a), IpAddr::V6(g)) => Some(g.is_unicast_link_local() || same(a.into(), g.into(), 128)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn of_json(text: &str) -> Runbook {
        serde_json::from_str(text).unwrap()
    }

    fn fields(runbook: &Runbook) -> Vec<String> {
        let found = runbook.findings(&[name("web"), name("db"), name("app")]);
        found.into_iter().map(|f| f.to_string()).collect()
    }

    #[test]
    fn a_sound_runbook_has_no_findings() {
        let book = of_json(
            r#"{"scripts_before":[{"command":["/bin/true"],"environment":{"A":"b"}}],
                "groups":[{"name":"front","after":["data"],"vms":[{"vm":"web","after":["db"]},{"vm":"app"}]},
                          {"name":"data","confirm":"is the array there?","vms":[{"vm":"db","cpus":4,"memory_bytes":1073741824,
                            "nics":[{"nic":0,"network":"dr","ip":{"address":"10.0.0.5/24","gateway":"10.0.0.1","dns":["fd00::1"]}},
                                    {"nic":1,"ip":{"address":"fd00::5/64","gateway":"fe80::1"}}],
                            "wait_for":[{"probe":{"tcp-port":{"host":"db","port":5432}},"limit_seconds":5,"on_timeout":"skip"},
                                        {"probe":{"guest-agent":{}}},{"probe":{"guest-agent":{"address":"fd00::5"}}}],
                            "scripts_after":[{"command":["/x"],"on_failure":"retry","retries":100},
                                             {"command":["/x"],"on_failure":"stop"}]}]}]}"#,
        );
        assert_eq!(fields(&book), Vec::<String>::new());
        assert_eq!(of_json(&serde_json::to_string(&book).unwrap()), book);
        assert!(serde_json::from_str::<Runbook>(r#"{"groups":[],"scripts_befor":[]}"#).is_err());
    }

    #[test]
    fn everything_that_is_wrong_is_found_at_once() {
        let book = of_json(
            r#"{"scripts_after":[{"command":[],"limit_seconds":0,"environment":{"FRESHET_VM":"x"},"on_failure":"retry","retries":101}],
                "groups":[{"name":"a","after":["b","nobody"],"delay_seconds":999999,"vms":[
                            {"vm":"web","after":["db"],"cpus":0,"memory_bytes":1},
                            {"vm":"ghost","nics":[{"nic":0,"ip":{"address":"10.0.0.5","gateway":"x"}},{"nic":0},
                              {"nic":1,"ip":{"address":"10.0.0.5/24","gateway":"fd00::1"}},
                              {"nic":2,"ip":{"address":"10.0.0.5/24","gateway":"10.0.1.1"}}]}]},
                          {"name":"b","after":["a"],"vms":[{"vm":"web"},{"vm":"db","after":["app"]},{"vm":"app","after":["db"],
                            "wait_for":[{"probe":{"tcp-port":{"host":"","port":0}}},{"probe":{"script":{"command":[""]}},"retries":1},
                                        {"probe":{"guest-agent":{"address":"10.0.0.5/24"}}}]}]},
                          {"name":""}]}"#,
        );
        let found = fields(&book).join("\n");
        for part in [
            "scripts_after[0].command",
            "scripts_after[0].limit_seconds",
            "wait_for[2].probe.guest-agent.address: \"10.0.0.5/24\" is no address",
            "scripts_after[0].retries: is 101",
            "wait_for[1].retries: it is there without on_timeout",
            "FRESHET_VM is set by Freshet",
            "no group \"nobody\"",
            "groups[0].delay_seconds",
            "they wait for each other: a, b",
            "groups[0].web.cpus",
            "groups[0].web.memory_bytes",
            "no VM ghost",
            "is no address with a prefix length",
            "nics[1].ip.gateway: gateway fd00::1 is of another kind",
            "nics[2].ip.gateway: gateway 10.0.1.1 is not in the network of 10.0.0.5/24",
            "card 0 is too high or named twice",
            "VM web stands in it twice",
            "VMs wait for each other: db, app",
            "cannot be connected to",
            "wait_for[1].command",
            "\"\" is empty or twice there",
        ] {
            assert!(found.contains(part), "{part} is missing in\n{found}");
        }
    }

    #[test]
    fn a_vm_cannot_wait_for_one_of_a_later_group() {
        let book = of_json(
            r#"{"groups":[{"name":"a","vms":[{"vm":"web","after":["db"]}]},{"name":"b","vms":[{"vm":"db"}]}]}"#,
        );
        let found = fields(&book);
        assert!(found.len() == 1 && found[0].contains("later group"), "{found:?}");
    }
}
