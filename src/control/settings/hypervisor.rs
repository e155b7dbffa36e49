//! What runs guests at this site, from the values of the settings.

use std::path::Path;

use super::read::Values;
use crate::hypervisor::{AccelChoice, Console, ExecSettings, LibvirtSettings, QemuSettings};

/// What runs guests at this site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HypervisorSettings {
    /// Nothing.
    None,
    /// A command.
    Exec(ExecSettings),
    /// QEMU, which this program starts.
    Qemu(QemuSettings),
    /// A libvirt.
    Libvirt(LibvirtSettings),
}

impl HypervisorSettings {
    /// Every value fits its own bounds here.
    pub(super) fn of(values: &Values, state: &Path) -> HypervisorSettings {
        match (kind(values), values.path("hypervisor.command")) {
            ("exec", Some(program)) => HypervisorSettings::Exec(ExecSettings {
                command: vec![program.display().to_string()],
                environment: Default::default(),
                limit_seconds: values.time("hypervisor.limit").as_secs(),
                poll_millis: u64::try_from(values.time("hypervisor.poll").as_millis()).unwrap_or(u64::MAX),
            }),
            ("qemu", _) => HypervisorSettings::Qemu(qemu(values, state)),
            ("libvirt", _) => HypervisorSettings::Libvirt(LibvirtSettings {
                uri: values.text("hypervisor.uri").unwrap_or_default().to_owned(),
                limit: values.time("hypervisor.limit"),
                poll: values.time("hypervisor.poll"),
                exports: values.path("protect.socket_dir").unwrap_or_default(),
                seeds: values.path("hypervisor.seed_dir").unwrap_or_else(|| beside(state, "seeds")),
            }),
            _ => HypervisorSettings::None,
        }
    }
}

/// The directory beside that of the state, whose name is that one's and `what`: others are not let into the state.
fn beside(state: &Path, what: &str) -> std::path::PathBuf {
    let mut name = state.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{what}"));
    state.with_file_name(name)
}

fn qemu(values: &Values, state: &Path) -> QemuSettings {
    let path = |name: &str| values.path(name).unwrap_or_default();
    QemuSettings {
        dir: values.path("qemu.dir").unwrap_or_else(|| state.join("qemu")),
        program: path("qemu.program"),
        accel: match values.text("qemu.accel") {
            Some("kvm") => AccelChoice::Kvm,
            Some("tcg") => AccelChoice::Tcg,
            _ => AccelChoice::Auto,
        },
        console: match values.text("qemu.console") {
            Some("file") => Console::File,
            _ => Console::Ring,
        },
        boot_dirs: values.paths("qemu.boot_dirs"),
        uefi_code: path("qemu.uefi_code"),
        uefi_vars: path("qemu.uefi_vars"),
        reconnect: values.time("qemu.reconnect"),
        limit: values.time("hypervisor.limit"),
        poll: values.time("hypervisor.poll"),
        networks: values.networks.clone(),
    }
}

/// The kind that is named; a command alone names `exec`.
fn kind(values: &Values) -> &str {
    let implied = if values.text("hypervisor.command").is_some() { "exec" } else { "none" };
    values.text("hypervisor.kind").unwrap_or(implied)
}

/// What does not fit together.
pub(super) fn contradictions(values: &Values, problems: &mut Vec<String>) {
    let kind = kind(values);
    match (kind, values.text("hypervisor.command")) {
        ("exec", None) => problems.push("hypervisor.command: must be there, since hypervisor.kind is exec".to_owned()),
        (kind, Some(_)) if kind != "exec" => {
            problems.push(format!("hypervisor.command: is there, and hypervisor.kind is {kind}: it is for exec"));
        }
        _ => {}
    }
    if kind != "qemu" && !values.networks.is_empty() {
        problems.push(format!("network: is there, and hypervisor.kind is {kind}: networks are those of qemu"));
    }
}
