//! The arguments of a plan: a file with all of it, or flags for what is usual; and how findings and a summary look.

use std::path::PathBuf;

use clap::Args;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::json;

use super::appliance_args::{age_of, parse_pair, seconds, table};
use super::remote_args::RemoteArgs;
use super::report::Report;
use super::units::{bytes, parse_size};
use crate::control::proto::{
    DESCRIPTORS, DrStage, FailoverPlan, FailoverStage, Finding, GeneralStage, PlanOptions, PlanSummary, Severity,
    VmsStage,
};
use crate::control::{json_of, status_words};
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Longest plan file.
const MOST_PLAN: usize = 4 << 20;

/// What a failover or failback is to do.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Name of the domain
    #[arg(value_name = "DOMAIN")]
    pub(super) domain: String,
    /// File with the whole plan: the message FailoverPlan as JSON. Flags outrank it
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Directory for the recovered disks, on the appliance's host
    #[arg(long, value_name = "DIR", required_unless_present = "plan")]
    datastore: Option<String>,
    /// Ask the owning site to shut its guests down and hand the domain over; else it is taken by force
    #[arg(long)]
    planned: bool,
    /// Network of the protected site to network of this one. Can be repeated
    #[arg(long, value_name = "FROM=TO", value_parser = parse_pair)]
    network: Vec<(String, String)>,
    /// Network of this site for what is mapped nowhere
    #[arg(long, value_name = "NETWORK")]
    default_network: Option<String>,
    /// Where VMs are placed, in the words of the hypervisor's driver. Can be repeated
    #[arg(long, value_name = "WHAT=WHERE", value_parser = parse_pair)]
    placement: Vec<(String, String)>,
    /// Storage policy of all VMs, in the words of the hypervisor's driver
    #[arg(long, value_name = "POLICY")]
    storage_policy: Option<String>,
    /// Directory of the replication log; the datastore unless told
    #[arg(long, value_name = "DIR")]
    log_store: Option<String>,
    /// Size of the replication log
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    log_size: Option<u64>,
    /// Budget for buffers
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Seconds that the owning site has to release the domain before the operator is asked; an hour unless told
    #[arg(long, value_name = "SECONDS")]
    release_limit: Option<u64>,
    /// Point to recover to; the newest unless told
    #[arg(long, value_name = "POINT")]
    point: Option<u64>,
    /// Use the disks that this site protected before, where they are
    #[arg(long)]
    in_place: bool,
    /// Overwrite what this site wrote and never shipped
    #[arg(long)]
    accept_divergence: bool,
    /// Run guests on disks with ranges that cannot be recovered
    #[arg(long)]
    accept_damage: bool,
    /// Leave the domain's runbook out
    #[arg(long)]
    without_runbook: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

impl PlanArgs {
    /// The plan. Whether it can work is for the appliance to say.
    ///
    /// # Errors
    /// `Invalid` for the file.
    pub(super) fn plan(&self) -> Result<FailoverPlan> {
        let mut plan = match &self.plan {
            Some(path) => read_message(path, "plan", "FailoverPlan")?,
            None => FailoverPlan::default(),
        };
        plan.general.get_or_insert_with(GeneralStage::default).domain.clone_from(&self.domain);
        let failover = plan.failover.get_or_insert_with(FailoverStage::default);
        if let Some(datastore) = &self.datastore {
            failover.datastore.clone_from(datastore);
        }
        failover.planned |= self.planned;
        failover.placement.extend(self.placement.iter().cloned());
        let vms = plan.vms.get_or_insert_with(VmsStage::default);
        vms.networks.extend(self.network.iter().cloned());
        if let Some(network) = &self.default_network {
            vms.default_network.clone_from(network);
        }
        if let Some(policy) = &self.storage_policy {
            vms.storage_policy.clone_from(policy);
        }
        let dr = plan.dr.get_or_insert_with(DrStage::default);
        if let Some(log_store) = &self.log_store {
            dr.log_store.clone_from(log_store);
        }
        dr.log_size_bytes = self.log_size.unwrap_or(dr.log_size_bytes);
        dr.memory_bytes = self.memory.unwrap_or(dr.memory_bytes);
        let options = plan.options.get_or_insert_with(PlanOptions::default);
        options.point = self.point.or(options.point);
        options.release_limit_s = self.release_limit.unwrap_or(options.release_limit_s);
        options.in_place |= self.in_place;
        options.accept_divergence |= self.accept_divergence;
        options.accept_damage |= self.accept_damage;
        options.without_runbook |= self.without_runbook;
        options.resume_remote = self.remote.settings(options.resume_remote.take())?;
        Ok(plan)
    }
}

