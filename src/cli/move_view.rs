//! How far the disks of a VM are on their way, onto exports or back: for people, in the manner of tasks.

use std::time::Duration;

use super::context::Context;
use super::output::is_interactive;
use super::task_view::{TaskView, lines};
use crate::control::proto::{GetDomainRequest, Move, TaskDiskProgress, TaskProgress};
use crate::control::{Client, move_words};

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// The whole first, then its disks.
pub(super) fn move_lines(moved: &Move) -> Vec<String> {
    lines(&progress(moved))
}

fn progress(moved: &Move) -> TaskProgress {
    let disks = moved.disks.iter().map(|disk| TaskDiskProgress {
        disk: format!("{} ({})", disk.name, move_words(disk.phase())),
        done_bytes: disk.done_bytes,
        total_bytes: disk.total_bytes,
        rate_bytes: disk.rate_bytes,
        eta_s: disk.eta_s,
    });
    let way = if moved.back { "back off its exports" } else { "onto its exports" };
    TaskProgress {
        stage: format!("{way}, {}", move_words(moved.phase())),
        done_bytes: moved.done_bytes,
        total_bytes: moved.total_bytes,
        rate_bytes: moved.rate_bytes,
        eta_s: moved.eta_s,
        eta_basis: String::new(),
        disks: disks.collect(),
    }
}

/// Waits for an answer about a VM; on a terminal it shows how far its disks are meanwhile.
pub(super) async fn shown_meanwhile<T>(
    client: &Client,
    domain: &str,
    vm: &str,
    context: &Context,
    answer: impl Future<Output = T>,
) -> T {
    if context.output.is_json() || !is_interactive() {
        return answer.await;
    }
    let mut view = TaskView::new();
    let mut answer = std::pin::pin!(answer);
    loop {
        let look = async {
            tokio::time::sleep(LOOK).await;
            let request = GetDomainRequest { name: domain.to_owned(), fresh: false };
            // Where that cannot be told now, nothing is shown: the answer says what is wrong.
            let shown = client.domains().get_domain(request).await.ok()?.into_inner().domain?;
            shown.vms.into_iter().find(|one| one.name == vm)?.r#move
        };
        tokio::select! {
            done = &mut answer => return done,
            moved = look => view.show(moved.as_ref().map(progress).as_ref()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::proto::{MovePhase, MovingDisk};

    #[test]
    fn phase_rate_and_time_left_are_told_of_each_disk() {
        let disk = |name: &str, phase: MovePhase, done_bytes| MovingDisk {
            name: name.to_owned(),
            phase: phase.into(),
            done_bytes,
            total_bytes: 4 << 20,
            rate_bytes: Some(1 << 20),
            eta_s: Some(3),
        };
        let moved = Move {
            phase: MovePhase::Copying.into(),
            back: false,
            done_bytes: 5 << 20,
            total_bytes: 8 << 20,
            rate_bytes: Some(2 << 20),
            eta_s: Some(2),
            disks: vec![disk("vda", MovePhase::Copying, 1 << 20), disk("vdb", MovePhase::Copying, 4 << 20)],
        };
        let shown = [
            "onto its exports, copying: 5.0 MiB of 8.0 MiB  62%  2.0 MiB/s  ETA 2s",
            "  vda (copying)  1.0 MiB of 4.0 MiB  25%  1.0 MiB/s  ETA 3s",
            "  vdb (copying)  4.0 MiB of 4.0 MiB 100%  1.0 MiB/s  ETA 3s",
        ];
        assert_eq!(move_lines(&moved), shown);
        let back = Move { back: true, phase: MovePhase::Leaving.into(), disks: Vec::new(), ..moved };
        assert!(move_lines(&back)[0].starts_with("back off its exports, leaving: "), "{:?}", move_lines(&back));
    }
}
