//! Moving a running guest's disk to another place without stopping it: QEMU copies it, sends every write to both, and
//! then goes on with the copy alone.
//!
//! ```text
//! open the target -> mirror: copy, then follow -> caught up -> change over -> close what was before
//! ```
//!
//! Until the change-over the guest is on its old disk, and stays there whatever fails.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::command::{disk_device, disk_node};
use super::disk;
use super::qmp::Qmp;
use crate::error::{Error, ErrorKind, Result};

/// Time between two looks at the job.
const LOOK: Duration = Duration::from_millis(50);
/// How long the change-over may take once the copy has caught up.
const CHANGE_OVER: Duration = Duration::from_secs(60);

/// The block node for a move of disk `n`: its own for each try, so that one that an earlier try left is not taken for it.
pub(super) fn target_node(n: usize) -> String {
    format!("{}-{:08x}", disk_node(n), fastrand::u32(..))
}

fn job_of(node: &str) -> String {
    format!("move-{node}")
}

/// Moves disk `n` of the guest behind `qmp` to `uri`, opened as `target`, within `limit`.
///
/// # Errors
/// `Unreachable` where it takes longer, `Io` with QEMU's words where it fails. The guest is on its old disk then.
pub(super) async fn move_disk(
    qmp: &mut Qmp,
    n: usize,
    (target, uri): (&str, &str),
    reconnect: Duration,
    limit: Duration,
) -> Result<()> {
    let before = current(qmp, n).await?;
    qmp.execute("blockdev-add", disk::node(target, uri, reconnect.as_secs())?).await?;
    let moved = run(qmp, &job_of(target), &before, target, limit).await;
    match &moved {
        Ok(()) => close(qmp, &before).await,
        Err(_) => abandon(qmp, target).await,
    }
    moved
}

/// Settles a move that nobody brought to its end: whether the guest is on `target`. Where not, the move is given up.
pub(super) async fn settle(qmp: &mut Qmp, n: usize, target: &str) -> Result<bool> {
    if current(qmp, n).await? == target {
        return Ok(true);
    }
    abandon(qmp, target).await;
    // It may have changed over before it could be given up.
    Ok(current(qmp, n).await? == target)
}

/// Ends the job that moves to `target`, and closes that. Where either is gone already, that is no error here.
async fn abandon(qmp: &mut Qmp, target: &str) {
    let job = job_of(target);
    let _ = qmp.execute("block-job-cancel", json!({"device": job, "force": true})).await;
    if let Err(e) = until_gone(qmp, &job).await {
        tracing::warn!("{job} is given up and still there: {e}");
    }
    close(qmp, target).await;
}

async fn close(qmp: &mut Qmp, node: &str) {
    if let Err(e) = qmp.execute("blockdev-del", json!({"node-name": node})).await {
        tracing::debug!("block node {node} is not closed: {e}");
    }
}

async fn run(qmp: &mut Qmp, job: &str, source: &str, target: &str, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit;
    let mirror = json!({
        "job-id": job, "device": source, "target": target, "sync": "full", "copy-mode": "write-blocking",
        "on-source-error": "report", "on-target-error": "report", "auto-dismiss": false,
    });
    qmp.execute("blockdev-mirror", mirror).await?;
    loop {
        match look(qmp, job).await?.as_deref() {
            Some("ready") => break,
            Some("concluded") | None => return Err(failed(qmp, job).await),
            Some(_) if Instant::now() > until => {
                let why = format!("{job}: not caught up within {} s", limit.as_secs());
                return Err(Error::new(ErrorKind::Unreachable, why));
            }
            Some(_) => tokio::time::sleep(LOOK).await,
        }
    }
    qmp.execute("job-complete", json!({"id": job})).await?;
    let until = Instant::now() + CHANGE_OVER;
    while look(qmp, job).await?.as_deref() != Some("concluded") {
        if Instant::now() > until {
            return Err(Error::new(ErrorKind::Unreachable, format!("{job}: the change-over does not end")));
        }
        tokio::time::sleep(LOOK).await;
    }
    match error_of(qmp, job).await? {
        Some(_) => Err(failed(qmp, job).await),
        None => qmp.execute("job-dismiss", json!({"id": job})).await.map(drop),
    }
}

/// The node that disk `n` of the guest is on now.
async fn current(qmp: &mut Qmp, n: usize) -> Result<String> {
    let device = disk_device(n);
    let all = qmp.execute("query-block", json!({})).await?;
    let own = |block: &&Value| {
        let path = block["qdev"].as_str().unwrap_or_default();
        path == device || path.split('/').any(|part| part == device)
    };
    let node = all.as_array().into_iter().flatten().find(own).and_then(|block| block["inserted"]["node-name"].as_str());
    node.map(str::to_owned).ok_or_else(|| Error::new(ErrorKind::NotFound, format!("QEMU has no disk {device}")))
}

