//! Plans, summaries and tasks between the API's messages and the engine's types. No I/O.

use std::collections::BTreeMap;

use super::fields;
use crate::control::fault::{Done, Fault};
use crate::control::proto;
use crate::control::settings::Settings;
use crate::control::view::{status_of, timestamp};
use crate::failover::{
    ApplianceNetworks, DEFAULT_RELEASE_LIMIT, Direction, DrSettings, FailoverMode, FailoverPlan, FailoverSettings,
    Finding, General, Options, PointChoice, RemoteSettings, Runbook, Severity, Step, StepState, Summary, Task,
    TaskKind, TaskProgress, TaskState, VmSetting, VmSettings, point_of_no_return,
};
use crate::ids::{Name, SegmentNo, Time};
use crate::rehydrate::DetachedDisk;

/// Most entries of a mapping.
const MOST_ENTRIES: usize = 10_000;
/// Longest word.
const MOST_WORD: usize = 1024;

pub(super) fn word(field: &str, text: &str) -> Done<String> {
    match text.len() <= MOST_WORD && !text.chars().any(char::is_control) {
        true => Ok(text.to_owned()),
        false => Err(Fault::field(field, format!("must be at most {MOST_WORD} bytes without control characters"))),
    }
}

pub(super) fn words(field: &str, map: &std::collections::HashMap<String, String>) -> Done<BTreeMap<String, String>> {
    if map.len() > MOST_ENTRIES {
        return Err(Fault::field(field, format!("{} entries, at most {MOST_ENTRIES}", map.len())));
    }
    map.iter().map(|(from, to)| Ok((word(field, from)?, word(field, to)?))).collect()
}

fn failover_stage(at: &str, stage: Option<&proto::FailoverStage>) -> Done<FailoverSettings> {
    let stage = stage.ok_or_else(|| Fault::field(at, "must be there"))?;
    Ok(FailoverSettings {
        placement: words(&format!("{at}.placement"), &stage.placement)?,
        datastore: fields::path(&format!("{at}.datastore"), &stage.datastore)?,
        planned: stage.planned,
    })
}

pub(super) fn vms_stage(at: &str, stage: Option<&proto::VmsStage>) -> Done<VmSettings> {
    let Some(stage) = stage else { return Ok(VmSettings::default()) };
    if stage.vms.len() > MOST_ENTRIES {
        return Err(Fault::field(at, format!("{} VMs, at most {MOST_ENTRIES}", stage.vms.len())));
    }
    let mut vms: BTreeMap<Name, VmSetting> = BTreeMap::new();
    for (i, vm) in stage.vms.iter().enumerate() {
        let here = format!("{at}.vms[{i}]");
        let name = fields::name(&format!("{here}.vm"), &vm.vm)?;
        let networks = vm.networks.iter().map(|network| word(&format!("{here}.networks"), network));
        let setting = VmSetting {
            networks: networks.collect::<Done<_>>()?,
            storage_policy: word(&format!("{here}.storage_policy"), &vm.storage_policy)?,
            cpus: vm.cpus,
            memory_bytes: vm.memory_bytes,
        };
        if vms.insert(name.clone(), setting).is_some() {
            return Err(Fault::field(format!("{here}.vm"), format!("{name} is there twice")));
        }
    }
    Ok(VmSettings {
        default_network: word(&format!("{at}.default_network"), &stage.default_network)?,
        networks: words(&format!("{at}.networks"), &stage.networks)?,
        storage_policy: word(&format!("{at}.storage_policy"), &stage.storage_policy)?,
        vms,
    })
}

fn networks_stage(at: &str, stage: Option<&proto::ApplianceNetworksStage>) -> Done<ApplianceNetworks> {
    let Some(stage) = stage else { return Ok(ApplianceNetworks::default()) };
    Ok(ApplianceNetworks {
        replication: word(&format!("{at}.replication"), &stage.replication)?,
        internal: word(&format!("{at}.internal"), &stage.internal)?,
        management: word(&format!("{at}.management"), &stage.management)?,
    })
}

