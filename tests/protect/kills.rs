//! `freshet protect` killed again and again under load, and started anew: the guest goes on where it was, nothing that was
//! flushed is lost, and every point is a state that the disks had.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use freshet::store::Domain;

use super::order::{BLOCK, BLOCKS, entry, newest};
use super::*;
use crate::support::kills::generator;

/// Kills of one run; `.ci/long` asks for more.
fn kills() -> usize {
    std::env::var("FRESHET_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(6)
}

fn spawn(world: &World) -> Child {
    let arg = |path: PathBuf| path.to_str().unwrap().to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
    command.args(["--json", "protect", "--domain", world.domain.as_str(), "--site", "first site"]);
    command.args(["--store", &format!("file://{}/site", world.dir.path().display())]);
    command.args(["--log-store", &arg(world.dir.path().join("state")), "--log-size", "64MiB", "--memory", "128MiB"]);
    command.args(["--connections", "16", "--segment-age", "30"]);
    command.args(["--listen", &format!("unix:{}", socket(world).display()), "--vm", "bank"]);
    for disk in ["journal", "data"] {
        command.args(["--disk", &format!("{disk}={}", world.image("bank", disk).display())]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
}

/// The guest: goes on through restarts as a hypervisor does, by sending again what was not acknowledged.
fn guest(path: PathBuf, end: Arc<AtomicBool>, flushed: Arc<AtomicU64>) -> u64 {
    let connect = |disk: &str| NbdClient::connect(&path, &format!("bank/{disk}")).unwrap();
    let (mut journal, mut data) = (connect("journal"), connect("data"));
    let mut n = 0;
    while !end.load(Ordering::Relaxed) {
        n += 1;
        let at = n % BLOCKS * BLOCK as u64;
        while journal.write(at, &entry(n, 1)).is_err() {
            journal = connect("journal");
        }
        while data.write(at, &entry(n, 2)).is_err() {
            data = connect("data");
        }
        if n.is_multiple_of(64) && journal.flush().is_ok() && data.flush().is_ok() {
            flushed.store(n, Ordering::Relaxed);
        }
    }
    n
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_under_load_the_guest_goes_on_and_every_point_is_a_state_that_was() {
    let mut random = generator("protect kills");
    let world = World::new(&[("bank", "journal"), ("bank", "data")]).await;
    for disk in ["journal", "data"] {
        world.make("bank", disk, BLOCKS * BLOCK as u64, &[]);
    }
    std::fs::create_dir(world.dir.path().join("state")).unwrap();
    let (end, flushed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let guest = {
        let (path, end, flushed) = (socket(&world), Arc::clone(&end), Arc::clone(&flushed));
        std::thread::spawn(move || guest(path, end, flushed))
    };
    for _ in 0..kills() {
        let mut child = spawn(&world);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.by_ref().map_while(Result::ok).any(|line| line.contains("\"ready\""));
        assert!(ready, "it ended before it served: {:?}", child.wait());
        std::thread::sleep(Duration::from_millis(random.u64(50..1500)));
        let before = flushed.load(Ordering::Relaxed);
        child.kill().unwrap();
        child.wait().unwrap();
        let read = |disk: &str| std::fs::read(world.image("bank", disk)).unwrap();
        assert!(newest_number(&read("data")) >= before, "what was flushed is on the local disk");
    }
    let mut child = spawn(&world);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    assert!(lines.any(|line| line.contains("\"ready\"")));
    std::thread::sleep(Duration::from_millis(500));
    end.store(true, Ordering::Relaxed);
    let last = blocking(move || guest.join().unwrap()).await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    // Until it is recoverable nothing covers the VM.
    let began = Instant::now();
    while newest_covering(&world).await.is_none_or(|at| at == 0) && began.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let report = lines.last().unwrap();
    assert!(child.wait().unwrap().success(), "{report}");
    assert!(report.contains("\"all_shipped\":true"), "{report}");

    let mut domain = Domain::open(&world.site, &world.domain).await.unwrap();
    domain.tip().await.unwrap();
    let points = domain.points().await.unwrap();
    let covering: Vec<_> = points.all().iter().filter(|point| !point.vms.is_empty()).collect();
    println!("{} points of {} cover the VM; {last} entries", covering.len(), points.all().len());
    for point in covering.iter().rev().take(100).rev() {
        world.rehydrate_to(point.at.segment).await;
        let read = |disk: &str| std::fs::read(world.target("bank", disk)).unwrap();
        let (journal, data) = (newest(&read("journal"), 1), newest(&read("data"), 2));
        assert!(journal == data || journal == data + 1, "point {}: journal {journal}, data {data}", point.at);
    }
    world.rehydrate().await;
    let images: Vec<PathBuf> = world.disks.iter().map(|(vm, disk)| world.image(vm, disk)).collect();
    world.assert_disks(&images);
}

fn newest_number(bytes: &[u8]) -> u64 {
    bytes.chunks(BLOCK).map(|block| u64::from_le_bytes(block[..8].try_into().unwrap())).max().unwrap()
}

/// The number of the newest point, if it covers anything.
async fn newest_covering(world: &World) -> Option<u64> {
    let mut domain = Domain::open(&world.site, &world.domain).await.ok()?;
    domain.tip().await.ok()?;
    let found = domain.newest_point().await.ok()?.point?;
    (!found.vms.is_empty()).then_some(found.at.segment.get())
}
