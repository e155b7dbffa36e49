//! Settings of a storage site: credentials and endpoint by the standard environment variables, the rest by an options
//! file, all checked in one place.
//!
//! Invariants: secrets leave this module only towards the store's client and are never shown ([`StoreOptions`]'s
//! `Debug` names keys and hides values). Freshet's own settings come from the options file or from code, never from
//! the environment, so that nothing changes its behaviour unseen.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::client;
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Prefixes of the environment variables that the providers' own tools read.
const PROVIDER_PREFIXES: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];

/// Names of Freshet's own settings, as `docs/storage-sites.md` lists them.
const SETTINGS: [&str; 15] = [
    "CONNECT_TIMEOUT",
    "STALL_TIMEOUT",
    "MIN_UPLOAD_RATE",
    "RETRY_TRIES",
    "RETRY_TOTAL",
    "RETRY_CONNECT_TRIES",
    "RETRY_PAUSE",
    "RETRY_PAUSE_MAX",
    "HEDGE",
    "HEDGE_FLOOR",
    "HEDGE_CEILING",
    "HEDGE_SHARE_PERCENT",
    "IDLE_BUFFERS",
    "DIRECT",
    "SIGN_PAYLOAD",
];

/// Provider settings that hold a service's address.
const ENDPOINTS: [&str; 6] = [
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AZURE_ENDPOINT",
    "AZURE_STORAGE_ENDPOINT",
    "GOOGLE_BASE_URL",
];

/// Provider settings that hold the address of a service that hands out credentials.
const CREDENTIAL_SERVICES: [&str; 5] = [
    "AWS_METADATA_ENDPOINT",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_ENDPOINT_URL_STS",
    "AZURE_MSI_ENDPOINT",
    "AZURE_IDENTITY_ENDPOINT",
];

/// Longest options file that is read.
const MAX_FILE_LEN: u64 = 64 * 1024;

/// Which failed requests are tried again, and for how long. See [`crate::store::StoreOptions::validate`] for bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryLimits {
    /// Tries in all, the first one included. 1 to 100; 8 unless told.
    pub tries: u32,
    /// No try begins later than this after the first one began. 1 s to 1 h; 3 min unless told.
    pub total: Duration,
    /// Tries in all while the store cannot be reached (no such host, connection refused). 1 to 100; 3 unless told.
    pub connect_tries: u32,
    /// First pause; each further one is twice as long, and each is drawn between half of it and all of it.
    /// 1 ms to 10 s; 100 ms unless told.
    pub pause: Duration,
    /// Longest pause. Not below `pause`, at most 1 min; 10 s unless told.
    pub pause_max: Duration,
}

/// When a slow range request is sent a second time.
#[derive(Debug, Clone, PartialEq)]
pub struct HedgeLimits {
    /// Whether it is done at all. On unless told.
    pub enabled: bool,
    /// The second request never goes out earlier than this. 1 ms to 1 min; 100 ms unless told.
    pub floor: Duration,
    /// It goes out at the latest after this, if the share allows. Not below `floor`, at most 10 min; 10 s unless told.
    pub ceiling: Duration,
    /// Second requests for every hundred requests at most. 0 to 100; 5 unless told.
    pub share_percent: u32,
}

