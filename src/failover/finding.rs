//! What is wrong with a plan or a runbook, as findings: where, how bad, what, and what to do about it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The stage of the plan that a finding belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// 1: the domain, its owner, its VMs.
    General,
    /// 2a: placement, datastore, planned or forced.
    Failover,
    /// 2b: networks, policies, resources.
    Vms,
    /// 3: networks of the appliance.
    ApplianceNetworks,
    /// 4: replication log, sizes.
    Dr,
    /// Point, what is accepted, settings for the other site.
    Options,
    /// The runbook.
    Runbook,
}

impl Stage {
    /// One word, for messages and programs.
    pub fn word(self) -> &'static str {
        match self {
            Stage::General => "general",
            Stage::Failover => "failover",
            Stage::Vms => "vms",
            Stage::ApplianceNetworks => "appliance-networks",
            Stage::Dr => "dr",
            Stage::Options => "options",
            Stage::Runbook => "runbook",
        }
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// To be known before it is started.
    Warning,
    /// It cannot be started.
    Error,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Where.
    pub stage: Stage,
    /// The field within the stage, such as `vms.web.networks[0]`.
    pub field: String,
    /// How bad.
    pub severity: Severity,
    /// What.
    pub text: String,
    /// What to do.
    pub remedy: String,
}

impl Finding {
    /// Something that keeps the plan from being started.
    pub fn error(
        stage: Stage,
        field: impl Into<String>,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        let (field, text, remedy) = (field.into(), text.into(), remedy.into());
        Finding { stage, field, severity: Severity::Error, text, remedy }
    }

    /// Something to be known.
    pub fn warning(
        stage: Stage,
        field: impl Into<String>,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Finding {
        Finding { severity: Severity::Warning, ..Finding::error(stage, field, text, remedy) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}: {}; {}", self.stage.word(), self.field, self.text, self.remedy)
    }
}
