//! A small NBD client that can also do everything wrong. Every wait on the socket has an end.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use freshet::nbd::Address;

pub(crate) const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_LIST: u32 = 3;
pub(crate) const OPT_STARTTLS: u32 = 5;
pub(crate) const OPT_INFO: u32 = 6;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED: u32 = 8;
pub(crate) const OPT_LIST_META: u32 = 9;
pub(crate) const OPT_SET_META: u32 = 10;

pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META: u32 = 4;
pub(crate) const ERR_UNSUP: u32 = (1 << 31) | 1;
pub(crate) const ERR_POLICY: u32 = (1 << 31) | 2;
pub(crate) const ERR_INVALID: u32 = (1 << 31) | 3;
pub(crate) const ERR_UNKNOWN: u32 = (1 << 31) | 6;
pub(crate) const ERR_SHUTDOWN: u32 = (1 << 31) | 7;
pub(crate) const ERR_TOO_BIG: u32 = (1 << 31) | 9;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const ZEROES: u16 = 6;
pub(crate) const STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const EOVERFLOW: u32 = 75;
pub(crate) const ENOTSUP: u32 = 95;
pub(crate) const ESHUTDOWN: u32 = 108;

/// Longest wait for the server; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) trait Socket: Read + Write + Send {}
impl<T: Read + Write + Send> Socket for T {}

/// Connects, with a limit on every wait.
pub(crate) fn connect(address: &Address) -> Box<dyn Socket> {
    match address {
        Address::Unix(path) => {
            let socket = UnixStream::connect(path).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.set_write_timeout(Some(PATIENCE)).unwrap();
            Box::new(socket)
        }
        Address::Tcp(address) => {
            let socket = TcpStream::connect(address).unwrap();
            socket.set_nodelay(true).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.set_write_timeout(Some(PATIENCE)).unwrap();
            Box::new(socket)
        }
    }
}

/// One chunk of a reply, or a simple reply as a chunk of kind `SIMPLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) cookie: u64,
    pub(crate) done: bool,
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
}

pub(crate) const NONE: u16 = 0;
pub(crate) const DATA: u16 = 1;
pub(crate) const HOLE: u16 = 2;
pub(crate) const BLOCK_STATUS: u16 = 5;
pub(crate) const ERROR: u16 = 0x8001;
pub(crate) const SIMPLE: u16 = 0x7fff;

/// See the module.
pub(crate) struct Client {
    pub(crate) socket: Box<dyn Socket>,
    pub(crate) size: u64,
    pub(crate) flags: u16,
    structured: bool,
    cookie: u64,
}

impl Client {
    /// Greeted, before any option.
    pub(crate) fn greet(address: &Address) -> Client {
        Client::greet_on(connect(address), 3).unwrap()
    }

