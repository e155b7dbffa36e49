//! Real file systems and real databases on protected disks, recovered at points in the midst of their work.
//!
//! SQLite and PostgreSQL each insert numbered rows, one transaction each, and every acknowledgement is noted. At whatever
//! point: the file systems are sound once their journals are played, both databases open, and hold exactly the rows 1 to
//! some k; k is at least what was acknowledged when the newest point before was asked for, and at most what had been sent
//! when the oldest one after was there. PostgreSQL has its log on another disk than its data: only in write order does
//! it get up again.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use freshet::ids::SegmentNo;
use freshet::store::Domain;
use rustix::process::Signal;

use super::outside::{ExportFile, Mount, Running, boot, missing};
use super::*;
use crate::support::kills::generator;
use crate::support::mounts::with_own_mounts;
use crate::support::real_images::{run, tool};
use crate::support::skipped;

/// The user that PostgreSQL runs as, which refuses to be root's; Debian's package makes it.
const USER: &str = "postgres";
/// Points that are asked for under load.
const CUTS: usize = 5;
/// Points that are chosen among all others.
const CHOSEN: usize = 6;
/// Times that a row's number stands in its text.
const REPEATS: usize = 60;

/// PostgreSQL's programs, of whatever version is installed.
fn postgres_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut dirs: Vec<_> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
    dirs.retain(|dir| dir.join("postgres").exists() && dir.join("initdb").exists());
    dirs.sort();
    dirs.pop()
}

/// One of PostgreSQL's programs, run as its user.
fn as_user(program: &Path) -> Command {
    let mut command = tool("setpriv");
    let user = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".to_owned()];
    command.args(user).arg(program).current_dir("/");
    command
}

/// What a writer has done up to now.
#[derive(Default)]
struct Writer {
    sent: AtomicU64,
    acknowledged: AtomicU64,
    end: AtomicBool,
}

impl Writer {
    /// Inserts rows by a client that reads statements and prints what they select, until it is told to end.
    fn work(&self, mut client: Child, now_and_then: &str) {
        let (mut input, output) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let mut n = 0;
        while !self.end.load(SeqCst) {
            n += 1;
            self.sent.store(n, SeqCst);
            // In the midst of it pages of data are written, and not only the log.
            let more = if n % 50 == 0 { now_and_then } else { "" };
            writeln!(input, "INSERT INTO t VALUES ({n}, '{}'); {more}\nSELECT 'kept {n}';", body(n)).unwrap();
            let kept = format!("kept {n}");
            assert!(lines.any(|line| line == kept), "row {n} was not acknowledged");
            self.acknowledged.store(n, SeqCst);
        }
        drop(input);
        assert!(client.wait().unwrap().success());
    }

    /// Its thread.
    fn start(self: &Arc<Self>, mut command: Command, now_and_then: &'static str) -> std::thread::JoinHandle<()> {
        let client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let writer = Arc::clone(self);
        std::thread::spawn(move || writer.work(client, now_and_then))
    }
}

/// The text of a row.
fn body(n: u64) -> String {
    format!("{n} ").repeat(REPEATS)
}

/// Both databases, on two file systems.
struct Databases {
    programs: PathBuf,
    /// Where the disks are mounted: `data`, `log`, and a directory for a socket.
    at: PathBuf,
}

impl Databases {
    fn sqlite(&self) -> Command {
        // Line by line also into a pipe.
        let mut command = tool("stdbuf");
        command.args(["-oL", "sqlite3", "-bail"]).arg(self.at.join("log/rows.db"));
        command
    }

