//! A libvirt daemon for one test: its own state, sockets and guests, seen by no other daemon of this machine.
//!
//! As root it runs in a mount namespace in which all the places that libvirt keeps things at are directories of the test.
//! Its guests are ended with it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use freshet::hypervisor::{LibvirtDriver, LibvirtSettings};

use super::namespaces::Namespace;
use super::real_images::{find, tool};

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where libvirt keeps things, and the test's own directory for it.
const PLACES: [(&str, &str); 5] = [
    ("/etc/libvirt", "etc"),
    ("/var/lib/libvirt", "lib"),
    ("/run/libvirt", "run"),
    ("/var/cache/libvirt", "cache"),
    ("/var/log/libvirt", "log"),
];

/// What is missing for a daemon; `None` where nothing is.
pub(crate) fn missing() -> Option<String> {
    let programs = ["virsh", "libvirtd", "unshare", "mount", "qemu-img"];
    if let Some(program) = programs.into_iter().find(|program| find(program).is_none()) {
        return Some(format!("no {program} here"));
    }
    if !rustix::process::geteuid().is_root() {
        return Some("a daemon of its own needs root".to_owned());
    }
    let known = Command::new("getent").args(["passwd", "libvirt-qemu"]).stdout(Stdio::null()).status();
    (!known.is_ok_and(|status| status.success())).then(|| "no user libvirt-qemu here".to_owned())
}

/// Who guests run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    /// The user that libvirt comes with, to whom it gives the files of guests.
    Own,
}

impl User {
    /// The part of `qemu.conf` about it.
    fn settings(self) -> &'static str {
        match self {
            User::Root => "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\n",
            // Two sites share files here that no two hosts share.
            User::Own => "user = \"libvirt-qemu\"\ngroup = \"kvm\"\nremember_owner = 0\n",
        }
    }

    /// Hides hardware virtualization from who may not use it: what QEMU can is found out anew at each call where some of it
    /// says that there is one, and some not.
    fn hide(self) -> &'static str {
        match self {
            User::Root => "",
            User::Own => {
                "{ [ ! -e /dev/kvm ] || { : > \"$1/etc/none\" && chmod 0 \"$1/etc/none\" && \
                 mount --bind \"$1/etc/none\" /dev/kvm; }; } && "
            }
        }
    }
}

/// See the module.
pub(crate) struct Libvirt {
    dir: PathBuf,
    user: User,
    /// Where it and its guests are, if not in this machine's own network.
    network: Option<Namespace>,
    daemon: Option<Child>,
}

impl Libvirt {
    /// Starts one that keeps everything in `dir`, whose path must be short: it holds sockets.
    pub(crate) fn start(dir: &Path) -> Libvirt {
        Libvirt::start_as(dir, User::Root)
    }

    /// The same with guests that run as this user.
    pub(crate) fn start_as(dir: &Path, user: User) -> Libvirt {
        Libvirt::start_in(dir, user, None)
    }

    /// The same in a network of its own.
    pub(crate) fn start_in(dir: &Path, user: User, network: Option<Namespace>) -> Libvirt {
        for (there, own) in PLACES {
            std::fs::create_dir_all(dir.join(own)).unwrap();
            // A place to mount at; left empty where it was not there.
            std::fs::create_dir_all(there).unwrap();
        }
        let quiet = "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\nlog_level = 3\n";
        let log = dir.join("log/libvirtd.log");
        let text = format!(
            "{quiet}unix_sock_dir = \"{}\"\nlog_outputs = \"3:file:{}\"\n",
            dir.join("run").display(),
            log.display()
        );
        std::fs::write(dir.join("etc/libvirtd.conf"), text).unwrap();
        let rest = "security_driver = \"none\"\nnamespaces = []\ncgroup_controllers = []\nstdio_handler = \"file\"\n";
        let qemu = format!("{}{rest}", user.settings());
        std::fs::write(dir.join("etc/qemu.conf"), qemu).unwrap();
        let mut libvirt = Libvirt { dir: dir.to_owned(), user, network, daemon: None };
        libvirt.start_again();
        libvirt
    }

