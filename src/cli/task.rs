//! `freshet task`: long operations of an appliance, with steps, progress and history.

use std::collections::HashMap;

use clap::{Args, Subcommand};
use comfy_table::Table;
use serde_json::json;

use super::appliance_args::{ApplianceArgs, answered, confirmed, list_of, report, table, when};
use super::context::Context;
use super::report::Report;
use super::task_view::{TaskView, lines};
use crate::control::proto::{
    AbandonTaskRequest, AnswerTaskRequest, GetTaskRequest, ListTasksRequest, Task as Shown, TaskKind, TaskState,
    WatchTaskRequest,
};
use crate::control::{Client, from_status, json_of};
use crate::error::{Error, ErrorKind, Result};

/// Long operations of an appliance
#[derive(Debug, Args)]
pub(super) struct Task {
    #[command(subcommand)]
    command: TaskCommand,
}

#[derive(Debug, Subcommand)]
enum TaskCommand {
    /// List tasks, newest first
    List(List),
    /// Show one task: its steps, what they told, its question
    Show(One),
    /// Show a task each time that it changes, until it has ended
    Watch(One),
    /// Answer the question that a task waits with
    Answer(Answer),
    /// Give up a task whose journal cannot be read, so that its domain is free for another
    Abandon(Abandon),
}

#[derive(Debug, Args)]
struct List {
    /// Of this domain only
    #[arg(long, value_name = "DOMAIN", default_value = "")]
    domain: String,
    /// Only those that have not ended
    #[arg(long)]
    running: bool,
    /// Most tasks that are listed
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    most: u32,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

#[derive(Debug, Args)]
struct One {
    /// Id of the task
    #[arg(value_name = "TASK")]
    id: String,
    #[command(flatten)]
    appliance: ApplianceArgs,
}

#[derive(Debug, Args)]
struct Answer {
    #[command(flatten)]
    one: One,
    /// Number of the question, as the task tells it
    #[arg(value_name = "QUESTION")]
    question: u32,
    /// One of the choices that the task offers
    #[arg(value_name = "CHOICE")]
    choice: String,
}

#[derive(Debug, Args)]
struct Abandon {
    #[command(flatten)]
    one: One,
    /// Do not ask: the task's domain, or its id where nothing of it can be read
    #[arg(long, value_name = "DOMAIN")]
    yes: Option<String>,
}

impl Task {
    pub(super) async fn run(self, context: &Context) -> Result<Report> {
        match self.command {
            TaskCommand::List(list) => {
                let mut client = list.appliance.connect().await?.tasks();
                let request = ListTasksRequest {
                    domain: list.domain,
                    running_only: list.running,
                    page_size: list.most,
                    page_token: String::new(),
                };
                let found = answered(client.list_tasks(request).await)?;
                let text = if found.tasks.is_empty() { "no tasks".to_owned() } else { rows(&found.tasks).trim_fmt() };
                Report::new(&json!({ "tasks": list_of(&found.tasks)? }), text)
            }
            TaskCommand::Show(one) => {
                let mut client = one.appliance.connect().await?.tasks();
                let shown = answered(client.get_task(GetTaskRequest { id: one.id }).await)?.task.unwrap_or_default();
                report(&shown, text(&shown))
            }
            TaskCommand::Watch(one) => follow(&one.appliance.connect().await?, &one.id, context).await,
            TaskCommand::Answer(Answer { one, question, choice }) => {
                let mut client = one.appliance.connect().await?.tasks();
                let shown = answered(client.answer_task(AnswerTaskRequest { id: one.id, choice, question }).await)?;
                let shown = shown.task.unwrap_or_default();
                report(&shown, text(&shown))
            }
            TaskCommand::Abandon(abandon) => abandon.run().await,
        }
    }
}

impl Abandon {
    async fn run(self) -> Result<Report> {
        let mut client = self.one.appliance.connect().await?.tasks();
        let id = self.one.id;
        let known = match answered(client.get_task(GetTaskRequest { id: id.clone() }).await) {
            Ok(known) => known.task,
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let domain = known.as_ref().map_or_else(|| id.clone(), |task| task.domain.clone());
        let what = known.as_ref().map_or_else(|| format!("task {id}, of which nothing can be read\n"), text);
        let why = "nothing that it did is undone: look at the domain, its VMs and its owner first";
        confirmed(self.yes.as_deref(), &domain, &format!("{what}{why}"))?;
        let given_up = answered(client.abandon_task(AbandonTaskRequest { id: id.clone(), domain }).await)?;
        match given_up.task {
            Some(task) => report(&task, text(&task)),
            None => Report::new(&json!({ "id": id }), format!("task {id} was given up")),
        }
    }
}

/// Shows a task until it has ended; its end is that of the command. A signal ends the looking, not the task.
pub(super) async fn follow(client: &Client, id: &str, context: &Context) -> Result<Report> {
    let mut changes = answered(client.tasks().watch_task(WatchTaskRequest { id: id.to_owned() }).await)?;
    let (mut last, mut told, mut view) = (None, Told::default(), TaskView::new());
    loop {
        let change = tokio::select! {
            change = changes.message() => change.map_err(|status| from_status(&status))?,
            () = context.cancel.cancelled() => {
                return Err(Error::new(ErrorKind::Cancelled, format!("task {id} goes on; only looking at it has ended")));
            }
        };
        let Some(task) = change.and_then(|change| change.task) else { break };
        if context.output.is_json() {
            context.output.event(&json_of(&task)?, "")?;
        } else {
            view.above(|| show_change(&task, &mut told, context))?;
            view.show(task.progress.as_ref());
        }
        last = Some(task);
    }
    drop(view);
    let task = last.ok_or_else(|| Error::new(ErrorKind::Unreachable, "the appliance ended before it told anything"))?;
    let shown = report(&task, if context.output.is_json() { String::new() } else { text(&task) })?;
    match task.state() {
        TaskState::Done => Ok(shown),
        TaskState::Cancelled => Err(Error::new(ErrorKind::Cancelled, format!("task {id} was cancelled, and undone"))),
        _ => Err(Error::new(ErrorKind::Incomplete, format!("task {id} failed: {}", task.error))),
    }
}

/// What people have been shown of a task.
#[derive(Debug, Default)]
struct Told {
    line: String,
    /// The newest line of the log of each step.
    logs: HashMap<usize, String>,
}

impl Told {
    /// Lines of the steps' logs that have not been shown.
    fn new_lines<'a>(&mut self, task: &'a Shown) -> Vec<&'a str> {
        let mut lines = Vec::new();
        for (i, step) in task.steps.iter().enumerate() {
            let Some(newest) = step.log.last() else { continue };
            let shown = self.logs.insert(i, newest.clone());
            // Those that were shown may have given way to newer ones.
            let from = shown.and_then(|shown| step.log.iter().rposition(|line| *line == shown)).map_or(0, |at| at + 1);
            lines.extend(step.log[from..].iter().map(String::as_str));
        }
        lines
    }
}