/// Settings of one storage site.
#[derive(Clone, PartialEq)]
pub struct StoreOptions {
    /// Provider settings by the name of their environment variable, for example `AWS_ENDPOINT_URL`.
    provider: BTreeMap<String, String>,
    /// Time to establish a connection, name look-up included. 100 ms to 2 min; 5 s unless told.
    pub connect_timeout: Duration,
    /// Longest time without a single byte of an answer. There is no limit on a whole body. 100 ms to 10 min; 30 s
    /// unless told.
    pub stall_timeout: Duration,
    /// An upload is given `stall_timeout` plus its length at this rate, in bytes per second. 1 KiB/s to 1 GiB/s;
    /// 32 KiB/s unless told.
    pub min_upload_rate: u64,
    /// Retries.
    pub retry: RetryLimits,
    /// Second requests for slow ones.
    pub hedge: HedgeLimits,
    /// Idle memory that `file://` keeps for further reads, in bytes. 0 to 1 GiB; 96 MiB unless told.
    pub idle_buffers: usize,
    /// Whether `file://` reads past the page cache where the file system can. On unless told.
    pub direct: bool,
    /// Whether an upload to S3 signs its payload; frames carry checksums of their own. Off unless told.
    pub sign_payload: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            provider: BTreeMap::new(),
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(30),
            min_upload_rate: 32 << 10,
            retry: RetryLimits {
                tries: 8,
                total: Duration::from_secs(180),
                connect_tries: 3,
                pause: Duration::from_millis(100),
                pause_max: Duration::from_secs(10),
            },
            hedge: HedgeLimits {
                enabled: true,
                floor: Duration::from_millis(100),
                ceiling: Duration::from_secs(10),
                share_percent: 5,
            },
            idle_buffers: 96 << 20,
            direct: true,
            sign_payload: false,
        }
    }
}

impl StoreOptions {
    /// From the environment and, where given, an options file; the file outranks the environment.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a setting that is unknown or out of bounds; what the file system says of the file.
    pub fn load(file: Option<&Path>) -> Result<StoreOptions> {
        let vars = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let mut options = StoreOptions::from_vars(vars);
        if let Some(path) = file {
            options.apply_file(path)?;
        }
        options.validate()?;
        Ok(options)
    }

    /// Takes the providers' variables out of `vars` and ignores all others.
    pub fn from_vars(vars: impl IntoIterator<Item = (String, String)>) -> StoreOptions {
        let ours = |name: &str| PROVIDER_PREFIXES.iter().any(|p| name.starts_with(p));
        let provider = vars.into_iter().filter(|(name, _)| ours(name)).collect();
        StoreOptions { provider, ..StoreOptions::default() }
    }

