//! The S3 server of the tests as a process of its own, so that a bench can account for its CPU time or kill it.
//!
//! The first line on standard output is the endpoint; the last one, after SIGINT or SIGTERM or when standard input
//! closes (with `--watch-stdin`), is the counters as JSON.

use anyhow::Context;
use clap::Parser;
use freshet::s3_server::{Counters, Options, Rule, S3Server};
use std::io::Write;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// An S3 server over a directory, for benches and tests.
#[derive(Parser)]
struct Arguments {
    /// Directory that holds the buckets; made if need be.
    #[arg(long)]
    dir: PathBuf,
    /// Port on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Bucket to make at start; repeats.
    #[arg(long, default_value = "freshet")]
    bucket: Vec<String>,
    /// Access key id.
    #[arg(long, default_value = "freshet")]
    access_key: String,
    /// Secret access key.
    #[arg(long, default_value = "freshet-secret")]
    secret_key: String,
    /// Threads that serve connections.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Fault, such as `latency=50` or `slowdown,every=10,verb=GET,key=segments/`; repeats.
    #[arg(long)]
    fault: Vec<Rule>,
    /// Stop when standard input closes, as it does when the parent dies.
    #[arg(long)]
    watch_stdin: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let options = Options {
        port: arguments.port,
        access_key: arguments.access_key,
        secret_key: arguments.secret_key,
        buckets: arguments.bucket,
        workers: arguments.workers,
        rules: arguments.fault,
        ..Options::default()
    };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let server = S3Server::start(&arguments.dir, options)
        .with_context(|| format!("cannot serve {}", arguments.dir.display()))?;
    writeln!(std::io::stdout(), "{}", server.endpoint())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = end_of_stdin(), if arguments.watch_stdin => {}
    }
    let counters = server.counters();
    server.stop();
    writeln!(std::io::stdout(), "{}", json(&counters))?;
    Ok(())
}

/// A thread of its own waits: it is left behind when the process ends for another reason.
async fn end_of_stdin() {
    let (closed, wait) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        // An error ends the wait as the end of the input does.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(closed);
    });
    let _ = wait.await;
}

fn json(counters: &Counters) -> serde_json::Value {
    let requests: serde_json::Map<_, _> =
        counters.requests.iter().map(|(verb, count)| (verb.word().to_owned(), (*count).into())).collect();
    serde_json::json!({
        "requests": requests,
        "bytes_in": counters.bytes_in,
        "bytes_out": counters.bytes_out,
        "faults": counters.faults,
    })
}
