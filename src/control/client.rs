//! The way from a command to an appliance: its Unix socket, or TLS.
//!
//! Owns connecting and the JSON form of answers. It never retries: whoever asks decides that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};

use super::proto::DESCRIPTORS;
use super::proto::domain_service_client::DomainServiceClient;
use super::proto::event_service_client::EventServiceClient;
use super::proto::failback_service_client::FailbackServiceClient;
use super::proto::failover_service_client::FailoverServiceClient;
use super::proto::runbook_service_client::RunbookServiceClient;
use super::proto::site_service_client::SiteServiceClient;
use super::proto::store_service_client::StoreServiceClient;
use super::proto::task_service_client::TaskServiceClient;
use super::proto::vm_service_client::VmServiceClient;
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Longest time to connect.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest answer: a page of ten thousand domains.
const MOST_MESSAGE: usize = 256 << 20;

/// Files of a client's TLS.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// Roots of the appliance's certificate.
    pub ca: PathBuf,
    /// Certificate of the client.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Name that the appliance's certificate must have; the host's where absent.
    pub name: Option<String>,
}

/// Which appliance.
#[derive(Debug, Clone)]
pub enum Target {
    /// At this Unix socket.
    Socket(PathBuf),
    /// At `host:port`, over TLS.
    Server(String, ClientTls),
}

/// A connection to an appliance.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// `Unreachable` where nobody answers; `Denied`; `Invalid` for address or files.
    pub async fn connect(target: &Target) -> Result<Client> {
        let channel = match target {
            Target::Socket(path) => connect_socket(path).await?,
            Target::Server(address, tls) => connect_tls(address, tls).await?,
        };
        Ok(Client { channel })
    }

    /// The appliance itself.
    pub fn site(&self) -> SiteServiceClient<Channel> {
        SiteServiceClient::new(self.channel.clone())
    }

    /// Storage sites.
    pub fn stores(&self) -> StoreServiceClient<Channel> {
        StoreServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST_MESSAGE)
    }

    /// Domains.
    pub fn domains(&self) -> DomainServiceClient<Channel> {
        DomainServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST_MESSAGE)
    }

    /// VMs.
    pub fn vms(&self) -> VmServiceClient<Channel> {
        VmServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST_MESSAGE)
    }

    /// Runbooks.
    pub fn runbooks(&self) -> RunbookServiceClient<Channel> {
        RunbookServiceClient::new(self.channel.clone())
    }

    /// Tasks.
    pub fn tasks(&self) -> TaskServiceClient<Channel> {
        TaskServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST_MESSAGE)
    }

    /// Failovers.
    pub fn failover(&self) -> FailoverServiceClient<Channel> {
        FailoverServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST_MESSAGE)
    }

    /// Failbacks.
    pub fn failback(&self) -> FailbackServiceClient<Channel> {
        FailbackServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST_MESSAGE)
    }

    /// Events.
    pub fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST_MESSAGE)
    }
}

async fn connect_socket(path: &Path) -> Result<Channel> {
    // Asked first, since the error of a channel does not tell what is wrong with the socket.
    match UnixStream::connect(path).await {
        Ok(_) => {}
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
            let why = format!("no appliance listens at {}; `freshet serve` runs one", path.display());
            return Err(Error::with_source(ErrorKind::Unreachable, why, e));
        }
        Err(e) => return Err(Error::io(format!("connect to {}", path.display()), e)),
    }
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    // The address is not used, and must look like one.
    let endpoint = Endpoint::from_static("http://appliance.invalid").connect_timeout(CONNECT);
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|e| Error::with_source(ErrorKind::Unreachable, "speak to the appliance", e))
}

async fn connect_tls(address: &str, tls: &ClientTls) -> Result<Channel> {
    let read = |path: &Path| std::fs::read(path).io_context(|| format!("read {}", path.display()));
    let identity = Identity::from_pem(read(&tls.certificate)?, read(&tls.key)?);
    let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?)).identity(identity);
    if let Some(name) = &tls.name {
        config = config.domain_name(name);
    }
    let invalid =
        |e: tonic::transport::Error| Error::new(ErrorKind::Invalid, format!("server {address}: {}", chain(&e)));
    let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(invalid)?;
    let endpoint = endpoint.connect_timeout(CONNECT).tls_config(config).map_err(invalid)?;
    let connected = endpoint.connect().await;
    connected.map_err(|e| {
        let text = chain(&e);
        let kind = if text.contains("certificate") { ErrorKind::Denied } else { ErrorKind::Unreachable };
        Error::new(kind, format!("server {address}: {text}"))
    })
}

/// An error with all that caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A message as JSON, by the names of the interface; numbers stay numbers.
///
/// # Errors
/// `Internal`.
pub fn json_of<M: Message + Name>(message: &M) -> Result<Value> {
    let internal = |e: String| Error::new(ErrorKind::Internal, format!("put an answer into JSON: {e}"));
    let pool = DescriptorPool::decode(DESCRIPTORS).map_err(|e| internal(e.to_string()))?;
    let kind = pool.get_message_by_name(&M::full_name()).ok_or_else(|| internal(format!("no {}", M::full_name())))?;
    let message =
        DynamicMessage::decode(kind, message.encode_to_vec().as_slice()).map_err(|e| internal(e.to_string()))?;
    let options =
        SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false).skip_default_fields(false);
    message.serialize_with_options(serde_json::value::Serializer, &options).map_err(|e| internal(e.to_string()))
}
