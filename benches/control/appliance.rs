//! A `freshet serve` of the second site: started, spoken to, and killed when the bench ends, however that is.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use freshet::control::{Client, Target};

pub(crate) struct Appliance {
    child: Child,
    client: Client,
}

impl Drop for Appliance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Appliance {
    /// Starts it with a state below `dir`, and waits until it is ready.
    pub(crate) async fn start(dir: &Path, environment: &[(String, String)], more: &str) -> Appliance {
        let at = |what: &str| dir.join(what).display().to_string();
        let (state, socket, nbd) = (at("state"), at("socket"), at("nbd"));
        let settings = format!(
            "site = \"second\"\nstate = \"{state}\"\n[listen]\nsocket = \"{socket}\"\n[protect]\nsocket_dir = \"{nbd}\"\n{more}"
        );
        std::fs::write(dir.join("settings"), settings).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_freshet"));
        command.args(["--json", "serve", "--config"]).arg(dir.join("settings")).envs(environment.iter().cloned());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("ready"), "{line}");
        let client = Client::connect(&Target::Socket(dir.join("socket"))).await.unwrap();
        Appliance { child, client }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Seconds of CPU that it has used, and its resident bytes.
    pub(crate) fn used(&self) -> (f64, u64) {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let after_name: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // Fields 14, 15 and 24 of proc(5); the first one after the name is the third.
        let field = |n: usize| after_name[n - 3].parse::<u64>().unwrap();
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        ((field(14) + field(15)) as f64 / ticks, field(24) * rustix::param::page_size() as u64)
    }
}
