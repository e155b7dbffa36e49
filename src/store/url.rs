//! The URL of a storage site: what it may look like, and what is said where it does not.
//!
//! Pure text, no I/O. A URL never carries credentials: one with a user, a password, a query or a fragment is refused,
//! so that a [`StoreUrl`] can be shown, logged and written into a file as it is.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The forms that a storage site's URL takes; every refusal repeats them.
const FORMS: &str = "file:///directory, s3://bucket/prefix, az://container/prefix or gs://bucket/prefix";

/// Which service an object store speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// S3 and what is compatible with it.
    S3,
    /// Azure Blob Storage.
    Azure,
    /// Google Cloud Storage.
    Gcs,
}

impl Provider {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Provider::S3 => "S3",
            Provider::Azure => "Azure Blob Storage",
            Provider::Gcs => "Google Cloud Storage",
        }
    }

    /// What the provider calls the thing that holds objects.
    pub fn container_word(self) -> &'static str {
        match self {
            Provider::Azure => "container",
            Provider::S3 | Provider::Gcs => "bucket",
        }
    }
}

/// Where a storage site is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// A directory of this machine or of a network file system.
    File {
        /// Absolute path.
        dir: PathBuf,
    },
    /// An object store.
    Cloud {
        /// The service.
        provider: Provider,
        /// Bucket or container.
        bucket: String,
        /// Folder of the site in the bucket: empty, or parts joined by `/` without one at either end.
        prefix: String,
    },
}

impl StoreUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] that says what is wrong and what is expected.
    pub fn parse(text: &str) -> Result<StoreUrl> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(bad(text, "it has no scheme"));
        };
        if text.chars().any(char::is_control) {
            return Err(bad(text, "it contains control characters"));
        }
        let provider = match scheme {
            "file" => return parse_file(text, rest),
            "s3" => Provider::S3,
            "az" => Provider::Azure,
            "gs" => Provider::Gcs,
            other => return Err(bad(text, &format!("scheme {other:?} is not known"))),
        };
        parse_cloud(text, provider, rest)
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, bucket, prefix) = match self {
            StoreUrl::File { dir } => return write!(f, "file://{}", escape_path(dir)),
            StoreUrl::Cloud { provider: Provider::S3, bucket, prefix } => ("s3", bucket, prefix),
            StoreUrl::Cloud { provider: Provider::Azure, bucket, prefix } => ("az", bucket, prefix),
            StoreUrl::Cloud { provider: Provider::Gcs, bucket, prefix } => ("gs", bucket, prefix),
        };
        match prefix.is_empty() {
            true => write!(f, "{scheme}://{bucket}"),
            false => write!(f, "{scheme}://{bucket}/{prefix}"),
        }
    }
}

/// A refusal. What stands before an `@` could be a secret and is not repeated.
fn bad(text: &str, why: &str) -> Error {
    let shown = match (text.split_once("://"), text.rfind('@')) {
        (Some((scheme, _)), Some(at)) => format!("{scheme}://...{}", &text[at..]),
        (None, Some(at)) => format!("...{}", &text[at..]),
        (_, None) => text.to_owned(),
    };
    let shown = shown.split_once('?').map_or(shown.clone(), |(head, _)| format!("{head}?..."));
    Error::new(ErrorKind::Invalid, format!("storage site URL {shown:?}: {why}; expected {FORMS}"))
}

fn parse_file(text: &str, rest: &str) -> Result<StoreUrl> {
    let Some(path) = rest.strip_prefix('/') else {
        return Err(bad(text, "file:// takes an absolute path, with three slashes before it, and no host"));
    };
    let decoded = decode(path).ok_or_else(|| bad(text, "a % is not followed by two hexadecimal digits"))?;
    if decoded.split('/').any(|part| part == "..") {
        return Err(bad(text, "the path contains .."));
    }
    if decoded.contains('\0') {
        return Err(bad(text, "the path contains a zero byte"));
    }
    let dir: PathBuf = Path::new("/").join(decoded.trim_matches('/')).components().collect();
    if dir == Path::new("/") {
        return Err(bad(text, "the directory is missing"));
    }
    Ok(StoreUrl::File { dir })
}

