//! What is measured, section by section.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use ::freshet::cancel::Cancel;
use ::freshet::capture::{self, DiskSource, ReplicateRequest, VmSource};
use ::freshet::ids::Name;
use ::freshet::progress::Progress;
use ::freshet::store::{StorageSite, StoreOptions};

use crate::freshet::{Store, disk, number, rehydrate, rehydrate_again, rehydrate_command, replicate, segments};
use crate::limit;
use crate::process::{Run, fresh_dir, same};
use crate::server::Server;
use crate::table;
use crate::{Arguments, BUCKET, Outcome, Section, image, peers};

/// Latency that is added to every request in [`Section::Latency`].
const LATENCY: &str = "latency=50";

/// What all sections work on.
struct Bench<'a> {
    arguments: &'a Arguments,
    image: PathBuf,
    /// Bytes that the file system allocated for the image.
    live: u64,
    file_store: PathBuf,
    /// Where the S3 server keeps its buckets.
    s3_dir: PathBuf,
    bucket: PathBuf,
    out: PathBuf,
}

/// Runs what was asked for.
pub(crate) fn all(arguments: &Arguments) -> Outcome<()> {
    let at = |name: &str| arguments.dir.join(name);
    let live = image::ext4(&at("image.raw"), &arguments.dir, arguments.gib)?;
    let bench = Bench {
        arguments,
        image: at("image.raw"),
        live,
        file_store: at("store"),
        s3_dir: at("s3"),
        bucket: at("s3").join(BUCKET),
        out: at("out"),
    };
    fresh_dir(&bench.out)?;
    fresh_dir(&bench.file_store)?;
    let report = replicate(Store::File(&bench.file_store), &bench.image)?;
    println!(
        "an ext4 image of {} GiB, {:.2} GB of it live, {:.2} GB stored; medians of {} rounds, caches cold",
        arguments.gib,
        live as f64 / 1e9,
        number(&report, "/bytes/stored")? / 1e9,
        arguments.rounds
    );
    for section in Section::value_variants() {
        if arguments.only.is_empty() || arguments.only.contains(section) {
            bench.measure(*section)?;
        }
    }
    Ok(())
}

