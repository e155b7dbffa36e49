//! What this machine could do at best, by tools that are not ours: fio for the disk, a bare reader for the store,
//! libzstd over the same frames on all cores.
//!
//! `limit = max(slowest stage, busiest device, CPU seconds of all stages, server included, / cores)`: a pipeline that
//! overlaps all stages without a gap, and spends nothing on checksums, planning or bookkeeping, would take as long.
//! Store and disks are on one device here, so that what both need of it adds up. Writing ends with a sync, as ours does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use freshet::format::{Codec, FRAME_HEADER_LEN, Segment};
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::signer::Signer;

use crate::Outcome;
use crate::image::{BLOCK, blocks};
use crate::process::{drop_cache, own_cpu, run, stolen_so_far};
use crate::server::Server;

/// One range of the bare reader, as ours.
const RANGE: u64 = 4 << 20;
/// Connections of the bare reader.
const CONNECTIONS: usize = 8;

/// What one stage takes alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    /// Seconds by the clock.
    pub(crate) wall: f64,
    /// CPU seconds, those of a server included.
    pub(crate) cpu: f64,
    /// Processor seconds that the hypervisor gave to others meanwhile, where that was looked at.
    pub(crate) stolen: f64,
    /// Seconds for which it needs the disk.
    pub(crate) disk: f64,
}

/// Processors.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The least that stages which overlap can take, in seconds.
pub(crate) fn limit(stages: &[Stage]) -> f64 {
    let slowest = stages.iter().map(|s| s.wall).fold(0.0, f64::max);
    let disk: f64 = stages.iter().map(|s| s.disk).sum();
    let cpu: f64 = stages.iter().map(|s| s.cpu).sum();
    slowest.max(disk).max(cpu / cores() as f64)
}

/// fio writes `bytes` to a new file, which is left there, durably; the faster of two block sizes, both of which ours uses.
pub(crate) fn disk_write(path: &Path, bytes: u64) -> Outcome<Stage> {
    let mut best: Option<Stage> = None;
    for block in [1 << 20, 256 << 10] {
        let _ = std::fs::remove_file(path);
        let size = format!("--size={}", bytes.next_multiple_of(1 << 20));
        let stage = fio("disk write", &["--rw=write", &size], block, &path.display().to_string())?;
        let stage = durable(stage, path)?;
        if best.is_none_or(|best| stage.wall < best.wall) {
            best = Some(stage);
        }
    }
    best.ok_or_else(|| "no block size".into())
}

