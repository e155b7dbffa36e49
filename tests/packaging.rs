//! What is installed with the program: the unit for systemd, judged by systemd itself where it is there, and beside what
//! the program is by default.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on fails")]

#[path = "support/mod.rs"]
mod support;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::appliance::{PATIENCE, Place, freshet};
use support::real_images::find;
use support::skipped;

fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/freshet.service");
    std::fs::read_to_string(path).unwrap()
}

/// The values of a name, in their order.
fn values<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

/// Whether `systemd-analyze verify` has nothing to say of a unit.
fn verify(dir: &Path, text: &str) -> Result<(), String> {
    let file = dir.join("freshet.service");
    std::fs::write(&file, text).unwrap();
    let out = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    // What it says of units of this machine is not about ours.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("freshet")).collect();
    match out.status.success() && ours.is_empty() {
        true => Ok(()),
        false => Err(said),
    }
}

#[test]
fn systemd_has_nothing_to_say_against_the_unit() {
    if find("systemd-analyze").is_none() {
        return skipped("the unit", "no systemd-analyze here");
    }
    let dir = tempfile::tempdir().unwrap();
    // The program is not installed here.
    let here = unit().replace("/usr/bin/freshet", env!("CARGO_BIN_EXE_freshet"));
    verify(dir.path(), &here).unwrap();
    // It would be noticed.
    for (good, bad) in [("KillMode=process", "KillMode=proces"), ("OOMPolicy=", "OOMPolic="), ("Type=notify", "Type=x")]
    {
        assert!(here.contains(good), "{good}");
        assert!(verify(dir.path(), &here.replace(good, bad)).is_err(), "{bad}");
    }
}

#[test]
fn the_unit_gives_the_program_the_places_that_it_has_by_default() {
    let unit = unit();
    let example = Command::new(env!("CARGO_BIN_EXE_freshet")).args(["config", "example"]).output().unwrap();
    let example = String::from_utf8(example.stdout).unwrap();
    let default = |name: &str| {
        let line = example.lines().find_map(|line| line.strip_prefix(&format!("# {name} = \"")));
        line.unwrap_or_else(|| panic!("{name} in {example}")).trim_end_matches('"').to_owned()
    };
    assert_eq!(values(&unit, "StateDirectory"), [default("state").strip_prefix("/var/lib/").unwrap()]);
    let runtime = format!("/run/{}/", values(&unit, "RuntimeDirectory")[0]);
    for name in ["socket", "socket_dir"] {
        assert!(default(name).starts_with(&runtime), "{name} is {}", default(name));
    }
    // Guests outlive it, and whoever restarts it finds them.
    assert_eq!(values(&unit, "KillMode"), ["process"]);
    let [start] = values(&unit, "ExecStart")[..] else { panic!("{unit}") };
    let mut words = start.split(' ');
    assert_eq!(words.next(), Some("/usr/bin/freshet"));
    // Its arguments are understood: what is wrong is the file that is not there.
    let arguments: Vec<&str> = words.collect();
    assert_eq!(arguments[..2], ["serve", "--config"]);
    let none = tempfile::tempdir().unwrap();
    let missing = none.path().join("none.toml");
    let ran = freshet().args(&arguments[..2]).arg(&missing).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(said.contains("none.toml") && ran.status.code() == Some(9), "{said}");
}

#[test]
fn an_appliance_tells_whoever_waits_that_it_serves_and_not_before() {
    let place = Place::new();
    let (settings, socket) = (place.settings("here", ""), place.path("notify"));
    let waiting = UnixDatagram::bind(&socket).unwrap();
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = freshet();
    command.args(["serve", "--config"]).arg(&settings).env("NOTIFY_SOCKET", &socket);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut word = [0; 64];
    let len = waiting.recv(&mut word).unwrap();
    let shown = freshet().args(["site", "show", "--socket"]).arg(place.path("here-api.sock")).output().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(&word[..len], b"READY=1");
    assert!(shown.status.success(), "{shown:?}");
    // Settings that are wrong are told by the code that keeps systemd from starting it again, and nobody is told to go on.
    std::fs::write(&settings, "site = 7\n").unwrap();
    let wrong = freshet().args(["serve", "--config"]).arg(&settings).env("NOTIFY_SOCKET", &socket).output().unwrap();
    let code = wrong.status.code().unwrap().to_string();
    assert!(values(&unit(), "RestartPreventExitStatus")[0].split(' ').any(|one| one == code), "{code}");
    waiting.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert!(waiting.recv(&mut word).is_err());
}