async fn job(qmp: &mut Qmp, id: &str) -> Result<Option<Value>> {
    let all = qmp.execute("query-jobs", json!({})).await?;
    Ok(all.as_array().into_iter().flatten().find(|job| job["id"] == id).cloned())
}

async fn look(qmp: &mut Qmp, id: &str) -> Result<Option<String>> {
    Ok(job(qmp, id).await?.and_then(|job| job["status"].as_str().map(str::to_owned)))
}

async fn error_of(qmp: &mut Qmp, id: &str) -> Result<Option<String>> {
    Ok(job(qmp, id).await?.and_then(|job| job["error"].as_str().map(str::to_owned)))
}

async fn failed(qmp: &mut Qmp, id: &str) -> Error {
    let why = error_of(qmp, id).await.ok().flatten().unwrap_or_else(|| "it ended without a word".to_owned());
    let _ = qmp.execute("job-dismiss", json!({"id": id})).await;
    Error::new(ErrorKind::Io, format!("{id}: {why}"))
}

/// Waits until a job that was cancelled is gone.
async fn until_gone(qmp: &mut Qmp, id: &str) -> Result<()> {
    let until = Instant::now() + CHANGE_OVER;
    while let Some(status) = look(qmp, id).await? {
        if status == "concluded" {
            qmp.execute("job-dismiss", json!({"id": id})).await?;
        } else if Instant::now() > until {
            return Err(Error::new(ErrorKind::Unreachable, format!("{id} does not end")));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixStream;

    use super::super::lines::Lines;
    use super::*;

    /// A monitor of a guest with one disk, whose mirror becomes ready at once and ends with `error` when it is completed.
    async fn peer(stream: UnixStream, error: Option<&'static str>) -> Vec<String> {
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read).lines();
        write.write_all(b"{\"QMP\":{\"version\":{}}}\n").await.unwrap();
        let (mut jobs, mut node, mut orders) = (json!([]), "before".to_owned(), Vec::new());
        while let Ok(Some(line)) = read.next_line().await {
            let order: Value = serde_json::from_str(&line).unwrap();
            let args = &order["arguments"];
            let word = order["execute"].as_str().unwrap();
            let answer = match word {
                "query-block" => json!([{"qdev": disk_device(0), "inserted": {"node-name": node}}]),
                "query-jobs" => jobs.clone(),
                "blockdev-mirror" => {
                    jobs = json!([{"id": args["job-id"], "status": "ready"}]);
                    json!({})
                }
                "job-complete" => {
                    jobs[0]["status"] = "concluded".into();
                    match error {
                        Some(error) => jobs[0]["error"] = error.into(),
                        None => node = "after".to_owned(),
                    }
                    json!({})
                }
                "job-dismiss" => {
                    jobs = json!([]);
                    json!({})
                }
                _ => json!({}),
            };
            orders.push(format!("{word} {}", args["node-name"].as_str().unwrap_or_default()).trim().to_owned());
            let answer = json!({"return": answer, "id": order["id"]});
            write.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
        orders
    }

    async fn moved(error: Option<&'static str>) -> (Result<()>, Vec<String>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let peer = tokio::spawn(peer(theirs, error));
        let mut qmp = Qmp::greet(Lines::over(ours, Duration::from_secs(10))).await.unwrap();
        let target = ("after", "nbd+unix:///web/root?socket=/s");
        let moved = move_disk(&mut qmp, 0, target, Duration::from_secs(60), Duration::from_secs(60)).await;
        drop(qmp);
        (moved, peer.await.unwrap())
    }

    #[tokio::test]
    async fn the_node_that_the_guest_is_not_on_is_closed_and_a_change_over_that_failed_is_an_error() {
        let (done, orders) = moved(None).await;
        done.unwrap();
        assert_eq!(orders.last().unwrap(), "blockdev-del before");
        assert!(orders.contains(&"job-dismiss".to_owned()), "{orders:?}");

        let (done, orders) = moved(Some("No space left on device")).await;
        let error = done.unwrap_err();
        assert!(error.kind() == ErrorKind::Io && error.to_string().contains("No space left"), "{error}");
        assert_eq!(orders.last().unwrap(), "blockdev-del after");
        assert!(!orders.contains(&"blockdev-del before".to_owned()), "{orders:?}");
        assert!(orders.contains(&"job-dismiss".to_owned()), "{orders:?}");
    }
}
