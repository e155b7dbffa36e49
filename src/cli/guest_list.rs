//! `freshet vm list`: the VMs of the hypervisor of an appliance's site.

use super::appliance_args::{ApplianceArgs, answered, report, table};
use super::report::Report;
use super::units::bytes;
use crate::control::proto::{Guest, ListGuestsRequest, ListGuestsResponse};
use crate::error::Result;

/// Most VMs of one call.
const PAGE: usize = 200;

/// Lists the first `most` VMs by name.
pub(super) async fn list(appliance: &ApplianceArgs, most: usize) -> Result<Report> {
    let mut client = appliance.connect().await?.vms();
    let mut all = ListGuestsResponse::default();
    loop {
        let page_size = (most - all.guests.len()).min(PAGE) as u32;
        let request = ListGuestsRequest { page_size, page_token: all.next_page_token.clone() };
        let page = answered(client.list_guests(request).await)?;
        all.guests.extend(page.guests);
        all.next_page_token = page.next_page_token;
        if all.next_page_token.is_empty() || all.guests.len() >= most {
            break;
        }
    }
    let more = !all.next_page_token.is_empty();
    let mut text = if all.guests.is_empty() { "no VMs".to_owned() } else { shown(&all.guests) };
    if more {
        text += "\nand more (--most)";
    }
    report(&all, text)
}

fn shown(guests: &[Guest]) -> String {
    let mut table = table(["VM", "state", "CPUs", "memory", "disks", "networks", "protected in", ""]);
    for guest in guests {
        let disks = guest.disks.iter().map(|disk| format!("{} {}", disk.name, bytes(disk.size_bytes)));
        let networks = guest.nics.iter().map(|nic| nic.network.as_str()).collect::<Vec<_>>();
        let known = |number: u64, text: String| if number == 0 { "-".to_owned() } else { text };
        table.add_row([
            guest.name.clone(),
            if guest.running { "runs" } else { "off" }.to_owned(),
            known(guest.cpus.into(), guest.cpus.to_string()),
            known(guest.memory_bytes, bytes(guest.memory_bytes)),
            disks.collect::<Vec<_>>().join(", "),
            networks.join(", "),
            guest.domains.join(", "),
            if guest.not_taken.is_empty() { String::new() } else { format!("not taken: {}", guest.not_taken) },
        ]);
    }
    table.trim_fmt()
}
