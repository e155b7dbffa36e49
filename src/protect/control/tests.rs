//! The server against clients of every kind: good, malformed, oversized, slow, gone, too many, foreign.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use super::super::hand_over::{HandOverOptions, HandedOver};
use super::*;
use crate::capture::{DiskSource, VmSource};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Name;

/// What never takes long is given up after this, so that a broken server fails and does not hang.
const LONG: Duration = Duration::from_secs(60);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("it hangs")
}

/// Notes what it is asked for; adding waits for a permit of the test.
struct Noted {
    asked: Mutex<Vec<String>>,
    go: Semaphore,
    begun: Semaphore,
    status: Value,
}

impl Noted {
    fn new(status: Value) -> Arc<Noted> {
        Arc::new(Noted { asked: Mutex::default(), go: Semaphore::new(0), begun: Semaphore::new(0), status })
    }

    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Controlled for Noted {
    fn status(&self) -> BoxFuture<'_, Result<Value>> {
        Box::pin(async { Ok(self.status.clone()) })
    }

    fn add(&self, vm: VmSource) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.begun.add_permits(1);
            self.go.acquire().await.unwrap().forget();
            let size = |d: &DiskSource| d.size.map_or(String::new(), |size| format!(",size={size}"));
            let disks = vm.disks.iter().map(|d| format!(" {}={}{}", d.name, d.path.display(), size(d)));
            self.note(format!("add {}{}", vm.name, disks.collect::<String>()));
            Ok(())
        })
    }

    fn remove_disk<'a>(&'a self, vm: &'a Name, disk: &'a Name) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { Err(Error::new(ErrorKind::NotFound, format!("VM {vm} has no disk {disk}"))) })
    }

    fn flush_point(&self, within: Duration) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move { Ok(u64::try_from(within.as_millis()).unwrap()) })
    }

    fn hand_over(&self, options: HandOverOptions) -> BoxFuture<'_, Result<HandedOver>> {
        self.note(format!("hand over {} {}", options.within.as_millis(), options.leave_uncovered));
        Box::pin(async {
            Ok(HandedOver {
                generation: 3,
                point: 4712,
                point_time: "2026-11-25T05:30:00Z".into(),
                released: "2026-11-25T05:30:01Z".into(),
                covered: vec!["web".into()],
                uncovered: Vec::new(),
            })
        })
    }

    fn turn_down(&self) -> BoxFuture<'_, Result<()>> {
        self.note("turn down".into());
        Box::pin(async { Ok(()) })
    }

    fn stop(&self) -> BoxFuture<'_, Result<()>> {
        self.note("stop".into());
        Box::pin(async { Ok(()) })
    }
}

struct Bench {
    dir: tempfile::TempDir,
    noted: Arc<Noted>,
    server: ControlServer,
}

impl Bench {
    fn new(limits: ControlLimits) -> Bench {
        Bench::with(limits, json!({ "mode": "normal", "text": "two\nlines ☃" }))
    }

    fn with(limits: ControlLimits, status: Value) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let noted = Noted::new(status);
        let server = ControlServer::start(&control_path(dir.path()), noted.clone(), limits).unwrap();
        Bench { dir, noted, server }
    }

    fn path(&self) -> PathBuf {
        control_path(self.dir.path())
    }

    async fn client(&self) -> ControlClient {
        soon(ControlClient::connect(&self.path())).await.unwrap()
    }

    async fn raw(&self) -> UnixStream {
        UnixStream::connect(self.path()).await.unwrap()
    }

    async fn still_serves(&self) {
        let reply = soon(self.client().await.call(&ControlRequest::Status)).await.unwrap();
        assert_eq!(reply, ControlReply::Status(self.noted.status.clone()));
    }
}

/// What comes until the server closes.
async fn rest(stream: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end as well: the server closed with bytes unread.
    let _ = soon(stream.read_to_end(&mut bytes)).await;
    String::from_utf8(bytes).unwrap()
}

