//! Clients that do everything wrong on a protected disk, beside a guest that writes.
//!
//! The disk has two halves. The guest's is checked against what it wrote; of the other one, in which the bad clients
//! write, it is known that whole writes of one byte's value are there or not, and that no part of one is. What is
//! recovered is the disk.

use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use freshet::nbd::Address;

use super::raw_client::*;
use super::*;
use crate::world::noise;

/// Bytes of the guest's half, and of the other one.
const HALF: u64 = 16 * MIB;
/// Bytes of a bad client's write; each has its own place.
const BLOCK: u64 = 8192;
/// Bad clients that stay connected, at most: fewer than there may be connections.
const STAY: usize = 6;

/// Connects and takes the export, as soon as those who are gone have made room.
fn enter(address: &Address) -> Client {
    let began = Instant::now();
    let mut client = Client::greet(address);
    client.structured();
    loop {
        match client.option(OPT_GO, &info_data("web/root", &[])).last().unwrap().0 {
            REP_ACK => return client,
            other => assert_eq!(other, ERR_POLICY, "too many connections is the only reason"),
        }
        assert!(began.elapsed() < PATIENCE, "the places of clients that are gone stay taken");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One thing that a client must not do. What it leaves open is returned, to stay for a while.
fn misbehave(act: u64, n: u64, address: &Address) -> Option<Client> {
    let at = HALF + n * BLOCK % HALF;
    // The server may hang up while any of this is sent.
    match act {
        0 => return Some(Client::greet(address)),
        1 => {
            let mut client = Client::greet(address);
            let _ = client.socket.write_all(b"GET / HTTP/1.1\r\n\r\n");
            assert!(client.is_closed());
        }
        2 => {
            let mut client = Client::greet(address);
            let _ = client.send_option(OPT_GO, &vec![0xff; 100_000]);
            let _ = client.send_option(OPT_STARTTLS, b"x");
        }
        3 => {
            let mut client = enter(address);
            let _ = client.socket.write_all(&header(WRITE, 0, 1, at, 8192)[..20]);
        }
        4 => drop(enter(address).try_send(WRITE, FUA, at, BLOCK as u32, &[0xff; BLOCK as usize - 1])),
        5 => {
            let mut client = enter(address);
            // Replies that nobody takes.
            for _ in 0..20 {
                let _ = client.try_send(READ, 0, 0, 1 << 20, &[]);
            }
            return Some(client);
        }
        6 => {
            let mut client = enter(address);
            let _ = client.socket.write_all(&[0x5a; 100]);
            assert!(client.is_closed());
        }
        7 => {
            let mut client = enter(address);
            for (command, flags, at, len) in [
                (TRIM, 0, 2 * HALF - 1, 2),
                (ZEROES, 0, 0, u32::MAX),
                (ZEROES, DF, 0, 4096),
                (WRITE, REQ_ONE, 0, 0),
                (WRITE, 0, 2 * HALF, 0),
                (99, 0, 0, 4096),
                (FLUSH, 0, 0, 4096),
            ] {
                let errno = client.ask(command, flags, at, len, &[]);
                assert!([EINVAL, ENOSPC].contains(&errno) || (command, flags) == (WRITE, 0), "{command}: {errno}");
            }
            assert_eq!(client.ask(WRITE, 0, 2 * HALF - 1, 2, &[0xff; 2]), ENOSPC);
            let _ = client.try_send(WRITE, 0, 0, u32::MAX, &[0xff; 4096]);
        }
        _ => {
            // Goes without the answer to writes that are whole.
            let mut client = enter(address);
            for _ in 0..4 {
                let _ = client.try_send(WRITE, 0, at, BLOCK as u32, &[0x11; BLOCK as usize]);
            }
        }
    }
    None
}

/// Misbehaves until told; the number of times.
fn bad_clients(path: &Path, seed: u64, end: &AtomicBool) -> u64 {
    let address = Address::Unix(path.to_owned());
    let mut staying = std::collections::VecDeque::new();
    let mut n = 0;
    while !end.load(Ordering::Relaxed) {
        n += 1;
        staying.extend(misbehave((n + seed) % 9, n * 2 + seed, &address));
        while staying.len() > STAY / 2 {
            staying.pop_front();
        }
    }
    n
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_clients_change_neither_what_a_guest_has_nor_what_is_recovered() {
    let world = World::new(&[("web", "root")]).await;
    world.make("web", "root", 2 * HALF, &[]);
    let protection = start(&world, request(&world)).await;
    until_recoverable(&protection).await;
    let mut guest = client(&world, "web", "root");
    let (end, misdeeds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let bad: Vec<_> = (0..2)
        .map(|seed| {
            let (path, end, misdeeds) = (socket(&world), Arc::clone(&end), Arc::clone(&misdeeds));
            std::thread::spawn(move || {
                misdeeds.fetch_add(bad_clients(&path, seed, &end), Ordering::Relaxed);
            })
        })
        .collect();
    let model = blocking(move || {
        let (mut model, mut random) = (vec![0; HALF as usize], fastrand::Rng::with_seed(3));
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            let len = random.u64(1..20) * 512;
            let at = random.u64(0..(HALF - len) / 512) * 512;
            let data = noise(random.u64(..1 << 20), len);
            guest.write(at, &data).unwrap();
            model[at as usize..][..len as usize].copy_from_slice(&data);
            assert_eq!(guest.read(at, len as u32).unwrap(), data);
        }
        guest.flush().unwrap();
        model
    })
    .await;
    end.store(true, Ordering::Relaxed);
    blocking(move || bad.into_iter().for_each(|bad| bad.join().unwrap())).await;
    assert!(misdeeds.load(Ordering::Relaxed) >= 2 * 9, "each kind, from each of them");
    let status = until_recoverable(&protection).await;
    assert!(status.problems.is_empty(), "{status:#?}");
    stop_and_compare(&world, protection).await;
    let disk = std::fs::read(world.target("web", "root")).unwrap();
    assert!(disk[..HALF as usize] == model, "the guest's half");
    for (n, block) in disk[HALF as usize..].chunks(BLOCK as usize).enumerate() {
        assert!(block.iter().all(|b| *b == block[0]) && [0, 0x11].contains(&block[0]), "a part of write {n}");
    }
    assert!(disk.contains(&0x11), "whole writes are done");
}