    /// Sets one provider variable or one of Freshet's own settings, as a line of the options file does.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an unknown name or a value that cannot be read. Bounds are checked by
    /// [`StoreOptions::validate`].
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        if PROVIDER_PREFIXES.iter().any(|p| name.starts_with(p)) {
            if !client::is_provider_setting(name) {
                let why = "is not known, or it is set by the URL or by CONNECT_TIMEOUT and STALL_TIMEOUT";
                return Err(Error::new(ErrorKind::Invalid, format!("store option {name:?} {why}")));
            }
            self.provider.insert(name.to_owned(), value.to_owned());
            return Ok(());
        }
        match name {
            "CONNECT_TIMEOUT" => self.connect_timeout = duration(name, value)?,
            "STALL_TIMEOUT" => self.stall_timeout = duration(name, value)?,
            "MIN_UPLOAD_RATE" => self.min_upload_rate = number(name, value)?,
            "RETRY_TRIES" => self.retry.tries = number(name, value)?,
            "RETRY_TOTAL" => self.retry.total = duration(name, value)?,
            "RETRY_CONNECT_TRIES" => self.retry.connect_tries = number(name, value)?,
            "RETRY_PAUSE" => self.retry.pause = duration(name, value)?,
            "RETRY_PAUSE_MAX" => self.retry.pause_max = duration(name, value)?,
            "HEDGE" => self.hedge.enabled = switch(name, value)?,
            "HEDGE_FLOOR" => self.hedge.floor = duration(name, value)?,
            "HEDGE_CEILING" => self.hedge.ceiling = duration(name, value)?,
            "HEDGE_SHARE_PERCENT" => self.hedge.share_percent = number(name, value)?,
            "IDLE_BUFFERS" => self.idle_buffers = number(name, value)?,
            "DIRECT" => self.direct = switch(name, value)?,
            "SIGN_PAYLOAD" => self.sign_payload = switch(name, value)?,
            _ => {
                let known = SETTINGS.join(", ");
                let why = format!("is not known; known are AWS_*, AZURE_*, GOOGLE_*, {known}");
                return Err(Error::new(ErrorKind::Invalid, format!("store option {name:?} {why}")));
            }
        }
        Ok(())
    }

    /// Checks every bound that the fields document.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] that names the setting, its value and its bounds.
    pub fn validate(&self) -> Result<()> {
        let ms = Duration::from_millis;
        let s = Duration::from_secs;
        between("CONNECT_TIMEOUT", self.connect_timeout, ms(100), s(120))?;
        between("STALL_TIMEOUT", self.stall_timeout, ms(100), s(600))?;
        between("MIN_UPLOAD_RATE", self.min_upload_rate, 1 << 10, 1 << 30)?;
        between("RETRY_TRIES", self.retry.tries, 1, 100)?;
        between("RETRY_TOTAL", self.retry.total, s(1), s(3600))?;
        between("RETRY_CONNECT_TRIES", self.retry.connect_tries, 1, 100)?;
        between("RETRY_PAUSE", self.retry.pause, ms(1), s(10))?;
        between("RETRY_PAUSE_MAX", self.retry.pause_max, self.retry.pause, s(60))?;
        between("HEDGE_FLOOR", self.hedge.floor, ms(1), s(60))?;
        between("HEDGE_CEILING", self.hedge.ceiling, self.hedge.floor, s(600))?;
        between("HEDGE_SHARE_PERCENT", self.hedge.share_percent, 0, 100)?;
        between("IDLE_BUFFERS", self.idle_buffers, 0, 1 << 30)?;
        for name in ENDPOINTS {
            self.provider.get(name).map_or(Ok(()), |value| check_endpoint(name, value))?;
        }
        match self.provider.get("AWS_CONDITIONAL_PUT").map(String::as_str) {
            None | Some("etag") => Ok(()),
            Some(other) => Err(Error::new(
                ErrorKind::Invalid,
                format!("store option AWS_CONDITIONAL_PUT is {other:?}: ownership needs create-if-absent, remove it"),
            )),
        }
    }

    /// Provider settings by the name of their environment variable.
    pub(super) fn provider(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.provider.iter().filter(move |(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// Whether the operator named an endpoint that is not encrypted.
    pub(super) fn endpoint_is_http(&self) -> bool {
        ENDPOINTS.iter().filter_map(|name| self.provider.get(*name)).any(|value| value.starts_with("http://"))
    }

    /// Addresses of the services that hand out credentials to a machine, as they appear in requests to them.
    pub(super) fn credential_services(&self) -> Vec<String> {
        let named = CREDENTIAL_SERVICES.iter().filter_map(|name| {
            let url = url::Url::parse(self.provider.get(*name)?).ok()?;
            let host = url.host_str()?;
            Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
        });
        let usual = ["169.254.169.254", "169.254.170.2", "metadata.google.internal", "metadata"];
        named.chain(usual.map(str::to_owned)).collect()
    }

    fn apply_file(&mut self, path: &Path) -> Result<()> {
        let what = || format!("options file {}", path.display());
        let len = std::fs::metadata(path).io_context(what)?.len();
        if len > MAX_FILE_LEN {
            let why = format!("{}: it has {len} bytes, at most {MAX_FILE_LEN} are read", what());
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        let text = std::fs::read_to_string(path).io_context(what)?;
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // A line that cannot be read is not repeated: it may hold a secret.
            let Some((name, value)) = line.split_once('=') else {
                let why = format!("{} line {}: expected NAME=VALUE", what(), i + 1);
                return Err(Error::new(ErrorKind::Invalid, why));
            };
            let value = value.trim();
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            self.set(name.trim(), value).map_err(|e| e.while_doing(format!("{} line {}", what(), i + 1)))?;
        }
        Ok(())
    }
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values of provider settings are all hidden: which of them are secret is the provider's to decide.
        let names: Vec<&str> = self.provider.keys().map(String::as_str).collect();
        f.debug_struct("StoreOptions")
            .field("provider", &names)
            .field("connect_timeout", &self.connect_timeout)
            .field("stall_timeout", &self.stall_timeout)
            .field("min_upload_rate", &self.min_upload_rate)
            .field("retry", &self.retry)
            .field("hedge", &self.hedge)
            .field("idle_buffers", &self.idle_buffers)
            .field("direct", &self.direct)
            .field("sign_payload", &self.sign_payload)
            .finish()
    }
}

fn between<T: PartialOrd + fmt::Debug>(name: &str, value: T, low: T, high: T) -> Result<()> {
    match value >= low && value <= high {
        true => Ok(()),
        false => {
            let why = format!("store option {name} is {value:?}: must be {low:?} to {high:?}");
            Err(Error::new(ErrorKind::Invalid, why))
        }
    }
}

fn unreadable(name: &str, value: &str, expected: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("store option {name} is {value:?}: expected {expected}"))
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| unreadable(name, value, "a whole number"))
}