fn parse_cloud(text: &str, provider: Provider, rest: &str) -> Result<StoreUrl> {
    let word = provider.container_word();
    let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
    if rest.contains('@') {
        return Err(bad(text, "it carries credentials; give them by environment variables or an options file"));
    }
    if rest.contains(['?', '#']) {
        return Err(bad(
            text,
            "it has a query or a fragment; settings go into environment variables or an options file",
        ));
    }
    if bucket.contains(':') {
        return Err(bad(text, "it names a port; the endpoint goes into an environment variable or an options file"));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'$');
    if bucket.is_empty() || bucket.len() > 255 || !bucket.bytes().all(plain) {
        return Err(bad(text, &format!("{bucket:?} is not the name of a {word}")));
    }
    let prefix = path.strip_suffix('/').unwrap_or(path);
    for part in prefix.split('/').filter(|_| !prefix.is_empty()) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'=' | b'+');
        if part.is_empty() || part == "." || part == ".." || !part.bytes().all(plain) {
            return Err(bad(text, &format!("prefix part {part:?} is not made of letters, digits and -._=+")));
        }
    }
    Ok(StoreUrl::Cloud { provider, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
}

/// Undoes percent escapes; `None` where one is cut short, is not hexadecimal, or the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        rest = tail;
        if b != b'%' {
            bytes.push(b);
            continue;
        }
        let hex = std::str::from_utf8(rest.get(..2)?).ok().filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        rest = rest.get(2..)?;
    }
    String::from_utf8(bytes).ok()
}

fn escape_path(dir: &Path) -> String {
    let mut out = String::new();
    for c in dir.to_string_lossy().chars() {
        match c {
            '%' => out.push_str("%25"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_urls_are_read_and_shown_again() {
        for (text, shown) in [
            ("file:///srv/store", "file:///srv/store"),
            ("file:///srv//store/", "file:///srv/store"),
            ("file:///srv/my%20store", "file:///srv/my store"),
            ("file:///srv/50%25", "file:///srv/50%25"),
            ("file:///srv/my store?#@x", "file:///srv/my store?#@x"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("az://container/p", "az://container/p"),
            ("gs://bucket/p", "gs://bucket/p"),
        ] {
            let url = StoreUrl::parse(text).unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(StoreUrl::parse(&url.to_string()).unwrap(), url, "{text}");
        }
    }

    #[test]
    fn bad_urls_say_what_is_expected() {
        for (text, why) in [
            ("", "no scheme"),
            ("/srv/store", "no scheme"),
            ("http://host/x", "not known"),
            ("S3://bucket/x", "not known"),
            ("file://", "absolute"),
            ("file:///", "missing"),
            ("file://host/dir", "absolute"),
            ("file://dir", "absolute"),
            ("file:///a/../b", ".."),
            ("file:///a/%2e%2e/b", ".."),
            ("file:///a%2", "%"),
            ("file:///a%+1", "%"),
            ("s3://", "name of a bucket"),
            ("s3:///prefix", "name of a bucket"),
            ("az:///prefix", "name of a container"),
            ("s3://buck et/x", "name of a bucket"),
            ("s3://bucket:9000/x", "port"),
            ("s3://bucket//x", "prefix part"),
            ("s3://bucket/a/../b", "prefix part"),
            ("s3://bucket/a b", "prefix part"),
            ("s3://bucket/x?region=r", "query"),
            ("s3://bucket/x#y", "fragment"),
            ("s3://buck\net/x", "control"),
        ] {
            let e = StoreUrl::parse(text).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Invalid);
            let shown = e.to_string();
            assert!(shown.contains(why) && shown.contains("s3://bucket/prefix"), "{text}: {shown}");
        }
    }

    #[test]
    fn secrets_in_a_refused_url_are_not_repeated() {
        for text in ["s3://key:s3cr3t@bucket/x", "https://key:s3cr3t@host", "key:s3cr3t@host", "az://c/x?sig=s3cr3t"] {
            let shown = StoreUrl::parse(text).unwrap_err().to_string();
            assert!(!shown.contains("s3cr3t"), "{shown}");
        }
        let shown = StoreUrl::parse("s3://key:s3cr3t@bucket/x").unwrap_err().to_string();
        assert!(shown.contains("credentials"), "{shown}");
    }
}
