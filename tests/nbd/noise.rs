//! Conversations that are nearly right: of what clients send, in a likely order, with bytes changed and the end cut off.
//!
//! Whatever it is, the server comes to an end with it once nothing more is sent, no connection's thread panics, all
//! buffers come back, and another client notices nothing.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fastrand::Rng;
use freshet::nbd::Address;

use super::client::*;
use super::rig::{Healthy, MIB, Rig};

const CONVERSATIONS: u64 = 600;

/// Panics of threads that serve connections.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts them from now on, and has them told as before.
fn count_panics() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() == Some("freshet-nbd-conn") {
            PANICS.fetch_add(1, Ordering::SeqCst);
        }
        told(info);
    }));
}

fn bytes(random: &mut Rng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; random.usize(..=most)];
    random.fill(&mut bytes);
    bytes
}

fn option(random: &mut Rng) -> Vec<u8> {
    let code = if random.u8(..10) == 0 { random.u32(..) } else { random.u32(1..=11) };
    let name = ["disk", "", "none", "d\0k"][random.usize(..4)];
    let data = match random.u8(..5) {
        0 => Vec::new(),
        1 => bytes(random, 100),
        2 => name.as_bytes().to_vec(),
        3 => info_data(name, &[0, 1, 2, 3, 99][..random.usize(..=5)]),
        _ => meta_data(name, &["base:allocation", "base:", "x:y", "none"][..random.usize(..=4)]),
    };
    let len = if random.u8(..20) == 0 { random.u32(..) } else { data.len() as u32 };
    [&IHAVEOPT.to_be_bytes()[..], &code.to_be_bytes(), &len.to_be_bytes(), &data].concat()
}

fn request(random: &mut Rng) -> Vec<u8> {
    let command = if random.u8(..10) == 0 { random.u16(..) } else { random.u16(..=7) };
    let flags = if random.bool() { 0 } else { 1 << random.u16(..6) };
    let offset = [0, 511, 4096, MIB - 1, 16 * MIB - 4096, 16 * MIB, u64::MAX][random.usize(..7)];
    let len = [0, 1, 512, 4096, 65_536, 1 << 20, (1 << 20) + 1, u32::MAX][random.usize(..8)];
    let mut out = header(command, flags, random.u64(..), offset, len);
    if command == WRITE {
        let less = if random.u8(..8) == 0 { 7 } else { 0 };
        out.resize(out.len() + (len.min(2 << 20) as usize).saturating_sub(less), 0x77);
    }
    out
}

fn conversation(random: &mut Rng) -> Vec<u8> {
    let mut out = if random.u8(..20) == 0 { random.u32(..) } else { random.u32(..4) }.to_be_bytes().to_vec();
    for _ in 0..random.u8(..4) {
        out.extend(option(random));
    }
    let go = info_data("disk", &[]);
    out.extend([&IHAVEOPT.to_be_bytes()[..], &OPT_GO.to_be_bytes(), &(go.len() as u32).to_be_bytes(), &go].concat());
    for _ in 0..random.u8(..10) {
        out.extend(request(random));
    }
    if random.bool() {
        for _ in 0..random.u8(1..4) {
            // Mostly where it is not just data.
            let end = if random.bool() { out.len().min(200) } else { out.len() };
            let at = random.usize(..end);
            out[at] = random.u8(..);
        }
    }
    if random.u8(..3) == 0 {
        out.truncate(random.usize(..out.len()));
    }
    out
}

/// Says all of it while the answers are taken, hangs up, and waits for the server to do so.
fn say(path: &Path, conversation: &[u8]) {
    let mut socket = UnixStream::connect(path).unwrap();
    let patience = Some(Duration::from_secs(60));
    socket.set_read_timeout(patience).unwrap();
    socket.set_write_timeout(patience).unwrap();
    let mut reader = socket.try_clone().unwrap();
    std::thread::scope(|scope| {
        let answers = scope.spawn(move || {
            let mut answers = Vec::new();
            reader.read_to_end(&mut answers).map_err(|error| error.kind())
        });
        // The server may hang up before it has all of it.
        let _ = socket.write_all(conversation);
        let _ = socket.shutdown(Shutdown::Write);
        let ended = answers.join().unwrap();
        assert!(matches!(ended, Ok(_) | Err(std::io::ErrorKind::ConnectionReset)), "it does not end: {ended:?}");
    });
}

#[test]
fn whatever_is_said_the_server_comes_to_an_end_with_it() {
    count_panics();
    let rig = Rig::plain();
    let healthy = Healthy::start(&rig);
    let Address::Unix(path) = rig.unix.clone() else { panic!("a Unix socket") };
    for seed in 0..CONVERSATIONS {
        let conversation = conversation(&mut Rng::with_seed(seed));
        say(&path, &conversation);
        assert_eq!(PANICS.load(Ordering::SeqCst), 0, "conversation {seed}: {conversation:?}");
    }
    healthy.finish();
    rig.stop();
}
