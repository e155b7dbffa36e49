//! What is measured, one table each.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::guest::{Latency, fill, random_writes};
use crate::landed::{Ages, Follower};
use crate::servers::{Kind, Server, empty, make_image};
use crate::{Arguments, Cache, Outcome};
use freshet::s3_server::{Options, Rule, S3Server};

/// MB/s that the guest writes.
const RATE: u64 = 50;
/// MB/s that the storage site takes in the overload.
const UPLINK: u64 = 10;

/// The median with least and most.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(least), Some(median), Some(most)) => format!("{median:.0} ({least:.0} to {most:.0})"),
        _ => "-".to_owned(),
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A storage site that goes with this.
struct Site(PathBuf);

impl Drop for Site {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Latency at a fixed rate, beside the peers; then first touch, age and cost of ours.
pub(crate) fn latency(arguments: &Arguments) -> Outcome<()> {
    let dir = &arguments.dir;
    let image = dir.join("image.raw");
    make_image(&image)?;
    // A storage site is elsewhere: here it must not share the disk with the guests.
    let site = arguments.store.join(format!("freshet-bench-{}", std::process::id()));
    std::fs::create_dir_all(&site)?;
    let site = Site(site);
    let store = format!("file://{}", site.0.display());
    let kinds = Kind::here();
    let mut runs: Vec<Vec<Latency>> = vec![Vec::new(); kinds.len()];
    let (mut ages, mut cpu, mut first) = (Vec::<Ages>::new(), Vec::new(), Vec::<Latency>::new());
    let mut report = Value::Null;
    for round in 0..arguments.rounds {
        for (kind, runs) in kinds.iter().zip(&mut runs) {
            if *kind != Kind::Protect {
                let server = Server::peer(*kind, arguments.cache, &image, dir)?;
                runs.push(random_writes(&server.uri, Some(RATE), arguments.seconds)?);
                server.stop()?;
                continue;
            }
            // The first start syncs the disk, later ones find it marked nowhere: regions are touched for the first time.
            let server = Server::protect(&image, dir, &store, &[], "4GiB", arguments.cache)?;
            std::thread::sleep(Duration::from_secs(if round == 0 { 15 } else { 2 }));
            first.push(random_writes(&server.uri, Some(RATE), 2)?);
            fill(&server.uri)?;
            std::thread::sleep(Duration::from_secs(5));
            let (before, began) = (server.cpu()?, Instant::now());
            let latency = random_writes(&server.uri, Some(RATE), arguments.seconds)?;
            cpu.push((server.cpu()? - before) * 1e3 / (latency.rate * began.elapsed().as_secs_f64()));
            runs.push(latency);
            // Once more with the other site on the same machine and disk, for its ages only.
            let mut follower = Follower::start(&store, &empty(dir, "datastore")?)?;
            follower.until_caught_up()?;
            let began = Instant::now();
            random_writes(&server.uri, Some(RATE), arguments.seconds)?;
            ages.push(follower.ages(began + Duration::from_secs(1))?);
            report = server.stop()?;
        }
    }
    println!(
        "\nrandom writes of 4 to 64 KiB at {RATE} MB/s, 16 deep, {:?}; {} rounds of {} s",
        arguments.cache, arguments.rounds, arguments.seconds
    );
    println!("{:32}{:>24}{:>26}{:>10}", "", "p50 us", "p99 us", "MB/s");
    for (kind, runs) in kinds.iter().zip(&runs) {
        show(kind.name(), runs);
    }
    show("freshet protect, first touch", &first);
    let best = |of: fn(&Latency) -> f64| {
        let peers = kinds.iter().zip(&runs).filter(|(kind, _)| **kind != Kind::Protect);
        peers.map(|(_, runs)| median(runs.iter().map(of))).fold(f64::INFINITY, f64::min)
    };
    if let Some(ours) = runs.last() {
        let ratio = |of: fn(&Latency) -> f64| median(ours.iter().map(of)) / best(of);
        println!("of the better peer's: p50 {:.2}, p99 {:.2}", ratio(|l| l.p50), ratio(|l| l.p99));
    }
    let of = |pick: fn(&Ages) -> f64| median(ages.iter().map(pick));
    let most = ages.iter().map(|a| a.most).fold(0.0, f64::max);
    println!(
        "age of the newest landed point, s: p50 {:.2}, p99.9 {:.2}, most {most:.2}",
        of(|a| a.p50),
        of(|a| a.p999)
    );
    println!("CPU of freshet protect: {:.2} ms for each MB written", median(cpu.into_iter()));
    costs(&report);
    Ok(())
}

fn show(name: &str, runs: &[Latency]) {
    let p = |of: fn(&Latency) -> f64| spread(runs.iter().map(of).collect());
    println!("{name:32}{:>24}{:>26}{:>10.0}", p(|l| l.p50), p(|l| l.p99), median(runs.iter().map(|l| l.rate)));
}

/// What users pay for.
fn costs(report: &Value) {
    let number = |name: &str| report[name].as_f64().unwrap_or_default();
    let requests = |name: &str| report["requests"][name].as_f64().unwrap_or_default();
    let minutes = (requests("seconds") / 60.0).max(1e-9);
    println!(
        "the last run: {:.2} bytes shipped for each written, frames compressed {:.2} to 1, {:.0} PUTs and {:.0} GETs a minute, \
         {} syncs of the bitmap",
        number("stored") / number("written").max(1.0),
        number("raw") / number("stored").max(1.0),
        requests("puts") / minutes,
        requests("gets") / minutes,
        report["bitmap_syncs"],
    );
}

/// More than the storage site takes, until the log is full; then nothing, until all is well again.
pub(crate) fn overload(arguments: &Arguments) -> Outcome<()> {
    let dir = &arguments.dir;
    let image = dir.join("image.raw");
    make_image(&image)?;
    let rule: Rule = format!("bandwidth={}", UPLINK * 1_000_000).parse()?;
    let options = Options { rules: vec![rule], ..Options::default() };
    let keys = (options.access_key.clone(), options.secret_key.clone());
    let s3 = S3Server::start(&empty(dir, "s3")?, options)?;
    let envs = [
        ("AWS_ENDPOINT_URL", s3.endpoint().to_owned()),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", keys.0),
        ("AWS_SECRET_ACCESS_KEY", keys.1),
    ];
    let _ = std::fs::remove_dir_all(dir.join("state"));
    let mut server = Server::protect(&image, dir, "s3://freshet/bench", &envs, "1GiB", Cache::Direct)?;
    let recoverable = |event: &Value| event["status"] == "Recoverable" && event["mode"] == "normal";
    server.until(recoverable)?;
    let began = Instant::now();
    let latency = random_writes(&server.uri, None, arguments.seconds * 3)?;
    let wrote = began.elapsed().as_secs_f64();
    // Then nothing waits any more, and a point covers all again.
    let mut modes = std::collections::BTreeSet::new();
    let back = loop {
        let status = server.status(dir)?;
        modes.insert(status["mode"].as_str().unwrap_or_default().to_owned());
        if status["status"] == "Recoverable" && status["mode"] == "normal" && status["waiting_segments"] == 0 {
            break began.elapsed().as_secs_f64() - wrote;
        }
        if began.elapsed() > Duration::from_secs(1200) {
            return Err("it never became recoverable again".into());
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    println!("\nguests write {:.0} MB/s for {wrote:.0} s, the storage site takes {UPLINK} MB/s", latency.rate);
    println!("longest write {:.0} ms, p99 {:.1} ms", latency.most / 1e3, latency.p99 / 1e3);
    println!(
        "modes after the last write: {}; recoverable again {back:.0} s after it",
        Vec::from_iter(modes).join(", ")
    );
    println!("peak memory {} MiB (budget 512 MiB)", server.peak()? >> 20);
    costs(&server.stop()?);
    Ok(())
}
