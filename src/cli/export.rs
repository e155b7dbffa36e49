//! `freshet export`: disks served over NBD as they are, without protection, until a signal ends it.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::context::Context;
use super::report::Report;
use super::served_disks::{ServedDisk, parse_served_disk};
use super::tls_args::TlsArgs;
use super::units::{bytes, parse_size};
use super::values::Engine;
use crate::datastore::DiskEngine;
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::{
    BackingDisk, Buffers, CacheMode, Exports, Image, ImageOptions, Listen, Server, ServerOptions, start_engine,
};

/// How long requests in flight may take once the program is asked to stop.
const GRACE: Duration = Duration::from_secs(30);

/// Budget for all buffers unless another is given, in bytes.
const DEFAULT_MEMORY: u64 = 256 << 20;

/// Connections at once unless another number is given.
const DEFAULT_CONNECTIONS: usize = 64;

/// Serve disks over NBD without protecting them, until SIGTERM or SIGINT
#[derive(Debug, Args)]
pub(super) struct Export {
    /// A disk: a raw image file or a block device, and perhaps the size it must have; `grow` extends a file that is
    /// smaller. Can be repeated
    #[arg(long = "disk", value_name = "NAME=PATH[,size=SIZE][,grow]", required = true, value_parser = parse_served_disk)]
    disks: Vec<ServedDisk>,
    /// Where to listen: unix:/path or tcp:host:port. Can be repeated
    #[arg(long, value_name = "ADDRESS", required = true)]
    listen: Vec<Listen>,
    /// Whether the page cache stands between clients and disks
    #[arg(long, value_enum, default_value_t = Cache::Direct)]
    cache: Cache,
    /// Refuse all changes; several servers may serve an image so
    #[arg(long)]
    read_only: bool,
    #[command(flatten)]
    tls: TlsArgs,
    /// Most connections at once
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CONNECTIONS)]
    connections: usize,
    /// Budget for all buffers
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value_t = DEFAULT_MEMORY)]
    memory: u64,
    /// Disk engine
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    engine: Engine,
}

/// Where reads and writes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cache {
    /// Past the page cache
    Direct,
    /// Through the page cache; flush and FUA make durable
    WriteBack,
}

impl From<Cache> for CacheMode {
    fn from(cache: Cache) -> CacheMode {
        match cache {
            Cache::Direct => CacheMode::Direct,
            Cache::WriteBack => CacheMode::WriteBack,
        }
    }
}

impl Export {
    pub(super) async fn run(self, context: &Context) -> Result<Report> {
        self.check_names()?;
        let tls = self.tls.load()?;
        let buffers = Buffers::new(self.memory, self.connections)?;
        let engine = start_engine(self.engine.into(), self.cache.into(), &buffers)?;
        let (exports, disks) = self.open(&engine)?;
        let options = ServerOptions { tls, engine: Some(Arc::clone(&engine)), ..Default::default() };
        let server = Server::start(&self.listen, exports, buffers, options)?;
        context.output.event(&self.ready_json(&server, &disks, &engine), &self.ready_text(&server, &disks))?;
        context.cancel.cancelled().await;
        let drained = server.shutdown(GRACE).await;
        for disk in &disks {
            let synced = disk.sync_data().await;
            synced
                .map_err(|e| Error::with_source(ErrorKind::Io, format!("sync {}", disk.image().path().display()), e))?;
        }
        let text = match drained.cut {
            0 => "stopped; everything is on the disks".to_owned(),
            n => format!("stopped; {n} connections were cut off with requests in flight"),
        };
        Report::new(&json!({ "event": "stopped", "cut": drained.cut }), text)
    }

    fn check_names(&self) -> Result<()> {
        for (i, disk) in self.disks.iter().enumerate() {
            if self.disks[..i].iter().any(|other| other.name == disk.name) {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("--disk {}: there are two of that name", disk.name),
                ));
            }
        }
        Ok(())
    }

    fn open(&self, engine: &Arc<dyn DiskEngine>) -> Result<(Exports, Vec<Arc<BackingDisk>>)> {
        let (exports, mut disks) = (Exports::new(), Vec::new());
        for disk in &self.disks {
            let options = ImageOptions { size: disk.size, grow: disk.grow, read_only: self.read_only };
            let image = Image::open(&disk.path, options)?;
            let backing = BackingDisk::open(Arc::clone(engine), image, self.cache.into())?;
            exports.add(disk.name.as_str(), Arc::clone(&backing) as Arc<dyn crate::nbd::Export>)?;
            disks.push(backing);
        }
        Ok((exports, disks))
    }

    fn uris(&self, server: &Server, disk: &ServedDisk) -> Vec<String> {
        let tls = self.tls.is_on();
        server.addresses().iter().map(|address| address.uri(disk.name.as_str(), tls)).collect()
    }

    fn ready_json(&self, server: &Server, disks: &[Arc<BackingDisk>], engine: &Arc<dyn DiskEngine>) -> Value {
        let exports = self.disks.iter().zip(disks).map(|(disk, backing)| {
            json!({
                "name": disk.name.as_str(), "path": backing.image().path(), "size": backing.size(),
                "read_only": self.read_only, "uris": self.uris(server, disk),
            })
        });
        let info = engine.info();
        json!({
            "event": "ready",
            "addresses": server.addresses().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "exports": exports.collect::<Vec<_>>(),
            "cache": match self.cache { Cache::Direct => "direct", Cache::WriteBack => "write-back" },
            "tls": self.tls.is_on(),
            "engine": format!("{:?}", info.kind),
            "notes": info.fallbacks,
            "process": std::process::id(),
        })
    }

    fn ready_text(&self, server: &Server, disks: &[Arc<BackingDisk>]) -> String {
        let mut out = String::new();
        for (disk, backing) in self.disks.iter().zip(disks) {
            out += &format!("{}  {}  {}\n", disk.name, bytes(backing.size()), backing.image().path().display());
            for uri in self.uris(server, disk) {
                out += &format!("  {uri}\n");
            }
        }
        out + "not protected: nothing of what is written is replicated"
    }
}
