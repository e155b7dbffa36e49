//! Failover: plans, runbooks, and the tasks that carry them out.
//!
//! ```text
//! request --validate--> task: Check, then the steps of its mode --------------------------------> Running in Failover
//!                        |  each: intent into the journal, act through the World, outcome into the journal
//!                        |
//!  journal --replay------+  the same pure transition function decides, live and after a restart
//! ```
//!
//! Nothing here touches a storage site, a disk or a hypervisor: that is the [`World`]'s, and what is done twice there is
//! done once. A task is what its journal says, folded; a step is begun only when its intent is durable, looks at what is
//! so before it acts, and can be repeated.
//!
//! | file | what it owns |
//! |---|---|
//! | `words`, `facts`, `survey` | what an operator sees, and what it follows from |
//! | `plan`, `runbook`, `request`, `finding` | what is asked for, and what is wrong with it |
//! | `validate`, `runbook_check`, `summary` | all that is wrong with it, and what it comes to |
//! | `modes`, `runbook_steps`, `order`, `shape` | the steps of each mode, and VMs as they are defined here |
//! | `task`, `step`, `event`, `journal` | a task, its steps, what happened to it, and where that is kept |
//! | `transition`, `policy` | what a task becomes by what happened, and what follows from a failure |
//! | `engine`, `steps` | who carries tasks out, and what each step does |
//! | `world` | everything that steps observe and do |

mod engine;
mod event;
mod facts;
mod finding;
mod journal;
mod modes;
mod order;
mod plan;
mod policy;
mod request;
mod runbook;
mod runbook_check;
mod runbook_steps;
#[cfg(test)]
pub(crate) mod samples;
mod script;
mod shape;
#[cfg(test)]
mod sim;
mod starting;
mod step;
mod steps;
mod summary;
mod survey;
mod task;
#[cfg(test)]
mod tests;
mod transition;
mod validate;
mod words;
mod world;

pub(crate) use engine::Meter;
pub use engine::{Engine, EngineSettings, JOURNAL_ATTEMPTS, Planned, Recovered, replay};
pub use event::{ENTRY_VERSION, Entry, Event, MAX_ENTRY_LEN, Outcome};
pub use facts::{Doing, DomainFacts, FollowFacts, HandOverRequest, LocalDisks, Owner, PointFacts, Underway, VmFacts};
pub use finding::{Finding, Severity, Stage};
pub(crate) use journal::began_another;
pub use journal::{Abandoned, Journal, Kept, MemoryJournal, Once};
pub use plan::{
    ApplianceNetworks, DEFAULT_RELEASE_LIMIT, DEFAULT_SHUTDOWN_LIMIT, Direction, DrSettings, FailoverMode,
    FailoverPlan, FailoverSettings, General, Options, PointChoice, RemoteSettings, VmSetting, VmSettings,
};
pub use policy::{MAX_ATTEMPTS, pause_after};
pub use request::{Command, Complete, Forget, HandOver, Request};
pub use runbook::{Group, IpSettings, NicSettings, OnFailure, Others, Probe, Runbook, Script, VmStart, WaitFor};
pub use script::{MAX_SCRIPT_OUTPUT, port_is_open, run_script};
pub(crate) use shape::apply as as_planned;
pub use step::Step;
pub use summary::{Summary, VmSummary};
pub use survey::{Loss, Rate, Space, Survey};
pub use task::{
    Choice, Completion, DiskProgress, Learned, LogLine, Question, StepRecord, StepState, Task, TaskError, TaskId,
    TaskKind, TaskProgress, TaskState,
};
pub use transition::{
    Action, MAX_LINE_LEN, MAX_LOG_LINES, MAX_STEPS, next_action, point_of_no_return, submitted, transition,
};
pub use validate::{Act, has_errors};
pub use words::{DomainMode, VmStatus};
pub use world::{Claim, Reached, RehydrateTo, Resumed, ScriptEnd, ScriptRun, World};
