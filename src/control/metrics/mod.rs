//! Figures for Prometheus, over plain HTTP at an address of its own.
//!
//! Owns the endpoint: `GET /metrics`, a few connections at once, each for one request and a short while. Figures are taken
//! when they are asked for; nothing is counted twice. Names come from `table` alone.

mod latency;
mod table;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::{Method, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::appliance::Appliance;
use super::settings::HypervisorSettings;
use super::world::Seen;
use crate::error::{Error, ErrorKind, Result};
use crate::failover::{Task, TaskState};
use crate::progress::{DiskBytes, MemoryUse};
use crate::protect::ProtectStatus;
use crate::store::{Latency, StorageSite};

pub use table::{Kind, METRICS, Metric};

/// Connections at once.
const CONNECTIONS: usize = 16;
/// Longest time of one.
const LONGEST: Duration = Duration::from_secs(30);
/// Longest time until the request's head is there.
const HEAD: Duration = Duration::from_secs(5);

type Labels = Vec<(String, String)>;

/// Figures of one answer.
struct Page {
    gauges: BTreeMap<&'static str, Family<Labels, Gauge<f64, AtomicU64>>>,
    counters: BTreeMap<&'static str, Family<Labels, Counter<f64, AtomicU64>>>,
    histograms: BTreeMap<&'static str, Family<Labels, latency::Shown>>,
    registry: Registry,
}

impl Page {
    fn new() -> Page {
        let mut page = Page {
            gauges: BTreeMap::new(),
            counters: BTreeMap::new(),
            histograms: BTreeMap::new(),
            registry: Registry::default(),
        };
        for metric in METRICS {
            match metric.kind {
                Kind::Gauge => {
                    let family = Family::default();
                    page.registry.register(metric.name, metric.meaning, family.clone());
                    page.gauges.insert(metric.name, family);
                }
                Kind::Counter => {
                    let family = Family::default();
                    page.registry.register(metric.name, metric.meaning, family.clone());
                    page.counters.insert(metric.name, family);
                }
                Kind::Histogram => {
                    let family = Family::default();
                    page.registry.register(metric.name, metric.meaning, family.clone());
                    page.histograms.insert(metric.name, family);
                }
            }
        }
        page
    }

    /// A figure of the table, with the values of its labels in their order.
    fn set(&self, name: &'static str, values: &[&str], figure: f64) {
        let Some(labels) = labels(name, values) else { return };
        if let Some(family) = self.gauges.get(name) {
            family.get_or_create(&labels).set(figure);
        } else if let Some(family) = self.counters.get(name) {
            family.get_or_create(&labels).inc_by(figure);
        }
    }

    /// A histogram of the table.
    fn set_latency(&self, name: &'static str, values: &[&str], latency: Latency) {
        if let (Some(family), Some(labels)) = (self.histograms.get(name), labels(name, values)) {
            family.get_or_create(&labels).set(latency);
        }
    }

