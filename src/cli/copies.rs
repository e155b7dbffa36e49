//! Copies of disks that left a domain, which an appliance keeps: `freshet domain copies` and `domain delete-copy`.

use super::appliance_args::{ApplianceArgs, answered, confirmed, report, table, when};
use super::report::Report;
use super::units::bytes;
use crate::control::Client;
use crate::control::proto::{DeleteKeptCopyRequest, KeptCopy, ListKeptCopiesRequest, ListKeptCopiesResponse};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::DiskId;

async fn ask(client: &Client, domain: &str) -> Result<ListKeptCopiesResponse> {
    let request = ListKeptCopiesRequest { domain: domain.to_owned() };
    answered(client.domains().list_kept_copies(request).await)
}

fn label(copy: &KeptCopy) -> String {
    format!("{}/{}", copy.vm, copy.disk)
}

pub(super) async fn list(appliance: &ApplianceArgs, domain: &str) -> Result<Report> {
    let kept = ask(&appliance.connect().await?, domain).await?;
    let mut table = table(["disk", "identity", "size", "takes", "left", "file"]);
    for copy in &kept.copies {
        table.add_row([
            label(copy),
            copy.disk_id.clone(),
            bytes(copy.size_bytes),
            bytes(copy.held_bytes),
            when(copy.left.as_ref()),
            copy.path.clone(),
        ]);
    }
    let mut text = match kept.copies.is_empty() {
        true => format!("no copies of disks that left domain {domain} are kept here"),
        false => table.trim_fmt(),
    };
    if kept.more > 0 {
        text += &format!("\nand {} more", kept.more);
    }
    report(&kept, text)
}

pub(super) async fn delete(appliance: &ApplianceArgs, domain: &str, id: DiskId, yes: Option<&str>) -> Result<Report> {
    let client = appliance.connect().await?;
    let (id, kept) = (id.to_string(), ask(&client, domain).await?);
    let Some(copy) = kept.copies.iter().find(|copy| copy.disk_id == id) else {
        let why = format!("no copy of disk {id} of domain {domain} is kept here");
        return Err(Error::new(ErrorKind::NotFound, format!("{why}; `freshet domain copies {domain}` tells them")));
    };
    let (called, left) = (label(copy), when(copy.left.as_ref()));
    let what = format!("the copy of disk {called} of domain {domain}, which left at {left}");
    let told = format!("{what}, is deleted for good: {} at {}", bytes(copy.held_bytes), copy.path);
    confirmed(yes, &called, &told)?;
    let request = DeleteKeptCopyRequest { domain: domain.to_owned(), disk_id: id, confirm: called };
    let done = answered(client.domains().delete_kept_copy(request).await)?;
    let path = done.deleted.as_ref().map(|copy| copy.path.clone()).unwrap_or_default();
    report(&done, format!("{path} is deleted"))
}
