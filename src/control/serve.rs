//! The appliance as a server: what listens, in which order it starts, and how it ends.
//!
//! ```text
//! settings, files --> catalog (one instance) --> guests' disks --> tasks go on --> socket, TCP, metrics
//! signal: no new calls, watches end --> calls in flight, a while --> tasks stand still --> protections drain
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tonic::service::Routes;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use super::access::{Gatekeeper, ROLES};
use super::appliance::Appliance;
use super::listen::{self, bind_tcp};
use super::metrics;
use super::proto::DESCRIPTORS;
use super::proto::domain_service_server::DomainServiceServer;
use super::proto::event_service_server::EventServiceServer;
use super::proto::failback_service_server::FailbackServiceServer;
use super::proto::failover_service_server::FailoverServiceServer;
use super::proto::runbook_service_server::RunbookServiceServer;
use super::proto::site_service_server::SiteServiceServer;
use super::proto::store_service_server::StoreServiceServer;
use super::proto::task_service_server::TaskServiceServer;
use super::proto::vm_service_server::VmServiceServer;
use super::services::Services;
use super::settings::{Settings, TlsFiles};
use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::nbd::{Listen, Socket};

/// Longest message that is taken: a VM's definition, a runbook.
const MOST_MESSAGE: usize = 8 << 20;
/// Longest time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection that does not answer a ping within this is closed.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// Most bytes of the headers of a call.
const MOST_HEADERS: u32 = 16 << 10;

/// Where an appliance listens in fact.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Path of the socket.
    pub socket: String,
    /// Address over TLS, where there is one.
    pub tcp: Option<String>,
    /// Address of the Prometheus endpoint, where there is one.
    pub metrics: Option<String>,
}

/// Runs an appliance until `cancel`; `ready` is told where it listens.
///
/// # Errors
/// `Refused` where another instance runs; `Invalid` for settings that do not fit the machine; what starting says.
pub async fn serve(settings: Settings, cancel: &Cancel, ready: impl FnOnce(&Addresses) -> Result<()>) -> Result<()> {
    let checked = settings.clone();
    let check = tokio::task::spawn_blocking(move || checked.check_files()).await;
    check.map_err(|e| Error::with_source(ErrorKind::Internal, "checking the settings panicked", e))??;
    // Set only when calls end: until then what was begun goes on.
    let closing = Cancel::new();
    let app = Appliance::start(settings, closing.clone()).await?;
    let served = listen_and_serve(&app, cancel, ready).await;
    closing.cancel();
    app.stop().await;
    served
}

