//! `freshet vm`: VMs and disks under protection by an appliance.

use clap::{Args, Subcommand};

use super::appliance_args::{ApplianceArgs, answered, confirmed, report};
use super::context::Context;
use super::guest_list;
use super::move_view::shown_meanwhile;
use super::report::Report;
use super::served_disks::parse_served_disk;
use crate::control::proto::{
    AddDiskRequest, DiskSpec, Nic, OpenExportsRequest, ProtectVmRequest, RemoveDiskRequest, UnprotectVmRequest,
    Vm as Shown, VmDefinition,
};
use crate::control::status_words;
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// VMs and disks that an appliance protects
#[derive(Debug, Args)]
pub(super) struct Vm {
    #[command(subcommand)]
    command: VmCommand,
}

#[derive(Debug, Subcommand)]
enum VmCommand {
    /// List the VMs of this site's hypervisor: what each has, and whether it can be protected as it is
    List(List),
    /// Serve the disks of a VM, and capture what is written
    Protect(Protect),
    /// End the protection of a VM; its points stay recoverable
    Unprotect(One),
    /// Protect a further disk of a VM
    AddDisk(AddDisk),
    /// End the protection of a disk of a VM
    RemoveDisk(RemoveDisk),
    /// Open the disks of a domain before it is known who owns it, as when the storage site is away after a reboot
    Open(Open),
}

#[derive(Debug, Args)]
struct List {
    /// Most VMs that are listed
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    most: u32,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

#[derive(Debug, Args)]
struct One {
    /// Name of the domain
    #[arg(value_name = "DOMAIN")]
    domain: String,
    /// Name of the VM
    #[arg(value_name = "VM")]
    vm: String,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

#[derive(Debug, Args)]
struct Protect {
    #[command(flatten)]
    one: One,
    /// A disk of the VM: a raw image file or a block device on the appliance's host, and perhaps the size it must have.
    /// Can be repeated. Without any, the hypervisor tells which disks the VM has, and moves them while it runs
    #[arg(long, value_name = "NAME=PATH[,size=SIZE]", value_parser = parse_disk)]
    disk: Vec<DiskSpec>,
    /// File with the VM's definition as its hypervisor writes it
    #[arg(long, value_name = "FILE", requires = "definition_kind", requires = "disk")]
    definition: Option<std::path::PathBuf>,
    /// What that is written in, such as libvirt-xml
    #[arg(long, value_name = "KIND", requires = "definition")]
    definition_kind: Option<String>,
    /// Virtual processors
    #[arg(long, value_name = "N", default_value_t = 0)]
    cpus: u32,
    /// Memory
    #[arg(long, value_name = "SIZE", value_parser = super::units::parse_size, default_value_t = 0)]
    memory: u64,
    /// A network card, by its network at this site. Can be repeated, in the guest's order
    #[arg(long, value_name = "NETWORK[,mac=MAC][,model=MODEL]", value_parser = parse_nic)]
    nic: Vec<Nic>,
}

#[derive(Debug, Args)]
struct AddDisk {
    #[command(flatten)]
    one: One,
    /// The disk
    #[arg(long, value_name = "NAME=PATH[,size=SIZE]", value_parser = parse_disk)]
    disk: DiskSpec,
}

#[derive(Debug, Args)]
struct RemoveDisk {
    #[command(flatten)]
    one: One,
    /// Name of the disk
    #[arg(value_name = "DISK")]
    disk: String,
}

#[derive(Debug, Args)]
struct Open {
    /// Name of the domain
    #[arg(value_name = "DOMAIN")]
    domain: String,
    /// Answer yes: the name of the domain once more
    #[arg(long, value_name = "DOMAIN")]
    yes: Option<String>,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

fn parse_disk(text: &str) -> Result<DiskSpec, String> {
    let disk = parse_served_disk(text)?;
    if disk.grow {
        return Err("a protected disk is never extended: leave out `grow`".to_owned());
    }
    // The appliance stands in another directory.
    let path = std::path::absolute(&disk.path).map_err(|e| e.to_string())?;
    let path = path.to_str().ok_or("the path is not UTF-8")?.to_owned();
    Ok(DiskSpec { name: disk.name.to_string(), path, size_bytes: disk.size })
}

fn parse_nic(text: &str) -> Result<Nic, String> {
    let mut parts = text.split(',');
    let mut nic = Nic { network: parts.next().unwrap_or_default().to_owned(), ..Nic::default() };
    for part in parts {
        match part.split_once('=') {
            Some(("mac", mac)) => mac.clone_into(&mut nic.mac),
            Some(("model", model)) => model.clone_into(&mut nic.model),
            _ => return Err(format!("{part:?} is neither mac=MAC nor model=MODEL")),
        }
    }
    Ok(nic)
}

impl Protect {
    fn definition(&self) -> Result<Option<VmDefinition>> {
        if self.definition.is_none() && self.cpus == 0 && self.memory == 0 && self.nic.is_empty() {
            return Ok(None);
        }
        let text = match &self.definition {
            Some(path) => std::fs::read_to_string(path).io_context(|| format!("definition {}", path.display()))?,
            None => String::new(),
        };
        if self.definition.is_some() && text.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "the definition is empty"));
        }
        Ok(Some(VmDefinition {
            kind: self.definition_kind.clone().unwrap_or_default(),
            text,
            cpus: self.cpus,
            memory_bytes: self.memory,
            nics: self.nic.clone(),
            ..VmDefinition::default()
        }))
    }
}

