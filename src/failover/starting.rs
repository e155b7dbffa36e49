//! What a plan does once disks are ready, told in words: which VM starts when, with what, and what is run, waited for or
//! asked in between.
//!
//! Owns the words only; the order is that of the steps that the task will have. Pure.

use super::plan::FailoverPlan;
use super::runbook::{OnFailure, Others, Probe, Runbook, Script, WaitFor};
use super::runbook_steps;
use super::shape;
use super::step::Step;
use crate::ids::Name;
use crate::quantity::show_size;

/// The order in which `vms` start, each with the networks of its cards as the protected site names them; then those that
/// stay off.
pub(super) fn words(plan: &FailoverPlan, vms: &[(Name, Vec<String>)]) -> Vec<String> {
    let plain = Runbook::default();
    let runbook = plan.options.runbook.as_ref().unwrap_or(&plain);
    let names: Vec<Name> = vms.iter().map(|(name, _)| name.clone()).collect();
    let steps = runbook_steps::steps(runbook, &names);
    let mut told: Vec<String> = steps.iter().filter_map(|step| of_step(plan, vms, step)).collect();
    let starts = |vm: &Name| steps.iter().any(|step| matches!(step, Step::Start { vm: own } if own == vm));
    for vm in names.iter().filter(|vm| !starts(vm)) {
        let named = runbook.groups.iter().flat_map(|group| &group.vms).any(|own| own.vm == *vm);
        let why = match runbook.others {
            Others::LeaveOff if !named => "no group names it",
            _ => "the runbook does not power it on",
        };
        told.push(format!("VM {vm} is defined and stays off: {why}"));
    }
    told
}

fn of_step(plan: &FailoverPlan, vms: &[(Name, Vec<String>)], step: &Step) -> Option<String> {
    let for_vm = |vm: &Option<Name>| vm.as_ref().map_or_else(String::new, |vm| format!(" for VM {vm}"));
    Some(match step {
        Step::Delay { seconds, of } if of.is_empty() => format!("wait {seconds} s"),
        Step::Delay { seconds, of } => format!("wait {seconds} s before {of}"),
        Step::RunScript { script, vm } => format!("run {}{}", of_script(script), for_vm(vm)),
        Step::Start { vm } => format!("start VM {vm}{}", resources(plan, vms, vm)),
        Step::WaitFor { wait, vm } => format!("wait until {}", of_wait(wait, vm)),
        Step::Confirm { text } => format!("ask an operator to confirm: {text}"),
        _ => return None,
    })
}

fn of_script(script: &Script) -> String {
    let after = after_failure("it fails", script.after_failure());
    format!("{} (at most {} s; {after})", script.command.join(" "), script.limit_seconds)
}

fn of_wait(wait: &WaitFor, vm: &Name) -> String {
    let what = match &wait.probe {
        Probe::TcpPort { host, port } => format!("TCP port {port} of {host} answers for VM {vm}"),
        Probe::Script { command } => format!("{} ends with 0 for VM {vm}", command.join(" ")),
        Probe::GuestAgent { address } if address.is_empty() => format!("the agent of VM {vm} answers"),
        Probe::GuestAgent { address } => format!("the agent of VM {vm} tells of address {address}"),
    };
    format!("{what} (at most {} s; {})", wait.limit_seconds, after_failure("it does not", wait.after_timeout()))
}

fn after_failure(when: &str, (what, retries): (OnFailure, u32)) -> String {
    let then = match what {
        OnFailure::Ask => "ask".to_owned(),
        OnFailure::Continue => "go on".to_owned(),
        OnFailure::Retry => format!("try {retries} more times, then ask"),
        OnFailure::Stop => "end the task".to_owned(),
    };
    format!("where {when}: {then}")
}

/// What of a VM is other than its definition says.
fn resources(plan: &FailoverPlan, vms: &[(Name, Vec<String>)], vm: &Name) -> String {
    let start = shape::in_runbook(plan, vm);
    let setting = plan.vms.vms.get(vm);
    let cpus = start.and_then(|s| s.cpus).or_else(|| setting.and_then(|s| s.cpus));
    let memory = start.and_then(|s| s.memory_bytes).or_else(|| setting.and_then(|s| s.memory_bytes));
    let mut told: Vec<String> = cpus.iter().map(|cpus| format!("{cpus} CPUs")).collect();
    told.extend(memory.map(|memory| format!("{} of memory", show_size(memory))));
    let cards = vms.iter().find(|(name, _)| name == vm).map_or(&[][..], |(_, cards)| cards);
    told.extend(cards.iter().enumerate().map(|(i, there)| match shape::network(plan, vm, i, there) {
        Some(here) => format!("card {i} on {here}"),
        None => format!("card {i} on no network"),
    }));
    if told.is_empty() { String::new() } else { format!(" with {}", told.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::samples::{name, plan};

    #[test]
    fn what_is_done_is_told_in_the_order_of_the_tasks_steps() {
        let mut plan = plan("shop");
        plan.vms.networks.insert("lan".into(), "dr-lan".into());
        plan.vms.default_network = String::new();
        plan.vms.vms.insert(name("db"), serde_json::from_str(r#"{"cpus":3,"memory_bytes":1073741824}"#).unwrap());
        let book = r#"{"scripts_before":[{"command":["array","on"],"limit_seconds":9,"on_failure":"retry","retries":2}],
            "others":"leave-off","groups":[{"name":"all","delay_seconds":5,"confirm":"storage seen?","vms":[
              {"vm":"db","cpus":4,"delay_seconds":2,"wait_for":[
                 {"probe":{"tcp-port":{"host":"10.0.0.5","port":5432}},"limit_seconds":7,"on_timeout":"stop"},
                 {"probe":{"guest-agent":{}}},{"probe":{"guest-agent":{"address":"10.0.0.5"}},"on_timeout":"continue"},
                 {"probe":{"script":{"command":["up"]}}}],"scripts_after":[{"command":["post"]}]},
              {"vm":"spare","power_on":false},{"vm":"elsewhere"}]}]}"#;
        plan.options.runbook = Some(serde_json::from_str(book).unwrap());
        let cards = |all: &[&str]| all.iter().map(|card| (*card).to_owned()).collect::<Vec<_>>();
        let vms = [(name("db"), cards(&["lan", "other"])), (name("spare"), cards(&[])), (name("web"), cards(&["lan"]))];
        assert_eq!(
            words(&plan, &vms),
            [
                "run array on (at most 9 s; where it fails: try 2 more times, then ask)",
                "ask an operator to confirm: storage seen?",
                "wait 5 s before all",
                "wait 2 s before db",
                "start VM db with 4 CPUs, 1GiB of memory, card 0 on dr-lan, card 1 on no network",
                "wait until TCP port 5432 of 10.0.0.5 answers for VM db (at most 7 s; where it does not: end the task)",
                "wait until the agent of VM db answers (at most 300 s; where it does not: ask)",
                "wait until the agent of VM db tells of address 10.0.0.5 (at most 300 s; where it does not: go on)",
                "wait until up ends with 0 for VM db (at most 300 s; where it does not: ask)",
                "run post (at most 300 s; where it fails: ask) for VM db",
                "VM spare is defined and stays off: the runbook does not power it on",
                "VM web is defined and stays off: no group names it",
            ]
        );
        plan.options.runbook = None;
        let told = words(&plan, &vms[2..]);
        assert_eq!(told, ["start VM web with card 0 on dr-lan"]);
    }
}
