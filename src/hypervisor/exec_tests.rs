//! The `exec` driver against real small scripts that keep VMs as files in a directory.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::{ExecDriver, ExecSettings, Hypervisor, PowerState};
use crate::error::ErrorKind;
use crate::failover::samples::{name, spec};

/// VMs as files that hold their state; `DIR` comes by the environment.
const SCRIPT: &str = r#"#!/bin/sh
set -eu
input=$(cat)
echo "$1 $input" >> "$DIR/calls"
vm=$(printf %s "$input" | sed -n 's/.*"vm":"\([^"]*\)".*/\1/p')
file="$DIR/vm-$vm"
# At once, so that nobody reads half of it.
set_state() { echo "$1" > "$DIR/new-$vm"; mv "$DIR/new-$vm" "$file"; }
case $1 in
    inventory) printf '{"vms":['; sep=
        for f in "$DIR"/vm-*; do [ -e "$f" ] || continue
            printf '%s{"name":"%s","state":"%s"}' "$sep" "${f##*/vm-}" "$(cat "$f")"; sep=,; done; echo ']}';;
    networks) echo '{"networks":["lan","dmz"]}';;
    define) printf %s "$input" > "$DIR/spec-$vm"; set_state off;;
    undefine) [ -e "$file" ] || exit 9; rm "$file";;
    start) [ -e "$file" ] || { echo "no such VM: $vm ($SECRET)" >&2; exit 9; }; set_state running;;
    shutdown) case $vm in hangs) ;; slow) (sleep 0.2; set_state off) >/dev/null 2>&1 & ;; *) set_state off;; esac
        echo '{"off":false}';;
    power-off) set_state off;;
    state) [ -e "$file" ] || exit 9; echo "{\"state\":\"$(cat "$file")\"}";;
    off-evidence) [ "$(cat "$file")" = off ] && echo '{"off":true,"because":"no process holds it"}' ||
        echo '{"off":false,"because":"pid 7 holds it"}';;
esac
"#;

fn driver_of(dir: &Path, script: &str) -> ExecDriver {
    let path = dir.join("driver");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let environment: BTreeMap<String, String> =
        [("DIR".to_owned(), dir.to_str().unwrap().to_owned()), ("SECRET".to_owned(), "hunter2hunter2".to_owned())]
            .into();
    // A script that was just written may still be open for writing in a child of another test: by way of sh it is read.
    let command = vec!["/bin/sh".into(), path.to_str().unwrap().into()];
    ExecDriver::new(ExecSettings { command, environment, limit_seconds: 30, poll_millis: 20 }).unwrap()
}

#[tokio::test]
async fn a_vm_goes_through_its_life() {
    let dir = tempfile::tempdir().unwrap();
    let driver = driver_of(dir.path(), SCRIPT);
    let web = name("web");
    assert_eq!(driver.state(&web).await.unwrap(), PowerState::Absent);
    assert!(driver.inventory().await.unwrap().is_empty());
    driver.undefine(&web).await.unwrap();
    driver.define(&spec("shop", "web")).await.unwrap();
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.path().join("spec-web")).unwrap()).unwrap();
    assert_eq!(told["version"], 1);
    assert_eq!(told["spec"]["disks"][0]["uri"], "nbd+unix:///web%2Fsystem?socket=/s");
    assert_eq!((&told["spec"]["cpus"], &told["spec"]["firmware"]), (&2.into(), &"uefi".into()));
    assert_eq!(driver.state(&web).await.unwrap(), PowerState::Off);
    driver.start(&web).await.unwrap();
    let inventory = driver.inventory().await.unwrap();
    assert_eq!((inventory[0].name.as_str(), inventory[0].state), ("web", PowerState::Running));
    let evidence = driver.off_evidence(&web).await.unwrap();
    assert!(!evidence.off && evidence.because == "pid 7 holds it");
    assert!(driver.shutdown(&web, Duration::from_secs(5)).await.unwrap());
    assert!(driver.off_evidence(&web).await.unwrap().off);
    driver.undefine(&web).await.unwrap();
    assert_eq!(driver.networks().await.unwrap().unwrap(), ["lan", "dmz"]);
}

#[tokio::test]
async fn a_guest_that_takes_its_time_is_waited_for_and_one_that_hangs_is_not_off() {
    let dir = tempfile::tempdir().unwrap();
    let driver = driver_of(dir.path(), SCRIPT);
    for vm in ["slow", "hangs"] {
        driver.define(&spec("shop", vm)).await.unwrap();
        driver.start(&name(vm)).await.unwrap();
    }
    assert!(driver.shutdown(&name("slow"), Duration::from_secs(30)).await.unwrap());
    assert!(!driver.shutdown(&name("hangs"), Duration::from_millis(100)).await.unwrap());
    driver.power_off(&name("hangs")).await.unwrap();
    assert_eq!(driver.state(&name("hangs")).await.unwrap(), PowerState::Off);
}

