//! Scripts and ports for real: what a [`World`](super::World) of a running site uses for
//! [`run_script`](super::World::run_script) and [`port_is_open`](super::World::port_is_open).

use std::time::Duration;

use super::world::{ScriptEnd, ScriptRun};
use crate::error::Result;
use crate::hypervisor::RunCommand;

/// Most bytes of a script's output that are kept, from its end.
pub const MAX_SCRIPT_OUTPUT: usize = 16 << 10;
/// Longest wait for a TCP connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Runs a script, with its output and error output joined in the order in which they ended.
///
/// # Errors
/// As [`RunCommand::run`].
pub async fn run_script(run: &ScriptRun) -> Result<ScriptEnd> {
    let command = RunCommand {
        command: run.command.clone(),
        environment: run.environment.clone(),
        input: Vec::new(),
        limit: run.limit,
        max_output: MAX_SCRIPT_OUTPUT,
        max_errors: MAX_SCRIPT_OUTPUT,
    };
    let end = command.run().await?;
    let mut output = String::from_utf8_lossy(&end.output).into_owned();
    if end.output_cut {
        output.push_str("\n(more output was not kept)");
    }
    if !output.is_empty() && !output.ends_with('\n') {
        output.push('\n');
    }
    output.push_str(&String::from_utf8_lossy(&end.errors));
    Ok(ScriptEnd { code: end.code, timed_out: end.timed_out, output })
}

/// Whether a TCP connection to the port is accepted now.
pub async fn port_is_open(host: &str, port: u16) -> bool {
    let connect = tokio::net::TcpStream::connect((host, port));
    matches!(tokio::time::timeout(CONNECT_LIMIT, connect).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn scripts_are_told_what_they_work_on_and_say_what_they_did() {
        let run = ScriptRun {
            command: vec!["/bin/sh".into(), "-c".into(), "echo \"for $FRESHET_VM\"; echo badly >&2; exit 3".into()],
            environment: [("FRESHET_VM".to_owned(), "web".to_owned())].into(),
            limit: Duration::from_secs(60),
        };
        let end = run_script(&run).await.unwrap();
        assert_eq!((end.code, end.output.as_str()), (Some(3), "for web\nbadly\n"));
        assert!(!end.is_success());
    }

    #[tokio::test]
    async fn ports_are_open_or_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(port_is_open("127.0.0.1", port).await);
        // Bound, so that nobody else gets the port, and without a listener.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(!port_is_open("127.0.0.1", silent.local_addr().unwrap().port()).await);
        assert!(!port_is_open("", 1).await);
    }
}