/// fio writes `bytes` into a new file whose space is reserved, as that of the log is.
pub(crate) fn disk_reserved(path: &Path, bytes: u64) -> Outcome<Stage> {
    let bytes = bytes.next_multiple_of(1 << 20);
    let file = std::fs::File::create(path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
    file.sync_all()?;
    let size = format!("--size={bytes}");
    let stage = fio("disk write", &["--rw=write", &size], 1 << 20, &path.display().to_string())?;
    durable(stage, path)
}

/// Adds what a sync of the file takes. fio's own `end_fsync` is not in its run time.
fn durable(stage: Stage, path: &Path) -> Outcome<Stage> {
    let begun = Instant::now();
    std::fs::File::open(path)?.sync_all()?;
    let wall = stage.wall + begun.elapsed().as_secs_f64();
    Ok(Stage { wall, disk: wall, ..stage })
}

/// fio reads files from the disk.
pub(crate) fn disk_read(name: &'static str, files: &[PathBuf]) -> Outcome<Stage> {
    files.iter().try_for_each(|file| drop_cache(file))?;
    let names: Vec<String> = files.iter().map(|f| f.display().to_string().replace(':', "\\:")).collect();
    // One process may not be given more names than fit its command line.
    let mut sum = Stage { name, wall: 0.0, cpu: 0.0, stolen: 0.0, disk: 0.0 };
    for names in names.chunks(256) {
        let stage = fio(name, &["--rw=read", "--file_service_type=sequential"], 1 << 20, &names.join(":"))?;
        let wall = sum.wall + stage.wall;
        sum = Stage { name, wall, cpu: sum.cpu + stage.cpu, stolen: 0.0, disk: wall };
    }
    Ok(sum)
}

fn fio(name: &'static str, args: &[&str], block: u64, files: &str) -> Outcome<Stage> {
    let mut command = Command::new("fio");
    // glibc then asks for huge pages for what fio allocates: scattered small pages would make it slower than ours.
    command.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    command.args(["--name=limit", "--ioengine=io_uring", "--fixedbufs=1", "--direct=1", "--thread=1", "--iodepth=32"]);
    command.args(["--output-format=json", "--fallocate=none"]).args(args);
    command.arg(format!("--bs={block}")).arg(format!("--filename={files}"));
    let report = run(&mut command)?.json()?;
    let job = &report["jobs"][0];
    let number = |field: &str| job[field].as_f64().ok_or_else(|| format!("fio's report has no {field}"));
    let wall = number("job_runtime")? / 1e3;
    Ok(Stage { name, wall, cpu: wall * (number("usr_cpu")? + number("sys_cpu")?) / 100.0, stolen: 0.0, disk: wall })
}

/// Plain sockets read all segments of the S3 server, each byte once into the same buffers. The server's files are on
/// the disk, which alone takes `disk` seconds for them.
pub(crate) fn http_read(server: &Server, disk: f64) -> Outcome<Stage> {
    let requests = signed(server)?;
    let address = requests.first().and_then(|r| r.url.host_str().zip(r.url.port())).ok_or("nothing to read")?;
    let next = AtomicUsize::new(0);
    drop_cache(server.dir())?;
    let (server_cpu, cpu, stolen, begun) = (server.cpu()?, own_cpu(), stolen_so_far(), Instant::now());
    let reader = || -> Result<(), String> {
        let mut stream = TcpStream::connect(address).map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let mut buffer = vec![0; 256 << 10];
        while let Some(request) = requests.get(next.fetch_add(1, Relaxed)) {
            request.read(&mut stream, &mut buffer).map_err(|e| e.to_string())?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(reader)).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err("a reader panicked".into())))
    })?;
    let wall = begun.elapsed().as_secs_f64();
    Ok(Stage {
        name: "store read",
        wall,
        cpu: own_cpu() - cpu + server.cpu()? - server_cpu,
        stolen: stolen_so_far() - stolen,
        disk,
    })
}

/// A range of an object, by a URL that needs no other credentials.
struct Ranged {
    url: url::Url,
    start: u64,
    end: u64,
}

