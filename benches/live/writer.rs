//! What the guest does: it writes blocks of 4 KiB all the time, each past its cache and durable before the next one, and
//! tells its console every fifth of a second the longest time between two ends, and how many there were.
//!
//! `writer DEVICE PLACES SPACING LENGTH` writes within the first LENGTH bytes of each of PLACES, which are SPACING bytes
//! apart. This file is compiled by itself, into a program that needs no library; the bench compiles it along only so that
//! it is checked.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// `O_DIRECT | O_DSYNC` on x86-64, which the guest is.
const DIRECT_AND_DURABLE: i32 = 0o40_000 | 0o10_000;
const BLOCK: usize = 4096;
/// Time between two lines.
const WINDOW: Duration = Duration::from_millis(200);

static LONGEST_MICROS: AtomicU64 = AtomicU64::new(0);
static WRITES: AtomicU64 = AtomicU64::new(0);

/// Past the cache only from aligned memory.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

fn tell() {
    loop {
        std::thread::sleep(WINDOW);
        println!("gap {} {}", LONGEST_MICROS.swap(0, Relaxed), WRITES.swap(0, Relaxed));
    }
}

fn write_on(file: &File, places: u64, spacing: u64, length: u64) -> std::io::Error {
    let mut block = Box::new(Block([0; BLOCK]));
    let (mut number, mut random, mut last) = (0_u64, 1_u64, Instant::now());
    loop {
        number += 1;
        block.0[..8].copy_from_slice(&number.to_le_bytes());
        // Knuth's MMIX; its high bits are the good ones.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (place, within) = ((random >> 33) % places, (random >> 17) % (length / BLOCK as u64));
        if let Err(error) = file.write_all_at(&block.0, place * spacing + within * BLOCK as u64) {
            return error;
        }
        let now = Instant::now();
        LONGEST_MICROS.fetch_max(u64::try_from((now - last).as_micros()).unwrap_or(u64::MAX), Relaxed);
        WRITES.fetch_add(1, Relaxed);
        last = now;
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args[at].parse::<u64>().expect("a number");
    let file = OpenOptions::new().write(true).custom_flags(DIRECT_AND_DURABLE).open(&args[0]);
    std::thread::spawn(tell);
    let error = file.map_or_else(|error| error, |file| write_on(&file, number(1), number(2), number(3)));
    println!("failed: {error}");
}
