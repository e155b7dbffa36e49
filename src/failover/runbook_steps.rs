//! A runbook as steps, for the VMs that take part. Pure; the runbook was validated before.

use std::collections::HashSet;

use super::order::order;
use super::runbook::{Group, Others, Runbook, Script, VmStart};
use super::step::Step;
use crate::ids::Name;

/// The steps that start `vms`, in order. Groups of which no VM takes part are left out with their scripts.
pub(super) fn steps(runbook: &Runbook, vms: &[Name]) -> Vec<Step> {
    let part: HashSet<&Name> = vms.iter().collect();
    let mut out = Vec::new();
    scripts(&mut out, &runbook.scripts_before, None);
    let names: Vec<&str> = runbook.groups.iter().map(|g| g.name.as_str()).collect();
    let after = |i: usize| runbook.groups[i].after.iter().map(String::as_str).collect();
    // A cycle was refused before; should one come here nevertheless, the order of the list is as good as any.
    let in_order = order(&names, after).unwrap_or_else(|_| (0..names.len()).collect());
    for i in in_order {
        group(&mut out, &runbook.groups[i], &part);
    }
    if runbook.others == Others::Start {
        let named: HashSet<&Name> = runbook.groups.iter().flat_map(|g| g.vms.iter().map(|v| &v.vm)).collect();
        out.extend(vms.iter().filter(|v| !named.contains(v)).map(|v| Step::Start { vm: v.clone() }));
    }
    scripts(&mut out, &runbook.scripts_after, None);
    out
}

fn group(out: &mut Vec<Step>, group: &Group, part: &HashSet<&Name>) {
    if !group.vms.is_empty() && !group.vms.iter().any(|v| part.contains(&v.vm)) {
        return;
    }
    confirm(out, &group.confirm);
    delay(out, group.delay_seconds, &group.name);
    scripts(out, &group.scripts_before, None);
    let names: Vec<&str> = group.vms.iter().map(|v| v.vm.as_str()).collect();
    let after = |i: usize| group.vms[i].after.iter().map(Name::as_str).collect();
    let in_order = order(&names, after).unwrap_or_else(|_| (0..names.len()).collect());
    for vm in in_order.into_iter().map(|i| &group.vms[i]).filter(|v| part.contains(&v.vm) && v.power_on) {
        start(out, vm);
    }
    scripts(out, &group.scripts_after, None);
}

fn start(out: &mut Vec<Step>, vm: &VmStart) {
    delay(out, vm.delay_seconds, vm.vm.as_str());
    scripts(out, &vm.scripts_before, Some(&vm.vm));
    out.push(Step::Start { vm: vm.vm.clone() });
    out.extend(vm.wait_for.iter().map(|w| Step::WaitFor { wait: w.clone(), vm: vm.vm.clone() }));
    scripts(out, &vm.scripts_after, Some(&vm.vm));
    confirm(out, &vm.confirm);
}

fn scripts(out: &mut Vec<Step>, scripts: &[Script], vm: Option<&Name>) {
    out.extend(scripts.iter().map(|s| Step::RunScript { script: s.clone(), vm: vm.cloned() }));
}

fn delay(out: &mut Vec<Step>, seconds: u64, of: &str) {
    if seconds > 0 {
        out.push(Step::Delay { seconds, of: of.to_owned() });
    }
}

fn confirm(out: &mut Vec<Step>, text: &str) {
    if !text.is_empty() {
        out.push(Step::Confirm { text: text.to_owned() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(book: &str, vms: &[&str]) -> Vec<String> {
        let book: Runbook = serde_json::from_str(book).unwrap();
        let vms: Vec<Name> = vms.iter().map(|v| Name::new(v).unwrap()).collect();
        let word = |s: &Step| match (s, s.vm()) {
            (Step::RunScript { script, .. }, _) => script.command[0].clone(),
            (Step::Confirm { text }, _) => text.clone(),
            (Step::Delay { seconds, .. }, _) => format!("{seconds}s"),
            (_, Some(vm)) => format!("{} {vm}", s.word()),
            _ => s.word().to_owned(),
        };
        steps(&book, &vms).iter().map(word).collect()
    }

    const BOOK: &str = r#"{"scripts_before":[{"command":["first"]}],"scripts_after":[{"command":["last"]}],
        "groups":[{"name":"front","after":["data"],"delay_seconds":5,"confirm":"ok?","vms":[{"vm":"web","after":["app"]},
                    {"vm":"app","confirm":"seen?"}],"scripts_after":[{"command":["front-up"]}]},
                  {"name":"data","scripts_before":[{"command":["array"]}],"vms":[{"vm":"db","delay_seconds":3,
                    "scripts_before":[{"command":["pre"]}],"wait_for":[{"probe":{"script":{"command":["up"]}}}],
                    "scripts_after":[{"command":["post"]}]},{"vm":"spare","power_on":false}]}]}"#;

    #[test]
    fn steps_stand_in_the_order_of_groups_and_vms() {
        let all = ["app", "db", "extra", "spare", "web"];
        let expected = [
            "first",
            "array",
            "3s",
            "pre",
            "start db",
            "wait-for db",
            "post",
            "ok?",
            "5s",
            "start app",
            "seen?",
            "start web",
            "front-up",
            "start extra",
            "last",
        ];
        assert_eq!(words(BOOK, &all), expected);
    }

    #[test]
    fn what_takes_no_part_is_left_out() {
        assert_eq!(words(BOOK, &["db"]), ["first", "array", "3s", "pre", "start db", "wait-for db", "post", "last"]);
        assert_eq!(words(r#"{"others":"leave-off"}"#, &["db"]), Vec::<String>::new());
    }
}
