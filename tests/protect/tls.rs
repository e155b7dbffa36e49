//! Protected disks over TLS, for other people's clients with certificates.

use rustix::process::Signal;

use super::program::{Program, protect, recoverable, until_told};
use super::stores::random;
use super::*;
use crate::support::peers::{has, run};
use crate::support::pki::Pki;

#[test]
fn other_clients_with_certificates_write_protected_disks_and_others_get_nowhere() {
    let test = "other_clients_with_certificates_write_protected_disks_and_others_get_nowhere";
    if !has("nbdinfo", test) || !has("nbdcopy", test) {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::new(&[("web", "root")]));
    world.make("web", "root", 16 * MIB, &[(0, MIB)]);
    let (pki, stranger) = (Pki::new(), Pki::new());
    let file = |name: &str| pki.path(name).display().to_string();
    let mut command = protect(&world, 1);
    command.args(["--tls-cert", &file("server-cert.pem"), "--tls-key", &file("server-key.pem")]);
    let program = Program::start(command.args(["--tls-ca", &file("ca-cert.pem"), "--listen", "tcp:127.0.0.1:0"]));
    let ready = program.event("ready");
    until_told(&world, "recoverable", recoverable);
    let addresses: Vec<&str> = ready["addresses"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    let port = addresses.iter().find_map(|address| address.strip_prefix("tcp:")).unwrap().rsplit(':').next().unwrap();
    let uri = |certificates: &Pki| {
        format!("nbds://localhost:{port}/web/root?tls-certificates={}", certificates.dir.path().display())
    };
    let out = run("nbdinfo", &["--json", &uri(&pki)]);
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&told["TLS"], &told["exports"][0]["export-size"]), (&true.into(), &(16 * MIB).into()));
    let bytes = random(7, 16 << 20);
    let (from, to) = (world.dir.path().join("from"), world.dir.path().join("to"));
    std::fs::write(&from, &bytes).unwrap();
    run("nbdcopy", &["--flush", from.to_str().unwrap(), &uri(&pki)]);
    run("nbdcopy", &[&uri(&pki), to.to_str().unwrap()]);
    assert!(std::fs::read(&to).unwrap() == bytes, "read back over TLS");
    for refused in [uri(&stranger), format!("nbd://localhost:{port}/web/root")] {
        let out = std::process::Command::new("timeout").args(["60", "nbdinfo", &refused]).output().unwrap();
        assert!(!out.status.success(), "{refused}: served");
    }
    let plain = NbdClient::try_connect(&socket(&world), "web/root");
    assert!(plain.is_err(), "the Unix socket demands TLS as well");
    program.stop_and_compare(&world, runtime.handle());
    assert!(std::fs::read(world.target("web", "root")).unwrap() == bytes, "what came over TLS is recovered");

    // Half of what TLS needs is no TLS: it is refused, never served in the clear.
    let half = Program::start(protect(&world, 1).args(["--tls-cert", &file("server-cert.pem")]));
    let (ended, _) = half.end(Signal::CONT);
    assert_eq!(ended.code(), Some(2));
}