    pub(crate) fn greet_on(mut socket: Box<dyn Socket>, client_flags: u32) -> io::Result<Client> {
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting)?;
        assert_eq!(greeting, *b"NBDMAGICIHAVEOPT\0\x03");
        socket.write_all(&client_flags.to_be_bytes())?;
        Ok(Client { socket, size: 0, flags: 0, structured: false, cookie: 1 << 40 })
    }

    /// In transmission of export `name`, with structured replies and `base:allocation`.
    pub(crate) fn open(address: &Address, name: &str) -> Client {
        let mut client = Client::greet(address);
        client.structured();
        assert_eq!(client.set_meta(name, &["base:allocation"]).last().unwrap().0, REP_ACK);
        client.go(name);
        client
    }

    /// The same with simple replies.
    pub(crate) fn open_simple(address: &Address, name: &str) -> Client {
        let mut client = Client::greet(address);
        client.go(name);
        client
    }

    /// As after STARTTLS.
    pub(crate) fn forget_agreements(&mut self) {
        self.structured = false;
    }

    /// Goes on over another stream made of this one.
    pub(crate) fn map_socket(self, map: impl FnOnce(Box<dyn Socket>) -> Box<dyn Socket>) -> Client {
        Client { socket: map(self.socket), ..self }
    }

    pub(crate) fn structured(&mut self) {
        assert_eq!(self.option(OPT_STRUCTURED, &[]), [(REP_ACK, vec![])]);
        self.structured = true;
    }

    pub(crate) fn send_option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let head = [&IHAVEOPT.to_be_bytes()[..], &option.to_be_bytes(), &(data.len() as u32).to_be_bytes()].concat();
        self.socket.write_all(&[&head, data].concat())
    }

    /// All replies to an option, up to the final one.
    pub(crate) fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(option, data).unwrap();
        self.option_replies(option).unwrap()
    }

    pub(crate) fn option_replies(&mut self, option: u32) -> io::Result<Vec<(u32, Vec<u8>)>> {
        let mut out = Vec::new();
        loop {
            let mut head = [0; 20];
            self.socket.read_exact(&mut head)?;
            assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
            assert_eq!(head[8..12], option.to_be_bytes());
            let kind = be32(&head[12..]);
            let mut data = vec![0; be32(&head[16..]) as usize];
            self.socket.read_exact(&mut data)?;
            out.push((kind, data));
            if kind == REP_ACK || kind >= 1 << 31 {
                return Ok(out);
            }
        }
    }

    /// The kind of the only reply.
    pub(crate) fn verdict(&mut self, option: u32, data: &[u8]) -> u32 {
        let replies = self.option(option, data);
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies[0].0
    }

    pub(crate) fn go(&mut self, name: &str) {
        let replies = self.option(OPT_GO, &info_data(name, &[]));
        assert_eq!(replies.last().unwrap().0, REP_ACK, "{replies:?}");
        let export = replies.iter().find(|(kind, data)| *kind == REP_INFO && data[..2] == [0, 0]).unwrap();
        self.size = u64::from_be_bytes(export.1[2..10].try_into().unwrap());
        self.flags = u16::from_be_bytes(export.1[10..12].try_into().unwrap());
    }

    pub(crate) fn set_meta(&mut self, name: &str, queries: &[&str]) -> Vec<(u32, Vec<u8>)> {
        self.option(OPT_SET_META, &meta_data(name, queries))
    }

    /// Sends a request; the cookie that it got.
    pub(crate) fn send(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> u64 {
        self.try_send(command, flags, offset, len, data).unwrap()
    }

    pub(crate) fn try_send(&mut self, command: u16, flags: u16, at: u64, len: u32, data: &[u8]) -> io::Result<u64> {
        self.cookie += 1;
        let head = header(command, flags, self.cookie, at, len);
        self.socket.write_all(&head)?;
        self.socket.write_all(data)?;
        Ok(self.cookie)
    }

    /// The next chunk; `read` is the length of the data of a successful simple reply.
    pub(crate) fn chunk(&mut self, read: usize) -> io::Result<Chunk> {
        let mut magic = [0; 4];
        self.socket.read_exact(&mut magic)?;
        match be32(&magic) {
            0x6744_6698 => {
                let mut rest = [0; 12];
                self.socket.read_exact(&mut rest)?;
                let mut body = rest[..4].to_vec();
                if be32(&body) == 0 {
                    body.resize(4 + read, 0);
                    self.socket.read_exact(&mut body[4..])?;
                }
                let cookie = u64::from_be_bytes(rest[4..].try_into().unwrap());
                Ok(Chunk { cookie, done: true, kind: SIMPLE, body })
            }
            0x668e_33ef => {
                let mut rest = [0; 16];
                self.socket.read_exact(&mut rest)?;
                let mut body = vec![0; be32(&rest[12..]) as usize];
                self.socket.read_exact(&mut body)?;
                Ok(Chunk {
                    cookie: u64::from_be_bytes(rest[4..12].try_into().unwrap()),
                    done: rest[1] & 1 != 0,
                    kind: u16::from_be_bytes(rest[2..4].try_into().unwrap()),
                    body,
                })
            }
            other => panic!("magic {other:#x}"),
        }
    }

    /// All chunks of the reply to the only request in flight.
    pub(crate) fn reply(&mut self, read: usize) -> io::Result<Vec<Chunk>> {
        let mut out = Vec::new();
        loop {
            out.push(self.chunk(read)?);
            if out.last().unwrap().done {
                return Ok(out);
            }
        }
    }

    /// Asks and waits; the error that came, or 0.
    pub(crate) fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> u32 {
        let cookie = self.send(command, flags, offset, len, data);
        let chunks = self.reply(0).unwrap();
        assert!(chunks.iter().all(|chunk| chunk.cookie == cookie));
        error_of(&chunks)
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.ask(WRITE, 0, offset, data.len() as u32, data)
    }

    /// Reads with whatever replies were agreed on, put together from its chunks.
    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, u32> {
        let cookie = self.send(READ, 0, offset, len as u32, &[]);
        let chunks = self.reply(len).unwrap();
        assert!(chunks.iter().all(|chunk| chunk.cookie == cookie));
        match error_of(&chunks) {
            0 => Ok(assemble(offset, len, &chunks)),
            errno => Err(errno),
        }
    }

    /// Length and flags of the parts.
    pub(crate) fn status(&mut self, flags: u16, offset: u64, len: u32) -> Vec<(u32, u32)> {
        self.send(STATUS, flags, offset, len, &[]);
        let chunks = self.reply(0).unwrap();
        assert_eq!((chunks.len(), chunks[0].kind), (1, BLOCK_STATUS), "{chunks:?}");
        assert_eq!(be32(&chunks[0].body), 1);
        chunks[0].body[4..].chunks(8).map(|part| (be32(part), be32(&part[4..]))).collect()
    }

    /// Whether the server has ended the connection, waiting for it to do so.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        match self.socket.read(&mut byte) {
            Ok(0) => true,
            Ok(_) => false,
            Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

pub(crate) fn header(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut out = 0x2560_9513_u32.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(command.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(len.to_be_bytes());
    out
}

pub(crate) fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

pub(crate) fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut out = string(name);
    out.extend((wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|kind| out.extend(kind.to_be_bytes()));
    out
}

pub(crate) fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut out = string(name);
    out.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| out.extend(string(query)));
    out
}

/// The error in a reply, or 0.
pub(crate) fn error_of(chunks: &[Chunk]) -> u32 {
    chunks.iter().find(|chunk| [SIMPLE, ERROR].contains(&chunk.kind)).map_or(0, |chunk| be32(&chunk.body))
}

/// The data of a read; every byte must have come once.
pub(crate) fn assemble(offset: u64, len: usize, chunks: &[Chunk]) -> Vec<u8> {
    if let [simple] = chunks
        && simple.kind == SIMPLE
    {
        return simple.body[4..].to_vec();
    }
    let mut out = vec![0xee; len];
    let mut covered = vec![false; len];
    for chunk in chunks.iter().filter(|chunk| chunk.kind != NONE) {
        let at = (u64::from_be_bytes(chunk.body[..8].try_into().unwrap()) - offset) as usize;
        let part = match chunk.kind {
            DATA => chunk.body[8..].to_vec(),
            HOLE => vec![0; be32(&chunk.body[8..]) as usize],
            other => panic!("chunk of kind {other}"),
        };
        assert!(!part.is_empty() && covered[at..at + part.len()].iter().all(|&there| !there));
        covered[at..at + part.len()].fill(true);
        out[at..at + part.len()].copy_from_slice(&part);
    }
    assert!(covered.iter().all(|&there| there), "bytes are missing");
    out
}