    fn text(&self) -> Result<String> {
        let mut out = String::new();
        encode(&mut out, &self.registry)
            .map_err(|e| Error::with_source(ErrorKind::Internal, "write the figures", e))?;
        Ok(out)
    }
}

/// Labels of a figure of the table.
fn labels(name: &str, values: &[&str]) -> Option<Labels> {
    let metric = METRICS.iter().find(|metric| metric.name == name)?;
    debug_assert_eq!(metric.labels.len(), values.len(), "{name}");
    let labels = metric.labels.iter().zip(values);
    Some(labels.map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect())
}

/// A figure; beyond 2^53 it is rounded.
fn figure(n: u64) -> f64 {
    n as f64
}

/// All figures as they are now.
async fn gather(app: &Appliance) -> Result<String> {
    let page = Page::new();
    page.set("freshet_info", &[app.site().as_str(), env!("CARGO_PKG_VERSION")], 1.0);
    page.set("freshet_start_time_seconds", &[], figure(app.started.millis()) / 1000.0);
    let has_hypervisor = app.settings.hypervisor != HypervisorSettings::None;
    if let Some(ready) = app.guests.hypervisor().filter(|_| has_hypervisor) {
        page.set("freshet_hypervisor_ready", &[], f64::from(u8::from(ready.is_ok())));
    }
    let records = app.catalog.call(|db| super::catalog::DomainRecord::list(db, "", usize::MAX)).await?;
    for (record, view) in records.iter().zip(app.views(&records).await) {
        let domain = record.name.as_str();
        let words = (super::view::mode_words(view.mode()), super::view::status_words(view.status()));
        page.set("freshet_domain_info", &[domain, record.store.as_str(), words.0, words.1], 1.0);
        if let Some(rpo) = view.rpo_ms {
            page.set("freshet_domain_rpo_seconds", &[domain], figure(rpo) / 1000.0);
        }
        if let Some(point) = &view.newest_point {
            page.set("freshet_domain_point", &[domain], figure(point.number));
        }
        page.set("freshet_domain_problems", &[domain], view.problems.len() as f64);
        match app.hosting.get(&record.name) {
            // Of the same moment as the figures of its disks.
            Some(hosted) => {
                let status = hosted.status().await;
                rpo_of_vms(&page, domain, status.vms.iter().map(|vm| (vm.name.as_str(), vm.rpo_ms)));
                protection(&page, domain, &status);
            }
            None => rpo_of_vms(&page, domain, view.vms.iter().map(|vm| (vm.name.as_str(), vm.rpo_ms))),
        }
        if let Some((plan, seen)) = app.world.followers().seen(&record.name) {
            page.set("freshet_domain_log_size_bytes", &[domain], figure(plan.dr.log_size));
            following(&page, domain, &seen);
        }
    }
    for (name, site) in app.stores.all() {
        store(&page, name.as_str(), &site);
    }
    tasks(&page, &app.engine.tasks());
    page.text()
}

fn rpo_of_vms<'a>(page: &Page, domain: &str, vms: impl Iterator<Item = (&'a str, Option<u64>)>) {
    for (vm, rpo) in vms {
        if let Some(rpo) = rpo {
            page.set("freshet_vm_rpo_seconds", &[domain, vm], figure(rpo) / 1000.0);
        }
    }
}

fn protection(page: &Page, domain: &str, status: &ProtectStatus) {
    let micros = |n: u64| figure(n) / 1e6;
    for (name, value) in [
        ("freshet_domain_captured_point", figure(status.captured)),
        ("freshet_domain_waiting_bytes", figure(status.waiting_bytes)),
        ("freshet_domain_waiting_memory_bytes", figure(status.waiting_memory)),
        ("freshet_domain_log_used_bytes", figure(status.log_used)),
        ("freshet_domain_log_size_bytes", figure(status.log_size)),
        ("freshet_domain_hold_seconds", micros(status.hold_us)),
        ("freshet_domain_held_writes", figure(status.held_writes)),
        ("freshet_domain_written_bytes", figure(status.written)),
        ("freshet_domain_shipped_bytes", figure(status.stored)),
        ("freshet_domain_shipped_segments", figure(status.segments)),
    ] {
        page.set(name, &[domain], value);
    }
    memory(page, domain, &status.memory);
    if let Some(sync) = &status.sync {
        page.set("freshet_domain_sync_total_bytes", &[domain], figure(sync.total));
        page.set("freshet_domain_sync_done_bytes", &[domain], figure(sync.done));
    }
    for vm in &status.vms {
        for disk in &vm.disks {
            let labels = [domain, vm.name.as_str(), disk.name.as_str()];
            if let Some(rpo) = disk.rpo_ms {
                page.set("freshet_disk_rpo_seconds", &labels, figure(rpo) / 1000.0);
            }
            for (name, value) in [
                ("freshet_disk_size_bytes", disk.size),
                ("freshet_disk_dirty_bytes", disk.dirty),
                ("freshet_disk_unsynced_bytes", disk.unsynced),
                ("freshet_disk_written_bytes", disk.written),
                ("freshet_disk_read_bytes", disk.read),
                ("freshet_disk_failed_requests", disk.failed),
            ] {
                page.set(name, &labels, figure(value));
            }
        }
    }
}

