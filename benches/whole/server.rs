//! The tests' S3 server as a process of its own, so that its CPU seconds can be told from those of its client.
//!
//! It is this very program, started again with [`SERVE`]; it ends when its standard input closes, as it does when the
//! bench dies.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::Outcome;
use freshet::s3_server::{Options, Rule, S3Server};

/// First argument of a process that is to be a server.
pub(crate) const SERVE: &str = "serve-s3";

/// A running server.
pub(crate) struct Server {
    child: Child,
    /// Closed to end it.
    stdin: Option<ChildStdin>,
    out: BufReader<std::process::ChildStdout>,
    endpoint: String,
    dir: PathBuf,
}

impl Server {
    /// Serves the buckets below `dir`, with faults as [`Rule`] reads them.
    pub(crate) fn start(dir: &Path, faults: &[&str]) -> Outcome<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(SERVE).arg(dir).args(faults).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        let mut out = BufReader::new(child.stdout.take().ok_or("the server has no output")?);
        let mut endpoint = String::new();
        out.read_line(&mut endpoint)?;
        Ok(Server { child, stdin, out, endpoint: endpoint.trim().to_owned(), dir: dir.to_owned() })
    }

    /// Where it keeps its buckets.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Sets what an S3 client of this server needs.
    pub(crate) fn env<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.envs(self.settings())
    }

    /// The settings of [`Server::env`].
    pub(crate) fn settings(&self) -> [(&'static str, String); 5] {
        let options = Options::default();
        [
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", options.access_key),
            ("AWS_SECRET_ACCESS_KEY", options.secret_key),
        ]
    }

    /// CPU seconds so far.
    pub(crate) fn cpu(&self) -> Outcome<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field is a name in parentheses, which may hold anything; user and system time are the 14th and
        // 15th, in ticks.
        let rest = stat.rsplit_once(')').ok_or("an odd /proc/PID/stat")?.1;
        let ticks: Vec<f64> = rest.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
        Ok(ticks.iter().sum::<f64>() / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Ends it; answers with the bytes that it sent.
    pub(crate) fn stop(mut self) -> Outcome<u64> {
        self.stdin = None;
        let mut text = String::new();
        self.out.read_to_string(&mut text)?;
        self.child.wait()?;
        Ok(text.trim().parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stdin = None;
        // After `stop` it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server's own process: serves until its standard input closes.
pub(crate) fn serve(dir: &Path, faults: &[String]) -> Outcome<()> {
    let rules = faults.iter().map(|rule| rule.parse::<Rule>()).collect::<Result<_, _>>()?;
    let server = S3Server::start(dir, Options { rules, ..Options::default() })?;
    let mut out = std::io::stdout();
    writeln!(out, "{}", server.endpoint())?;
    out.flush()?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    let sent = server.counters().bytes_out;
    server.stop();
    writeln!(out, "{sent}")?;
    Ok(())
}