/// Sizes that are left out are 0: they are those of the settings of the site that it is for.
fn dr_stage(at: &str, stage: Option<&proto::DrStage>, datastore: &std::path::Path) -> Done<DrSettings> {
    let stage = stage.cloned().unwrap_or_default();
    Ok(DrSettings {
        appliance: word(&format!("{at}.appliance"), &stage.appliance)?,
        log_store: match stage.log_store.as_str() {
            "" => datastore.to_owned(),
            text => fields::path(&format!("{at}.log_store"), text)?,
        },
        log_size: stage.log_size_bytes,
        metadata_size: stage.metadata_size_bytes,
        memory: stage.memory_bytes,
    })
}

/// Settings for the other site.
pub(super) fn remote(at: &str, sent: Option<&proto::RemoteSettings>) -> Done<Option<RemoteSettings>> {
    let Some(sent) = sent else { return Ok(None) };
    let failover = failover_stage(&format!("{at}.failover"), sent.failover.as_ref())?;
    let runbook: Option<Runbook> = match sent.runbook.as_str() {
        "" => None,
        text => {
            Some(toml::from_str(text).map_err(|e| Fault::field(format!("{at}.runbook"), e.to_string().trim_end()))?)
        }
    };
    Ok(Some(RemoteSettings {
        vms: vms_stage(&format!("{at}.vms"), sent.vms.as_ref())?,
        appliance_networks: networks_stage(&format!("{at}.appliance_networks"), sent.appliance_networks.as_ref())?,
        dr: dr_stage(&format!("{at}.dr"), sent.dr.as_ref(), &failover.datastore)?,
        failover,
        runbook,
    }))
}

/// A point by its number; the newest where absent.
pub(super) fn point(field: &str, number: Option<u64>) -> Done<PointChoice> {
    match number {
        None => Ok(PointChoice::Newest),
        Some(0) => Err(Fault::field(field, "is 0; points begin at 1")),
        Some(n) => Ok(PointChoice::Number(SegmentNo::new(n))),
    }
}

/// What a call asks for besides its plan: mode and direction where the call decides them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Decided {
    pub(super) mode: Option<FailoverMode>,
    pub(super) direction: Option<Direction>,
}

/// A plan, without a runbook; whether the domain's own belongs to it.
pub(super) fn plan(
    sent: Option<&proto::FailoverPlan>,
    decided: Decided,
    settings: &Settings,
) -> Done<(FailoverPlan, bool)> {
    let sent = sent.ok_or_else(|| Fault::field("plan", "must be there"))?;
    let general = sent.general.as_ref().ok_or_else(|| Fault::field("plan.general", "must be there"))?;
    let asked_mode = match general.mode() {
        proto::FailoverMode::Unspecified => None,
        proto::FailoverMode::AsNeeded => Some(FailoverMode::AsNeeded),
        proto::FailoverMode::Continuous => Some(FailoverMode::Continuous),
    };
    let asked_direction = match general.direction() {
        proto::Direction::Unspecified => None,
        proto::Direction::Failover => Some(Direction::Failover),
        proto::Direction::Failback => Some(Direction::Failback),
    };
    if asked_mode.is_none() && decided.mode.is_none() {
        return Err(Fault::field("plan.general.mode", "must be as needed or continuous"));
    }
    let agree = |field: &str, same: bool| match same {
        true => Ok(()),
        false => Err(Fault::field(field, "is not what this method starts")),
    };
    agree("plan.general.mode", asked_mode.is_none() || decided.mode.is_none() || asked_mode == decided.mode)?;
    let same = asked_direction.is_none() || decided.direction.is_none() || asked_direction == decided.direction;
    agree("plan.general.direction", same)?;
    let failover = failover_stage("plan.failover", sent.failover.as_ref())?;
    let options = sent.options.clone().unwrap_or_default();
    let plan = FailoverPlan {
        general: General {
            domain: fields::name("plan.general.domain", &general.domain)?,
            mode: decided.mode.or(asked_mode).unwrap_or(FailoverMode::AsNeeded),
            direction: decided.direction.or(asked_direction).unwrap_or(Direction::Failover),
        },
        vms: vms_stage("plan.vms", sent.vms.as_ref())?,
        appliance_networks: networks_stage("plan.appliance_networks", sent.appliance_networks.as_ref())?,
        dr: settings.sized(dr_stage("plan.dr", sent.dr.as_ref(), &failover.datastore)?),
        failover,
        options: Options {
            point: point("plan.options.point", options.point)?,
            accept_loss: false,
            from: None,
            accept_damage: options.accept_damage,
            in_place: options.in_place,
            accept_divergence: options.accept_divergence,
            resume_remote: remote("plan.options.resume_remote", options.resume_remote.as_ref())?,
            runbook: None,
            release_limit_seconds: match options.release_limit_s {
                0 => DEFAULT_RELEASE_LIMIT,
                seconds => seconds,
            },
        },
    };
    Ok((plan, !options.without_runbook))
}