#[tokio::test]
async fn failures_say_what_the_command_said_but_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let driver = driver_of(dir.path(), SCRIPT);
    let error = driver.start(&name("web")).await.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(text.contains("start") && text.contains("no such VM: web (***)"), "{text}");
    assert!(!text.contains("hunter2") && !format!("{driver:?}").contains("hunter2"));
}

#[tokio::test]
async fn exit_codes_and_answers_are_mapped() {
    let cases = [
        ("exit 2", ErrorKind::Invalid),
        ("exit 4", ErrorKind::Refused),
        ("exit 7", ErrorKind::Unreachable),
        ("exit 8", ErrorKind::Denied),
        ("exit 10", ErrorKind::Full),
        ("exit 1", ErrorKind::Io),
        ("kill -9 $$", ErrorKind::Io),
        ("exit 69", ErrorKind::Unsupported),
        ("echo nonsense", ErrorKind::Damaged),
        ("echo '[]'", ErrorKind::Damaged),
        ("echo '{}'", ErrorKind::Damaged),
        ("echo '{\"state\":\"flying\"}'", ErrorKind::Damaged),
        ("yes | head -c 17000000", ErrorKind::Damaged),
    ];
    for (script, kind) in cases {
        let dir = tempfile::tempdir().unwrap();
        let driver = driver_of(dir.path(), script);
        let error = driver.state(&name("web")).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{script}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let driver = driver_of(dir.path(), "[ $1 = state ] && echo '{\"state\":\"off\"}' || exit 69");
    assert_eq!(driver.networks().await.unwrap(), None);
    let evidence = driver.off_evidence(&name("web")).await.unwrap();
    assert!(evidence.off && evidence.because.contains("all that the command can tell"));
}

#[tokio::test]
async fn a_command_that_hangs_is_ended_and_counts_as_unreachable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("driver");
    std::fs::write(&path, "sleep 600").unwrap();
    let command = vec!["/bin/sh".into(), path.to_str().unwrap().into()];
    let settings = ExecSettings { command, environment: BTreeMap::new(), limit_seconds: 1, poll_millis: 20 };
    let error = ExecDriver::new(settings).unwrap().start(&name("web")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unreachable && error.to_string().contains("within 1 s"), "{error}");
}

#[test]
fn settings_out_of_bounds_are_named() {
    let good = || ExecSettings {
        command: vec!["x".into()],
        environment: BTreeMap::new(),
        limit_seconds: 60,
        poll_millis: 1000,
    };
    let bad = |change: fn(&mut ExecSettings)| {
        let mut settings = good();
        change(&mut settings);
        ExecDriver::new(settings).unwrap_err().to_string()
    };
    assert!(ExecDriver::new(good()).is_ok());
    assert!(bad(|s| s.command.clear()).contains("command"));
    assert!(bad(|s| s.limit_seconds = 0).contains("limit_seconds"));
    assert!(bad(|s| s.poll_millis = 1).contains("poll_millis"));
    assert!(bad(|s| drop(s.environment.insert("A=B".into(), String::new()))).contains("A=B"));
}

#[tokio::test]
async fn a_command_may_ask_agents_of_guests_and_one_that_cannot_says_so() {
    let asked = |script: &'static str| async move {
        let dir = tempfile::tempdir().unwrap();
        let answer = driver_of(dir.path(), script).agent(&name("web"), true, Duration::from_secs(5)).await;
        (answer, std::fs::read_to_string(dir.path().join("asked")).unwrap_or_default())
    };
    let (answer, told) =
        asked("cat > $DIR/asked; echo '{\"answers\":true,\"addresses\":[\"10.0.0.5\",\"fe80::1\"]}'").await;
    assert_eq!(answer.unwrap().unwrap(), ["10.0.0.5", "fe80::1"].map(|a| a.parse::<std::net::IpAddr>().unwrap()));
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["verb"], &told["addresses"], &told["limit_seconds"]), (&"agent".into(), &true.into(), &5.into()));
    let (answer, _) = asked("echo '{\"answers\":false}'").await;
    assert_eq!(answer.unwrap(), None);
    let (answer, _) = asked("exit 69").await;
    let error = answer.unwrap_err();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("does not support agent"), "{error}");
    for bad in ["echo '{}'", "echo '{\"answers\":true,\"addresses\":[\"10.0.0.5/24\"]}'"] {
        assert_eq!(asked(bad).await.0.unwrap_err().kind(), ErrorKind::Damaged, "{bad}");
    }
}