    fn psql(&self) -> Command {
        let mut command = tool("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", USER, "-h"]).arg(self.at.join("socket"));
        command.args(["-d", "postgres"]);
        command
    }

    /// Makes both, with empty tables, and starts the one that is a server.
    fn make(&self) -> Running {
        for owned in ["data", "log", "socket"].map(|dir| self.at.join(dir)) {
            std::fs::create_dir_all(&owned).unwrap();
            run(tool("chown").arg(USER).arg(owned));
        }
        let mut initdb = as_user(&self.programs.join("initdb"));
        initdb.arg("--waldir").arg(self.at.join("log/wal")).arg("--pgdata").arg(self.at.join("data/pg"));
        run(initdb.args(["--no-sync", "--data-checksums", "--auth=trust", "--wal-segsize=1"]));
        for disk in ["data", "log"] {
            run(tool("sync").arg("--file-system").arg(self.at.join(disk)));
        }
        let mut postgres = as_user(&self.programs.join("postgres"));
        postgres.arg("-D").arg(self.at.join("data/pg")).args(["-c", "listen_addresses=", "-k"]);
        let log = std::fs::File::create(self.at.join("postgres.log")).unwrap();
        let server = Running::start(postgres.arg(self.at.join("socket")).stdin(Stdio::null()).stderr(log));
        super::outside::wait_for("PostgreSQL", || {
            let ready = self.psql().args(["-c", "SELECT 1"]).stderr(Stdio::null()).stdout(Stdio::null()).status();
            ready.unwrap().success().then_some(())
        });
        run(self.psql().args(["-c", "CREATE TABLE t (n bigint PRIMARY KEY CHECK (n > 0), body text)"]));
        let make = "PRAGMA journal_mode = WAL; CREATE TABLE t (n INTEGER PRIMARY KEY, body TEXT)";
        run(self.sqlite().arg(make));
        server
    }

    /// What a recovered SQLite holds: rows 1 to this.
    fn sqlite_rows(&self, point: u64) -> u64 {
        let out = self.sqlite().arg("PRAGMA integrity_check; SELECT n, body FROM t ORDER BY n").output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("ok"), "point {point}: {}", String::from_utf8_lossy(&out.stderr));
        let mut rows = 0;
        for line in lines {
            rows += 1;
            assert_eq!(line, format!("{rows}|{}", body(rows)), "point {point}: row {rows} of SQLite");
        }
        rows
    }

    /// The same of PostgreSQL, after its own recovery.
    fn postgres_rows(&self, point: u64) -> u64 {
        // It speaks of a process of a machine that is gone.
        let _ = std::fs::remove_file(self.at.join("data/pg/postmaster.pid"));
        let mut command = as_user(&self.programs.join("postgres"));
        command.args(["--single", "-D"]).arg(self.at.join("data/pg")).arg("postgres");
        let query = format!(
            "SELECT 'rows ' || count(*) || ' ' || coalesce(max(n), 0) || ' ' || \
             coalesce(bool_and(body = repeat(n || ' ', {REPEATS})), true)::text || ' end' AS found FROM t\n"
        );
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        // Where it has ended already, its output says why.
        let _ = child.stdin.take().unwrap().write_all(query.as_bytes());
        let out = child.wait_with_output().unwrap();
        let (said, log) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        let found = said.split_once("\"rows ").and_then(|(_, rest)| rest.split_once(" end\"")).map(|(found, _)| found);
        let found = found.unwrap_or_else(|| panic!("point {point}: PostgreSQL is not well: {said}\n{log}"));
        let words: Vec<&str> = found.split(' ').collect();
        // Distinct and positive by its own rules, so that the count says whether one is missing.
        assert_eq!((words[0], words[2]), (words[1], "true"), "point {point}: rows of PostgreSQL: {found}");
        assert!(out.status.success() && !log.contains("PANIC"), "point {point}: {log}");
        words[0].parse().unwrap()
    }
}

/// A point that was asked for: what each writer had acknowledged before, and sent after it.
struct Cut {
    point: u64,
    before: [u64; 2],
    after: [u64; 2],
}

