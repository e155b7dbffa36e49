//! How the program ends: signals, and the exit code.
//!
//! The first SIGINT or SIGTERM asks the work to stop at a safe place; the second ends the process at once, which is
//! safe too, since whatever was durable stays so.

use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::{Output, complain};
use super::report::Report;
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, Result};

/// Shows the result of a command and turns it into the exit code.
pub(super) fn finish(output: &Output, done: Result<Report>) -> ExitCode {
    let shown = done.and_then(|report| output.report(&report).map(|()| report));
    match shown {
        Ok(report) => match report.why_incomplete() {
            None => ExitCode::SUCCESS,
            Some(why) => {
                complain(&format!("incomplete: {why}"));
                ExitCode::from(ErrorKind::Incomplete.exit_code())
            }
        },
        Err(e) => {
            output.error(&e);
            ExitCode::from(e.kind().exit_code())
        }
    }
}

/// Shows what the argument parser says. Help and version are no errors.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed standard output is not worth an error here.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let wants_json = std::env::args_os().any(|a| a == "--json");
    if wants_json {
        let text = error.render().to_string();
        let text = text.trim().trim_start_matches("error: ");
        Output::new(true).error(&Error::new(ErrorKind::Invalid, text));
    } else {
        let _ = error.print();
    }
    ExitCode::from(ErrorKind::Invalid.exit_code())
}

/// From now on the first signal sets `cancel` and the second ends the process.
pub(super) fn stop_on_signals(cancel: Cancel) -> Result<()> {
    let listen = |kind| signal(kind).map_err(|e| Error::io("listen for signals", e));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::spawn(async move {
        next(&mut interrupt, &mut terminate).await;
        complain("stopping; what is durable stays so. Once more to stop at once");
        cancel.cancel();
        let number = next(&mut interrupt, &mut terminate).await;
        std::process::exit(128 + number);
    });
    Ok(())
}

async fn next(interrupt: &mut Signal, terminate: &mut Signal) -> i32 {
    tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
    }
}
