//! A small NBD client for tests: one request at a time, nothing negotiated but the export's name.
//!
//! Blocking; every wait is bounded. It shares no code with the server.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest wait for a reply.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection to one export.
pub(crate) struct NbdClient {
    socket: UnixStream,
    cookie: u64,
    pub(crate) size: u64,
}

impl NbdClient {
    /// Connects, trying again until the server listens.
    pub(crate) fn connect(path: &Path, export: &str) -> io::Result<NbdClient> {
        let until = Instant::now() + PATIENCE;
        loop {
            match NbdClient::try_connect(path, export) {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Connects once.
    pub(crate) fn try_connect(path: &Path, export: &str) -> io::Result<NbdClient> {
        let mut socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend_from_slice(b"IHAVEOPT");
        hello.extend_from_slice(&1_u32.to_be_bytes());
        hello.extend_from_slice(&(export.len() as u32).to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        socket.write_all(&hello)?;
        let mut told = [0; 10];
        socket.read_exact(&mut told)?;
        let size = u64::from_be_bytes(told[..8].try_into().expect("eight bytes"));
        Ok(NbdClient { socket, cookie: 0, size })
    }

    fn request(&mut self, flags: u16, kind: u16, offset: u64, len: u32, data: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut out = 0x2560_9513_u32.to_be_bytes().to_vec();
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(data);
        self.socket.write_all(&out)?;
        let mut reply = [0; 16];
        self.socket.read_exact(&mut reply)?;
        assert_eq!(&reply[..4], &0x6744_6698_u32.to_be_bytes());
        assert_eq!(&reply[8..], &self.cookie.to_be_bytes());
        match u32::from_be_bytes(reply[4..8].try_into().expect("four bytes")) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno as i32)),
        }
    }

    /// Writes, and returns when it is acknowledged.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.request(0, 1, offset, data.len() as u32, data)
    }

    /// Writes, durably.
    pub(crate) fn write_fua(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.request(1, 1, offset, data.len() as u32, data)
    }

    /// Reads.
    pub(crate) fn read(&mut self, offset: u64, len: u32) -> io::Result<Vec<u8>> {
        self.request(0, 0, offset, len, &[])?;
        let mut data = vec![0; len as usize];
        self.socket.read_exact(&mut data)?;
        Ok(data)
    }

    /// Makes everything acknowledged durable.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.request(0, 3, 0, 0, &[])
    }

    /// Discards.
    pub(crate) fn trim(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.request(0, 4, offset, len, &[])
    }

    /// Writes zeros.
    pub(crate) fn zero(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.request(0, 6, offset, len, &[])
    }
}
