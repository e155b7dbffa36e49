//! A hypervisor that is not there: exports come back all the same, the trouble is told, and is over once it is there.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use super::appliance::{Appliance, MIB, PATIENCE, Place};
use super::figures::{page, value};
use crate::support::real_images::find;
use crate::support::skipped;

/// Settings with a QEMU at this place.
fn settings(place: &Place, program: &Path) -> String {
    let vms = place.path("vms");
    format!(
        "metrics = \"127.0.0.1:0\"\n[hypervisor]\nkind = \"qemu\"\n[qemu]\nprogram = \"{}\"\ndir = \"{}\"\n",
        program.display(),
        vms.display()
    )
}

/// Waits until the appliance says of its hypervisor that it cannot be used, or that it can.
fn until_told(appliance: &Appliance, cannot: bool) -> serde_json::Value {
    let began = Instant::now();
    loop {
        let shown = appliance.ask(&["site", "show"]).good();
        let figure = value(&page(appliance), "freshet_hypervisor_ready");
        if shown["hypervisor_problem"].as_str().is_some_and(|why| !why.is_empty()) == cannot && figure.is_some() {
            assert_eq!(figure, Some(f64::from(u8::from(!cannot))));
            return shown;
        }
        assert!(began.elapsed() < PATIENCE, "it is never told: {shown:#}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn exports_come_back_without_a_hypervisor_and_it_is_looked_for_until_it_is_there() {
    let place = Place::new();
    let (image, program) = (place.image("root"), place.path("qemu"));
    std::fs::write(&program, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut first = place.serve_with("first", &settings(&place, &program));
    first.protect(&place, &image);
    first.until_recoverable("d");
    until_told(&first, false);
    first.crash();
    std::fs::remove_file(&program).unwrap();

    let first = place.serve_with("first", &settings(&place, &program));
    let mut guest = first.guest(&place, "first");
    guest.write(MIB, &[9; 4096]).unwrap();
    let site = until_told(&first, true);
    let why = site["hypervisor_problem"].as_str().unwrap();
    assert!(why.contains(&program.display().to_string()) && why.contains("qemu.program"), "{why}");
    let told = |shown: &serde_json::Value| {
        let problems = shown["problems"].to_string();
        problems.contains("no VM can be started here") && problems.contains("qemu.program")
    };
    first.until("d", "what is wrong with the hypervisor", told);
    first.until_recoverable("d");
    first.ask(&["domain", "point", "d"]).good();

    // What needs it fails with the reason: here a plan, at a site to which nothing else is wrong.
    let second = place.serve_with("second", &settings(&place, &place.path("none")));
    second.ask(&["store", "add", "s", "--url", &place.store_url()]).good();
    second.ask(&["domain", "import", "d", "--store", "s"]).good();
    let datastore = place.path("disks");
    std::fs::create_dir(&datastore).unwrap();
    let datastore = datastore.display().to_string();
    let plan = ["failover", "plan", "d", "--datastore", &datastore, "--default-network", "lan"];
    let planned = second.ask(&plan).json.to_string();
    assert!(planned.contains("QEMU cannot be used") && planned.contains("qemu.program"), "{planned}");
    let shown = second.ask(&["domain", "show", "d"]).good();
    assert!(!shown["problems"].to_string().contains("no VM can be started"), "none of its VMs is here: {shown:#}");

    // It is there again, and everybody hears of it.
    std::fs::write(&program, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    until_told(&first, false);
    first.until("d", "no trouble any more", |shown| !told(shown));
    let events = first.ask(&["event", "list"]).good().to_string();
    assert!(events.contains("hypervisor not ready") && events.contains("hypervisor ready"), "{events}");
    drop(guest);
    assert!(first.stop().success());

    // A URI that is none of libvirt's serves all the same, and is named.
    match find("virsh") {
        None => skipped("a wrong URI of libvirt", "no virsh here"),
        Some(_) => {
            let more = "metrics = \"127.0.0.1:0\"\n[hypervisor]\nkind = \"libvirt\"\nuri = \"foo+bar:///\"\n";
            let site = until_told(&place.serve_with("astray", more), true);
            let why = site["hypervisor_problem"].as_str().unwrap();
            assert!(why.contains("virsh domstats at foo+bar:///") && why.contains("not recognised"), "{why}");
        }
    }
    // What is wrong in itself is refused, and nothing is served.
    let wrong = place.settings("third", "[hypervisor]\nkind = \"libvirt\"\nuri = \"--config\"\n");
    let refused = Appliance::start(&wrong, &place.path("third-api.sock")).err().expect("it must not start");
    assert!(refused.bad(2).contains("uri must be one of libvirt's"));
}