/// A budget of memory by its parts.
fn memory(page: &Page, domain: &str, parts: &[MemoryUse]) {
    for MemoryUse { part, used, size } in parts {
        page.set("freshet_domain_memory_used_bytes", &[domain, part], figure(*used));
        page.set("freshet_domain_memory_size_bytes", &[domain, part], figure(*size));
    }
}

/// Disks that follow a domain, each by itself: all of them land and are applied together.
fn following_disks(page: &Page, domain: &str, seen: &Seen) {
    let bytes: BTreeMap<&str, &DiskBytes> = seen.counts.disks.iter().map(|of| (of.disk.as_str(), of)).collect();
    for (vm, disk) in seen.counts.here.iter() {
        let labels = [domain, vm.as_str(), disk.as_str()];
        for (name, stand) in
            [("freshet_disk_landed_point", seen.state.landed), ("freshet_disk_applied_point", seen.state.applied)]
        {
            if let Some(stand) = stand {
                page.set(name, &labels, figure(stand.point.get()));
            }
        }
        if let Some(lag) = seen.lag() {
            page.set("freshet_disk_lag_seconds", &labels, lag.as_secs_f64());
        }
        let of = bytes.get(format!("{vm}/{disk}").as_str());
        page.set("freshet_disk_hydrate_total_bytes", &labels, figure(of.map_or(0, |of| of.total)));
        page.set("freshet_disk_hydrate_done_bytes", &labels, figure(of.map_or(0, |of| of.done)));
    }
}

/// Disks that follow a domain.
fn following(page: &Page, domain: &str, seen: &Seen) {
    for (name, stand) in
        [("freshet_domain_landed_point", seen.state.landed), ("freshet_domain_applied_point", seen.state.applied)]
    {
        if let Some(stand) = stand {
            page.set(name, &[domain], figure(stand.point.get()));
        }
    }
    page.set("freshet_domain_following", &[domain], f64::from(u8::from(seen.running)));
    if let Some(lag) = seen.lag() {
        page.set("freshet_domain_lag_seconds", &[domain], lag.as_secs_f64());
    }
    for of in &seen.state.damage {
        page.set("freshet_disk_damaged_bytes", &[domain, of.vm.as_str(), of.disk.as_str()], figure(of.bytes));
    }
    page.set("freshet_domain_unapplied_bytes", &[domain], figure(seen.state.unapplied));
    page.set("freshet_domain_log_used_bytes", &[domain], figure(seen.state.unapplied));
    if seen.running {
        memory(page, domain, &seen.counts.memory);
    }
    following_disks(page, domain, seen);
    page.set("freshet_domain_hydrate_total_bytes", &[domain], figure(seen.counts.total));
    page.set("freshet_domain_hydrate_done_bytes", &[domain], figure(seen.counts.done));
}

/// How many tasks there are, by kind and state. A kind of which there is one has every state, so that a figure that goes
/// to zero is told and not missing.
fn tasks(page: &Page, tasks: &[Arc<Task>]) {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for task in tasks {
        for word in TaskState::WORDS {
            counts.entry((task.kind.word(), word)).or_default();
        }
        *counts.entry((task.kind.word(), task.state.word())).or_default() += 1;
    }
    for ((kind, state), count) in counts {
        page.set("freshet_tasks", &[kind, state], figure(count));
    }
}