impl Bench<'_> {
    fn measure(&self, section: Section) -> Outcome<()> {
        match section {
            Section::Replicate => self.replicate(),
            Section::Rehydrate => self.rehydrate(),
            Section::Latency => self.latency(),
            Section::Landing => self.landing(),
            Section::Kill => self.kill(),
            Section::Memory => self.memory(),
        }
    }

    fn rounds(&self) -> std::ops::Range<usize> {
        0..self.arguments.rounds
    }

    fn scratch(&self) -> PathBuf {
        self.arguments.dir.join("scratch")
    }

    /// Ships the image into the S3 server's bucket, once.
    fn s3_with_image(&self) -> Outcome<()> {
        if self.bucket.is_dir() {
            return Ok(());
        }
        let server = Server::start(&self.s3_dir, &[])?;
        replicate(Store::S3(&server, &self.bucket), &self.image).map(drop)
    }

    fn replicate(&self) -> Outcome<()> {
        let (mut first, mut second, mut stages, mut reads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut shipped = 0.0;
        for round in self.rounds() {
            // A hypervisor that gives a burst to who comes first does not always give it to the same.
            let early = if round % 2 == 0 { Some(limit::pack(&self.image, 1)?) } else { None };
            fresh_dir(&self.file_store)?;
            first.push(replicate(Store::File(&self.file_store), &self.image)?);
            let again = replicate(Store::File(&self.file_store), &self.image)?;
            shipped += number(&again, "/bytes/shipped")?;
            second.push(again);
            let pack = early.map_or_else(|| limit::pack(&self.image, 1), Ok)?;
            limit::disk_write(&self.scratch(), self.live)?;
            let read = limit::disk_read("disk read", &[self.scratch()])?;
            let write = limit::disk_write(&self.scratch(), self.stored()?)?;
            stages.push(vec![read, pack, write]);
            reads.push(read.wall);
        }
        let stages = table::medians(&stages);
        let limit = limit::limit(&stages);
        table::heading("replicate, file://");
        table::stages(&stages, limit);
        table::runs("replicate", &first, self.live as f64, Some(limit));
        table::runs("replicate, unchanged", &second, self.live as f64, Some(table::median(reads)));
        println!("the second runs shipped {shipped} bytes; their ratio is to the disk read alone");
        Ok(())
    }

    /// Bytes of all segments in the directory.
    fn stored(&self) -> Outcome<u64> {
        let files = segments(&self.file_store)?;
        files.iter().try_fold(0, |sum, file| Ok(sum + file.metadata()?.len()))
    }

    fn rehydrate(&self) -> Outcome<()> {
        self.s3_with_image()?;
        let server = Server::start(&self.s3_dir, &[])?;
        let (file, s3) = (Store::File(&self.file_store), Store::S3(&server, &self.bucket));
        let peers = match self.arguments.no_peers {
            true => Vec::new(),
            false => peers::prepare(&self.image, &self.arguments.dir)?,
        };
        let (mut file_stages, mut s3_stages) = (Vec::new(), Vec::new());
        let (mut file_runs, mut s3_runs, mut peer_runs) = (Vec::new(), Vec::new(), vec![Vec::new(); peers.len()]);
        let mut written = self.live;
        for _ in self.rounds() {
            let objects = segments(&self.file_store)?;
            let write = limit::disk_write(&self.scratch(), written)?;
            std::fs::remove_file(self.scratch())?;
            let unpack = limit::unpack(&objects)?;
            let read = limit::disk_read("store read", &objects)?;
            file_stages.push(vec![read, unpack, write]);
            s3_stages.push(vec![limit::http_read(&server, read.disk)?, unpack, write]);
            for (store, runs) in [(file, &mut file_runs), (s3, &mut s3_runs)] {
                let run = rehydrate(store, &self.out, &[])?;
                same(&self.image, &disk(&self.out))?;
                written = number(&run, "/bytes/written")? as u64;
                runs.push(run);
            }
            fresh_dir(&self.out)?;
            for (peer, runs) in peers.iter().zip(&mut peer_runs) {
                runs.push(peer.restore(&self.image, &self.out)?);
            }
        }
        for (title, stages, runs) in
            [("rehydrate, file://", file_stages, &file_runs), ("rehydrate, S3", s3_stages, &s3_runs)]
        {
            let stages = table::medians(&stages);
            let limit = limit::limit(&stages);
            table::heading(title);
            table::stages(&stages, limit);
            table::runs("rehydrate", runs, written as f64, Some(limit));
        }
        table::heading("other programs, from the same disk (equal outputs)");
        for (peer, runs) in peers.iter().zip(&peer_runs) {
            table::runs(peer.name, runs, written as f64, None);
            println!("  {:.1} times as long as rehydrate, file://", table::wall(runs) / table::wall(&file_runs));
        }
        Ok(())
    }

    fn latency(&self) -> Outcome<()> {
        self.s3_with_image()?;
        let (mut plain, mut late) = (Vec::new(), Vec::new());
        for _ in self.rounds() {
            for (faults, runs) in [(&[][..], &mut plain), (&[LATENCY][..], &mut late)] {
                let server = Server::start(&self.s3_dir, faults)?;
                runs.push(rehydrate(Store::S3(&server, &self.bucket), &self.out, &[])?);
                same(&self.image, &disk(&self.out))?;
            }
        }
        table::heading("rehydrate, S3, 50 ms more on every request");
        table::runs("without", &plain, self.live as f64, None);
        table::runs("with", &late, self.live as f64, None);
        // What disturbs a run only makes it longer: the fastest ones show the difference best.
        let (late, plain) = (table::fastest(&late), table::fastest(&plain));
        let trips = (late - 1.02 * plain) / 0.05;
        println!("the fastest runs differ by {:.2} s: 2 % and {trips:.1} round trips", late - plain);
        Ok(())
    }

    fn landing(&self) -> Outcome<()> {
        let store = self.arguments.dir.join("landing");
        fresh_dir(&store)?;
        let image = self.arguments.dir.join("landing.raw");
        let (size, gib) = (self.arguments.gib << 30, 1 << 30);
        image::sparse(&image, size, 64 << 20)?;
        let first = replicate_without_manifest(&store, &image)?.to_string();
        let before = segments(&store)?.len();
        image::sparse(&image, size, gib)?;
        replicate_without_manifest(&store, &image)?;
        let objects = segments(&store)?.split_off(before);
        let landed: u64 = objects.iter().map(|file| file.metadata().map_or(0, |meta| meta.len())).sum();
        let (mut runs, mut stages) = (Vec::new(), Vec::new());
        for _ in self.rounds() {
            let write = limit::disk_reserved(&self.scratch(), landed)?;
            stages.push(vec![limit::disk_read("store read", &objects)?, write]);
            let store = Store::File(&store);
            rehydrate(store, &self.out, &["--point", &first])?;
            let all = rehydrate_again(store, &self.out, &[])?;
            same(&image, &disk(&self.out))?;
            runs.push(Run { wall: number(&all, "/landing/seconds")?, ..all });
        }
        let stages = table::medians(&stages);
        let limit = limit::limit(&stages);
        table::heading("landing into the replication log, file://");
        table::stages(&stages, limit);
        table::runs("landing", &runs, landed as f64, Some(limit));
        println!("(its CPU seconds are those of the whole run, applying included)");
        Ok(())
    }

    fn kill(&self) -> Outcome<()> {
        self.s3_with_image()?;
        let server = Server::start(&self.s3_dir, &[])?;
        rehydrate(Store::S3(&server, &self.bucket), &self.out, &[])?;
        let once = server.stop()?;
        let server = Server::start(&self.s3_dir, &[])?;
        let store = Store::S3(&server, &self.bucket);
        fresh_dir(&self.out.join("datastore"))?;
        fresh_dir(&self.out.join("log"))?;
        let mut child = rehydrate_command(store, &self.out, &[]).stdout(Stdio::null()).spawn()?;
        let (target, begun) = (disk(&self.out), Instant::now());
        while allocated(&target) < self.live / 2 && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill()?;
        child.wait()?;
        let at = allocated(&target);
        rehydrate_again(store, &self.out, &[])?;
        same(&self.image, &disk(&self.out))?;
        let twice = server.stop()?.saturating_sub(once);
        println!("\nkilled with {:.0} MB on the disk", at as f64 / 1e6);
        println!("fetched {:.0} MB in all, {:.1} MB of them twice", (once + twice) as f64 / 1e6, twice as f64 / 1e6);
        Ok(())
    }

    fn memory(&self) -> Outcome<()> {
        println!("\npeak memory (resident)\n{:<28} {:>10} {:>14} {:>10}", "", "budget MiB", "rehydrate MiB", "over");
        for (name, size, data) in [("1 GiB, full", 1_u64 << 30, 1 << 30), ("1 TiB, 4 GiB of data", 1 << 40, 4 << 30)] {
            let image = self.arguments.dir.join("memory.raw");
            let store = self.arguments.dir.join("memory-store");
            image::sparse(&image, size, data)?;
            fresh_dir(&store)?;
            let shipped = replicate(Store::File(&store), &image)?;
            for budget in [128_u64, 512] {
                let memory = format!("{budget}MiB");
                let run = rehydrate(Store::File(&store), &self.out, &["--memory", &memory])?;
                compare_sparse(&image, &disk(&self.out))?;
                let peak = (run.peak >> 20) as f64;
                println!("{name:<28} {budget:>10} {peak:>14.0} {:>10.0}", peak - budget as f64);
            }
            println!("  replicate (its default budget): {} MiB", shipped.peak >> 20);
            fresh_dir(&self.out)?;
            std::fs::remove_file(&image)?;
            std::fs::remove_dir_all(&store)?;
        }
        Ok(())
    }
}

/// A sparse disk of a terabyte is not read whole: equal data at equal places, and nothing elsewhere.
fn compare_sparse(expected: &Path, found: &Path) -> Outcome<()> {
    match image::fingerprint(expected)? == image::fingerprint(found)? {
        true => Ok(()),
        false => Err(format!("{} is not equal to {}", found.display(), expected.display()).into()),
    }
}

fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

/// A point with no manifest beside the first one, so that rehydrating it goes through the log. Answers with its number.
fn replicate_without_manifest(store: &Path, image: &Path) -> Outcome<u64> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let site = StorageSite::open(&format!("file://{}", store.display()), &StoreOptions::default()).await?;
        let disk = DiskSource { name: Name::new("disk")?, path: image.to_owned(), size: None };
        let vm = VmSource { name: Name::new("vm")?, disks: vec![disk], definition: None };
        let request = ReplicateRequest {
            manifest_every: u64::MAX,
            ..ReplicateRequest::new(Name::new("bench")?, Name::new("site")?, vec![vm])
        };
        let done = capture::replicate(&site, request, Arc::new(Progress::new()), Cancel::new()).await?;
        Ok(done.point.segment.get())
    })
}
