//! How the QEMU driver is set up: where its folder is, which programs and networks there are, how long things may take.
//! Plain data; the bounds are checked where the file of settings is read.

use std::path::PathBuf;
use std::time::Duration;

use crate::ids::Name;

/// What guests run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccelChoice {
    /// kvm where a probe guest boots with it, else tcg.
    Auto,
    /// The processor's own virtualisation.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// Where a guest's serial console goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// Into memory of its QEMU: the newest 64 KiB.
    Ring,
    /// Into the file `console` in the VM's folder, without a limit.
    File,
}

/// A port of this host that leads to one of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Which VM's.
    pub vm: Name,
    /// Address and port here.
    pub listen: std::net::SocketAddr,
    /// TCP port of the guest.
    pub port: u16,
}

/// What a network is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkKind {
    /// QEMU's own: guests reach out, and are reached through forwards alone.
    User {
        /// Ways in.
        forwards: Vec<Forward>,
    },
    /// A bridge of this host, which QEMU's bridge helper may use.
    Bridge {
        /// Its name.
        bridge: String,
    },
}

/// A network that cards can be put on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuNetwork {
    /// Its name in plans.
    pub name: String,
    /// What it is made of.
    pub kind: NetworkKind,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuSettings {
    /// Folder of the VMs: definitions, sockets, what their processes leave.
    pub dir: PathBuf,
    /// The program.
    pub program: PathBuf,
    /// What guests run on.
    pub accel: AccelChoice,
    /// Where their consoles go.
    pub console: Console,
    /// Folders whose kernels and initial RAM disks definitions may name; none where empty.
    pub boot_dirs: Vec<PathBuf>,
    /// UEFI firmware.
    pub uefi_code: PathBuf,
    /// What a VM's UEFI variables are at first.
    pub uefi_vars: PathBuf,
    /// How long a guest's disk waits for its export before the guest is paused.
    pub reconnect: Duration,
    /// How long QEMU may take to answer, and to start.
    pub limit: Duration,
    /// Time between two looks whether a guest is off.
    pub poll: Duration,
    /// Networks.
    pub networks: Vec<QemuNetwork>,
}

impl QemuSettings {
    /// With nothing but what every driver needs: no network, no folder to boot from.
    pub fn plain(dir: PathBuf, program: PathBuf) -> QemuSettings {
        QemuSettings {
            dir,
            program,
            accel: AccelChoice::Auto,
            console: Console::Ring,
            boot_dirs: Vec::new(),
            uefi_code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
            uefi_vars: "/usr/share/OVMF/OVMF_VARS_4M.fd".into(),
            reconnect: Duration::from_secs(600),
            limit: Duration::from_secs(60),
            poll: Duration::from_secs(1),
            networks: Vec::new(),
        }
    }
}