/// Lets both databases work, and cuts points meanwhile. With them, what was acknowledged at the end, all of it shipped.
fn work(
    world: &World,
    databases: &Databases,
    runtime: &tokio::runtime::Runtime,
    random: &mut fastrand::Rng,
) -> (Vec<Cut>, [u64; 2]) {
    let protection = runtime.block_on(start(world, request(world)));
    let open = |disk: &str| {
        let export =
            ExportFile::open(&socket(world), &format!("db/{disk}"), &world.dir.path().join(format!("nbd-{disk}")));
        run(tool("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&export.file));
        let mount = Mount::image(&export.file, &databases.at.join(disk));
        (export, mount)
    };
    let disks = ["data", "log"].map(open);
    let server = databases.make();
    runtime.block_on(until_recoverable(&protection));
    let writers = [Arc::new(Writer::default()), Arc::new(Writer::default())];
    let cut = |writers: &[Arc<Writer>; 2]| {
        let before = writers.each_ref().map(|writer| writer.acknowledged.load(SeqCst));
        let point = runtime.block_on(protection.cut_point(PATIENCE)).unwrap();
        Cut { point, before, after: writers.each_ref().map(|writer| writer.sent.load(SeqCst)) }
    };
    let mut cuts = vec![cut(&writers)];
    let mut sqlite = databases.sqlite();
    sqlite.args(["-cmd", "PRAGMA synchronous = FULL", "-cmd", "PRAGMA wal_autocheckpoint = 40"]);
    let clients = [writers[0].start(sqlite, ""), writers[1].start(databases.psql(), "CHECKPOINT;")];
    for _ in 0..CUTS {
        std::thread::sleep(Duration::from_millis(random.u64(200..2000)));
        cuts.push(cut(&writers));
    }
    writers.iter().for_each(|writer| writer.end.store(true, SeqCst));
    clients.into_iter().for_each(|client| client.join().unwrap());
    let (status, _) = server.end(Signal::INT);
    assert!(status.success(), "PostgreSQL: {status}");
    for (export, mount) in disks {
        mount.unmount();
        export.close();
    }
    let report = runtime.block_on(protection.stop()).unwrap();
    assert!(report.all_shipped, "{report:#?}");
    (cuts, writers.each_ref().map(|writer| writer.acknowledged.load(SeqCst)))
}

/// The points that are recovered: those that were asked for, some of the others after the first, and the last.
async fn choose(world: &World, cuts: &[Cut], random: &mut fastrand::Rng) -> Vec<u64> {
    let mut domain = Domain::open(&world.site, &world.domain).await.unwrap();
    domain.tip().await.unwrap();
    let points = domain.points().await.unwrap();
    let covering = points.all().iter().filter(|point| !point.vms.is_empty()).map(|point| point.at.segment.get());
    let all: Vec<u64> = covering.filter(|point| *point >= cuts[0].point).collect();
    let mut chosen: Vec<u64> = cuts.iter().map(|cut| cut.point).collect();
    chosen.extend(random.choose_multiple(&all, CHOSEN));
    chosen.extend(all.last());
    chosen.sort_unstable();
    chosen.dedup();
    println!("points {chosen:?} of {}", all.len());
    chosen
}

fn databases_at_points(programs: PathBuf) {
    let mut random = generator("databases");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = runtime.block_on(World::new(&[("db", "data"), ("db", "log")]));
    // PostgreSQL's user must get to what is mounted below.
    std::fs::set_permissions(world.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    world.make("db", "data", 192 * MIB, &[]);
    world.make("db", "log", 96 * MIB, &[]);
    let databases = Databases { programs, at: world.dir.path().join("mounted") };
    let (cuts, acknowledged) = work(&world, &databases, &runtime, &mut random);
    let chosen = runtime.block_on(choose(&world, &cuts, &mut random));
    let mut newest = [0, 0];
    for point in &chosen {
        runtime.block_on(world.rehydrate_to(SegmentNo::new(*point)));
        let mounts = ["data", "log"].map(|disk| {
            let copy = world.dir.path().join(format!("copy-{disk}"));
            boot(&world.target("db", disk), &copy, &databases.at.join(disk))
        });
        let rows = [databases.sqlite_rows(*point), databases.postgres_rows(*point)];
        for (which, name) in ["SQLite", "PostgreSQL"].into_iter().enumerate() {
            let rows = rows[which];
            assert!(rows >= newest[which], "point {point}: {name} falls back from {} to {rows}", newest[which]);
            for cut in &cuts {
                let (least, most) = (cut.before[which], cut.after[which]);
                assert!(*point < cut.point || rows >= least, "point {point}: {name} has {rows} of {least} rows");
                assert!(*point > cut.point || rows <= most, "point {point}: {name} has {rows} rows, {most} were sent");
            }
        }
        newest = rows;
        mounts.into_iter().for_each(Mount::unmount);
    }
    println!("{newest:?} rows");
    assert_eq!(newest, acknowledged, "the last point has every row");
    assert!(newest.iter().all(|rows| *rows > 20), "they did work: {newest:?}");
}

#[test]
fn databases_come_back_whole_at_any_point_of_their_work() {
    let what = "databases on protected disks";
    let needed = ["nbdfuse", "mke2fs", "e2fsck", "sqlite3", "psql", "mount", "setpriv", "stdbuf"];
    if let Some(tool) = missing(&needed) {
        return skipped(what, &format!("no {tool} here"));
    }
    let Some(programs) = postgres_programs() else { return skipped(what, "no PostgreSQL server here") };
    with_own_mounts(what, move || databases_at_points(programs));
}
