//! `freshet export` as an operator runs it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::client::*;
use super::rig::{MIB, scratch};
use freshet::nbd::Address;
use serde_json::Value;

/// A server that is killed when the test ends, however it ends.
struct Served {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    ready: Value,
}

impl Served {
    fn start(args: &[&str]) -> Served {
        let mut child = command(args).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        assert_eq!(ready["event"], "ready", "{ready}");
        Served { child, stdout, ready }
    }

    fn address(&self) -> Address {
        let text = self.ready["addresses"][0].as_str().unwrap();
        match text.split_once(':').unwrap() {
            ("unix", path) => Address::Unix(path.into()),
            (_, address) => Address::Tcp(address.parse().unwrap()),
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Asks it to stop; the rest of what it printed.
    fn stop(mut self) -> Value {
        self.signal(rustix::process::Signal::TERM);
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success());
        serde_json::from_str(&rest).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
    command.args(["export", "--json"]).args(args).stdin(Stdio::null());
    command
}

/// Exit code and error of a server that must not start.
fn refused(args: &[&str]) -> (i32, String) {
    let out = command(args).output().unwrap();
    let error: Value = serde_json::from_slice(&out.stdout).unwrap();
    (out.status.code().unwrap(), error["error"]["message"].as_str().unwrap().to_owned())
}

fn image(path: &Path, len: u64) {
    std::fs::File::create(path).unwrap().set_len(len).unwrap();
}

#[test]
fn disks_are_served_until_a_signal_and_are_whole_then() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).display().to_string();
    image(&dir.path().join("a"), MIB);
    image(&dir.path().join("b"), MIB);
    for cache in ["direct", "write-back"] {
        let (a, b) = (format!("a={}", path("a")), format!("b={},size=2MiB,grow", path("b")));
        let listen = format!("unix:{}", path("socket"));
        let served = Served::start(&[
            "--disk",
            &a,
            "--disk",
            &b,
            "--listen",
            &listen,
            "--listen",
            "tcp:127.0.0.1:0",
            "--cache",
            cache,
        ]);
        let ready = served.ready.clone();
        assert_eq!((&ready["cache"], &ready["tls"]), (&cache.into(), &false.into()));
        assert_eq!((&ready["exports"][0]["size"], &ready["exports"][1]["size"]), (&MIB.into(), &(2 * MIB).into()));
        assert!(ready["exports"][1]["uris"][1].as_str().unwrap().starts_with("nbd://127.0.0.1:"));
        let mut client = Client::open(&served.address(), "b");
        let mark = cache.as_bytes()[0];
        assert_eq!(client.write(MIB, &[mark; 4096]), 0);
        assert_eq!(served.stop(), serde_json::json!({ "event": "stopped", "cut": 0, "complete": true }));
        assert!(client.is_closed());
        assert!(!dir.path().join("socket").exists());
        let mut bytes = [0; 4096];
        std::fs::File::open(dir.path().join("b")).unwrap().read_exact_at(&mut bytes, MIB).unwrap();
        assert!(bytes == [mark; 4096]);
    }
}

#[test]
fn after_a_kill_the_next_server_takes_over_and_what_was_flushed_is_there() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).display().to_string();
    image(&dir.path().join("a"), MIB);
    let args = ["--disk", &format!("a={}", path("a")), "--listen", &format!("unix:{}", path("socket"))];
    let mut served = Served::start(&args);
    let mut client = Client::open(&served.address(), "a");
    for n in 0..10 {
        assert_eq!(client.write(n * 4096, &[n as u8 + 1; 4096]), 0);
    }
    assert_eq!(client.ask(FLUSH, 0, 0, 0, &[]), 0);
    served.signal(rustix::process::Signal::KILL);
    served.child.wait().unwrap();
    assert!(client.is_closed());
    assert!(dir.path().join("socket").exists(), "a kill leaves the socket");
    let served = Served::start(&args);
    let mut client = Client::open(&served.address(), "a");
    for n in 0..10 {
        assert!(client.read(n * 4096, 4096).unwrap() == [n as u8 + 1; 4096]);
    }
    served.stop();
}

#[test]
fn what_cannot_be_served_is_refused_with_its_reason() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).display().to_string();
    image(&dir.path().join("a"), MIB);
    image(&dir.path().join("b"), MIB);
    let disk = format!("a={}", path("a"));
    let listen = format!("unix:{}", path("socket"));
    let served = Served::start(&["--disk", &disk, "--listen", &listen]);
    let other = format!("unix:{}", path("other"));
    let (code, why) = refused(&["--disk", &disk, "--listen", &other]);
    assert!(code == 4 && why.contains("locked"), "{code} {why}");
    let (code, why) = refused(&["--read-only", "--disk", &disk, "--listen", &other]);
    assert!(code == 4 && why.contains("locked"), "{code} {why}");
    let b = format!("b={}", path("b"));
    let (code, why) = refused(&["--disk", &b, "--listen", &listen]);
    assert!(code == 4 && why.contains("another server"), "{code} {why}");
    served.stop();
    for (args, code, word) in [
        (&["--disk", &format!("{b},size=2MiB")][..], 2, "Ask for it to be extended"),
        (&["--disk", &format!("{b},size=512KiB")], 2, "out of reach"),
        (&["--disk", &b, "--disk", &b], 2, "two of that name"),
        (&["--disk", &b, "--disk", &format!("c={}", path("b"))], 4, "locked"),
        (&["--disk", &format!("c={}", path("none"))], 9, "none"),
        (&["--disk", &format!("c={}", dir.path().display())], 2, "raw image file"),
        (&["--disk", &b, "--memory", "1MiB"], 2, "raise the memory"),
        (&["--disk", &b, "--tls-cert", &path("none"), "--tls-key", &path("none")], 9, "none"),
    ] {
        let (was, why) = refused(&[args, &["--listen", &other]].concat());
        assert!(was == code && why.contains(word), "{args:?}: {was} {why}");
    }
    for bad in [&["--listen", &other][..], &["--disk", &b], &["--disk", &b, "--listen", "nowhere"]] {
        assert_eq!(refused(bad).0, 2, "{bad:?}");
    }
    assert_eq!(dir.path().join("b").metadata().unwrap().len(), MIB);
    // Readers share.
    let reading = ["--read-only", "--disk", &b, "--listen"];
    let one = Served::start(&[&reading[..], &[&listen]].concat());
    let two = Served::start(&[&reading[..], &[&other]].concat());
    assert_eq!(Client::open(&two.address(), "b").write(0, b"x"), EPERM);
    one.stop();
    two.stop();
}

#[test]
fn an_image_that_is_served_is_not_replicated_as_if_it_stood_still() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).display().to_string();
    image(&dir.path().join("a"), MIB);
    std::fs::create_dir(dir.path().join("store")).unwrap();
    let disk = format!("a={}", path("a"));
    let served = Served::start(&["--disk", &disk, "--listen", &format!("unix:{}", path("socket"))]);
    let store = format!("file://{}", path("store"));
    let replicate =
        ["replicate", "--json", "--store", &store, "--domain", "d", "--site", "s", "--vm", "v", "--disk", &disk];
    let run = || Command::new(env!("CARGO_BIN_EXE_freshet")).args(replicate).output().unwrap();
    assert_eq!(run().status.code(), Some(4));
    served.stop();
    assert!(run().status.success());
}
