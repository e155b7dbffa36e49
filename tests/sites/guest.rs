//! A guest that writes all the time, at whichever site its hypervisor says that it runs, and the book of what it wrote.
//!
//! Each write is a *tick*: one block, which tells its number and the boot that wrote it, on one of the VM's disks. So the
//! disks of a VM at some moment are the ticks up to a number, all of them and none after it, over all disks. At each boot
//! that is checked before anything is written:
//!
//! - there is such a number, and every block is as the last tick up to it left it, written by a boot that counts;
//! - it is not below what was promised, as by a point that is part of the domain;
//! - it is not below what was acknowledged to the boot before, unless a loss was accepted;
//! - boots that were taken over by force write on; none of what they wrote since is ever seen.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::nbd_client::NbdClient;
use crate::support::site::Site;

const BLOCK: usize = 4096;
/// Blocks of each disk that guests write to.
const BLOCKS: u64 = 1024;
/// Bytes of each disk. Guests never write to its second half: what stands there is nobody's.
pub(crate) const SIZE: u64 = 2 * BLOCKS * BLOCK as u64;
/// What a block of a guest begins with.
const MAGIC: u64 = 0x6775_6573_7462_6c6b;
/// Pause after each write: the machine is for the sites.
const PAUSE: Duration = Duration::from_millis(2);
/// Time between two looks at the hypervisor, and two tries to reach a disk.
const LOOK: Duration = Duration::from_millis(5);
/// A write of so many is made durable at once.
const FLUSHED: u64 = 16;

/// One write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tick {
    number: u64,
    boot: u64,
}

impl Tick {
    fn content(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BLOCK);
        [MAGIC, self.number, self.boot].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        // Incompressible, and another one for every tick: a block that is made of two is told.
        let mut random = fastrand::Rng::with_seed((self.number << 20) | self.boot);
        bytes.resize_with(BLOCK, || random.u8(..));
        bytes
    }

    /// The tick that left a block so; `None` for one that no guest wrote.
    fn of(block: &[u8]) -> Result<Option<Tick>, String> {
        let word = |i: usize| u64::from_le_bytes(block[8 * i..8 * i + 8].try_into().unwrap());
        if word(0) != MAGIC {
            return Ok(None);
        }
        let tick = Tick { number: word(1), boot: word(2) };
        match tick.content() == block {
            true => Ok(Some(tick)),
            false => Err(format!("{tick:?} is there in part")),
        }
    }
}

/// Where a tick writes: disk and block.
fn place(number: u64, disks: usize) -> (usize, u64) {
    let drawn = fastrand::Rng::with_seed(number).u64(..disks as u64 * BLOCKS);
    ((drawn / BLOCKS) as usize, drawn % BLOCKS)
}

/// What is known of a VM's writes.
#[derive(Debug, Default)]
struct Book {
    /// Boots that count, in order, each with the tick that it went on from: it wrote those after it.
    boots: Vec<(u64, u64)>,
    /// Newest tick that was acknowledged, boot by boot.
    acknowledged: BTreeMap<u64, u64>,
    /// Nothing up to this tick may ever be lost.
    promised: u64,
    /// A loss was accepted for the next boot.
    may_lose: bool,
    /// Sites of the boots.
    sites: Vec<&'static str>,
}

impl Book {
    fn newest(&self) -> Option<u64> {
        self.boots.last().map(|(boot, _)| *boot)
    }

    fn acknowledged(&self) -> u64 {
        self.newest().map_or(0, |boot| self.acknowledged[&boot])
    }

    /// The boot whose tick of this number counts.
    fn writer(&self, number: u64) -> Option<u64> {
        self.boots.iter().rev().find(|(_, after)| *after < number).map(|(boot, _)| *boot)
    }

    /// What stands on the disks where all ticks up to `last` were written.
    fn expected(&self, last: u64, disks: usize) -> BTreeMap<(usize, u64), Tick> {
        let tick = |number| Some((place(number, disks), Tick { number, boot: self.writer(number)? }));
        (1..=last).filter_map(tick).collect()
    }