impl Vm {
    pub(super) async fn run(self, context: &Context) -> Result<Report> {
        match self.command {
            VmCommand::List(List { most, appliance }) => guest_list::list(&appliance, most as usize).await,
            VmCommand::Protect(protect) => {
                let definition = protect.definition()?;
                let One { domain, vm, appliance } = protect.one;
                let client = appliance.connect().await?;
                let (of, one) = (domain.clone(), vm.clone());
                let request = ProtectVmRequest { domain, vm, disks: protect.disk, definition };
                let mut vms = client.vms();
                let answer = shown_meanwhile(&client, &of, &one, context, vms.protect_vm(request)).await;
                show(answered(answer)?.vm)
            }
            VmCommand::Unprotect(One { domain, vm, appliance }) => {
                let client = appliance.connect().await?;
                let told = format!("VM {vm} is not protected any more");
                let (request, mut vms) = (UnprotectVmRequest { domain: domain.clone(), vm: vm.clone() }, client.vms());
                let answer = shown_meanwhile(&client, &domain, &vm, context, vms.unprotect_vm(request)).await;
                let done = answered(answer)?;
                let notes: String = done.notes.iter().map(|note| format!("\nnote: {note}")).collect();
                let why =
                    (!done.all_shipped).then(|| "not everything that was captured is part of the domain".to_owned());
                Ok(report(&done, told + &notes)?.incomplete(why))
            }
            VmCommand::AddDisk(AddDisk { one: One { domain, vm, appliance }, disk }) => {
                let mut client = appliance.connect().await?.vms();
                show(answered(client.add_disk(AddDiskRequest { domain, vm, disk: Some(disk) }).await)?.vm)
            }
            VmCommand::Open(Open { domain, yes, appliance }) => {
                let told = format!(
                    "guests of domain {domain} get their disks though another site may have taken it over: then both write"
                );
                confirmed(yes.as_deref(), &domain, &told)?;
                let mut client = appliance.connect().await?.vms();
                let request = OpenExportsRequest { confirm: domain.clone(), domain: domain.clone() };
                let opened = answered(client.open_exports(request).await)?;
                report(&opened, format!("the disks of domain {domain} are served at {}", opened.addresses.join(", ")))
            }
            VmCommand::RemoveDisk(RemoveDisk { one: One { domain, vm, appliance }, disk }) => {
                let mut client = appliance.connect().await?.vms();
                show(answered(client.remove_disk(RemoveDiskRequest { domain, vm, disk }).await)?.vm)
            }
        }
    }
}

fn show(vm: Option<Shown>) -> Result<Report> {
    let vm = vm.unwrap_or_default();
    let mut text = format!("{}: {}", vm.name, status_words(vm.status()));
    for disk in &vm.disks {
        text += &format!("\n  {}  {}", disk.name, disk.export_uri);
    }
    report(&vm, text)
}
