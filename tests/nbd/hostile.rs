//! Clients that are slow, silent, greedy or gone: each ends by itself, and none is noticed by another.

use std::io::Write;
use std::time::{Duration, Instant};

use super::client::*;
use super::rig::{Healthy, MIB, Rig};
use freshet::nbd::{CacheMode, ServerOptions};

const SOON: Duration = Duration::from_millis(300);

fn impatient() -> ServerOptions {
    ServerOptions { handshake_timeout: SOON, stall_timeout: SOON, ..Default::default() }
}

#[test]
fn a_client_that_does_not_finish_its_handshake_is_closed() {
    let rig = Rig::new(CacheMode::WriteBack, impatient());
    let healthy = Healthy::start(&rig);
    let mut silent = connect(&rig.unix);
    let mut greeted = Client::greet(&rig.tcp);
    let mut half = Client::greet(&rig.unix);
    half.socket.write_all(&IHAVEOPT.to_be_bytes()[..5]).unwrap();
    let mut owing = Client::greet(&rig.unix);
    owing.socket.write_all(&[&IHAVEOPT.to_be_bytes()[..], &[0, 0, 0, 7, 0, 0, 1, 0], b"x"].concat()).unwrap();
    let mut greeting = Vec::new();
    silent.read_to_end(&mut greeting).unwrap();
    assert_eq!(greeting.len(), 18);
    for client in [&mut greeted, &mut half, &mut owing] {
        assert!(client.is_closed());
    }
    healthy.finish();
    rig.stop();
}

#[test]
fn many_half_open_clients_keep_nobody_out() {
    // None of them is closed for being slow.
    let handshake_timeout = Duration::from_secs(600);
    let options = ServerOptions { max_handshakes: 4, handshake_timeout, ..Default::default() };
    let rig = Rig::new(CacheMode::WriteBack, options);
    let healthy = Healthy::start(&rig);
    let mut idle: Vec<Client> = (0..20).map(|_| Client::greet(&rig.unix)).collect();
    // The oldest made room; a newcomer gets in at once.
    assert!(idle[0].is_closed());
    let mut client = Client::open(&rig.unix, "disk");
    assert_eq!(client.write(0, &[1; 512]), 0);
    drop(idle);
    healthy.finish();
    rig.stop();
}

#[test]
fn a_client_that_stops_in_the_middle_of_a_request_is_closed_and_an_idle_one_is_not() {
    let rig = Rig::new(CacheMode::WriteBack, impatient());
    let healthy = Healthy::start(&rig);
    let mut idle = Client::open(&rig.unix, "disk");
    assert_eq!(idle.write(0, &[4; 512]), 0);
    let mut half_header = Client::open(&rig.unix, "disk");
    half_header.socket.write_all(&header(READ, 0, 1, 0, 512)[..20]).unwrap();
    let mut half_data = Client::open(&rig.unix, "disk");
    half_data.send(WRITE, 0, 0, 8192, &[9; 5000]);
    let mut half_refused = Client::open(&rig.unix, "disk");
    half_refused.send(WRITE, 0, u64::MAX, 8192, &[9; 5000]);
    assert_eq!(error_of(&half_refused.reply(0).unwrap()), ENOSPC);
    for client in [&mut half_header, &mut half_data, &mut half_refused] {
        assert!(client.is_closed());
    }
    assert!(idle.read(0, 512).unwrap() == [4; 512], "half a write was written, or the idle client was closed");
    healthy.finish();
    rig.stop();
}

#[test]
fn a_client_that_takes_no_replies_is_closed_and_its_buffers_come_back() {
    let rig = Rig::sized(CacheMode::WriteBack, impatient(), 16 << 20, 3);
    let healthy = Healthy::start(&rig);
    let mut client = Client::open(&rig.unix, "disk");
    assert_eq!(client.write(0, &vec![1; 16 << 20]), 0);
    let mut greedy = Client::open_simple(&rig.unix, "disk");
    for _ in 0..50 {
        // It fills all that is common, and waits for more.
        if greedy.try_send(READ, 0, 0, 1 << 20, &[]).is_err() {
            break;
        }
    }
    // Meanwhile the others have their reserve.
    assert!(client.read(MIB, 2 << 20).unwrap() == vec![1; 2 << 20]);
    healthy.goes_on();
    let end = Instant::now() + Duration::from_secs(60);
    while rig.buffers.in_use() > 3 {
        assert!(Instant::now() < end, "the greedy client keeps its buffers");
        std::thread::sleep(Duration::from_millis(5));
    }
    healthy.finish();
    rig.stop();
}