async fn listen_and_serve(
    app: &Arc<Appliance>,
    cancel: &Cancel,
    ready: impl FnOnce(&Addresses) -> Result<()>,
) -> Result<()> {
    let settings = &app.settings;
    let dir = settings.socket.parent().map(std::path::Path::to_owned);
    if let Some(dir) = dir {
        std::fs::create_dir_all(&dir).io_context(|| format!("make {}", dir.display()))?;
    }
    let Socket::Unix(listener, socket_file) = Socket::open(&Listen::Unix(settings.socket.clone()))? else {
        return Err(Error::new(ErrorKind::Internal, "a Unix socket is none"));
    };
    let listener = UnixListener::from_std(listener).io_context(|| "listen at the socket")?;
    let tcp = match &settings.tcp {
        Some((address, files)) => Some((bind_tcp(address).await?, tls(files)?)),
        None => None,
    };
    let metrics_at = match &settings.metrics {
        Some(address) => Some(bind_tcp(address).await?),
        None => None,
    };
    let show = |listener: &tokio::net::TcpListener| listener.local_addr().map(|address| address.to_string());
    let addresses = Addresses {
        socket: settings.socket.display().to_string(),
        tcp: tcp.as_ref().map(|(listener, _)| show(listener)).transpose().io_context(|| "ask for the port")?,
        metrics: metrics_at.as_ref().map(show).transpose().io_context(|| "ask for the port")?,
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    let routes = routes(app, health_service)?;
    tell_health(&health, tonic_health::ServingStatus::Serving).await;
    let mut running = tokio::task::JoinSet::new();
    let incoming = listen::unix(listener, settings.connections, app.closing.clone());
    let end = app.closing.clone();
    let server = builder(app).add_routes(routes.clone());
    running.spawn(
        async move { server.serve_with_incoming_shutdown(incoming, async move { end.cancelled().await }).await },
    );
    if let Some((listener, tls)) = tcp {
        let incoming = listen::tcp(listener, settings.connections, app.closing.clone());
        let end = app.closing.clone();
        let mut server = builder(app).tls_config(tls).map_err(|e| invalid_tls(&e))?;
        let server = server.add_routes(routes);
        running.spawn(async move {
            server.serve_with_incoming_shutdown(incoming, async move { end.cancelled().await }).await
        });
    }
    let background = [
        tokio::spawn(Arc::clone(app).keep_looking()),
        tokio::spawn(Arc::clone(app).keep_answering()),
        tokio::spawn(Arc::clone(app).keep_noting_ends()),
        tokio::spawn(Arc::clone(app).keep_thawing()),
        tokio::spawn(Arc::clone(app).keep_quiescing()),
        tokio::spawn(Arc::clone(app).keep_watching()),
        tokio::spawn(Arc::clone(app).keep_hearing()),
        tokio::spawn(Arc::clone(app).keep_finding_strays()),
        tokio::spawn(Arc::clone(app).keep_definitions_fresh()),
        tokio::spawn(metrics::serve(Arc::clone(app), metrics_at)),
    ];
    ready(&addresses)?;
    let ended = tokio::select! {
        () = cancel.cancelled() => Ok(()),
        Some(ended) = running.join_next() => Err(why(ended)),
    };
    tell_health(&health, tonic_health::ServingStatus::NotServing).await;
    app.closing.cancel();
    let rest = async { while running.join_next().await.is_some() {} };
    if tokio::time::timeout(settings.stop_grace, rest).await.is_err() {
        tracing::warn!("calls that have not ended within api.stop_grace are cut off");
        running.shutdown().await;
    }
    for task in background {
        task.abort();
    }
    drop(socket_file);
    ended
}

/// Why a server ended that nobody told to.
fn why(ended: std::result::Result<std::result::Result<(), tonic::transport::Error>, tokio::task::JoinError>) -> Error {
    match ended {
        Ok(Ok(())) => Error::new(ErrorKind::Internal, "the API ended by itself"),
        Ok(Err(e)) => Error::with_source(ErrorKind::Io, "serve the API", e),
        Err(e) => Error::with_source(ErrorKind::Internal, "the API panicked", e),
    }
}

/// Of the whole, which has no name, and of each service.
async fn tell_health(health: &tonic_health::server::HealthReporter, status: tonic_health::ServingStatus) {
    let methods = ROLES.iter().filter_map(|(path, _)| path.strip_prefix("/freshet.v1.")?.split_once('/'));
    let services: BTreeSet<String> = methods.map(|(service, _)| format!("freshet.v1.{service}")).collect();
    for service in std::iter::once(String::new()).chain(services) {
        health.set_service_status(service, status).await;
    }
}

fn builder(app: &Appliance) -> Server<tower::layer::util::Stack<Gatekeeper, tower::layer::util::Identity>> {
    Server::builder()
        .max_concurrent_streams(app.settings.streams)
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .http2_max_header_list_size(MOST_HEADERS)
        .layer(Gatekeeper::new(&app.settings.access, app.catalog.clone()))
}

fn routes(
    app: &Arc<Appliance>,
    health: tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>,
) -> Result<Routes> {
    let services = Services::new(Arc::clone(app));
    let described = |e| Error::with_source(ErrorKind::Internal, "describe the API", e);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Routes::new(health)
        .add_service(reflection().build_v1().map_err(described)?)
        // What clients of a few years ago ask.
        .add_service(reflection().build_v1alpha().map_err(described)?)
        .add_service(SiteServiceServer::new(services.clone()).max_decoding_message_size(MOST_MESSAGE))
        .add_service(StoreServiceServer::new(services.clone()).max_decoding_message_size(MOST_MESSAGE))
        .add_service(DomainServiceServer::new(services.clone()).max_decoding_message_size(MOST_MESSAGE))
        .add_service(VmServiceServer::new(services.clone()).max_decoding_message_size(MOST_MESSAGE))
        .add_service(RunbookServiceServer::new(services.clone()).max_decoding_message_size(MOST_MESSAGE))
        .add_service(TaskServiceServer::new(services.clone()).max_decoding_message_size(MOST_MESSAGE))
        .add_service(FailoverServiceServer::new(services.clone()).max_decoding_message_size(MOST_MESSAGE))
        .add_service(FailbackServiceServer::new(services.clone()).max_decoding_message_size(MOST_MESSAGE))
        .add_service(EventServiceServer::new(services).max_decoding_message_size(MOST_MESSAGE)))
}

fn invalid_tls(error: &dyn std::error::Error) -> Error {
    Error::new(ErrorKind::Invalid, format!("TLS of the API: {error}"))
}

fn tls(files: &TlsFiles) -> Result<ServerTlsConfig> {
    let read = |path: &std::path::Path| std::fs::read(path).io_context(|| format!("read {}", path.display()));
    let identity = Identity::from_pem(read(&files.certificate)?, read(&files.key)?);
    Ok(ServerTlsConfig::new()
        .identity(identity)
        .client_ca_root(Certificate::from_pem(read(&files.client_ca)?))
        .timeout(HANDSHAKE))
}
