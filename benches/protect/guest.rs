//! The guest: fio's nbd engine, and what it says of its writes.

use std::process::Command;

use crate::Outcome;
use crate::process::run;

/// Latencies of writes in microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) most: f64,
    /// Megabytes a second that were written.
    pub(crate) rate: f64,
}

/// Random writes of 4 to 64 KiB over the first gibibyte of an export, at most `rate` MB/s, for `seconds`.
pub(crate) fn random_writes(uri: &str, rate: Option<u64>, seconds: u64) -> Outcome<Latency> {
    let mut fio = Command::new("fio");
    fio.args(["--name=guest", "--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-64k", "--size=1g", "--iodepth=16"]);
    fio.args(["--time_based", "--buffer_compress_percentage=50", "--refill_buffers", "--output-format=json"]);
    fio.arg(format!("--uri={uri}")).arg(format!("--runtime={seconds}"));
    if let Some(rate) = rate {
        fio.arg(format!("--rate={}", rate * 1_000_000));
    }
    let report = run(&mut fio)?.json()?;
    let write = &report["jobs"][0]["write"];
    if report["jobs"][0]["error"] != 0 {
        return Err(format!("the guest saw error {}", report["jobs"][0]["error"]).into());
    }
    let latency = &write["lat_ns"];
    let percentile = |p: &str| write["clat_ns"]["percentile"][p].as_f64().unwrap_or_default() / 1e3;
    Ok(Latency {
        p50: percentile("50.000000"),
        p99: percentile("99.000000"),
        most: latency["max"].as_f64().unwrap_or_default() / 1e3,
        rate: write["bw_bytes"].as_f64().unwrap_or_default() / 1e6,
    })
}

/// Writes the first gibibyte once, in order.
pub(crate) fn fill(uri: &str) -> Outcome<()> {
    let mut fio = Command::new("fio");
    fio.args(["--name=fill", "--ioengine=nbd", "--rw=write", "--bs=1m", "--size=1g", "--iodepth=8"]);
    fio.args(["--buffer_compress_percentage=50", "--refill_buffers"]).arg(format!("--uri={uri}"));
    run(&mut fio).map(drop)
}
