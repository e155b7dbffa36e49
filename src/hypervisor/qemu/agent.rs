//! The agent inside a guest: asked to shut it down, to freeze and thaw its file systems, or for its addresses, where it
//! answers. What it says is the guest's word: bounded, and used for nothing but what an operator asked to be told.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::lines::Lines;
use crate::error::{Error, ErrorKind, Result};
use crate::hypervisor::MAX_ADDRESSES;

/// How long a guest that has an agent may take to answer.
const WITHIN: Duration = Duration::from_secs(2);

/// Asks the agent to shut the guest down. Whether there is one that took the wish: not whether the guest follows it.
pub(super) async fn shut_down(dir: &Path, name: &str) -> bool {
    let what = format!("guest agent {}", dir.join(name).display());
    let asked = async { ask(Lines::connect(dir, name, what, WITHIN).await?, WITHIN).await };
    asked.await.unwrap_or_else(|error| {
        tracing::debug!("no agent shuts it down: {error}");
        false
    })
}

/// Has the agent run `command`, within `limit`. What it answers; `None` where there is none, and nothing was begun.
///
/// # Errors
/// `Unreachable` where it does not answer in time, `Io` with its words where it refuses.
pub(super) async fn call(dir: &Path, name: &str, command: &str, limit: Duration) -> Result<Option<Value>> {
    let what = format!("guest agent {}", dir.join(name).display());
    match Lines::connect(dir, name, what, WITHIN.min(limit)).await {
        Ok(lines) => run(lines, command, limit).await,
        Err(_) => Ok(None),
    }
}

/// The addresses in the answer to `guest-network-get-interfaces`. What is none is passed over.
pub(super) fn addresses(interfaces: &Value) -> Vec<IpAddr> {
    let cards = interfaces.as_array().into_iter().flatten();
    let given = cards.flat_map(|card| card["ip-addresses"].as_array().into_iter().flatten());
    let read = |address: &Value| address["ip-address"].as_str()?.split('%').next()?.parse().ok();
    given.filter_map(read).take(MAX_ADDRESSES).collect()
}

async fn run(mut lines: Lines, command: &str, limit: Duration) -> Result<Option<Value>> {
    if !greet(&mut lines).await? {
        return Ok(None);
    }
    lines.set_limit(limit);
    lines.send(format!("{}\n", json!({ "execute": command })).as_bytes()).await?;
    let answer = lines.receive(is_answer).await.map_err(|e| e.while_doing(command))?;
    match answer.get("error") {
        None => Ok(answer.get("return").cloned()),
        Some(error) => {
            let why = format!("{} does not {command}: {}", lines.what(), words_of(error));
            Err(Error::new(ErrorKind::Io, why))
        }
    }
}

/// Whether it took the wish; an error where it could not be told of it.
async fn ask(mut lines: Lines, limit: Duration) -> Result<bool> {
    if !greet(&mut lines).await? {
        return Ok(false);
    }
    let command = json!({"execute": "guest-shutdown", "arguments": {"mode": "powerdown"}});
    lines.send(format!("{command}\n").as_bytes()).await?;
    // It answers nothing to this where it does as it is told, and at once where it does not.
    lines.set_limit(limit);
    let Ok(answer) = lines.receive(is_answer).await else { return Ok(true) };
    match answer.get("error") {
        None => Ok(true),
        Some(error) => {
            tracing::info!("{} does not shut the guest down: {}", lines.what(), words_of(error));
            Ok(false)
        }
    }
}

fn is_answer(object: &Value) -> bool {
    object.get("return").is_some() || object.get("error").is_some()
}

/// Why an agent refuses.
fn words_of(error: &Value) -> &str {
    error["desc"].as_str().unwrap_or("it does not say why")
}

