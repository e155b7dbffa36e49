//! How a failover that was watched is told: what was done, and a table of what was lost and how long it took.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::demo::guest::{GuestDemoReport, Recovery};

pub(super) fn json(done: &GuestDemoReport, kept: bool) -> Value {
    let stages = done.stages.iter().map(|s| json!({ "at": s.at, "seconds": s.seconds, "what": s.what }));
    let recovery = |r: &Recovery| {
        json!({
            "acknowledged_rows": r.acknowledged,
            "landed_rows": r.landed,
            "found_rows": r.found,
            "boots": r.boots,
            "rpo": { "rows": r.lost_rows, "seconds": r.rpo_seconds },
            "rto": {
                "seconds": r.rto_seconds,
                "steps": r.steps.iter().map(|(name, s)| json!({ "step": name, "seconds": s })).collect::<Vec<_>>(),
                "shorter_steps_seconds": r.short_seconds,
                "boot_seconds": r.boot_seconds,
            },
        })
    };
    json!({
        "dir": done.dir,
        "kept": kept,
        "hypervisor": done.hypervisor,
        "stages": stages.collect::<Vec<_>>(),
        "boot_seconds": done.boot_seconds,
        "live_protection": { "longest_pause_seconds": done.live_pause_seconds },
        "forced": recovery(&done.forced),
        "planned": recovery(&done.planned),
        "store_requests": done.store_requests,
    })
}

pub(super) fn text(done: &GuestDemoReport) -> String {
    let mut out = format!("guests run on {}\n", done.hypervisor);
    for stage in &done.stages {
        out += &format!("{:7.1} s  {} ({:.1} s)\n", stage.at, stage.what, stage.seconds);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["", "forced failover", "planned failback"]);
    let both = |of: &dyn Fn(&Recovery) -> String| [of(&done.forced), of(&done.planned)];
    let mut row = |name: &str, cells: [String; 2]| {
        let [forced, planned] = cells;
        table.add_row([name.to_owned(), forced, planned]);
    };
    row("rows acknowledged before", both(&|r| r.acknowledged.to_string()));
    row("rows found after", both(&|r| r.found.to_string()));
    row("RPO, rows", both(&|r| r.lost_rows.to_string()));
    row("RPO, seconds", both(&|r| format!("{:.2}", r.rpo_seconds)));
    row("RTO, seconds until both guests serve", both(&|r| format!("{:.2}", r.rto_seconds)));
    let mut names: Vec<&String> = Vec::new();
    for (name, _) in done.forced.steps.iter().chain(&done.planned.steps) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for name in names {
        let took = |r: &Recovery| {
            let seconds: f64 = r.steps.iter().filter(|(own, _)| own == name).map(|(_, seconds)| seconds).sum();
            if seconds > 0.0 { format!("{seconds:.2}") } else { String::new() }
        };
        row(&format!("  of it: {name}"), both(&took));
    }
    row("  of it: shorter steps", both(&|r| format!("{:.2}", r.short_seconds)));
    row("  of it: the guests' boot", both(&|r| format!("{:.2}", r.boot_seconds)));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    out += &format!("\n{}\n\n", table.trim_fmt());
    out += &format!(
        "a plain boot of both guests took {:.2} s; while their disks moved under protection the longest time without a \
         row was {:.2} s\n",
        done.boot_seconds, done.live_pause_seconds
    );
    if let Some(requests) = done.store_requests {
        out += &format!("the S3 server between both sites answered {requests} requests\n");
    }
    out
}