impl Ranged {
    fn read(&self, stream: &mut TcpStream, buffer: &mut [u8]) -> Outcome<()> {
        let query = self.url.query().unwrap_or_default();
        let host = format!("{}:{}", self.url.host_str().unwrap_or_default(), self.url.port().unwrap_or_default());
        let range = format!("bytes={}-{}", self.start, self.end - 1);
        write!(stream, "GET {}?{query} HTTP/1.1\r\nHost: {host}\r\nRange: {range}\r\n\r\n", self.url.path())?;
        let mut reader = BufReader::with_capacity(8 << 10, &mut *stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if !line.contains(" 206 ") {
            return Err(format!("{}: {line}", self.url.path()).into());
        }
        while line.trim() != "" {
            line.clear();
            reader.read_line(&mut line)?;
        }
        let mut left = self.end - self.start - reader.buffer().len() as u64;
        drop(reader);
        while left > 0 {
            let most = usize::try_from(left)?.min(buffer.len());
            left -= match stream.read(&mut buffer[..most])? {
                0 => return Err("the server closed the connection".into()),
                n => n as u64,
            };
        }
        Ok(())
    }
}

/// A request for every range of every segment that the server has.
fn signed(server: &Server) -> Outcome<Vec<Ranged>> {
    let mut builder = AmazonS3Builder::new().with_bucket_name(crate::BUCKET);
    for (name, value) in server.settings() {
        builder = builder.with_config(name.to_ascii_lowercase().parse()?, value);
    }
    let store = builder.build()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let prefix = object_store::path::Path::from("bench/segments");
    let objects: Vec<_> = runtime.block_on(store.list(Some(&prefix)).try_collect())?;
    let mut requests = Vec::new();
    for object in objects {
        let valid = Duration::from_secs(3600);
        let url = runtime.block_on(store.signed_url(http::Method::GET, &object.location, valid))?;
        let ranges = (0..object.size).step_by(RANGE as usize);
        requests.extend(ranges.map(|start| Ranged { url: url.clone(), start, end: (start + RANGE).min(object.size) }));
    }
    Ok(requests)
}

/// libzstd unpacks all frames of the segments, on all cores, out of memory into the same buffers.
pub(crate) fn unpack(segments: &[PathBuf]) -> Outcome<Stage> {
    let objects = segments.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
    let mut frames: Vec<(&[u8], usize)> = Vec::new();
    for object in &objects {
        let segment = Segment::open_any(object).map_err(|e| e.to_string())?;
        for (pos, body) in segment.index.entries.iter().filter_map(|entry| entry.frame) {
            let from = usize::try_from(pos)? + FRAME_HEADER_LEN;
            if body.codec == Codec::Zstd {
                frames.push((&object[from..from + body.stored_len as usize], body.raw_len as usize));
            }
        }
    }
    on_all_cores("unpack", frames.len(), || {
        let mut context = zstd::bulk::Decompressor::new().map_err(|e| e.to_string())?;
        let mut raw = vec![0; 1 << 20];
        let frames = &frames;
        Ok(move |n: usize| {
            let (stored, len) = frames[n];
            let done = context.decompress_to_buffer(stored, &mut raw[..len]);
            done.map(drop).map_err(|e| e.to_string())
        })
    })
}

/// libzstd packs all data of an image, on all cores, out of memory into the same buffers.
pub(crate) fn pack(image: &Path, level: i32) -> Outcome<Stage> {
    let mut frames: Vec<Vec<u8>> = Vec::new();
    blocks(image, |_, block| frames.push(block.to_vec()))?;
    on_all_cores("pack", frames.len(), || {
        let mut context = zstd::bulk::Compressor::new(level).map_err(|e| e.to_string())?;
        let mut stored = vec![0; zstd::zstd_safe::compress_bound(BLOCK)];
        let frames = &frames;
        Ok(move |n: usize| {
            let done = context.compress_to_buffer(&frames[n], &mut stored);
            done.map(drop).map_err(|e| e.to_string())
        })
    })
}

/// Does `count` things on all cores; `worker` makes what a thread needs, before the clock starts.
fn on_all_cores<W, F>(name: &'static str, count: usize, worker: W) -> Outcome<Stage>
where
    W: Fn() -> Result<F, String>,
    F: FnMut(usize) -> Result<(), String> + Send,
{
    let workers = (0..cores()).map(|_| worker()).collect::<Result<Vec<_>, _>>()?;
    let next = AtomicUsize::new(0);
    let (cpu, stolen, begun) = (own_cpu(), stolen_so_far(), Instant::now());
    std::thread::scope(|scope| {
        let run = |mut work: F| {
            let next = &next;
            scope.spawn(move || -> Result<(), String> {
                loop {
                    let n = next.fetch_add(1, Relaxed);
                    if n >= count {
                        return Ok(());
                    }
                    work(n)?;
                }
            })
        };
        let threads: Vec<_> = workers.into_iter().map(run).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err("a thread panicked".into())))
    })?;
    let (wall, cpu) = (begun.elapsed().as_secs_f64(), own_cpu() - cpu);
    Ok(Stage { name, wall, cpu, stolen: stolen_so_far() - stolen, disk: 0.0 })
}