/// Whether an agent answers.
async fn greet(lines: &mut Lines) -> Result<bool> {
    let id = u64::from(fastrand::u32(..));
    // The first byte ends whatever half of a command somebody left before.
    let hello = format!("\u{0}{}\n", json!({"execute": "guest-sync-delimited", "arguments": {"id": id}}));
    let mut hello = hello.into_bytes();
    hello[0] = 0xff;
    lines.send(&hello).await?;
    let own = |object: &Value| object.get("return") == Some(&Value::from(id));
    Ok(lines.receive(own).await.is_ok())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test]
    async fn an_agent_takes_the_wish_where_it_does_not_refuse_and_a_silent_one_is_not_asked() {
        const LONG: Duration = Duration::from_secs(60);
        // What it says to the wish, how long that is waited for, and whether it took it.
        for (says, within, taken) in [
            // Nothing, and the conversation goes on.
            (Some(""), Duration::from_millis(50), true),
            (Some("{\"return\":{}}\n"), LONG, true),
            (Some("{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"disabled\"}}\n"), LONG, false),
            // It ends with its guest.
            (None, LONG, true),
        ] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let agent = tokio::spawn(async move {
                let mut text = vec![0; 4096];
                let n = theirs.read(&mut text).await.unwrap();
                assert_eq!(text[0], 0xff);
                let asked: Value = serde_json::from_slice(&text[1..n]).unwrap();
                theirs.write_all(b"{\"return\":1}\nhalf\xff").await.unwrap();
                let greeting = format!("{}\n", json!({"return": asked["arguments"]["id"]}));
                theirs.write_all(greeting.as_bytes()).await.unwrap();
                let n = theirs.read(&mut text).await.unwrap();
                let asked: Value = serde_json::from_slice(&text[..n]).unwrap();
                theirs.write_all(says.unwrap_or_default().as_bytes()).await.unwrap();
                (asked, says.map(|_| theirs))
            });
            assert_eq!(ask(Lines::over(ours, LONG), within).await.unwrap(), taken, "{says:?}");
            assert_eq!(agent.await.unwrap().0["execute"], "guest-shutdown");
        }
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(!ask(Lines::over(ours, Duration::from_millis(50)), LONG).await.unwrap());
        let dir = tempfile::tempdir().unwrap();
        assert!(!shut_down(dir.path(), "none").await);
    }

    #[tokio::test]
    async fn what_an_agent_refuses_is_told() {
        for (says, good) in [("{\"return\":2}\n", true), ("{\"error\":{\"desc\":\"frozen\"}}\n", false)] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let agent = tokio::spawn(async move {
                let mut text = vec![0; 4096];
                let n = theirs.read(&mut text).await.unwrap();
                let asked: Value = serde_json::from_slice(&text[1..n]).unwrap();
                theirs
                    .write_all(format!("{}\n", json!({"return": asked["arguments"]["id"]})).as_bytes())
                    .await
                    .unwrap();
                let n = theirs.read(&mut text).await.unwrap();
                assert!(text[..n].starts_with(b"{\"execute\":\"guest-fsfreeze-freeze\"}"));
                theirs.write_all(says.as_bytes()).await.unwrap();
            });
            let lines = Lines::over(ours, Duration::from_secs(60));
            let ran = run(lines, "guest-fsfreeze-freeze", Duration::from_secs(60)).await;
            agent.await.unwrap();
            match good {
                true => assert_eq!(ran.unwrap(), Some(2.into())),
                false => assert!(ran.unwrap_err().to_string().contains("guest-fsfreeze-freeze: frozen")),
            }
        }
    }

    #[test]
    fn addresses_are_read_from_whatever_a_guest_says() {
        let said = json!([
            {"name": "lo", "ip-addresses": [{"ip-address-type": "ipv4", "ip-address": "127.0.0.1", "prefix": 8}]},
            {"name": "eth0", "hardware-address": "52:54:00:12:34:56", "ip-addresses": [
                {"ip-address": "10.0.0.5", "prefix": 24}, {"ip-address": "fe80::1%eth0"}, {"ip-address": "nonsense"},
                {"ip-address": 7}, {}, "10.0.0.6"]},
            {"name": "eth1"}, 7, null,
        ]);
        let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(addresses(&said), read(&["127.0.0.1", "10.0.0.5", "fe80::1"]));
        for bad in [json!(null), json!({}), json!("x"), json!([[]]), json!([{"ip-addresses": {}}])] {
            assert_eq!(addresses(&bad), read(&[]), "{bad}");
        }
        let many = json!([{"ip-addresses": vec![json!({"ip-address": "10.0.0.5"}); MAX_ADDRESSES + 1]}]);
        assert_eq!(addresses(&many).len(), MAX_ADDRESSES);
    }
}