#[test]
fn what_is_no_request_ends_the_connection_after_what_was_before() {
    let rig = Rig::plain();
    let healthy = Healthy::start(&rig);
    let mut client = Client::open(&rig.unix, "disk");
    let cookie = client.send(WRITE, 0, 0, 512, &[6; 512]);
    client.socket.write_all(&[0x5a; 100]).unwrap();
    assert_eq!(client.chunk(0).unwrap().cookie, cookie, "what came before it is still answered");
    assert!(client.is_closed());
    // Data that no server needs to take.
    let mut client = Client::open(&rig.unix, "disk");
    // The server may hang up before it has all of this.
    let _ = client.try_send(WRITE, 0, 0, u32::MAX, &[1; 4096]);
    assert_eq!(error_of(&client.reply(0).unwrap()), ENOSPC);
    assert!(client.is_closed());
    let mut client = Client::open(&rig.unix, "disk");
    assert!(client.read(0, 512).unwrap() == [6; 512]);
    healthy.finish();
    rig.stop();
}

#[test]
fn a_client_that_leaves_has_its_writes_done_whole_or_not_at_all() {
    for cache in [CacheMode::Direct, CacheMode::WriteBack] {
        let rig = Rig::new(cache, ServerOptions::default());
        let healthy = Healthy::start(&rig);
        let mut client = Client::open(&rig.unix, "disk");
        // Answered, so that it is on the roll whose shrinking is waited for below.
        assert_eq!(client.write(8 * MIB, &[1; 512]), 0);
        for n in 0..10_u64 {
            client.send(WRITE, 0, n * 4096, 4096, &[n as u8 + 1; 4096]);
        }
        client.send(WRITE, 0, MIB, 4096, &[0xff; 4000]);
        drop(client);
        let end = Instant::now() + Duration::from_secs(60);
        while rig.server.as_ref().unwrap().connections() > 1 {
            assert!(Instant::now() < end, "the connection of a client that left stays");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut client = Client::open(&rig.unix, "disk");
        for n in 0..10_u64 {
            assert!(client.read(n * 4096, 4096).unwrap() == [n as u8 + 1; 4096]);
        }
        assert!(client.read(MIB, 4096).unwrap() == [0; 4096], "a part of a write was written");
        // A farewell is waited for until all is answered.
        let read = client.send(READ, 0, 0, 4096, &[]);
        client.send(DISC, 0, 0, 0, &[]);
        assert_eq!(client.chunk(0).unwrap().cookie, read);
        assert!(client.is_closed());
        healthy.finish();
        rig.stop();
    }
}

#[test]
fn writes_of_a_client_that_takes_no_answers_any_more_are_still_done() {
    let rig = Rig::plain();
    let freshet::nbd::Address::Unix(path) = &rig.unix else { panic!("a Unix socket") };
    let socket = std::os::unix::net::UnixStream::connect(path).unwrap();
    let handle = socket.try_clone().unwrap();
    let mut deaf = Client::greet_on(Box::new(socket), 3).unwrap();
    deaf.go("disk");
    handle.shutdown(std::net::Shutdown::Read).unwrap();
    let mut other = Client::open(&rig.tcp, "disk");
    let end = Instant::now() + Duration::from_secs(60);
    for n in 0..5_u64 {
        // One after the other: the answer to the one before has failed by then.
        deaf.send(WRITE, 0, n * 4096, 4096, &[n as u8 + 1; 4096]);
        while other.read(n * 4096, 4096).unwrap() != [n as u8 + 1; 4096] {
            assert!(Instant::now() < end, "write {n} was not done");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    rig.stop();
}
