//! What log lines are about: domain, task and generation on every line of a real failover, as JSON.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::appliance::{MIB, Place};
use super::failovers::{Site, protected, write};
use super::figures::{page, value};

/// Whose every line is about a domain.
const OF_A_DOMAIN: [&str; 8] = [
    "freshet::failover",
    "freshet::control::hosting",
    "freshet::control::world",
    "freshet::protect",
    "freshet::rehydrate",
    "freshet::log",
    "freshet::intent",
    "freshet::nbd",
];

/// A line, and all that it and its spans say.
struct Line {
    target: String,
    message: String,
    says: Map<String, Value>,
}

fn lines(place: &Place, site: &str) -> Vec<Line> {
    let text = std::fs::read_to_string(place.path(&format!("{site}.log"))).unwrap();
    let line = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("no JSON: {e}: {line}"));
        let mut says = value.as_object().unwrap().clone();
        for span in value["spans"].as_array().into_iter().flatten() {
            says.extend(span.as_object().unwrap().clone());
        }
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        Line { target: text("target"), message: text("message"), says }
    };
    text.lines().map(line).collect()
}

#[test]
fn every_line_of_a_failover_says_which_domain_task_and_generation_it_is_about() {
    let place = Place::new();
    let site = |name| Site::start_by(&place, name, Place::serve_logged);
    let (first, second) = protected(site("first"), site("second"));
    write(&first, 2 * MIB, 9);
    first.ask(&["domain", "point", "d"]);
    let datastore = second.datastore();
    let done =
        second.task(&["failover", "start", "d", "--datastore", &datastore, "--log-size", "256MiB", "--yes", "d"]);
    second.runs("DOMAIN_MODE_RUNNING_IN_FAILOVER");
    write(&first, 3 * MIB, 5);
    first.until_mode("DOMAIN_MODE_FENCED");
    let figures = page(&second.appliance);
    let tasks = |state: &str| value(&figures, &format!("freshet_tasks{{kind=\"failover\",state=\"{state}\"}}"));
    assert_eq!((tasks("done"), tasks("running")), (Some(1.0), Some(0.0)), "{figures}");
    assert!(first.appliance.stop().success() && second.appliance.stop().success());

    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for (site, of) in [("first", lines(&place, "first")), ("second", lines(&place, "second"))] {
        for line in &of {
            let Some(target) = OF_A_DOMAIN.into_iter().find(|target| line.target.starts_with(target)) else { continue };
            *seen.entry(target).or_default() += 1;
            let told = format!("{site}: {} {:?}: {:?}", line.target, line.message, line.says);
            assert_eq!(line.says.get("domain"), Some(&"d".into()), "{told}");
            if target == "freshet::failover" {
                assert_eq!(line.says.get("task"), Some(&done["id"]), "{told}");
                // Who owns the domain is what the first step finds out.
                let known = line.says.get("step") != Some(&"check".into()) || line.message == "ended";
                assert_eq!(line.says.get("generation").is_some_and(Value::is_u64), known, "{told}");
            }
            if line.message.starts_with("its disks are served") {
                let owner = if site == "first" { 1 } else { 3 };
                assert_eq!(line.says.get("generation"), Some(&owner.into()), "{told}");
            }
        }
        let calls: BTreeSet<String> =
            of.iter().filter_map(|line| Some(line.says.get("action")?.as_str()?.to_owned())).collect();
        let call = if site == "first" { "VmService/ProtectVm" } else { "FailoverService/StartFailover" };
        assert!(calls.contains(call), "{site}: {calls:?}");
    }
    for target in ["freshet::failover", "freshet::control::hosting", "freshet::protect", "freshet::nbd", "freshet::log"]
    {
        assert!(seen.contains_key(target), "nothing of {target}: {seen:?}");
    }
    // The one that lost the domain says so, and which generation it wrote in.
    let lost = lines(&place, "first");
    let lost = lost.iter().find(|line| line.target == "freshet::protect::health" && line.says["level"] == "ERROR");
    assert_eq!(lost.unwrap().says.get("generation"), Some(&1.into()));
}