    /// The number of the last tick on `disks`, which must hold all up to it.
    fn judge(&self, disks: &[Vec<u8>]) -> Result<u64, String> {
        let mut found = BTreeMap::new();
        for (disk, bytes) in disks.iter().enumerate() {
            for (block, bytes) in bytes.chunks(BLOCK).enumerate() {
                let at = (disk, block as u64);
                match Tick::of(bytes).map_err(|why| format!("{at:?}: {why}"))? {
                    Some(tick) => {
                        found.insert(at, tick);
                    }
                    None if bytes.iter().all(|b| *b == 0) => {}
                    None => return Err(format!("{at:?}: something else is there")),
                }
            }
        }
        let last = found.values().map(|tick| tick.number).max().unwrap_or(0);
        let expected = self.expected(last, disks.len());
        let mut places = found.keys().chain(expected.keys());
        match places.find(|at| found.get(*at) != expected.get(*at)) {
            None => Ok(last),
            Some(at) => Err(format!("{at:?}: {:?} and not {:?}, at {last}", found.get(at), expected.get(at))),
        }
    }
}

/// A VM.
pub(crate) struct Vm {
    pub(crate) name: &'static str,
    pub(crate) disks: &'static [&'static str],
    book: Mutex<Book>,
}

impl Vm {
    pub(crate) fn new(name: &'static str, disks: &'static [&'static str]) -> Arc<Vm> {
        Arc::new(Vm { name, disks, book: Mutex::default() })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Boots so far.
    pub(crate) fn boots(&self) -> usize {
        self.book().boots.len()
    }

    /// Site of the newest boot.
    pub(crate) fn site(&self) -> &'static str {
        self.book().sites.last().copied().unwrap_or_default()
    }

    /// The newest tick that was acknowledged to the boot that counts.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.book().acknowledged()
    }

    /// Whatever is acknowledged now is part of the domain when `done` returns true: it must never be lost.
    pub(crate) fn promised_by(&self, done: impl FnOnce() -> bool) -> bool {
        let (boot, tick) = {
            let book = self.book();
            (book.newest(), book.acknowledged())
        };
        let kept = done();
        let mut book = self.book();
        if kept && book.newest() == boot {
            book.promised = book.promised.max(tick);
        }
        kept
    }

    /// The next boot may lack what was acknowledged and not promised.
    pub(crate) fn may_lose(&self, may: bool) {
        self.book().may_lose = may;
    }

    /// A guest begins on `disks`: checks them.
    fn boot(&self, site: &'static str, disks: &[Vec<u8>]) -> Tick {
        let mut book = self.book();
        let who = format!("VM {} boots at site {site}", self.name);
        let last = book.judge(disks).unwrap_or_else(|why| panic!("{who}: {why}; boots: {:?}", book.boots));
        let (acknowledged, promised) = (book.acknowledged(), book.promised);
        let least = if book.may_lose { promised } else { acknowledged };
        assert!(
            (least..=acknowledged + 1).contains(&last),
            "{who}: its disks have {last} ticks, acknowledged were {acknowledged}, promised {promised}, loss accepted: {}",
            book.may_lose
        );
        let boot = book.boots.len() as u64;
        book.boots.push((boot, last));
        book.acknowledged.insert(boot, last);
        book.sites.push(site);
        book.may_lose = false;
        println!("{who}: boot {boot} goes on after tick {last}; lost: {}", acknowledged.saturating_sub(last));
        Tick { number: last, boot }
    }

    /// The bytes of its disks where all that was acknowledged is there, for a VM that is off.
    pub(crate) fn judge(&self, disks: &[Vec<u8>]) {
        let book = self.book();
        let last = book.judge(disks).unwrap_or_else(|why| panic!("VM {}: {why}", self.name));
        let acknowledged = book.acknowledged();
        assert!((acknowledged..=acknowledged + 1).contains(&last), "{last} ticks of {acknowledged}");
    }
}