fn switch(name: &str, value: &str) -> Result<bool> {
    match value {
        "on" | "true" | "yes" | "1" => Ok(true),
        "off" | "false" | "no" | "0" => Ok(false),
        _ => Err(unreadable(name, value, "on or off")),
    }
}

fn duration(name: &str, value: &str) -> Result<Duration> {
    let expected = "a time such as 500ms, 30s or 2m";
    let (digits, unit) = value.split_at(value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len()));
    let count: u64 = digits.parse().map_err(|_| unreadable(name, value, expected))?;
    let millis = match unit.trim() {
        "ms" => Some(count),
        "s" => count.checked_mul(1000),
        "m" => count.checked_mul(60_000),
        _ => None,
    };
    millis.map(Duration::from_millis).ok_or_else(|| unreadable(name, value, expected))
}

/// An endpoint must be a web address. What is wrong with one is not repeated where it carries credentials.
fn check_endpoint(name: &str, value: &str) -> Result<()> {
    let refused = |why: &str| Err(Error::new(ErrorKind::Invalid, format!("store option {name}: {why}")));
    let Ok(url) = url::Url::parse(value) else {
        return refused(&format!("{value:?} is not an address such as https://host:port"));
    };
    if !url.username().is_empty() || url.password().is_some() {
        return refused("it carries credentials; give them by settings of their own");
    }
    match (url.scheme(), url.host_str()) {
        ("http" | "https", Some(_)) => Ok(()),
        _ => refused(&format!("{value:?} is not an address such as https://host:port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(all: &[(&str, &str)]) -> StoreOptions {
        StoreOptions::from_vars(all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn only_the_providers_variables_are_taken_and_no_value_is_shown() {
        let options = vars(&[("AWS_SECRET_ACCESS_KEY", "s3cr3t"), ("HOME", "/root"), ("CONNECT_TIMEOUT", "1ms")]);
        let shown = format!("{options:?}");
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("s3cr3t") && !shown.contains("HOME"));
        assert_eq!(options.connect_timeout, StoreOptions::default().connect_timeout);
        options.validate().unwrap();
    }

    #[test]
    fn a_file_outranks_the_environment_and_its_errors_name_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("options");
        let text = "# store\n\nAWS_REGION = eu-1\nAWS_SECRET_ACCESS_KEY=\"a=b\"\nSTALL_TIMEOUT=2m\nHEDGE=off\nRETRY_PAUSE=250ms\n";
        std::fs::write(&path, text).unwrap();
        let mut options = vars(&[("AWS_REGION", "us-1")]);
        options.apply_file(&path).unwrap();
        let aws: Vec<_> = options.provider("AWS_").collect();
        assert_eq!(aws, [("AWS_REGION", "eu-1"), ("AWS_SECRET_ACCESS_KEY", "a=b")]);
        assert_eq!(options.stall_timeout, Duration::from_secs(120));
        assert_eq!(options.retry.pause, Duration::from_millis(250));
        assert!(!options.hedge.enabled);

        for (line, why) in [
            ("s3cr3t", "line 2: expected NAME=VALUE"),
            ("AWS_SECRET_KEY=s3cr3t", "AWS_SECRET_KEY"),
            ("AWS_TIMEOUT=5s", "STALL_TIMEOUT"),
            ("AWS_BUCKET=b", "URL"),
            ("TIMEOUT=5", "\"TIMEOUT\" is not known"),
            ("CONNECT_TIMEOUT=5", "such as 500ms"),
            ("CONNECT_TIMEOUT=99999999999999999999s", "such as 500ms"),
            ("HEDGE=maybe", "on or off"),
            ("RETRY_TRIES=-1", "whole number"),
        ] {
            std::fs::write(&path, format!("#\n{line}\n")).unwrap();
            let e = vars(&[]).apply_file(&path).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Invalid);
            let shown = e.to_string();
            assert!(shown.contains(why) && shown.contains("line 2") && !shown.contains("s3cr3t"), "{line}: {shown}");
        }
        std::fs::write(&path, vec![b'#'; 70_000]).unwrap();
        assert_eq!(vars(&[]).apply_file(&path).unwrap_err().kind(), ErrorKind::Invalid);
        let missing = vars(&[]).apply_file(&dir.path().join("none")).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn every_bound_is_checked() {
        for (name, low, high) in [
            ("CONNECT_TIMEOUT", "99ms", "121s"),
            ("STALL_TIMEOUT", "99ms", "601s"),
            ("MIN_UPLOAD_RATE", "1023", "1073741825"),
            ("RETRY_TRIES", "0", "101"),
            ("RETRY_TOTAL", "999ms", "3601s"),
            ("RETRY_CONNECT_TRIES", "0", "101"),
            ("RETRY_PAUSE", "0ms", "11s"),
            ("RETRY_PAUSE_MAX", "99ms", "61s"),
            ("HEDGE_FLOOR", "0ms", "61s"),
            ("HEDGE_CEILING", "99ms", "601s"),
            ("HEDGE_SHARE_PERCENT", "-1", "101"),
            ("IDLE_BUFFERS", "-1", "1073741825"),
        ] {
            for value in [low, high] {
                let mut options = vars(&[]);
                let checked = options.set(name, value).and_then(|()| options.validate());
                let e = checked.unwrap_err();
                assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains(name), "{e}");
            }
        }
    }

    #[test]
    fn the_manual_lists_every_setting_with_its_default() {
        let manual = include_str!("../../docs/storage-sites.md");
        let rows = manual.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let rows: Vec<(&str, &str)> =
            rows.map(|(name, rest)| (name, rest.split(" |").next().unwrap_or_default())).collect();
        assert_eq!(rows.iter().map(|(name, _)| *name).collect::<Vec<_>>(), SETTINGS);
        for (name, default) in rows {
            let mut options = StoreOptions::default();
            options.set(name, default).unwrap();
            assert!(options == StoreOptions::default(), "{name} is not {default} unless told");
        }
    }

    #[test]
    fn endpoints_are_web_addresses_without_credentials() {
        for good in ["http://127.0.0.1:9000", "https://s3.example.com", "https://host/path"] {
            vars(&[("AWS_ENDPOINT_URL", good)]).validate().unwrap();
        }
        for bad in ["localhost:9000", "host", "", "ftp://host", "https://", "https://key:s3cr3t@host"] {
            let e = vars(&[("AWS_ENDPOINT_URL", bad)]).validate().unwrap_err().to_string();
            assert!(e.contains("AWS_ENDPOINT_URL") && !e.contains("s3cr3t"), "{e}");
        }
        assert!(vars(&[("AWS_ENDPOINT_URL", "http://h")]).endpoint_is_http());
        assert!(!vars(&[("AWS_ENDPOINT_URL", "https://h")]).endpoint_is_http());
        assert!(vars(&[("AWS_CONDITIONAL_PUT", "disabled")]).validate().is_err());
    }
}