/// A finding as it is sent.
pub(super) fn finding(found: &Finding) -> proto::Finding {
    let severity = match found.severity {
        Severity::Warning => proto::Severity::Warning,
        Severity::Error => proto::Severity::Error,
    };
    proto::Finding {
        stage: found.stage.word().to_owned(),
        field: found.field.clone(),
        severity: severity.into(),
        text: found.text.clone(),
        what_to_do: found.remedy.clone(),
    }
}

/// Whole seconds of an estimate; it is rounded up, and never below zero.
fn seconds(estimate: f64) -> u64 {
    // The cast saturates, and an estimate is for reading only.
    estimate.ceil().max(0.0) as u64
}

/// A summary as it is sent.
pub(super) fn summary(summary: &Summary) -> proto::PlanSummary {
    let vms = summary.vms.iter().map(|vm| proto::VmSummary {
        vm: vm.name.to_string(),
        status: status_of(vm.status.word()).into(),
        included: vm.excluded.is_none(),
        note: vm.excluded.clone().unwrap_or_default(),
        age_ms: vm.age_millis,
        fetch_bytes: vm.fetch_bytes,
    });
    proto::PlanSummary {
        point: summary.point.map(|point| proto::Point {
            number: point.at.segment.get(),
            time: Some(timestamp(point.time)),
            age_ms: summary.age_millis.unwrap_or_default(),
        }),
        vms: vms.collect(),
        fetch_bytes: summary.fetch_bytes,
        estimated_s: summary.seconds.map(seconds),
        basis: summary.basis.clone(),
        loss: summary.loss_words(),
        remote_conditions: summary.remote_conditions.clone(),
        addressing: summary.addressing.clone(),
        starting: summary.starting.clone(),
        overwritten: summary.overwritten.clone().unwrap_or_default(),
        damage: summary.damage.clone(),
        owner_site: summary.owner.as_ref().map(|owner| owner.site.to_string()).unwrap_or_default(),
        generation: summary.owner.as_ref().map(|owner| owner.generation.get()).unwrap_or_default(),
    }
}

fn kind(kind: TaskKind) -> proto::TaskKind {
    match kind {
        TaskKind::Failover => proto::TaskKind::Failover,
        TaskKind::ContinuousFailover => proto::TaskKind::ContinuousFailover,
        TaskKind::Complete { .. } => proto::TaskKind::Complete,
        TaskKind::HandOver => proto::TaskKind::HandOver,
        TaskKind::Failback => proto::TaskKind::Failback,
        TaskKind::ContinuousFailback => proto::TaskKind::ContinuousFailback,
        TaskKind::Forget => proto::TaskKind::Forget,
    }
}