/// The server has closed, which shows though nothing is read.
async fn hung_up(stream: &UnixStream) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    loop {
        let mut look = [PollFd::new(stream, PollFlags::empty())];
        poll(&mut look, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        if look[0].revents().contains(PollFlags::HUP) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn add(disk: &str) -> ControlRequest {
    ControlRequest::AddDisk { vm: "web".into(), disk: disk.into(), path: "/images/x".into(), size: None }
}

#[tokio::test]
async fn every_request_reaches_the_protection_and_its_answer_the_client() {
    let bench = Bench::new(ControlLimits::default());
    let mut client = bench.client().await;
    bench.noted.go.add_permits(2);
    let disks = vec![
        DiskSpec { name: "a".into(), path: "/images/a".into(), size: Some(4096) },
        DiskSpec { name: "b".into(), path: "/images/b".into(), size: None },
    ];
    for (request, reply) in [
        (ControlRequest::Status, ControlReply::Status(bench.noted.status.clone())),
        (add("data"), ControlReply::Added),
        (ControlRequest::AddVm { vm: "db".into(), disks }, ControlReply::Added),
        (ControlRequest::FlushPoint { within_ms: 1234 }, ControlReply::Point(1234)),
        (ControlRequest::Stop, ControlReply::Stopping),
    ] {
        assert_eq!(soon(client.call(&request)).await.unwrap(), reply, "{request:?}");
    }
    let error =
        soon(client.call(&ControlRequest::RemoveDisk { vm: "web".into(), disk: "x".into() })).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NotFound, "VM web has no disk x"));
    assert_eq!(bench.noted.asked(), ["add web data=/images/x", "add db a=/images/a,size=4096 b=/images/b", "stop"]);
    soon(bench.server.shutdown()).await;
    assert!(!control_path(bench.dir.path()).exists());
    assert_eq!(ControlClient::connect(&control_path(bench.dir.path())).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn what_is_no_request_is_told_so_and_does_nothing() {
    let bench = Bench::new(ControlLimits::default());
    let mut stream = bench.raw().await;
    let mut lines = super::line::Lines::new(&mut stream, 1 << 20);
    for (line, kind) in [
        (r#""#, "invalid"),
        (r#"}{"#, "invalid"),
        (r#"[1]"#, "invalid"),
        (r#"{"request":"stop"}"#, "invalid"),
        (r#"{"version":"1","request":"stop"}"#, "invalid"),
        (r#"{"version":2,"request":"stop"}"#, "unsupported"),
        (r#"{"version":1}"#, "invalid"),
        (r#"{"version":1,"request":"explode"}"#, "invalid"),
        (r#"{"version":1,"request":"stop","gently":true}"#, "invalid"),
        (r#"{"version":1,"request":"add-disk","vm":"web","disk":"d"}"#, "invalid"),
        (r#"{"version":1,"request":"add-disk","vm":"web","disk":"d","path":"relative"}"#, "invalid"),
        (r#"{"version":1,"request":"add-disk","vm":"w\u0007eb","disk":"d","path":"/x"}"#, "invalid"),
        (r#"{"version":1,"request":"add-vm","vm":"web","disks":[]}"#, "invalid"),
        (r#"{"version":1,"request":"add-vm","vm":"web","disks":[{"name":"a","path":"/a","grow":1}]}"#, "invalid"),
        (r#"{"version":1,"request":"add-vm","vm":"web","disks":[{"name":"a","path":"/a","size":null}]}"#, "invalid"),
        (r#"{"version":1,"request":"add-disk","vm":"web","disk":"d","path":"/x","size":-1}"#, "invalid"),
        (
            r#"{"version":1,"request":"add-vm","vm":"w","disks":[{"name":"a","path":"/a"},{"name":"a","path":"/b"}]}"#,
            "invalid",
        ),
        (r#"{"version":1,"request":"flush-point","within_ms":3600001}"#, "invalid"),
        (r#"{"version":1,"request":"flush-point","within_ms":-1}"#, "invalid"),
    ] {
        // The connection stays: where the next line begins is known.
        lines.stream().write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let answer = lines.next(LONG).await.unwrap().unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(
            (answer["version"].as_u64(), answer["error"]["kind"].as_str()),
            (Some(1), Some(kind)),
            "{line}: {answer}"
        );
    }
    lines.stream().write_all(b"\xff\xfe\n").await.unwrap();
    assert!(String::from_utf8(lines.next(LONG).await.unwrap().unwrap()).unwrap().contains("not a JSON document"));
    let deep = [b"[".repeat(50_000), b"\n".to_vec()].concat();
    lines.stream().write_all(&deep).await.unwrap();
    assert!(String::from_utf8(lines.next(LONG).await.unwrap().unwrap()).unwrap().contains("recursion"));
    bench.still_serves().await;
    assert_eq!(bench.noted.asked(), [""; 0]);
}

#[tokio::test]
async fn lines_over_the_limit_or_not_whole_are_never_acted_upon() {
    let bench = Bench::new(ControlLimits { line: 100, ..ControlLimits::default() });
    let stop = br#"{"version":1,"request":"stop"}"#;
    for (what, answer) in [
        ([&b"x".repeat(100)[..], b"\n"].concat(), "more than 100 bytes"),
        (b"x".repeat(5000), "more than 100 bytes"),
        // Right but for its length.
        ([&stop[..], &b" ".repeat(70), b"\n"].concat(), "more than 100 bytes"),
        // Whole but for its newline.
        (stop.to_vec(), ""),
    ] {
        let mut stream = bench.raw().await;
        // The server may have closed before it took all.
        let _ = stream.write_all(&what).await;
        let _ = stream.shutdown().await;
        let told = rest(&mut stream).await;
        assert!(told.contains(answer) && told.is_empty() == answer.is_empty(), "{told:?}");
    }
    assert_eq!(bench.noted.asked(), [""; 0]);
    // Just within it, in pieces, and two at once.
    let mut stream = bench.raw().await;
    for piece in
        [&stop[..5], &stop[5..], &b" ".repeat(99 - stop.len()), b"\n", &[&stop[..], b"\n", stop, b"\n"].concat()]
    {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await.matches("stopping").count(), 3);
    assert_eq!(bench.noted.asked().len(), 3);
}

#[tokio::test]
async fn slow_clients_are_cut_off_and_others_served_meanwhile() {
    let short = Duration::from_millis(300);
    let limits = ControlLimits { request: short, answer: short, ..ControlLimits::default() };
    let bench = Bench::with(limits, json!("x".repeat(8 << 20)));
    // Says nothing; says a byte now and then; takes no answer.
    let mut silent = bench.raw().await;
    let drip = bench.raw().await;
    let (mut told, mut says) = drip.into_split();
    let dripping = tokio::spawn(async move {
        for _ in 0..3000 {
            if says.write_all(b" ").await.is_err() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    });
    let mut deaf = bench.raw().await;
    deaf.write_all(b"{\"version\":1,\"request\":\"status\"}\n").await.unwrap();
    bench.still_serves().await;
    assert!(rest(&mut silent).await.contains("no whole line"));
    let mut answer = String::new();
    let read = soon(told.read_to_string(&mut answer)).await;
    // What it went on sending can make the kernel throw the answer away with the connection.
    assert!(answer.contains("no whole line") || read.is_err(), "{answer:?}");
    assert!(soon(dripping).await.unwrap(), "it was listened to for a minute");
    soon(hung_up(&deaf)).await;
    let part = rest(&mut deaf).await;
    assert!(!part.is_empty() && part.len() < 8 << 20, "{} bytes, though nobody took them", part.len());
    bench.still_serves().await;
}

#[tokio::test]
async fn more_clients_than_there_is_room_for_are_turned_away_until_one_leaves() {
    let bench = Bench::new(ControlLimits { connections: 2, ..ControlLimits::default() });
    let (mut first, mut second) = (bench.client().await, bench.client().await);
    for client in [&mut first, &mut second] {
        soon(client.call(&ControlRequest::Status)).await.unwrap();
    }
    let error = soon(bench.client().await.call(&ControlRequest::Status)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    drop(first);
    // The server learns by and by that it is gone.
    let served = async {
        loop {
            match bench.client().await.call(&ControlRequest::Status).await {
                Ok(_) => return,
                Err(e) => assert_eq!(e.kind(), ErrorKind::Full, "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(served).await;
    soon(second.call(&ControlRequest::Status)).await.unwrap();
}

#[tokio::test]
async fn what_was_begun_is_ended_though_its_client_is_gone_and_the_server_ends() {
    let bench = Bench::new(ControlLimits::default());
    for disk in ["gone", "waits"] {
        let mut stream = bench.raw().await;
        stream.write_all(&add(disk).to_line().unwrap()).await.unwrap();
        soon(bench.noted.begun.acquire()).await.unwrap().forget();
        if disk == "gone" {
            drop(stream);
            bench.still_serves().await;
            bench.noted.go.add_permits(1);
            let noted = async {
                while bench.noted.asked().is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            soon(noted).await;
            continue;
        }
        let noted = Arc::clone(&bench.noted);
        let ended = tokio::spawn(bench.server.shutdown());
        // It is not accepted any more, while the one under way is waited for.
        tokio::time::sleep(Duration::from_millis(100)).await;
        noted.go.add_permits(1);
        assert!(rest(&mut stream).await.contains("added"));
        soon(ended).await.unwrap();
        assert_eq!(noted.asked(), ["add web gone=/images/x", "add web waits=/images/x"]);
        return;
    }
}

#[tokio::test]
async fn a_request_that_does_not_end_holds_the_end_of_the_server_up_for_its_grace_only() {
    let bench = Bench::new(ControlLimits { grace: Duration::from_millis(50), ..ControlLimits::default() });
    let mut client = bench.client().await;
    let calling = tokio::spawn(async move { client.call(&add("never")).await });
    soon(bench.noted.begun.acquire()).await.unwrap().forget();
    soon(bench.server.shutdown()).await;
    let error = soon(calling).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert_eq!(bench.noted.asked(), [""; 0]);
}

#[tokio::test]
async fn the_socket_is_its_owner_s_replaces_what_a_killed_process_left_and_may_lie_deep() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
    std::fs::create_dir_all(&deep).unwrap();
    for dir in [dir.path(), &deep] {
        let path = control_path(dir);
        // A listener that is gone leaves its name behind, in both places.
        std::fs::write(&path, "").unwrap();
        std::fs::write(dir.join("control.sock.new"), "").unwrap();
        let noted = Noted::new(json!(1));
        let server = ControlServer::start(&path, noted, ControlLimits::default()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut client = soon(ControlClient::connect(&path)).await.unwrap();
        assert_eq!(soon(client.call(&ControlRequest::Status)).await.unwrap(), ControlReply::Status(json!(1)));
        // A server that ends does not take away what another has put in its place.
        let next = ControlServer::start(&path, Noted::new(json!(2)), ControlLimits::default()).unwrap();
        soon(server.shutdown()).await;
        let mut client = soon(ControlClient::connect(&path)).await.unwrap();
        assert_eq!(soon(client.call(&ControlRequest::Status)).await.unwrap(), ControlReply::Status(json!(2)));
        soon(next.shutdown()).await;
        assert!(!path.exists());
    }
    let nowhere = ControlServer::start(Path::new("/no/such/dir/x"), Noted::new(json!(1)), ControlLimits::default());
    assert_eq!(nowhere.unwrap_err().kind(), ErrorKind::NotFound);
}

/// Connects as another user, from a thread that becomes one: credentials belong to threads.
fn connect_as(uid: u32, path: &Path) -> std::io::Result<std::os::unix::net::UnixStream> {
    let path = path.to_owned();
    let thread = std::thread::spawn(move || {
        // SAFETY: takes three numbers and touches no memory; by the bare call, only this thread changes, and it ends here.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(done, 0, "become user {uid}: {}", std::io::Error::last_os_error());
        std::os::unix::net::UnixStream::connect(path)
    });
    thread.join().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_users_are_not_heard_even_where_the_socket_lets_them() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("FRESHET_REQUIRE_PEERS").is_none(), "needs root");
        eprintln!("skipped 1: only root can become another user");
        return;
    }
    let bench = Bench::new(ControlLimits::default());
    std::fs::set_permissions(bench.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let refused = connect_as(65534, &bench.path()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    std::fs::set_permissions(bench.path(), std::fs::Permissions::from_mode(0o666)).unwrap();
    let stream = connect_as(65534, &bench.path()).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut stream = UnixStream::from_std(stream).unwrap();
    let _ = stream.write_all(b"{\"version\":1,\"request\":\"stop\"}\n").await;
    let told = rest(&mut stream).await;
    assert!(told.contains("denied") && told.contains("user 65534"), "{told:?}");
    let mut root = UnixStream::from_std({
        let stream = connect_as(0, &bench.path()).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    })
    .unwrap();
    root.write_all(b"{\"version\":1,\"request\":\"stop\"}\n").await.unwrap();
    root.shutdown().await.unwrap();
    assert!(rest(&mut root).await.contains("stopping"));
    assert_eq!(bench.noted.asked(), ["stop"]);
}

/// The lines of the page's blocks that begin with `{`.
fn examples() -> Vec<&'static str> {
    include_str!("../../../docs/control.md").lines().filter(|line| line.starts_with('{')).collect()
}

#[test]
fn the_page_shows_every_request_and_every_answer_as_they_are() {
    let (mut requests, mut answers) = (Vec::new(), Vec::new());
    for line in examples() {
        let value: Value = serde_json::from_str(line).unwrap();
        match value.get("request").and_then(Value::as_str) {
            Some(name) => {
                requests.push(name.to_owned());
                let request = ControlRequest::from_line(line.as_bytes()).unwrap_or_else(|e| panic!("{line}: {e}"));
                request.clone().check().unwrap_or_else(|e| panic!("{line}: {e}"));
                let again: Value = serde_json::from_slice(&request.to_line().unwrap()).unwrap();
                assert_eq!(again, value);
            }
            None => {
                let answer = message::read_answer(line.as_bytes());
                let again: Value = serde_json::from_slice(&message::answer_line(&answer)).unwrap();
                assert_eq!(again, value);
                answers.push(match answer {
                    Ok(ControlReply::Status(_)) => "status".to_owned(),
                    Ok(ControlReply::Point(_)) => "point".to_owned(),
                    Ok(ControlReply::Released(_)) => "released".to_owned(),
                    Ok(_) => value["ok"].as_str().unwrap().to_owned(),
                    Err(_) => "error".to_owned(),
                });
            }
        }
    }
    let all = ["status", "add-disk", "add-vm", "remove-disk", "flush-point", "hand-over", "turn-down", "stop"];
    assert_eq!(requests, all);
    let all = ["status", "added", "added", "removed", "point", "released", "turned-down", "stopping", "error"];
    assert_eq!(answers, all);
    let limits = ControlLimits::default();
    let page = include_str!("../../../docs/control.md");
    for said in [
        format!("at most {} connections", limits.connections),
        format!("at most {} KiB", limits.line >> 10),
        format!("whole within {} s", limits.request.as_secs()),
        format!("taken within {} s", limits.answer.as_secs()),
        format!("version {CONTROL_VERSION}"),
    ] {
        assert!(page.contains(&said), "docs/control.md does not say: {said}");
    }
}

#[test]
fn every_kind_of_error_comes_back_as_itself() {
    use ErrorKind::*;
    for kind in [
        Invalid,
        NotFound,
        Refused,
        Fenced,
        Damaged,
        Incomplete,
        Full,
        Unreachable,
        Denied,
        Unsupported,
        Io,
        Cancelled,
        Internal,
    ] {
        let line = message::answer_line(&Err(Error::new(kind, "two\nlines")));
        assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
        let back = message::read_answer(&line).unwrap_err();
        assert_eq!((back.kind(), back.to_string().as_str()), (kind, "two\nlines"));
    }
    for bad in ["{}", r#"{"version":1}"#, r#"{"version":1,"ok":"what"}"#, r#"{"version":1,"error":{"kind":"x"}}"#, "x"]
    {
        assert!(message::read_answer(bad.as_bytes()).is_err(), "{bad}");
    }
    let newer = message::read_answer(br#"{"version":9,"ok":"added"}"#).unwrap_err();
    assert_eq!(newer.kind(), Unsupported);
}