fn store(page: &Page, name: &str, site: &StorageSite) {
    let (counters, figures) = (site.counters(), site.figures());
    for of in figures.operations {
        let operation = of.operation.word();
        page.set_latency("freshet_store_operation_seconds", &[name, operation], of.latency);
        for (kind, count) in of.failed {
            page.set("freshet_store_failed_operations", &[name, operation, kind.word()], figure(count));
        }
    }
    for (reason, count) in figures.failed_tries {
        page.set("freshet_store_failed_tries", &[name, reason], figure(count));
    }
    for (kind, count) in [
        ("get", counters.gets),
        ("head", counters.heads),
        ("put", counters.puts),
        ("list", counters.lists),
        ("delete", counters.deletes),
    ] {
        page.set("freshet_store_requests", &[name, kind], figure(count));
    }
    page.set("freshet_store_retries", &[name], figure(counters.retries));
    page.set("freshet_store_hedges", &[name], figure(counters.hedges));
    page.set("freshet_store_received_bytes", &[name], figure(counters.bytes_in));
    page.set("freshet_store_sent_bytes", &[name], figure(counters.bytes_out));
}

async fn answer(
    app: Arc<Appliance>,
    request: http::Request<hyper::body::Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let plain = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        let kind = match status {
            StatusCode::OK => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            _ => "text/plain; charset=utf-8",
        };
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
        response
    };
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match gather(&app).await {
            Ok(text) => plain(StatusCode::OK, text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        (_, "/metrics") => plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        _ => plain(StatusCode::NOT_FOUND, "only /metrics\n".to_owned()),
    })
}

/// Answers at `listener` until the appliance closes; where there is none, does nothing.
pub(crate) async fn serve(app: Arc<Appliance>, listener: Option<TcpListener>) {
    let Some(listener) = listener else { return };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let came = tokio::select! { came = listener.accept() => came, () = app.closing.cancelled() => return };
        let stream = match came {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("a connection for figures could not be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let app = Arc::clone(&app);
        tokio::spawn(async move {
            let service = service_fn(|request| answer(Arc::clone(&app), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // Whoever breaks off or dawdles is nobody's concern.
            let _ = tokio::time::timeout(LONGEST, connection).await;
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_the_names_of_the_table_and_no_others() {
        let page = Page::new();
        let values = ["a\"b", "b", "c", "d"];
        for metric in METRICS {
            page.set(metric.name, &values[..metric.labels.len()], 2.5);
            let mut latency = Latency { sum: Duration::from_millis(2500), ..Latency::default() };
            (latency.buckets[1], latency.buckets[15]) = (2, 1);
            page.set_latency(metric.name, &values[..metric.labels.len()], latency);
        }
        let text = page.text().unwrap();
        for metric in METRICS {
            let total = match metric.kind {
                Kind::Counter => "_total",
                Kind::Histogram => "_sum",
                Kind::Gauge => "",
            };
            let line = text.lines().find(|line| line.starts_with(&format!("{}{total}{{", metric.name)));
            let line = line.or_else(|| text.lines().find(|line| line.starts_with(&format!("{}{total} ", metric.name))));
            assert!(line.is_some_and(|line| line.ends_with(" 2.5")), "{}: {text}", metric.name);
            for label in metric.labels {
                assert!(line.unwrap().contains(&format!("{label}=\"")), "{} {label}", metric.name);
            }
        }
        let buckets: Vec<&str> = text.lines().filter(|line| line.contains("_seconds_bucket{")).collect();
        assert_eq!(buckets.len(), crate::store::LATENCY_BOUNDS.len() + 1);
        let counts = |le: &str| buckets.iter().find(|line| line.contains(le)).unwrap().rsplit(' ').next().unwrap();
        assert_eq!((counts("le=\"0.001\""), counts("le=\"0.0025\""), counts("le=\"+Inf\"")), ("0", "2", "3"));
        let told = text.lines().filter(|line| line.starts_with("# TYPE")).count();
        assert_eq!(told, METRICS.len());
        assert!(text.contains("site=\"a\\\"b\""), "labels are escaped");
    }
}
