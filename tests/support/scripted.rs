//! An HTTP server that answers as a closure says: for stores that behave in ways that no good server can be made to.
//!
//! It runs on threads of its own, counts requests, and stops when it is dropped.

use bytes::Bytes;
use http::{HeaderMap, Method};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// Longest request body that is read.
const MAX_BODY: usize = 1 << 20;

/// One request.
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// What to answer.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// A status with a body and nothing else.
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, headers: Vec::new(), body: body.into() }
    }

    /// One more header.
    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

/// The running server.
pub(crate) struct Scripted {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    runtime: Option<Runtime>,
}

impl Scripted {
    /// Answers every request with what `script` returns.
    pub(crate) fn start(script: impl Fn(Request) -> Reply + Send + Sync + 'static) -> Scripted {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        runtime.spawn(accept(listener, Arc::new(script), Arc::clone(&requests)));
        Scripted { address, requests, runtime: Some(runtime) }
    }

    /// `http://127.0.0.1:<port>`.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Also from within another runtime, as an async test is, where waiting is not allowed.
            runtime.shutdown_background();
        }
    }
}

async fn accept<F>(listener: StdListener, script: Arc<F>, requests: Arc<AtomicUsize>)
where
    F: Fn(Request) -> Reply + Send + Sync + 'static,
{
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let (script, requests) = (Arc::clone(&script), Arc::clone(&requests));
        let service = service_fn(move |request| {
            let (script, requests) = (Arc::clone(&script), Arc::clone(&requests));
            async move {
                requests.fetch_add(1, Ordering::Relaxed);
                let reply = script(received(request).await);
                let mut builder = http::Response::builder().status(reply.status);
                for (name, value) in reply.headers {
                    builder = builder.header(name, value);
                }
                Ok::<_, Infallible>(builder.body(Whole(Some(reply.body.into()))).unwrap())
            }
        });
        tokio::spawn(async move {
            // A client that goes away is no error of the server's.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn received(request: http::Request<Incoming>) -> Request {
    let (head, body) = request.into_parts();
    let mut body = pin!(body);
    let mut read = Vec::new();
    while let Some(Ok(frame)) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        if let Ok(data) = frame.into_data() {
            assert!(read.len() + data.len() <= MAX_BODY, "the script reads small bodies only");
            read.extend_from_slice(&data);
        }
    }
    let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
    Request { method: head.method, path, query, headers: head.headers, body: read }
}

/// A body of one piece.
struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(self.0.take().filter(|b| !b.is_empty()).map(|b| Ok(hyper::body::Frame::data(b))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.0.as_ref().map_or(0, Bytes::len) as u64)
    }
}
