//! QEMU's NBD clients, told to connect again.
//!
//! A client of QEMU's gives up with its first connection unless it is told how long to try again. libvirt tells it so from
//! version 9.5 on (`<reconnect>`); older ones leave the element out without a word. There the client is replaced while the
//! guest runs: another one that connects again is added, and the disk is made to use it, between two requests. What libvirt
//! knows of the disk stays true: the same export at the same place.
//!
//! ```text
//! guest -> libvirt-N-format (raw) -> libvirt-N-storage (nbd, gives up)
//!                      \-----------> freshet-N (nbd, connects again)
//! ```

use std::path::Path;

use serde_json::{Value, json};

use super::LibvirtDriver;
use super::definition::Definition;
use super::export::Export;
use super::virsh::Listed;
use crate::error::{Error, ErrorKind, Result};

/// Nodes of ours begin so.
const OURS: &str = "freshet-";

impl LibvirtDriver {
    async fn qmp(&self, vm: &Listed, command: Value) -> Result<Value> {
        let text = command.to_string();
        let said = self.virsh.ask(&["qemu-monitor-command", &vm.uuid, &text]).await?;
        let answer: Value = serde_json::from_str(&said)
            .map_err(|e| Error::with_source(ErrorKind::Damaged, format!("QEMU's answer to {text}"), e))?;
        match answer.get("error") {
            Some(error) => Err(Error::new(ErrorKind::Io, format!("QEMU refuses {text}: {error}"))),
            None => Ok(answer["return"].clone()),
        }
    }

    /// Has the clients of a running VM's exports connect again, where libvirt did not. How many were replaced.
    ///
    /// # Errors
    /// What libvirt and QEMU say; the guest runs on as it was.
    pub(super) async fn reconnect_again(&self, vm: &Listed) -> Result<usize> {
        let _one = self.replacing.lock().await;
        let text = self.virsh.ask(&["dumpxml", &vm.uuid]).await?;
        let definition = Definition::parse(&text)?;
        let wanting = wanting(&definition, &self.virsh.settings.exports);
        if wanting.is_empty() {
            return Ok(0);
        }
        let nodes = self.qmp(vm, json!({"execute": "query-named-block-nodes", "arguments": {"flat": true}})).await?;
        let mut replaced = 0;
        for Wanting { index, export } in wanting {
            let (format, own) = (format!("libvirt-{index}-format"), format!("{OURS}{index}"));
            let has = |name: &str| nodes.as_array().is_some_and(|all| all.iter().any(|node| node["node-name"] == name));
            if has(&own) || !has(&format) {
                continue;
            }
            self.qmp(vm, json!({"execute": "blockdev-add", "arguments": export.node(&own)})).await?;
            let options = json!({
                "driver": "raw",
                "node-name": format,
                "file": own,
                "read-only": false,
                "discard": "unmap",
                "cache": {"direct": true},
            });
            let reopen = json!({"execute": "blockdev-reopen", "arguments": {"options": [options]}});
            if let Err(error) = self.qmp(vm, reopen).await {
                let _ = self.qmp(vm, json!({"execute": "blockdev-del", "arguments": {"node-name": own}})).await;
                return Err(error);
            }
            replaced += 1;
        }
        Ok(replaced)
    }
}

impl LibvirtDriver {
    /// Removes clients of ours that no disk uses any more. One that stays costs a connection, and is no error.
    pub(super) async fn drop_own_nodes(&self, vm: &Listed) {
        let asked = json!({"execute": "query-named-block-nodes", "arguments": {"flat": true}});
        let Ok(nodes) = self.qmp(vm, asked).await else { return };
        let names = nodes.as_array().into_iter().flatten().filter_map(|node| node["node-name"].as_str());
        for name in names.filter(|name| name.starts_with(OURS)) {
            // One that is in use refuses.
            let remove = json!({"execute": "blockdev-del", "arguments": {"node-name": name}});
            if let Err(error) = self.qmp(vm, remove).await {
                tracing::debug!(vm = %vm.name, node = name, "it stays: {error}");
            }
        }
    }
}

/// A disk whose client gives up with its first connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanting {
    index: String,
    export: Export,
}

/// Of exports whose sockets are in `exports`: others are somebody else's.
pub(super) fn wanting(definition: &Definition, exports: &Path) -> Vec<Wanting> {
    let devices = definition.root.child("devices");
    let disks = devices.into_iter().flat_map(|devices| devices.all("disk"));
    let wants = |disk: &super::xml::Element| {
        let source = disk.child("source").filter(|source| source.attr("protocol") == "nbd")?;
        let index = source.attr("index");
        let known = !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit());
        if source.child("reconnect").is_some() || !known {
            return None;
        }
        let export = Export::of(source).filter(|export| export.is_in(exports))?;
        Some(Wanting { index: index.to_owned(), export })
    };
    disks.filter_map(wants).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clients_that_give_up_are_replaced() {
        let text = |more: &str| {
            format!(
                "<domain><name>a</name><devices><disk type='network'><source protocol='nbd' name='a/b' index='3'>\
                 <host transport='unix' socket='/s'/>{more}</source></disk><disk type='file'><source file='/x' index='1'/>\
                 </disk></devices></domain>"
            )
        };
        let found = wanting(&Definition::parse(&text("")).unwrap(), Path::new("/"));
        let export = Export::parse("nbd+unix:///a/b?socket=/s").unwrap();
        assert_eq!(found, [Wanting { index: "3".into(), export }]);
        assert_eq!(wanting(&Definition::parse(&text("<reconnect delay='9'/>")).unwrap(), Path::new("/")), []);
        assert_eq!(wanting(&Definition::parse(&text("")).unwrap(), Path::new("/run/freshet")), [], "somebody else's");
    }
}