/// Where guests of a site find their hypervisor and their disks.
struct Host {
    site: &'static str,
    power: PathBuf,
    socket: PathBuf,
}

impl Host {
    fn runs(&self) -> bool {
        std::fs::read_to_string(&self.power).is_ok_and(|state| state.trim() == "running")
    }
}

/// A guest that runs.
struct Machine {
    vm: Arc<Vm>,
    /// The last tick that was acknowledged to it.
    last: Tick,
    disks: Vec<NbdClient>,
}

impl Machine {
    fn connect(host: &Host, vm: &Vm) -> std::io::Result<Vec<NbdClient>> {
        vm.disks.iter().map(|disk| NbdClient::try_connect(&host.socket, &format!("{}/{disk}", vm.name))).collect()
    }

    fn boot(host: &Host, vm: &Arc<Vm>) -> std::io::Result<Machine> {
        let mut disks = Machine::connect(host, vm)?;
        let bytes: Vec<Vec<u8>> = disks.iter_mut().map(read_all).collect::<std::io::Result<_>>()?;
        // A guest that was switched off meanwhile never began.
        match host.runs() {
            true => Ok(Machine { last: vm.boot(host.site, &bytes), vm: Arc::clone(vm), disks }),
            false => Err(std::io::Error::other("it was switched off")),
        }
    }

    /// Does the next tick. A disk that goes away is connected to again, and the same is written once more, as hypervisors
    /// do.
    fn tick(&mut self, host: &Host) -> std::io::Result<()> {
        let next = Tick { number: self.last.number + 1, ..self.last };
        let (disk, block) = place(next.number, self.vm.disks.len());
        if self.disks.is_empty() {
            self.disks = Machine::connect(host, &self.vm)?;
        }
        let (at, content) = (block * BLOCK as u64, next.content());
        let written = match next.number.is_multiple_of(FLUSHED) {
            true => self.disks[disk].write_fua(at, &content),
            false => self.disks[disk].write(at, &content),
        };
        if let Err(error) = written {
            self.disks.clear();
            return Err(error);
        }
        self.vm.book().acknowledged.insert(next.boot, next.number);
        self.last = next;
        Ok(())
    }
}

fn read_all(disk: &mut NbdClient) -> std::io::Result<Vec<u8>> {
    const PIECE: u32 = 1 << 20;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < disk.size {
        bytes.extend(disk.read(bytes.len() as u64, PIECE)?);
    }
    Ok(bytes)
}

/// What runs the guests of a VM, one thread for each site, until it is stopped.
pub(crate) struct Guests {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Guests {
    pub(crate) fn start(vm: &Arc<Vm>, sites: &[Site]) -> Guests {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = sites.iter().map(|site| {
            let host = Host {
                site: site.name,
                power: site.hypervisor(&format!("vm-{}", vm.name)),
                socket: site.place.path(&format!("{}-nbd/d.sock", site.name)),
            };
            let (vm, stop) = (Arc::clone(vm), Arc::clone(&stop));
            std::thread::spawn(move || run(&host, &vm, &stop))
        });
        Guests { threads: threads.collect(), stop }
    }

    /// Fails where a guest found fault with its disks.
    pub(crate) fn check(&mut self) {
        if self.threads.iter().any(JoinHandle::is_finished) {
            self.stop();
        }
    }

    /// Ends them.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for Guests {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            // What it found is told by itself.
            let _ = thread.join();
        }
    }
}

fn run(host: &Host, vm: &Arc<Vm>, stop: &AtomicBool) {
    let mut machine: Option<Machine> = None;
    while !stop.load(SeqCst) {
        if !host.runs() {
            machine = None;
            std::thread::sleep(LOOK);
            continue;
        }
        let done = match &mut machine {
            Some(machine) => machine.tick(host),
            None => Machine::boot(host, vm).map(|booted| machine = Some(booted)),
        };
        std::thread::sleep(if done.is_ok() { PAUSE } else { LOOK });
    }
}