/// The message `name` of the interface that a file holds as JSON; errors call the file a `called`.
///
/// # Errors
/// `Invalid` for what is in the file; what reading it says.
pub(super) fn read_message<M: prost::Message + Default>(path: &std::path::Path, called: &str, name: &str) -> Result<M> {
    let what = || format!("{called} {}", path.display());
    let text = std::fs::read_to_string(path).io_context(what)?;
    let invalid = |why: String| Error::new(ErrorKind::Invalid, format!("{}: {why}", what()));
    if text.len() > MOST_PLAN {
        return Err(invalid(format!("{} bytes, at most {MOST_PLAN}", text.len())));
    }
    let internal = |e: prost_reflect::DescriptorError| Error::with_source(ErrorKind::Internal, "read the interface", e);
    let pool = DescriptorPool::decode(DESCRIPTORS).map_err(internal)?;
    let kind = pool.get_message_by_name(&format!("freshet.v1.{name}"));
    let kind = kind.ok_or_else(|| Error::new(ErrorKind::Internal, format!("the interface has no {name}")))?;
    let mut json = serde_json::Deserializer::from_str(&text);
    let message = DynamicMessage::deserialize(kind, &mut json).map_err(|e| invalid(e.to_string()))?;
    json.end().map_err(|e| invalid(e.to_string()))?;
    message.transcode_to().map_err(|e| invalid(e.to_string()))
}

/// Whether findings keep a plan from being started.
pub(super) fn wrong(findings: &[Finding]) -> bool {
    findings.iter().any(|found| found.severity() == Severity::Error)
}

/// How what is told of a plan looks, and whether it can be started.
pub(super) fn told(findings: &[Finding], summary: Option<&PlanSummary>) -> Result<Report> {
    let wrong = findings.iter().filter(|found| found.severity() == Severity::Error).count();
    let json = json!({
        "findings": findings.iter().map(json_of).collect::<Result<Vec<_>>>()?,
        "summary": summary.map(json_of).transpose()?,
    });
    let why = (wrong > 0).then(|| format!("{wrong} findings keep it from being started"));
    Ok(Report::new(&json, text(findings, summary))?.incomplete(why))
}

/// Findings and summary for people.
pub(super) fn text(findings: &[Finding], summary: Option<&PlanSummary>) -> String {
    let mut out = String::new();
    for found in findings {
        let grave = if found.severity() == Severity::Error { "error" } else { "warning" };
        out += &format!("{grave}: {}.{}: {}; {}\n", found.stage, found.field, found.text, found.what_to_do);
    }
    let Some(summary) = summary else { return out };
    if !summary.vms.is_empty() {
        let mut table = table(["VM", "status", "age", "share to fetch", ""]);
        for vm in &summary.vms {
            let note = if vm.included { &vm.note } else { &format!("left out: {}", vm.note) };
            let (status, age) = (status_words(vm.status()), age_of(vm.age_ms));
            table.add_row([&vm.vm, status, &age, &bytes(vm.fetch_bytes), note]);
        }
        out += &(table.trim_fmt() + "\n");
    }
    match &summary.point {
        Some(point) => out += &format!("point {}, {} old\n", point.number, age_of(Some(point.age_ms))),
        None => out += "no point\n",
    }
    let time = summary.estimated_s.map_or("unknown".to_owned(), seconds);
    out += &format!("to fetch {}, estimated time {time} ({})\n", bytes(summary.fetch_bytes), summary.basis);
    if !summary.loss.is_empty() {
        out += &format!("would be lost: {}\n", summary.loss);
    }
    if !summary.overwritten.is_empty() {
        out += &format!("would be overwritten: {}\n", summary.overwritten);
    }
    for damage in &summary.damage {
        out += &format!("damaged: {damage}\n");
    }
    for address in &summary.addressing {
        out += &format!("addresses: {address}\n");
    }
    for (n, step) in (1..).zip(&summary.starting) {
        out += &format!("then {n}: {step}\n");
    }
    for condition in &summary.remote_conditions {
        out += &format!("condition: {condition}\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        plan: PlanArgs,
    }

    fn plan(args: &[&str]) -> FailoverPlan {
        Line::parse_from(["x", "shop"].iter().chain(args)).plan.plan().unwrap()
    }

    #[test]
    fn a_plan_that_is_printed_is_read_again_and_flags_outrank_it() {
        let flags =
            ["--datastore", "/disks", "--planned", "--network", "a=b", "--placement", "rack=7", "--log-size", "1GiB"];
        let more = ["--memory", "256MiB", "--storage-policy", "gold", "--release-limit", "90", "--point", "7"];
        let made = plan(&[&flags[..], &more[..]].concat());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plan.json");
        std::fs::write(&file, json_of(&made).unwrap().to_string()).unwrap();
        let path = file.to_str().unwrap();
        assert_eq!(plan(&["--plan", path]), made);
        let other = plan(&["--plan", path, "--memory", "1GiB", "--storage-policy", "tin"]);
        assert_eq!(other.dr.as_ref().unwrap().memory_bytes, 1 << 30);
        assert_eq!(other.vms.as_ref().unwrap().storage_policy, "tin");
        let dr = made.dr.unwrap();
        assert_eq!((dr.log_size_bytes, dr.memory_bytes), (1 << 30, 256 << 20));
        let options = made.options.unwrap();
        assert_eq!((options.point, options.release_limit_s), (Some(7), 90));
    }
}