    /// Starts the daemon, and waits until it answers.
    pub(crate) fn start_again(&mut self) {
        let mounts = PLACES.map(|(there, own)| format!("mount --bind \"$1/{own}\" {there}")).join(" && ");
        let hide = self.user.hide();
        let script = format!("{hide}{mounts} && exec libvirtd -f /etc/libvirt/libvirtd.conf -p \"$1/run/pid\"");
        let mut command = tool("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]).arg(&self.dir);
        let out = std::fs::File::create(self.dir.join("log/out")).unwrap();
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        self.daemon = Some(match &self.network {
            None => command.spawn().unwrap(),
            Some(network) => network.within(|| command.spawn()).unwrap(),
        });
        let began = Instant::now();
        while self.try_virsh(&["version"]).is_err() {
            assert!(began.elapsed() < PATIENCE, "{}", std::fs::read_to_string(self.dir.join("log/out")).unwrap());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends the daemon; its guests run on.
    pub(crate) fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let id = rustix::process::Pid::from_child(&daemon);
            // One that has ended already is waited for below.
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
            let began = Instant::now();
            while daemon.try_wait().unwrap().is_none() {
                if began.elapsed() > Duration::from_secs(10) {
                    let _ = daemon.kill();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    pub(crate) fn uri(&self) -> String {
        format!("qemu:///system?socket={}", self.dir.join("run/libvirt-sock").display())
    }

    /// A driver for it, which keeps disks for cloud-init in `seeds`.
    pub(crate) fn driver(&self, seeds: &Path) -> LibvirtDriver {
        let (limit, poll) = (PATIENCE, Duration::from_millis(50));
        let (exports, seeds) = (PathBuf::from("/"), seeds.to_owned());
        LibvirtDriver::new(LibvirtSettings { uri: self.uri(), limit, poll, exports, seeds }).unwrap()
    }

    /// Runs virsh; what it says where it fails.
    pub(crate) fn try_virsh(&self, args: &[&str]) -> Result<String, String> {
        let out = tool("virsh").env("LC_ALL", "C").args(["-q", "-c", &self.uri()]).args(args).output().unwrap();
        match out.status.success() {
            true => Ok(String::from_utf8(out.stdout).unwrap()),
            false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
        }
    }

    pub(crate) fn virsh(&self, args: &[&str]) -> String {
        self.try_virsh(args).unwrap_or_else(|why| panic!("virsh {args:?}: {why}"))
    }

    /// Makes a VM known.
    pub(crate) fn define(&self, xml: &str) {
        let file = self.dir.join("new.xml");
        std::fs::write(&file, xml).unwrap();
        self.virsh(&["define", file.to_str().unwrap()]);
    }

    /// Makes a network of this name that cards can be on, around a bridge which is there.
    pub(crate) fn make_network(&self, name: &str, bridge: &str) {
        let file = self.dir.join("new.xml");
        let xml = format!("<network><name>{name}</name><forward mode='bridge'/><bridge name='{bridge}'/></network>");
        std::fs::write(&file, xml).unwrap();
        self.virsh(&["net-define", file.to_str().unwrap()]);
        self.virsh(&["net-start", name]);
    }

    /// The word for the state of a VM.
    pub(crate) fn state(&self, vm: &str) -> String {
        self.try_virsh(&["domstate", vm]).map_or_else(|_| "absent".to_owned(), |said| said.trim().to_owned())
    }

    /// Kills the guests and the daemon, as a power failure does.
    pub(crate) fn power_failure(&mut self) {
        let files = std::fs::read_dir(self.dir.join("run/qemu")).into_iter().flatten().flatten();
        for file in files.filter(|file| file.path().extension().is_some_and(|e| e == "pid")) {
            let pid = std::fs::read_to_string(file.path()).ok().and_then(|text| text.trim().parse().ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        self.stop();
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        self.power_failure();
    }
}
