//! Builds the `object_store` client for a URL and its settings.
//!
//! Every client gets the same manners, whatever the environment says: HTTP/1.1, no limit on whole requests, no retry
//! of its own (see `retry`), all traffic through the [`WatchedConnector`]. An `http://` endpoint that the operator
//! named is taken at its word; no other traffic goes unencrypted.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};

use super::connector::{Watch, WatchedConnector};
use super::failure::shorten;
use super::{Provider, StoreOptions};
use crate::error::{Error, ErrorKind, Result};

/// Client settings that would undo what this module promises.
fn is_reserved(key: ClientConfigKey) -> bool {
    matches!(
        key,
        ClientConfigKey::Timeout
            | ClientConfigKey::ReadTimeout
            | ClientConfigKey::ConnectTimeout
            | ClientConfigKey::Http1Only
            | ClientConfigKey::Http2Only
    )
}

/// Whether a provider setting of this name exists and may be set. Names are those of environment variables.
pub(super) fn is_provider_setting(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    if name.starts_with("aws_") {
        return s3_key(&name).is_some();
    }
    if name.starts_with("azure_") {
        return azure_key(&name).is_some();
    }
    google_key(&name).is_some()
}

fn s3_key(name: &str) -> Option<AmazonS3ConfigKey> {
    let key = AmazonS3ConfigKey::from_str(name).ok()?;
    let ours = matches!(key, AmazonS3ConfigKey::Client(c) if is_reserved(c));
    (!ours && !matches!(key, AmazonS3ConfigKey::Bucket)).then_some(key)
}

fn azure_key(name: &str) -> Option<AzureConfigKey> {
    let key = AzureConfigKey::from_str(name).ok()?;
    let ours = matches!(key, AzureConfigKey::Client(c) if is_reserved(c));
    (!ours && !matches!(key, AzureConfigKey::ContainerName)).then_some(key)
}

fn google_key(name: &str) -> Option<GoogleConfigKey> {
    let key = GoogleConfigKey::from_str(name).ok()?;
    let ours = matches!(key, GoogleConfigKey::Client(c) if is_reserved(c));
    (!ours && !matches!(key, GoogleConfigKey::Bucket)).then_some(key)
}

/// The client for `bucket`, with the settings of `options`, watched by `watch`. Sends no request.
pub(super) fn build(
    provider: Provider,
    bucket: &str,
    options: &StoreOptions,
    watch: &Arc<Watch>,
) -> Result<Arc<dyn ObjectStore>> {
    let built = match provider {
        Provider::S3 => build_s3(bucket, options, watch),
        Provider::Azure => build_azure(bucket, options, watch),
        Provider::Gcs => build_gcs(bucket, options, watch),
    };
    built.map_err(|e| {
        let what = format!("settings for {}: {}", provider.name(), shorten(&e.to_string()));
        let advice = "correct the environment variables or the options file";
        Error::new(ErrorKind::Invalid, format!("{what}; {advice}"))
    })
}

fn client_options(options: &StoreOptions) -> ClientOptions {
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(options.connect_timeout)
        .with_http1_only()
        .with_allow_http(options.endpoint_is_http())
}

fn no_retry() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, backoff: BackoffConfig::default() }
}

fn build_s3(bucket: &str, options: &StoreOptions, watch: &Arc<Watch>) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::new()
        .with_client_options(client_options(options))
        .with_unsigned_payload(!options.sign_payload)
        .with_config(AmazonS3ConfigKey::DisableBulkDelete, "true");
    for (name, value) in options.provider("AWS_") {
        if let Some(key) = s3_key(&name.to_ascii_lowercase()) {
            builder = builder.with_config(key, value);
        }
    }
    let connector = WatchedConnector(Arc::clone(watch));
    let store = builder.with_bucket_name(bucket).with_retry(no_retry()).with_http_connector(connector).build()?;
    Ok(Arc::new(store))
}

fn build_azure(bucket: &str, options: &StoreOptions, watch: &Arc<Watch>) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = MicrosoftAzureBuilder::new().with_client_options(client_options(options));
    for (name, value) in options.provider("AZURE_") {
        if let Some(key) = azure_key(&name.to_ascii_lowercase()) {
            builder = builder.with_config(key, value);
        }
    }
    let connector = WatchedConnector(Arc::clone(watch));
    let store = builder.with_container_name(bucket).with_retry(no_retry()).with_http_connector(connector).build()?;
    Ok(Arc::new(store))
}

fn build_gcs(bucket: &str, options: &StoreOptions, watch: &Arc<Watch>) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = GoogleCloudStorageBuilder::new().with_client_options(client_options(options));
    for (name, value) in options.provider("GOOGLE_") {
        if let Some(key) = google_key(&name.to_ascii_lowercase()) {
            builder = builder.with_config(key, value);
        }
    }
    let connector = WatchedConnector(Arc::clone(watch));
    let store = builder.with_bucket_name(bucket).with_retry(no_retry()).with_http_connector(connector).build()?;
    Ok(Arc::new(store))
}
