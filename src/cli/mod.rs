//! The command line: arguments in, one report and an exit code out.
//!
//! It owns what an operator types and reads. It never touches a storage site, a disk or a log by itself: each command
//! calls the library and shows what that answers. Only `output` prints to standard output; errors, logs and progress go
//! to standard error. Invariant: with `--json` standard output holds JSON documents and nothing else, and the exit
//! code tells the same with and without it.

mod appliance_args;
mod config;
mod context;
mod copies;
mod demo;
mod demo_guest;
mod domain;
mod event;
mod exit;
mod export;
mod failback;
mod failover;
mod follow_view;
mod guest_list;
mod hand_over;
mod inspect;
mod move_view;
mod notify;
mod output;
mod plan_args;
mod points;
mod progress_view;
mod protect;
mod protect_ask;
mod recovery_points;
mod rehydrate;
mod remote_args;
mod replicate;
mod report;
mod runbook;
mod scan;
mod serve;
mod served_disks;
mod site;
mod steering;
mod store;
mod store_args;
mod task;
mod task_view;
mod tls_args;
mod units;
mod values;
mod verify;
mod vm;
mod vm_disks;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::Instrument;

use crate::error::{Error, ErrorKind, Result};
use crate::log_context;
use context::Context;
use output::Output;
use report::Report;

/// Replicates disks of virtual machines into an object store and brings them back.
#[derive(Debug, Parser)]
#[command(name = "freshet", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    /// Print one JSON document instead of text; in continuous mode one JSON object a line
    #[arg(long, global = true)]
    json: bool,
    /// What to log to standard error: error, warn, info, debug, trace, or a filter such as freshet=debug
    /// [default: RUST_LOG, else warn]
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,
    /// How log lines look: text, or one JSON object a line [default: text; for `serve` what its settings say]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    #[command(subcommand)]
    command: Command,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    Replicate(replicate::Replicate),
    Protect(Box<protect::Protect>),
    Scan(scan::Scan),
    Points(points::Points),
    Rehydrate(rehydrate::Rehydrate),
    Verify(verify::Verify),
    Inspect(inspect::Inspect),
    HandOver(hand_over::HandOver),
    Export(export::Export),
    Demo(demo::Demo),
    Store(store::Store),
    Serve(Box<serve::Serve>),
    Config(config::Config),
    Site(site::Site),
    Domain(domain::Domain),
    Vm(vm::Vm),
    Runbook(runbook::Runbook),
    Event(event::Event),
    Task(task::Task),
    Failover(failover::Failover),
    Failback(failback::Failback),
}

impl Command {
    /// How log lines look where the command line does not say.
    fn log_format(&mut self) -> Result<LogFormat> {
        let json = match self {
            Command::Serve(serve) => serve.wants_json_logs()?,
            _ => false,
        };
        Ok(if json { LogFormat::Json } else { LogFormat::Text })
    }

    async fn run(self, context: &Context) -> Result<Report> {
        match self {
            Command::Replicate(c) => c.run(context).await,
            Command::Protect(c) => {
                let about = log_context::domain(c.domain());
                c.run(context).instrument(about).await
            }
            Command::Scan(c) => c.run(context).await,
            Command::Points(c) => c.run(context).await,
            Command::Rehydrate(c) => {
                let about = log_context::domain(c.domain());
                c.run(context).instrument(about).await
            }
            Command::Verify(c) => c.run(context).await,
            Command::Inspect(c) => c.run(context).await,
            Command::HandOver(c) => c.run(context).await,
            Command::Export(c) => c.run(context).await,
            Command::Demo(c) => c.run(context).await,
            Command::Store(c) => c.run(context).await,
            Command::Serve(c) => c.run(context).await,
            Command::Config(c) => c.run(context).await,
            Command::Site(c) => c.run(context).await,
            Command::Domain(c) => c.run(context).await,
            Command::Vm(c) => c.run(context).await,
            Command::Runbook(c) => c.run(context).await,
            Command::Event(c) => c.run(context).await,
            Command::Task(c) => c.run(context).await,
            Command::Failover(c) => c.run(context).await,
            Command::Failback(c) => c.run(context).await,
        }
    }
}

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    let mut cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return exit::usage(&e),
    };
    let output = Output::new(cli.json);
    let format = match cli.log_format {
        Some(format) => Ok(format),
        None => cli.command.log_format(),
    };
    let started = format.and_then(|format| start_logging(cli.log.as_deref(), format));
    let done = started.and_then(|()| run(cli.command, &output));
    exit::finish(&output, done)
}

fn run(command: Command, output: &Output) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::io("start the threads of the program", e))?;
    let context = Context::new(output.clone());
    let done = runtime.block_on(async {
        exit::stop_on_signals(context.cancel.clone())?;
        command.run(&context).await
    });
    // What still runs is a request nobody waits for any more, such as the slower one of a hedged pair.
    runtime.shutdown_background();
    done
}

fn start_logging(level: Option<&str>, format: LogFormat) -> Result<()> {
    use tracing_subscriber::EnvFilter;
    let bad = |text: &str, why: String| Error::new(ErrorKind::Invalid, format!("log filter {text:?}: {why}"));
    let filter = match (level, std::env::var(EnvFilter::DEFAULT_ENV)) {
        (Some(text), _) => EnvFilter::try_new(text).map_err(|e| bad(text, e.to_string()))?,
        (None, Ok(text)) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|e| bad(&text, e.to_string()))?,
        (None, _) => EnvFilter::new("warn"),
    };
    let to_stderr = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if format == LogFormat::Json {
        output::write_json_lines();
    }
    // Fails only where a subscriber is set already, which is as good.
    let _ = match format {
        LogFormat::Text => to_stderr.with_ansi(output::stderr_is_terminal()).try_init(),
        LogFormat::Json => to_stderr.json().flatten_event(true).with_current_span(false).try_init(),
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
