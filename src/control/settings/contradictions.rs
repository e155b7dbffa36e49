//! Settings that are right each by itself and cannot be so together. Pure; what only files tell is checked elsewhere.

use std::path::{Path, PathBuf};

use super::read::Values;

/// Longest path that an address of a Unix socket holds, without its end.
pub(super) const MOST_SOCKET: usize = 107;
/// Longest name of a socket in its directory, where a domain's own name is too long: see `Settings::export_socket`.
const SHORT_SOCKET: usize = "/0123456789abcdef.sock".len();

/// Finds all of them.
pub(super) fn find(values: &Values, problems: &mut Vec<String>) {
    listening(values, problems);
    places(values, problems);
    times(values, problems);
    super::hypervisor::contradictions(values, problems);
}

/// TLS, roles and addresses.
fn listening(values: &Values, problems: &mut Vec<String>) {
    let tls = ["tls.certificate", "tls.key", "tls.client_ca"];
    let set: Vec<&str> = tls.into_iter().filter(|name| values.text(name).is_some()).collect();
    match values.text("listen.tcp") {
        Some(_) => {
            let missing = tls.into_iter().filter(|name| values.text(name).is_none());
            problems.extend(
                missing.map(|name| format!("{name}: must be there, since listen.tcp is: TCP is served over TLS only")),
            );
            if values.access.is_empty() {
                problems.push("access: nobody has a role, so that nobody could do anything over listen.tcp".to_owned());
            }
        }
        None => {
            problems.extend(set.iter().map(|name| format!("{name}: is there without listen.tcp")));
            if !values.access.is_empty() {
                problems.push("access: roles are for certificates, and listen.tcp is not there".to_owned());
            }
        }
    }
    if let Some(metrics) = values.text("listen.metrics") {
        if values.text("listen.tcp") == Some(metrics) {
            problems.push("listen.metrics: is the address of listen.tcp".to_owned());
        }
        let (host, port) = metrics.rsplit_once(':').unwrap_or_default();
        let everywhere = |host: &str| matches!(host, "0.0.0.0" | "[::]" | "::" | "*");
        let tcp = values.text("listen.tcp").and_then(|tcp| tcp.rsplit_once(':'));
        if let Some((other, its_port)) = tcp
            && port == its_port
            && port != "0"
            && other != host
            && (everywhere(host) || everywhere(other))
        {
            problems
                .push(format!("listen.metrics: has the port of listen.tcp, {port}, and one of the two is everywhere"));
        }
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if !loopback && !values.switch("listen.metrics_public") {
            problems
                .push(format!("listen.metrics: {metrics} is not a loopback address: listen.metrics_public allows it"));
        }
    } else if values.switch("listen.metrics_public") {
        problems.push("listen.metrics_public: is there without listen.metrics".to_owned());
    }
}

/// Whether one is the other, or lies in it.
fn lies_in(inner: &Path, outer: &Path) -> bool {
    inner.starts_with(outer)
}

/// Directories and sockets that would be in each other's way.
fn places(values: &Values, problems: &mut Vec<String>) {
    let path = |name: &str| values.path(name);
    if let Some(state) = path("state") {
        let catalog = state.join("catalog");
        let log_store = path("protect.log_store").unwrap_or_else(|| state.join("domains"));
        // Each domain has a directory of its name there.
        if log_store == state || lies_in(&log_store, &catalog) {
            let why = format!("is {}: a domain named catalog would be where the catalog is", log_store.display());
            problems.push(format!("protect.log_store: {why}; use a directory of its own"));
        }
        let own: [(&str, Option<PathBuf>); 5] = [
            ("state", Some(state)),
            ("protect.log_store", Some(log_store)),
            ("protect.socket_dir", path("protect.socket_dir")),
            ("tls.key", path("tls.key")),
            ("tls.certificate", path("tls.certificate")),
        ];
        for dir in values.paths("protect.image_dirs") {
            for (name, own) in own.iter().filter_map(|(name, own)| Some((name, own.as_ref()?))) {
                if lies_in(own, &dir) {
                    let why = format!("holds {name} ({}), which operators could serve as a disk", own.display());
                    problems.push(format!("protect.image_dirs: {} {why}", dir.display()));
                }
            }
        }
    }
    let too_long = |name: &str, len: usize, most: usize| {
        (len > most).then(|| format!("{name}: has {len} bytes, and the address of a socket holds {most} of it"))
    };
    let socket = path("listen.socket");
    problems.extend(socket.as_ref().and_then(|p| too_long("listen.socket", p.as_os_str().len(), MOST_SOCKET)));
    if let Some(dir) = path("protect.socket_dir") {
        let most = MOST_SOCKET - SHORT_SOCKET;
        problems.extend(too_long("protect.socket_dir", dir.as_os_str().len(), most));
        if socket.as_ref().and_then(|p| p.parent()) == Some(&dir) {
            let why = "is in protect.socket_dir, where a domain may be served at the same place";
            problems.push(format!("listen.socket: {why}"));
        }
    }
}

/// Times that make each other senseless.
fn times(values: &Values, problems: &mut Vec<String>) {
    for (shorter, longer, why) in [
        ("hypervisor.poll", "failover.shutdown_limit", "guests would be looked at only after their time is over"),
        ("hypervisor.poll", "hypervisor.limit", "one call would be given less time than there is between two"),
    ] {
        let (short, long) = (values.time(shorter), values.time(longer));
        if short > long && long > std::time::Duration::ZERO {
            problems.push(format!("{shorter}: is longer than {longer}: {why}"));
        }
    }
}
