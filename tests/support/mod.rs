//! What several integration tests and benches share; each module is self-contained.
//!
//! Nothing here is part of the library. Modules refer to each other by `super::`, never by `crate::`, so that a bench
//! or an example can include one of them by `#[path]`.

#![allow(dead_code, unused_imports, reason = "every test binary compiles all of this and uses a part of it")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests: a panic or a printed line is the report")]

use std::io::Write as _;

pub(crate) mod agent;
pub(crate) mod appliance;
pub(crate) mod console;
pub(crate) mod contract;
pub(crate) mod guest;
pub(crate) mod held_virsh;
pub(crate) mod kills;
pub(crate) mod libvirt;
pub(crate) mod libvirt_guest;
pub(crate) mod libvirt_site;
pub(crate) mod loops;
pub(crate) mod mounts;
pub(crate) mod naive_s3;
pub(crate) mod namespaces;
pub(crate) mod nbd_client;
pub(crate) mod peers;
pub(crate) mod pki;
pub(crate) mod real_images;
pub(crate) mod scripted;
pub(crate) mod site;

/// Says that a test of another program was left out, in a line that CI counts; with `FRESHET_REQUIRE_PEERS=1`, where
/// the program has to be there, it is a failure.
pub(crate) fn skipped(what: &str, why: &str) {
    assert!(std::env::var_os("FRESHET_REQUIRE_PEERS").is_none_or(|v| v != "1"), "{what} must not be skipped: {why}");
    // Past the capture of the test harness, so that it is seen without any flag.
    let _ = writeln!(std::io::stderr(), "skipped: {what}: {why}");
}
