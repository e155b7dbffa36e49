//! A client that is not ours: Python's gRPC, which knows nothing of the interface but what reflection tells it. It goes through the
//! whole flow.

use std::process::Command;

use super::appliance::Place;
use super::failovers::Site;

/// Python with grpcio and grpcio-reflection; none where it is not installed.
fn python(test: &str) -> Option<std::path::PathBuf> {
    let found = std::env::var_os("FRESHET_GRPC_PYTHON").map(std::path::PathBuf::from).filter(|path| path.exists());
    if found.is_none() {
        crate::support::skipped(test, "FRESHET_GRPC_PYTHON names no Python with grpcio and grpcio-reflection");
    }
    found
}

fn run(python: &std::path::Path, place: &Place, first: &Site<'_>, second: &Site<'_>) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/control/outsider.py");
    // The limit is for a client that waits for ever; none comes near it.
    let mut command = Command::new("timeout");
    command.arg("300").arg(python).arg(script);
    let out = command
        .args([first, second].map(|site| format!("unix:{}", site.appliance.socket.display())))
        .args([place.store_url(), place.image("outsider").display().to_string(), first.datastore(), second.datastore()])
        .arg(first.hypervisor("vm-web"))
        .output()
        .unwrap();
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{}{}", shown(&out.stdout), shown(&out.stderr));
    shown(&out.stdout)
}

#[test]
fn a_transcript_of_a_client_that_is_not_ours() {
    let Some(python) = python("a transcript of a client that is not ours") else { return };
    let place = Place::new();
    let (first, second) = (Site::start(&place, "first"), Site::start(&place, "second"));
    first.switch("web", "running");
    let told = run(&python, &place, &first, &second);
    let steps: Vec<&str> = told.lines().collect();
    let expected = [
        "health SERVING",
        "services 9",
        "site first admin",
        "store added",
        "refused FAILED_PRECONDITION refused freshet",
        "domain DOMAIN_MODE_PROTECTED",
        "protected web",
        "recoverable",
        "point",
        "scanned d first",
        "imported DOMAIN_MODE_IMPORTED",
        "twice FAILED_PRECONDITION",
        "invalid INVALID_ARGUMENT disks[0].path",
        "runbook INVALID_ARGUMENT",
        "runbook 1",
        "plan ['dr log_store SEVERITY_ERROR', 'failover datastore SEVERITY_ERROR']",
        "plan [('web', True)] first no loss",
        "followed TASK_STATE_DONE ['check', 'follow', 'catch-up']",
        "follows first",
        "conditions True no loss",
        "completed TASK_STATE_DONE ['check', 'publish-settings', 'request', 'await-release', 'claim', 'finish', 'protect', \
         'define', 'start web', 'clean-up']",
        "runs second",
        "follows second",
        "order ['wait 1 s before web', 'start VM web']",
        "back TASK_STATE_DONE first",
        "followed TASK_STATE_DONE",
        "forced FAILED_PRECONDITION",
        "forced TASK_STATE_DONE ['check', 'claim', 'finish', 'protect', 'define', 'start web', 'clean-up']",
        "runs second",
        "fenced second",
        "not confirmed FAILED_PRECONDITION",
        "overwritten True",
        "back TASK_STATE_DONE ['check', 'rehydrate', 'request', 'await-release', 'claim', 'finish', 'protect', 'define', \
         'delay', 'start web', 'clean-up']",
        "home first",
        "nothing to cancel NOT_FOUND",
        "tasks 3 6",
        "unprotected True",
        "events ok",
    ];
    assert_eq!(steps, expected, "{told}");
}
