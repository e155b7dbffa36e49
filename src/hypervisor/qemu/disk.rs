//! From the URI of a disk to what QEMU opens. Pure.

use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};

/// The block node `node` for the disk at `uri`: an NBD export, or a raw image of this host.
///
/// # Errors
/// `Unsupported` where the URI is of another kind, `Invalid` where it is none.
pub(super) fn node(node: &str, uri: &str, reconnect_seconds: u64) -> Result<Value> {
    let bad = |why: &str| Error::new(ErrorKind::Invalid, format!("disk URI {uri}: {why}"));
    let parsed = url::Url::parse(uri).map_err(|e| bad(&e.to_string()))?;
    let export = || {
        let path = parsed.path().strip_prefix('/').unwrap_or_default();
        unescape(path).ok_or_else(|| bad("the name of the export is not UTF-8"))
    };
    let nbd = |server: Value| {
        Ok(json!({
            "driver": "nbd", "server": server, "export": export()?,
            "reconnect-delay": reconnect_seconds, "open-timeout": OPEN_TIMEOUT_SECONDS,
        }))
    };
    let file = match parsed.scheme() {
        "nbd+unix" => {
            let socket = parsed.query_pairs().find(|(name, _)| name == "socket");
            let (_, path) = socket.ok_or_else(|| bad("it names no socket"))?;
            nbd(json!({"type": "unix", "path": path}))?
        }
        "nbd" => {
            let host = parsed.host_str().ok_or_else(|| bad("it names no host"))?;
            let host = host.trim_start_matches('[').trim_end_matches(']');
            nbd(json!({"type": "inet", "host": host, "port": parsed.port().unwrap_or(10_809).to_string()}))?
        }
        "file" => {
            let path = unescape(parsed.path()).ok_or_else(|| bad("the path is not UTF-8"))?;
            // As the guest's own disk: past the page cache, and zeros stay holes.
            json!({"driver": "file", "filename": path, "discard": "unmap"})
        }
        other => {
            let why = format!("disk URI {uri}: {other} is none of nbd+unix, nbd, file");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
    };
    Ok(json!({
        "driver": "raw", "node-name": node, "discard": "unmap",
        "cache": {"direct": true, "no-flush": false}, "file": file,
    }))
}

/// How long QEMU tries to reach an export when it opens one.
const OPEN_TIMEOUT_SECONDS: u64 = 20;

fn unescape(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(out).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_and_files_are_opened_as_their_uris_say() {
        let unix = node("d0", "nbd+unix:///web%20a/sys%25,x?socket=/run/a%20b,c.sock", 60).unwrap();
        assert_eq!(unix["file"]["export"], "web a/sys%,x");
        assert_eq!(unix["file"]["server"], json!({"type": "unix", "path": "/run/a b,c.sock"}));
        assert_eq!((&unix["node-name"], &unix["file"]["reconnect-delay"]), (&"d0".into(), &60.into()));
        let tcp = node("d0", "nbd://[::1]:7/e", 1).unwrap();
        assert_eq!(tcp["file"]["server"], json!({"type": "inet", "host": "::1", "port": "7"}));
        let file = node("d0", "file:///a%20b", 1).unwrap();
        assert_eq!(file["file"]["filename"], "/a b");
        assert_eq!(file["cache"]["direct"], true);
    }

    #[test]
    fn our_own_uris_come_back_as_what_they_are_of() {
        let socket = crate::nbd::Address::Unix("/tmp/x y/s,%.sock".into());
        let name = "web % shop/disk/0,é";
        let made = node("d", &socket.uri(name, false), 1).unwrap();
        assert_eq!(
            (&made["file"]["export"], &made["file"]["server"]["path"]),
            (&name.into(), &"/tmp/x y/s,%.sock".into())
        );
    }

    #[test]
    fn others_are_refused() {
        for uri in ["", "rbd:pool/x", "http://h/x", "nbd+unix:///x", "nbds://h/x", "nbd+unix:///%ff?socket=/s"] {
            assert!(node("d", uri, 1).is_err(), "{uri}");
        }
    }
}
