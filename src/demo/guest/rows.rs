//! A client of the guests: what their web servers say, and which row of the database was acknowledged last.
//!
//! It only reads. What it has seen is what a customer of the shop has seen, and the losses are told by that.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Longest wait for one answer.
const WITHIN: Duration = Duration::from_secs(2);
/// Most bytes of an answer.
const MAX_ANSWER: u64 = 64 << 10;
/// Time between two questions.
const PAUSE: Duration = Duration::from_millis(50);
/// Most answers that are remembered: the newest two minutes or so.
const REMEMBERED: usize = 4096;

/// The body of `path` at a web server; `None` where it says nothing, or not 200 in time.
pub(super) async fn get(address: SocketAddr, path: &str) -> Option<String> {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(format!("GET /{path} HTTP/1.0\r\n\r\n").as_bytes()).await.ok()?;
        let mut bytes = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut bytes).await.ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        head.lines().next()?.contains(" 200 ").then(|| body.trim().to_owned())
    };
    // A page that is just being written is empty.
    tokio::time::timeout(WITHIN, ask).await.ok().flatten().filter(|body| !body.is_empty())
}

#[derive(Debug, Default)]
struct Seen {
    /// Each newest row, with the moment when it was first seen.
    rows: Vec<(Instant, u64)>,
    /// Longest time between two rows.
    longest: Duration,
}

/// Watches the database at an address until it is dropped.
#[derive(Debug)]
pub(super) struct RowWatch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Drop for RowWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RowWatch {
    pub(super) fn start(address: SocketAddr) -> RowWatch {
        let seen = Arc::<Mutex<Seen>>::default();
        let own = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                if let Some(row) = get(address, "newest").await.and_then(|text| text.parse().ok()) {
                    note(&own, row, Instant::now());
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        RowWatch { seen, task }
    }

    /// The newest row that was acknowledged; 0 before the first.
    pub(super) fn newest(&self) -> u64 {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).rows.last().map_or(0, |(_, row)| *row)
    }

    /// How long before its last answer the database had acknowledged no row past `row`: what would be lost with them.
    pub(super) fn lost_since(&self, row: u64) -> Duration {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let first_lost = seen.rows.iter().find(|(_, n)| *n > row);
        match (first_lost, seen.rows.last()) {
            (Some((from, _)), Some((to, _))) => *to - *from,
            _ => Duration::ZERO,
        }
    }

    /// Longest time between two rows, so far; counted anew from here on.
    pub(super) fn take_longest_pause(&self) -> Duration {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner).longest)
    }
}

fn note(seen: &Mutex<Seen>, row: u64, now: Instant) {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    match seen.rows.last().copied() {
        Some((_, known)) if known >= row => return,
        Some((before, _)) => seen.longest = seen.longest.max(now - before),
        None => {}
    }
    seen.rows.push((now, row));
    if seen.rows.len() > REMEMBERED {
        seen.rows.drain(..REMEMBERED / 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn losses_are_counted_from_the_first_row_that_is_gone() {
        let watch = RowWatch { seen: Arc::default(), task: tokio::spawn(async {}) };
        let began = Instant::now();
        for (second, row) in [3, 5, 5, 9].into_iter().enumerate() {
            note(&watch.seen, row, began + Duration::from_secs(second as u64));
        }
        assert_eq!(watch.newest(), 9);
        assert_eq!(watch.lost_since(9), Duration::ZERO);
        assert_eq!(watch.lost_since(5), Duration::ZERO, "only the last one: nothing was acknowledged before it");
        assert_eq!(watch.lost_since(3), Duration::from_secs(2));
        assert_eq!(watch.take_longest_pause(), Duration::from_secs(2));
        assert_eq!(watch.take_longest_pause(), Duration::ZERO);
    }

    #[tokio::test]
    async fn only_a_good_answer_counts() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            for answer in ["HTTP/1.0 200 OK\r\nA: b\r\n\r\n17\n", "HTTP/1.0 404 Not Found\r\n\r\n17\n", "noise"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = [0; 256];
                let n = stream.read(&mut bytes).await.unwrap();
                assert!(bytes[..n].starts_with(b"GET /newest HTTP/1.0\r\n"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        assert_eq!(get(address, "newest").await.as_deref(), Some("17"));
        assert_eq!(get(address, "newest").await, None);
        assert_eq!(get(address, "newest").await, None);
        server.await.unwrap();
        assert_eq!(get(address, "newest").await, None, "nobody listens");
    }
}
