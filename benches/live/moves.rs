//! The two ways to move the disk of a running guest: what people do today, and ours.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::guest::{SIZE, VM};
use crate::support::appliance::Appliance;
use crate::support::libvirt::Libvirt;

/// Longest wait for a server.
const PATIENCE: Duration = Duration::from_secs(60);

/// `nbdkit file` over a new sparse image; killed when it is dropped.
pub(crate) struct Nbdkit {
    child: Child,
    xml: PathBuf,
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Nbdkit {
    pub(crate) fn start(dir: &Path) -> Outcome<Nbdkit> {
        let (socket, image, xml) = (dir.join("nbdkit.sock"), dir.join("copy.raw"), dir.join("to.xml"));
        std::fs::File::create(&image)?.set_len(SIZE)?;
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--unix"]).arg(&socket).arg("file").arg(&image);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        // The same as ours tells, but for the server.
        let told = format!(
            "<disk type='network' device='disk'><driver name='qemu' type='raw' cache='none' discard='unmap'/>\
             <source protocol='nbd'><host transport='unix' socket='{}'/></source><target dev='vda'/></disk>",
            socket.display()
        );
        std::fs::write(&xml, told)?;
        let (began, server) = (Instant::now(), Nbdkit { child, xml });
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            if began.elapsed() > PATIENCE {
                return Err("nbdkit does not serve".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Copies and pivots; how long that took.
    pub(crate) fn take_over(&self, libvirt: &Libvirt) -> Outcome<Duration> {
        let xml = self.xml.to_str().ok_or("not UTF-8")?;
        let began = Instant::now();
        libvirt.virsh(&[
            "blockcopy",
            VM,
            "vda",
            "--xml",
            xml,
            "--reuse-external",
            "--transient-job",
            "--wait",
            "--pivot",
        ]);
        let took = began.elapsed();
        match libvirt.virsh(&["domblklist", VM]).contains("web.raw") {
            true => Err("it is on its old disk".into()),
            false => Ok(took),
        }
    }
}

/// An appliance with settings as they are unless told, but for its places.
pub(crate) struct Freshet {
    appliance: Appliance,
    dir: PathBuf,
}

impl Freshet {
    pub(crate) fn start(dir: &Path, store: &Path, libvirt: &Libvirt) -> Outcome<Freshet> {
        let at = |what: &str| dir.join(what).display().to_string();
        let text = format!(
            "site = \"first\"\nstate = \"{}\"\n[protect]\nsocket_dir = \"{}\"\n[listen]\nsocket = \"{}\"\n\
             [hypervisor]\nkind = \"libvirt\"\nuri = \"{}\"\n",
            at("state"),
            at("nbd"),
            at("api"),
            libvirt.uri()
        );
        let settings = dir.join("freshet.toml");
        std::fs::write(&settings, text)?;
        let appliance = Appliance::start(&settings, &dir.join("api")).map_err(|ran| format!("{ran:?}"))?;
        appliance.ask(&["store", "add", "s", "--url", &format!("file://{}", store.display())]).good();
        Ok(Freshet { appliance, dir: dir.to_owned() })
    }

    /// Makes a domain for the next move.
    pub(crate) fn create(&self, domain: &str) {
        self.appliance.ask(&["domain", "create", domain, "--store", "s"]).good();
    }

    /// Protects the guest; how long that took.
    pub(crate) fn take_over(&self, domain: &str, libvirt: &Libvirt) -> Outcome<Duration> {
        let began = Instant::now();
        self.appliance.ask(&["vm", "protect", domain, VM]).good();
        let took = began.elapsed();
        match libvirt.virsh(&["domblklist", VM]).contains("web/vda") {
            true => Ok(took),
            false => Err("it is not on its export".into()),
        }
    }

    /// Waits until a point covers it; how long that took.
    pub(crate) fn recoverable(&self, domain: &str) -> Duration {
        let began = Instant::now();
        self.appliance.until_recoverable(domain);
        began.elapsed()
    }

    /// Lets go of a guest that is off, and of its image.
    pub(crate) fn let_go(&self, domain: &str) -> Outcome<()> {
        self.appliance.ask(&["vm", "unprotect", domain, VM]).good();
        Ok(std::fs::remove_dir_all(self.dir.join("state/images"))?)
    }
}
