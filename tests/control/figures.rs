//! The Prometheus endpoint of a running appliance.

use std::io::{Read, Write};

use freshet::control::METRICS;

use super::appliance::{MIB, PATIENCE, Place};

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
    for line in text.lines().filter(|line| line.starts_with("# TYPE freshet")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(METRICS.iter().any(|metric| metric.name == name), "{name} is not in the table");
    }
    assert!(get(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 404"));
    assert!(get(address, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").starts_with("HTTP/1.1 405"));
    assert!(first.stop().success());
}
