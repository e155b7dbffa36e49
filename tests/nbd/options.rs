//! The handshake, option by option, good and bad; each bad one beside a client that must not notice.

use super::client::*;
use super::rig::{Healthy, MIB, Rig, disk};
use freshet::nbd::{CacheMode, ServerOptions};

#[test]
fn the_list_names_every_export_and_takes_no_data() {
    let rig = Rig::plain();
    rig.exports.add("a b/c", disk(&rig.dir, "other", MIB, CacheMode::WriteBack, &rig.buffers)).unwrap();
    for address in [&rig.unix, &rig.tcp] {
        let mut client = Client::greet(address);
        let replies = client.option(OPT_LIST, &[]);
        let names: Vec<&[u8]> = replies[..2].iter().map(|(_, data)| &data[4..4 + be32(data) as usize]).collect();
        assert_eq!(names, [b"a b/c".as_slice(), b"disk"]);
        assert!(replies[..2].iter().all(|(kind, _)| *kind == REP_SERVER) && replies[2].0 == REP_ACK);
        assert_eq!(client.verdict(OPT_LIST, b"x"), ERR_INVALID);
        assert_eq!(client.option(OPT_LIST, &[]).len(), 3, "goes on after an error");
    }
    rig.stop();
}

#[test]
fn info_tells_and_go_begins() {
    let rig = Rig::plain();
    let mut client = Client::greet(&rig.unix);
    let replies = client.option(OPT_INFO, &info_data("disk", &[1, 2, 3, 0x7777]));
    let infos: Vec<u16> =
        replies.iter().filter(|r| r.0 == REP_INFO).map(|r| u16::from_be_bytes([r.1[0], r.1[1]])).collect();
    assert_eq!(infos, [0, 1, 2, 3]);
    assert_eq!(replies[1].1[2..], *b"disk");
    let [minimum, preferred, maximum] = [2, 6, 10].map(|at| be32(&replies[3].1[at..]));
    assert_eq!((minimum, preferred, maximum), (1, 4096, 32 << 20));
    assert_eq!(replies.last().unwrap().0, REP_ACK);
    let before = client.option(OPT_INFO, &info_data("disk", &[]));
    assert_eq!(before.len(), 2, "nothing that was not asked for: {before:?}");
    client.go("disk");
    assert_eq!(client.size, 16 * MIB);
    assert_eq!(client.flags & 1 << 7, 0, "DF needs structured replies");
    assert_eq!(client.write(0, b"x"), 0);
    // The default export is the only one.
    let mut client = Client::greet(&rig.unix);
    let replies = client.option(OPT_INFO, &info_data("", &[1]));
    assert_eq!(replies[1].1[2..], *b"disk");
    client.structured();
    client.go("");
    assert_ne!(client.flags & 1 << 7, 0);
    rig.stop();
}

#[test]
fn export_name_begins_with_and_without_zeroes_and_hangs_up_otherwise() {
    let rig = Rig::plain();
    let healthy = Healthy::start(&rig);
    for (flags, zeroes) in [(1, 124), (3, 0), (0, 124), (2, 0)] {
        let mut client = Client::greet_on(connect(&rig.unix), flags).unwrap();
        client.send_option(OPT_EXPORT_NAME, b"disk").unwrap();
        let mut reply = vec![0; 10 + zeroes];
        client.socket.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..8], (16 * MIB).to_be_bytes());
        assert!(reply[10..].iter().all(|&b| b == 0));
        assert_eq!(client.write(0, &[7; 512]), 0);
        assert!(client.read(0, 512).unwrap() == [7; 512]);
    }
    for name in [&b"none"[..], b"", b"\xff", b"a\0", &[b'x'; 5000], &vec![b'x'; 100_000]] {
        let mut client = Client::greet(&rig.unix);
        // A server that hangs up early may break the pipe.
        let _ = client.send_option(OPT_EXPORT_NAME, name);
        assert!(client.is_closed(), "{} bytes", name.len());
    }
    healthy.finish();
    rig.stop();
}

#[test]
fn unknown_malformed_and_oversized_options_are_answered_and_the_next_one_is_read() {
    let rig = Rig::plain();
    let healthy = Healthy::start(&rig);
    let mut client = Client::greet(&rig.unix);
    for code in [0, 4, 11, 12, 99, u32::MAX] {
        assert_eq!(client.verdict(code, b"whatever"), ERR_UNSUP, "{code}");
    }
    assert_eq!(client.verdict(OPT_STRUCTURED, b"x"), ERR_INVALID);
    assert_eq!(client.verdict(OPT_STARTTLS, &[]), ERR_POLICY);
    for option in [OPT_INFO, OPT_GO] {
        assert_eq!(client.verdict(option, &info_data("none", &[])), ERR_UNKNOWN);
        let long = info_data(&"x".repeat(4097), &[]);
        for data in [&b""[..], &[0, 0, 0, 9, 1], &[0xff; 6], &info_data("disk", &[])[..9], &long] {
            assert_eq!(client.verdict(option, data), ERR_INVALID);
        }
        let mut trailing = info_data("disk", &[]);
        trailing.push(0);
        assert_eq!(client.verdict(option, &trailing), ERR_INVALID);
    }
    for code in [OPT_LIST, OPT_INFO, OPT_SET_META, 99] {
        assert_eq!(client.verdict(code, &vec![0; (64 << 10) + 1]), ERR_TOO_BIG);
    }
    client.structured();
    client.go("disk");
    assert!(client.read(0, 512).unwrap() == [0; 512]);
    healthy.finish();
    rig.stop();
}

