//! The Prometheus endpoint of a running appliance.

use std::io::{Read, Write};

use freshet::control::METRICS;

use super::appliance::{Appliance, MIB, PATIENCE, Place};
use freshet::s3_server::{Fault, Options, Rule, S3Server, Verb, When};

/// The value of a figure on a page; `None` where it is not there.
pub(crate) fn value(text: &str, figure: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.strip_prefix(figure).is_some_and(|rest| rest.starts_with(' ')))?;
    Some(line.rsplit(' ').next().unwrap().trim().parse().unwrap())
}

/// The page of an appliance.
pub(crate) fn page(of: &Appliance) -> String {
    get(of.ready["metrics"].as_str().unwrap(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
}

fn get(address: &str, request: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn figures_are_told_by_the_names_of_the_table_and_tell_what_is_so() {
    let place = Place::new();
    let image = place.image("root");
    let first = place.serve_with("first", "metrics = \"127.0.0.1:0\"\n");
    first.protect(&place, &image);
    first.until_recoverable("d");
    first.guest(&place, "first").write(MIB, &[3; 4096]).unwrap();
    first.ask(&["domain", "point", "d"]).good();
    let address = first.ready["metrics"].as_str().unwrap();
    let text = get(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    let value = |line: &str| {
        let found = text.lines().find(|l| l.starts_with(line)).unwrap_or_else(|| panic!("no {line} in {text}"));
        found.rsplit(' ').next().unwrap().trim().parse::<f64>().unwrap()
    };
    assert_eq!(value("freshet_domain_info{domain=\"d\",store=\"s\",mode=\"Protected\",status=\"Recoverable\"}"), 1.0);
    assert_eq!(value("freshet_disk_size_bytes{domain=\"d\",vm=\"web\",disk=\"root\"}"), 4.0 * MIB as f64);
    assert!(value("freshet_disk_written_bytes_total{domain=\"d\",vm=\"web\",disk=\"root\"}") >= 4096.0);
    assert!(value("freshet_domain_shipped_segments_total{domain=\"d\"}") >= 1.0);
    assert!(value("freshet_store_requests_total{store=\"s\",kind=\"put\"}") >= 1.0);
    assert!(value("freshet_domain_point{domain=\"d\"}") >= 1.0);
    let rpo = |name: &str, labels: &str| value(&format!("{name}{{domain=\"d\",vm=\"web\"{labels}}}"));
    assert_eq!(rpo("freshet_disk_rpo_seconds", ",disk=\"root\""), rpo("freshet_vm_rpo_seconds", ""));
    let part = |name: &str, part: &str| value(&format!("{name}{{domain=\"d\",part=\"{part}\"}}"));
    let mut sum = 0.0;
    for of in ["requests", "open-segments", "sealed-segments"] {
        let (used, size) = (part("freshet_domain_memory_used_bytes", of), part("freshet_domain_memory_size_bytes", of));
        assert!(used <= size && size >= 8.0 * MIB as f64, "{of}: {text}");
        sum += size;
    }
    assert!(sum <= 128.0 * MIB as f64, "the parts are within protect.memory: {text}");
    for line in text.lines().filter(|line| line.starts_with("# TYPE freshet")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(METRICS.iter().any(|metric| metric.name == name), "{name} is not in the table");
    }
    assert!(get(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 404"));
    assert!(get(address, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").starts_with("HTTP/1.1 405"));
    assert!(first.stop().success());
}

/// An options file with what a client of `server` needs.
pub(crate) fn options_file(place: &Place, server: &S3Server) -> String {
    let known = ["AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    let lines = server.env().into_iter().filter(|(name, _)| known.contains(&name.as_str()));
    let mut options: String = lines.map(|(name, value)| format!("{name}={value}\n")).collect();
    options.push_str("RETRY_PAUSE=10ms\nRETRY_TRIES=4\nHEDGE=off\n");
    std::fs::write(place.path("options"), options).unwrap();
    place.path("options").display().to_string()
}

/// Operations of a storage site that took longer than a quarter of a second.
fn slow(text: &str, operation: &str) -> f64 {
    let labels = format!("store=\"s\",operation=\"{operation}\"");
    let all = value(text, &format!("freshet_store_operation_seconds_count{{{labels}}}")).unwrap();
    all - value(text, &format!("freshet_store_operation_seconds_bucket{{le=\"0.25\",{labels}}}")).unwrap()
}

#[test]
fn what_a_store_does_badly_shows_in_latencies_failed_tries_and_failed_operations() {
    let place = Place::new();
    let server = S3Server::start(&place.path("objects"), Options::default()).unwrap();
    let file = options_file(&place, &server);
    let first = place.serve_with("first", "metrics = \"127.0.0.1:0\"\n");
    first.ask(&["store", "add", "s", "--url", &server.url("site"), "--options-file", &file]).good();
    first.ask(&["domain", "create", "d", "--store", "s"]).good();
    let disk = format!("root={}", place.image("root").display());
    first.ask(&["vm", "protect", "d", "web", "--disk", &disk]).good();
    first.until_recoverable("d");
    let before = page(&first);
    let count = "freshet_store_operation_seconds_count{store=\"s\",operation=\"put\"}";
    assert!(value(&before, count).unwrap() >= 3.0, "{before}");
    assert!(value(&before, "freshet_store_operation_seconds_sum{store=\"s\",operation=\"get\"}").unwrap() > 0.0);

    // Slow, and asking for fewer requests: nothing fails for good.
    server.faults().set([
        Rule::new(Fault::Latency(PATIENCE / 150)).verb(Verb::Get),
        Rule::new(Fault::SlowDown).verb(Verb::Put).when(When::Every(2)),
    ]);
    first.guest(&place, "first").write(MIB, &[3; 4096]).unwrap();
    first.ask(&["domain", "point", "d"]).good();
    first.guest(&place, "first").write(MIB, &[4; 4096]).unwrap();
    first.ask(&["domain", "point", "d"]).good();
    let during = page(&first);
    assert!(slow(&during, "get") > slow(&before, "get"), "{during}");
    let throttled = "freshet_store_failed_tries_total{store=\"s\",reason=\"throttled\"}";
    assert_eq!(value(&before, throttled), None, "{before}");
    assert!(value(&during, throttled).unwrap() >= 1.0, "{during}");

    // Refused: what was asked fails, and is told with its kind.
    server.faults().set([Rule::new(Fault::Deny)]);
    first.ask(&["store", "scan", "s"]).bad(8);
    let refused = page(&first);
    let denied = "freshet_store_failed_operations_total{store=\"s\",operation=\"list\",kind=\"denied\"}";
    assert_eq!(value(&during, denied), None);
    assert!(value(&refused, denied).unwrap() >= 1.0, "{refused}");
    assert!(
        value(&refused, "freshet_store_failed_tries_total{store=\"s\",reason=\"denied\"}").unwrap() >= 1.0,
        "{refused}"
    );
    server.faults().clear();
    first.until_recoverable("d");
    assert!(first.stop().success());
}
