//! An export of Freshet's as libvirt and QEMU are told of it.

use std::path::Path;

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use url::Url;

use super::definition::Source;
use super::fit::RECONNECT_SECONDS;
use super::xml::Element;
use crate::error::{Error, ErrorKind, Result};

/// Port of NBD where none is named.
const NBD_PORT: u16 = 10_809;

/// Where an export is served.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Unix(String),
    Tcp(String, u16),
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Export {
    name: String,
    place: Place,
}

impl Export {
    /// Whether its socket is in `dir`.
    pub(super) fn is_in(&self, dir: &Path) -> bool {
        matches!(&self.place, Place::Unix(socket) if Path::new(socket).starts_with(dir))
    }

    /// From its URI, as [`crate::nbd::Address::uri`] writes it.
    ///
    /// # Errors
    /// `Invalid`.
    pub(super) fn parse(uri: &str) -> Result<Export> {
        let bad = |why: &str| Error::new(ErrorKind::Invalid, format!("disk {uri}: {why}"));
        let url = Url::parse(uri).map_err(|e| bad(&e.to_string()))?;
        let decoded = |text: &str| {
            let text = percent_decode_str(text).decode_utf8();
            text.map(|text| text.into_owned()).map_err(|_| bad("it is not UTF-8"))
        };
        let name = decoded(url.path().strip_prefix('/').unwrap_or_default())?;
        let place = match url.scheme() {
            "nbd+unix" => {
                let socket = url.query_pairs().find(|(name, _)| name == "socket");
                Place::Unix(socket.ok_or_else(|| bad("it names no socket"))?.1.into_owned())
            }
            "nbd" => {
                let host = url.host_str().ok_or_else(|| bad("it names no host"))?;
                let host = host.trim_start_matches('[').trim_end_matches(']');
                Place::Tcp(host.to_owned(), url.port().unwrap_or(NBD_PORT))
            }
            other => return Err(bad(&format!("{other} is not known; nbd and nbd+unix are"))),
        };
        Ok(Export { name, place })
    }

    /// From the source of a disk; `None` where it is no export that QEMU can be told of.
    pub(super) fn of(source: &Element) -> Option<Export> {
        let host = source.child("host")?;
        let name = source.attr("name").to_owned();
        let place = match host.attr("transport") {
            "unix" => Place::Unix(host.attr("socket").to_owned()),
            "" | "tcp" => Place::Tcp(host.attr("name").to_owned(), host.attr("port").parse().unwrap_or(NBD_PORT)),
            _ => return None,
        };
        Some(Export { name, place })
    }

    /// As the source of a disk.
    pub(super) fn source(&self) -> Element {
        let host = match &self.place {
            Place::Unix(socket) => Element::new("host").with("transport", "unix").with("socket", socket),
            Place::Tcp(host, port) => Element::new("host").with("name", host).with("port", &port.to_string()),
        };
        let reconnect = Element::new("reconnect").with("delay", &RECONNECT_SECONDS.to_string());
        let source = Element::new("source").with("protocol", "nbd").with("name", &self.name);
        source.and(host).and(reconnect)
    }

    /// As a node of QEMU's, which connects again by itself.
    pub(super) fn node(&self, node: &str) -> Value {
        let server = match &self.place {
            Place::Unix(path) => json!({"type": "unix", "path": path}),
            Place::Tcp(host, port) => json!({"type": "inet", "host": host, "port": port.to_string()}),
        };
        json!({
            "driver": "nbd",
            "node-name": node,
            "server": server,
            "export": self.name,
            "reconnect-delay": RECONNECT_SECONDS,
            "discard": "unmap",
            "cache": {"direct": true},
        })
    }

    /// Whether a disk is on it.
    pub(super) fn is(&self, source: &Source) -> bool {
        match (source, &self.place) {
            (Source::Nbd { export, socket: Some(socket) }, Place::Unix(here)) => {
                *export == self.name && socket.as_os_str() == here.as_str()
            }
            (Source::Nbd { export, socket: None }, Place::Tcp(..)) => *export == self.name,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ours_comes_back() {
        let socket = std::path::PathBuf::from("/run/fresh et/d.sock");
        let uri = crate::nbd::Address::Unix(socket.clone()).uri("web&1/root", false);
        let export = Export::parse(&uri).unwrap();
        assert_eq!(
            export.source().write().unwrap(),
            "<source protocol=\"nbd\" name=\"web&amp;1/root\"><host transport=\"unix\" socket=\"/run/fresh et/d.sock\"/>\
             <reconnect delay=\"300\"/></source>"
        );
        assert_eq!(export.node("n")["server"]["path"], "/run/fresh et/d.sock");
        let there = |export: &str| Source::Nbd { export: export.into(), socket: Some(socket.clone()) };
        assert!(export.is(&there("web&1/root")) && !export.is(&there("web/root")));
        let elsewhere = Source::Nbd { export: "web&1/root".into(), socket: Some("/other.sock".into()) };
        assert!(!export.is(&elsewhere), "the same name at another appliance is another disk");
        let tcp = Export::parse("nbd://[::1]:9/a%20b").unwrap();
        assert_eq!(tcp.source().child("host").unwrap().attr("name"), "::1");
        assert_eq!(tcp.node("n")["export"], "a b");
        for bad in ["", "http://x/", "nbd+unix:///x", "nbd+unix:///%ff?socket=/x"] {
            assert_eq!(Export::parse(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }
}