#[test]
fn contexts_are_listed_set_and_forgotten_as_the_protocol_has_it() {
    let rig = Rig::plain();
    rig.exports.add("other", disk(&rig.dir, "other", MIB, CacheMode::WriteBack, &rig.buffers)).unwrap();
    let mut client = Client::greet(&rig.unix);
    assert_eq!(client.verdict(OPT_SET_META, &meta_data("disk", &["base:allocation"])), ERR_INVALID);
    assert_eq!(client.verdict(OPT_LIST_META, &meta_data("disk", &[])), ERR_INVALID);
    client.structured();
    let one = |replies: Vec<(u32, Vec<u8>)>| match replies.as_slice() {
        [(REP_META, context), (REP_ACK, _)] => {
            assert_eq!(context[4..], *b"base:allocation");
            Some(be32(context))
        }
        [(REP_ACK, _)] => None,
        other => panic!("{other:?}"),
    };
    for queries in [&[][..], &["base:"], &["base:allocation"], &["x-y:z", "base:allocation"]] {
        assert_eq!(one(client.option(OPT_LIST_META, &meta_data("disk", queries))), Some(0), "{queries:?}");
    }
    for queries in [&["x-y:z"][..], &["qemu:"], &["base:other"]] {
        assert_eq!(one(client.option(OPT_LIST_META, &meta_data("disk", queries))), None, "{queries:?}");
    }
    for queries in [&[][..], &["base:"], &["x:y"]] {
        assert_eq!(one(client.set_meta("disk", queries)), None, "{queries:?}");
    }
    assert_eq!(client.verdict(OPT_SET_META, &meta_data("none", &["base:allocation"])), ERR_UNKNOWN);
    for data in [meta_data("disk", &["nocolon"]), vec![0, 0, 0, 4], [string("disk"), vec![0xff; 4]].concat()] {
        assert_eq!(client.verdict(OPT_SET_META, &data), ERR_INVALID);
    }
    // A set that fails takes back the one before.
    assert_eq!(one(client.set_meta("disk", &["base:allocation"])), Some(1));
    assert_eq!(client.verdict(OPT_SET_META, &meta_data("disk", &["nocolon"])), ERR_INVALID);
    client.go("disk");
    assert_eq!(client.ask(STATUS, 0, 0, 4096, &[]), EINVAL);
    // It holds for the export that it was set for.
    let mut client = Client::greet(&rig.unix);
    client.structured();
    assert_eq!(one(client.set_meta("other", &["base:allocation"])), Some(1));
    client.go("disk");
    assert_eq!(client.ask(STATUS, 0, 0, 4096, &[]), EINVAL);
    assert_eq!(Client::open(&rig.unix, "disk").status(0, 0, 4096), [(4096, 3)]);
    rig.stop();
}

#[test]
fn abort_is_acknowledged_and_ends_it() {
    let rig = Rig::plain();
    for data in [&b""[..], b"ignored", &vec![0; 100_000]] {
        let mut client = Client::greet(&rig.unix);
        assert_eq!(client.verdict(OPT_ABORT, data), REP_ACK);
        assert!(client.is_closed());
    }
    rig.stop();
}

#[test]
fn what_is_no_handshake_is_cut_off() {
    let rig = Rig::plain();
    let healthy = Healthy::start(&rig);
    for flags in [4, u32::MAX, 1 << 16] {
        let mut client = Client::greet_on(connect(&rig.unix), flags).unwrap();
        assert!(client.is_closed(), "flags {flags:#x}");
    }
    let mut client = Client::greet(&rig.unix);
    client.socket.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(client.is_closed());
    let mut client = Client::greet(&rig.unix);
    client.socket.write_all(&[&(IHAVEOPT ^ 1).to_be_bytes()[..], &OPT_LIST.to_be_bytes(), &[0; 4]].concat()).unwrap();
    assert!(client.is_closed(), "an option in all but its first bytes");
    let mut client = Client::greet(&rig.unix);
    let huge = [&IHAVEOPT.to_be_bytes()[..], &99_u32.to_be_bytes(), &u32::MAX.to_be_bytes()].concat();
    client.socket.write_all(&huge).unwrap();
    assert!(client.is_closed(), "4 GiB of data are not waited for");
    let mut client = Client::greet(&rig.unix);
    let mut answered = 0;
    while client.send_option(99, &[]).is_ok() && client.option_replies(99).is_ok() {
        answered += 1;
        assert!(answered <= 1000, "a negotiation without end");
    }
    healthy.finish();
    rig.stop();
}

#[test]
fn as_many_connections_as_there_may_be_and_no_more() {
    let rig = Rig::sized(CacheMode::WriteBack, ServerOptions::default(), 64 << 20, 2);
    let mut first = Client::open(&rig.unix, "disk");
    let second = Client::open(&rig.tcp, "disk");
    let mut third = Client::greet(&rig.unix);
    let replies = third.option(OPT_GO, &info_data("disk", &[]));
    assert_eq!(replies.last().unwrap().0, ERR_POLICY);
    let mut fourth = Client::greet(&rig.unix);
    fourth.send_option(OPT_EXPORT_NAME, b"disk").unwrap();
    assert!(fourth.is_closed());
    assert_eq!(first.write(0, &[1; 4096]), 0);
    drop(second);
    // The place comes free when the server has noticed.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while third.option(OPT_GO, &info_data("disk", &[])).last().unwrap().0 != REP_ACK {
        assert!(std::time::Instant::now() < end, "the place of a client that left stays taken");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(third.read(0, 4096).unwrap() == [1; 4096]);
    rig.stop();
}
