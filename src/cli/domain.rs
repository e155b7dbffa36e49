//! `freshet domain`: the protected domains of an appliance.

use clap::{Args, Subcommand};
use serde_json::json;

use super::appliance_args::{ApplianceArgs, age_of, answered, confirmed, list_of, report, seconds, table, when};
use super::context::Context;
use super::copies;
use super::move_view::move_lines;
use super::recovery_points;
use super::report::Report;
use super::task::follow;
use super::units::bytes;
use super::values::parse_disk_id;
use crate::control::proto::{
    CreateDomainRequest, CutPointRequest, DeleteDomainRequest, DiskDamage, Diverged, Domain as Shown, DomainMode,
    Follow, ForgetDomainRequest, GetDomainRequest, ImportAllDomainsRequest, ImportDomainRequest, ListDomainsRequest,
    Point as ShownPoint, PrepareDeleteDomainRequest, WatchDomainRequest,
};
use crate::control::{from_status, json_of, mode_words, status_words};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::DiskId;

/// Protected domains of an appliance
#[derive(Debug, Args)]
pub(super) struct Domain {
    #[command(subcommand)]
    command: DomainCommand,
}

#[derive(Debug, Subcommand)]
enum DomainCommand {
    /// List the domains that the appliance knows
    List(All),
    /// Show one domain: its mode, VMs, disks, points
    Show(Show),
    /// Show a domain each time that it changes, until a signal
    Watch(One),
    /// Make a domain that this site protects
    Create(InStore),
    /// Make domains of a storage site known here, for failover
    Import(Import),
    /// Forget a domain here; the store is not touched, and disks only with --delete-disks
    Forget(Forget),
    /// Delete all objects of a domain from its storage site; says what that destroys, and asks
    Delete(Confirmed),
    /// Cut a point now and wait until it is part of the domain
    Point(Point),
    /// List the points that the domain can be recovered to, newest first
    Points(Points),
    /// List the copies of disks that left the domain, which are kept here until they are deleted
    Copies(One),
    /// Delete the kept copy of a disk that left the domain, for good; says what that is, and asks
    DeleteCopy(DeleteCopy),
}

#[derive(Debug, Args)]
struct All {
    #[command(flatten)]
    appliance: ApplianceArgs,
}