fn state(state: &TaskState) -> proto::TaskState {
    match state {
        TaskState::Pending => proto::TaskState::Pending,
        TaskState::Running => proto::TaskState::Running,
        TaskState::Paused => proto::TaskState::Paused,
        TaskState::WaitingForOperator(_) => proto::TaskState::WaitingForOperator,
        TaskState::Cancelling { .. } => proto::TaskState::Cancelling,
        TaskState::Done => proto::TaskState::Done,
        TaskState::Failed { .. } => proto::TaskState::Failed,
        TaskState::Cancelled => proto::TaskState::Cancelled,
    }
}

/// A step's name: its word, and what it is about.
fn step_name(step: &Step) -> String {
    match step.vm() {
        Some(vm) => format!("{} {vm}", step.word()),
        None => step.word().to_owned(),
    }
}

/// How far a task is, as it is sent.
fn progress(progress: &TaskProgress) -> proto::TaskProgress {
    let rate = |rate: f64| (rate > 0.0).then(|| seconds(rate));
    let basis = match progress.eta_seconds {
        None => String::new(),
        Some(_) if progress.done_bytes >= progress.total_bytes => "nothing is left of what is known".to_owned(),
        Some(_) => format!("the rate of the last {} s", seconds(progress.measured_seconds)),
    };
    let disks = progress.disks.iter().map(|of| proto::TaskDiskProgress {
        disk: of.disk.clone(),
        done_bytes: of.done_bytes,
        total_bytes: of.total_bytes,
        rate_bytes: rate(of.bytes_per_second),
        eta_s: of.eta_seconds.map(seconds),
    });
    proto::TaskProgress {
        stage: progress.stage.to_owned(),
        done_bytes: progress.done_bytes,
        total_bytes: progress.total_bytes,
        rate_bytes: rate(progress.bytes_per_second),
        eta_s: progress.eta_seconds.map(seconds),
        eta_basis: basis,
        disks: disks.collect(),
    }
}

/// A task as it is sent.
pub(super) fn task(task: &Task) -> proto::Task {
    let stamp = |time: Option<Time>| time.map(timestamp);
    let steps = task.steps.iter().map(|step| proto::TaskStep {
        name: step_name(&step.step),
        state: step.state.word().to_owned(),
        began: stamp(step.started),
        ended: stamp(step.ended),
        error: match &step.state {
            StepState::Retrying { error } | StepState::Failed { error } => error.to_string(),
            _ => String::new(),
        },
        point_of_no_return: step.step.commits_when_begun() || step.step.commits_when_done(),
        log: step.log.iter().map(|line| format!("{} {}", line.at, line.text)).collect(),
    });
    let outcome = match &task.state {
        state if !state.is_terminal() => String::new(),
        TaskState::Failed { error } => error.to_string(),
        state => state.word().to_owned(),
    };
    proto::Task {
        id: task.id.to_string(),
        kind: kind(task.kind).into(),
        domain: task.domain.to_string(),
        actor: task.actor.clone(),
        created: Some(timestamp(task.created)),
        state: state(&task.state).into(),
        steps: steps.collect(),
        progress: task.progress.as_ref().map(progress),
        outcome,
        question: task.question().map(|question| proto::TaskQuestion {
            number: task.questions,
            text: question.text.clone(),
            choices: question.choices.iter().map(|choice| choice.word().to_owned()).collect(),
            vms: question.vms.iter().map(Name::to_string).collect(),
        }),
        error: task.error().map(ToString::to_string).unwrap_or_default(),
        cancellable: !task.state.is_terminal() && point_of_no_return(task).is_none(),
        ended: stamp(task.ended),
        trouble: task.trouble.clone().unwrap_or_default(),
    }
}

/// A kept copy.
pub(super) fn kept_copy(copy: &DetachedDisk) -> proto::KeptCopy {
    proto::KeptCopy {
        disk_id: copy.disk.to_string(),
        vm: copy.vm.to_string(),
        disk: copy.name.to_string(),
        path: copy.path.display().to_string(),
        size_bytes: copy.size,
        held_bytes: copy.held,
        left: Some(timestamp(copy.left)),
    }
}
