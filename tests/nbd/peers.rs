//! Other people's clients against the server, in both cache modes.

use std::process::Command;

use super::rig::{Rig, scratch};
use super::support::peers::{self, has, run};
use freshet::nbd::{Address, CacheMode, ServerOptions};

fn modes() -> [Rig; 2] {
    [CacheMode::Direct, CacheMode::WriteBack].map(|cache| Rig::new(cache, ServerOptions::default()))
}

#[test]
fn nbdinfo_understands_what_is_told() {
    if !has("nbdinfo", "nbdinfo_understands_what_is_told") {
        return;
    }
    for rig in modes() {
        peers::sample(&rig.image());
        for address in [&rig.unix, &rig.tcp] {
            let uri = address.uri("disk", false);
            peers::nbdinfo(&uri);
            let list = run("nbdinfo", &["--json", "--list", &uri]);
            assert!(String::from_utf8_lossy(&list.stdout).contains("\"disk\""));
        }
        rig.stop();
    }
}

#[test]
fn nbdcopy_copies_both_ways() {
    if !has("nbdcopy", "nbdcopy_copies_both_ways") {
        return;
    }
    for rig in modes() {
        for address in [&rig.unix, &rig.tcp] {
            peers::nbdcopy(&address.uri("disk", false), &rig.image(), scratch().path());
        }
        rig.stop();
    }
}

#[test]
fn qemu_img_converts_compares_and_drives() {
    if !has("qemu-img", "qemu_img_converts_compares_and_drives") {
        return;
    }
    for rig in modes() {
        peers::qemu_img(&rig.unix.uri("disk", false), &rig.image(), scratch().path());
        rig.stop();
    }
}

#[test]
fn qemu_io_finds_what_it_wrote() {
    if !has("qemu-io", "qemu_io_finds_what_it_wrote") {
        return;
    }
    for rig in modes() {
        peers::qemu_io(&rig.tcp.uri("disk", false), &rig.image());
        rig.stop();
    }
}

#[test]
fn fio_verifies_what_it_wrote_with_many_requests_in_flight() {
    if !peers::has_fio("fio_verifies_what_it_wrote_with_many_requests_in_flight") {
        return;
    }
    for rig in modes() {
        peers::fio(&rig.unix.uri("disk", false), rig.dir.path());
        rig.stop();
    }
}

#[test]
fn libnbd_finds_every_call_answered_as_it_must_be() {
    if !peers::has_libnbd("libnbd_finds_every_call_answered_as_it_must_be") {
        return;
    }
    for rig in modes() {
        for address in [&rig.unix, &rig.tcp] {
            peers::libnbd(&address.uri("disk", false));
        }
        rig.stop();
    }
}

#[test]
fn nbd_client_lists_the_exports() {
    // Debian has it where only an administrator looks for programs.
    let program =
        ["nbd-client", "/usr/sbin/nbd-client"].into_iter().find(|p| Command::new(p).arg("-V").output().is_ok());
    let Some(program) = program else {
        return super::support::skipped("nbd_client_lists_the_exports", "nbd-client is not installed");
    };
    let rig = Rig::plain();
    let Address::Tcp(address) = &rig.tcp else { panic!("a TCP port") };
    let out = run(program, &["-l", &address.ip().to_string(), &address.port().to_string()]);
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(told.lines().any(|line| line == "disk" || line.starts_with("disk:")), "{told}");
    rig.stop();
}

#[test]
fn a_qemu_does_not_open_what_is_served() {
    if !has("qemu-io", "a_qemu_does_not_open_what_is_served") {
        return;
    }
    let rig = Rig::plain();
    let image = rig.image();
    let out = Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 4k"]).arg(&image).output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && told.contains("lock"), "{told}");
    assert!(std::fs::read(&image).unwrap().iter().all(|&b| b == 0));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    drop(runtime.block_on(rig.exports.remove("disk")).unwrap());
    run("qemu-io", &["-f", "raw", "-c", "write 0 4k", image.to_str().unwrap()]);
    rig.stop();
}