#[derive(Debug, Args)]
struct One {
    /// Name of the domain
    #[arg(value_name = "DOMAIN")]
    name: String,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

#[derive(Debug, Args)]
struct Show {
    #[command(flatten)]
    one: One,
    /// Look at the storage site first
    #[arg(long)]
    fresh: bool,
}

#[derive(Debug, Args)]
struct InStore {
    #[command(flatten)]
    one: One,
    /// Name of its storage site
    #[arg(long, value_name = "STORE")]
    store: String,
}

#[derive(Debug, Args)]
struct Import {
    /// Name of the domain
    #[arg(value_name = "DOMAIN", required_unless_present = "all", conflicts_with = "all")]
    name: Option<String>,
    /// All that are not known here
    #[arg(long)]
    all: bool,
    /// Name of the storage site
    #[arg(long, value_name = "STORE")]
    store: String,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

#[derive(Debug, Args)]
struct Confirmed {
    #[command(flatten)]
    one: One,
    /// Answer yes: the name of the domain once more
    #[arg(long, value_name = "DOMAIN")]
    yes: Option<String>,
}

#[derive(Debug, Args)]
struct Forget {
    #[command(flatten)]
    confirmed: Confirmed,
    /// Delete what was recovered of it here: disks in the datastore, their replication log, definitions of its VMs
    #[arg(long)]
    delete_disks: bool,
}

#[derive(Debug, Args)]
struct Points {
    #[command(flatten)]
    one: One,
    /// Most points that are listed
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    most: u32,
}

#[derive(Debug, Args)]
struct DeleteCopy {
    #[command(flatten)]
    one: One,
    /// Identity of the disk, as `domain copies` shows it
    #[arg(value_name = "ID", value_parser = parse_disk_id)]
    id: DiskId,
    /// Answer yes: what the disk was called
    #[arg(long, value_name = "VM/DISK")]
    yes: Option<String>,
}

#[derive(Debug, Args)]
struct Point {
    #[command(flatten)]
    one: One,
    /// Longest wait in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 60_000)]
    within: u64,
    /// Freeze the guests' file systems while it is cut, where their agents answer
    #[arg(long)]
    quiesce: bool,
}

impl Domain {
    pub(super) async fn run(self, context: &Context) -> Result<Report> {
        match self.command {
            DomainCommand::List(all) => list(&all.appliance).await,
            DomainCommand::Show(Show { one, fresh }) => {
                let mut client = one.appliance.connect().await?.domains();
                let shown = answered(client.get_domain(GetDomainRequest { name: one.name, fresh }).await)?;
                let domain = shown.domain.unwrap_or_default();
                report(&domain, text(&domain))
            }
            DomainCommand::Watch(one) => watch(one, context).await,
            DomainCommand::Create(InStore { one, store }) => {
                let mut client = one.appliance.connect().await?.domains();
                let made = answered(client.create_domain(CreateDomainRequest { name: one.name.clone(), store }).await)?;
                report(&made.domain.unwrap_or_default(), format!("domain {} is known: protect its VMs", one.name))
            }
            DomainCommand::Import(import) => do_import(import).await,
            DomainCommand::Forget(Forget { confirmed: Confirmed { one, yes }, delete_disks }) => {
                let more = if delete_disks {
                    ", and deletes its recovered disks and the definitions of its VMs here"
                } else {
                    ""
                };
                let told = format!("the appliance forgets domain {}, with its runbooks{more}", one.name);
                confirmed(yes.as_deref(), &one.name, &told)?;
                let client = one.appliance.connect().await?;
                let confirm = if delete_disks { one.name.clone() } else { String::new() };
                let request = ForgetDomainRequest { name: one.name.clone(), delete_disks, confirm };
                let done = answered(client.domains().forget_domain(request).await)?;
                match done.task {
                    Some(task) => follow(&client, &task.id, context).await,
                    None => report(&done, format!("domain {} is forgotten here", one.name)),
                }
            }
            DomainCommand::Delete(Confirmed { one, yes }) => delete(one, yes.as_deref()).await,
            DomainCommand::Point(Point { one, within, quiesce }) => {
                let mut client = one.appliance.connect().await?.domains();
                let request = CutPointRequest { domain: one.name, within_ms: within, quiesce };
                let cut = answered(client.cut_point(request).await)?;
                let how = if cut.quiesced { ", with all guests' file systems frozen" } else { "" };
                let mut text = format!("point {} is part of the domain{how}", cut.point);
                for vm in &cut.left_out {
                    text.push_str(&format!("\nVM {} was not frozen: {}", vm.vm, vm.why));
                }
                report(&cut, text)
            }
            DomainCommand::Points(Points { one, most }) => {
                recovery_points::list(&one.appliance, one.name, most as usize).await
            }
            DomainCommand::Copies(one) => copies::list(&one.appliance, &one.name).await,
            DomainCommand::DeleteCopy(DeleteCopy { one, id, yes }) => {
                copies::delete(&one.appliance, &one.name, id, yes.as_deref()).await
            }
        }
    }
}

async fn list(appliance: &ApplianceArgs) -> Result<Report> {
    let mut client = appliance.connect().await?.domains();
    let (mut domains, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = answered(client.list_domains(ListDomainsRequest { page_size: 0, page_token }).await)?;
        domains.extend(page.domains);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let mut table = table(["domain", "store", "mode", "status", "owner", "VMs", "point", "age", "problems"]);
    for d in &domains {
        let point = d.newest_point.as_ref();
        table.add_row([
            d.name.clone(),
            d.store.clone(),
            mode_words(d.mode()).to_owned(),
            status_words(d.status()).to_owned(),
            if d.owner_site.is_empty() { "-".to_owned() } else { d.owner_site.clone() },
            d.vms.len().to_string(),
            point.map_or("-".to_owned(), |p| p.number.to_string()),
            age_of(point.map(|p| p.age_ms)),
            d.problems.len().to_string(),
        ]);
    }
    let text = if domains.is_empty() { "no domains".to_owned() } else { table.trim_fmt() };
    Report::new(&json!({ "domains": list_of(&domains)? }), text)
}

async fn watch(one: One, context: &Context) -> Result<Report> {
    let mut client = one.appliance.connect().await?.domains();
    let mut changes = answered(client.watch_domain(WatchDomainRequest { name: one.name }).await)?;
    loop {
        let change = tokio::select! {
            change = changes.message() => change.map_err(|status| from_status(&status))?,
            () = context.cancel.cancelled() => None,
        };
        let Some(domain) = change.and_then(|change| change.domain) else { break };
        context.output.event(&json_of(&domain)?, &text(&domain))?;
    }
    Report::new(&json!({ "event": "end" }), "")
}

async fn do_import(import: Import) -> Result<Report> {
    let mut client = import.appliance.connect().await?.domains();
    let Some(name) = import.name else {
        let done = answered(client.import_all_domains(ImportAllDomainsRequest { store: import.store }).await)?;
        let mut text = format!("{} imported, {} known before", done.imported.len(), done.known.len());
        for failed in &done.failed {
            text += &format!("\n{}: {}", failed.name, failed.reason);
        }
        let why = (!done.failed.is_empty()).then(|| format!("{} domains cannot be imported", done.failed.len()));
        return Ok(report(&done, text)?.incomplete(why));
    };
    let done = answered(client.import_domain(ImportDomainRequest { store: import.store, name: name.clone() }).await)?;
    let domain = done.domain.unwrap_or_default();
    report(&domain, format!("domain {name} is known: {}", mode_words(domain.mode())))
}

async fn delete(one: One, yes: Option<&str>) -> Result<Report> {
    let mut client = one.appliance.connect().await?.domains();
    let told = answered(client.prepare_delete_domain(PrepareDeleteDomainRequest { name: one.name.clone() }).await)?;
    confirmed(yes, &one.name, &told.summary)?;
    let request = DeleteDomainRequest { name: one.name.clone(), confirmation_token: told.confirmation_token };
    let mut progress = answered(client.delete_domain(request).await)?;
    let mut last = None;
    while let Some(step) = progress.message().await.map_err(|status| from_status(&status))? {
        last = Some(step);
    }
    match last.filter(|last| last.done) {
        Some(done) => {
            report(&done, format!("domain {} is deleted: {} objects are gone", one.name, done.deleted_objects))
        }
        None => Err(Error::new(ErrorKind::Unreachable, "the appliance ended before it said that all is deleted")),
    }
}

/// A domain for people.
fn text(d: &Shown) -> String {
    let owner = match (d.owner_site.as_str(), d.mode()) {
        ("", DomainMode::Fenced) => "another site",
        ("", _) => "nobody yet",
        (site, _) => site,
    };
    let (mode, status) = (mode_words(d.mode()), status_words(d.status()));
    let mut out = format!("{}: {mode}, {status}; owned by {owner}, generation {}\n", d.name, d.generation);
    if let Some(point) = &d.newest_point {
        let (number, time, age) = (point.number, when(point.time.as_ref()), age_of(Some(point.age_ms)));
        out += &format!("point {number} of {time}, {age} old; RPO {}\n", age_of(d.rpo_ms));
    }
    if !d.capture.is_empty() {
        let (waiting, used, size) = (bytes(d.waiting_bytes), bytes(d.log_used_bytes), bytes(d.log_size_bytes));
        out += &format!("capture {}: waiting {waiting}, log {used} of {size}\n", d.capture);
    }
    if d.sync_total_bytes > 0 {
        let eta = d.sync_eta_s.map_or("-".to_owned(), seconds);
        out += &format!("sync {} of {}, ETA {eta}\n", bytes(d.sync_done_bytes), bytes(d.sync_total_bytes));
    }
    if let Some(follow) = &d.follow {
        out += &follow_text(follow);
    }
    for vm in &d.vms {
        let point = vm.point.map_or("no point covers it".to_owned(), |n| format!("point {n}"));
        out += &format!("{}  {}  {point}  RPO {}\n", vm.name, status_words(vm.status()), age_of(vm.rpo_ms));
        for line in vm.r#move.iter().flat_map(move_lines) {
            out += &format!("  {line}\n");
        }
        for disk in &vm.disks {
            let (size, dirty, unsynced) = (bytes(disk.size_bytes), bytes(disk.dirty_bytes), bytes(disk.unsynced_bytes));
            out += &format!("  {}  {size}  dirty {dirty}  unsynced {unsynced}  {}\n", disk.name, disk.path);
            if !disk.export_uri.is_empty() {
                out += &format!("    {}\n", disk.export_uri);
            }
        }
    }
    if let Some(diverged) = &d.diverged {
        out += &diverged_text(diverged);
    }
    if let Some(kept) = d.kept_copies.filter(|kept| *kept > 0) {
        let size = bytes(d.kept_copy_bytes);
        out += &format!("{kept} copies of disks that left it are kept ({size}): freshet domain copies {}\n", d.name);
    }
    for problem in &d.problems {
        out += &format!("problem: {problem}\n");
    }
    out
}

/// How disks here follow the domain, for people.
fn follow_text(follow: &Follow) -> String {
    let point = |point: &Option<ShownPoint>| match point {
        Some(point) => format!("point {}, {} old", point.number, age_of(Some(point.age_ms))),
        None => "no point".to_owned(),
    };
    let how = if follow.running { "disks here follow it" } else { "disks here do NOT follow it now" };
    let mut out = format!("{how}: landed {}; applied {}", point(&follow.landed), point(&follow.applied));
    if !follow.caught_up && follow.total_bytes > 0 {
        out += &format!("; {} of {} fetched", bytes(follow.done_bytes), bytes(follow.total_bytes));
    }
    if follow.log_used_bytes > 0 {
        out += &format!(
            "; {} of {} of the log not applied yet",
            bytes(follow.log_used_bytes),
            bytes(follow.log_size_bytes)
        );
    }
    out.push('\n');
    for DiskDamage { vm, disk, ranges, bytes: lost } in &follow.damage {
        out += &format!("  damaged: {} of VM {vm}, disk {disk}, in {ranges} ranges\n", bytes(*lost));
    }
    out
}

/// What is only here, for people.
fn diverged_text(diverged: &Diverged) -> String {
    let size = diverged.bytes.map_or("an unknown number of bytes".to_owned(), |n| format!("up to {}", bytes(n)));
    let mut out = format!("diverged: {size} here that the domain does not have");
    if diverged.segments > 0 {
        let (first, last) = (when(diverged.first.as_ref()), when(diverged.last.as_ref()));
        out += &format!(", of that {} segments from {first} to {last}", diverged.segments);
    }
    out.push('\n');
    for disk in &diverged.disks {
        let ranges = disk.ranges.len() as u64 + disk.more;
        out += &format!("  {}  {} in {ranges} ranges  {}\n", disk.disk, bytes(disk.bytes), disk.path);
    }
    out
}
