//! The VMs of this site's hypervisor, for who chooses what to protect: a page at a time, by name.

use futures::stream::{self, StreamExt};

use super::fields;
use crate::control::appliance::Appliance;
use crate::control::catalog;
use crate::control::fault::{Done, Fault};
use crate::control::proto::{Guest, GuestDisk, ListGuestsRequest, ListGuestsResponse, Nic};
use crate::error::{Error, ErrorKind, Result};
use crate::hypervisor::{DiskPlace, FoundVm, Hypervisor, PowerState, VmEntry};
use crate::ids::{MAX_NAME_LEN, Name};

/// Entries of a page, and most of them: of each the hypervisor is asked several things.
const PAGE: usize = 50;
const MOST_PAGE: usize = 200;
/// VMs that are looked at side by side.
const SIDE_BY_SIDE: usize = 4;

pub(super) async fn list(app: &Appliance, asked: &ListGuestsRequest) -> Done<ListGuestsResponse> {
    let most = fields::page_size(asked.page_size, PAGE, MOST_PAGE)?;
    let after = &asked.page_token;
    if after.len() > MAX_NAME_LEN {
        return Err(Fault::field("page_token", "is none that this service gave"));
    }
    let hypervisor = app.world.hypervisor_here();
    let mut all = hypervisor.inventory().await?;
    all.retain(|vm| vm.name.as_str() > after.as_str());
    all.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
    let more = all.len() > most;
    all.truncate(most);
    let next = all.last().filter(|_| more).map(|last| last.name.to_string());
    let looks = all.into_iter().map(|vm| guest(app, &*hypervisor, vm));
    let guests: Vec<Result<Guest>> = stream::iter(looks).buffered(SIDE_BY_SIDE).collect().await;
    Ok(ListGuestsResponse {
        guests: guests.into_iter().collect::<Result<_>>()?,
        next_page_token: next.unwrap_or_default(),
    })
}

async fn guest(app: &Appliance, hypervisor: &dyn Hypervisor, vm: VmEntry) -> Result<Guest> {
    let name = vm.name.clone();
    let domains = app.catalog.call(move |db| catalog::domains_of(db, &name)).await?;
    let mut guest = Guest { name: vm.name.to_string(), running: vm.state == PowerState::Running, ..Guest::default() };
    for domain in domains {
        if is_served(app, &domain, &vm.name).await {
            guest.domains.push(domain.to_string());
        }
    }
    let Some(disks) = hypervisor.guest_disks() else {
        guest.not_taken = format!("{} does not tell the disks of VMs: name them by --disk", hypervisor.describe());
        return Ok(guest);
    };
    match disks.look(&vm.name).await {
        Ok(Some(found)) => fill(&mut guest, found),
        // It went away meanwhile, or what it is cannot be told.
        Ok(None) => guest.not_taken = "it is not there any more".to_owned(),
        Err(error) if is_away(&error) => return Err(error),
        Err(error) => guest.not_taken = error.to_string(),
    }
    Ok(guest)
}

/// Whether a protection of this site serves a disk of the VM: the catalog also knows what it served before a failover.
async fn is_served(app: &Appliance, domain: &Name, vm: &Name) -> bool {
    let Some(hosted) = app.hosting.get(domain) else { return false };
    let status = hosted.status().await;
    let of = status.vms.iter().find(|of| of.name == vm.as_str());
    !matches!(status.mode.as_str(), "fenced" | "failed") && of.is_some_and(|of| !of.disks.is_empty())
}

/// The hypervisor does not answer, which is no word about one VM.
fn is_away(error: &Error) -> bool {
    error.kind() == ErrorKind::Unreachable
}

fn fill(guest: &mut Guest, found: FoundVm) {
    (guest.running, guest.left_behind) = (found.running, found.notes);
    (guest.cpus, guest.memory_bytes) = (found.shape.cpus, found.shape.memory_bytes);
    guest.firmware = found.shape.firmware;
    let disk = |disk: crate::hypervisor::FoundDisk| GuestDisk {
        name: disk.name.to_string(),
        size_bytes: disk.size,
        place: place(&disk.place),
    };
    guest.disks = found.disks.into_iter().map(disk).collect();
    let nic = |nic: crate::format::Nic| Nic { mac: nic.mac, network: nic.network, model: nic.model };
    guest.nics = found.shape.nics.into_iter().map(nic).collect();
}

fn place(place: &DiskPlace) -> String {
    match place {
        DiskPlace::Raw(path) => path.display().to_string(),
        DiskPlace::Image { path, format } => format!("{} ({format})", path.display()),
        DiskPlace::Export { name, socket: Some(socket) } => format!("export {name} at {}", socket.display()),
        DiskPlace::Export { name, socket: None } => format!("export {name}"),
    }
}
