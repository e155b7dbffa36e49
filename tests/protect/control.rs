//! A running protection asked and steered from the command line, and what it refuses.

use rustix::process::Signal;

use super::outside::wait_for;
use super::program::{Program, ask, protect, recoverable, status, until_told};
use super::*;
use crate::world::noise;

fn disk(world: &World, vm: &str, disk: &str, more: &str) -> String {
    format!("{disk}={}{more}", world.image(vm, disk).display())
}

#[test]
fn a_running_protection_is_asked_and_steered_from_the_command_line() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::new(&[("web", "root"), ("web", "data"), ("db", "root")]));
    for (vm, disk) in [("web", "root"), ("web", "data"), ("db", "root")] {
        world.make(vm, disk, 8 * MIB, &[(MIB, 2 * MIB)]);
    }
    for wish in [&["--status"][..], &["--stop"], &["--point"], &["--remove", "web/root"]] {
        let nobody = ask(&world, wish);
        assert_eq!((nobody.code, nobody.error().0), (9, "not-found"), "{wish:?}: {nobody:?}");
        assert!(nobody.error().1.contains("no protection"), "{nobody:?}");
    }
    let program = Program::start(&mut protect(&world, 1));
    program.event("ready");
    let first = until_told(&world, "recoverable", recoverable);
    assert!(first.sync.is_none() && first.rpo_ms.is_some() && first.vms[0].point.is_some(), "{first:#?}");

    let add = |vm: &str, disk: &str| ask(&world, &["--add", "--vm", vm, "--disk", disk]);
    let joined = add("web", &disk(&world, "web", "data", ",size=8MiB"));
    assert_eq!((joined.code, &joined.json["added"]), (0, &true.into()), "{joined:?}");
    let twice = add("web", &disk(&world, "web", "data", ""));
    assert!(twice.code == 4 && twice.error().1.contains("web/data is protected already"), "{twice:?}");
    let same_image = add("db", &disk(&world, "web", "data", ""));
    assert!(same_image.code == 4 && same_image.error().1.contains("locked"), "{same_image:?}");
    for (more, told) in [(",size=16MiB", "8388608"), (",size=4096", "8388608"), (",grow,size=16MiB", "grow")] {
        let wrong = add("db", &disk(&world, "db", "root", more));
        assert!(wrong.code == 2 && wrong.json.to_string().contains(told), "{wrong:?}");
    }
    let missing = add("db", "root=/nowhere/at/all");
    assert!(missing.code == 9 && missing.error().1.contains("/nowhere/at/all"), "{missing:?}");
    assert_eq!(status(&world).vms.len(), 1, "what could not join left something behind");
    assert_eq!(add("db", &disk(&world, "db", "root", "")).code, 0, "nothing of the attempts is in its way");
    assert_eq!(ask(&world, &["--add"]).code, 2);

    let mut guest = client(&world, "db", "root");
    guest.write(0, &noise(4, 4096)).unwrap();
    until_told(&world, "recoverable", |status| recoverable(status) && status.vms.len() == 2);
    let point = ask(&world, &["--point"]);
    let number = point.json["point"].as_u64().unwrap();
    assert!(point.code == 0 && status(&world).shipped >= number, "{point:?}");
    runtime.block_on(world.rehydrate());
    world.assert_disks(&world.images());
    assert_eq!(ask(&world, &["--point", "3600001"]).code, 2);

    for nobody in ["web/none", "nobody/root"] {
        let gone = ask(&world, &["--remove", nobody]);
        assert!(gone.code == 9 && gone.error().1.contains(nobody), "{gone:?}");
    }
    assert_eq!(ask(&world, &["--remove", "root"]).code, 2);
    for (which, left) in [("db/root", 1), ("web/data", 1)] {
        let gone = ask(&world, &["--remove", which]);
        assert_eq!((gone.code, &gone.json["removed"]), (0, &true.into()), "{gone:?}");
        assert_eq!(ask(&world, &["--remove", which]).code, 9, "twice");
        assert_eq!(status(&world).vms.len(), left);
        assert!(NbdClient::try_connect(&socket(&world), which).is_err(), "its export is gone");
    }
    assert_eq!(status(&world).vms[0].disks.len(), 1);
    let last = ask(&world, &["--remove", "web/root"]);
    assert!(last.code == 4 && last.error().1.contains("last disk"), "{last:?}");

    let stopping = ask(&world, &["--stop"]);
    assert_eq!((stopping.code, &stopping.json["stopping"]), (0, &true.into()), "{stopping:?}");
    let (ended, report) = program.ended();
    assert!(ended.success() && report["all_shipped"] == true, "{ended}: {report:#}");
    assert_eq!(ask(&world, &["--status"]).code, 9);
}

#[test]
fn initial_sync_tells_how_far_it_is_and_when_it_will_be_done() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::new(&[("web", "root")]));
    world.make("web", "root", 24 * MIB, &[(0, 24 * MIB)]);
    let program = Program::start(protect(&world, 1).args(["--sync-rate", "4MiB"]));
    program.event("ready");
    let told = until_told(&world, "an ETA", |status| status.sync.is_some_and(|sync| sync.eta_s.is_some()));
    let (sync, disk) = (told.sync.unwrap(), &told.vms[0].disks[0]);
    assert_eq!((sync.total, sync.total - sync.done), (disk.size, disk.unsynced), "{told:#?}");
    assert_eq!(sync.eta_s, Some(disk.unsynced.div_ceil(sync.rate.unwrap())), "{told:#?}");
    assert_eq!((told.status.as_str(), told.rpo_ms, told.vms[0].point), ("Initial Sync", None, None), "{told:#?}");
    let more = until_told(&world, "progress", |status| status.sync.is_none_or(|now| now.done > sync.done));
    assert!(more.sync.is_none_or(|now| now.total == sync.total), "{more:#?}");
    let done = until_told(&world, "recoverable", recoverable);
    assert!(done.sync.is_none() && done.rpo_ms.is_some(), "{done:#?}");

    // For people.
    let state = world.dir.path().join("state");
    let mut command = program::freshet();
    command.args(["protect", "--status", "--domain", world.domain.as_str(), "--log-store"]).arg(state);
    let text = wait_for("a status", || command.output().ok().filter(|out| out.status.success()));
    let text = String::from_utf8(text.stdout).unwrap();
    for part in ["Recoverable, normal", "RPO ", "web  Recoverable  point ", "root  24.0 MiB  dirty"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let (ended, report) = program.end(Signal::TERM);
    assert!(ended.success(), "{report:#}");
}