/// For people: a line for each step that begins or ends, and what steps told.
fn show_change(task: &Shown, told: &mut Told, context: &Context) -> Result<()> {
    for line in told.new_lines(task) {
        context.output.event(&json!(null), &format!("    {line}"))?;
    }
    let step = task.steps.iter().rev().find(|step| step.began.is_some());
    let line = match (step, &task.question) {
        (_, Some(question)) => format!("asks: {} [{}]", question.text, question.choices.join(", ")),
        (Some(step), None) => {
            let why = if step.error.is_empty() { String::new() } else { format!(": {}", step.error) };
            format!("{}  {}{why}", step.name, step.state)
        }
        (None, None) => state_words(task.state()).to_owned(),
    };
    if line != told.line {
        context.output.event(&json!(null), &line)?;
        told.line = line;
    }
    Ok(())
}

fn rows(tasks: &[Shown]) -> Table {
    let mut table = table(["task", "what", "domain", "state", "by", "since", ""]);
    for task in tasks {
        let (kind, state) = (kind_words(task.kind()), state_words(task.state()));
        let more = task.question.as_ref().map_or(task.error.as_str(), |question| question.text.as_str());
        let more = more.lines().next().unwrap_or_default();
        table.add_row([&task.id, kind, &task.domain, state, &task.actor, &when(task.created.as_ref()), more]);
    }
    table
}

/// A task for people.
pub(super) fn text(task: &Shown) -> String {
    let (kind, state) = (kind_words(task.kind()), state_words(task.state()));
    let mut out = format!("task {}: {kind} of {}, {state}\n", task.id, task.domain);
    for step in &task.steps {
        let mark = if step.point_of_no_return { "!" } else { " " };
        out += &format!("{mark} {}  {}\n", step.name, step.state);
        for line in &step.log {
            out += &format!("    {line}\n");
        }
        if !step.error.is_empty() {
            out += &format!("    {}\n", step.error);
        }
    }
    if let Some(progress) = &task.progress {
        lines(progress).iter().for_each(|line| out += &format!("{line}\n"));
    }
    if let Some(question) = &task.question {
        let choices = question.choices.join(", ");
        let (id, number) = (&task.id, question.number);
        out +=
            &format!("it asks: {}\nanswer by `freshet task answer {id} {number} CHOICE`: {choices}\n", question.text);
    }
    if !task.trouble.is_empty() {
        out += &format!("trouble: {}\n", task.trouble);
    }
    if !task.error.is_empty() {
        out += &format!("error: {}\n", task.error);
    }
    out
}

fn kind_words(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Unspecified => "-",
        TaskKind::Failover => "failover",
        TaskKind::ContinuousFailover => "continuous failover",
        TaskKind::Complete => "completion",
        TaskKind::HandOver => "hand-over",
        TaskKind::Failback => "failback",
        TaskKind::ContinuousFailback => "continuous failback",
        TaskKind::Forget => "forget",
    }
}

fn state_words(state: TaskState) -> &'static str {
    match state {
        TaskState::Unspecified => "-",
        TaskState::Pending => "pending",
        TaskState::Running => "running",
        TaskState::Paused => "paused",
        TaskState::WaitingForOperator => "waits for an answer",
        TaskState::Cancelling => "is being cancelled",
        TaskState::Done => "done",
        TaskState::Failed => "failed",
        TaskState::Cancelled => "cancelled",
    }
}
